//! Making images.

use std::path::Path;

use drivers::disk::{Device, SECTOR_BYTES};
use drivers::format::vhd::make::{BLOCK_SECTORS, Form, New, Parent, make};
use embassy_futures::block_on;
use protocol::vhd::{COOKIE, Kind};
use rustix::io::Errno;
use serde_json::json;

use super::{Answer, new_id, now, show_id, show_kind, sync_folder};
use crate::arguments::{Create, Snapshot};
use crate::disk::{image, load};
use crate::failure::Failure;
use crate::folder::Folder;
use crate::medium::Medium;
use crate::store::{Access, FileStore};

pub(super) fn create(options: &Create) -> Result<Answer, Failure> {
    let block = options.block / SECTOR_BYTES as u64;
    let form = match u32::try_from(block).ok().filter(|_| options.block.is_multiple_of(SECTOR_BYTES as u64)) {
        _ if options.fixed => Form::Fixed,
        Some(block) => Form::Dynamic(block),
        None => return Err(Failure::invalid(format_args!("{} bytes are no size of a block", options.block))),
    };
    let new = New { id: new_id()?, sectors: options.size.div_ceil(SECTOR_BYTES as u64), timestamp: now(), form };
    made(&options.image, options.force, &new)
}

pub(super) fn snapshot(options: &Snapshot) -> Result<Answer, Failure> {
    let name = options.parent.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Failure::invalid(format_args!("{}: not a name", options.parent.display())))?;
    // The child finds its parent by its name alone, from where the child is.
    let folder = Folder::of(&options.image, Access::Share)?;
    let (seen, meant) = (folder.path(&folder.volume(name))?, &options.parent);
    let same = |path: &Path| {
        path.canonicalize().map_err(|error| Failure::new(Errno::NOENT, format_args!("{}: {error}", path.display())))
    };
    if same(meant)? != same(&seen).map_err(|_| elsewhere(meant))? {
        return Err(elsewhere(meant));
    }
    let parent = FileStore::open(meant, Access::Share)?;
    let (id, timestamp, sectors) = match options.raw {
        true => ([0; 16], 0, parent.info().sectors),
        false => {
            let footer = image(&parent)?.footer;
            (footer.id, footer.timestamp, footer.sectors())
        }
    };
    let name = folder.volume(name);
    let sectors = options.size.map_or(sectors, |bytes| bytes.div_ceil(SECTOR_BYTES as u64));
    let form = Form::Differencing(BLOCK_SECTORS, Parent { id, timestamp, name: &name });
    made(&options.image, options.force, &New { id: new_id()?, sectors, timestamp: now(), form })
}

fn elsewhere(parent: &Path) -> Failure {
    Failure::invalid(format_args!("{}: a parent has to be where its child is", parent.display()))
}

/// Makes the image on a new file, or on a block device.
fn made(path: &Path, force: bool, new: &New<'_>) -> Result<Answer, Failure> {
    let is_new = !path.exists();
    let store = if is_new { FileStore::create(path)? } else { FileStore::open(path, Access::Write)? };
    if !is_new && !store.is_device() {
        return Err(Failure::new(Errno::EXIST, format_args!("{}: is there already", path.display())));
    }
    if !is_new && !force && is_image(&store)? {
        let text = format_args!("{}: holds an image already (--force writes over it)", path.display());
        return Err(Failure::new(Errno::EXIST, text));
    }
    let done = block_on(make(&store, &path.display().to_string(), new)).map_err(Failure::from);
    let done = done.and_then(|()| if is_new { sync_folder(path) } else { Ok(()) });
    if done.is_err() && is_new {
        // What was begun is nobody's; that it stays if it cannot be removed is told by the next try.
        let _ = std::fs::remove_file(path);
    }
    done?;
    let kind = match new.form {
        Form::Fixed => Kind::Fixed,
        Form::Dynamic(_) => Kind::Dynamic,
        Form::Differencing(..) => Kind::Differencing,
    };
    let size = new.sectors * SECTOR_BYTES as u64;
    let value = json!({
        "image": path.display().to_string(),
        "kind": show_kind(kind),
        "size": size,
        "id": show_id(&new.id),
    });
    Ok(Answer::new("", value))
}

fn is_image(store: &FileStore) -> Result<bool, Failure> {
    let sectors = store.info().sectors;
    let mut at = [0, sectors.saturating_sub(1)].into_iter().filter(|at| *at < sectors);
    at.try_fold(false, |found, at| Ok(found || load(store, at, 1)?[..8] == COOKIE))
}
