//! A stream's bytes to whole requests.
//!
//! A stream has no marks: a request begins where the one before it ended. Messages have one size, so even one that
//! makes no sense leaves the stream in step. In blktap's dialect more bytes may follow a message, and flags in it say
//! which: with ADD_LOG an OPEN or RESUME is followed by a path of exactly 256 bytes, and after that with
//! OPEN_ENCRYPTED an OPEN by one byte, the length of a key, and the key. Only that length can be one that makes no
//! sense; then nobody knows where the next request begins, and the channel has to end ([`Arrived::OutOfStep`]).
//!
//! Nothing here waits. A peer that sends half a request and then nothing leaves [`Assembler::is_idle`] false; how long
//! that may last is the caller's to say.

use super::*;

/// Bytes of the log's path.
const LOG_BYTES: usize = TEXT_BYTES;
/// Bytes of a key, at most.
pub const KEY_BYTES_MAX: usize = 128;
/// Bytes of a message and all that may follow it.
pub const REQUEST_BYTES_MAX: usize = MESSAGE_BYTES_MAX + LOG_BYTES + 1 + KEY_BYTES_MAX;

/// A message and what followed it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The message.
    pub message: Message<'a>,
    /// The path of the log that ADD_LOG asks for.
    pub log: Option<Text<'a>>,
    /// The key that OPEN_ENCRYPTED is about, 1 to 128 bytes.
    pub key: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    /// A message that nothing follows.
    pub const fn of(message: Message<'a>) -> Request<'a> {
        Request { message, log: None, key: None }
    }

    /// Writes the message and what follows it, and returns the bytes.
    ///
    /// An error is the caller's, as with [`Message::encode`]; the flags have to say what follows.
    pub fn encode<'b>(
        &self,
        dialect: Dialect,
        into: &'b mut [u8; REQUEST_BYTES_MAX],
    ) -> Result<&'b mut [u8], Malformed> {
        let follows = match self.message.body {
            Body::Open(params) | Body::Resume(params) => follows(dialect, self.message.body.kind(), params.flags),
            _ => (false, false),
        };
        if follows.0 != self.log.is_some() {
            return Err(Malformed::Field(Field::Log, Fault::Unannounced));
        }
        if follows.1 != self.key.is_some() {
            return Err(Malformed::Field(Field::Key, Fault::Unannounced));
        }
        let mut message = [0; MESSAGE_BYTES_MAX];
        let mut filled = 0;
        let mut push = |bytes: &[u8]| {
            into[filled..filled + bytes.len()].copy_from_slice(bytes);
            filled += bytes.len();
        };
        push(self.message.encode(dialect, &mut message)?);
        if let Some(log) = self.log {
            push(log.as_bytes());
            push(&[0; LOG_BYTES][log.len()..]);
        }
        if let Some(key) = self.key {
            let length = u8::try_from(key.len()).ok().filter(|_| (1..=KEY_BYTES_MAX).contains(&key.len()));
            push(&[length.ok_or(Malformed::Field(Field::Key, Fault::OutOfRange))?]);
            push(key);
        }
        Ok(&mut into[..filled])
    }
}

/// Whether the dialect has a log's path and a key follow such a message.
const fn follows(dialect: Dialect, kind: Kind, flags: Flags) -> (bool, bool) {
    match (dialect, kind) {
        (Dialect::Blktap, Kind::Open) => (flags.contains(Flags::ADD_LOG), flags.contains(Flags::OPEN_ENCRYPTED)),
        (Dialect::Blktap, Kind::Resume) => (flags.contains(Flags::ADD_LOG), false),
        _ => (false, false),
    }
}

/// A key is not shown.
impl core::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Request")
            .field("message", &self.message)
            .field("log", &self.log)
            .field("key_bytes", &self.key.map(<[u8]>::len))
            .finish()
    }
}

/// What a stream brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived<'a> {
    /// A whole request.
    Request(Request<'a>),
    /// One that is wrong, all of it read: answer it and go on.
    Refused(Rejected),
    /// One whose end nobody knows: answer it and end the channel.
    OutOfStep(Rejected),
}

