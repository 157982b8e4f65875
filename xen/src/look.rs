//! When to look at a ring for a while instead of sleeping.
//!
//! To sleep and to be woken costs a domain over 20,000 instructions (docs/bench.md), and its peer the event. Where the last
//! pauses were short the next one probably is: then it is cheaper to look again and again, without asking for an event. A look
//! ends after [`LOOK_NANOS`]; after looks in vain ever more pauses are slept through, so that a peer that
//! cannot run while we look, or one that goes slowly, costs next to nothing.

use crate::limits::{LOOK_NANOS, LOOKS_APART};
use crate::port::Instant;

/// So many short pauses in a row before the first look.
const SHORT_PAUSES: u8 = 2;
/// A pause up to this is short: one that is slept through is longer by what it takes to be woken.
const SHORT_NANOS: u64 = 2 * LOOK_NANOS;

/// What is known of the pauses of one ring.
#[derive(Debug, Default)]
pub struct Look {
    /// Since when there is nothing to do.
    since: Option<Instant>,
    looks: bool,
    short: u8,
    /// Pauses to sleep through after the last look in vain, and how many of them are left.
    apart: u16,
    left: u16,
}

impl Look {
    /// What was waited for is there.
    pub fn found(&mut self, now: Instant) {
        let Some(since) = self.since.take() else { return };
        self.short = if lasts(since, now) <= SHORT_NANOS { SHORT_PAUSES.min(self.short + 1) } else { 0 };
        if self.looks {
            self.apart = 0;
        }
    }

    /// Something else was to be done: the pause begins after it.
    pub fn interrupted(&mut self) {
        self.since = None;
    }

    /// There is nothing to do. Whether to look again, rather than to sleep.
    pub fn again(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert_with(|| {
            self.looks = self.short == SHORT_PAUSES && self.left == 0;
            self.left = self.left.saturating_sub(1);
            now
        });
        if self.looks && lasts(since, now) > LOOK_NANOS {
            self.looks = false;
            self.apart = (self.apart * 2).clamp(1, LOOKS_APART);
            self.left = self.apart;
        }
        if self.looks {
            // Who shares the core with us goes faster, and Xen can see that we wait.
            core::hint::spin_loop();
        }
        self.looks
    }
}

fn lasts(since: Instant, now: Instant) -> u64 {
    now.0.saturating_sub(since.0)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    /// A pause of so many nanoseconds; whether it was looked through from its begin, and how often it said so.
    fn pause(look: &mut Look, now: &mut u64, nanos: u64) -> bool {
        let first = look.again(Instant(*now));
        *now += nanos;
        look.again(Instant(*now));
        look.found(Instant(*now));
        first
    }

    #[test]
    fn after_two_short_pauses_it_looks_as_long_as_they_are_short() {
        let (mut look, mut now) = (Look::default(), 7);
        let seen: Vec<_> = (0..2).map(|_| pause(&mut look, &mut now, SHORT_NANOS)).collect();
        assert_eq!(seen, [false, false]);
        let seen: Vec<_> = (0..3).map(|_| pause(&mut look, &mut now, LOOK_NANOS)).collect();
        assert_eq!(seen, [true, true, true]);
        assert!(pause(&mut look, &mut now, SHORT_NANOS + 1), "it could not know");
        let seen: Vec<_> = (0..5).map(|_| pause(&mut look, &mut now, 1)).collect();
        assert_eq!(seen, [false, false, true, true, true], "the last was a long one");
    }

    #[test]
    fn a_look_ends() {
        let (mut look, mut now) = (Look::default(), 0);
        pause(&mut look, &mut now, 1);
        pause(&mut look, &mut now, 1);
        assert!(look.again(Instant(now)) && look.again(Instant(now + LOOK_NANOS)));
        assert!(!look.again(Instant(now + LOOK_NANOS + 1)));
        assert!(!look.again(Instant(now)), "not a second time in one pause");
    }

    #[test]
    fn looks_in_vain_are_ever_further_apart_and_one_that_is_not_in_vain_mends_that() {
        let (mut look, mut now) = (Look::default(), 0);
        let mut apart = Vec::new();
        for _ in 0..9 {
            let mut between = 0;
            loop {
                let first = look.again(Instant(now));
                // What comes while it looks is late; else it is early.
                now += if first { SHORT_NANOS + 1 } else { 1 };
                look.again(Instant(now));
                look.found(Instant(now));
                if first {
                    break;
                }
                between += 1;
            }
            apart.push(between);
        }
        assert_eq!(apart, [2, 2, 2, 4, 8, 16, 32, 64, 64]);
        while !pause(&mut look, &mut now, 1) {}
        assert!(pause(&mut look, &mut now, 1), "what came early was worth a look");
        pause(&mut look, &mut now, SHORT_NANOS + 1);
        let seen: Vec<_> = (0..3).map(|_| pause(&mut look, &mut now, 1)).collect();
        assert_eq!(seen, [false, false, true]);
    }

    #[test]
    fn a_pause_begins_after_what_interrupted_it() {
        let (mut look, mut now) = (Look::default(), 0);
        for _ in 0..SHORT_PAUSES {
            assert!(!look.again(Instant(now)));
            now += 10 * SHORT_NANOS;
            look.interrupted();
            pause(&mut look, &mut now, 1);
        }
        assert!(look.again(Instant(now)));
    }

    #[test]
    fn what_was_not_waited_for_says_nothing() {
        let mut look = Look::default();
        (0..9).for_each(|now| look.found(Instant(now)));
        assert!(!look.again(Instant(9)));
    }
}
