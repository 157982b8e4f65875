//! Which message is legal in which state of a VBD, and what is said where it is not.
//!
//! A VBD is made by ATTACH and unmade by DETACH; between them OPEN, PAUSE, RESUME and CLOSE work on its image, and
//! guests' rings come and go. [`State`] is where it stands, [`verdict`] what a message meets there, [`State::begin`] and
//! [`State::end`] how a message moves it. Several channels may speak of one VBD at once. A request whose answer depends on
//! how another ends waits for that one, as in tapdisk, which does one at a time in the whole process; one whose answer is
//! certain gets it at once; and CLOSE never waits for what may not end, a PAUSE on a store that is stuck or a RESUME from
//! one: those are told that the VBD was closed meanwhile.
//!
//! Where tapdisk does otherwise:
//! - its PAUSE of a VBD without an image leaves it paused without one; here it is answered and changes nothing;
//! - its XENBLKIF_CONNECT takes a ring of a VBD without an image; here that is ENODEV;
//! - its DISK_INFO of a VBD that never had an image tells a disk of no sectors; here that is ENODEV;
//! - it has no LIST_MINORS and no EXIT, and answers both with EINVAL;
//! - a CLOSE that comes while a PAUSE drains waits for it there;
//! - its process ends with the last DETACH. A domain stays.

use core::fmt;
use core::ops::BitOr;

use crate::errno::Errno;
use crate::tapdisk::{Dialect, Kind};

/// Where a VBD stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// There is none of this minor.
    Absent,
    /// There is one, and no image was opened since, or opening one failed.
    Attached,
    /// OPEN is at work.
    Opening,
    /// It has an image; requests are taken.
    Open,
    /// PAUSE is at work: no new requests are taken, those in flight go on.
    Pausing,
    /// No request is in flight, the image is closed, and rings wait.
    Paused,
    /// RESUME is at work.
    Resuming,
    /// As paused, after a RESUME that failed.
    ResumeFailed,
    /// CLOSE or FORCE_SHUTDOWN is at work.
    Closing,
    /// The image was closed.
    Closed,
}

impl State {
    /// All of them.
    pub const ALL: [State; 10] = [
        State::Absent,
        State::Attached,
        State::Opening,
        State::Open,
        State::Pausing,
        State::Paused,
        State::Resuming,
        State::ResumeFailed,
        State::Closing,
        State::Closed,
    ];

    /// What LIST says of it.
    pub fn bits(self) -> Bits {
        match self {
            State::Absent | State::Attached | State::Opening | State::Open => Bits::NONE,
            State::Pausing => Bits::PAUSE_REQUESTED | Bits::QUIESCE_REQUESTED,
            State::Paused | State::Resuming => Bits::PAUSED | Bits::QUIESCED | Bits::CLOSED,
            State::ResumeFailed => State::Paused.bits() | Bits::RESUME_FAILED,
            State::Closing => Bits::SHUTDOWN_REQUESTED,
            State::Closed => Bits::CLOSED,
        }
    }

    /// Where it stands once a message that met [`Verdict::Do`] is begun. ATTACH and DETACH are done with it.
    pub const fn begin(self, kind: Kind) -> State {
        match kind {
            Kind::Attach => State::Attached,
            Kind::Detach => State::Absent,
            Kind::Open => State::Opening,
            Kind::Pause => State::Pausing,
            Kind::Resume => State::Resuming,
            Kind::Close | Kind::ForceShutdown => State::Closing,
            _ => self,
        }
    }

    /// Where it stands when what was at work has ended, well or not. A CLOSE that ends badly has closed all the same; a
    /// PAUSE ends badly only if it was called off.
    ///
    /// Nothing changes where nothing is at work: who was overtaken by CLOSE finds the VBD closed.
    pub const fn end(self, well: bool) -> State {
        match (self, well) {
            (State::Opening | State::Resuming, true) | (State::Pausing, false) => State::Open,
            (State::Opening, false) => State::Attached,
            (State::Pausing, true) => State::Paused,
            (State::Resuming, false) => State::ResumeFailed,
            (State::Closing, _) => State::Closed,
            (still, _) => still,
        }
    }
}

/// `state` of LIST_RSP: blktap's `TD_VBD_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bits(u32);

