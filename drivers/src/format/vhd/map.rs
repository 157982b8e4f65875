//! What is known of where sectors are: for each stretch of the disk, as long as a block of the leaf or a part of one that is
//! large, which layer of the chain holds what of it, whatever the chain's depth. It is learnt when it is needed, bounded, and
//! forgets what was learnt first.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::format::Extent;

/// Sectors of a stretch that lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first one's place in the stretch.
    pub first: u32,
    /// Where that is.
    pub place: Place,
}

/// Where a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a layer. A VHD's sector numbers have 32 bits.
    At(u16, u32),
    /// Nowhere.
    Zero,
}

impl Place {
    /// The place `sectors` further on in the same run.
    pub fn skip(self, sectors: u32) -> Place {
        match self {
            Place::At(layer, sector) => Place::At(layer, sector.wrapping_add(sectors)),
            Place::Zero => Place::Zero,
        }
    }

    fn extent(self, skip: u32) -> Extent {
        match self {
            Place::At(layer, sector) => Extent::At { layer, sector: u64::from(sector) + u64::from(skip) },
            Place::Zero => Extent::Zero,
        }
    }
}

/// The runs of one stretch: the first begins at 0, each ends where the next begins.
#[derive(Debug)]
enum View {
    Unknown,
    /// All of it is one run.
    Whole(Place),
    Mixed(Box<[Run]>),
}

struct Slot {
    stretch: u32,
    view: View,
}

/// The map.
pub struct Map {
    slots: Vec<Slot>,
    /// Sectors of a block, as a power of two.
    block_shift: u32,
    /// Sectors of a stretch, as a power of two.
    shift: u32,
    /// Less one.
    mask: u32,
    /// Bytes that the mixed ones have.
    bytes: usize,
    /// The slot that loses its runs next when they become too many.
    hand: usize,
}

/// Stretches in the map at most: 8 GiB of a disk with blocks of 2 MiB.
const SLOTS_MAX: usize = 4096;
/// Slots to begin with.
const SLOTS_MIN: usize = 64;
/// Bytes of mixed stretches, all together.
const MIXED_BYTES_MAX: usize = 192 << 10;
/// A stretch has at most so many sectors, as a power of two, so that the runs of one are few enough to be kept.
const SHIFT_MAX: u32 = 12;

/// Bytes that it takes.
pub const BYTES_MAX: usize = SLOTS_MAX * size_of::<Slot>() + MIXED_BYTES_MAX;

const _: () = assert!(size_of::<Run>() << SHIFT_MAX < MIXED_BYTES_MAX);

fn bytes(view: &View) -> usize {
    match view {
        View::Mixed(runs) => size_of_val(&**runs),
        View::Unknown | View::Whole(_) => 0,
    }
}

impl Map {
    /// For blocks of `1 << block_shift` sectors.
    pub fn new(block_shift: u32) -> Self {
        let shift = block_shift.min(SHIFT_MAX);
        let mut map = Map { slots: Vec::new(), block_shift, shift, mask: (1 << shift) - 1, bytes: 0, hand: 0 };
        map.resize(SLOTS_MIN);
        map
    }

    /// Sectors of a stretch.
    pub fn sectors(&self) -> u32 {
        1 << self.shift
    }

    fn resize(&mut self, slots: usize) {
        let old = core::mem::take(&mut self.slots);
        self.slots = (0..slots).map(|_| Slot { stretch: 0, view: View::Unknown }).collect();
        for slot in old {
            let place = self.place(slot.stretch);
            if !matches!(slot.view, View::Unknown) {
                self.slots[place] = slot;
            }
        }
    }

    fn place(&self, stretch: u32) -> usize {
        stretch as usize & (self.slots.len() - 1)
    }

    /// Where `count` sectors from `sector` on are, as far as they are together and in one stretch; none if it is not known.
    #[inline(always)]
    pub fn find(&self, sector: u64, count: u64) -> Option<(Extent, u64)> {
        let (stretch, at) = self.split(sector);
        let slot = &self.slots[self.place(stretch)];
        if slot.stretch != stretch {
            return None;
        }
        match &slot.view {
            View::Whole(place) => Some((place.extent(at), count.min(u64::from(self.mask - at) + 1))),
            View::Mixed(runs) => self.find_in(runs, at, count),
            View::Unknown => None,
        }
    }

    fn find_in(&self, runs: &[Run], at: u32, count: u64) -> Option<(Extent, u64)> {
        let next = runs.partition_point(|run| run.first <= at);
        let end = runs.get(next).map_or(self.sectors(), |run| run.first);
        let run = runs.get(next.checked_sub(1)?)?;
        Some((run.place.extent(at - run.first), count.min(u64::from(end - at))))
    }

