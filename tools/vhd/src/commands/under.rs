//! Work on what a storage domain serves: its VBD is held, the work done, and it goes on, on the same image or on another
//! one. What cannot be done is undone, so that the disk is served again as it was.

use std::path::{Path, PathBuf, absolute};

use drivers::disk::{Device, Store};
use embassy_futures::block_on;
use protocol::lvm::Name;
use rustix::io::Errno;
use tap_ctl::conversation::Vbd;
use tap_ctl::host::Target;

use crate::disk::{on, sync};
use crate::domains::{Talk, is_open, is_paused, is_same};
use crate::failure::Failure;
use crate::medium::Medium;
use crate::store::{Access, FileStore};

/// Which VBD, and what it has to have open.
pub(super) struct Hold<'a> {
    /// Its minor.
    pub minor: u16,
    /// Its image.
    pub image: &'a Path,
    /// That is no VHD.
    pub raw: bool,
}

/// Where it goes on when the work is done.
pub(super) enum Next {
    /// Where it was.
    Same,
    /// On an image of this name, which stays whatever happens.
    On(String),
    /// On this one, which was made a moment ago and goes again if it cannot be.
    Made(String, PathBuf),
}

/// What became of a RESUME that was not answered well.
enum Fate {
    /// It was done all the same.
    Done,
    /// It was not: the VBD is held.
    Held,
    /// Nobody knows, or somebody else was at it.
    Unknown,
}

impl Hold<'_> {
    /// Does `work` while the VBD is held.
    pub(super) fn during<T>(
        &self,
        domains: Option<&Target<'_>>,
        work: impl FnOnce() -> Result<(T, Next), Failure>,
    ) -> Result<T, Failure> {
        let none = || Failure::new(Errno::NODEV, "there is no storage domain on this host");
        let server = domains.ok_or_else(none)?.one(None).map_err(|why| Failure::new(why.errno(), why))?;
        let (mut talk, minor) = (Talk::with(server), self.minor);
        let old = self.vbd(&mut talk)?.path;
        talk.pause(minor)?;
        let (done, next) = match work() {
            Ok(done) => done,
            Err(why) => return Err(back(&mut talk, minor, &old, why)),
        };
        let (new, made) = match next {
            Next::Same => (old.clone(), None),
            Next::On(name) => (name, None),
            Next::Made(name, path) => (name, Some(path)),
        };
        let Err(why) = talk.resume(minor, &new) else { return Ok(done) };
        match fate(&mut talk, minor, &new) {
            Fate::Done => Ok(done),
            Fate::Held => {
                let why = match made.map_or(Ok(()), |path| unmake(&path)) {
                    Ok(()) => why,
                    Err(also) => also.after(&why),
                };
                Err(back(&mut talk, minor, &old, why))
            }
            Fate::Unknown => {
                let text = format_args!("minor {minor} may be on the new image or the old one; nothing was undone");
                Err(Failure::new(Errno::BUSY, text).after(&why))
            }
        }
    }

    /// The VBD, if it has the image open.
    fn vbd(&self, talk: &mut Talk) -> Result<Vbd, Failure> {
        let minor = self.minor;
        let found = talk.list(minor)?.into_iter().find(|vbd| vbd.minor == minor);
        let vbd = found.ok_or_else(|| Failure::new(Errno::NODEV, format_args!("minor {minor}: there is none")))?;
        let (kind, source) = vbd.path.split_once(':').unwrap_or(("", &vbd.path));
        let wanted: &[&str] = if self.raw { &["aio", "raw"] } else { &["vhd"] };
        if !is_open(&vbd) || !wanted.contains(&kind) || !is_same(Path::new(source), self.image) {
            let has = if is_open(&vbd) { &vbd.path } else { "nothing" };
            let text = format_args!("minor {minor}: it has {has} open, not {}", self.image.display());
            return Err(Failure::invalid(text));
        }
        Ok(vbd)
    }
}

/// How a storage domain is to know an image.
pub(super) fn name(image: &Path, raw: bool) -> Result<String, Failure> {
    let kind = if raw { "aio" } else { "vhd" };
    let bad = |why: &dyn std::fmt::Display| Failure::invalid(format_args!("{}: {why}", image.display()));
    let text = image.to_str().ok_or_else(|| bad(&"not a name that can be said"))?;
    if Name::parse(text).is_some() {
        return Ok(format!("{kind}:{text}"));
    }
    absolute(image).map(|path| format!("{kind}:{}", path.display())).map_err(|error| bad(&error))
}

/// Lets the VBD go on where it was, and says what went wrong before.
fn back(talk: &mut Talk, minor: u16, old: &str, why: Failure) -> Failure {
    match talk.resume(minor, old) {
        Ok(()) => why,
        Err(also) => Failure::new(Errno::BUSY, format_args!("minor {minor} is still held: {also}")).after(&why),
    }
}

fn fate(talk: &mut Talk, minor: u16, new: &str) -> Fate {
    match talk.list(minor).map(|vbds| vbds.into_iter().find(|vbd| vbd.minor == minor)) {
        Ok(Some(vbd)) if is_open(&vbd) && vbd.path == new => Fate::Done,
        Ok(Some(vbd)) if is_paused(&vbd) => Fate::Held,
        _ => Fate::Unknown,
    }
}

/// Takes away an image that was made a moment ago and that nobody uses.
fn unmake(image: &Path) -> Result<(), Failure> {
    let store = FileStore::open(image, Access::Write)?;
    if !store.is_device() {
        return std::fs::remove_file(image).map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Failure::of_file(image, "remove", errno)
        });
    }
    let last = store.info().sectors.saturating_sub(1);
    for at in [0, last] {
        block_on(store.zero(at, 1)).map_err(|error| on(&store, error))?;
    }
    sync(&store)
}
