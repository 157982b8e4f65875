//! Our own memory, and who may count on some of it: an allocation that fails is the end of the domain, so whatever others
//! can make us use was promised before, and what is more than that waits while memory is short.

use alloc::sync::Arc;
use core::fmt;

use crate::atomic::{AtomicUsize, Ordering};
use crate::limits::{KEPT_PAGES, MEMORY_SPARE};

/// The heap as a whole, of all vCPUs; cloning gives another handle on the same one.
#[derive(Clone)]
pub struct Budget(Arc<Heap>);

struct Heap {
    figures: fn() -> (usize, usize),
    promised: AtomicUsize,
    /// Pages of peers that stay mapped between requests.
    kept: AtomicUsize,
}

/// Bytes that somebody may count on, until it is dropped.
pub struct Promise {
    memory: Budget,
    bytes: usize,
}

impl Budget {
    /// `figures` tells the bytes of the heap in use, and in all.
    pub fn new(figures: fn() -> (usize, usize)) -> Self {
        Budget(Arc::new(Heap { figures, promised: AtomicUsize::new(0), kept: AtomicUsize::new(0) }))
    }

    /// Bytes of the heap in use, and in all.
    pub fn figures(&self) -> (usize, usize) {
        (self.0.figures)()
    }

    /// Whether there is so little left that nobody shall use more than it was promised. What was promised counts as used
    /// also while it is not, or is so twice.
    pub fn is_short(&self) -> bool {
        self.left() < MEMORY_SPARE
    }

    /// Promises so many bytes; none if there would be too little left.
    pub fn promise(&self, bytes: usize) -> Option<Promise> {
        if self.left() < MEMORY_SPARE.checked_add(bytes)? {
            return None;
        }
        // Promises are made by one vCPU; others may let go of theirs meanwhile.
        self.0.promised.fetch_add(bytes, Ordering::Relaxed);
        Some(Promise { memory: self.clone(), bytes })
    }

    fn left(&self) -> usize {
        let (used, all) = self.figures();
        all.saturating_sub(used).saturating_sub(self.promised())
    }

    fn promised(&self) -> usize {
        self.0.promised.load(Ordering::Relaxed)
    }

    /// Notes that one more page of a peer is to stay mapped; false if there are as many as there may be.
    pub(crate) fn keep_page(&self) -> bool {
        let fits = |kept| (kept < KEPT_PAGES).then_some(kept + 1);
        self.0.kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    /// So many of them are not kept any more.
    pub(crate) fn let_pages_go(&self, pages: usize) {
        self.0.kept.fetch_sub(pages, Ordering::Relaxed);
    }
}

/// For who is refused.
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (used, all) = self.figures();
        let (used, promised, all) = (used / 1024, self.promised() / 1024, all / 1024);
        write!(f, "not enough memory: of {all} KiB {used} are in use and {promised} promised")
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.memory.0.promised.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_promised_is_left_for_those_it_was_promised_to() {
        const ALL: usize = MEMORY_SPARE + 1000;
        let memory = Budget::new(|| (100, ALL));
        let first = memory.promise(600).unwrap();
        assert!(memory.promise(301).is_none() && memory.promise(usize::MAX).is_none() && !memory.is_short());
        let second = memory.promise(300).unwrap();
        assert!(memory.promise(1).is_none() && !memory.is_short());
        drop(first);
        assert_eq!(memory.promised(), 300);
        let third = memory.promise(600).unwrap();
        drop((second, third));
        assert_eq!(memory.promised(), 0);
        assert!(Budget::new(|| (1001, ALL)).is_short() && Budget::new(|| (ALL + 1, ALL)).is_short());
    }
}