impl Bits {
    /// None: attached or open.
    pub const NONE: Bits = Bits(0);
    /// All requests fail.
    pub const DEAD: Bits = Bits(0x001);
    /// The image is closed.
    pub const CLOSED: Bits = Bits(0x002);
    /// To be quiet once nothing is in flight.
    pub const QUIESCE_REQUESTED: Bits = Bits(0x004);
    /// Nothing is in flight.
    pub const QUIESCED: Bits = Bits(0x008);
    /// PAUSE is at work.
    pub const PAUSE_REQUESTED: Bits = Bits(0x010);
    /// Paused.
    pub const PAUSED: Bits = Bits(0x020);
    /// To be closed once nothing is in flight.
    pub const SHUTDOWN_REQUESTED: Bits = Bits(0x040);
    /// blktap does not use it.
    pub const LOCKING: Bits = Bits(0x080);
    /// Which blocks changed is no longer known.
    pub const LOG_DROPPED: Bits = Bits(0x100);
    /// RESUME failed.
    pub const RESUME_FAILED: Bits = Bits(0x200);

    const NAMES: [&str; 10] = [
        "dead",
        "closed",
        "quiesce requested",
        "quiesced",
        "pause requested",
        "paused",
        "shutdown requested",
        "locking",
        "log dropped",
        "resume failed",
    ];

    /// The bits of a message's field.
    pub const fn of(bits: u32) -> Bits {
        Bits(bits)
    }

    /// The field.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `others` are set.
    pub const fn contains(self, others: Bits) -> bool {
        self.0 & others.0 == others.0
    }

    /// The names of those that are set and have one, the lowest first.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Bits::NAMES.into_iter().enumerate().filter(move |(bit, _)| self.contains(Bits(1 << bit))).map(|(_, name)| name)
    }
}

impl BitOr for Bits {
    type Output = Bits;

    fn bitor(self, other: Bits) -> Bits {
        Bits(self.0 | other.0)
    }
}

/// What a message meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Do it, then answer.
    Do,
    /// It is so already: answer that it is done.
    Done,
    /// Another message is at work on this VBD: ask again when it has ended.
    Wait,
    /// Answer that it is not to be done.
    Refuse(Refusal),
}

/// Why a message is not to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The number in the answer.
    pub errno: Errno,
    /// The end of the text in the answer; what it is about comes before it.
    pub why: &'static str,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why)
    }
}

const fn refuse(errno: Errno, why: &'static str) -> Verdict {
    Verdict::Refuse(Refusal { errno, why })
}

