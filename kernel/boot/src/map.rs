//! The memory map of `arch-x86/hvm/start_info.h`: where RAM is, where room is in it, and where nothing is at all.

use core::ops::Range;

use xen_sys::start_info::{XEN_HVM_MEMMAP_TYPE_RAM, hvm_memmap_table_entry};

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// Bytes in a large page.
pub const LARGE: u64 = 2 << 20;

/// Regions a map may have. libxl writes about five.
const REGIONS_MAX: usize = 32;

/// One region, in whole pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where.
    pub at: Range<u64>,
    /// Usable memory; else it is taken by something.
    pub ram: bool,
}

/// The memory map.
#[derive(Clone, Debug, Default)]
pub struct Map(heapless::Vec<Region, REGIONS_MAX>);

/// What is wrong with a memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// More regions than we can keep.
    TooMany,
    /// A region ends beyond 2^64.
    Endless,
    /// No RAM in it.
    Empty,
}

impl Map {
    /// Reads the builder's map. RAM shrinks to whole pages, everything else grows to them.
    pub fn parse(entries: impl Iterator<Item = hvm_memmap_table_entry>) -> Result<Self, Bad> {
        let mut map = Map::default();
        for entry in entries {
            let end = entry.addr.checked_add(entry.size).ok_or(Bad::Endless)?;
            let ram = entry.r#type == XEN_HVM_MEMMAP_TYPE_RAM;
            let up = |a: u64| a.checked_next_multiple_of(PAGE).ok_or(Bad::Endless);
            let at = if ram { up(entry.addr)?..end & !(PAGE - 1) } else { entry.addr & !(PAGE - 1)..up(end)? };
            if !at.is_empty() {
                map.0.push(Region { at, ram }).map_err(|_| Bad::TooMany)?;
            }
        }
        if map.ram().next().is_none() { Err(Bad::Empty) } else { Ok(map) }
    }

    /// All regions, as they came.
    pub fn regions(&self) -> &[Region] {
        &self.0
    }

    /// Where RAM is.
    pub fn ram(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().filter(|region| region.ram).map(|region| region.at.clone())
    }

    /// A large-page aligned range of `bytes` bytes above all RAM and above 4 GiB in which the map has nothing, below
    /// `limit`. Xen crashes a domain that maps a grant over anything but a hole.
    pub fn hole(&self, bytes: u64, limit: u64) -> Option<Range<u64>> {
        let ram_end = self.ram().map(|ram| ram.end).max()?;
        let mut start = ram_end.max(4 << 30).checked_next_multiple_of(LARGE)?;
        loop {
            let hole = start..start.checked_add(bytes)?;
            if hole.end > limit {
                return None;
            }
            match self.0.iter().find(|region| region.at.start < hole.end && hole.start < region.at.end) {
                Some(region) => start = region.at.end.checked_next_multiple_of(LARGE)?,
                None => return Some(hole),
            }
        }
    }

    /// The lowest page-aligned room for `bytes` bytes in RAM that touches none of `taken` and ends below `limit`.
    pub fn room(&self, bytes: u64, taken: &[Range<u64>], limit: u64) -> Option<Range<u64>> {
        let mut found: Option<Range<u64>> = None;
        self.free(taken, &mut |free| {
            let end = free.start + bytes;
            if end <= free.end && end <= limit && found.as_ref().is_none_or(|f| free.start < f.start) {
                found = Some(free.start..end);
            }
        });
        found
    }

