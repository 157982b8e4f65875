//! Messages and streams of any kind: what is said is understood, and nothing that is heard panics.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use protocol::tapdisk::*;

/// A message in owned parts, so that one can be made of chance.
#[derive(Clone, Debug)]
struct Parts {
    kind: Kind,
    cookie: u16,
    words: [u32; 6],
    long: u64,
    texts: [String; 2],
    minors: Vec<[u8; 4]>,
    grefs: Vec<u32>,
    parent: Option<u32>,
    log: String,
    key: Vec<u8>,
}

fn text() -> impl Strategy<Value = String> {
    let any = (vec(any::<char>(), 1..6), 0..200usize)
        .prop_map(|(letters, times)| Text::cut(&String::from_iter(letters).repeat(times)).to_string());
    prop_oneof![Just(String::new()), any]
}

/// Words whose small values and bits are likely.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![any::<u32>(), 0..4u32, (0..32u32).prop_map(|bit| 1 << bit), Just(u32::MAX)]
}

fn parts() -> impl Strategy<Value = Parts> {
    (
        (0..Kind::ALL.len(), any::<u16>(), [word(), word(), word(), word(), word(), word()], any::<u64>()),
        ([text(), text()], vec(any::<[u8; 4]>(), 0..=63), 0..=3u32, option::of(0..1u32 << 31)),
        (text(), vec(any::<u8>(), 1..=128), vec(any::<u32>(), 8)),
    )
        .prop_map(|((kind, cookie, words, long), (texts, minors, order, parent), (log, key, grefs))| Parts {
            kind: Kind::ALL[kind],
            cookie,
            words,
            long,
            texts,
            minors,
            grefs: grefs[..1 << order].to_vec(),
            parent,
            log,
            key,
        })
}

impl Parts {
    /// The message these parts make in a dialect; `None` if the dialect has no such message.
    fn request(&self, dialect: Dialect) -> Option<Request<'_>> {
        self.kind.id(dialect)?;
        let blktap = dialect == Dialect::Blktap;
        let [a, b, c, d, e, f] = self.words;
        let [one, two] = [0, 1].map(|index| Text::new(&self.texts[index]).unwrap());
        let response = Response { error: a as i32, message: one };
        let image = Image { sectors: self.long, sector_size: a, info: b };
        let params = Params {
            flags: Flags::of_bits(a),
            devnum: b,
            domid: c,
            path: one,
            prt_devnum: self.parent,
            req_timeout: if blktap { self.cookie } else { 0 },
            secondary: two,
        };
        let vdev = Vdev { domid: self.cookie, devid: b };
        let body = match self.kind {
            Kind::Error => Body::Error(response),
            Kind::RuntimeError => Body::RuntimeError(response),
            Kind::Pid => Body::Pid,
            Kind::PidRsp => Body::PidRsp(a as i32),
            Kind::Attach => Body::Attach,
            Kind::AttachRsp => Body::AttachRsp(response),
            Kind::Open => Body::Open(params),
            Kind::OpenRsp => Body::OpenRsp(image),
            Kind::Pause => Body::Pause,
            Kind::PauseRsp => Body::PauseRsp(response),
            Kind::Resume => Body::Resume(params),
            Kind::ResumeRsp => Body::ResumeRsp(response),
            Kind::Close => Body::Close,
            Kind::CloseRsp => Body::CloseRsp(response),
            Kind::Detach => Body::Detach,
            Kind::DetachRsp => Body::DetachRsp(response),
            Kind::ListMinors => Body::ListMinors,
            Kind::ListMinorsRsp => Body::ListMinorsRsp(Minors::new(&self.minors).unwrap()),
            Kind::List => Body::List,
            Kind::ListRsp => Body::ListRsp(Listed { count: a >> 1, minor: b as i32, state: c, path: one }),
            Kind::Stats => Body::Stats,
            Kind::StatsRsp => Body::StatsRsp { bytes: self.long },
            Kind::ForceShutdown => Body::ForceShutdown,
            Kind::XenblkifConnect => Body::XenblkifConnect(Blkif {
                vdev,
                grefs: Grefs::new(&self.grefs).unwrap(),
                proto: Protocol::of(c % 3 + 1).unwrap(),
                pool: one,
                port: d,
                poll: if blktap { Poll { duration: e, idle_threshold: f } } else { Poll::default() },
            }),
            Kind::XenblkifConnectRsp => Body::XenblkifConnectRsp(response),
            Kind::XenblkifDisconnect => Body::XenblkifDisconnect(vdev),
            Kind::XenblkifDisconnectRsp => Body::XenblkifDisconnectRsp(response),
            Kind::DiskInfo => Body::DiskInfo,
            Kind::DiskInfoRsp => Body::DiskInfoRsp(image),
            Kind::Exit => Body::Exit,
            Kind::Commit => Body::XcpNg(XcpNg::Commit),
            Kind::CommitRsp => Body::XcpNg(XcpNg::CommitRsp),
            Kind::QueryCommitJob => Body::XcpNg(XcpNg::QueryCommitJob),
            Kind::QueryCommitJobRsp => Body::XcpNg(XcpNg::QueryCommitJobRsp),
            Kind::CancelCommitJob => Body::XcpNg(XcpNg::CancelCommitJob),
            Kind::CancelCommitJobRsp => Body::XcpNg(XcpNg::CancelCommitJobRsp),
        };
        let image = blktap && matches!(self.kind, Kind::Open | Kind::Resume);
        let log = (image && a & 0x10 != 0).then(|| Text::new(&self.log).unwrap());
        let key = (image && self.kind == Kind::Open && a & 0x400 != 0).then_some(&*self.key);
        Some(Request { message: Message { cookie: self.cookie, body }, log, key })
    }
}

