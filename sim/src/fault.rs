//! Refusals with a budget: who is about to do something for the domain under test asks here first whether it shall fail.
//!
//! A budget ends, so a run with faults ends too, and what the product must bear is stated in numbers by the test. How a
//! call fails, where there are several ways, is the seed's choice; each way is a row of the marks.
//!
//! A world allows [`some`] before it boots the product (so that the lower disks' rings and pages are hit as well) and again
//! whenever its guests begin something new; before it judges what is left at its end it calls [`Faults::end`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::Location;

use xen::port::DomId;

use crate::journal;
use crate::marks;
use crate::random::Random;
use crate::world::{Weak, World};

/// What may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `EVTCHNOP_alloc_unbound`.
    AllocUnbound,
    /// `EVTCHNOP_bind_interdomain`.
    Bind,
    /// A grant: the table is full.
    Lend,
    /// The end of a grant: the other side still has the page mapped.
    Reclaim,
    /// Mapping.
    Map,
    /// Mapping: the page is paged out for the moment (`GNTST_eagain`).
    MapAgain,
    /// Copy.
    Copy,
    /// Copy: the page is paged out for the moment (`GNTST_eagain`).
    CopyAgain,
    /// Pages of our own: there is no memory for them.
    Memory,
    /// A commit of a transaction meets a conflict (`EAGAIN`).
    Conflict,
    /// Any request to xenstored, but the end of a watch, which it refuses only to who has none. Two words are none of
    /// its ways: ENOENT and EEXIST say how the tree and the watches are, no xenstored says them otherwise, and who
    /// believes them is right. Both are rows of what xenstored [says](SAID) when they are true.
    Store,
    /// xenstored does not look at the ring for a while.
    StoreSlow,
    /// A watch fires twice for one change, or for none.
    EventTwice,
    /// A request to a lower disk.
    Disk,
    /// A write to a lower disk is done in part and fails.
    DiskTorn,
    /// A request to a lower disk takes seconds.
    DiskSlow,
}

/// One way to fail: the row of the marks, and the errno or `GNTST_*` where the call gives one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The row. After its colon stands the word of the error.
    pub row: &'static str,
    /// The number, 0 where there is none.
    pub code: i16,
}

impl Verdict {
    /// The word of the error.
    pub fn word(&self) -> &'static str {
        self.row.rsplit_once(": ").map_or(self.row, |(_, word)| word)
    }
}

const fn way(row: &'static str, code: i16) -> Verdict {
    Verdict { row, code }
}

/// Every fault and the ways it comes in: what `xen/common/event_channel.c`, `xen/common/grant_table.c` and xenstored give
/// to a caller whose arguments may have been right a moment ago.
const TABLE: &[(Fault, &[Verdict])] = &[
    (Fault::AllocUnbound, &[way("alloc_unbound: ENOSPC", -28), way("alloc_unbound: ENOMEM", -12)]),
    (
        Fault::Bind,
        &[way("bind: ENOSPC", -28), way("bind: ENOMEM", -12), way("bind: EINVAL", -22), way("bind: EPERM", -1)],
    ),
    (Fault::Lend, &[way("lend: no_space", -13)]),
    (Fault::Reclaim, &[way("reclaim: still in use", 0)]),
    (
        Fault::Map,
        &[
            way("map: general_error", -1),
            way("map: bad_gntref", -3),
            way("map: no_device_space", -7),
            way("map: permission_denied", -8),
            way("map: bad_page", -9),
        ],
    ),
    (Fault::MapAgain, &[way("map: eagain", -12)]),
    (
        Fault::Copy,
        &[
            way("copy: general_error", -1),
            way("copy: bad_gntref", -3),
            way("copy: permission_denied", -8),
            way("copy: bad_page", -9),
            way("copy: bad_copy_arg", -10),
        ],
    ),
    (Fault::CopyAgain, &[way("copy: eagain", -12)]),
    (Fault::Memory, &[way("pages: no memory", 0)]),
    (Fault::Conflict, &[way("transaction: EAGAIN", 0)]),
    (
        Fault::Store,
        &[
            way("xenstore: EINVAL", 0),
            way("xenstore: EACCES", 0),
            way("xenstore: EISDIR", 0),
            way("xenstore: ENOMEM", 0),
            way("xenstore: ENOSPC", 0),
            way("xenstore: EIO", 0),
            way("xenstore: ENOTEMPTY", 0),
            way("xenstore: ENOSYS", 0),
            way("xenstore: EROFS", 0),
            way("xenstore: EBUSY", 0),
            way("xenstore: EAGAIN", 0),
            way("xenstore: EISCONN", 0),
            way("xenstore: E2BIG", 0),
            way("xenstore: EPERM", 0),
            way("xenstore: EQUOTA", 0),
            way("xenstore: ENOBODYKNOWS", 0),
        ],
    ),
    (Fault::StoreSlow, &[way("xenstore: slow", 0)]),
    (Fault::EventTwice, &[way("xenstore: an event twice", 0)]),
    (Fault::Disk, &[way("lower disk: ERROR", -1), way("lower disk: EOPNOTSUPP", -2)]),
    (Fault::DiskTorn, &[way("lower disk: torn", -1)]),
    (Fault::DiskSlow, &[way("lower disk: slow", 0)]),
];

