//! The product's code on loom's memory: every interleaving of a few threads, every value that a weak memory may show.
//!
//! `protocol` takes its memory as an argument, so the ring is checked as it is. The executor and the slots are the
//! product's own files, in a crate whose [`atomic`] is loom's: not a line of them is written for the checker.
//!
//! - [`memory`]: a page that two sides share
//! - `tests/`: what is checked; each check also has to fail when the ordering it is about is taken away

extern crate alloc;

#[path = "../../xen/src/across.rs"]
pub mod across;
#[path = "../../xen/src/exec.rs"]
pub mod exec;
#[path = "../../xen/src/sync.rs"]
pub mod sync;

pub mod memory;

/// What `xen::atomic` is, for loom.
pub mod atomic {
    use loom::sync::MutexGuard;
    pub use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

    /// A lock that is taken as `spin`'s is.
    #[derive(Default)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// Around `value`.
        pub fn new(value: T) -> Self {
            Mutex(loom::sync::Mutex::new(value))
        }

        /// Takes it.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no thread panics with it")
        }
    }
}

/// What the borrowed files need of `xen::schedule`, which does nothing in the product either.
mod schedule {
    #[derive(Clone, Copy)]
    pub struct Name;

    impl Name {
        pub fn of<F>(_: &F) -> Self {
            Name
        }
    }

    pub fn polls(_: usize, _: Name) {}
}

/// What the borrowed files need of `xen::port`.
pub mod port {
    /// Nanoseconds of system time.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
    pub struct Instant(pub u64);
}
