//! Ids and names (`enum tapdisk_message_id`, `tapdisk_message_name`).

use super::Dialect;

/// Declares [`Kind`], its ids in both dialects (0: not in it) and its names, a row each.
macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $kind:ident $rfc:literal $blktap:literal $name:literal),* $(,)?) => {
        /// What a message is, whatever its number in a dialect.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind {
            $($(#[doc = $doc])* $kind),*
        }

        impl Kind {
            /// All of them, in the order of blktap's ids.
            pub const ALL: &[Kind] = &[$(Kind::$kind),*];

            /// What `tapdisk_message_name` calls it, in the RFC's spelling; of those that only XCP-ng has, in its.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Kind::$kind => $name),*
                }
            }

            /// The message's number; `None` if the dialect has none for it.
            pub const fn id(self, dialect: Dialect) -> Option<u16> {
                let (rfc, blktap) = match self {
                    $(Kind::$kind => ($rfc, $blktap)),*
                };
                match (dialect, rfc, blktap) {
                    (Dialect::Rfc, 0, _) | (Dialect::Blktap, _, 0) => None,
                    (Dialect::Rfc, id, _) | (Dialect::Blktap, _, id) => Some(id),
                }
            }
        }
    };
}

kinds! {
    /// ERROR: the answer to what cannot be done, and in blktap's dialect the only one.
    Error 1 1 "error",
    /// RUNTIME_ERROR: a store failed under a VBD; sent unasked.
    RuntimeError 2 2 "runtime error",
    /// PID: who are you?
    Pid 3 3 "pid",
    /// PID_RSP.
    PidRsp 4 4 "pid response",
    /// ATTACH: make a VBD without an image.
    Attach 5 5 "attach",
    /// ATTACH_RSP.
    AttachRsp 6 6 "attach response",
    /// OPEN: give it an image.
    Open 7 7 "open",
    /// OPEN_RSP.
    OpenRsp 8 8 "open response",
    /// PAUSE: drain, then hold what guests ask.
    Pause 9 9 "pause",
    /// PAUSE_RSP.
    PauseRsp 10 10 "pause response",
    /// RESUME: go on, perhaps on another image.
    Resume 11 11 "resume",
    /// RESUME_RSP.
    ResumeRsp 12 12 "resume response",
    /// CLOSE: take the image away.
    Close 13 13 "close",
    /// CLOSE_RSP; also the answer to FORCE_SHUTDOWN.
    CloseRsp 14 14 "close response",
    /// DETACH: unmake the VBD.
    Detach 15 15 "detach",
    /// DETACH_RSP.
    DetachRsp 16 16 "detach response",
    /// LIST_MINORS: which VBDs are there? blktap keeps the id and answers it with an error.
    ListMinors 17 17 "list minors",
    /// LIST_MINORS_RSP.
    ListMinorsRsp 18 18 "list minors response",
    /// LIST: the VBDs with their states and images.
    List 19 19 "list",
    /// LIST_RSP: one of them, or the end.
    ListRsp 20 20 "list response",
    /// STATS.
    Stats 21 21 "stats",
    /// STATS_RSP: JSON follows.
    StatsRsp 22 22 "stats response",
    /// FORCE_SHUTDOWN: CLOSE without waiting for guests.
    ForceShutdown 23 23 "force shutdown",
    /// XENBLKIF_CONNECT: serve this ring.
    XenblkifConnect 26 24 "blkif connect",
    /// XENBLKIF_CONNECT_RSP.
    XenblkifConnectRsp 27 25 "blkif connect response",
    /// XENBLKIF_DISCONNECT: let go of this ring.
    XenblkifDisconnect 28 26 "blkif disconnect",
    /// XENBLKIF_DISCONNECT_RSP.
    XenblkifDisconnectRsp 29 27 "blkif disconnect response",
    /// DISK_INFO: how large is it?
    DiskInfo 24 28 "disk info",
    /// DISK_INFO_RSP.
    DiskInfoRsp 25 29 "disk info response",
    /// EXIT. blktap keeps the id and answers it with an error.
    Exit 30 30 "exit",
    /// COMMIT, XCP-ng's: coalesce an image into its parent while it is in use.
    Commit 0 31 "commit",
    /// Its answer.
    CommitRsp 0 32 "commit response",
    /// QUERY_COMMIT_JOB, XCP-ng's.
    QueryCommitJob 0 33 "query commit job",
    /// Its answer.
    QueryCommitJobRsp 0 34 "query commit job response",
    /// CANCEL_COMMIT_JOB, XCP-ng's.
    CancelCommitJob 0 35 "cancel commit job",
    /// Its answer.
    CancelCommitJobRsp 0 36 "cancel commit job response",
}

impl Kind {
    /// The message with this number; `None` if the dialect knows none.
    pub fn of(dialect: Dialect, id: u16) -> Option<Kind> {
        Kind::ALL.iter().copied().find(|kind| kind.id(dialect) == Some(id))
    }