/// What xenstored says to a domain only when it is so: marks of their own, hit where it says them.
pub const SAID: &[&str] = &["xenstore: ENOENT", "xenstore: EEXIST"];

/// The rows of the marks.
pub const ROWS: &[&str] = &{
    const N: usize = {
        let (mut n, mut i) = (0, 0);
        while i < TABLE.len() {
            n += TABLE[i].1.len();
            i += 1;
        }
        n
    };
    let (mut rows, mut n, mut i) = ([""; N], 0, 0);
    while i < TABLE.len() {
        let mut j = 0;
        while j < TABLE[i].1.len() {
            rows[n] = TABLE[i].1[j].row;
            n += 1;
            j += 1;
        }
        i += 1;
    }
    rows
};

impl Fault {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Fault> {
        TABLE.iter().map(|(fault, _)| *fault)
    }

    /// The ways it comes in.
    pub fn ways(self) -> &'static [Verdict] {
        TABLE.iter().find(|(fault, _)| *fault == self).expect("every fault has its line").1
    }

    /// What may happen at any time though nobody does anything wrong: it delays, and nobody sees more of it.
    pub const HARMLESS: [Fault; 6] =
        [Fault::MapAgain, Fault::CopyAgain, Fault::Conflict, Fault::StoreSlow, Fault::EventTwice, Fault::DiskSlow];

    /// What costs a guest that is served at most one request each time.
    pub const FAILING: [Fault; 4] = [Fault::Copy, Fault::Memory, Fault::Disk, Fault::DiskTorn];

    /// What may be met before anybody is served: a lower disk or a control channel is missing, or late.
    pub const AT_BOOT: [Fault; 6] =
        [Fault::AllocUnbound, Fault::Lend, Fault::Memory, Fault::Conflict, Fault::StoreSlow, Fault::EventTwice];
}