    /// Notes the runs of a stretch. They are in order and the first begins at 0.
    pub fn learn(&mut self, stretch: u32, runs: &[Run]) {
        let view = match *runs {
            [] => return self.forget(stretch),
            [run] => View::Whole(run.place),
            _ => View::Mixed(runs.into()),
        };
        let place = self.place(stretch);
        let other = &self.slots[place];
        if other.stretch != stretch && !matches!(other.view, View::Unknown) && self.slots.len() < SLOTS_MAX {
            self.resize(self.slots.len() * 2);
        }
        self.set(stretch, view);
    }

    fn set(&mut self, stretch: u32, view: View) {
        let place = self.place(stretch);
        let new = bytes(&view);
        let old = core::mem::replace(&mut self.slots[place], Slot { stretch, view });
        self.bytes = self.bytes + new - bytes(&old.view);
        while self.bytes > MIXED_BYTES_MAX && self.bytes > new {
            self.hand = (self.hand + 1) & (self.slots.len() - 1);
            if self.hand != place {
                let view = core::mem::replace(&mut self.slots[self.hand].view, View::Unknown);
                match view {
                    View::Mixed(runs) => self.bytes -= size_of_val(&*runs),
                    other => self.slots[self.hand].view = other,
                }
            }
        }
    }

    /// Nothing is known of a stretch any more.
    pub fn forget(&mut self, stretch: u32) {
        let place = self.place(stretch);
        if self.slots[place].stretch == stretch {
            self.set(stretch, View::Unknown);
        }
    }

    /// The stretch of a sector, and where in it that is.
    #[inline(always)]
    fn split(&self, sector: u64) -> (u32, u32) {
        (sector.wrapping_shr(self.shift) as u32, sector as u32 & self.mask)
    }

    /// Whether anything may be known of a block of the leaf.
    #[inline(always)]
    pub fn may_know(&self, block: u32) -> bool {
        let slot = &self.slots[self.place(block)];
        self.block_shift != self.shift || slot.stretch == block && !matches!(slot.view, View::Unknown)
    }

    /// Sectors from `from` to `to` of a block of the leaf are now at `place`, wherever anything is known of them.
    pub fn patch(&mut self, block: u32, from: u32, to: u32, place: Place) {
        match self.block_shift == self.shift {
            true if self.may_know(block) => self.patch_known(block, from, to, place),
            true => {}
            false => self.patch_parts(block, from, to, place),
        }
    }

    #[cold]
    fn patch_parts(&mut self, block: u32, from: u32, to: u32, place: Place) {
        let mut at = from;
        while at < to {
            let (stretch, first) = self.split((u64::from(block) << self.block_shift) + u64::from(at));
            let here = (to - at).min(self.sectors() - first);
            self.cut(stretch, first, first + here, place.skip(at - from));
            at += here;
        }
    }

    /// As [`learn`](Map::learn), for all of a block of the leaf, which lies together.
    pub fn learn_block(&mut self, block: u32, place: Place) {
        for at in (0..1u32 << self.block_shift).step_by(self.sectors() as usize) {
            let (stretch, _) = self.split((u64::from(block) << self.block_shift) + u64::from(at));
            self.learn(stretch, &[Run { first: 0, place: place.skip(at) }]);
        }
    }

    fn patch_known(&mut self, stretch: u32, first: u32, end: u32, place: Place) {
        if !self.lengthen(stretch, first, end, place) {
            self.cut(stretch, first, end, place);
        }
    }

    /// As [`patch`](Map::patch) where a run only becomes longer, as when a disk is written from its begin to its end.
    fn lengthen(&mut self, stretch: u32, first: u32, end: u32, place: Place) -> bool {
        let at = self.place(stretch);
        let Slot { stretch: known, view: View::Mixed(runs) } = &mut self.slots[at] else { return false };
        let next = runs.partition_point(|run| run.first < first);
        if *known != stretch || next == 0 || next == runs.len() {
            return false;
        }
        let (last, left) = (runs[next - 1], runs.get(next + 1).map_or(1 << self.shift, |run| run.first));
        let fits = last.place.skip(first - last.first) == place && runs[next].first == first && end < left;
        if fits {
            runs[next] = Run { first: end, place: runs[next].place.skip(end - first) };
        }
        fits
    }

    fn cut(&mut self, stretch: u32, first: u32, end: u32, place: Place) {
        let slot = &self.slots[self.place(stretch)];
        let whole;
        let old: &[Run] = match &slot.view {
            _ if slot.stretch != stretch => return,
            View::Unknown => return,
            View::Whole(place) => {
                whole = [Run { first: 0, place: *place }];
                &whole
            }
            View::Mixed(runs) => runs,
        };
        let mut runs: Vec<Run> = Vec::with_capacity(old.len() + 2);
        let mut push = |run: Run| match runs.last() {
            Some(last) if last.place.skip(run.first - last.first) == run.place => {}
            _ => runs.push(run),
        };
        let mut ends = None;
        for run in old {
            if run.first <= first {
                // What it has behind `end`, if nothing else begins before that.
                ends = Some(Run { first: end, place: run.place.skip(end - run.first) });
                if run.first < first {
                    push(*run);
                }
            }
        }
        push(Run { first, place });
        for run in old.iter().filter(|run| run.first > first) {
            match run.first < end {
                true => ends = Some(Run { first: end, place: run.place.skip(end - run.first) }),
                false => {
                    if let Some(tail) = ends.take_if(|tail| tail.first < run.first) {
                        push(tail);
                    }
                    ends = None;
                    push(*run);
                }
            }
        }
        if let Some(tail) = ends.filter(|tail| tail.first < self.sectors()) {
            push(tail);
        }
        let view = match runs[..] {
            [run] => View::Whole(run.place),
            _ => View::Mixed(runs.into()),
        };
        self.set(stretch, view);
    }

