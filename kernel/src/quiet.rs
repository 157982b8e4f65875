//! A limit on log lines that a guest can cause (XSA-43): dom0 keeps our console in a file.

use core::cell::Cell;
use core::fmt;
use core::time::Duration;

use xen::port::Instant;

/// Lines that may come at once.
const BURST: u32 = 20;
/// After that, one in so much time.
const PACE: Duration = Duration::from_secs(1);

/// The lines about one disk.
pub struct Quiet {
    left: Cell<u32>,
    refilled: Cell<Instant>,
    dropped: Cell<u64>,
}

impl Quiet {
    /// None said yet.
    pub fn new(now: Instant) -> Self {
        Quiet { left: Cell::new(BURST), refilled: Cell::new(now), dropped: Cell::new(0) }
    }

    /// Logs the line, or counts it as left out.
    pub fn say(&self, now: Instant, level: log::Level, line: fmt::Arguments<'_>) {
        if self.allows(now) {
            match self.dropped.take() {
                0 => log::log!(level, "{line}"),
                n => log::log!(level, "{line} ({n} lines before this one were left out)"),
            }
        } else {
            self.dropped.set(self.dropped.get() + 1);
        }
    }

    fn allows(&self, now: Instant) -> bool {
        let passed = now.0.saturating_sub(self.refilled.get().0) / PACE.as_nanos() as u64;
        if passed > 0 {
            self.left.set(BURST.min(self.left.get().saturating_add(passed.min(u64::from(BURST)) as u32)));
            self.refilled.set(now);
        }
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_a_second() {
        let quiet = Quiet::new(Instant(0));
        let allowed = |at: u64| quiet.allows(Instant(at * 1_000_000_000));
        assert_eq!((0..100).filter(|_| allowed(0)).count(), BURST as usize);
        assert!(!allowed(0) && allowed(1) && !allowed(1));
        // A long silence gives a burst again and no more.
        assert_eq!((0..100).filter(|_| allowed(1_000_000)).count(), BURST as usize);
    }
    #[test]
    fn what_is_left_out_is_counted_and_the_number_told_once() {
        let quiet = Quiet::new(Instant(0));
        let say = |at: u64| quiet.say(Instant(at * 1_000_000_000), log::Level::Info, format_args!("a line"));
        (0..BURST + 3).for_each(|_| say(0));
        assert_eq!(quiet.dropped.get(), 3);
        say(1);
        assert_eq!(quiet.dropped.get(), 0);
    }
}
