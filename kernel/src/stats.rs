//! What happened on one disk and on its rings, in numbers.

use core::cell::{Cell, RefCell};
use core::fmt;

use drivers::disk::Error;
use protocol::tapdisk::stats::Latency;

/// Counts of one operation.
#[derive(Default)]
pub struct Operation {
    /// Requests answered OK.
    pub done: Cell<u64>,
    /// Sectors that they moved or discarded.
    pub sectors: Cell<u64>,
    /// Sectors of requests answered otherwise.
    pub failed_sectors: Cell<u64>,
    /// How long the ones answered OK took.
    pub latency: RefCell<Latency>,
}

impl Operation {
    /// A request was answered OK.
    pub fn done(&self, sectors: u64, us: u64) {
        add(&self.done, 1);
        add(&self.sectors, sectors);
        self.latency.borrow_mut().note(us);
    }
}

/// Counts since the disk came.
#[derive(Default)]
pub struct Stats {
    /// READ.
    pub reads: Operation,
    /// WRITE, also those of a barrier and of a flush with data.
    pub writes: Operation,
    /// FLUSH_DISKCACHE and WRITE_BARRIER without data.
    pub flushes: Operation,
    /// DISCARD.
    pub discards: Operation,
    /// Segments copied from or to guests' pages.
    pub copied: Cell<u64>,
    /// Requests that broke a rule.
    pub rejected: Cell<u64>,
    /// Requests whose pages Xen would not copy.
    pub grants_refused: Cell<u64>,
    /// Requests for which memory was short.
    pub no_memory: Cell<u64>,
    /// Requests that the store failed, by cause.
    pub store: Causes,
}

/// Failures of the store.
#[derive(Default)]
pub struct Causes {
    /// It said so.
    pub medium: Cell<u64>,
    /// It was not there.
    pub gone: Cell<u64>,
    /// It was full.
    pub full: Cell<u64>,
    /// The image on it is damaged.
    pub corrupt: Cell<u64>,
    /// Any other.
    pub other: Cell<u64>,
}

impl Causes {
    /// One more.
    pub fn add(&self, error: Error) {
        let cause = match error {
            Error::Medium => &self.medium,
            Error::Gone => &self.gone,
            Error::NoSpace => &self.full,
            Error::Corrupt(_) => &self.corrupt,
            Error::ReadOnly | Error::OutOfRange | Error::Unsupported => &self.other,
        };
        add(cause, 1);
    }

    /// All of them.
    pub fn sum(&self) -> u64 {
        self.each().into_iter().map(Cell::get).fold(0, u64::wrapping_add)
    }

    fn each(&self) -> [&Cell<u64>; 5] {
        [&self.medium, &self.gone, &self.full, &self.corrupt, &self.other]
    }
}

/// Counts of one ring.
#[derive(Default)]
pub struct RingStats {
    /// Requests taken.
    pub requests: Cell<u64>,
    /// Answers put.
    pub answers: Cell<u64>,
    /// Events that came.
    pub kicks_in: Cell<u64>,
    /// Events sent.
    pub kicks_out: Cell<u64>,
    /// Requests that broke a rule.
    pub rejected: Cell<u64>,
    /// Requests whose pages Xen would not copy.
    pub grants_refused: Cell<u64>,
    /// Requests for which memory was short.
    pub no_memory: Cell<u64>,
    /// Requests that the store failed.
    pub failed: Cell<u64>,
}

impl Operation {
    fn add(&self, other: &Operation) {
        add(&self.done, other.done.get());
        add(&self.sectors, other.sectors.get());
        add(&self.failed_sectors, other.failed_sectors.get());
        self.latency.borrow_mut().add(&other.latency.borrow());
    }
}

impl Stats {
    /// Adds all counts of another's.
    pub fn add(&self, other: &Stats) {
        self.reads.add(&other.reads);
        self.writes.add(&other.writes);
        self.flushes.add(&other.flushes);
        self.discards.add(&other.discards);
        add(&self.copied, other.copied.get());
        add(&self.rejected, other.rejected.get());
        add(&self.grants_refused, other.grants_refused.get());
        add(&self.no_memory, other.no_memory.get());
        self.store.each().into_iter().zip(other.store.each()).for_each(|(here, there)| add(here, there.get()));
    }

    /// The same counts once more.
    pub fn copy(&self) -> Stats {
        let copy = Stats::default();
        copy.add(self);
        copy
    }
}

impl RingStats {
    fn each(&self) -> [&Cell<u64>; 8] {
        let RingStats { requests, answers, kicks_in, kicks_out, rejected, grants_refused, no_memory, failed } = self;
        [requests, answers, kicks_in, kicks_out, rejected, grants_refused, no_memory, failed]
    }

    /// Makes all counts those of another.
    pub fn set(&self, other: &RingStats) {
        self.each().into_iter().zip(other.each()).for_each(|(here, there)| here.set(there.get()));
    }

    /// The same counts once more.
    pub fn copy(&self) -> RingStats {
        let copy = RingStats::default();
        copy.set(self);
        copy
    }
}

/// Adds to a count.
pub fn add(cell: &Cell<u64>, n: u64) {
    cell.set(cell.get().wrapping_add(n));
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operations = [&self.reads, &self.writes, &self.flushes, &self.discards];
        write!(
            f,
            "{} done, {} sectors read, {} written, {} rejected, {} grants refused, {} failed",
            operations.into_iter().map(|operation| operation.done.get()).fold(0, u64::wrapping_add),
            self.reads.sectors.get(),
            self.writes.sectors.get(),
            self.rejected.get(),
            self.grants_refused.get(),
            self.store.sum().wrapping_add(self.no_memory.get())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_is_counted_under_its_cause() {
        let causes = Causes::default();
        let errors = [
            Error::Medium,
            Error::Gone,
            Error::NoSpace,
            Error::Corrupt("a field"),
            Error::ReadOnly,
            Error::OutOfRange,
            Error::Unsupported,
        ];
        errors.into_iter().for_each(|error| causes.add(error));
        let each = [&causes.medium, &causes.gone, &causes.full, &causes.corrupt, &causes.other].map(Cell::get);
        assert_eq!((each, causes.sum()), ([1, 1, 1, 1, 3], 7));
    }
}