    /// Calls `each` with every piece of RAM, in whole pages, that touches none of `taken`.
    pub fn free(&self, taken: &[Range<u64>], each: &mut dyn FnMut(Range<u64>)) {
        for ram in self.ram() {
            let mut at = ram.start;
            while at < ram.end {
                let next = taken.iter().filter(|t| !t.is_empty() && t.end > at).min_by_key(|t| t.start);
                let end = next.map_or(ram.end, |t| t.start.min(ram.end) & !(PAGE - 1));
                if end > at {
                    each(at..end);
                }
                at = next.map_or(ram.end, |t| t.end.next_multiple_of(PAGE));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(addr: u64, size: u64, r#type: u32) -> hvm_memmap_table_entry {
        hvm_memmap_table_entry { addr, size, r#type, reserved: 0 }
    }

    fn map(entries: &[(u64, u64, u32)]) -> Map {
        Map::parse(entries.iter().map(|&(addr, size, kind)| entry(addr, size, kind))).unwrap()
    }

    /// What libxl 4.17 writes for 64 MiB.
    fn small() -> Map {
        map(&[(0, 64 << 20, 1), (0xfeff_8000, 0x8000, 2), (0xfc00_0000, 0x8000, 3), (0xfc00_8000, 0x1000, 3)])
    }

    fn free(map: &Map, taken: &[Range<u64>]) -> Vec<Range<u64>> {
        let mut all = Vec::new();
        map.free(taken, &mut |r| all.push(r));
        all
    }

    #[test]
    fn ram_shrinks_and_the_rest_grows_to_whole_pages() {
        let map = map(&[(0x10, 0x3000, 1), (0x8001, 1, 2), (0x9000, 0xfff, 1)]);
        assert_eq!(
            map.regions(),
            [Region { at: 0x1000..0x3000, ram: true }, Region { at: 0x8000..0x9000, ram: false }]
        );
    }

    #[test]
    fn a_bad_map_is_refused() {
        let parse = |e: &[hvm_memmap_table_entry]| Map::parse(e.iter().copied()).unwrap_err();
        assert_eq!(parse(&[]), Bad::Empty);
        assert_eq!(parse(&[entry(0, 1 << 20, 2)]), Bad::Empty);
        assert_eq!(parse(&[entry(u64::MAX, 2, 1)]), Bad::Endless);
        assert_eq!(parse(&[entry(u64::MAX - 1, 1, 2)]), Bad::Endless);
        assert_eq!(parse(&[entry(0, 4096, 1); REGIONS_MAX + 1]), Bad::TooMany);
    }

    #[test]
    fn the_hole_is_above_everything() {
        assert_eq!(small().hole(34 << 20, 1 << 40), Some(4 << 30..(4 << 30) + (34 << 20)));
        let large = map(&[(0, 0xf000_0000, 1), (4 << 30, 0x1234_5000, 1)]);
        let start = (4u64 << 30) + 0x1240_0000;
        assert_eq!(large.hole(LARGE, 1 << 40), Some(start..start + LARGE));
        assert_eq!(large.hole(LARGE, start + LARGE - 1), None);
    }

    #[test]
    fn the_hole_steps_over_what_is_reserved_above_ram() {
        let map = map(&[(0, 64 << 20, 1), (4 << 30, 0x1000, 2), ((4 << 30) + LARGE + 0x1000, LARGE, 2)]);
        let start = (4 << 30) + 3 * LARGE;
        assert_eq!(map.hole(LARGE, 1 << 40), Some(start..start + LARGE));
    }

    #[test]
    fn free_is_ram_without_what_is_taken() {
        let taken = [0..0x1000, 0x10_0000..0x12_3456, 0x12_3000..0x12_5000, 0x20_0000..0x20_0000];
        assert_eq!(free(&small(), &taken), [0x1000..0x10_0000, 0x12_5000..64 << 20]);
        let (all, most, rest) = (0..64 << 20, 0x1000..65 << 20, 0..0x1000);
        assert_eq!(free(&small(), &[]), [all]);
        assert_eq!(free(&small(), &[most]), [rest]);
        let backwards = [0x30_0000..0x30_1000, 0..0x10_0000, 0x20_0000..0x20_0001];
        assert_eq!(free(&small(), &backwards), [0x10_0000..0x20_0000, 0x20_1000..0x30_0000, 0x30_1000..64 << 20]);
    }

    #[test]
    fn room_is_the_lowest_that_fits() {
        let taken = [0..0x2000, 0x3000..0x10_0000];
        assert_eq!(small().room(0x1000, &taken, 1 << 30), Some(0x2000..0x3000));
        assert_eq!(small().room(0x2000, &taken, 1 << 30), Some(0x10_0000..0x10_2000));
        assert_eq!(small().room(0x2000, &taken, 0x10_1fff), None);
        assert_eq!(small().room(65 << 20, &taken, 1 << 30), None);
    }
}
