//! One image of a chain.

use alloc::boxed::Box;

use protocol::vhd::{REACH_SECTORS, bitmap_sectors};

use crate::disk::Info;

/// An image.
pub struct Layer<S> {
    /// What it lies on.
    pub store: S,
    /// How its sectors are found.
    pub kind: Kind,
    /// Size of the disk as this image has it; behind it, it is empty.
    pub sectors: u64,
}

/// How an image's sectors are found.
pub enum Kind {
    /// Sector n is sector n of the store: a fixed VHD, or a raw parent.
    Flat,
    /// By a table of blocks.
    Dynamic(Box<Table>),
}

/// Stretches of metadata: footer's copy, header, table, batmap and its header, eight locators.
const RESERVED: usize = 13;

/// Where a dynamic image's tables are.
#[derive(Clone, Debug)]
pub struct Table {
    /// The block allocation table's first sector.
    pub sector: u64,
    /// How many blocks it has.
    pub entries: u32,
    /// Sectors of a block, as a power of two.
    pub shift: u32,
    /// Sectors of a block's bitmap.
    pub bitmap: u32,
    /// Where blktap's map of full blocks has its header, if there is one.
    pub batmap: Option<u64>,
    /// What no block may use, first sector and end: a guest that could write there could make the image another one's
    /// child.
    reserved: heapless::Vec<(u64, u64), RESERVED>,
}

impl Table {
    /// For blocks of so many sectors, a power of two.
    pub fn new(sector: u64, entries: u32, block_sectors: u32) -> Self {
        Table {
            sector,
            entries,
            shift: block_sectors.trailing_zeros(),
            bitmap: bitmap_sectors(block_sectors),
            batmap: None,
            reserved: heapless::Vec::new(),
        }
    }

    /// Notes sectors of metadata.
    pub fn reserve(&mut self, from: u64, sectors: u64) {
        let noted = self.reserved.push((from, from + sectors));
        debug_assert!(noted.is_ok(), "an image has no more than {RESERVED}");
    }

    /// Sectors of a block.
    pub fn sectors(&self) -> u32 {
        1 << self.shift
    }

    /// Whether these sectors hold no metadata.
    pub fn is_free(&self, from: u64, to: u64) -> bool {
        self.reserved.iter().all(|(first, end)| to <= *first || *end <= from)
    }

    /// The sector behind all metadata.
    pub fn metadata_end(&self) -> u64 {
        self.reserved.iter().map(|(_, end)| *end).max().unwrap_or(0)
    }
}

/// The first sector of a store that no block may use: a device keeps the footer in its last one.
pub fn blocks_end(store: &Info) -> u64 {
    match store.grows {
        true => REACH_SECTORS,
        false => store.sectors.saturating_sub(1).min(REACH_SECTORS),
    }
}
