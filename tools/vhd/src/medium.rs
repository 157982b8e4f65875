//! What commands work on: a store that has a name, in a place where its parents are.

use std::path::Path;

use drivers::disk::{Error, Store};
use drivers::format::vhd::open::Place;

use crate::failure::Failure;

/// A file or block device, or what a test makes of one.
pub trait Medium: Store {
    /// Where its parents are.
    type Place: Place<Store = Self>;

    /// What it was opened as.
    fn path(&self) -> &Path;

    /// Whether its size is not ours to change.
    fn is_device(&self) -> bool;

    /// Makes it end after so many sectors.
    ///
    /// # Errors
    /// What the system says; of a device always.
    fn set_sectors(&self, sectors: u64) -> Result<(), Error>;

    /// Where its parents are, to be read whatever others do.
    ///
    /// # Errors
    /// A path without a file's name.
    fn place(&self) -> Result<Self::Place, Failure>;
}