/// Which part of a request is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Message,
    Log,
    KeyLength,
    Key,
}

/// Room for one request, filled by a stream.
pub struct Assembler {
    dialect: Dialect,
    part: Part,
    bytes: [u8; REQUEST_BYTES_MAX],
    /// Bytes that are there.
    filled: usize,
    /// Bytes at which the part that is being read ends.
    end: usize,
    /// What was there has been told: the next byte begins anew.
    told: bool,
}

impl Assembler {
    /// For a channel of this dialect, before its first byte.
    pub const fn new(dialect: Dialect) -> Assembler {
        let end = dialect.message_bytes();
        Assembler { dialect, part: Part::Message, bytes: [0; REQUEST_BYTES_MAX], filled: 0, end, told: false }
    }

    /// Where the next bytes go. There is always room, and never for a byte of the next request.
    pub fn room(&mut self) -> &mut [u8] {
        if self.told {
            // A key may be among them.
            *self = Assembler::new(self.dialect);
        }
        &mut self.bytes[self.filled..self.end]
    }

    /// Whether the next byte would begin a request: the peer owes nothing.
    pub const fn is_idle(&self) -> bool {
        self.told || self.filled == 0
    }

    /// Forgets what is there.
    pub fn reset(&mut self) {
        *self = Assembler::new(self.dialect);
    }

    /// Takes note of `count` bytes put into [`Assembler::room`]: all that came, or a part of it. What it returns stays
    /// until the room is asked for again.
    ///
    /// # Panics
    /// If `count` is more than the room, which is the caller's own length.
    pub fn filled(&mut self, count: usize) -> Option<Arrived<'_>> {
        assert!(!self.told && count <= self.end - self.filled, "more bytes than room");
        self.filled += count;
        while self.filled == self.end {
            match self.next() {
                Some(Ok((part, bytes))) => (self.part, self.end) = (part, self.end + bytes),
                Some(Err(why)) => {
                    self.told = true;
                    return Some(Arrived::OutOfStep(self.rejected(why)));
                }
                None => {
                    self.told = true;
                    return Some(self.whole());
                }
            }
        }
        None
    }

    /// The part that follows the one that is full, and its bytes; `None` if none does.
    fn next(&self) -> Option<Result<(Part, usize), Malformed>> {
        let (log, key) = self.follows();
        match self.part {
            Part::Message if log => Some(Ok((Part::Log, LOG_BYTES))),
            Part::Message | Part::Log if key => Some(Ok((Part::KeyLength, 1))),
            Part::KeyLength => Some(match usize::from(self.bytes[self.end - 1]) {
                bytes @ 1..=KEY_BYTES_MAX => Ok((Part::Key, bytes)),
                _ => Err(Malformed::Field(Field::Key, Fault::OutOfRange)),
            }),
            Part::Message | Part::Log | Part::Key => None,
        }
    }

    /// Whether a log's path and a key follow the message: its type and flags say it even if the rest makes no sense.
    fn follows(&self) -> (bool, bool) {
        let kind = Kind::of(self.dialect, self.word(0));
        // Both flags are in the lower half of the field, which is the first in the union.
        kind.map_or((false, false), |kind| follows(self.dialect, kind, Flags::of_bits(self.word(8).into())))
    }

    /// The request that is there.
    fn whole(&self) -> Arrived<'_> {
        let (message, rest) = self.bytes[..self.filled].split_at(self.dialect.message_bytes());
        let message = match Message::decode(self.dialect, message) {
            Ok(message) => message,
            Err(rejected) => return Arrived::Refused(rejected),
        };
        let (log, rest) = if self.follows().0 { rest.split_at(LOG_BYTES) } else { rest.split_at(0) };
        let log = match (!log.is_empty()).then(|| Text::decode(log, Field::Log)).transpose() {
            Ok(log) => log,
            Err(why) => return Arrived::Refused(self.rejected(why)),
        };
        let key = rest.split_first().map(|(_, key)| key);
        Arrived::Request(Request { message, log, key })
    }

    fn rejected(&self, why: Malformed) -> Rejected {
        Rejected { cookie: self.word(2), kind: Kind::of(self.dialect, self.word(0)), why }
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }
}
