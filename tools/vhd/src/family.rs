//! An image's parent on this host.

use drivers::format::vhd::open::{Image, Place};
use embassy_futures::block_on;

use crate::disk;
use crate::failure::Failure;
use crate::medium::Medium;

/// A parent that was found, open to be read whatever others do.
pub enum Parent<M> {
    /// Another image.
    Vhd(M),
    /// No image: all of it is the disk.
    Raw(M),
}

/// The parent, if it is there and the one that the image was made on.
///
/// # Errors
/// Why none is.
pub fn parent<M: Medium>(store: &M, image: &Image) -> Result<Parent<M>, Failure> {
    let folder = store.place()?;
    let wanted = image.header.as_ref().map(|header| header.parent).unwrap_or_default();
    let mut why = Failure::invalid(format_args!("{}: it has no name of its parent", store.path().display()));
    for name in block_on(image.parent_names(store)) {
        match block_on(folder.parent(&name)).map_err(Failure::from) {
            Ok((parent, _)) if wanted == [0; 16] => return Ok(Parent::Raw(parent)),
            Ok((parent, name)) => match disk::image(&parent) {
                Ok(its) if its.footer.id == wanted => return Ok(Parent::Vhd(parent)),
                Ok(_) => why = Failure::invalid(format_args!("{name}: not the parent, but another unique id")),
                Err(failure) => why = failure,
            },
            Err(failure) => why = failure,
        }
    }
    Err(why)
}
