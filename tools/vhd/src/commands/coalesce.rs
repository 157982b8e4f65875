//! Writing what an image holds into its parent. The image stays as it is, so that whatever happens on the way, all is
//! there; the work can be done again.

use std::path::{Path, PathBuf};

use drivers::disk::{Device, SECTOR_BYTES};
use drivers::format::{Extent, Format};
use embassy_futures::block_on;
use protocol::vhd::Kind;
use serde_json::json;

use super::Answer;
use crate::disk::{CHUNK_SECTORS, Disk, flush, image, open, read, write};
use crate::failure::Failure;
use crate::family::{Parent, parent};
use crate::medium::Medium;
use crate::progress::Progress;
use crate::store::{Access, FileStore};

/// `may` refuses a parent that others have. With the answer, the parent and whether it is no VHD.
pub(super) fn coalesce(
    path: &Path,
    may: &dyn Fn(&Path) -> Result<(), Failure>,
) -> Result<(Answer, PathBuf, bool), Failure> {
    let child = FileStore::open(path, Access::Share)?;
    let its = image(&child)?;
    if its.footer.kind != Kind::Differencing {
        return Err(Failure::invalid(format_args!("{}: it has no parent", path.display())));
    }
    let below = parent(&child, &its)?;
    drop(child);
    match &below {
        Parent::Vhd(store) | Parent::Raw(store) => may(store.path())?,
    }
    let (onto, raw, sectors) = match &below {
        Parent::Vhd(store) => {
            (store.path().to_owned(), false, into(path, &open(store.path(), Access::Write, Access::Share)?)?)
        }
        Parent::Raw(store) => {
            (store.path().to_owned(), true, into(path, &FileStore::open(store.path(), Access::Write)?)?)
        }
    };
    let value = json!({
        "image": path.display().to_string(),
        "parent": onto.display().to_string(),
        "sectors": sectors,
    });
    Ok((Answer::new("", value), onto, raw))
}

/// Writes the image's own sectors into `parent` and says how many they were.
fn into(path: &Path, parent: &impl Device) -> Result<u64, Failure> {
    merge(&open(path, Access::Read, Access::Share)?, &path.display().to_string(), parent)
}

/// Writes the own sectors of a child, of that name, into its parent and says how many they were. Whoever reads through the
/// child reads the same before, after and meanwhile: it has these sectors still.
///
/// # Errors
/// What a disk says; EINVAL if the parent is smaller.
pub fn merge(child: &Disk<impl Medium>, name: &str, parent: &impl Device) -> Result<u64, Failure> {
    let failed = |error| Failure::of_disk(name, error);
    let (sectors, room) = (child.info().sectors, parent.info().sectors);
    if sectors > room {
        let text = format_args!("{name}: it has {sectors} sectors, its parent {room}: make that larger first");
        return Err(Failure::invalid(text));
    }
    let mut progress = Progress::new(format!("coalesce {name}"), sectors);
    let (mut at, mut own, mut bytes) = (0, 0, Vec::new());
    while at < sectors {
        progress.done(at);
        let Some((extent, count)) = child.format.find(at, (sectors - at).min(CHUNK_SECTORS)) else {
            block_on(child.format.learn(at)).map_err(failed)?;
            continue;
        };
        if matches!(extent, Extent::At { layer: 0, .. }) {
            bytes.resize(count as usize * SECTOR_BYTES, 0);
            read(child, at, &mut bytes).map_err(failed)?;
            write(parent, at, &bytes).map_err(|error| Failure::of_disk(&format!("{name}: its parent"), error))?;
            own += count;
        }
        at += count;
    }
    flush(parent).map_err(|error| Failure::of_disk(&format!("{name}: its parent"), error))?;
    Ok(own)
}