    /// `tapdisk_message_name`: the name of a number, or `unknown`.
    pub fn name_of(dialect: Dialect, id: u16) -> &'static str {
        Kind::of(dialect, id).map_or("unknown", Kind::name)
    }

    /// What answers a request that was done; `None` if this is no request.
    ///
    /// EXIT has no response of its own: it is answered by itself, and the channel ends.
    pub const fn response(self) -> Option<Kind> {
        match self {
            Kind::Pid => Some(Kind::PidRsp),
            Kind::Attach => Some(Kind::AttachRsp),
            Kind::Open => Some(Kind::OpenRsp),
            Kind::Pause => Some(Kind::PauseRsp),
            Kind::Resume => Some(Kind::ResumeRsp),
            Kind::Close | Kind::ForceShutdown => Some(Kind::CloseRsp),
            Kind::Detach => Some(Kind::DetachRsp),
            Kind::ListMinors => Some(Kind::ListMinorsRsp),
            Kind::List => Some(Kind::ListRsp),
            Kind::Stats => Some(Kind::StatsRsp),
            Kind::XenblkifConnect => Some(Kind::XenblkifConnectRsp),
            Kind::XenblkifDisconnect => Some(Kind::XenblkifDisconnectRsp),
            Kind::DiskInfo => Some(Kind::DiskInfoRsp),
            Kind::Exit => Some(Kind::Exit),
            Kind::Commit => Some(Kind::CommitRsp),
            Kind::QueryCommitJob => Some(Kind::QueryCommitJobRsp),
            Kind::CancelCommitJob => Some(Kind::CancelCommitJobRsp),
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
            | Kind::CancelCommitJobRsp => None,
        }
    }

    /// What answers a request that could not be done.
    ///
    /// blktap says ERROR to everything. The RFC's requests that change something answer with their own response,
    /// whose error field is not 0; the others, OPEN among them, with ERROR.
    pub const fn refusal(self, dialect: Dialect) -> Kind {
        match (dialect, self.response()) {
            (
                Dialect::Rfc,
                Some(
                    own @ (Kind::AttachRsp
                    | Kind::DetachRsp
                    | Kind::CloseRsp
                    | Kind::PauseRsp
                    | Kind::ResumeRsp
                    | Kind::XenblkifConnectRsp
                    | Kind::XenblkifDisconnectRsp),
                ),
            ) => own,
            _ => Kind::Error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ids of the RFC's enum and of blktap's, written down from the two headers, not from the table above.
    const RFC: [&str; 31] = [
        "unknown",
        "error",
        "runtime error",
        "pid",
        "pid response",
        "attach",
        "attach response",
        "open",
        "open response",
        "pause",
        "pause response",
        "resume",
        "resume response",
        "close",
        "close response",
        "detach",
        "detach response",
        "list minors",
        "list minors response",
        "list",
        "list response",
        "stats",
        "stats response",
        "force shutdown",
        "disk info",
        "disk info response",
        "blkif connect",
        "blkif connect response",
        "blkif disconnect",
        "blkif disconnect response",
        "exit",
    ];
    const BLKTAP_24_29: [&str; 6] = [
        "blkif connect",
        "blkif connect response",
        "blkif disconnect",
        "blkif disconnect response",
        "disk info",
        "disk info response",
    ];
    const XCP_NG_31: [&str; 6] = [
        "commit",
        "commit response",
        "query commit job",
        "query commit job response",
        "cancel commit job",
        "cancel commit job response",
    ];

    #[test]
    fn every_id_has_its_name() {
        for id in 0..=u16::MAX {
            let at = usize::from(id);
            assert_eq!(Kind::name_of(Dialect::Rfc, id), *RFC.get(at).unwrap_or(&"unknown"), "RFC {id}");
            let expected = match id {
                24..=29 => BLKTAP_24_29[at - 24],
                31..=36 => XCP_NG_31[at - 31],
                _ => RFC.get(at).unwrap_or(&"unknown"),
            };
            assert_eq!(Kind::name_of(Dialect::Blktap, id), expected, "blktap {id}");
            for dialect in Dialect::ALL {
                assert!(Kind::of(dialect, id).is_none_or(|kind| kind.id(dialect) == Some(id)));
            }
        }
    }

    #[test]
    fn every_kind_is_listed_once() {
        for (number, kind) in Kind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, number);
            assert_eq!(kind.id(Dialect::Blktap), Some(number as u16 + 1));
        }
        assert_eq!(Kind::ALL.len(), 36);
    }

    #[test]
    fn answers_have_the_next_id() {
        for dialect in Dialect::ALL {
            for kind in Kind::ALL {
                let Some(id) = kind.id(dialect) else { continue };
                let Some(response) = kind.response() else { continue };
                let expected = match kind {
                    Kind::ForceShutdown => 14,
                    Kind::Exit => 30,
                    _ => id + 1,
                };
                assert_eq!(response.id(dialect), Some(expected), "{kind:?}");
            }
        }
        let requests = Kind::ALL.iter().filter(|kind| kind.response().is_some());
        assert_eq!(requests.count(), 18);
    }

    #[test]
    fn refusals() {
        let own =
            ["attach", "detach", "close", "force shutdown", "pause", "resume", "blkif connect", "blkif disconnect"];
        for kind in Kind::ALL {
            assert_eq!(kind.refusal(Dialect::Blktap), Kind::Error);
            let expected = if own.contains(&kind.name()) { kind.response() } else { Some(Kind::Error) };
            assert_eq!(Some(kind.refusal(Dialect::Rfc)), expected, "{kind:?}");
        }
    }
}
