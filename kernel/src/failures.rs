//! Failures of stores under minors, for those who asked to hear of them (RUNTIME_ERROR).
//!
//! A store that fails fails often: of one minor and one cause a failure is told once in a while, with how many there
//! were. What nobody fetched in time is forgotten, oldest first, and that some was is told too.

use alloc::collections::VecDeque;
use core::cell::{Cell, RefCell};
use core::time::Duration;

use drivers::disk::Error;
use xen::limits::FAILURES_KEPT;
use xen::port::Instant;
use xen::sync::Bell;

/// Least time between two tellings of one minor and cause.
const PAUSE: Duration = Duration::from_secs(1);

/// One telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Under which minor.
    pub minor: u16,
    /// How it failed.
    pub error: Error,
    /// How often since the last telling of this minor and cause, this one included.
    pub times: u64,
}

/// The last failures.
#[derive(Default)]
pub struct Failures {
    kept: RefCell<VecDeque<Failure>>,
    /// The number of the first one kept: as many were forgotten or fetched by all.
    first: Cell<u64>,
    /// Rings when there is a new one.
    pub bell: Bell,
}

/// What is known of one minor's failures of one cause, in the minor.
#[derive(Default)]
pub struct Last {
    told: Cell<Option<Instant>>,
    times: Cell<u64>,
}

impl Failures {
    /// A store failed.
    pub fn failed(&self, minor: u16, error: Error, last: &Last, now: Instant) {
        let times = last.times.get().saturating_add(1);
        if last.told.get().is_some_and(|told| now < told + PAUSE) {
            return last.times.set(times);
        }
        last.told.set(Some(now));
        last.times.set(0);
        let mut kept = self.kept.borrow_mut();
        kept.push_back(Failure { minor, error, times });
        if kept.len() > FAILURES_KEPT {
            kept.pop_front();
            self.first.set(self.first.get() + 1);
        }
        self.bell.ring();
    }

    /// Where one stands who has not missed anything yet.
    pub fn end(&self) -> u64 {
        self.first.get() + self.kept.borrow().len() as u64
    }

    /// The next one from `at` on, and how many before it were missed.
    pub fn next(&self, at: &mut u64) -> Option<(Failure, u64)> {
        let missed = self.first.get().saturating_sub(*at);
        *at = (*at).max(self.first.get());
        let failure = *self.kept.borrow().get((*at - self.first.get()) as usize)?;
        *at += 1;
        Some((failure, missed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cause_is_told_once_a_second_with_its_number() {
        let (failures, last) = (Failures::default(), Last::default());
        let mut at = failures.end();
        for ms in 0..2500u64 {
            failures.failed(3, Error::Medium, &last, Instant(ms * 1_000_000));
        }
        let told = core::iter::from_fn(|| failures.next(&mut at)).map(|(failure, _)| failure.times);
        assert!(told.eq([1, 1000, 1000]));
    }

    #[test]
    fn who_is_late_is_told_how_many_were_missed() {
        let failures = Failures::default();
        let (mut late, mut soon) = (failures.end(), failures.end());
        for minor in 0..FAILURES_KEPT as u16 + 5 {
            failures.failed(minor, Error::Gone, &Last::default(), Instant(0));
            assert_eq!(failures.next(&mut soon).map(|(failure, missed)| (failure.minor, missed)), Some((minor, 0)));
        }
        assert_eq!(failures.next(&mut late).map(|(failure, missed)| (failure.minor, missed)), Some((5, 5)));
        assert_eq!(core::iter::from_fn(|| failures.next(&mut late)).count(), FAILURES_KEPT - 1);
        assert_eq!(failures.next(&mut soon), None);
    }
}
