//! Sectors of metadata that were read lately, of all layers together, in a bounded number.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::disk::SECTOR_BYTES;

/// One sector's bytes.
pub type Sector = [u8; SECTOR_BYTES];

/// Sectors at most: half a mebibyte.
const SECTORS_MAX: usize = 1024;
/// Sectors that any image may keep.
const SECTORS_MIN: usize = 64;
/// Sectors that get their room at once: it never moves, so no more is taken than is kept.
const STEP: usize = 32;
/// Bytes that a sector takes with its place in the index; a tree's nodes are half full at worst.
const COST_BYTES: usize = size_of::<Entry>() + 2 * size_of::<((u16, u64), u32)>();

/// Bytes that the smallest takes.
pub const BYTES_MIN: usize = SECTORS_MIN * COST_BYTES;

struct Entry {
    layer: u16,
    at: u64,
    bytes: Sector,
    /// It was used since the hand passed.
    used: bool,
}

/// The cache.
pub struct Cache {
    /// All full but the last.
    steps: Vec<Vec<Entry>>,
    index: BTreeMap<(u16, u64), u32>,
    sectors_max: usize,
    hand: usize,
}

impl Cache {
    /// Of so many bytes at most, or the smallest that there is.
    pub fn new(bytes: usize) -> Self {
        let sectors_max = (bytes / COST_BYTES).clamp(SECTORS_MIN, SECTORS_MAX);
        Cache { steps: Vec::new(), index: BTreeMap::new(), sectors_max, hand: 0 }
    }

    fn entry(&mut self, place: usize) -> &mut Entry {
        &mut self.steps[place / STEP][place % STEP]
    }

    /// A sector of a layer, if it is here.
    pub fn get(&mut self, layer: u16, at: u64) -> Option<&Sector> {
        let place = *self.index.get(&(layer, at))? as usize;
        let entry = self.entry(place);
        entry.used = true;
        Some(&entry.bytes)
    }

    /// Puts one where none was yet.
    fn push(&mut self, entry: Entry) {
        if self.index.len().is_multiple_of(STEP) {
            self.steps.push(Vec::with_capacity(STEP.min(self.sectors_max - self.index.len())));
        }
        if let Some(last) = self.steps.last_mut() {
            last.push(entry);
        }
    }

    /// Keeps a sector as it is on the store now.
    pub fn put(&mut self, layer: u16, at: u64, bytes: &Sector) {
        if let Some(place) = self.index.get(&(layer, at)) {
            let entry = self.entry(*place as usize);
            (entry.bytes, entry.used) = (*bytes, false);
            return;
        }
        let place = if self.index.len() < self.sectors_max {
            self.push(Entry { layer, at, bytes: *bytes, used: false });
            self.index.len()
        } else {
            // The first one that was not used since last time.
            while core::mem::take(&mut self.entry(self.hand).used) {
                self.hand = (self.hand + 1) % self.sectors_max;
            }
            let place = self.hand;
            self.hand = (self.hand + 1) % self.sectors_max;
            let entry = self.entry(place);
            let old = (entry.layer, entry.at);
            (entry.layer, entry.at, entry.bytes) = (layer, at, *bytes);
            self.index.remove(&old);
            place
        };
        self.index.insert((layer, at), place as u32);
    }

    /// Bytes it has on the heap, about.
    pub fn bytes(&self) -> usize {
        self.index.len().next_multiple_of(STEP).min(self.sectors_max) * COST_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_was_put_last_and_no_more_than_it_may() {
        let mut cache = Cache::new(1 << 20);
        for round in 0..3u8 {
            for at in 0..3000u64 {
                cache.put((at % 7) as u16, at, &[at as u8 ^ round; 512]);
                if at % 5 == 0 {
                    assert_eq!(cache.get((at % 7) as u16, at), Some(&[at as u8 ^ round; 512]));
                }
                // What is used all the time stays.
                if at > 0 {
                    assert_eq!(cache.get(0, 0), Some(&[round; 512]));
                }
            }
        }
        assert_eq!(cache.index.len(), SECTORS_MAX);
        assert!(cache.get(1, 0).is_none());
        assert_eq!(cache.bytes(), SECTORS_MAX * COST_BYTES);
    }

    #[test]
    fn it_takes_no_more_than_it_is_given() {
        for (bytes, sectors) in [(0, SECTORS_MIN), (100 * COST_BYTES + 1, 100), (usize::MAX, SECTORS_MAX)] {
            let mut cache = Cache::new(bytes);
            (0..5000).for_each(|at| cache.put(0, at, &[1; 512]));
            let room: usize = cache.steps.iter().map(Vec::capacity).sum();
            assert_eq!((cache.index.len(), room, cache.bytes()), (sectors, sectors, sectors * COST_BYTES));
            assert!((5000 - sectors as u64..5000).all(|at| cache.get(0, at).is_some()));
        }
    }
}
