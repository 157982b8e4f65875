//! What happened on one disk, in numbers.

use core::cell::Cell;
use core::fmt;

/// Counts since the disk came.
#[derive(Default)]
pub struct Stats {
    /// Requests answered OK.
    pub done: Cell<u64>,
    /// Sectors read.
    pub sectors_read: Cell<u64>,
    /// Sectors written.
    pub sectors_written: Cell<u64>,
    /// Requests that broke a rule.
    pub rejected: Cell<u64>,
    /// Requests whose pages Xen would not copy.
    pub grants_refused: Cell<u64>,
    /// Requests that the store failed.
    pub failed: Cell<u64>,
}

/// Adds to a count.
pub fn add(cell: &Cell<u64>, n: u64) {
    cell.set(cell.get().wrapping_add(n));
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} done, {} sectors read, {} written, {} rejected, {} grants refused, {} failed",
            self.done.get(),
            self.sectors_read.get(),
            self.sectors_written.get(),
            self.rejected.get(),
            self.grants_refused.get(),
            self.failed.get()
        )
    }
}
