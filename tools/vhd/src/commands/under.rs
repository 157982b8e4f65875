//! A snapshot of what a storage domain serves: it is held, the new image made, and it goes on there. What cannot be done is
//! undone, so that the disk is served again as it was.

use std::path::{Path, absolute};

use drivers::disk::{Device, Store};
use embassy_futures::block_on;
use protocol::lvm::Name;
use rustix::io::Errno;
use tap_ctl::conversation::Vbd;
use tap_ctl::host::Target;

use super::{Answer, create};
use crate::arguments::Snapshot;
use crate::disk::{on, sync};
use crate::domains::{Talk, is_open, is_paused, is_same};
use crate::failure::Failure;
use crate::medium::Medium;
use crate::store::{Access, FileStore};

/// What became of a RESUME that was not answered well.
enum Fate {
    /// It was done all the same.
    Done,
    /// It was not: the VBD is held.
    Held,
    /// Nobody knows, or somebody else was at it.
    Unknown,
}

pub(super) fn snapshot(options: &Snapshot, minor: u16, domains: Option<&Target<'_>>) -> Result<Answer, Failure> {
    let none = || Failure::new(Errno::NODEV, "there is no storage domain on this host");
    let server = domains.ok_or_else(none)?.one(None).map_err(|why| Failure::new(why.errno(), why))?;
    let mut talk = Talk::with(server);
    let old = is_on(&mut talk, minor, options)?.path;
    let new = format!("vhd:{}", name(&options.image)?);
    talk.pause(minor)?;
    let made = create::snapshot(options);
    let answer = match made {
        Ok(answer) => answer,
        Err(why) => return Err(back(&mut talk, minor, &old, why)),
    };
    let Err(why) = talk.resume(minor, &new) else { return Ok(answer) };
    match fate(&mut talk, minor, &new) {
        Fate::Done => Ok(answer),
        Fate::Held => {
            let why = match unmake(&options.image) {
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

/// The VBD of that minor, which has to have the parent open.
fn is_on(talk: &mut Talk, minor: u16, options: &Snapshot) -> Result<Vbd, Failure> {
    let found = talk.list(minor)?.into_iter().find(|vbd| vbd.minor == minor);
    let vbd = found.ok_or_else(|| Failure::new(Errno::NODEV, format_args!("minor {minor}: there is none")))?;
    let (kind, source) = vbd.path.split_once(':').unwrap_or(("", &vbd.path));
    let wanted: &[&str] = if options.raw { &["aio", "raw"] } else { &["vhd"] };
    if !is_open(&vbd) || !wanted.contains(&kind) || !is_same(Path::new(source), &options.parent) {
        let has = if is_open(&vbd) { &vbd.path } else { "nothing" };
        let text = format_args!("minor {minor}: it has {has} open, not {}", options.parent.display());
        return Err(Failure::invalid(text));
    }
    Ok(vbd)
}

/// How a storage domain is to know an image.
fn name(image: &Path) -> Result<String, Failure> {
    let bad = |why: &dyn std::fmt::Display| Failure::invalid(format_args!("{}: {why}", image.display()));
    let text = image.to_str().ok_or_else(|| bad(&"not a name that can be said"))?;
    if Name::parse(text).is_some() {
        return Ok(text.to_owned());
    }
    absolute(image).map(|path| path.display().to_string()).map_err(|error| bad(&error))
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
