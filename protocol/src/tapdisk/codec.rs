//! Bytes to messages and back: `struct tapdisk_message` on x86-64.
//!
//! Offsets are those that a C compiler gives the headers' structures; a test compiles them. What no field of a message
//! covers is written as zero, so nothing of ours leaks, and not read.

use super::body::XcpNg;
use super::*;

/// Of the header.
const TYPE: usize = 0;
const COOKIE: usize = 2;
/// Where the union begins; bytes 4 to 7 are padding.
const UNION: usize = 8;

/// Offsets within the union, of each structure.
mod at {
    pub mod params {
        pub const FLAGS: usize = 0;
        pub const DEVNUM: usize = 4;
        pub const DOMID: usize = 8;
        pub const PATH: usize = 12;
        pub const PRT_DEVNUM: usize = 268;
        /// blktap only; it moves `secondary`.
        pub const REQ_TIMEOUT: usize = 272;
    }
    pub mod image {
        pub const SECTORS: usize = 0;
        pub const SECTOR_SIZE: usize = 8;
        pub const INFO: usize = 12;
    }
    pub mod response {
        pub const ERROR: usize = 0;
        pub const MESSAGE: usize = 4;
    }
    pub mod minors {
        pub const COUNT: usize = 0;
        pub const LIST: usize = 4;
    }
    pub mod list {
        pub const COUNT: usize = 0;
        pub const MINOR: usize = 4;
        pub const STATE: usize = 8;
        pub const PATH: usize = 12;
    }
    pub mod stat {
        pub const LENGTH: usize = 8;
    }
    pub mod blkif {
        pub const DOMID: usize = 0;
        pub const DEVID: usize = 4;
        pub const GREF: usize = 8;
        pub const ORDER: usize = 40;
        pub const PROTO: usize = 44;
        pub const POOL: usize = 48;
        pub const PORT: usize = 304;
        /// blktap only.
        pub const POLL_DURATION: usize = 308;
        /// blktap only.
        pub const POLL_IDLE_THRESHOLD: usize = 312;
    }
}

/// `params.secondary`: right behind `prt_devnum`, or behind the time-out that blktap put between them.
const fn secondary(dialect: Dialect) -> usize {
    match dialect {
        Dialect::Rfc => 272,
        Dialect::Blktap => 274,
    }
}

impl<'a> Message<'a> {
    /// Reads a message of the dialect's size.
    ///
    /// Fields that a message does not have are not looked at. tapdisk refuses any message without a NUL in its bytes 20 to
    /// 275, where some have a path; here only texts must end that are texts.
    pub fn decode(dialect: Dialect, bytes: &'a [u8]) -> Result<Message<'a>, Rejected> {
        if bytes.len() != dialect.message_bytes() {
            return Err(Rejected { cookie: 0, kind: None, why: Malformed::Length });
        }
        let header = Reader(bytes);
        let (id, cookie) = (header.u16(TYPE), header.u16(COOKIE));
        let kind = Kind::of(dialect, id);
        let rejected = |why| Rejected { cookie, kind, why };
        let kind = kind.ok_or(rejected(Malformed::Type(id)))?;
        let body = Reader(&bytes[UNION..]).body(dialect, kind).map_err(rejected)?;
        Ok(Message { cookie, body })
    }

    /// Writes the message, and returns its bytes: as many as the dialect's messages have.
    ///
    /// An error is the caller's: a message or a field that the dialect does not have.
    pub fn encode<'b>(
        &self,
        dialect: Dialect,
        into: &'b mut [u8; MESSAGE_BYTES_MAX],
    ) -> Result<&'b mut [u8], Malformed> {
        let kind = self.body.kind();
        let id = kind.id(dialect).ok_or(Malformed::Kind(kind))?;
        let bytes = &mut into[..dialect.message_bytes()];
        bytes.fill(0);
        let mut header = Writer(bytes);
        header.put(TYPE, id.to_le_bytes());
        header.put(COOKIE, self.cookie.to_le_bytes());
        Writer(&mut bytes[UNION..]).body(dialect, &self.body)?;
        Ok(bytes)
    }
}

