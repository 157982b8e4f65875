//! The backend's handshake: what to do about a guest's disk, given what its nodes say now.
//!
//! Every deviation seen in the field has its line here: OVMF, GRUB and mini-os go from 1 to 4 without waiting and read
//! a backend that is further than they expect as a failure; Linux after a resume is at 3 before we said anything; a
//! crash kernel starts at 1 without having closed; libxl writes 5 into *our* node to ask for a close, sometimes 6.

use super::State;

/// How far we are; changed by the notes alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// We have said nothing yet.
    Fresh,
    /// We have said what we offer, and InitWait.
    Waiting,
    /// We serve rings, and have said Connected.
    Connected,
    /// We have said Closing; the rings, if there are any, are still served.
    Closing,
    /// We hold nothing any more and have said Closed.
    Closed,
}

/// What the nodes say at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Our own `state`; `None` if our directory is gone.
    pub own: Option<State>,
    /// The frontend's `state`; `None` if its directory or the node is gone, or we may not read it.
    pub front: Option<State>,
    /// Our `online` is 1: the device outlives a close.
    pub online: bool,
}

/// The one thing to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Do {
    /// Wait for the next change.
    Nothing,
    /// Write what we offer, then say InitWait; note [`Back::published`].
    Publish,
    /// Read the frontend's keys, take its rings, write the disk's properties, say Connected; note
    /// [`Back::connected`].
    Connect,
    /// Let go of the rings, if there are any, then as [`Do::Connect`].
    Reconnect,
    /// The directory was made anew, or the frontend began anew: let go of the rings without a word, then as
    /// [`Do::Publish`].
    Restart,
    /// Say Closing and go on serving; note [`Back::closing`].
    AnswerClosing,
    /// Finish what is in flight, let go of the rings, say Closed; note [`Back::closed`].
    Close,
    /// As [`Do::Close`], then delete our own directory and forget the device.
    Remove,
    /// Our directory is gone: let go of the rings at once, write nothing, forget the device.
    Forget,
}

/// The backend's end of one device.
#[derive(Clone, Debug)]
pub struct Back {
    phase: Phase,
    /// What the frontend said when last looked at.
    front: Option<State>,
    /// All that the frontend said since our last note, and what it said at that time.
    heard: Heard,
}

impl Default for Back {
    fn default() -> Self {
        Back::new()
    }
}

impl Back {
    /// A device that we have not said anything about.
    pub const fn new() -> Self {
        Back { phase: Phase::Fresh, front: None, heard: Heard(0) }
    }

    /// How far we are.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What to do, given what the nodes say now. Only what the frontend said is remembered.
    pub fn step(&mut self, seen: Seen) -> Do {
        let Some(own) = seen.own else { return Do::Forget };
        self.front = seen.front;
        self.heard.add(seen.front);
        let gone = matches!(seen.front, None | Some(State::Closed));
        let begun = own == State::Initialising && self.phase != Phase::Fresh;
        if gone && !seen.online {
            return Do::Remove;
        }
        if begun {
            return Do::Restart;
        }
        // The toolstack may close what nobody uses without asking the frontend.
        let forced = own == State::Closed && self.phase != Phase::Closed;
        let asked = own == State::Closing && self.phase != Phase::Closing && !self.served();
        if forced || asked {
            return leave(seen);
        }
        match self.phase {
            Phase::Fresh => Do::Publish,
            Phase::Waiting => self.waiting(seen),
            Phase::Connected => self.connected_to(seen, own),
            Phase::Closing => self.closing_to(seen),
            Phase::Closed => self.closed_to(seen),
        }
    }

    /// We have said InitWait.
    pub fn published(&mut self) {
        self.enter(Phase::Waiting);
    }

    /// We serve the rings and have said Connected.
    pub fn connected(&mut self) {
        self.enter(Phase::Connected);
    }

    /// We have said Closing; also to be noted when we gave up by ourselves. The frontend has to answer with Closed.
    pub fn closing(&mut self) {
        self.enter(Phase::Closing);
    }

    /// We have let go of everything and have said Closed; also to be noted when we did so by ourselves. The same
    /// frontend state will not open the device again: the frontend has to move first.
    pub fn closed(&mut self) {
        self.enter(Phase::Closed);
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.heard = Heard(0);
        self.heard.add(self.front);
    }

    /// There are rings, and a frontend at their other end that can still close them in order.
    fn served(&self) -> bool {
        self.phase == Phase::Connected && matches!(self.front, Some(State::Connected | State::Closing))
    }

    fn waiting(&self, seen: Seen) -> Do {
        match seen.front {
            Some(State::Initialised | State::Connected) => Do::Connect,
            Some(State::Closing) => Do::AnswerClosing,
            Some(State::Closed) => Do::Close,
            // Gone while online: a destroyed guest, whose toolstack will say so in a moment.
            _ => Do::Nothing,
        }
    }

    fn connected_to(&self, seen: Seen, own: State) -> Do {
        match seen.front {
            None | Some(State::Closed) => Do::Close,
            Some(State::Closing) => Do::AnswerClosing,
            Some(State::Connected) if own == State::Closing => Do::AnswerClosing,
            Some(State::Initialised) if self.heard.has(State::Connected) => Do::Reconnect,
            Some(State::Initialising) => Do::Restart,
            _ => Do::Nothing,
        }
    }

    /// The frontend may finish closing, or begin anew without our having seen the end.
    fn closing_to(&self, seen: Seen) -> Do {
        let anew = match seen.front {
            None | Some(State::Closed) => return Do::Close,
            Some(State::Initialising) => Do::Restart,
            Some(State::Initialised) => Do::Reconnect,
            Some(State::Connected) if self.heard.has(State::Closing) => Do::Reconnect,
            _ => return Do::Nothing,
        };
        if seen.online { anew } else { Do::Remove }
    }

    /// The frontend may open the device again, if it has moved since we closed.
    fn closed_to(&self, seen: Seen) -> Do {
        if !seen.online {
            return Do::Remove;
        }
        let moved = match seen.front {
            Some(State::Initialising) => self.heard.more_than(State::Initialising),
            Some(State::Initialised) => self.heard.a_new_beginning() || self.heard.has(State::Connected),
            Some(State::Connected) => self.heard.a_new_beginning(),
            _ => false,
        };
        if moved { Do::Publish } else { Do::Nothing }
    }
}

/// The end of a device: for good, or until the frontend comes back.
fn leave(seen: Seen) -> Do {
    if seen.online { Do::Close } else { Do::Remove }
}

/// A set of frontend states; one bit each, and one for "gone".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heard(u16);

impl Heard {
    const GONE: u16 = 1 << 15;

    const fn bit(front: Option<State>) -> u16 {
        match front {
            None => Self::GONE,
            Some(state) => 1 << state as u16,
        }
    }

    fn add(&mut self, front: Option<State>) {
        self.0 |= Self::bit(front);
    }

    fn has(self, state: State) -> bool {
        self.0 & Self::bit(Some(state)) != 0
    }

    fn more_than(self, state: State) -> bool {
        self.0 & !Self::bit(Some(state)) != 0
    }

    /// The frontend was gone, at its start, or at its end: what it says now is not left over from before.
    fn a_new_beginning(self) -> bool {
        let ends = [None, Some(State::Initialising), Some(State::Closing), Some(State::Closed)];
        ends.into_iter().any(|front| self.0 & Self::bit(front) != 0)
    }
}
