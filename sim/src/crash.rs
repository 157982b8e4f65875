//! Power cuts: what a disk with a volatile cache may hold after one, at every write and every flush of a run.
//!
//! A [`Disk`](crate::disk::Disk) that was told to records what reaches it. Afterwards [`Recording::cuts`] goes through all
//! the moments at which the power could have failed: before the first entry, between any two, after the last. At each, what
//! a flush covered is there; of what was written since, any sector may be there or not, so a write of several may be torn,
//! and a later one may be there without an earlier one.

use crate::blkif::SECTOR;
use crate::random::Random;

/// What reached a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Sectors from here on were written, into the cache.
    Write {
        /// The first.
        sector: u64,
        /// Whole sectors.
        data: Vec<u8>,
    },
    /// A flush was done. It covers the entries before this index, and no more: a disk need not make durable what it had
    /// not answered when it was asked to flush.
    Flush {
        /// The first entry that it does not cover.
        covers: usize,
    },
}

/// All that reached a disk since some moment.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    base: Vec<u8>,
    entries: Vec<Entry>,
}

/// One moment at which the power fails.
pub struct Cut<'a> {
    /// How many entries had reached the disk.
    pub at: usize,
    durable: &'a [u8],
    volatile: Vec<(u64, &'a [u8])>,
}

impl Recording {
    /// Of a disk that holds these bytes, all durable.
    pub fn of(base: &[u8]) -> Self {
        Recording { base: base.to_vec(), entries: Vec::new() }
    }

    /// The disk as it was at first.
    pub fn base(&self) -> &[u8] {
        &self.base
    }

    /// How many entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing reached the disk.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many of them are flushes.
    pub fn flushes(&self) -> usize {
        self.entries.iter().filter(|entry| matches!(entry, Entry::Flush { .. })).count()
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Calls `each` with every cut, first to last.
    pub fn cuts(&self, mut each: impl FnMut(&Cut<'_>)) {
        let mut durable = self.base.clone();
        // Entries below are durable or flushes.
        let mut covered = 0;
        for at in 0..=self.entries.len() {
            if let Some(Entry::Flush { covers }) = at.checked_sub(1).map(|last| &self.entries[last]) {
                for entry in &self.entries[covered..(*covers).max(covered)] {
                    if let Entry::Write { sector, data } = entry {
                        durable[*sector as usize * SECTOR..][..data.len()].copy_from_slice(data);
                    }
                }
                covered = covered.max(*covers);
            }
            let volatile = self.entries[covered..at].iter().filter_map(|entry| match entry {
                Entry::Write { sector, data } => Some((*sector, data.as_slice())),
                Entry::Flush { .. } => None,
            });
            each(&Cut { at, durable: &durable, volatile: volatile.collect() });
        }
    }
}

impl Cut<'_> {
    /// The disk if everything in its cache is lost.
    pub fn lost(&self) -> Vec<u8> {
        self.durable.to_vec()
    }

    /// The disk if nothing is lost.
    pub fn kept(&self) -> Vec<u8> {
        self.image(|_, _| true)
    }

    /// The disk if the seed decides what is lost: sectors here and there, whole writes, all after some moment (the last
    /// of them torn), or all before it.
    pub fn torn(&self, random: &mut Random) -> Vec<u8> {
        let writes = self.volatile.len();
        match random.below(4) {
            0 => self.image(|_, _| random.one_in(2)),
            1 => {
                let whole: Vec<bool> = (0..writes).map(|_| random.one_in(2)).collect();
                self.image(|write, _| whole[write])
            }
            order => {
                let (edge, sectors) = (random.index(writes + 1), random.below(9));
                self.image(|write, at| match write == edge {
                    true => at < sectors,
                    false => (write < edge) == (order == 2),
                })
            }
        }
    }

    /// Every value that a sector may have: what is durable first.
    pub fn values(&self, sector: u64) -> impl Iterator<Item = &[u8]> {
        let durable = &self.durable[sector as usize * SECTOR..][..SECTOR];
        std::iter::once(durable).chain(self.volatile.iter().filter_map(move |(first, data)| {
            let at = sector.checked_sub(*first)? as usize * SECTOR;
            data.get(at..at + SECTOR)
        }))
    }

    /// Applies the sectors of the cache that `keeps` (which write, which of its sectors) says, in order.
    fn image(&self, mut keeps: impl FnMut(usize, u64) -> bool) -> Vec<u8> {
        let mut image = self.lost();
        for (write, (sector, data)) in self.volatile.iter().enumerate() {
            for (at, bytes) in (0..).zip(data.chunks(SECTOR)) {
                if keeps(write, at) {
                    image[(sector + at) as usize * SECTOR..][..SECTOR].copy_from_slice(bytes);
                }
            }
        }
        image
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn write(sector: u64, byte: u8, sectors: usize) -> Entry {
        Entry::Write { sector, data: vec![byte; sectors * SECTOR] }
    }

    fn firsts(image: &[u8]) -> Vec<u8> {
        image.chunks(SECTOR).map(|sector| sector[0]).collect()
    }

    #[test]
    fn a_flush_covers_what_was_answered_and_the_rest_may_go_either_way() {
        let mut recording = Recording::of(&[0; 4 * SECTOR]);
        // The flush was asked for before the second write was answered.
        [write(0, 1, 2), write(1, 2, 2), Entry::Flush { covers: 1 }]
            .into_iter()
            .for_each(|entry| recording.push(entry));
        let mut seen = Vec::new();
        recording.cuts(|cut| seen.push((cut.at, firsts(&cut.lost()), firsts(&cut.kept()))));
        assert_eq!(
            seen,
            [
                (0, vec![0, 0, 0, 0], vec![0, 0, 0, 0]),
                (1, vec![0, 0, 0, 0], vec![1, 1, 0, 0]),
                (2, vec![0, 0, 0, 0], vec![1, 2, 2, 0]),
                (3, vec![1, 1, 0, 0], vec![1, 2, 2, 0]),
            ]
        );
    }

    #[test]
    fn every_subset_comes_up() {
        let mut recording = Recording::of(&[0; 3 * SECTOR]);
        [write(0, 1, 2), write(1, 2, 2)].into_iter().for_each(|entry| recording.push(entry));
        let (mut random, mut images) = (Random::new(1), BTreeSet::new());
        recording.cuts(|cut| {
            if cut.at == 2 {
                assert_eq!(cut.values(1).map(|value| value[0]).collect::<Vec<_>>(), [0, 1, 2]);
                images.extend((0..2000).map(|_| firsts(&cut.torn(&mut random))));
            }
        });
        assert_eq!(images.len(), 2 * 3 * 2, "{images:?}");
    }
}