    /// Bytes it has on the heap.
    pub fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>() + self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    /// Each sector's place.
    fn flat(map: &Map, stretch: u32) -> Vec<Option<Extent>> {
        (0..map.sectors())
            .map(|at| map.find((u64::from(stretch) << map.shift) + u64::from(at), 1).map(|(extent, _)| extent))
            .collect()
    }

    #[test]
    fn a_patch_changes_just_its_sectors() {
        let mut random = 1u32;
        let mut next = |below: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) % below
        };
        let mut map = Map::new(6);
        map.learn(3, &[Run { first: 0, place: Place::Zero }]);
        let mut model = vec![Some(Extent::Zero); 64];
        for _ in 0..5000 {
            let first = next(64);
            let end = first + 1 + next(64 - first);
            let place = match next(3) {
                0 => Place::Zero,
                // Often what goes on where the neighbour ends.
                1 => Place::At(0, 1000 + first),
                _ => Place::At(next(3) as u16, next(10_000)),
            };
            map.patch(3, first, end, place);
            (first..end).for_each(|at| model[at as usize] = Some(place.extent(at - first)));
            assert_eq!(flat(&map, 3), model);
            // What lies together is told together.
            let (_, count) = map.find((3 << 6) + u64::from(first), 64).unwrap();
            assert!(count >= u64::from(end - first));
        }
    }

    #[test]
    fn large_blocks_are_several_stretches() {
        let mut map = Map::new(17);
        assert_eq!(map.sectors(), 4096);
        map.learn_block(1, Place::At(0, 50));
        let found = |map: &Map, sector: u64| map.find((1 << 17) + sector, 10_000);
        for sector in [0, 4096, 100_000, 131_071] {
            let together = 4096 - sector % 4096;
            assert_eq!(found(&map, sector), Some((Extent::At { layer: 0, sector: 50 + sector }, together)));
        }
        assert_eq!((map.find(0, 1), map.find(2 << 17, 1)), (None, None));
        map.forget(32 + 2);
        // Across what is known and what is not.
        map.patch(1, 4090, 4090 + 3 * 4096, Place::At(3, 7));
        assert_eq!(found(&map, 4089), Some((Extent::At { layer: 0, sector: 50 + 4089 }, 1)));
        assert_eq!(found(&map, 4090), Some((Extent::At { layer: 3, sector: 7 }, 6)));
        assert_eq!(found(&map, 4096), Some((Extent::At { layer: 3, sector: 13 }, 4096)));
        assert_eq!(found(&map, 2 * 4096), None);
        assert_eq!(found(&map, 3 * 4096), Some((Extent::At { layer: 3, sector: 13 + 2 * 4096 }, 4090)));
        assert_eq!(found(&map, 4 * 4096 - 6), Some((Extent::At { layer: 0, sector: 50 + 4 * 4096 - 6 }, 6)));
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        let mut map = Map::new(12);
        assert_eq!(map.find(0, 1), None);
        map.patch(0, 0, 4096, Place::Zero);
        assert_eq!(map.find(0, 1), None, "a patch of the unknown is unknown");
        map.learn(7, &[Run { first: 0, place: Place::At(2, 100) }]);
        assert_eq!(map.find(7 * 4096 + 5, 10_000), Some((Extent::At { layer: 2, sector: 105 }, 4091)));
        assert_eq!(map.find((7 + 64) * 4096, 1), None, "another one of the same slot");
        map.forget(7 + 64);
        assert!(map.find(7 * 4096, 1).is_some());
        map.forget(7);
        assert_eq!(map.find(7 * 4096, 1), None);
    }

    #[test]
    fn it_grows_to_a_bound_whatever_is_learnt() {
        let mut map = Map::new(12);
        for stretch in 0..100_000 {
            let runs: Vec<_> =
                (0..4096).map(|first| Run { first, place: Place::At((first % 2) as u16, 9 * first) }).collect();
            map.learn(stretch, if stretch % 3 == 0 { &runs } else { &runs[..1] });
            assert!(map.find(u64::from(stretch) * 4096, 1).is_some());
            assert!(map.bytes() <= SLOTS_MAX * size_of::<Slot>() + MIXED_BYTES_MAX + size_of_val(&runs[..]));
        }
        let counted: usize = map.slots.iter().map(|slot| bytes(&slot.view)).sum();
        assert_eq!(counted, map.bytes);
        assert_eq!(map.slots.len(), SLOTS_MAX);
    }
}
