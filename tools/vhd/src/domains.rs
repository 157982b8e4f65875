//! What storage domains have open: a file or device shows that they have it, a logical volume does not, since dom0 and a
//! storage domain reach it by different ways. So they are asked.

use std::fmt::Display;
use std::path::{Path, PathBuf, absolute};

use drivers::format::vhd::open::DEPTH_MAX;
use protocol::lvm::Name;
use protocol::tapdisk::{Dialect, EVERY_MINOR, Params, Text};
use rustix::io::Errno;
use tap_ctl::conversation::{Conversation, Vbd};
use tap_ctl::host::{Server, Target};
use tap_ctl::line::Line;

use crate::disk::image;
use crate::failure::Failure;
use crate::family::{Parent, parent};
use crate::medium::Medium;
use crate::store::{Access, FileStore};

/// Bits of a VBD's state with which it has no image: dead, closed, paused (`docs/control.md`).
const WITHOUT_IMAGE: u32 = 0x001 | 0x002 | 0x020;
const PAUSED: u32 = 0x020;

/// A conversation with a storage domain, and how texts name it.
pub struct Talk {
    title: String,
    talk: Conversation<Box<dyn Line>>,
}

/// What of an image nobody else may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role<'a> {
    /// It is what is written.
    Leaf,
    /// It is what is written, or below that.
    Layer,
    /// It is what is written, or below that by another way than this child of it, which has all that it will be given.
    Parent(&'a Path),
}

impl Talk {
    /// With a server, in blktap's dialect.
    pub fn with(server: Server) -> Talk {
        Talk { title: server.title, talk: Conversation::new(server.line, Dialect::Blktap, false) }
    }

    fn failed(&self, why: tap_ctl::failure::Failure) -> Failure {
        Failure::new(why.errno(), format_args!("{}: {why}", self.title))
    }

    /// Its VBDs, or that one.
    ///
    /// # Errors
    /// What it says.
    pub fn list(&mut self, minor: u16) -> Result<Vec<Vbd>, Failure> {
        self.talk.list(minor).map_err(|why| self.failed(why))
    }

    /// Holds a VBD; when this is done, nobody is at its image.
    ///
    /// # Errors
    /// What it says.
    pub fn pause(&mut self, minor: u16) -> Result<(), Failure> {
        self.talk.pause(minor, None).map_err(|why| self.failed(why))
    }

    /// Lets it go on, on an image of that name.
    ///
    /// # Errors
    /// What it says.
    pub fn resume(&mut self, minor: u16, name: &str) -> Result<(), Failure> {
        let too_long = || Failure::new(Errno::NAMETOOLONG, format_args!("{name}: longer than a message has room for"));
        let params = Params { path: Text::new(name).ok_or_else(too_long)?, ..Params::default() };
        self.talk.resume(minor, params, None).map_err(|why| self.failed(why))
    }
}

/// Whether a VBD has its image open.
pub fn is_open(vbd: &Vbd) -> bool {
    vbd.state & WITHOUT_IMAGE == 0 && !vbd.path.is_empty()
}

/// Whether a VBD is held.
pub fn is_paused(vbd: &Vbd) -> bool {
    vbd.state & PAUSED != 0
}

/// Whether two paths are one volume, by whichever of its names, or one path.
pub fn is_same(one: &Path, other: &Path) -> bool {
    let name = |path: &Path| path.to_str().and_then(Name::parse);
    match (name(one), name(other)) {
        (Some(one), Some(other)) => one == other,
        _ => absolute(one).is_ok_and(|one| absolute(other).is_ok_and(|other| one == other)),
    }
}

/// Refuses what a storage domain has open. A domain of which nothing was said is asked for logical volumes alone: it has no
/// way to another device or file of this host that the host would not show.
///
/// # Errors
/// EBUSY with the domain's name; EBUSY too if a domain cannot be asked.
pub fn none_has(domains: Option<&Target<'_>>, path: &Path, role: Role<'_>) -> Result<(), Failure> {
    let is_volume = path.to_str().and_then(Name::parse).is_some();
    let Some(domains) = domains.filter(|domains| is_volume || domains.is_named()) else { return Ok(()) };
    let unknown = |why: &dyn Display| {
        let text = format_args!("{}: whether a storage domain has it open cannot be known: {why}", path.display());
        Failure::new(Errno::BUSY, text)
    };
    let all = match domains {
        Target::Domains { host, channel, .. } => Target::Domains { host: *host, asked: None, channel }.all(None),
        Target::Socket(_) => domains.all(None),
    };
    let all = match all {
        // A domain that may not see the others has no storage domain for itself.
        Err(why) if why.errno() == Errno::ACCESS => return Ok(()),
        all => all.map_err(|why| unknown(&why))?,
    };
    for server in all {
        let mut talk = Talk::with(server);
        for vbd in talk.list(EVERY_MINOR).map_err(|why| unknown(&why))?.iter().filter(|vbd| is_open(vbd)) {
            let (kind, source) = vbd.path.split_once(':').unwrap_or(("", &vbd.path));
            let source = Path::new(source);
            let below = || kind == "vhd" && is_below(path, source, role);
            if is_same(path, source) || role != Role::Leaf && below() {
                let text = format_args!("{}: {}, minor {} has it open", path.display(), talk.title, vbd.minor);
                return Err(Failure::new(Errno::BUSY, text));
            }
        }
    }
    Ok(())
}

/// Whether an image is one of those below a leaf, as far as its chain can be read here, and not below the child that a role
/// names.
fn is_below(path: &Path, leaf: &Path, role: Role<'_>) -> bool {
    let mut here = PathBuf::from(leaf);
    for _ in 0..DEPTH_MAX {
        if matches!(role, Role::Parent(child) if is_same(child, &here)) {
            return false;
        }
        let Ok(store) = FileStore::open(&here, Access::Share) else { return false };
        let found = image(&store).and_then(|its| parent(&store, &its));
        let (next, is_last) = match found {
            Ok(Parent::Vhd(next)) => (next, false),
            Ok(Parent::Raw(next)) => (next, true),
            Err(_) => return false,
        };
        if is_same(next.path(), path) {
            return true;
        }
        if is_last {
            return false;
        }
        here = next.path().to_owned();
    }
    false
}