/// What a message meets at a VBD that stands so: the one that its cookie names.
///
/// Four messages are about no single VBD. PID, LIST and LIST_MINORS are done in every state; LIST tells of all VBDs
/// whatever its cookie is. STATS with the cookie of all is done without being asked about here. EXIT is asked about
/// with the state of any VBD there is, or with [`State::Absent`] if there is none. XENBLKIF_DISCONNECT does not say
/// which VBD it is about: it is done in every state, if there is such a ring ([`ring_verdict`]).
pub const fn verdict(kind: Kind, state: State) -> Verdict {
    const NO_MINOR: Verdict = refuse(Errno::ENODEV, "no such minor");
    match kind {
        Kind::Pid | Kind::List | Kind::ListMinors | Kind::XenblkifDisconnect => Verdict::Do,
        Kind::Stats => match state {
            State::Absent => NO_MINOR,
            _ => Verdict::Do,
        },
        Kind::Exit => match state {
            State::Absent => Verdict::Do,
            _ => refuse(Errno::EBUSY, "disks are attached"),
        },
        Kind::Attach => match state {
            State::Absent => Verdict::Do,
            _ => refuse(Errno::EEXIST, "attached already"),
        },
        Kind::Open => match state {
            State::Absent => refuse(Errno::EINVAL, "no such minor"),
            State::Attached | State::Closed => Verdict::Do,
            State::Opening | State::Closing => Verdict::Wait,
            State::Open | State::Pausing | State::Paused | State::Resuming | State::ResumeFailed => {
                refuse(Errno::EALREADY, "open already")
            }
        },
        Kind::Pause => match state {
            State::Absent => NO_MINOR,
            State::Open => Verdict::Do,
            State::Attached | State::Paused | State::ResumeFailed | State::Closed => Verdict::Done,
            State::Opening | State::Pausing | State::Resuming | State::Closing => Verdict::Wait,
        },
        Kind::Resume => match state {
            State::Absent => NO_MINOR,
            State::Paused | State::ResumeFailed => Verdict::Do,
            State::Pausing | State::Resuming => Verdict::Wait,
            State::Attached | State::Opening | State::Open | State::Closing | State::Closed => {
                refuse(Errno::EINVAL, "not paused")
            }
        },
        Kind::Close => match state {
            State::Absent => NO_MINOR,
            State::Attached | State::Open | State::Pausing | State::Paused | State::Resuming | State::ResumeFailed => {
                Verdict::Do
            }
            State::Opening | State::Closing => Verdict::Wait,
            State::Closed => Verdict::Done,
        },
        Kind::ForceShutdown => match state {
            State::Absent => NO_MINOR,
            State::Attached
            | State::Open
            | State::Pausing
            | State::Paused
            | State::Resuming
            | State::ResumeFailed
            | State::Closing => Verdict::Do,
            State::Opening => Verdict::Wait,
            State::Closed => Verdict::Done,
        },
        Kind::Detach => match state {
            State::Absent => NO_MINOR,
            State::Attached | State::Closed => Verdict::Do,
            State::Opening | State::Closing => Verdict::Wait,
            State::Open | State::Pausing | State::Paused | State::Resuming | State::ResumeFailed => {
                refuse(Errno::EBUSY, "still open")
            }
        },
        Kind::XenblkifConnect => match state {
            State::Absent => NO_MINOR,
            State::Open | State::Pausing | State::Paused | State::Resuming | State::ResumeFailed => Verdict::Do,
            State::Opening => Verdict::Wait,
            State::Attached | State::Closing | State::Closed => refuse(Errno::ENODEV, "no image is open"),
        },
        Kind::DiskInfo => match state {
            State::Absent => NO_MINOR,
            State::Attached => refuse(Errno::ENODEV, "no image was opened"),
            State::Opening => Verdict::Wait,
            State::Open
            | State::Pausing
            | State::Paused
            | State::Resuming
            | State::ResumeFailed
            | State::Closing
            | State::Closed => Verdict::Do,
        },
        Kind::Commit | Kind::QueryCommitJob | Kind::CancelCommitJob => {
            refuse(Errno::ENOSYS, "commit jobs are not offered")
        }
        Kind::Error
        | Kind::RuntimeError
        | Kind::PidRsp
        | Kind::AttachRsp
        | Kind::OpenRsp
        | Kind::PauseRsp
        | Kind::ResumeRsp
        | Kind::CloseRsp
        | Kind::DetachRsp
        | Kind::ListMinorsRsp
        | Kind::ListRsp
        | Kind::StatsRsp
        | Kind::XenblkifConnectRsp
        | Kind::XenblkifDisconnectRsp
        | Kind::DiskInfoRsp
        | Kind::CommitRsp
        | Kind::QueryCommitJobRsp
        | Kind::CancelCommitJobRsp => refuse(Errno::EINVAL, "not a request"),
    }
}

/// What a message about a ring meets, besides what [`verdict`] says of its VBD: `served` is whether a ring of this
/// guest and device is served now. Other messages meet nothing here.
///
/// The dialects have numbers of their own for these two. To blktap's clients EALREADY is a success: they come again
/// after a restart.
pub const fn ring_verdict(dialect: Dialect, kind: Kind, served: bool) -> Verdict {
    match (kind, served, dialect) {
        (Kind::XenblkifConnect, true, Dialect::Rfc) => refuse(Errno::EEXIST, "connected already"),
        (Kind::XenblkifConnect, true, Dialect::Blktap) => refuse(Errno::EALREADY, "connected already"),
        (Kind::XenblkifDisconnect, false, Dialect::Rfc) => refuse(Errno::ESRCH, "no such ring"),
        (Kind::XenblkifDisconnect, false, Dialect::Blktap) => refuse(Errno::ENODEV, "no such ring"),
        _ => Verdict::Do,
    }
}

#[cfg(test)]
mod tests {
    use std::string::{String, ToString};
    use std::vec::Vec;

    use super::*;

    #[test]
    fn what_is_said_twice_is_said() {
        assert_eq!(State::Paused.bits() | Bits::PAUSED, State::Paused.bits());
    }

