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

#[cfg(test)]
mod tests {
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    use super::*;

    /// Feeds the stream in pieces of at most `piece` bytes, and tells what arrived, in words.
    fn feed(assembler: &mut Assembler, mut stream: &[u8], piece: usize) -> Vec<String> {
        let mut told = Vec::new();
        while !stream.is_empty() {
            let room = assembler.room();
            assert!(!room.is_empty());
            let count = room.len().min(piece).min(stream.len());
            room[..count].copy_from_slice(&stream[..count]);
            stream = &stream[count..];
            match assembler.filled(count) {
                None => {}
                Some(Arrived::Request(request)) => {
                    let log = request.log.map(Text::as_str);
                    told.push(format!(
                        "{} {} {log:?} {:?}",
                        request.message.cookie,
                        request.message.body.kind().name(),
                        request.key
                    ));
                }
                Some(Arrived::Refused(rejected)) => {
                    told.push(format!("{} refused {}", rejected.cookie, rejected.why));
                }
                Some(Arrived::OutOfStep(rejected)) => {
                    told.push(format!("{} {:?} out of step {}", rejected.cookie, rejected.kind, rejected.why));
                    return told;
                }
            }
        }
        told
    }

    fn open(cookie: u16, flags: Flags) -> Message<'static> {
        let path = Text::new("vhd:/dev/vg/lv").unwrap();
        Message { cookie, body: Body::Open(Params { flags, path, ..Params::default() }) }
    }

    fn resume(cookie: u16, flags: Flags) -> Message<'static> {
        Message { cookie, body: Body::Resume(Params { flags, ..Params::default() }) }
    }

    fn pid(cookie: u16) -> Message<'static> {
        Message { cookie, body: Body::Pid }
    }

    fn bytes(dialect: Dialect, message: Message<'_>) -> Vec<u8> {
        let mut into = [0; MESSAGE_BYTES_MAX];
        message.encode(dialect, &mut into).unwrap().to_vec()
    }

    /// A log's path as it lies on the wire.
    fn log(path: &str) -> Vec<u8> {
        let mut log = path.as_bytes().to_vec();
        log.resize(256, 0);
        log
    }

    const PIECES: [usize; 9] = [1, 2, 3, 7, 255, 256, 543, 544, 1 << 20];

    #[test]
    fn a_stream_in_any_pieces() {
        let both = Flags::ADD_LOG | Flags::OPEN_ENCRYPTED;
        let stream = [
            bytes(Dialect::Blktap, pid(1)),
            bytes(Dialect::Blktap, open(2, Flags::RDONLY)),
            bytes(Dialect::Blktap, open(3, Flags::ADD_LOG)),
            log("/var/log/3"),
            bytes(Dialect::Blktap, open(4, Flags::OPEN_ENCRYPTED)),
            [3, 7, 8, 9].to_vec(),
            bytes(Dialect::Blktap, open(5, both)),
            log("/var/log/5"),
            [1, 0xff].to_vec(),
            bytes(Dialect::Blktap, resume(6, both)),
            log("/var/log/6"),
            bytes(Dialect::Blktap, resume(7, Flags::OPEN_ENCRYPTED)),
            bytes(Dialect::Blktap, pid(8)),
        ];
        let expected = [
            "1 pid None None",
            "2 open None None",
            "3 open Some(\"/var/log/3\") None",
            "4 open None Some([7, 8, 9])",
            "5 open Some(\"/var/log/5\") Some([255])",
            "6 resume Some(\"/var/log/6\") None",
            "7 resume None None",
            "8 pid None None",
        ];
        for piece in PIECES {
            let mut assembler = Assembler::new(Dialect::Blktap);
            assert_eq!(feed(&mut assembler, &stream.concat(), piece), expected, "{piece}");
            assert!(assembler.is_idle());
        }
    }

    #[test]
    fn nothing_follows_in_the_rfcs_dialect() {
        let every = Flags::of_bits(u32::MAX);
        let stream = [open(1, every), resume(2, every), pid(3)].map(|message| bytes(Dialect::Rfc, message));
        for piece in PIECES {
            let told = feed(&mut Assembler::new(Dialect::Rfc), &stream.concat(), piece);
            assert_eq!(told, ["1 open None None", "2 resume None None", "3 pid None None"]);
        }
    }

    #[test]
    fn what_is_wrong_and_keeps_step() {
        let mut unknown = bytes(Dialect::Blktap, pid(1));
        unknown[..2].copy_from_slice(&999u16.to_le_bytes());
        let mut endless = bytes(Dialect::Blktap, open(2, Flags::ADD_LOG | Flags::OPEN_ENCRYPTED));
        endless[20..276].fill(b'x');
        let stream = [
            unknown,
            endless,
            log("/var/log/2"),
            [2, 1, 1].to_vec(),
            bytes(Dialect::Blktap, open(3, Flags::ADD_LOG)),
            [b'x'; 256].to_vec(),
            bytes(Dialect::Blktap, resume(4, Flags::ADD_LOG)),
            log("\u{0}"),
            bytes(Dialect::Blktap, pid(5)),
        ];
        let expected = [
            "1 refused message type 999 is unknown",
            "2 refused path: not terminated",
            "3 refused log path: not terminated",
            "4 resume Some(\"\") None",
            "5 pid None None",
        ];
        for piece in PIECES {
            assert_eq!(feed(&mut Assembler::new(Dialect::Blktap), &stream.concat(), piece), expected, "{piece}");
        }
    }

    #[test]
    fn every_length_of_a_key() {
        for length in 0..=255u8 {
            let mut stream = bytes(Dialect::Blktap, open(9, Flags::OPEN_ENCRYPTED));
            stream.push(length);
            let announced = stream.len();
            stream.extend(core::iter::repeat_n(0xab, length.into()));
            stream.extend(bytes(Dialect::Blktap, pid(10)));
            let told = feed(&mut Assembler::new(Dialect::Blktap), &stream, 100);
            if (1..=128).contains(&length) {
                let key = Some(std::vec![0xabu8; length.into()]);
                assert_eq!(told, [format!("9 open None {key:?}"), "10 pid None None".into()]);
            } else {
                assert_eq!(told, ["9 Some(Open) out of step key: out of range"]);
                // The answer does not wait for a byte of the key.
                let told = feed(&mut Assembler::new(Dialect::Blktap), &stream[..announced], 1);
                assert_eq!(told.len(), 1);
            }
        }
    }

    #[test]
    fn room_ends_where_the_request_does() {
        let mut assembler = Assembler::new(Dialect::Blktap);
        let message = bytes(Dialect::Blktap, open(1, Flags::ADD_LOG | Flags::OPEN_ENCRYPTED));
        assert!(assembler.is_idle());
        assert_eq!(assembler.room().len(), 544);
        feed(&mut assembler, &message[..1], 1);
        assert!(!assembler.is_idle());
        assert_eq!(assembler.room().len(), 543);
        feed(&mut assembler, &message[1..], 544);
        assert_eq!(assembler.room().len(), 256);
        feed(&mut assembler, &log("/l"), 256);
        assert_eq!(assembler.room().len(), 1);
        feed(&mut assembler, &[128], 1);
        assert_eq!(assembler.room().len(), 128);
        assert!(!assembler.is_idle());
        assert!(assembler.filled(0).is_none());
        assert_eq!(feed(&mut assembler, &[0x5e; 128], 128).len(), 1);
        assert!(assembler.is_idle());
        // The key is gone with the next look at the room.
        assert!(assembler.bytes.contains(&0x5e));
        assert_eq!(assembler.room().len(), 544);
        assert!(!assembler.bytes.contains(&0x5e));
        feed(&mut assembler, &message[..100], 100);
        assembler.reset();
        assert!(assembler.is_idle());
        assert_eq!(assembler.room().len(), 544);
        assert_eq!(Assembler::new(Dialect::Rfc).room().len(), 536);
    }

    #[test]
    #[should_panic = "more bytes than room"]
    fn more_than_the_room() {
        let mut assembler = Assembler::new(Dialect::Rfc);
        assembler.filled(537);
    }

    #[test]
    #[should_panic = "more bytes than room"]
    fn more_after_the_end() {
        let mut assembler = Assembler::new(Dialect::Rfc);
        assembler.room().fill(0);
        assert!(assembler.filled(536).is_some());
        assembler.filled(0);
    }

    #[test]
    fn keys_are_not_shown() {
        let message = open(1, Flags::OPEN_ENCRYPTED);
        let shown = format!("{:?}", Request { message, log: None, key: Some(&[211; 32]) });
        assert!(shown.contains("key_bytes: Some(32)") && !shown.contains("211"), "{shown}");
    }

    #[test]
    fn requests_and_their_bytes() {
        let key = [0xab; 128];
        let both = Flags::ADD_LOG | Flags::OPEN_ENCRYPTED;
        let path = Text::new("/var/log/cbt").unwrap();
        for (flags, log, key) in [
            (Flags::NONE, None, None),
            (Flags::ADD_LOG, Some(path), None),
            (Flags::OPEN_ENCRYPTED, None, Some(&key[..1])),
            (both, Some(path), Some(&key[..])),
        ] {
            let request = Request { message: open(5, flags), log, key };
            let mut into = [0xee; REQUEST_BYTES_MAX];
            let encoded = request.encode(Dialect::Blktap, &mut into).unwrap();
            let expected = 544 + log.map_or(0, |_| 256) + key.map_or(0, |key| 1 + key.len());
            assert_eq!(encoded.len(), expected);
            let mut assembler = Assembler::new(Dialect::Blktap);
            let mut rest: &[u8] = encoded;
            let arrived = loop {
                let room = assembler.room();
                let count = room.len();
                room.copy_from_slice(rest.split_off(..count).unwrap());
                if rest.is_empty() {
                    break assembler.filled(count);
                }
                assert_eq!(assembler.filled(count), None);
            };
            assert_eq!(arrived, Some(Arrived::Request(request)));
        }
    }

    #[test]
    fn requests_that_cannot_be_said() {
        let log = Text::new("/l");
        let key = Some([1u8; 129].as_slice());
        let some = key.map(|key| &key[..16]);
        let say = |dialect, message, log, key| {
            let mut into = [0; REQUEST_BYTES_MAX];
            Request { message, log, key }.encode(dialect, &mut into).map(|bytes| bytes.len())
        };
        let wrong = |field, fault| Err(Malformed::Field(field, fault));
        let encrypted = open(1, Flags::OPEN_ENCRYPTED);
        use Dialect::{Blktap, Rfc};
        use Fault::{OutOfRange, Unannounced};
        assert_eq!(say(Blktap, open(1, Flags::ADD_LOG), None, None), wrong(Field::Log, Unannounced));
        assert_eq!(say(Blktap, open(1, Flags::NONE), log, None), wrong(Field::Log, Unannounced));
        assert_eq!(say(Blktap, encrypted, None, None), wrong(Field::Key, Unannounced));
        assert_eq!(say(Blktap, open(1, Flags::NONE), None, some), wrong(Field::Key, Unannounced));
        assert_eq!(say(Blktap, pid(1), log, None), wrong(Field::Log, Unannounced));
        assert_eq!(say(Blktap, pid(1), None, some), wrong(Field::Key, Unannounced));
        assert_eq!(say(Blktap, resume(1, Flags::ADD_LOG), log, some), wrong(Field::Key, Unannounced));
        assert_eq!(say(Blktap, resume(1, Flags::ADD_LOG), log, None), Ok(800));
        assert_eq!(say(Rfc, open(1, Flags::LOG_DIRTY), log, None), wrong(Field::Log, Unannounced));
        assert_eq!(say(Rfc, open(1, Flags::LOG_DIRTY), None, None), Ok(536));
        assert_eq!(say(Blktap, encrypted, None, key), wrong(Field::Key, OutOfRange));
        assert_eq!(say(Blktap, encrypted, None, Some(&[])), wrong(Field::Key, OutOfRange));
        assert_eq!(say(Blktap, encrypted, None, some), Ok(561));
        assert_eq!(Request::of(pid(1)), Request { message: pid(1), log: None, key: None });
    }
}
