//! Refusals with a budget: a call of the domain under test asks here before Xen does what it was asked.
//!
//! A budget ends, so a run with faults ends too, and what the product must bear is stated in numbers by the test.

use std::collections::BTreeMap;

use crate::random::Random;

/// What may be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `EVTCHNOP_alloc_unbound`: no port left.
    AllocUnbound,
    /// `EVTCHNOP_bind_interdomain`: no port left.
    Bind,
    /// A grant: the table is full.
    Lend,
    /// Mapping: no maptrack entry left (`GNTST_no_device_space`).
    Map,
    /// Mapping: the page is paged out for the moment (`GNTST_eagain`).
    MapAgain,
    /// Copy: the page is gone (`GNTST_bad_page`).
    Copy,
    /// Copy: the page is paged out for the moment (`GNTST_eagain`).
    CopyAgain,
    /// A commit of a transaction meets a conflict (`EAGAIN`).
    Conflict,
}

#[derive(Clone, Copy, Debug)]
struct Budget {
    left: u32,
    one_in: u64,
}

/// The budgets, and what was spent.
#[derive(Debug)]
pub struct Faults {
    random: Random,
    budgets: BTreeMap<Fault, Budget>,
    injected: BTreeMap<Fault, u32>,
}

impl Faults {
    /// No fault at all until [`allow`](Faults::allow).
    pub fn new(random: Random) -> Self {
        Faults { random, budgets: BTreeMap::new(), injected: BTreeMap::new() }
    }

    /// Up to `times` refusals of this kind, each call being refused once in `one_in` times.
    pub fn allow(&mut self, fault: Fault, times: u32, one_in: u64) {
        self.budgets.insert(fault, Budget { left: times, one_in });
    }

    /// No fault from now on.
    pub fn end(&mut self) {
        self.budgets.clear();
    }

    /// How many of this kind were injected.
    pub fn injected(&self, fault: Fault) -> u32 {
        self.injected.get(&fault).copied().unwrap_or(0)
    }

    /// Whether this call is refused.
    pub fn strikes(&mut self, fault: Fault) -> bool {
        let Some(budget) = self.budgets.get_mut(&fault) else { return false };
        if budget.left == 0 || !self.random.one_in(budget.one_in) {
            return false;
        }
        budget.left -= 1;
        *self.injected.entry(fault).or_default() += 1;
        true
    }
}
