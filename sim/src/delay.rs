//! How long a guest waits for an answer, by what the product did meanwhile and by the world's clock.

use std::fmt;

use xen::port::Instant;

use crate::world::World;

/// What the domain under test did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effort {
    /// Turns it had.
    pub turns: u64,
    /// Touches of pages and hypercalls in them: what stands for time of a processor.
    pub touches: u64,
}

impl Effort {
    pub(crate) fn add(&mut self, touches: u64) {
        self.turns += 1;
        self.touches += touches;
    }

    fn since(self, then: Effort) -> Effort {
        Effort { turns: self.turns - then.turns, touches: self.touches - then.touches }
    }

    fn max(self, other: Effort) -> Effort {
        Effort { turns: self.turns.max(other.turns), touches: self.touches.max(other.touches) }
    }
}

/// When something was asked.
#[derive(Clone, Copy)]
pub struct Moment {
    now: Instant,
    all: Effort,
    alone: Effort,
}

impl Moment {
    /// Now.
    pub fn of(world: &World) -> Self {
        Moment { now: world.now(), all: world.effort(), alone: world.effort_alone() }
    }
}

/// From question to answer, or the most of many, each figure by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delay {
    /// What the product did.
    pub all: Effort,
    /// What it did of that in turns at whose begin no lower disk owed it an answer: nobody else is to blame for those.
    pub alone: Effort,
    /// The world's time, which passes only while all sleep.
    pub nanos: u64,
}

impl Delay {
    /// From then to now.
    pub fn since(world: &World, then: Moment) -> Self {
        Delay {
            all: world.effort().since(then.all),
            alone: world.effort_alone().since(then.alone),
            nanos: world.now().0 - then.now.0,
        }
    }

    /// The larger of both.
    pub fn max(self, other: Delay) -> Self {
        Delay { all: self.all.max(other.all), alone: self.alone.max(other.alone), nanos: self.nanos.max(other.nanos) }
    }
}

impl fmt::Display for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Delay { all, alone, nanos } = self;
        write!(f, "{} turns and {} touches, ", all.turns, all.touches)?;
        write!(f, "{} and {} of them alone, and {} us", alone.turns, alone.touches, nanos / 1000)
    }
}
