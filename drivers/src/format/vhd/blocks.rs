//! Blocks whose bitmaps are in memory, in the order of their numbers. There are few, and who asks for one mostly asks for the
//! same one again.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::Cell;

use protocol::vhd::bits;

/// A block whose bitmap is in memory.
pub struct Open {
    /// The first sector of its bitmap.
    pub at: u32,
    /// The first one behind it.
    pub data: u32,
    /// Its bitmap.
    pub bits: Box<[u8]>,
    /// The table does not name it yet.
    pub new: bool,
    /// The table on the store may name it.
    pub named: bool,
    /// Its bitmap is not on the store as it is here.
    pub dirty: bool,
    /// blktap's map of full blocks on the store does not name it.
    pub unfilled: bool,
    /// Sectors without a bit hold nothing of anybody else's, or nobody looks at them.
    pub clean: bool,
    /// Writes under way to sectors without a bit.
    pub writing: u32,
    /// No such write may begin: its other sectors are being filled with zeroes.
    pub closed: bool,
}

impl Open {
    /// Whether it holds nothing and nothing is on its way.
    pub fn is_empty(&self) -> bool {
        self.writing == 0 && !self.closed && bits::none(&self.bits)
    }

    /// Whether it cannot be made durable before something else ends.
    pub fn is_busy(&self) -> bool {
        self.writing > 0 || self.closed
    }

    /// Whether all that it says is on the store.
    pub fn is_settled(&self) -> bool {
        !self.dirty && !self.new && !self.closed && self.writing == 0
    }
}

/// Blocks by number.
#[derive(Default)]
pub struct Blocks {
    /// In order.
    all: Vec<(u32, Open)>,
    /// Where the one that was asked for last is, if it is there still.
    last: Cell<usize>,
}

impl Blocks {
    /// Whether this one was asked for last and is there still.
    #[inline(always)]
    fn is_last(&self, block: u32) -> bool {
        self.all.get(self.last.get()).is_some_and(|(known, _)| *known == block)
    }

    #[inline(never)]
    fn search(&self, block: u32) -> Option<usize> {
        let found = self.all.binary_search_by_key(&block, |(block, _)| *block).ok()?;
        self.last.set(found);
        Some(found)
    }

    /// A block, if it is here.
    pub fn get(&self, block: &u32) -> Option<&Open> {
        let at = if self.is_last(*block) { self.last.get() } else { self.search(*block)? };
        Some(&self.all[at].1)
    }

    /// A block to change, if it is here.
    #[inline(always)]
    pub fn get_mut(&mut self, block: &u32) -> Option<&mut Open> {
        if self.is_last(*block) {
            return Some(&mut self.all[self.last.get()].1);
        }
        let at = self.search(*block)?;
        Some(&mut self.all[at].1)
    }

    /// Whether a block is here.
    pub fn contains_key(&self, block: &u32) -> bool {
        self.get(block).is_some()
    }

    /// Puts a block in the place of what is known of it.
    pub fn insert(&mut self, block: u32, open: Open) {
        match self.all.binary_search_by_key(&block, |(block, _)| *block) {
            Ok(at) => self.all[at].1 = open,
            Err(at) => self.all.insert(at, (block, open)),
        }
    }

    /// Keeps those of which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(&u32, &mut Open) -> bool) {
        self.all.retain_mut(|(block, open)| keep(block, open));
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Open> {
        self.all.iter().map(|(_, open)| open)
    }

    /// All of them to change, in order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&u32, &mut Open)> {
        self.all.iter_mut().map(|(block, open)| (&*block, open))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> usize {
        self.all.capacity() * size_of::<(u32, Open)>() + self.all.iter().map(|(_, open)| open.bits.len()).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use alloc::vec;

    fn open(at: u32) -> Open {
        let bits = vec![0; 512].into_boxed_slice();
        let (data, clean) = (at + 1, true);
        Open {
            at,
            data,
            bits,
            new: true,
            named: false,
            dirty: false,
            unfilled: false,
            clean,
            writing: 0,
            closed: false,
        }
    }

    #[test]
    fn a_block_is_found_wherever_others_came_and_went() {
        let (mut blocks, mut model, mut random) = (Blocks::default(), BTreeMap::new(), 1u32);
        let mut next = |below: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) % below
        };
        for round in 0..20_000 {
            let block = next(40);
            match next(12) {
                0 => {
                    blocks.insert(block, open(round));
                    model.insert(block, round);
                }
                1 => {
                    let part = next(5);
                    blocks.retain(|block, _| block % 5 != part);
                    model.retain(|block, _| block % 5 != part);
                }
                2 => {
                    blocks.iter_mut().for_each(|(_, open)| open.at ^= 1);
                    model.values_mut().for_each(|at| *at ^= 1);
                }
                _ => {}
            }
            // More often than not the same one twice.
            for _ in 0..2 {
                assert_eq!(blocks.get(&block).map(|open| open.at), model.get(&block).copied());
                assert_eq!(blocks.get_mut(&block).map(|open| open.at), model.get(&block).copied());
            }
            assert_eq!((blocks.contains_key(&block), blocks.len()), (model.contains_key(&block), model.len()));
        }
        assert!(blocks.iter_mut().map(|(block, open)| (*block, open.at)).eq(model));
    }
}
