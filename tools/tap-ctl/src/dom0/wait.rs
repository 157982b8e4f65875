//! Limits of waits as the kernel takes them.

use std::time::Instant;

use rustix::event::Timespec;

/// What is left until then, for poll(2); `None`: for ever.
pub fn timespec(until: Option<Instant>) -> Option<Timespec> {
    let left = until?.saturating_duration_since(Instant::now());
    Some(Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() })
}
