//! Image formats: where the sectors of a disk lie in the files of an image. A format maps and never moves payload; it does
//! I/O for its own metadata alone.
//!
//! # Layout
//! - [`joined`]: a format and its stores as one device; the only loop between the two
//! - [`vhd`]: VHD, fixed, dynamic and differencing

pub mod joined;
pub mod vhd;

use crate::disk::{Error, Info, Store};

/// Where sectors are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// From this sector on in the store of a layer, 0 being the one that is written.
    At {
        /// Which layer's.
        layer: u16,
        /// The first.
        sector: u64,
    },
    /// Nowhere: they are zeroes.
    Zero,
}

/// Where sectors are to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// From this sector on in the store of layer 0.
    pub sector: u64,
    /// Where they are changes by it, so it has to be [told](Format::commit) how it ended.
    pub changes: bool,
}

/// A use of extents, by number; see [`Format::stay`].
#[derive(Debug)]
pub struct Stay(pub(crate) usize);

/// Says where sectors live.
///
/// What is known at once is said at once: [`find`](Format::find) and [`place`](Format::place) answer from memory or not at
/// all, and then [`learn`](Format::learn) or [`prepare`](Format::prepare) makes them know. Extents hold good between
/// [`enter`](Format::enter) and the drop of what it returned.
pub trait Format {
    /// What its layers lie on.
    type Store: Store;
    /// Somebody uses extents: what is freed meanwhile is not used anew.
    type Visit<'a>
    where
        Self: 'a;

    /// Sectors of the disk.
    fn sectors(&self) -> u64;

    /// What the disk is.
    fn info(&self) -> Info;

    /// A layer's store.
    fn store(&self, layer: u16) -> &Self::Store;

    /// Begins to use extents.
    fn enter(&self) -> Self::Visit<'_>;

    /// The same for who cannot hold what [`enter`](Format::enter) returns. To be [left](Format::leave) once.
    fn stay(&self) -> Stay;

    /// Ends it.
    fn leave(&self, stay: Stay);

    /// Where `count` sectors from `sector` on are, as far as they lie together, and how many those are; none if that has
    /// to be [learnt](Format::learn) first. The range lies within the disk and is not empty.
    fn find(&self, sector: u64, count: u64) -> Option<(Extent, u64)>;

    /// Reads what [`find`](Format::find) needs to know about `sector`.
    fn learn(&self, sector: u64) -> impl Future<Output = Result<(), Error>>;

    /// Where `count` sectors from `sector` on are to be written, as far as they lie together, and how many those are; none
    /// if that has to be [prepared](Format::prepare) first.
    fn place(&self, sector: u64, count: u64) -> Option<(Place, u64)>;

    /// As [`place`](Format::place), of sectors that are there to be overwritten: it changes nothing, and nobody has to be told.
    fn overwrite(&self, sector: u64, count: u64) -> Option<(Extent, u64)>;

    /// Makes room for a write at `sector`.
    fn prepare(&self, sector: u64) -> impl Future<Output = Result<(), Error>>;

    /// A write of these sectors ended, well or not, that had a place which [changes](Place::changes) where they are. Once for
    /// each such place, with the same sectors.
    fn commit(&self, sector: u64, count: u64, well: bool);

    /// Sectors are not needed any more.
    fn forget(&self, sector: u64, count: u64) -> impl Future<Output = Result<(), Error>>;

    /// Makes durable all whose write was answered, and where it is.
    fn settle(&self) -> impl Future<Output = Result<(), Error>>;
}
