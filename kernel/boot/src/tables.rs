//! Page tables: everything at its own physical address, nothing both writable and executable.
//!
//! Tables are taken from a pool that is itself mapped at its own address, so a table's address is that of its place in
//! the pool and no pointer is needed.

use core::ops::Range;

use crate::map::{LARGE, PAGE};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
/// In the last level but one: a large page.
const HUGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What may be done with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Not even looked at: guard pages, the page of the null pointer.
    Nothing,
    /// Constants.
    Read,
    /// Everything we keep.
    Write,
    /// Code.
    Execute,
}

impl Access {
    fn bits(self) -> u64 {
        match self {
            Access::Nothing => 0,
            Access::Read => PRESENT | NO_EXECUTE,
            Access::Write => PRESENT | WRITABLE | NO_EXECUTE,
            Access::Execute => PRESENT,
        }
    }
}

/// One table of any level.
#[repr(C, align(4096))]
#[derive(Clone)]
pub struct Table([u64; 512]);

impl Table {
    /// A table that maps nothing.
    pub const EMPTY: Table = Table([0; 512]);
}

/// Page tables under construction.
pub struct Tables<'a> {
    pool: &'a mut [Table],
    used: usize,
}

impl<'a> Tables<'a> {
    /// How many tables the pool must have to map `ranges`, whatever is said about parts of them afterwards in `parts`
    /// further calls.
    pub fn needed(ranges: &[Range<u64>], parts: usize) -> usize {
        let touched = |range: &Range<u64>, unit: u64| (range.end.div_ceil(unit) - range.start / unit) as usize;
        let of_range = |range: &Range<u64>| touched(range, 512 << 30) + touched(range, 1 << 30) + 2;
        1 + ranges.iter().map(of_range).sum::<usize>() + 2 * parts
    }

    /// Starts in a pool of empty tables.
    pub fn new(pool: &'a mut [Table]) -> Self {
        Tables { pool, used: 1 }
    }

    /// Where the top table is: the value of CR3.
    pub fn root(&self) -> u64 {
        self.address(0)
    }

    /// Gives `range`, whole pages, the access `access`, also where it had another before.
    pub fn set(&mut self, range: Range<u64>, access: Access) {
        assert!(range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE));
        let mut at = range.start;
        while at < range.end {
            let large = at.is_multiple_of(LARGE) && range.end - at >= LARGE;
            let entry = self.entry(at, if large { 2 } else { 1 });
            let is_table = large && *entry & PRESENT != 0 && *entry & HUGE == 0;
            if is_table {
                // Finer tables are here already; they stay, page by page.
                self.set_pages(at..at + LARGE, access);
            } else {
                *entry = match access {
                    Access::Nothing => 0,
                    _ => at | access.bits() | if large { HUGE } else { 0 },
                };
            }
            at += if large { LARGE } else { PAGE };
        }
    }

    fn set_pages(&mut self, range: Range<u64>, access: Access) {
        for at in range.step_by(PAGE as usize) {
            *self.entry(at, 1) = if access == Access::Nothing { 0 } else { at | access.bits() };
        }
    }

    /// What may be done at `address`, as the processor would find it.
    pub fn access(&self, address: u64) -> Access {
        let mut table = 0;
        for level in (1..=4).rev() {
            let entry = self.pool[table].0[index(address, level)];
            if entry & PRESENT == 0 {
                return Access::Nothing;
            }
            if level > 1 && entry & HUGE == 0 {
                table = self.place(entry);
                continue;
            }
            let page = if level == 1 { PAGE } else { LARGE };
            assert_eq!(entry & ADDRESS, address & !(page - 1));
            return match (entry & WRITABLE != 0, entry & NO_EXECUTE != 0) {
                (true, true) => Access::Write,
                (false, true) => Access::Read,
                (false, false) => Access::Execute,
                (true, false) => unreachable!("no access has these bits"),
            };
        }
        unreachable!("level 1 returns")
    }

    /// The entry for `address` in the table of `level` (1 is the last), with all tables above it.
    fn entry(&mut self, address: u64, level: u32) -> &mut u64 {
        let mut table = 0;
        for above in (level + 1..=4).rev() {
            let index = index(address, above);
            let entry = self.pool[table].0[index];
            table = if entry & PRESENT == 0 {
                let new = self.take();
                self.pool[table].0[index] = self.address(new) | PRESENT | WRITABLE;
                new
            } else if entry & HUGE != 0 {
                let new = self.split(entry);
                self.pool[table].0[index] = self.address(new) | PRESENT | WRITABLE;
                new
            } else {
                self.place(entry)
            };
        }
        &mut self.pool[table].0[index(address, level)]
    }

    /// A table that says of every page what `entry` says of a large one.
    fn split(&mut self, entry: u64) -> usize {
        let new = self.take();
        for (i, page) in self.pool[new].0.iter_mut().enumerate() {
            *page = (entry & !HUGE) + i as u64 * PAGE;
        }
        new
    }

    fn take(&mut self) -> usize {
        assert!(self.used < self.pool.len(), "page tables: the pool is too small");
        self.used += 1;
        self.used - 1
    }

    fn address(&self, place: usize) -> u64 {
        self.pool.as_ptr() as u64 + place as u64 * PAGE
    }

    fn place(&self, entry: u64) -> usize {
        (((entry & ADDRESS) - self.address(0)) / PAGE) as usize
    }
}

fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * (level - 1))) as usize & 511
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: Range<u64> = 0..0x1f0_5000;

    #[test]
    fn large_and_small_pages_say_the_same() {
        let mut pool = vec![Table::EMPTY; Tables::needed(&[RAM], 4)];
        let mut tables = Tables::new(&mut pool);
        tables.set(RAM, Access::Write);
        tables.set(0..0x1000, Access::Nothing);
        tables.set(0x10_0000..0x12_3000, Access::Execute);
        tables.set(0x12_3000..0x13_0000, Access::Read);
        tables.set(0x13_4000..0x13_5000, Access::Nothing);
        for at in (0..0x200_0000).step_by(0x1000) {
            let expected = match at {
                0..0x1000 | 0x13_4000..0x13_5000 | 0x1f0_5000.. => Access::Nothing,
                0x10_0000..0x12_3000 => Access::Execute,
                0x12_3000..0x13_0000 => Access::Read,
                _ => Access::Write,
            };
            assert_eq!(tables.access(at + 7), expected, "{at:#x}");
        }
    }

    #[test]
    fn a_large_range_over_finer_tables_reaches_every_page() {
        let mut pool = vec![Table::EMPTY; 8];
        let mut tables = Tables::new(&mut pool);
        tables.set(0x1000..0x3000, Access::Execute);
        tables.set(0..2 * LARGE, Access::Write);
        for at in (0..2 * LARGE).step_by(0x1000) {
            assert_eq!(tables.access(at), Access::Write);
        }
        tables.set(0..LARGE, Access::Nothing);
        assert_eq!(tables.access(0x2000), Access::Nothing);
        assert_eq!(tables.access(LARGE), Access::Write);
    }

    #[test]
    fn the_pool_is_large_enough_for_ranges_far_apart() {
        let ranges = [
            0..0xf000_0000,
            4 << 30..(9 << 30) + 0x5000,
            0xfeff_c000..0xfeff_d000,
            (1 << 39) - 0x1000..(1 << 39) + 0x1000,
        ];
        let parts: Vec<_> = (0..6).map(|i| 0x10_0000 + i * 0x8000..0x10_0000 + i * 0x8000 + 0x7000).collect();
        let mut pool = vec![Table::EMPTY; Tables::needed(&ranges, parts.len())];
        let mut tables = Tables::new(&mut pool);
        ranges.iter().for_each(|range| tables.set(range.clone(), Access::Write));
        parts.iter().for_each(|range| tables.set(range.clone(), Access::Read));
        assert_eq!(tables.access((9 << 30) + 0x4fff), Access::Write);
        assert_eq!(tables.access((9 << 30) + 0x5000), Access::Nothing);
        assert_eq!(tables.access(1 << 39), Access::Write);
        assert_eq!(tables.access(0x10_8fff), Access::Read);
    }
}
