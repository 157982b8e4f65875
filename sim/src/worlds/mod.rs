//! Whole worlds, each decided by one seed: what `make sim` plays by the thousand and a failure replays.

pub mod hostile;

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
    /// The kind that a seed of a campaign plays: a third each.
    pub fn of(seed: u64) -> Kind {
        [Kind::Honest, Kind::Clumsy, Kind::Hostile][(seed % 3) as usize]
    }
}
