//! The xenbus handshakes (`io/xenbus.h`, the diagrams of `io/blkif.h`) as step functions.
//!
//! Watches coalesce, so neither side may count on seeing every state of the other. Both machines therefore look at the
//! present values only, answer with one thing to do, and are told by a note when it is done: [`Back::step`] and then
//! [`Back::published`], [`Back::connected`] and so on. A step that is not followed by a note may be repeated.
//!
//! - `xenbus/back.rs`: our side of a guest's disk
//! - `xenbus/front.rs`: our side of a disk below us

mod back;
mod front;

pub use back::{Back, Do, Phase, Seen};
pub use front::{Front, FrontDo, FrontPhase, FrontSeen};

/// `enum xenbus_state`: what a side says in its node `state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// 0: nothing that makes sense.
    Unknown = 0,
    /// 1: as the toolstack makes it.
    Initialising = 1,
    /// 2: a backend has said what it offers.
    InitWait = 2,
    /// 3: a frontend has said where its ring is.
    Initialised = 3,
    /// 4.
    Connected = 4,
    /// 5: asks the other side to close.
    Closing = 5,
    /// 6.
    Closed = 6,
    /// 7: not used by block devices.
    Reconfiguring = 7,
    /// 8: not used by block devices.
    Reconfigured = 8,
}

impl State {
    /// All states, in the order of their numbers.
    pub const ALL: [State; 9] = [
        State::Unknown,
        State::Initialising,
        State::InitWait,
        State::Initialised,
        State::Connected,
        State::Closing,
        State::Closed,
        State::Reconfiguring,
        State::Reconfigured,
    ];

    /// Reads a node's text, one digit from 0 to 8; anything else is [`State::Unknown`]. A node that is not there or
    /// cannot be read is no state at all: `None` where one is asked for.
    pub fn parse(text: impl AsRef<[u8]>) -> State {
        match text.as_ref() {
            [digit @ b'0'..=b'8'] => State::ALL[usize::from(digit - b'0')],
            _ => State::Unknown,
        }
    }

    /// The text for the node.
    pub const fn text(self) -> &'static str {
        match self {
            State::Unknown => "0",
            State::Initialising => "1",
            State::InitWait => "2",
            State::Initialised => "3",
            State::Connected => "4",
            State::Closing => "5",
            State::Closed => "6",
            State::Reconfiguring => "7",
            State::Reconfigured => "8",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        for (number, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, number);
            assert_eq!(State::parse(state.text()), state);
        }
        // io/xenbus.h
        assert_eq!(State::parse("2"), State::InitWait);
        assert_eq!(State::parse("6"), State::Closed);
        for nonsense in ["", "9", "-1", "04", "4 ", "4\0", "abc", "44444444444444444444"] {
            assert_eq!(State::parse(nonsense), State::Unknown, "{nonsense:?}");
        }
    }
}
