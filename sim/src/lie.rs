//! The lies of a lower backend: what no honest one does on its ring, in its directory, or with our pages.
//!
//! The product cannot make good what a disk does to itself. It must not fall over, must not give one guest another's bytes
//! or make others wait, and must let go.

use crate::random::Random;

/// One lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Answers another request that is under way.
    WrongId,
    /// Answers what was never asked.
    UnknownId,
    /// Answers twice.
    Twice,
    /// Answers with another operation.
    WrongOp,
    /// Says there are more answers than requests.
    TooMany,
    /// Takes answers back.
    Backward,
    /// A status that is none.
    OddStatus,
    /// Writes into a page after it was answered.
    LateWrite,
    /// Closes its port, and so hears and says nothing any more.
    ClosePort,
    /// Its directory is gone.
    NoDirectory,
    /// A size that is no size.
    Sectors(&'static str),
    /// Blocks that are no blocks.
    SectorSize(&'static str),
    /// Features that are no features.
    Features(&'static str),
    /// A state out of order.
    State(u32),
}

const GARBAGE: [&str; 6] = ["0", "18446744073709551615", "", "many", "-1", "99999999999999999999999"];

impl Lie {
    /// Its row among the marks.
    pub fn mark(self) -> &'static str {
        match self {
            Lie::WrongId => "the wrong id",
            Lie::UnknownId => "an id never asked",
            Lie::Twice => "the same answer twice",
            Lie::WrongOp => "the wrong operation",
            Lie::TooMany => "answers ahead of requests",
            Lie::Backward => "answers taken back",
            Lie::OddStatus => "an odd status",
            Lie::LateWrite => "a write after the answer",
            Lie::ClosePort => "a closed port",
            Lie::NoDirectory => "no directory",
            Lie::Sectors(_) => "garbage for a size",
            Lie::SectorSize(_) => "garbage for a sector size",
            Lie::Features(_) => "garbage for features",
            Lie::State(_) => "a state out of order",
        }
    }

    /// All rows.
    pub const MARKS: &[&str] = &[
        "the wrong id",
        "an id never asked",
        "the same answer twice",
        "the wrong operation",
        "answers ahead of requests",
        "answers taken back",
        "an odd status",
        "a write after the answer",
        "a closed port",
        "no directory",
        "garbage for a size",
        "garbage for a sector size",
        "garbage for features",
        "a state out of order",
    ];

    /// One of all.
    pub fn any(random: &mut Random) -> Self {
        let garbage = random.pick(&GARBAGE);
        let state = random.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        random.pick(&[
            Lie::WrongId,
            Lie::UnknownId,
            Lie::Twice,
            Lie::WrongOp,
            Lie::TooMany,
            Lie::Backward,
            Lie::OddStatus,
            Lie::LateWrite,
            Lie::ClosePort,
            Lie::NoDirectory,
            Lie::Sectors(garbage),
            Lie::SectorSize(garbage),
            Lie::Features(garbage),
            Lie::State(state),
        ])
    }

    /// Whether it is told by an answer on the ring.
    pub fn is_an_answer(self) -> bool {
        use Lie::*;
        matches!(self, WrongId | UnknownId | Twice | WrongOp | TooMany | Backward | OddStatus | LateWrite)
    }
}
