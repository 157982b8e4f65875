//! System time, from Xen's clock in the shared page and the time-stamp counter. With `tsc_mode="native"` reading it
//! costs no exit to Xen.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use boot::pvclock::Time;
use xen::port::Instant;

static CLOCK: spin::Once<&'static Time> = spin::Once::new();
static START: AtomicU64 = AtomicU64::new(0);
/// The latest time anybody was told: when Xen adjusts the line, it must not lead backwards.
static LATEST: AtomicU64 = AtomicU64::new(0);

/// From here on there is time. `began` is what [`counter`] said at the image's start, from which the log's times count.
pub fn open(time: &'static Time, began: u64) {
    CLOCK.call_once(|| time);
    let start = now().0.saturating_sub(time.span(counter().wrapping_sub(began)));
    START.store(start, Ordering::Relaxed);
}

/// Nanoseconds of Xen's system time; 0 as long as there is no clock.
pub fn now() -> Instant {
    CLOCK.get().map_or(Instant(0), |clock| latest(clock, &LATEST))
}

fn latest(clock: &Time, latest: &AtomicU64) -> Instant {
    let now = clock.now(counter);
    Instant(latest.fetch_max(now, Ordering::Relaxed).max(now))
}

/// A vCPU's own clock: a line that no other writes.
pub struct Clock {
    time: &'static Time,
    latest: AtomicU64,
}

impl Clock {
    /// By what Xen tells this vCPU.
    pub fn new(time: &'static Time) -> Self {
        Clock { time, latest: AtomicU64::new(0) }
    }

    /// Nanoseconds of Xen's system time, as this vCPU is told them.
    pub fn now(&self) -> Instant {
        latest(self.time, &self.latest)
    }
}

/// Microseconds since our own start.
pub fn uptime_us() -> u64 {
    (now().0 - START.load(Ordering::Relaxed)) / 1000
}

/// The time-stamp counter.
pub fn counter() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter. The fence keeps the processor from reading it early, before the line's version.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}
