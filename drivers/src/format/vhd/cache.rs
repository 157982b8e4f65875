//! Sectors of metadata that were read lately, of all layers together, in a bounded number.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::disk::SECTOR_BYTES;

/// One sector's bytes.
pub type Sector = [u8; SECTOR_BYTES];

/// Sectors at most: half a mebibyte.
const SECTORS_MAX: usize = 1024;

struct Entry {
    layer: u16,
    at: u64,
    bytes: Sector,
    /// It was used since the hand passed.
    used: bool,
}

/// The cache.
#[derive(Default)]
pub struct Cache {
    entries: Vec<Entry>,
    index: BTreeMap<(u16, u64), u32>,
    hand: usize,
}

impl Cache {
    /// A sector of a layer, if it is here.
    pub fn get(&mut self, layer: u16, at: u64) -> Option<&Sector> {
        let entry = &mut self.entries[*self.index.get(&(layer, at))? as usize];
        entry.used = true;
        Some(&entry.bytes)
    }

    /// Keeps a sector as it is on the store now.
    pub fn put(&mut self, layer: u16, at: u64, bytes: &Sector) {
        if let Some(place) = self.index.get(&(layer, at)) {
            let entry = &mut self.entries[*place as usize];
            (entry.bytes, entry.used) = (*bytes, false);
            return;
        }
        let place = if self.entries.len() < SECTORS_MAX {
            self.entries.push(Entry { layer, at, bytes: *bytes, used: false });
            self.entries.len() - 1
        } else {
            // The first one that was not used since last time.
            while core::mem::take(&mut self.entries[self.hand].used) {
                self.hand = (self.hand + 1) % SECTORS_MAX;
            }
            let place = self.hand;
            self.hand = (self.hand + 1) % SECTORS_MAX;
            let entry = &mut self.entries[place];
            self.index.remove(&(entry.layer, entry.at));
            (entry.layer, entry.at, entry.bytes) = (layer, at, *bytes);
            place
        };
        self.index.insert((layer, at), place as u32);
    }

    /// Bytes it has on the heap, about: a tree's nodes are half full at worst.
    pub fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>() + self.index.len() * 2 * size_of::<((u16, u64), u32)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_was_put_last_and_no_more_than_it_may() {
        let mut cache = Cache::default();
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
        assert_eq!((cache.entries.len(), cache.index.len()), (SECTORS_MAX, SECTORS_MAX));
        assert!(cache.get(1, 0).is_none());
        assert!(cache.bytes() < 1 << 20);
    }
}
