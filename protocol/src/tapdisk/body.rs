//! What messages carry.

use super::{Dialect, Flags, Kind, MINORS_MAX, Text};
use crate::blkif::Layout;
use crate::errno::Errno;

/// A message: its cookie, which an answer echoes, and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The minor number of the VBD it is about; [`super::EVERY_MINOR`] where all may be meant.
    pub cookie: u16,
    /// The rest.
    pub body: Body<'a>,
}

/// What a message says. The names are the header's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// It could not be done.
    Error(Response<'a>),
    /// A store failed; nobody asked.
    RuntimeError(Response<'a>),
    /// Who are you?
    Pid,
    /// A process id, or what stands for one.
    PidRsp(i32),
    /// Make a VBD of this minor.
    Attach,
    /// It is there; in the RFC's dialect, or it is not and why.
    AttachRsp(Response<'a>),
    /// Give it this image.
    Open(Params<'a>),
    /// Its size.
    OpenRsp(Image),
    /// Hold.
    Pause,
    /// It holds, or why it does not.
    PauseRsp(Response<'a>),
    /// Go on; with a path, on that image. blktap's header declares a structure for this that its programs do not use.
    Resume(Params<'a>),
    /// It goes on, or why it does not.
    ResumeRsp(Response<'a>),
    /// Take its image away.
    Close,
    /// It is gone, or why it is not.
    CloseRsp(Response<'a>),
    /// Unmake the VBD.
    Detach,
    /// It is gone, or why it is not.
    DetachRsp(Response<'a>),
    /// Which minors are there?
    ListMinors,
    /// These.
    ListMinorsRsp(Minors<'a>),
    /// Which VBDs are there?
    List,
    /// One of them, or the end.
    ListRsp(Listed<'a>),
    /// How is it doing?
    Stats,
    /// So many bytes of JSON follow the message.
    StatsRsp {
        /// How many.
        bytes: u64,
    },
    /// Take its image away and do not wait for guests.
    ForceShutdown,
    /// How large is it?
    DiskInfo,
    /// So large.
    DiskInfoRsp(Image),
    /// Serve this ring.
    XenblkifConnect(Blkif<'a>),
    /// It is served, or why it is not.
    XenblkifConnectRsp(Response<'a>),
    /// Let go of this ring; the cookie says nothing here.
    XenblkifDisconnect(Vdev),
    /// It is gone, or why it is not.
    XenblkifDisconnectRsp(Response<'a>),
    /// Drain, and end the domain.
    Exit,
    /// XCP-ng's COMMIT, QUERY_COMMIT_JOB and CANCEL_COMMIT_JOB and their responses: recognised, not read. They are
    /// encoded with nothing in them.
    XcpNg(XcpNg),
}

/// The messages that only XCP-ng has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "`Kind` says what they are")]
pub enum XcpNg {
    Commit,
    CommitRsp,
    QueryCommitJob,
    QueryCommitJobRsp,
    CancelCommitJob,
    CancelCommitJobRsp,
}

/// `tapdisk_message_params`: what OPEN and RESUME say of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Params<'a> {
    /// How.
    pub flags: Flags,
    /// A device number of the RFC's time. Nobody reads it.
    pub devnum: u32,
    /// A domain id of the RFC's time. Nobody reads it.
    pub domid: u32,
    /// `TYPE:SOURCE`; empty in a RESUME that keeps the image.
    pub path: Text<'a>,
    /// The minor that serves the parent; `None` is written as -1, and any negative number is read as it. Of a sender
    /// that leaves it 0 this says minor 0, so it counts only with [`Flags::REUSE_PRT`].
    pub prt_devnum: Option<u32>,
    /// blktap only: seconds after which a request that a store does not do fails; 0: the server's own limit.
    pub req_timeout: u16,
    /// The second image; counts only with [`Flags::SECONDARY`].
    pub secondary: Text<'a>,
}

/// `tapdisk_message_image`: the size of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// In sectors of `sector_size`.
    pub sectors: u64,
    /// In bytes.
    pub sector_size: u32,
    /// Bits of `VDISK_*`; blktap always says 0.
    pub info: u32,
}

/// `tapdisk_message_response`: how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// 0, or a positive error number.
    pub error: i32,
    /// Why, in words. tapdisk leaves it empty.
    pub message: Text<'a>,
}

impl<'a> Response<'a> {
    /// It was done.
    pub const DONE: Response<'static> = Response { error: 0, message: Text::EMPTY };

    /// It was not.
    pub const fn failed(errno: Errno, message: Text<'a>) -> Response<'a> {
        Response { error: errno.number(), message }
    }
}

/// `tapdisk_message_minors`: up to 63 minors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Minors<'a>(&'a [[u8; 4]]);

impl<'a> Minors<'a> {
    /// Minors as the message carries them, `to_le_bytes` of each; `None` if there are more than [`MINORS_MAX`].
    pub fn new(minors: &'a [[u8; 4]]) -> Option<Minors<'a>> {
        (minors.len() <= MINORS_MAX).then_some(Minors(minors))
    }

    /// Each.
    pub fn iter(self) -> impl ExactSizeIterator<Item = i32> + 'a {
        self.0.iter().map(|minor| i32::from_le_bytes(*minor))
    }

    /// The bytes of each.
    pub(super) const fn bytes(self) -> &'a [[u8; 4]] {
        self.0
    }
}

/// `tapdisk_message_list`: one VBD of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed<'a> {
    /// VBDs still to come, this one included; 0: this is none, and the end.
    pub count: u32,
    /// Which.
    pub minor: i32,
    /// Bits of its state, see [`crate::session::Bits`].
    pub state: u32,
    /// Its image, `TYPE:SOURCE`; empty if it has none.
    pub path: Text<'a>,
}

impl Listed<'static> {
    /// What ends every list, an empty one too.
    pub const END: Listed<'static> = Listed { count: 0, minor: -1, state: 0, path: Text::EMPTY };
}

/// A guest's device: what names a ring in XENBLKIF_DISCONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vdev {
    /// The guest.
    pub domid: u16,
    /// Its virtual device, 51712 for `xvda`.
    pub devid: u32,
}

/// `tapdisk_message_blkif`: a ring to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blkif<'a> {
    /// Whose.
    pub vdev: Vdev,
    /// Its pages.
    pub grefs: Grefs,
    /// Who laid out its requests.
    pub proto: Protocol,
    /// A name for memory that tapdisk once pooled; blktap parses and ignores it.
    pub pool: Text<'a>,
    /// The guest's event channel.
    pub port: u32,
    /// blktap only: whether to look at the ring without being called.
    pub poll: Poll,
}

/// How long a server looks at a ring that is empty before it sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Poll {
    /// In microseconds; 0: not at all.
    pub duration: u32,
    /// Only while so many per cent of the processor are idle.
    pub idle_threshold: u32,
}

/// The grant references of a ring: 1, 2, 4 or 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grefs {
    list: [u32; Grefs::MAX],
    order: u8,
}

impl Grefs {
    /// The most there can be.
    pub const MAX: usize = 8;

    /// References of a ring of so many pages; `None` if that is no power of two or too many.
    pub fn new(grefs: &[u32]) -> Option<Grefs> {
        let mut list = [0; Grefs::MAX];
        list.get_mut(..grefs.len())?.copy_from_slice(grefs);
        let order = grefs.len().is_power_of_two().then_some(grefs.len().trailing_zeros() as u8)?;
        Some(Grefs { list, order })
    }

    /// Them.
    pub fn as_slice(&self) -> &[u32] {
        &self.list[..1 << self.order]
    }

    /// The ring's pages as a power of two, 0 to 3.
    pub const fn order(&self) -> u8 {
        self.order
    }
}

/// `enum blkif_protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Protocol {
    /// As the server's own machine does.
    Native = 1,
    /// `x86_32-abi`.
    X86_32 = 2,
    /// `x86_64-abi`.
    X86_64 = 3,
}

impl Protocol {
    /// The protocol of a number.
    pub const fn of(number: u32) -> Option<Protocol> {
        match number {
            1 => Some(Protocol::Native),
            2 => Some(Protocol::X86_32),
            3 => Some(Protocol::X86_64),
            _ => None,
        }
    }

    /// How the ring's requests lie in memory; this machine's own way is x86_64.
    pub const fn layout(self) -> Layout {
        match self {
            Protocol::Native | Protocol::X86_64 => Layout::X86_64,
            Protocol::X86_32 => Layout::X86_32,
        }
    }
}

impl Body<'_> {
    /// Which message it is.
    pub const fn kind(&self) -> Kind {
        match self {
            Body::Error(_) => Kind::Error,
            Body::RuntimeError(_) => Kind::RuntimeError,
            Body::Pid => Kind::Pid,
            Body::PidRsp(_) => Kind::PidRsp,
            Body::Attach => Kind::Attach,
            Body::AttachRsp(_) => Kind::AttachRsp,
            Body::Open(_) => Kind::Open,
            Body::OpenRsp(_) => Kind::OpenRsp,
            Body::Pause => Kind::Pause,
            Body::PauseRsp(_) => Kind::PauseRsp,
            Body::Resume(_) => Kind::Resume,
            Body::ResumeRsp(_) => Kind::ResumeRsp,
            Body::Close => Kind::Close,
            Body::CloseRsp(_) => Kind::CloseRsp,
            Body::Detach => Kind::Detach,
            Body::DetachRsp(_) => Kind::DetachRsp,
            Body::ListMinors => Kind::ListMinors,
            Body::ListMinorsRsp(_) => Kind::ListMinorsRsp,
            Body::List => Kind::List,
            Body::ListRsp(_) => Kind::ListRsp,
            Body::Stats => Kind::Stats,
            Body::StatsRsp { .. } => Kind::StatsRsp,
            Body::ForceShutdown => Kind::ForceShutdown,
            Body::DiskInfo => Kind::DiskInfo,
            Body::DiskInfoRsp(_) => Kind::DiskInfoRsp,
            Body::XenblkifConnect(_) => Kind::XenblkifConnect,
            Body::XenblkifConnectRsp(_) => Kind::XenblkifConnectRsp,
            Body::XenblkifDisconnect(_) => Kind::XenblkifDisconnect,
            Body::XenblkifDisconnectRsp(_) => Kind::XenblkifDisconnectRsp,
            Body::Exit => Kind::Exit,
            Body::XcpNg(XcpNg::Commit) => Kind::Commit,
            Body::XcpNg(XcpNg::CommitRsp) => Kind::CommitRsp,
            Body::XcpNg(XcpNg::QueryCommitJob) => Kind::QueryCommitJob,
            Body::XcpNg(XcpNg::QueryCommitJobRsp) => Kind::QueryCommitJobRsp,
            Body::XcpNg(XcpNg::CancelCommitJob) => Kind::CancelCommitJob,
            Body::XcpNg(XcpNg::CancelCommitJobRsp) => Kind::CancelCommitJobRsp,
        }
    }
}

impl<'a> Message<'a> {
    /// The answer to a request of `kind` that could not be done, in the form that the dialect has for it; `None`: to
    /// bytes that are no request.
    pub fn refusal(dialect: Dialect, cookie: u16, kind: Option<Kind>, response: Response<'a>) -> Message<'a> {
        let body = match kind.map(|kind| kind.refusal(dialect)) {
            Some(Kind::AttachRsp) => Body::AttachRsp(response),
            Some(Kind::DetachRsp) => Body::DetachRsp(response),
            Some(Kind::CloseRsp) => Body::CloseRsp(response),
            Some(Kind::PauseRsp) => Body::PauseRsp(response),
            Some(Kind::ResumeRsp) => Body::ResumeRsp(response),
            Some(Kind::XenblkifConnectRsp) => Body::XenblkifConnectRsp(response),
            Some(Kind::XenblkifDisconnectRsp) => Body::XenblkifDisconnectRsp(response),
            _ => Body::Error(response),
        };
        Message { cookie, body }
    }

    /// How what this message answers ended: its error, if it carries one that is not 0. A client asks this of every
    /// answer, as either dialect may say no in either form.
    pub fn failure(&self) -> Option<Response<'a>> {
        match self.body {
            Body::Error(response) => Some(response),
            Body::AttachRsp(response)
            | Body::PauseRsp(response)
            | Body::ResumeRsp(response)
            | Body::CloseRsp(response)
            | Body::DetachRsp(response)
            | Body::XenblkifConnectRsp(response)
            | Body::XenblkifDisconnectRsp(response) => Some(response).filter(|response| response.error != 0),
            _ => None,
        }
    }
}

// Requests wait in futures: a message that grew would be felt there.
const _: () = assert!(size_of::<Message<'_>>() <= 104);

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn pages_of_a_ring() {
        let all = [11, 12, 13, 14, 15, 16, 17, 18, 19];
        for count in 0..=9 {
            let grefs = Grefs::new(&all[..count]);
            assert_eq!(grefs.is_some(), [1, 2, 4, 8].contains(&count), "{count}");
            if let Some(grefs) = grefs {
                assert_eq!(grefs.as_slice(), &all[..count]);
                assert_eq!(1 << grefs.order(), count);
            }
        }
    }

    #[test]
    fn protocols() {
        // From the RFC's enum and blktap's: native, 32 bit, 64 bit.
        for number in [0, 4, u32::MAX] {
            assert_eq!(Protocol::of(number), None);
        }
        let layouts = [(1, Layout::X86_64), (2, Layout::X86_32), (3, Layout::X86_64)];
        for (number, layout) in layouts {
            let proto = Protocol::of(number).unwrap();
            assert_eq!((proto as u32, proto.layout()), (number, layout));
        }
    }

    #[test]
    fn lists_of_minors() {
        let many = [7i32.to_le_bytes(); 64];
        assert_eq!(Minors::new(&many), None);
        assert_eq!(Minors::new(&many[..63]).unwrap().iter().collect::<Vec<_>>(), [7; 63]);
        assert_eq!(Minors::new(&[]).unwrap().iter().len(), 0);
    }

    #[test]
    fn refusals_take_the_dialects_form() {
        let response = Response::failed(Errno::EBUSY, Text::cut("minor 3 is open"));
        assert_eq!(response, Response { error: 16, message: Text::new("minor 3 is open").unwrap() });
        for dialect in Dialect::ALL {
            for kind in Kind::ALL.iter().copied().map(Some).chain([None]) {
                let message = Message::refusal(dialect, 3, kind, response);
                let expected = kind.map_or(Kind::Error, |kind| kind.refusal(dialect));
                assert_eq!((message.cookie, message.body.kind()), (3, expected));
                assert_eq!(message.failure(), Some(response));
                // The same form with no error in it is no failure, unless it is ERROR.
                let done = Message::refusal(dialect, 3, kind, Response::DONE);
                assert_eq!(done.failure().is_some(), expected == Kind::Error);
            }
        }
        let negative = Response { error: -5, message: Text::EMPTY };
        assert_eq!(Message { cookie: 0, body: Body::PauseRsp(negative) }.failure(), Some(negative));
        assert_eq!(Message { cookie: 0, body: Body::Pid }.failure(), None);
        assert_eq!(Message { cookie: 0, body: Body::RuntimeError(response) }.failure(), None);
    }
}
