//! Where blocks of a dynamic image may lie: places of one size, a bit for each. What is used is found by going once through
//! the table of an image that is opened for writing, so room that was freed, or lost by a crash, is used again.
//!
//! A place is a block with its bitmap, and begins so that the block's data begin at a multiple of 4096 bytes, as blktap lays
//! blocks out. Blocks that other creators laid out otherwise take two places each.

use alloc::vec::Vec;

/// A block is placed so that its data begin at a multiple of so many sectors.
const ALIGNMENT: u64 = 8;

/// Words of bits that get their room at once.
const STEP_WORDS: usize = 512;

/// The places of one image.
pub struct Slots {
    /// The first sector of the first place.
    first: u64,
    /// Sectors from one place to the next.
    stride: u64,
    /// Sectors of a bitmap and a block.
    block: u64,
    /// The first sector that no block may use.
    end: u64,
    used: Vec<u64>,
    /// No place below is free.
    hint: u64,
    /// A block lies off the places, so a place that one block leaves may be touched by another still.
    uneven: bool,
}

impl Slots {
    /// Of an image whose metadata end before sector `from`, in a store that blocks may use up to `end`.
    pub fn new(from: u64, end: u64, bitmap: u32, block: u32) -> Self {
        let (bitmap, block) = (u64::from(bitmap), u64::from(bitmap) + u64::from(block));
        let first = (from + bitmap).next_multiple_of(ALIGNMENT) - bitmap;
        let stride = block.next_multiple_of(ALIGNMENT);
        Slots { first, stride, block, end, used: Vec::new(), hint: 0, uneven: false }
    }

    /// How many places there are at most.
    pub fn places(&self) -> u64 {
        self.end.saturating_sub(self.first) / self.stride
    }

    /// A block that begins at `sector` uses its room. One outside the store uses none.
    pub fn note(&mut self, sector: u64) {
        if sector >= self.end {
            return;
        }
        let Some(from) = sector.checked_sub(self.first) else {
            // Before the first place, but it may reach into it.
            self.uneven = true;
            if sector + self.block > self.first {
                self.take(0);
            }
            return;
        };
        let (first, last) = (from / self.stride, (from + self.block - 1) / self.stride);
        self.uneven |= !from.is_multiple_of(self.stride);
        (first..=last).for_each(|slot| self.take(slot));
    }

    fn take(&mut self, slot: u64) {
        let word = (slot / 64) as usize;
        if self.used.len() <= word {
            // Never twice of what is needed: on the largest disks that would be as much as everything else.
            let words = (word + 1).next_multiple_of(STEP_WORDS);
            self.used.reserve_exact(words - self.used.len());
            self.used.resize(word + 1, 0);
        }
        self.used[word] |= 1 << (slot % 64);
    }

    fn is_free(&self, slot: u64) -> bool {
        self.used.get((slot / 64) as usize).is_none_or(|word| word >> (slot % 64) & 1 == 0)
    }

    /// Takes the first place that is free and says where it begins; none if the store is full.
    pub fn allocate(&mut self) -> Option<u64> {
        let mut slot = self.hint;
        while !self.is_free(slot) {
            // Whole words of used ones are passed at once.
            let full = slot.is_multiple_of(64) && self.used[(slot / 64) as usize] == u64::MAX;
            slot += if full { 64 } else { 1 };
        }
        self.hint = slot;
        let sector = self.first + slot * self.stride;
        if sector + self.block > self.end {
            return None;
        }
        self.take(slot);
        self.hint = slot + 1;
        Some(sector)
    }

    /// A block is gone from where it began. Its room is free, if no other block can be using some of it.
    pub fn free(&mut self, sector: u64) {
        let Some(from) = sector.checked_sub(self.first) else { return };
        if self.uneven || !from.is_multiple_of(self.stride) {
            return;
        }
        let slot = from / self.stride;
        if let Some(word) = self.used.get_mut((slot / 64) as usize) {
            *word &= !(1 << (slot % 64));
            self.hint = self.hint.min(slot);
        }
    }

    /// The first sector behind all blocks.
    pub fn data_end(&self) -> u64 {
        let last = self.used.iter().rposition(|word| *word != 0);
        let slots = last.map_or(0, |word| word as u64 * 64 + u64::from(64 - self.used[word].leading_zeros()));
        match slots {
            0 => self.first,
            slots => self.first + (slots - 1) * self.stride + self.block,
        }
    }

    /// The store is now so large.
    pub fn set_end(&mut self, end: u64) {
        self.end = end;
    }

    /// Bytes it has on the heap.
    pub fn bytes(&self) -> usize {
        self.used.capacity() * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_begin_where_data_are_aligned_and_end_before_the_end() {
        // As blktap makes them: 2 MiB after a bitmap of one sector.
        let mut slots = Slots::new(12, 15 + 2 * 4104 + 4096, 1, 4096);
        assert_eq!([(); 4].map(|()| slots.allocate()), [Some(15), Some(15 + 4104), None, None]);
        slots.set_end(15 + 2 * 4104 + 4097);
        assert_eq!(slots.allocate(), Some(15 + 2 * 4104));
        assert_eq!(slots.data_end(), 15 + 2 * 4104 + 4097);
        slots.free(15 + 4104);
        assert_eq!([(); 2].map(|()| slots.allocate()), [Some(15 + 4104), None]);
    }

    #[test]
    fn what_others_laid_out_is_left_alone() {
        let mut slots = Slots::new(12, 1 << 30, 1, 4096);
        // Without gaps.
        let theirs: Vec<u64> = (0..200).map(|i| 13 + i * 4097).collect();
        theirs.iter().for_each(|sector| slots.note(*sector));
        for _ in 0..100 {
            let sector = slots.allocate().unwrap();
            assert!(sector >= 13 + 200 * 4097 && (sector + 1).is_multiple_of(8));
        }
        slots.free(theirs[5]);
        assert!(slots.allocate().unwrap() > 13 + 200 * 4097);
    }

    #[test]
    fn room_that_was_lost_is_found() {
        let mut slots = Slots::new(12, 1 << 30, 1, 4096);
        (0..1000).filter(|i| i % 7 != 3).for_each(|i| slots.note(15 + i * 4104));
        let found: Vec<_> = (0..143).map(|_| (slots.allocate().unwrap() - 15) / 4104).collect();
        assert_eq!(found, (0..1000).filter(|i| i % 7 == 3).collect::<Vec<_>>());
        assert_eq!(slots.allocate(), Some(15 + 1000 * 4104));
    }
}
