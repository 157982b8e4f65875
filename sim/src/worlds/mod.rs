//! Whole worlds, each decided by one seed: what `make sim` plays by the thousand and a failure replays.
//!
//! # Layout
//! - [`honest`], [`clumsy`], [`hostile`]: what happens in a world of each kind
//! - [`liar`]: some of the clumsy ones: a lower backend that lies
//! - [`slips`]: some of the clumsy ones: frontends that write their keys late, twice, or half
//! - [`vchan`]: some of the hostile ones: clients of vchans
//! - [`messages`]: some of the clumsy ones: clients of the control plane
//! - [`report`]: what a world was made of, to be added up

pub mod clumsy;
pub mod honest;
pub mod hostile;
pub mod liar;
pub mod messages;
pub mod report;
pub mod slips;
pub mod vchan;

pub use report::Report;

use crate::marks;

/// Who the guests of a world are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They keep every rule, as Linux, OVMF and mini-os do.
    Honest,
    /// They are late, twice, out of order or half done, as buggy drivers and toolstacks are.
    Clumsy,
    /// They break every rule that there is, nearly valid first.
    Hostile,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Honest, Kind::Clumsy, Kind::Hostile];

    /// The kind that a seed of a campaign plays: a third each.
    pub fn of(seed: u64) -> Kind {
        Kind::ALL[(seed % 3) as usize]
    }
}

/// Plays one world from its boot to its end, with every oracle; what is wrong is a panic.
pub fn play(kind: Kind, seed: u64) -> Report {
    marks::take();
    let mut report = match kind {
        Kind::Honest => honest::play(seed),
        // Every second one, of seeds that are 1 more than a multiple of 3.
        Kind::Clumsy if seed.is_multiple_of(2) => liar::play(seed),
        // Every fourth of the others.
        Kind::Clumsy if seed % 8 == 1 => messages::play(seed),
        Kind::Clumsy if seed % 8 == 3 => slips::play(seed),
        Kind::Clumsy => clumsy::play(seed),
        // Every eighth one.
        Kind::Hostile if seed.is_multiple_of(8) => vchan::play(seed),
        Kind::Hostile => hostile::play(seed),
    };
    report.worlds = 1;
    for (mark, times) in marks::take() {
        *report.marks.entry(mark.into()).or_default() += times;
    }
    report
}