    /// Every request in every state, in the order of [`State::ALL`], written down from what tapdisk does and where the
    /// module's text says that this differs.
    const TABLE: &str = "
                     absent  attached opening open     pausing  paused   resuming failed   closing closed
        pid               do      do       do      do       do       do       do       do       do      do
        list              do      do       do      do       do       do       do       do       do      do
        list-minors       do      do       do      do       do       do       do       do       do      do
        blkif-disconnect  do      do       do      do       do       do       do       do       do      do
        stats             ENODEV  do       do      do       do       do       do       do       do      do
        exit              do      EBUSY    EBUSY   EBUSY    EBUSY    EBUSY    EBUSY    EBUSY    EBUSY   EBUSY
        attach            do      EEXIST   EEXIST  EEXIST   EEXIST   EEXIST   EEXIST   EEXIST   EEXIST  EEXIST
        open              EINVAL  do       wait    EALREADY EALREADY EALREADY EALREADY EALREADY wait    do
        pause             ENODEV  done     wait    do       wait     done     wait     done     wait    done
        resume            ENODEV  EINVAL   EINVAL  EINVAL   wait     do       wait     do       EINVAL  EINVAL
        close             ENODEV  do       wait    do       do       do       do       do       wait    done
        force-shutdown    ENODEV  do       wait    do       do       do       do       do       do      done
        detach            ENODEV  do       wait    EBUSY    EBUSY    EBUSY    EBUSY    EBUSY    wait    do
        blkif-connect     ENODEV  ENODEV   wait    do       do       do       do       do       ENODEV  ENODEV
        disk-info         ENODEV  ENODEV   wait    do       do       do       do       do       do      do
        commit            ENOSYS  ENOSYS   ENOSYS  ENOSYS   ENOSYS   ENOSYS   ENOSYS   ENOSYS   ENOSYS  ENOSYS
        query-commit-job  ENOSYS  ENOSYS   ENOSYS  ENOSYS   ENOSYS   ENOSYS   ENOSYS   ENOSYS   ENOSYS  ENOSYS
        cancel-commit-job ENOSYS  ENOSYS   ENOSYS  ENOSYS   ENOSYS   ENOSYS   ENOSYS   ENOSYS   ENOSYS  ENOSYS
    ";

    /// The table's word for a verdict.
    fn word(verdict: Verdict) -> String {
        match verdict {
            Verdict::Do => "do".into(),
            Verdict::Done => "done".into(),
            Verdict::Wait => "wait".into(),
            Verdict::Refuse(refusal) => std::format!("{:?}", refusal.errno),
        }
    }

    #[test]
    fn every_message_in_every_state() {
        let rows: Vec<Vec<&str>> = TABLE.lines().map(|line| line.split_whitespace().collect()).collect();
        let rows: Vec<&[&str]> = rows.iter().filter(|row| !row.is_empty()).map(Vec::as_slice).collect();
        let (head, rows) = rows.split_first().unwrap();
        assert_eq!(head.len(), State::ALL.len());
        let mut in_table = 0;
        for kind in Kind::ALL {
            let name = kind.name().replace(' ', "-");
            let row = rows.iter().find(|row| row[0] == name);
            assert_eq!(row.is_some(), kind.response().is_some(), "{kind:?}: requests have a row");
            in_table += usize::from(row.is_some());
            for (column, state) in State::ALL.into_iter().enumerate() {
                let expected = row.map_or("EINVAL", |row| row[column + 1]);
                assert_eq!(word(verdict(*kind, state)), expected, "{kind:?} {state:?}");
            }
            assert!(row.is_none_or(|row| row.len() == State::ALL.len() + 1), "{name}");
        }
        assert_eq!(in_table, rows.len());
    }

    #[test]
    fn refusals_say_why() {
        let texts = [
            (Kind::Open, State::Absent, "no such minor"),
            (Kind::Stats, State::Absent, "no such minor"),
            (Kind::Attach, State::Closed, "attached already"),
            (Kind::Open, State::Paused, "open already"),
            (Kind::Resume, State::Open, "not paused"),
            (Kind::Detach, State::Open, "still open"),
            (Kind::XenblkifConnect, State::Closed, "no image is open"),
            (Kind::DiskInfo, State::Attached, "no image was opened"),
            (Kind::Exit, State::Open, "disks are attached"),
            (Kind::Commit, State::Open, "commit jobs are not offered"),
            (Kind::PidRsp, State::Open, "not a request"),
        ];
        for (kind, state, text) in texts {
            let Verdict::Refuse(refusal) = verdict(kind, state) else { panic!("{kind:?}") };
            assert_eq!(refusal.to_string(), text);
        }
    }

