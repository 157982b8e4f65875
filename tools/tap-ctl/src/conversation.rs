//! Requests and answers, as typed calls.
//!
//! What a server answers is checked before it is believed: the right message, with the request's cookie, a list that
//! ends, a length that can be. An answer that makes no sense is EPROTO and names what was wrong with it.

use std::io::Read;
use std::time::{Duration, Instant};

use protocol::tapdisk::{
    Blkif, Body, Dialect, Image, Kind, MESSAGE_BYTES_MAX, Malformed, Message, Params, REQUEST_BYTES_MAX, Request,
    Response, Text, Vdev,
};
use rustix::io::Errno;

use crate::failure::{Failure, words};
use crate::line::{Channel, Line};

/// How long a server may take for what it need not wait for, as tapdisk's clients have it for LIST and STATS.
pub const PROMPT: Duration = Duration::from_secs(10);

/// Statistics that are longer are none.
const STATS_BYTES_MAX: u64 = 64 << 20;

/// A VBD of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vbd {
    /// Its minor.
    pub minor: u16,
    /// The bits of its state.
    pub state: u32,
    /// Its image, `TYPE:SOURCE`; empty if it has none.
    pub path: String,
}

/// One message of an answer, still as bytes.
struct Answer {
    dialect: Dialect,
    bytes: [u8; MESSAGE_BYTES_MAX],
}

impl Answer {
    fn message(&self) -> Result<Message<'_>, Malformed> {
        Message::decode(self.dialect, &self.bytes[..self.dialect.message_bytes()]).map_err(|rejected| rejected.why)
    }

    /// What it says, once [`Conversation::receive`] has found that it says something.
    fn body(&self) -> Result<Body<'_>, Failure> {
        self.message().map(|message| message.body).map_err(|why| Failure::new(Errno::PROTO, why))
    }
}

/// A talk with one server. A connection that breaks is opened anew for the next request, never for the same one: it may
/// have been done.
pub struct Conversation<L> {
    line: L,
    dialect: Dialect,
    channel: Option<Box<dyn Channel>>,
    /// Tell every message on standard error.
    debug: bool,
}

impl<L: Line> Conversation<L> {
    /// Over this line, in this dialect; nothing is opened yet.
    pub fn new(line: L, dialect: Dialect, debug: bool) -> Self {
        Conversation { line, dialect, channel: None, debug }
    }

    /// The line.
    pub fn line(&self) -> &L {
        &self.line
    }

    /// PID: the server's number.
    pub fn pid(&mut self) -> Result<i32, Failure> {
        let request = Request::of(Message { cookie: 0, body: Body::Pid });
        match self.ask(&request, Some(PROMPT))?.body()? {
            Body::PidRsp(pid) => Ok(pid),
            other => Err(odd(Kind::Pid, &other)),
        }
    }

    /// ATTACH.
    pub fn attach(&mut self, minor: u16) -> Result<(), Failure> {
        self.order(minor, Body::Attach, Some(PROMPT))
    }

    /// DETACH.
    pub fn detach(&mut self, minor: u16) -> Result<(), Failure> {
        self.order(minor, Body::Detach, Some(PROMPT))
    }

    /// OPEN, with the log's path and the key that its flags announce.
    pub fn open(
        &mut self,
        minor: u16,
        params: Params<'_>,
        log: Option<Text<'_>>,
        key: Option<&[u8]>,
    ) -> Result<Image, Failure> {
        let message = Message { cookie: minor, body: Body::Open(params) };
        match self.ask(&Request { message, log, key }, None)?.body()? {
            Body::OpenRsp(image) => Ok(image),
            other => Err(odd(Kind::Open, &other)),
        }
    }

    /// CLOSE, or FORCE_SHUTDOWN.
    pub fn close(&mut self, minor: u16, force: bool, limit: Option<Duration>) -> Result<(), Failure> {
        self.order(minor, if force { Body::ForceShutdown } else { Body::Close }, limit)
    }

    /// PAUSE.
    pub fn pause(&mut self, minor: u16, limit: Option<Duration>) -> Result<(), Failure> {
        self.order(minor, Body::Pause, limit)
    }

    /// RESUME, with the log's path that its flags announce.
    pub fn resume(&mut self, minor: u16, params: Params<'_>, log: Option<Text<'_>>) -> Result<(), Failure> {
        let message = Message { cookie: minor, body: Body::Resume(params) };
        match self.ask(&Request { message, log, key: None }, None)?.body()? {
            Body::ResumeRsp(response) => done(Kind::Resume, response),
            other => Err(odd(Kind::Resume, &other)),
        }
    }

    /// DISK_INFO.
    pub fn info(&mut self, minor: u16) -> Result<Image, Failure> {
        let request = Request::of(Message { cookie: minor, body: Body::DiskInfo });
        match self.ask(&request, Some(PROMPT))?.body()? {
            Body::DiskInfoRsp(image) => Ok(image),
            other => Err(odd(Kind::DiskInfo, &other)),
        }
    }

