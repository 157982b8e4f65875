//! The handshakes against the other side's states and the toolstack's, in any order.

use protocol::xenbus::{Back, Do, Front, FrontDo, FrontPhase, FrontSeen, Phase, Seen, State};

use crate::random::Random;

/// Steps that a machine may take while nothing of what it sees is changed by others.
const SETTLED_AFTER: u32 = 4;

/// A state, or that there is none.
fn state(tape: &mut Random) -> Option<State> {
    let text = tape.pick(&["-", "0", "1", "2", "3", "4", "5", "6", "7", "8", "junk"]);
    (text != "-").then(|| State::parse(text))
}

/// Our end of a guest's disk.
struct Device {
    machine: Back,
    own: Option<State>,
    /// There are rings.
    holds: bool,
    /// We gave up, and the frontend has said this ever since.
    refused: Option<Option<State>>,
}

/// A frontend and a toolstack.
pub fn handshake(bytes: &[u8]) {
    let mut tape = Random::of(bytes);
    let mut device = Device { machine: Back::new(), own: Some(State::Initialising), holds: false, refused: None };
    while !tape.is_spent() {
        let front = state(&mut tape);
        let online = !tape.one_in(6);
        match tape.below(24) {
            0 => device.own = Some(State::Closing),
            1 => device.own = Some(State::Closed),
            2 => device.own = Some(State::Initialising),
            3 => device.own = state(&mut tape),
            _ => {}
        }
        let fails = tape.one_in(8);
        if device.refused.is_some_and(|said| said != front) {
            device.refused = None;
        }
        let mut steps = 0;
        while device.step(Seen { own: device.own, front, online }, fails) {
            steps += 1;
            assert!(steps <= SETTLED_AFTER, "no end: front {front:?}, online {online}, now at {:?}", device.machine);
        }
        if device.own.is_none() {
            return;
        }
    }
}

impl Device {
    /// Does one thing; false if there is nothing to do until something changes, or ever.
    fn step(&mut self, seen: Seen, fails: bool) -> bool {
        let what = self.machine.step(seen);
        assert_eq!(self.machine.step(seen), what, "a step is no act");
        match what {
            Do::Nothing => return false,
            Do::Forget => {
                assert_eq!(seen.own, None);
                return false;
            }
            Do::Remove => {
                assert!(!seen.online, "removes a device that is to outlive its close");
                self.own = None;
                return false;
            }
            Do::Publish | Do::Restart => {
                assert!(what == Do::Restart || !self.holds, "offers anew while it serves");
                self.holds = false;
                if fails {
                    return self.refuse(seen.front);
                }
                (self.own, self.refused) = (Some(State::InitWait), None);
                self.machine.published();
            }
            Do::Connect | Do::Reconnect => {
                assert!(what == Do::Reconnect || !self.holds, "connects twice");
                assert!(matches!(seen.front, Some(State::Initialised | State::Connected)), "to whom?");
                assert_eq!(self.refused, None, "tries for free what it gave up");
                self.holds = false;
                if fails {
                    return self.refuse(seen.front);
                }
                (self.own, self.holds) = (Some(State::Connected), true);
                self.machine.connected();
            }
            Do::AnswerClosing => {
                assert!(self.machine.phase() != Phase::Closing, "says it twice");
                self.own = Some(State::Closing);
                self.machine.closing();
            }
            Do::Close => {
                (self.own, self.holds) = (Some(State::Closed), false);
                self.machine.closed();
            }
        }
        assert!(!(self.holds && matches!(self.machine.phase(), Phase::Closed | Phase::Fresh | Phase::Waiting)));
        true
    }

    /// What a target that cannot be opened or a ring that cannot be mapped comes to.
    fn refuse(&mut self, front: Option<State>) -> bool {
        self.refused = Some(front);
        if self.machine.phase() == Phase::Connected {
            self.own = Some(State::Closing);
            self.machine.closing();
        } else {
            self.own = Some(State::Closed);
            self.machine.closed();
        }
        true
    }
}

/// A lower backend and a toolstack.
pub fn handshake_lower(bytes: &[u8]) {
    let mut tape = Random::of(bytes);
    let (mut machine, mut own, mut holds) = (Front::new(), Some(State::Initialising), false);
    while !tape.is_spent() {
        let back = state(&mut tape);
        match tape.below(16) {
            0 => own = None,
            1 => own = Some(State::Initialising),
            2 => own = state(&mut tape),
            _ => {}
        }
        let fails = tape.one_in(8);
        let mut steps = 0;
        loop {
            let seen = FrontSeen { own, back };
            let what = machine.step(seen);
            match what {
                FrontDo::Nothing | FrontDo::Resized => {
                    assert!(what == FrontDo::Nothing || machine.phase() == FrontPhase::Connected && holds);
                    break;
                }
                FrontDo::Connect => {
                    assert!(!holds, "lays a second ring out");
                    assert!(own.is_some() && back.is_some(), "for whom?");
                    if fails {
                        own = own.map(|_| State::Closed);
                        machine.closed();
                    } else {
                        (own, holds) = (Some(State::Initialised), true);
                        machine.offered();
                    }
                }
                FrontDo::Connected => {
                    assert!(holds && machine.phase() == FrontPhase::Offered && back == Some(State::Connected));
                    own = Some(State::Connected);
                    machine.connected();
                }
                FrontDo::Close => {
                    holds = false;
                    own = own.map(|_| State::Closed);
                    machine.closed();
                }
                FrontDo::Restart => {
                    assert!(holds && own == Some(State::Initialising), "a new directory while it used the old one");
                    holds = false;
                    machine.fresh();
                }
            }
            assert_eq!(holds, matches!(machine.phase(), FrontPhase::Offered | FrontPhase::Connected));
            steps += 1;
            assert!(steps <= SETTLED_AFTER, "no end: backend {back:?}, ours {own:?}, now at {machine:?}");
        }
    }
}
