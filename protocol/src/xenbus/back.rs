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
        // The toolstack may close what nobody uses without asking the frontend. (A Closed that we find at the start was
        // written by us, in an earlier life of the same directory.)
        let left_over = self.phase == Phase::Closed || (self.phase == Phase::Fresh && seen.online);
        let forced = own == State::Closed && !left_over;
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

    /// We have said Closing; also to be noted when we gave up by ourselves, with or without rings. The same frontend
    /// state will not connect again: the frontend has to answer with Closed, or to begin anew.
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
        match seen.front {
            None | Some(State::Closed) => Do::Close,
            // Nobody is served, and nobody shall be.
            Some(State::Initialising | State::Initialised) if !seen.online => Do::Remove,
            Some(State::Connected) if !seen.online && self.heard.anew(seen.front) => Do::Remove,
            Some(State::Initialising) if self.heard.anew(seen.front) => Do::Restart,
            Some(State::Initialised | State::Connected) if self.heard.anew(seen.front) => Do::Reconnect,
            _ => Do::Nothing,
        }
    }

    /// The frontend may open the device again.
    fn closed_to(&self, seen: Seen) -> Do {
        match seen.front {
            _ if !seen.online => Do::Remove,
            Some(State::Initialising | State::Initialised | State::Connected) if self.heard.anew(seen.front) => {
                Do::Publish
            }
            _ => Do::Nothing,
        }
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

    /// Whether `now` is not left over from before we gave the frontend up: it moved in between, back to its start,
    /// through its end, or behind what it had reached. Without this a frontend that cannot be served would be tried
    /// again and again.
    fn anew(self, now: Option<State>) -> bool {
        let before = self.0 & !Self::bit(now);
        let ends = [None, Some(State::Initialising), Some(State::Closing), Some(State::Closed)];
        let ended = ends.into_iter().any(|end| before & Self::bit(end) != 0);
        match now {
            Some(State::Initialising) => before != 0,
            Some(State::Initialised) => ended || self.has(State::Connected),
            _ => ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    const PHASES: [Phase; 5] = [Phase::Fresh, Phase::Waiting, Phase::Connected, Phase::Closing, Phase::Closed];

    /// Gone, then 0 to 8.
    fn fronts() -> impl Iterator<Item = Option<State>> + Clone {
        core::iter::once(None).chain(State::ALL.into_iter().map(Some))
    }

    /// A device in `phase`, entered when the frontend said `before`.
    fn device(phase: Phase, before: Option<State>) -> Back {
        let mut back = Back { phase, front: before, heard: Heard(0) };
        back.enter(phase);
        back
    }

    fn seen(own: State, front: Option<State>, online: bool) -> Seen {
        Seen { own: Some(own), front, online }
    }

    /// The table of the handshake: one letter for each state of the frontend (gone, 0 to 8), which has not changed
    /// since we entered the phase.
    ///
    /// `.` Nothing, P Publish, C Connect, R Reconnect, S Restart, A AnswerClosing, X Close, D Remove.
    #[rustfmt::skip]
    fn row(phase: Phase, own: State, online: bool) -> &'static str {
        use Phase::*;
        match (phase, own, online) {
            // We are asked to close, or were closed.
            (Fresh | Waiting | Closed, State::Closing, true) => "XXXXXXXXXX",
            (Fresh | Waiting | Closed, State::Closing, false) => "DDDDDDDDDD",
            (Connected, State::Closing, true) => "XXXXXAAXXX",
            (Connected, State::Closing, false) => "DDDDDAADDD",
            (Waiting | Connected | Closing, State::Closed, true) => "XXXXXXXXXX",
            (Fresh | Waiting | Connected | Closing, State::Closed, false) => "DDDDDDDDDD",
            // The directory is a new one.
            (Waiting | Connected | Closing | Closed, State::Initialising, true) => "SSSSSSSSSS",
            (Waiting | Connected | Closing | Closed, State::Initialising, false) => "DSSSSSSDSS",
            //                        -012345678
            (Fresh, _, true)      => "PPPPPPPPPP",
            (Fresh, _, false)     => "DPPPPPPDPP",
            (Waiting, _, true)    => "....CCAX..",
            (Waiting, _, false)   => "D...CCAD..",
            (Connected, _, true)  => "X.S...AX..",
            (Connected, _, false) => "D.S...AD..",
            (Closing, _, true)    => "X......X..",
            (Closing, _, false)   => "D.D.D..D..",
            (Closed, _, true)     => "..........",
            (Closed, _, false)    => "DDDDDDDDDD",
        }
    }

    /// Where the frontend's earlier state matters: it moved without our having entered another phase.
    fn moved(phase: Phase, own: State, online: bool, before: Option<State>, now: Option<State>) -> Option<Do> {
        use State::*;
        if own == Initialising
            || (own == Closing && phase != Phase::Closing)
            || (own == Closed && phase != Phase::Closed)
        {
            return None;
        }
        let ended = matches!(before, None | Some(Initialising | Closing | Closed));
        let anew = match now {
            Some(Initialising) => before != now,
            Some(Initialised) => ended || before == Some(Connected),
            Some(Connected) => ended,
            _ => false,
        };
        match (phase, online, now) {
            (Phase::Connected, _, Some(Initialised)) if before == Some(Connected) => Some(Do::Reconnect),
            (Phase::Closing, true, Some(Initialising)) if anew => Some(Do::Restart),
            (Phase::Closing, true, _) if anew => Some(Do::Reconnect),
            (Phase::Closing, false, _) if anew => Some(Do::Remove),
            (Phase::Closed, true, _) if anew => Some(Do::Publish),
            _ => None,
        }
    }

    fn letter(letter: u8) -> Do {
        match letter {
            b'.' => Do::Nothing,
            b'P' => Do::Publish,
            b'C' => Do::Connect,
            b'R' => Do::Reconnect,
            b'S' => Do::Restart,
            b'A' => Do::AnswerClosing,
            b'X' => Do::Close,
            b'D' => Do::Remove,
            other => unreachable!("{other}"),
        }
    }

    /// Every device, everything that can be seen.
    fn all() -> impl Iterator<Item = (Phase, State, Option<State>, Option<State>, bool)> {
        PHASES.into_iter().flat_map(|phase| {
            State::ALL.into_iter().flat_map(move |own| {
                fronts().flat_map(move |before| {
                    fronts().flat_map(move |now| [false, true].map(|online| (phase, own, before, now, online)))
                })
            })
        })
    }

    #[test]
    fn the_whole_table() {
        for (phase, own, before, now, online) in all() {
            let column = fronts().position(|front| front == now).unwrap();
            let usual = letter(row(phase, own, online).as_bytes()[column]);
            let expected = moved(phase, own, online, before, now).unwrap_or(usual);
            let mut device = device(phase, before);
            let what = std::format!("{phase:?} own {own:?} front {before:?} then {now:?} online {online}");
            assert_eq!(device.step(seen(own, now, online)), expected, "{what}");
            // A step is no act: asked again, the same.
            assert_eq!(device.step(seen(own, now, online)), expected, "again: {what}");
            assert_eq!(device.phase(), phase);
            let gone = Seen { own: None, front: now, online };
            assert_eq!(device.step(gone), Do::Forget);
        }
    }

    /// Does what is to be done, and writes our node; `false` when the device is forgotten.
    fn obey(device: &mut Back, own: &mut State, what: Do) -> bool {
        match what {
            Do::Nothing => {}
            Do::Publish | Do::Restart => (*own = State::InitWait, device.published()).1,
            Do::Connect | Do::Reconnect => (*own = State::Connected, device.connected()).1,
            Do::AnswerClosing => (*own = State::Closing, device.closing()).1,
            Do::Close => (*own = State::Closed, device.closed()).1,
            Do::Remove | Do::Forget => return false,
        }
        true
    }

    #[test]
    fn everything_settles() {
        for (phase, mut own, before, now, online) in all() {
            let mut device = device(phase, before);
            let mut done = Vec::new();
            loop {
                let what = device.step(seen(own, now, online));
                if what == Do::Nothing || !obey(&mut device, &mut own, what) {
                    break;
                }
                done.push(what);
                assert!(done.len() <= 3, "{phase:?} {own:?} {before:?} {now:?} {online}: {done:?}");
            }
        }
    }

    #[test]
    fn nobody_on_the_way_in_sees_a_close() {
        // OVMF and mini-os read a state beyond the one they wait for as a failure.
        let on_the_way = [State::Initialising, State::InitWait, State::Initialised, State::Connected];
        for (phase, own, before, now, _) in all() {
            let inside = !matches!(phase, Phase::Closing | Phase::Closed) && on_the_way.contains(&own);
            if inside && now.is_some_and(|now| on_the_way.contains(&now)) {
                let what = device(phase, before).step(seen(own, now, true));
                assert!(!matches!(what, Do::AnswerClosing | Do::Close | Do::Remove), "{phase:?} {own:?} {now:?}");
            }
        }
    }

    /// Plays what the toolstack writes into our node, what the frontend says and `online`; returns what we said, state
    /// by state, and D for the end.
    fn play(script: &[(Option<usize>, Option<usize>, bool)]) -> Vec<u8> {
        let (mut device, mut own, mut said) = (Back::new(), State::Initialising, Vec::new());
        for (poked, front, online) in script {
            own = poked.map_or(own, |state| State::ALL[state]);
            loop {
                let what = device.step(seen(own, front.map(|state| State::ALL[state]), *online));
                if what == Do::Nothing {
                    break;
                }
                if !obey(&mut device, &mut own, what) {
                    said.push(b'D');
                    return said;
                }
                said.push(own as u8);
            }
        }
        said
    }

    /// What we say to a frontend that says this, online, with nobody poking.
    fn answers(front: &[usize]) -> Vec<u8> {
        play(&front.iter().map(|front| (None, Some(*front), true)).collect::<Vec<_>>())
    }

    #[test]
    fn linux_and_libxl() {
        // Attach, use, detach: libxl writes online 0 and state 5 at once.
        let used = [(None, Some(1), true), (None, Some(3), true), (None, Some(4), true)];
        let detached = [(Some(5), Some(4), false), (None, Some(5), false), (None, Some(6), false)];
        assert_eq!(play(&[used, detached].concat()), [2, 4, 5, b'D']);
        // Destroyed in the middle: the frontend's directory goes first.
        assert_eq!(play(&[(None, Some(4), true), (None, None, true), (Some(5), None, false)]), [2, 4, 6, b'D']);
        // Detached before the guest ever looked.
        assert_eq!(play(&[(None, Some(1), true), (Some(5), Some(1), false)]), [2, b'D']);
        // Resume: at 3 before we said anything.
        assert_eq!(answers(&[3, 4]), [2, 4]);
    }

    #[test]
    fn boot_loaders_and_crash_kernels() {
        // OVMF: from 1 to 4, closes in order, then the kernel's driver starts at 1.
        assert_eq!(answers(&[1, 4, 5, 6, 1, 3, 4]), [2, 4, 5, 6, 2, 4]);
        // The same with what lies between two looks missed.
        assert_eq!(answers(&[4, 6, 4]), [2, 4, 6, 2, 4]);
        assert_eq!(answers(&[4, 5, 3]), [2, 4, 5, 4]);
        assert_eq!(answers(&[4, 5, 4]), [2, 4, 5, 4]);
        assert_eq!(answers(&[4, 3, 4]), [2, 4, 4]);
        assert_eq!(answers(&[3, 4, 3, 4]), [2, 4, 4]);
        // A crash kernel that does not close: straight back to InitWait.
        assert_eq!(answers(&[4, 1, 3]), [2, 4, 2, 4]);
        // The directory made anew under us.
        assert_eq!(play(&[(None, Some(4), true), (Some(1), Some(1), true), (None, Some(3), true)]), [2, 4, 2, 4]);
    }

    #[test]
    fn what_we_gave_up_stays_so_until_the_frontend_moves() {
        // A broken ring, keys that are nonsense, a target that cannot be opened: not tried again for free.
        for front in [State::Initialising, State::Initialised, State::Connected] {
            for phase in [Phase::Closing, Phase::Closed] {
                let mut device = device(Phase::Waiting, Some(front));
                device.enter(phase);
                let own = if phase == Phase::Closing { State::Closing } else { State::Closed };
                assert_eq!(device.step(seen(own, Some(front), true)), Do::Nothing, "{phase:?} {front:?}");
                let ended = device.step(seen(own, Some(State::Closed), true));
                assert_eq!(ended, if phase == Phase::Closing { Do::Close } else { Do::Nothing });
                // It has moved: now any beginning counts, even the one we gave up.
                assert_eq!(device.step(seen(State::Unknown, Some(State::Closing), true)), Do::Nothing);
                if phase == Phase::Closing {
                    device.closed();
                }
                assert_eq!(device.step(seen(State::Closed, Some(front), true)), Do::Publish);
            }
        }
    }
}
