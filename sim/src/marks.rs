//! Coverage marks: the places a run must have come by, so that a simulator that no longer reaches them is found out.
//!
//! Every mark is a row of [`ROWS`]; an actor or a fault that does what the row says calls [`hit`]. A row that a whole
//! campaign never hits is a failure of the campaign, and a name that is no row is a panic.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::hostile::rows;

/// Every row: a group, and its rows. The groups of hostile frontends follow the list in docs/hostile.md.
pub const ROWS: &[(&str, &[&str])] = &[
    ("faults", crate::fault::ROWS),
    ("what is so", crate::fault::SAID),
    ("full rings", RINGS),
    ("lies of a lower backend", crate::lie::Lie::MARKS),
    ("handshakes", HANDSHAKES),
    ("vCPUs", VCPUS),
    ("slip", crate::frontend::slips::Slip::MARKS),
    ("ring", rows::Ring::MARKS),
    ("request, x86_64", rows::Ask::MARKS[0]),
    ("request, x86_32", rows::Ask::MARKS[1]),
    ("request, no protocol", rows::Ask::MARKS[2]),
    ("change", rows::Change::MARKS),
    ("grant", rows::Grant::MARKS),
    ("kept", rows::Keep::MARKS),
    ("key", rows::Key::MARKS),
    ("state", rows::Step::MARKS),
    ("pairs of states", rows::PAIRS.as_flattened()),
    ("load", rows::Load::MARKS),
    ("vchan", &crate::vchan::caller::ROWS),
    ("messages", crate::worlds::messages::ROWS),
];

/// Rings that had no room for what was to go on them.
const RINGS: &[&str] = &["frontend ring full", "lower ring full"];

/// Several vCPUs of the product.
const VCPUS: &[&str] = &["another vCPU within a turn"];

/// Ways to a connection, and shapes of one.
const HANDSHAKES: &[&str] = &[
    "Linux connects",
    "OVMF jumps to Connected",
    "GRUB jumps and waits for us to leave Closed",
    "resumed, from nothing to Initialised",
    "firmware, then Linux",
    "kexec: reconnected with requests in flight",
    "migration on one host: old and new at once",
    "a ring of 1 page",
    "a ring of 2 pages",
    "a ring of 4 pages",
    "a ring of 8 pages",
    "a ring of 16 pages",
    "laid out by x86_64",
    "laid out by x86_32",
    "several rings",
    "indirect requests",
    "frontend page kept",
];

thread_local! {
    static HITS: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
}

fn is_row(name: &str) -> bool {
    ROWS.iter().any(|(_, rows)| rows.contains(&name))
}

/// This run came by.
pub fn hit(name: &'static str) {
    assert!(is_row(name), "{name:?} is no row of the marks");
    HITS.with_borrow_mut(|hits| *hits.entry(name).or_default() += 1);
}

/// How often each row was hit on this thread since the last call.
pub fn take() -> BTreeMap<&'static str, u64> {
    HITS.take()
}

/// The rows that are not among these hits.
pub fn missing(hits: &BTreeMap<&'static str, u64>) -> Vec<&'static str> {
    let rows = ROWS.iter().flat_map(|(_, rows)| rows.iter().copied());
    rows.filter(|row| !hits.contains_key(row)).collect()
}