fn dialect() -> impl Strategy<Value = Dialect> {
    prop_oneof![Just(Dialect::Rfc), Just(Dialect::Blktap)]
}

/// Feeds the stream in pieces of these lengths, over and over; shows what arrived, each to `see`, until the step is lost.
fn feed(dialect: Dialect, mut stream: &[u8], pieces: &[usize], mut see: impl FnMut(Arrived<'_>)) {
    let mut assembler = Assembler::new(dialect);
    for piece in pieces.iter().cycle() {
        if stream.is_empty() {
            return;
        }
        let room = assembler.room();
        let count = room.len().min(*piece).min(stream.len());
        room[..count].copy_from_slice(&stream[..count]);
        stream = &stream[count..];
        if let Some(arrived) = assembler.filled(count) {
            see(arrived);
            if matches!(arrived, Arrived::OutOfStep(_)) {
                return;
            }
        }
    }
}

proptest! {
    #[test]
    fn what_is_said_is_understood(dialect in dialect(), all in vec(parts(), 1..8), pieces in vec(1..700usize, 1..20)) {
        let mut stream = Vec::new();
        let mut said = Vec::new();
        for request in all.iter().filter_map(|parts| parts.request(dialect)) {
            let mut into = [0xee; REQUEST_BYTES_MAX];
            stream.extend_from_slice(request.encode(dialect, &mut into).unwrap());
            let mut into = [0xee; MESSAGE_BYTES_MAX];
            let bytes = request.message.encode(dialect, &mut into).unwrap();
            prop_assert_eq!(Message::decode(dialect, bytes), Ok(request.message));
            said.push(request);
        }
        let mut said = said.into_iter();
        feed(dialect, &stream, &pieces, |arrived| {
            assert_eq!(Some(arrived), said.next().map(Arrived::Request));
        });
        prop_assert_eq!(said.next(), None);
    }

    #[test]
    fn any_bytes_are_answered_in_any_pieces(
        dialect in dialect(),
        heads in vec((0..40u16, any::<u16>(), word(), any::<bool>()), 1..6),
        filler in vec(prop_oneof![Just(0u8), any::<u8>()], 1..30),
        pieces in vec(1..700usize, 1..20),
        extra in 0..600usize,
    ) {
        let filler: Vec<u8> = filler.into_iter().cycle().take(1000).collect();
        let mut stream = Vec::new();
        for (id, cookie, word, zero) in heads {
            let at = stream.len();
            stream.extend_from_slice(&filler[..dialect.message_bytes()]);
            if zero {
                stream[at..].fill(0);
            }
            stream[at..at + 2].copy_from_slice(&id.to_le_bytes());
            stream[at + 2..at + 4].copy_from_slice(&cookie.to_le_bytes());
            stream[at + 8..at + 12].copy_from_slice(&word.to_le_bytes());
        }
        stream.extend_from_slice(&filler[..extra]);
        let (mut whole, mut torn) = (Vec::new(), Vec::new());
        feed(dialect, &stream, &[usize::MAX], |arrived| whole.push(format!("{arrived:?}")));
        feed(dialect, &stream, &pieces, |arrived| torn.push(format!("{arrived:?}")));
        prop_assert_eq!(&whole, &torn);
        // Nothing is held back: a message that nothing more than a log and a key can follow is told after those.
        let most = REQUEST_BYTES_MAX - MESSAGE_BYTES_MAX + dialect.message_bytes();
        let lost = whole.last().is_some_and(|last| last.starts_with("OutOfStep"));
        prop_assert!(lost || whole.len() >= stream.len() / most);
    }

    #[test]
    fn what_is_understood_can_be_said(dialect in dialect(), id in 0..40u16, bytes in vec(prop_oneof![Just(0u8), any::<u8>()], 544)) {
        let mut bytes = bytes;
        bytes[..2].copy_from_slice(&id.to_le_bytes());
        let Ok(message) = Message::decode(dialect, &bytes[..dialect.message_bytes()]) else { return Ok(()) };
        let mut into = [0xee; MESSAGE_BYTES_MAX];
        let again = message.encode(dialect, &mut into).unwrap();
        prop_assert_eq!(Message::decode(dialect, again), Ok(message));
    }

    #[test]
    fn a_reason_keeps_what_fits(pieces in vec(vec(any::<char>(), 0..60), 0..8)) {
        let pieces: Vec<String> = pieces.into_iter().map(String::from_iter).collect();
        let mut reason = Reason::new();
        for piece in &pieces {
            std::fmt::Write::write_str(&mut reason, piece).unwrap();
        }
        let whole = pieces.concat();
        let expected = Text::cut(&whole);
        prop_assert_eq!(reason.text(), expected);
        let at_once = Reason::of(&whole);
        prop_assert_eq!(at_once.text(), expected);
    }
}