    #[test]
    fn rings() {
        for dialect in Dialect::ALL {
            for kind in Kind::ALL {
                for served in [false, true] {
                    let expected = match (kind, served, dialect) {
                        (Kind::XenblkifConnect, true, Dialect::Rfc) => "EEXIST connected already",
                        (Kind::XenblkifConnect, true, _) => "EALREADY connected already",
                        (Kind::XenblkifDisconnect, false, Dialect::Rfc) => "ESRCH no such ring",
                        (Kind::XenblkifDisconnect, false, _) => "ENODEV no such ring",
                        _ => "do",
                    };
                    let verdict = ring_verdict(dialect, *kind, served);
                    let text = match verdict {
                        Verdict::Refuse(refusal) => word(verdict) + " " + refusal.why,
                        _ => word(verdict),
                    };
                    assert_eq!(text, expected);
                }
            }
        }
    }

    #[test]
    fn states_as_tapdisk_shows_them() {
        let bits = [0, 0, 0, 0, 0x14, 0x2a, 0x2a, 0x22a, 0x40, 0x2];
        assert_eq!(State::ALL.map(|state| state.bits().bits()), bits);
        let names = Bits::of(0x22a | 1 << 20).names().collect::<Vec<_>>();
        assert_eq!(names, ["closed", "quiesced", "paused", "resume failed"]);
        let each = [
            (Bits::DEAD, "dead"),
            (Bits::CLOSED, "closed"),
            (Bits::QUIESCE_REQUESTED, "quiesce requested"),
            (Bits::QUIESCED, "quiesced"),
            (Bits::PAUSE_REQUESTED, "pause requested"),
            (Bits::PAUSED, "paused"),
            (Bits::SHUTDOWN_REQUESTED, "shutdown requested"),
            (Bits::LOCKING, "locking"),
            (Bits::LOG_DROPPED, "log dropped"),
            (Bits::RESUME_FAILED, "resume failed"),
        ];
        for (bit, (bits, name)) in each.into_iter().enumerate() {
            assert_eq!(bits.bits(), 1 << bit);
            assert_eq!(bits.names().collect::<Vec<_>>(), [name]);
        }
        assert_eq!(Bits::default(), Bits::NONE);
        assert_eq!((Bits::PAUSED | Bits::PAUSED).bits(), 0x20);
        assert!(!Bits::PAUSED.contains(Bits::PAUSED | Bits::CLOSED) && Bits::PAUSED.contains(Bits::NONE));
    }

    #[test]
    fn every_move() {
        use State::*;
        let begins = [
            (Kind::Attach, Attached),
            (Kind::Detach, Absent),
            (Kind::Open, Opening),
            (Kind::Pause, Pausing),
            (Kind::Resume, Resuming),
            (Kind::Close, Closing),
            (Kind::ForceShutdown, Closing),
        ];
        for kind in Kind::ALL {
            for state in State::ALL.into_iter().filter(|state| verdict(*kind, *state) == Verdict::Do) {
                let expected = begins.iter().find(|(begun, _)| begun == kind).map_or(state, |(_, then)| *then);
                assert_eq!(state.begin(*kind), expected, "{kind:?} {state:?}");
            }
        }
        // Where a state goes when what was at work ended badly, and well.
        let ends = [
            (Absent, Absent, Absent),
            (Attached, Attached, Attached),
            (Opening, Attached, Open),
            (Open, Open, Open),
            (Pausing, Open, Paused),
            (Paused, Paused, Paused),
            (Resuming, ResumeFailed, Open),
            (ResumeFailed, ResumeFailed, ResumeFailed),
            (Closing, Closed, Closed),
            (Closed, Closed, Closed),
        ];
        assert_eq!(ends.map(|row| row.0), State::ALL);
        for (state, badly, well) in ends {
            assert_eq!((state.end(false), state.end(true)), (badly, well), "{state:?}");
        }
    }

    #[test]
    fn who_waits_is_never_left_waiting() {
        // A state in which anything waits is one that ends by itself, and then it no longer waits.
        for kind in Kind::ALL {
            for state in State::ALL.into_iter().filter(|state| verdict(*kind, *state) == Verdict::Wait) {
                for well in [false, true] {
                    assert_ne!(state.end(well), state);
                    assert_ne!(verdict(*kind, state.end(well)), Verdict::Wait, "{kind:?} {state:?}");
                }
            }
        }
    }
}
