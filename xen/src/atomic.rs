//! What is touched by wakers that come from elsewhere: an interrupt, another vCPU. In one place, so that the checks of the
//! orderings (`model/`) can put their own in its place.

pub use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

pub use spin::Mutex;