/// The bytes of a message or of its union. All offsets are ours, so none is beyond the end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[at..at + N]);
        bytes
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn i32(&self, at: usize) -> i32 {
        i32::from_le_bytes(self.bytes(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    fn text(&self, at: usize, field: Field) -> Result<Text<'a>, Malformed> {
        Text::decode(&self.0[at..at + TEXT_BYTES], field)
    }

    fn body(&self, dialect: Dialect, kind: Kind) -> Result<Body<'a>, Malformed> {
        Ok(match kind {
            Kind::Error => Body::Error(self.response()?),
            Kind::RuntimeError => Body::RuntimeError(self.response()?),
            Kind::Pid => Body::Pid,
            Kind::PidRsp => Body::PidRsp(self.i32(0)),
            Kind::Attach => Body::Attach,
            Kind::AttachRsp => Body::AttachRsp(self.response()?),
            Kind::Open => Body::Open(self.params(dialect)?),
            Kind::OpenRsp => Body::OpenRsp(self.image()),
            Kind::Pause => Body::Pause,
            Kind::PauseRsp => Body::PauseRsp(self.response()?),
            Kind::Resume => Body::Resume(self.params(dialect)?),
            Kind::ResumeRsp => Body::ResumeRsp(self.response()?),
            Kind::Close => Body::Close,
            Kind::CloseRsp => Body::CloseRsp(self.response()?),
            Kind::Detach => Body::Detach,
            Kind::DetachRsp => Body::DetachRsp(self.response()?),
            Kind::ListMinors => Body::ListMinors,
            Kind::ListMinorsRsp => Body::ListMinorsRsp(self.minors()?),
            Kind::List => Body::List,
            Kind::ListRsp => Body::ListRsp(self.listed()?),
            Kind::Stats => Body::Stats,
            Kind::StatsRsp => Body::StatsRsp { bytes: self.u64(at::stat::LENGTH) },
            Kind::ForceShutdown => Body::ForceShutdown,
            Kind::DiskInfo => Body::DiskInfo,
            Kind::DiskInfoRsp => Body::DiskInfoRsp(self.image()),
            Kind::XenblkifConnect => Body::XenblkifConnect(self.blkif(dialect)?),
            Kind::XenblkifConnectRsp => Body::XenblkifConnectRsp(self.response()?),
            Kind::XenblkifDisconnect => Body::XenblkifDisconnect(self.vdev()?),
            Kind::XenblkifDisconnectRsp => Body::XenblkifDisconnectRsp(self.response()?),
            Kind::Exit => Body::Exit,
            Kind::Commit => Body::XcpNg(XcpNg::Commit),
            Kind::CommitRsp => Body::XcpNg(XcpNg::CommitRsp),
            Kind::QueryCommitJob => Body::XcpNg(XcpNg::QueryCommitJob),
            Kind::QueryCommitJobRsp => Body::XcpNg(XcpNg::QueryCommitJobRsp),
            Kind::CancelCommitJob => Body::XcpNg(XcpNg::CancelCommitJob),
            Kind::CancelCommitJobRsp => Body::XcpNg(XcpNg::CancelCommitJobRsp),
        })
    }

    fn params(&self, dialect: Dialect) -> Result<Params<'a>, Malformed> {
        use at::params::*;
        let prt_devnum = self.u32(PRT_DEVNUM);
        Ok(Params {
            flags: Flags::of_bits(self.u32(FLAGS)),
            devnum: self.u32(DEVNUM),
            domid: self.u32(DOMID),
            path: self.text(PATH, Field::Path)?,
            prt_devnum: Some(prt_devnum).filter(|number| i32::try_from(*number).is_ok()),
            req_timeout: match dialect {
                Dialect::Rfc => 0,
                Dialect::Blktap => self.u16(REQ_TIMEOUT),
            },
            secondary: self.text(secondary(dialect), Field::Secondary)?,
        })
    }

    fn image(&self) -> Image {
        use at::image::*;
        Image { sectors: self.u64(SECTORS), sector_size: self.u32(SECTOR_SIZE), info: self.u32(INFO) }
    }

    fn response(&self) -> Result<Response<'a>, Malformed> {
        use at::response::*;
        Ok(Response { error: self.i32(ERROR), message: self.text(MESSAGE, Field::Message)? })
    }

    fn minors(&self) -> Result<Minors<'a>, Malformed> {
        use at::minors::*;
        let wrong = Malformed::Field(Field::Count, Fault::OutOfRange);
        let count = usize::try_from(self.i32(COUNT)).map_err(|_| wrong)?;
        let all = self.0[LIST..LIST + 4 * MINORS_MAX].as_chunks().0;
        all.get(..count).and_then(Minors::new).ok_or(wrong)
    }

    fn listed(&self) -> Result<Listed<'a>, Malformed> {
        use at::list::*;
        Ok(Listed {
            count: u32::try_from(self.i32(COUNT)).map_err(|_| Malformed::Field(Field::Count, Fault::OutOfRange))?,
            minor: self.i32(MINOR),
            state: self.u32(STATE),
            path: self.text(PATH, Field::Path)?,
        })
    }

    fn vdev(&self) -> Result<Vdev, Malformed> {
        use at::blkif::*;
        let domid = u16::try_from(self.u32(DOMID)).map_err(|_| Malformed::Field(Field::Domid, Fault::OutOfRange))?;
        Ok(Vdev { domid, devid: self.u32(DEVID) })
    }

    fn blkif(&self, dialect: Dialect) -> Result<Blkif<'a>, Malformed> {
        use at::blkif::*;
        let out_of_range = |field| Malformed::Field(field, Fault::OutOfRange);
        let mut grefs = [0; Grefs::MAX];
        for (index, gref) in grefs.iter_mut().enumerate() {
            *gref = self.u32(GREF + 4 * index);
        }
        // Bounded before it is used: an order of 31 or more could not even be shifted by.
        let order = self.u32(ORDER);
        let pages = 1usize.checked_shl(order).filter(|pages| *pages <= Grefs::MAX);
        let grefs = pages.and_then(|pages| Grefs::new(&grefs[..pages])).ok_or(out_of_range(Field::Order))?;
        Ok(Blkif {
            vdev: self.vdev()?,
            grefs,
            proto: Protocol::of(self.u32(PROTO)).ok_or(out_of_range(Field::Proto))?,
            pool: self.text(POOL, Field::Pool)?,
            port: self.u32(PORT),
            poll: match dialect {
                Dialect::Rfc => Poll::default(),
                Dialect::Blktap => {
                    Poll { duration: self.u32(POLL_DURATION), idle_threshold: self.u32(POLL_IDLE_THRESHOLD) }
                }
            },
        })
    }
}