    /// XENBLKIF_CONNECT.
    pub fn connect(&mut self, minor: u16, blkif: Blkif<'_>) -> Result<(), Failure> {
        self.order(minor, Body::XenblkifConnect(blkif), Some(PROMPT))
    }

    /// XENBLKIF_DISCONNECT.
    pub fn disconnect(&mut self, minor: u16, vdev: Vdev, limit: Option<Duration>) -> Result<(), Failure> {
        self.order(minor, Body::XenblkifDisconnect(vdev), limit)
    }

    /// EXIT.
    pub fn exit(&mut self, limit: Option<Duration>) -> Result<(), Failure> {
        self.order(0, Body::Exit, limit)
    }

    /// LIST: of one minor, or with [`EVERY_MINOR`](protocol::tapdisk::EVERY_MINOR) of all.
    pub fn list(&mut self, minor: u16) -> Result<Vec<Vbd>, Failure> {
        let request = Request::of(Message { cookie: minor, body: Body::List });
        let mut answer = self.begin(&request, Instant::now().checked_add(PROMPT))?;
        let mut vbds = Vec::new();
        let mut before = u32::MAX;
        loop {
            let listed = match answer.body()? {
                Body::ListRsp(listed) => listed,
                other => return Err(odd(Kind::List, &other)),
            };
            if listed.count == 0 {
                break;
            }
            // The rest grows less with every answer, or the list would have no end.
            if listed.count >= before {
                return Err(self.nonsense(format!("list: {} to come after {before}", listed.count)));
            }
            before = listed.count;
            match u16::try_from(listed.minor) {
                Ok(minor) => vbds.push(Vbd { minor, state: listed.state, path: listed.path.to_string() }),
                Err(_) => return Err(self.nonsense(format!("list: a VBD of minor {}", listed.minor))),
            }
            answer = self.receive(None, Kind::List)?;
        }
        self.end();
        Ok(vbds)
    }

    /// STATS: the JSON of one minor, or of all.
    pub fn stats(&mut self, minor: u16) -> Result<Vec<u8>, Failure> {
        let request = Request::of(Message { cookie: minor, body: Body::Stats });
        let bytes = match self.begin(&request, Instant::now().checked_add(PROMPT))?.body()? {
            Body::StatsRsp { bytes } => bytes,
            other => return Err(odd(Kind::Stats, &other)),
        };
        if bytes > STATS_BYTES_MAX {
            return Err(self.nonsense(format!("stats: {bytes} bytes of them")));
        }
        let mut json = Vec::new();
        let channel = self.channel.as_mut().ok_or(Errno::NOTCONN)?;
        match channel.take(bytes).read_to_end(&mut json) {
            Ok(read) if read as u64 == bytes => {}
            Ok(_) => return Err(self.broken(Errno::CONNRESET.into(), Kind::Stats)),
            Err(why) => return Err(self.broken(why.into(), Kind::Stats)),
        }
        self.end();
        Ok(json)
    }

    /// The next message that nobody asked for, from an events channel: which minor, and the server's number and words;
    /// `None` if there is none until then.
    pub fn event(&mut self, until: Instant) -> Result<Option<(u16, Failure)>, Failure> {
        let mut answer = Answer { dialect: self.dialect, bytes: [0; MESSAGE_BYTES_MAX] };
        let (first, rest) = answer.bytes[..self.dialect.message_bytes()].split_at_mut(1);
        let channel = self.channel(Some(until))?;
        // The first byte may be long in coming; the rest of a message comes with it or never.
        match channel.read(first).map_err(Failure::from) {
            Ok(1) => {}
            Ok(_) => return Err(self.broken(Errno::CONNRESET.into(), Kind::RuntimeError)),
            Err(why) if why.errno() == Errno::TIMEDOUT => return Ok(None),
            Err(why) => return Err(self.broken(why, Kind::RuntimeError)),
        }
        channel.limit(Instant::now().checked_add(PROMPT));
        channel.read_exact(rest).map_err(|why| self.broken(why.into(), Kind::RuntimeError))?;
        match answer.message() {
            Ok(Message { cookie, body: Body::RuntimeError(response) }) => Ok(Some((cookie, failed(response)))),
            Ok(message) => Err(self.nonsense(format!("{} came unasked", message.body.kind().name()))),
            Err(why) => Err(self.nonsense(format!("what came unasked makes no sense: {why}"))),
        }
    }

