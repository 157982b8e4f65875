//! The frontend's handshake: what to do about a disk below us, given what its nodes say now.

use super::State;

/// How far we are; changed by the notes alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontPhase {
    /// We have said nothing: our node is as the toolstack made it.
    Fresh,
    /// We have written our ring's keys and said Initialised.
    Offered,
    /// We use the disk and have said Connected.
    Connected,
    /// We have let go and said Closed.
    Closed,
}

/// What the nodes say at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontSeen {
    /// Our own `state`; `None` if our directory is gone.
    pub own: Option<State>,
    /// The backend's `state`; `None` if its directory or the node is gone, or we may not read it.
    pub back: Option<State>,
}

/// The one thing to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontDo {
    /// Wait for the next change.
    Nothing,
    /// Read what the backend offers, lay out a ring, write its keys, say Initialised; note [`Front::offered`].
    Connect,
    /// Read the disk's properties, say Connected; note [`Front::connected`].
    Connected,
    /// The backend may have written Connected again: read `sectors` again. Comes with every step while connected,
    /// since a node written twice with one value looks the same; step once per watch event of the backend's node.
    Resized,
    /// The backend closes, is gone, or forgot us: finish or fail what is in flight, take the ring back, say Closing,
    /// then Closed (nothing, if our directory is gone); note [`Front::closed`].
    Close,
    /// Our directory was made anew while we used the old one: take the ring back and write nothing; note
    /// [`Front::fresh`], and step again.
    Restart,
}

/// The frontend's end of one device.
#[derive(Clone, Debug)]
pub struct Front {
    phase: FrontPhase,
}

impl Default for Front {
    fn default() -> Self {
        Front::new()
    }
}

impl Front {
    /// A device that we have not said anything about.
    pub const fn new() -> Self {
        Front { phase: FrontPhase::Fresh }
    }

    /// How far we are.
    pub fn phase(&self) -> FrontPhase {
        self.phase
    }

    /// What to do, given what the nodes say now.
    pub fn step(&self, seen: FrontSeen) -> FrontDo {
        let begun = seen.own == Some(State::Initialising);
        match self.phase {
            _ if seen.own.is_none() => self.let_go(),
            FrontPhase::Fresh => starting(seen.back),
            FrontPhase::Closed if begun => starting(seen.back),
            FrontPhase::Closed => FrontDo::Nothing,
            _ if begun => FrontDo::Restart,
            FrontPhase::Offered => match seen.back {
                Some(State::Connected) => FrontDo::Connected,
                None | Some(State::Closing | State::Closed) => FrontDo::Close,
                _ => FrontDo::Nothing,
            },
            FrontPhase::Connected => match seen.back {
                Some(State::Connected) => FrontDo::Resized,
                None | Some(State::Closing | State::Closed) => FrontDo::Close,
                // The backend began anew and has forgotten our ring: nothing will answer what is in flight.
                Some(State::Initialising | State::InitWait) => FrontDo::Close,
                _ => FrontDo::Nothing,
            },
        }
    }

    /// We have said Initialised.
    pub fn offered(&mut self) {
        self.phase = FrontPhase::Offered;
    }

    /// We have said Connected.
    pub fn connected(&mut self) {
        self.phase = FrontPhase::Connected;
    }

    /// We have taken the ring back and have said Closed; also to be noted when we gave up by ourselves.
    pub fn closed(&mut self) {
        self.phase = FrontPhase::Closed;
    }

    /// We have taken the ring back without a word.
    pub fn fresh(&mut self) {
        self.phase = FrontPhase::Fresh;
    }

    fn let_go(&self) -> FrontDo {
        match self.phase {
            FrontPhase::Fresh | FrontPhase::Closed => FrontDo::Nothing,
            FrontPhase::Offered | FrontPhase::Connected => FrontDo::Close,
        }
    }
}

/// Nothing is said yet, by us.
fn starting(back: Option<State>) -> FrontDo {
    match back {
        Some(State::InitWait | State::Initialised | State::Connected) => FrontDo::Connect,
        Some(State::Closing | State::Closed) => FrontDo::Close,
        // Gone: a toolstack that makes our directory first will make the other next.
        _ => FrontDo::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the handshake: one letter for each state of the backend (gone, 0 to 8).
    ///
    /// `.` Nothing, O Connect, C Connected, R Resized, X Close, S Restart.
    #[rustfmt::skip]
    fn row(phase: FrontPhase, own: Option<State>) -> &'static str {
        use FrontPhase::*;
        match (phase, own) {
            (Fresh, None) => "..........",
            (Offered | Connected, None) => "XXXXXXXXXX",
            (Offered | Connected, Some(State::Initialising)) => "SSSSSSSSSS",
            (Closed, Some(State::Initialising)) => "...OOOXX..",
            //                 -012345678
            (Fresh, _)     => "...OOOXX..",
            (Offered, _)   => "X....CXX..",
            (Connected, _) => "X.XX.RXX..",
            (Closed, _)    => "..........",
        }
    }

    #[test]
    fn the_whole_table() {
        let states = || core::iter::once(None).chain(State::ALL.into_iter().map(Some));
        for phase in [FrontPhase::Fresh, FrontPhase::Offered, FrontPhase::Connected, FrontPhase::Closed] {
            for own in states() {
                for (back, letter) in states().zip(row(phase, own).bytes()) {
                    let expected = match letter {
                        b'.' => FrontDo::Nothing,
                        b'O' => FrontDo::Connect,
                        b'C' => FrontDo::Connected,
                        b'R' => FrontDo::Resized,
                        b'X' => FrontDo::Close,
                        b'S' => FrontDo::Restart,
                        other => unreachable!("{other}"),
                    };
                    assert_eq!(Front { phase }.step(FrontSeen { own, back }), expected, "{phase:?} {own:?} {back:?}");
                }
            }
        }
    }

    #[test]
    fn a_disk_comes_grows_goes_and_comes_again() {
        let mut front = Front::new();
        let step = |front: &Front, own, back| front.step(FrontSeen { own: Some(own), back });
        assert_eq!(step(&front, State::Initialising, Some(State::Initialising)), FrontDo::Nothing);
        assert_eq!(step(&front, State::Initialising, Some(State::InitWait)), FrontDo::Connect);
        front.offered();
        assert_eq!(step(&front, State::Initialised, Some(State::InitWait)), FrontDo::Nothing);
        assert_eq!(step(&front, State::Initialised, Some(State::Connected)), FrontDo::Connected);
        front.connected();
        assert_eq!(step(&front, State::Connected, Some(State::Connected)), FrontDo::Resized);
        assert_eq!(step(&front, State::Connected, Some(State::Closing)), FrontDo::Close);
        front.closed();
        assert_eq!(step(&front, State::Closed, None), FrontDo::Nothing);
        assert_eq!(step(&front, State::Initialising, Some(State::InitWait)), FrontDo::Connect);
        front.offered();
        assert_eq!(step(&front, State::Initialising, Some(State::InitWait)), FrontDo::Restart);
        front.fresh();
        assert_eq!(front.phase(), FrontPhase::Fresh);
        assert_eq!(step(&front, State::Initialising, Some(State::InitWait)), FrontDo::Connect);
    }
}