/// The bytes of a message or of its union, zero before.
struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }

    fn text(&mut self, at: usize, text: Text<'_>) {
        self.0[at..at + text.len()].copy_from_slice(text.as_bytes());
    }

    fn body(&mut self, dialect: Dialect, body: &Body<'_>) -> Result<(), Malformed> {
        match body {
            Body::Error(response)
            | Body::RuntimeError(response)
            | Body::AttachRsp(response)
            | Body::PauseRsp(response)
            | Body::ResumeRsp(response)
            | Body::CloseRsp(response)
            | Body::DetachRsp(response)
            | Body::XenblkifConnectRsp(response)
            | Body::XenblkifDisconnectRsp(response) => self.response(response),
            Body::PidRsp(pid) => self.put(0, pid.to_le_bytes()),
            Body::Open(params) | Body::Resume(params) => self.params(dialect, params)?,
            Body::OpenRsp(image) | Body::DiskInfoRsp(image) => self.image(image),
            Body::ListMinorsRsp(minors) => self.minors(*minors),
            Body::ListRsp(listed) => self.listed(listed)?,
            Body::StatsRsp { bytes } => self.put(at::stat::LENGTH, bytes.to_le_bytes()),
            Body::XenblkifConnect(blkif) => self.blkif(dialect, blkif)?,
            Body::XenblkifDisconnect(vdev) => self.vdev(vdev),
            Body::Pid
            | Body::Attach
            | Body::Pause
            | Body::Close
            | Body::Detach
            | Body::ListMinors
            | Body::List
            | Body::Stats
            | Body::ForceShutdown
            | Body::DiskInfo
            | Body::Exit
            | Body::XcpNg(_) => {}
        }
        Ok(())
    }

    fn params(&mut self, dialect: Dialect, params: &Params<'_>) -> Result<(), Malformed> {
        use at::params::*;
        self.put(FLAGS, params.flags.bits().to_le_bytes());
        self.put(DEVNUM, params.devnum.to_le_bytes());
        self.put(DOMID, params.domid.to_le_bytes());
        self.text(PATH, params.path);
        let prt_devnum = params.prt_devnum.map_or(Ok(-1), i32::try_from);
        let prt_devnum = prt_devnum.map_err(|_| Malformed::Field(Field::PrtDevnum, Fault::OutOfRange))?;
        self.put(PRT_DEVNUM, prt_devnum.to_le_bytes());
        match (dialect, params.req_timeout) {
            (Dialect::Rfc, 0) => {}
            (Dialect::Rfc, _) => return Err(Malformed::Field(Field::ReqTimeout, Fault::NotInDialect)),
            (Dialect::Blktap, seconds) => self.put(REQ_TIMEOUT, seconds.to_le_bytes()),
        }
        self.text(secondary(dialect), params.secondary);
        Ok(())
    }

    fn image(&mut self, image: &Image) {
        use at::image::*;
        self.put(SECTORS, image.sectors.to_le_bytes());
        self.put(SECTOR_SIZE, image.sector_size.to_le_bytes());
        self.put(INFO, image.info.to_le_bytes());
    }

    fn response(&mut self, response: &Response<'_>) {
        use at::response::*;
        self.put(ERROR, response.error.to_le_bytes());
        self.text(MESSAGE, response.message);
    }

    fn minors(&mut self, minors: Minors<'_>) {
        use at::minors::*;
        let minors = minors.bytes();
        self.put(COUNT, (minors.len() as i32).to_le_bytes());
        for (index, minor) in minors.iter().enumerate() {
            self.put(LIST + 4 * index, *minor);
        }
    }

    fn listed(&mut self, listed: &Listed<'_>) -> Result<(), Malformed> {
        use at::list::*;
        let count = i32::try_from(listed.count).map_err(|_| Malformed::Field(Field::Count, Fault::OutOfRange))?;
        self.put(COUNT, count.to_le_bytes());
        self.put(MINOR, listed.minor.to_le_bytes());
        self.put(STATE, listed.state.to_le_bytes());
        self.text(PATH, listed.path);
        Ok(())
    }

    fn vdev(&mut self, vdev: &Vdev) {
        use at::blkif::*;
        self.put(DOMID, u32::from(vdev.domid).to_le_bytes());
        self.put(DEVID, vdev.devid.to_le_bytes());
    }

    fn blkif(&mut self, dialect: Dialect, blkif: &Blkif<'_>) -> Result<(), Malformed> {
        use at::blkif::*;
        self.vdev(&blkif.vdev);
        for (index, gref) in blkif.grefs.as_slice().iter().enumerate() {
            self.put(GREF + 4 * index, gref.to_le_bytes());
        }
        self.put(ORDER, u32::from(blkif.grefs.order()).to_le_bytes());
        self.put(PROTO, (blkif.proto as u32).to_le_bytes());
        self.text(POOL, blkif.pool);
        self.put(PORT, blkif.port.to_le_bytes());
        match (dialect, blkif.poll) {
            (Dialect::Rfc, Poll { duration: 0, idle_threshold: 0 }) => {}
            (Dialect::Rfc, Poll { duration: 0, .. }) => {
                return Err(Malformed::Field(Field::PollIdleThreshold, Fault::NotInDialect));
            }
            (Dialect::Rfc, _) => return Err(Malformed::Field(Field::PollDuration, Fault::NotInDialect)),
            (Dialect::Blktap, poll) => {
                self.put(POLL_DURATION, poll.duration.to_le_bytes());
                self.put(POLL_IDLE_THRESHOLD, poll.idle_threshold.to_le_bytes());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of this kind whose other bytes are all zero, with changes at offsets of the union.
    fn bytes(dialect: Dialect, kind: Kind, changes: &[(usize, &[u8])]) -> [u8; MESSAGE_BYTES_MAX] {
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        bytes[..2].copy_from_slice(&kind.id(dialect).unwrap().to_le_bytes());
        bytes[2..4].copy_from_slice(&7u16.to_le_bytes());
        for (at, change) in changes {
            bytes[8 + at..][..change.len()].copy_from_slice(change);
        }
        bytes
    }

    /// What such a message says.
    fn decoded(dialect: Dialect, kind: Kind, changes: &[(usize, &[u8])]) -> Result<(), Malformed> {
        match Message::decode(dialect, &bytes(dialect, kind, changes)[..dialect.message_bytes()]) {
            Ok(message) => {
                assert_eq!((message.cookie, message.body.kind()), (7, kind));
                Ok(())
            }
            Err(rejected) => {
                assert_eq!((rejected.cookie, rejected.kind), (7, Some(kind)));
                Err(rejected.why)
            }
        }
    }

    #[test]
    fn other_lengths() {
        for dialect in Dialect::ALL {
            let bytes = [1; 600];
            for length in (0..600).filter(|length| *length != dialect.message_bytes()) {
                let rejected = Rejected { cookie: 0, kind: None, why: Malformed::Length };
                assert_eq!(Message::decode(dialect, &bytes[..length]), Err(rejected), "{length}");
            }
        }
    }

    #[test]
    fn other_types() {
        for (dialect, known) in [(Dialect::Rfc, 1..=30), (Dialect::Blktap, 1..=36)] {
            for id in (0..=u16::MAX).filter(|id| !known.contains(id)) {
                let mut bytes = [0; MESSAGE_BYTES_MAX];
                bytes[..2].copy_from_slice(&id.to_le_bytes());
                bytes[2..4].copy_from_slice(&[0xcd, 0xab]);
                let rejected = Rejected { cookie: 0xabcd, kind: None, why: Malformed::Type(id) };
                assert_eq!(Message::decode(dialect, &bytes[..dialect.message_bytes()]), Err(rejected));
            }
        }
    }

    #[test]
    fn texts_that_do_not_end_or_are_none() {
        for dialect in Dialect::ALL {
            let secondary = if dialect == Dialect::Rfc { 272 } else { 274 };
            let mut fields = std::vec![
                (Kind::Open, 12, Field::Path),
                (Kind::Open, secondary, Field::Secondary),
                (Kind::Resume, 12, Field::Path),
                (Kind::Resume, secondary, Field::Secondary),
                (Kind::ListRsp, 12, Field::Path),
                (Kind::XenblkifConnect, 48, Field::Pool),
            ];
            let responses = Kind::ALL.iter().filter(|kind| {
                matches!(kind, Kind::Error | Kind::RuntimeError)
                    || Kind::ALL.iter().any(|request| request.refusal(Dialect::Rfc) == **kind)
            });
            fields.extend(responses.map(|kind| (*kind, 4, Field::Message)));
            assert_eq!(fields.len(), 15);
            for (kind, at, field) in fields {
                // Of a ring one must be valid besides: order 0, native.
                let rest: (usize, &[u8]) = if kind == Kind::XenblkifConnect { (44, &[1]) } else { (0, &[]) };
                let wrong = |fault| Err(Malformed::Field(field, fault));
                assert_eq!(decoded(dialect, kind, &[rest, (at, &[b'a'; 255])]), Ok(()), "{kind:?}");
                assert_eq!(decoded(dialect, kind, &[rest, (at, &[b'a'; 256])]), wrong(Fault::NoNul), "{kind:?}");
                assert_eq!(decoded(dialect, kind, &[rest, (at, b"a\xff")]), wrong(Fault::NotUtf8), "{kind:?}");
                assert_eq!(decoded(dialect, kind, &[rest, (at, b"a\0\xff")]), Ok(()), "{kind:?}");
            }
        }
    }

    #[test]
    fn numbers_that_are_none() {
        for dialect in Dialect::ALL {
            let out_of_range = |field| Err(Malformed::Field(field, Fault::OutOfRange));
            for (kind, at, field, last, rest) in [
                (Kind::XenblkifConnect, 40, Field::Order, 3, (44, [1, 0, 0, 0])),
                (Kind::XenblkifConnect, 0, Field::Domid, 0xffff, (44, [1, 0, 0, 0])),
                (Kind::XenblkifDisconnect, 0, Field::Domid, 0xffff, (44, [1, 0, 0, 0])),
                (Kind::XenblkifConnect, 44, Field::Proto, 3, (40, [0; 4])),
                (Kind::ListMinorsRsp, 0, Field::Count, 63, (4, [0; 4])),
                (Kind::ListRsp, 0, Field::Count, i32::MAX as u32, (4, [0; 4])),
            ] {
                let with = |number: u32| decoded(dialect, kind, &[(rest.0, &rest.1), (at, &number.to_le_bytes())]);
                for good in [1, last.min(2), last] {
                    assert_eq!(with(good), Ok(()), "{field:?} {good}");
                }
                for wrong in [last + 1, 1 << 31, (1 << 31) + 1, u32::MAX] {
                    assert_eq!(with(wrong), out_of_range(field), "{field:?} {wrong}");
                }
            }
            for order in [31, 32, 33, 63, 64, 65, 128, 256] {
                let changes: [(usize, &[u8]); 2] = [(44, &[1]), (40, &u32::to_le_bytes(order))];
                assert_eq!(decoded(dialect, Kind::XenblkifConnect, &changes), out_of_range(Field::Order));
            }
            assert_eq!(decoded(dialect, Kind::XenblkifConnect, &[]), out_of_range(Field::Proto));
        }
    }

    #[test]
    fn no_parent_is_any_negative_number() {
        for (number, expected) in [(0, Some(0)), (0x7fff_ffff, Some(0x7fff_ffff)), (1 << 31, None), (u32::MAX, None)] {
            let bytes = bytes(Dialect::Rfc, Kind::Open, &[(268, &u32::to_le_bytes(number))]);
            let Body::Open(params) = Message::decode(Dialect::Rfc, &bytes[..536]).unwrap().body else { panic!() };
            assert_eq!(params.prt_devnum, expected);
        }
    }

    #[test]
    fn nobody_reads_what_is_no_field() {
        for dialect in Dialect::ALL {
            for kind in Kind::ALL.iter().filter(|kind| kind.id(dialect).is_some()) {
                let junk = [0xee; 536];
                let fields = matches!(
                    kind,
                    Kind::Open | Kind::Resume | Kind::ListRsp | Kind::ListMinorsRsp | Kind::Error | Kind::RuntimeError
                ) || Kind::ALL.iter().any(|request| request.refusal(Dialect::Rfc) == *kind)
                    || matches!(kind, Kind::XenblkifConnect | Kind::XenblkifDisconnect);
                assert_eq!(decoded(dialect, *kind, &[(0, &junk)]).is_err(), fields, "{kind:?}");
                // The padding of the header is none either.
                let mut bytes = bytes(dialect, *kind, &[]);
                let clean = bytes;
                bytes[4..8].fill(0xee);
                let bytes = &bytes[..dialect.message_bytes()];
                let clean = &clean[..dialect.message_bytes()];
                assert_eq!(Message::decode(dialect, bytes), Message::decode(dialect, clean), "{kind:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_said() {
        let say = |dialect, body| {
            let mut into = [0; MESSAGE_BYTES_MAX];
            Message { cookie: 0, body }.encode(dialect, &mut into).map(|_| ())
        };
        for body in [XcpNg::Commit, XcpNg::CommitRsp, XcpNg::QueryCommitJob].map(Body::XcpNg) {
            assert_eq!(say(Dialect::Rfc, body), Err(Malformed::Kind(body.kind())));
            assert_eq!(say(Dialect::Blktap, body), Ok(()));
        }
        let absent = |field| Err(Malformed::Field(field, Fault::NotInDialect));
        let timed = Body::Open(Params { req_timeout: 1, ..Params::default() });
        assert_eq!((say(Dialect::Rfc, timed), say(Dialect::Blktap, timed)), (absent(Field::ReqTimeout), Ok(())));
        let polled = |duration, idle_threshold| {
            Body::XenblkifConnect(Blkif {
                vdev: Vdev { domid: 1, devid: 2 },
                grefs: Grefs::new(&[9]).unwrap(),
                proto: Protocol::Native,
                pool: Text::EMPTY,
                port: 3,
                poll: Poll { duration, idle_threshold },
            })
        };
        for (duration, threshold, rfc) in [
            (0, 0, Ok(())),
            (1, 0, absent(Field::PollDuration)),
            (1, 1, absent(Field::PollDuration)),
            (0, 1, absent(Field::PollIdleThreshold)),
        ] {
            assert_eq!(say(Dialect::Rfc, polled(duration, threshold)), rfc);
            assert_eq!(say(Dialect::Blktap, polled(duration, threshold)), Ok(()));
        }
        let out_of_range = |field| Err(Malformed::Field(field, Fault::OutOfRange));
        let parent = |prt_devnum| Body::Resume(Params { prt_devnum, ..Params::default() });
        let listed = |count| Body::ListRsp(Listed { count, ..Listed::END });
        for dialect in Dialect::ALL {
            assert_eq!(say(dialect, parent(Some(i32::MAX as u32))), Ok(()));
            assert_eq!(say(dialect, parent(Some(1 << 31))), out_of_range(Field::PrtDevnum));
            assert_eq!(say(dialect, listed(i32::MAX as u32)), Ok(()));
            assert_eq!(say(dialect, listed(1 << 31)), out_of_range(Field::Count));
        }
    }
}