    /// A request that is answered by done or not done.
    fn order(&mut self, minor: u16, body: Body<'_>, limit: Option<Duration>) -> Result<(), Failure> {
        let kind = body.kind();
        match self.ask(&Request::of(Message { cookie: minor, body }), limit)?.body()? {
            Body::AttachRsp(response)
            | Body::DetachRsp(response)
            | Body::CloseRsp(response)
            | Body::PauseRsp(response)
            | Body::XenblkifConnectRsp(response)
            | Body::XenblkifDisconnectRsp(response) => done(kind, response),
            Body::Exit => Ok(()),
            other => Err(odd(kind, &other)),
        }
    }

    /// A request whose answer is one message.
    fn ask(&mut self, request: &Request<'_>, limit: Option<Duration>) -> Result<Answer, Failure> {
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        let answer = self.begin(request, until)?;
        self.end();
        Ok(answer)
    }

    /// Sends a request and receives the first message of its answer; ERROR is a failure.
    fn begin(&mut self, request: &Request<'_>, until: Option<Instant>) -> Result<Answer, Failure> {
        let kind = request.message.body.kind();
        let mut bytes = [0; REQUEST_BYTES_MAX];
        let bytes = request.encode(self.dialect, &mut bytes);
        let bytes = bytes.map_err(|why| Failure::new(Errno::INVAL, format!("{}: {why}", kind.name())))?;
        if self.debug {
            eprintln!("tap-ctl: {}: > {request:?}", self.line.name());
        }
        let channel = self.channel(until)?;
        // In one piece: tapdisk cannot put a request together.
        let sent = channel.write_all(bytes).and_then(|()| channel.flush());
        sent.map_err(|why| self.broken(why.into(), kind))?;
        self.receive(Some(request.message.cookie), kind)
    }

    /// Receives one message of the answer to a request, with this cookie if its cookie says something.
    fn receive(&mut self, cookie: Option<u16>, kind: Kind) -> Result<Answer, Failure> {
        let mut answer = Answer { dialect: self.dialect, bytes: [0; MESSAGE_BYTES_MAX] };
        let channel = self.channel.as_mut().ok_or(Errno::NOTCONN)?;
        let read = channel.read_exact(&mut answer.bytes[..self.dialect.message_bytes()]);
        read.map_err(|why| self.broken(why.into(), kind))?;
        let message = answer.message();
        if self.debug {
            eprintln!("tap-ctl: {}: < {message:?}", self.line.name());
        }
        let why = match message {
            Err(why) => format!("{}: the answer makes no sense: {why}", kind.name()),
            // The cookie of a refusal is not looked at: tapdisk does not echo it in all of them.
            Ok(Message { body: Body::Error(response), .. }) => {
                self.end();
                return Err(failed(response).while_doing(kind.name()));
            }
            Ok(message) if Some(message.body.kind()) != kind.response() => {
                format!("{}: answered by {}", kind.name(), message.body.kind().name())
            }
            Ok(message) if cookie.is_some_and(|cookie| cookie != message.cookie) => {
                format!("{}: answered for minor {}", kind.name(), message.cookie)
            }
            Ok(_) => return Ok(answer),
        };
        Err(self.nonsense(why))
    }

    /// The connection, opened if there is none, with this limit.
    fn channel(&mut self, until: Option<Instant>) -> Result<&mut dyn Channel, Failure> {
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => self.line.open(until)?,
        };
        let channel = self.channel.insert(channel);
        channel.limit(until);
        Ok(channel.as_mut())
    }

    /// The whole answer is there.
    fn end(&mut self) {
        if !self.line.lasts() {
            self.channel = None;
        }
    }

    /// The server broke the protocol: nobody knows what the next byte would be.
    fn nonsense(&mut self, why: String) -> Failure {
        self.channel = None;
        Failure::new(Errno::PROTO, why)
    }

    /// The connection ended or took too long; what comes later would be taken for another answer.
    fn broken(&mut self, why: Failure, kind: Kind) -> Failure {
        self.channel = None;
        let why = match why.errno() {
            Errno::TIMEDOUT => Failure::new(Errno::TIMEDOUT, "no answer in time; it may still be done"),
            Errno::CONNRESET | Errno::PIPE => {
                Failure::new(Errno::CONNRESET, "the connection ended before the answer; it may have been done")
            }
            _ => why,
        };
        why.while_doing(kind.name())
    }
}

/// Whether a response says that it was done.
fn done(kind: Kind, response: Response<'_>) -> Result<(), Failure> {
    if response.error == 0 { Ok(()) } else { Err(failed(response).while_doing(kind.name())) }
}

/// The server's own words if it has some, else the number's.
fn failed(response: Response<'_>) -> Failure {
    let text = response.message.as_str();
    let text = if text.is_empty() { words(response.error) } else { text.to_owned() };
    Failure::of_number(response.error, text)
}

fn odd(kind: Kind, body: &Body<'_>) -> Failure {
    Failure::new(Errno::PROTO, format!("{}: answered by {}", kind.name(), body.kind().name()))
}