#[derive(Clone, Copy, Debug)]
struct Budget {
    left: u32,
    one_in: u64,
    only: Option<&'static str>,
    whose: Option<DomId>,
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
        self.budgets.insert(fault, Budget { left: times, one_in, only: None, whose: None });
    }

    /// One refusal of this kind, of what is done with this domain.
    pub fn allow_with(&mut self, whose: DomId, fault: Fault) {
        self.budgets.insert(fault, Budget { left: 1, one_in: 1, only: None, whose: Some(whose) });
    }

    /// As [`allow`](Faults::allow), always in the way of this row.
    pub fn allow_as(&mut self, fault: Fault, row: &'static str, times: u32, one_in: u64) {
        assert!(fault.ways().iter().any(|way| way.row == row), "{fault:?} never is {row:?}");
        self.budgets.insert(fault, Budget { left: times, one_in, only: Some(row), whose: None });
    }

    /// No fault from now on.
    pub fn end(&mut self) {
        self.budgets.clear();
    }

    /// How many of this kind were injected.
    pub fn injected(&self, fault: Fault) -> u32 {
        self.injected.get(&fault).copied().unwrap_or(0)
    }

    /// How many were injected in all.
    pub fn total(&self) -> u32 {
        self.injected.values().sum()
    }

    /// A number below `end` for who carries a fault out.
    pub fn below(&mut self, end: u64) -> u64 {
        self.random.below(end)
    }

    /// Whether this call is refused, and how.
    pub fn strikes(&mut self, fault: Fault) -> Option<Verdict> {
        self.strikes_with(None, fault)
    }

    /// The same of a call that is about this domain.
    pub fn strikes_with(&mut self, whose: Option<DomId>, fault: Fault) -> Option<Verdict> {
        let budget = self.budgets.get_mut(&fault).filter(|budget| budget.whose.is_none() || budget.whose == whose)?;
        if budget.left == 0 || !self.random.one_in(budget.one_in) {
            return None;
        }
        budget.left -= 1;
        *self.injected.entry(fault).or_default() += 1;
        let ways = fault.ways();
        let verdict = match budget.only {
            Some(row) => ways.iter().find(|way| way.row == row).copied().expect("checked when it was allowed"),
            None => self.random.pick(ways),
        };
        marks::hit(verdict.row);
        journal::note(|| format!("fault: {}", verdict.row));
        Some(verdict)
    }
}

thread_local! {
    /// The world whose product allocates on this thread.
    static WORLD: RefCell<Option<Weak>> = const { RefCell::new(None) };
}

/// Makes memory short by the budgets of this world, on this thread and from now on.
pub(crate) fn scarce_in(world: &World) {
    xen::page::SCARCE.call_once(|| refuses);
    WORLD.set(Some(world.downgrade()));
}

fn refuses(_: usize, by: &'static Location<'static>) -> bool {
    // Guests and backends of the simulation always find memory.
    let product = ["xen/src/", "drivers/src/", "kernel/src/"].iter().any(|home| by.file().contains(home));
    let world = WORLD.with_borrow(|world| world.as_ref().and_then(Weak::upgrade));
    product && world.is_some_and(|world| world.faults().strikes(Fault::Memory).is_some())
}

/// Allows a handful of these faults, of the seed's choice, none of them often enough to keep the product from its work for
/// good. A guest must bear errors if there are others than [harmless](Fault::HARMLESS) ones among them.
pub fn some(world: &World, random: &mut Random, among: &[Fault]) {
    for _ in 0..random.between(1, 4) {
        let fault = random.pick(among);
        // Calls that are rare are hit at once, those of every request now and then.
        let one_in = match fault {
            Fault::Copy | Fault::Disk | Fault::DiskTorn | Fault::DiskSlow | Fault::Store => random.pick(&[5, 20, 60]),
            _ => random.pick(&[1, 2, 5]),
        };
        world.faults().allow(fault, random.between(1, 8) as u32, one_in);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_way_is_a_row_of_its_own_and_comes_up() {
        let rows: BTreeSet<&str> = ROWS.iter().copied().collect();
        assert_eq!(rows.len(), ROWS.len());
        let mut faults = Faults::new(Random::new(3));
        marks::take();
        for fault in Fault::all() {
            faults.allow(fault, 1000, 1);
            while faults.strikes(fault).is_some() {}
            assert_eq!(faults.injected(fault), 1000);
        }
        let hit = marks::take();
        assert!(ROWS.iter().all(|row| hit.contains_key(row)));
    }

    #[test]
    fn a_way_may_be_chosen() {
        let mut faults = Faults::new(Random::new(3));
        faults.allow_as(Fault::Store, "xenstore: EIO", 5, 1);
        let words: Vec<&str> = std::iter::from_fn(|| faults.strikes(Fault::Store)).map(|way| way.word()).collect();
        assert_eq!(words, ["EIO"; 5]);
    }
}
