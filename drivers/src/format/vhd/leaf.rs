//! The image that is written: blocks whose map is changing, and how the changes become durable.
//!
//! A write moves its data at once; what the image says of it changes in memory, and on the store when the disk is flushed:
//!
//! 1. the bitmaps of blocks that are new, and with them all data written so far, then a flush of the store;
//! 2. the bitmaps of blocks that the table has already, and the table, then a flush of the store.
//!
//! So the table never names a block before what it holds is durable, a bit is never set before its sector is, and a power
//! cut leaves every sector that was not flushed as it was before or as it was to become. Any number of blocks take part in
//! one such step. Room that is freed is used again only after the table that does not name it is durable and nobody is
//! reading there any more.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cell::Cell;

use super::blocks::{Blocks, Open};
use super::slots::Slots;
use crate::disk::SECTOR_BYTES;

/// Blocks that are changing at most; beyond, a write makes them durable first.
const OPEN_MAX: usize = 256;
/// Bytes of their bitmaps: as many as those have that are of the usual size.
const BITMAPS_BYTES_MAX: usize = OPEN_MAX * SECTOR_BYTES;

/// Bytes that all of them take.
pub const BYTES_MAX: usize = BITMAPS_BYTES_MAX + OPEN_MAX * size_of::<(u32, Open)>();

/// How many blocks with bitmaps of so many sectors may be changing.
pub fn open_max(bitmap_sectors: u32) -> usize {
    (BITMAPS_BYTES_MAX / (bitmap_sectors as usize * SECTOR_BYTES)).max(1)
}

/// What is known and not durable.
pub struct Leaf {
    /// Where blocks may lie.
    pub slots: Slots,
    /// Blocks by number.
    pub open: Blocks,
    /// How many there may be.
    pub open_max: usize,
    /// Blocks that the table on the store names and should not: number and first sector.
    pub freed: BTreeMap<u32, u32>,
    /// Room that nothing names any more, freed before and since the last change of visitors.
    pub limbo: [Vec<u32>; 2],
    /// Where the footer has to be and is.
    pub footer_at: Option<u64>,
}

impl Leaf {
    /// Whether there is no room for another block.
    pub fn is_crowded(&self) -> bool {
        self.open.len() >= self.open_max
    }

    /// Forgets blocks of which all is on the store, if there are too many.
    pub fn tidy(&mut self) {
        if self.is_crowded() {
            self.open.retain(|_, open| !open.is_settled());
        }
    }

    /// Takes away the blocks that hold nothing.
    pub fn drop_empty(&mut self) {
        let Leaf { open, freed, limbo, .. } = self;
        open.retain(|block, open| {
            let gone = (open.new || open.dirty) && open.is_empty();
            match gone {
                true if open.named => drop(freed.insert(*block, open.at)),
                true => limbo[1].push(open.at),
                false => {}
            }
            !gone
        });
    }
}

/// Who uses extents now, so that room is not used anew under them. Two counts: those who came since the last change, and
/// those before. Once the latter are gone the two change.
#[derive(Default)]
pub struct Visits {
    counts: [Cell<u64>; 2],
    now: Cell<usize>,
}

/// One of them.
pub struct Visit<'a>(&'a Cell<u64>);

impl Visits {
    /// One more.
    pub fn enter(&self) -> Visit<'_> {
        let [first, second] = &self.counts;
        let count = if self.now.get() == 0 { first } else { second };
        // There are never as many as would make it wrap.
        count.set(count.get().wrapping_add(1));
        Visit(count)
    }

    /// One more who [leaves](Visits::leave) by number.
    pub fn stay(&self) -> usize {
        core::mem::forget(self.enter());
        self.now.get()
    }

    /// One who came so leaves.
    pub fn leave(&self, number: usize) {
        drop(Visit(&self.counts[number]));
    }

    /// Whether all who came before the last change are gone; then it changes.
    pub fn change(&self) -> bool {
        let other = 1 - self.now.get();
        let gone = self.counts[other].get() == 0;
        if gone {
            self.now.set(other);
        }
        gone
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().wrapping_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_bitmaps_are_fewer() {
        // Blocks of 2 MiB, of 4 KiB, of 64 MiB.
        assert_eq!([1, 1, 32].map(open_max), [256, 256, 8]);
        assert_eq!(open_max(1 << 20), 1);
    }

    #[test]
    fn visitors_from_before_a_change_hold_up_the_one_after_the_next() {
        let visits = Visits::default();
        let first = visits.enter();
        assert!(visits.change(), "nobody came before anything");
        let second = visits.enter();
        assert!(!visits.change(), "the first is here still");
        drop(first);
        assert!(visits.change());
        assert!(!visits.change(), "the second is");
        drop(second);
        assert!(visits.change());
    }

    #[test]
    fn who_stays_by_number_is_a_visitor_too() {
        let visits = Visits::default();
        let (first, _) = (visits.stay(), visits.change());
        let second = visits.stay();
        assert!(!visits.change());
        visits.leave(second);
        assert!(!visits.change(), "the other one left");
        visits.leave(first);
        assert!(visits.change() && visits.change());
    }
}
