//! One client of a socket: its request goes over the line as it is, its answer comes back as it is.
//!
//! tapdisk's clients send one request per connection. It may come in any pieces, which tapdisk itself cannot take, and
//! what follows an OPEN or RESUME goes with it. The answer delimits itself: one message, a list until its count is 0,
//! statistics as long as they say.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use protocol::tapdisk::{Arrived, Assembler, Body, Dialect, MESSAGE_BYTES_MAX, Message, Reason, Rejected, Response};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::failure::Failure;
use crate::line::{Channel, Line, Timed};

/// How often it is looked whether a client that waits is still there.
const LOOK: Duration = Duration::from_secs(1);

/// Serves one client. It has `patience` to say what it wants, and again to take the answer.
pub fn relay(client: UnixStream, line: &dyn Line, dialect: Dialect, patience: Duration) -> Result<(), Failure> {
    let mut client = Client { socket: Timed::new(client.try_clone()?), raw: client, patience };
    let Some(request) = client.request(dialect)? else { return Ok(()) };
    let request = match request {
        Ok(request) => request,
        // The domain would say the same.
        Err(rejected) => {
            return client.answer(dialect, &rejected.answer(dialect, Reason::of(rejected.why).text()));
        }
    };
    let mut relayed = Relayed { channel: None, dialect };
    match relayed.exchange(&mut client, line, &request) {
        Ok(()) => Ok(()),
        // Nothing of the answer was passed on yet: the client hears why there is none.
        Err(Broken::Before(why)) => {
            let reason = Reason::of(&why);
            let response = Response { error: why.errno().raw_os_error(), message: reason.text() };
            let refusal = Message { cookie: cookie(&request), body: Body::Error(response) };
            client.answer(dialect, &refusal)?;
            Err(why)
        }
        Err(Broken::Within(why)) => Err(why),
    }
}

/// Where an exchange broke.
enum Broken {
    /// Before the client got a byte.
    Before(Failure),
    /// In the middle of its answer, or because of the client.
    Within(Failure),
}

struct Client {
    socket: Timed,
    raw: UnixStream,
    patience: Duration,
}

impl Client {
    /// A whole request; `None` if the client leaves without one.
    fn request(&mut self, dialect: Dialect) -> Result<Option<Result<Vec<u8>, Rejected>>, Failure> {
        self.socket.limit(Instant::now().checked_add(self.patience));
        let mut assembler = Assembler::new(dialect);
        let mut request = Vec::new();
        loop {
            let room = assembler.room();
            let bytes = match self.socket.read(room) {
                Ok(0) if request.is_empty() => return Ok(None),
                Ok(0) => return Err(Failure::new(Errno::CONNRESET, "a client left in the middle of a request")),
                Ok(bytes) => bytes,
                Err(why) if why.kind() == io::ErrorKind::Interrupted => continue,
                Err(why) => return Err(Failure::from(why).while_doing("a client's request")),
            };
            request.extend_from_slice(&room[..bytes]);
            match assembler.filled(bytes) {
                None => {}
                Some(Arrived::Request(_)) => return Ok(Some(Ok(request))),
                Some(Arrived::Refused(rejected) | Arrived::OutOfStep(rejected)) => return Ok(Some(Err(rejected))),
            }
        }
    }

    fn answer(&mut self, dialect: Dialect, message: &Message<'_>) -> Result<(), Failure> {
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let bytes = message.encode(dialect, &mut bytes).map_err(|why| Failure::new(Errno::PROTO, why))?;
        self.pass(bytes)
    }

    fn pass(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.socket.limit(Instant::now().checked_add(self.patience));
        self.socket.write_all(bytes).map_err(|why| Failure::from(why).while_doing("a client's answer"))
    }

    /// Whether it has gone away. It may have closed the side that it writes, and still wait.
    fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(&self.raw, PollFlags::HUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

/// The domain's side.
struct Relayed {
    channel: Option<Box<dyn Channel>>,
    dialect: Dialect,
}

impl Relayed {
    fn exchange(&mut self, client: &mut Client, line: &dyn Line, request: &[u8]) -> Result<(), Broken> {
        let channel = line.open(None).map_err(Broken::Before)?;
        let channel = self.channel.insert(channel);
        channel.limit(Instant::now().checked_add(client.patience));
        channel.write_all(request).map_err(|why| Broken::Before(why.into()))?;
        let mut first = true;
        loop {
            let mut bytes = vec![0; self.dialect.message_bytes()];
            self.receive(client, &mut bytes).map_err(if first { Broken::Before } else { Broken::Within })?;
            let message = Message::decode(self.dialect, &bytes);
            // One that makes no sense to us may make some to the client; but nobody knows what follows it.
            let body = message.map(|message| message.body);
            client.pass(&bytes).map_err(Broken::Within)?;
            first = false;
            match body {
                Ok(Body::ListRsp(listed)) if listed.count > 0 => {}
                Ok(Body::StatsRsp { bytes }) => return self.copy(client, bytes).map_err(Broken::Within),
                _ => return Ok(()),
            }
        }
    }

    /// Passes so many bytes on.
    fn copy(&mut self, client: &mut Client, mut bytes: u64) -> Result<(), Failure> {
        let mut chunk = [0; 4096];
        while bytes > 0 {
            // No more than fits, so the length is right again as a size.
            let length = usize::try_from(bytes).map_or(chunk.len(), |bytes| bytes.min(chunk.len()));
            self.receive(client, &mut chunk[..length])?;
            client.pass(&chunk[..length])?;
            bytes -= length as u64;
        }
        Ok(())
    }

    /// Receives until `into` is full, as long as the client waits for it.
    fn receive(&mut self, client: &Client, into: &mut [u8]) -> Result<(), Failure> {
        let channel = self.channel.as_mut().ok_or(Errno::NOTCONN)?;
        let mut filled = 0;
        while filled < into.len() {
            channel.limit(Instant::now().checked_add(LOOK));
            match channel.read(&mut into[filled..]).map_err(Failure::from) {
                Ok(0) => return Err(Failure::new(Errno::CONNRESET, "the domain ended the connection")),
                Ok(bytes) => filled += bytes,
                Err(why) if why.errno() == Errno::TIMEDOUT && client.is_gone() => {
                    return Err(Failure::new(Errno::PIPE, "a client left before its answer"));
                }
                Err(why) if matches!(why.errno(), Errno::TIMEDOUT | Errno::INTR) => {}
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }
}

/// A request's cookie, which is at the same place in both dialects.
fn cookie(request: &[u8]) -> u16 {
    u16::from_le_bytes([request[2], request[3]])
}
