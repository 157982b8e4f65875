//! What can be wrong with a message's bytes, and how to say it.

use core::fmt;

use super::{Dialect, Kind, Message, Response, Text};
use crate::errno::Errno;

/// Why bytes are no message, or a message cannot be put in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Not as many bytes as the dialect's message has.
    Length,
    /// No message has this number in the dialect.
    Type(u16),
    /// The dialect has no number for this message.
    Kind(Kind),
    /// One field is wrong.
    Field(Field, Fault),
}

/// The fields that can be wrong, by the names of the C structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the header's")]
pub enum Field {
    Path,
    Secondary,
    Message,
    Pool,
    Domid,
    Order,
    Proto,
    Count,
    PrtDevnum,
    ReqTimeout,
    PollDuration,
    PollIdleThreshold,
    /// The 256 bytes after an OPEN or RESUME with ADD_LOG.
    Log,
    /// The key after an OPEN with OPEN_ENCRYPTED.
    Key,
}

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A text does not end within its field.
    NoNul,
    /// A text is not UTF-8.
    NotUtf8,
    /// A number is none that the field may have.
    OutOfRange,
    /// The dialect has no such field, and it is not empty.
    NotInDialect,
    /// A flag says that bytes follow the message and there are none, or the other way round.
    Unannounced,
}

/// A message that is none: what is needed to answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// To be echoed. tapdisk answers with cookie 0 here, which a client with several requests under way cannot use.
    pub cookie: u16,
    /// What it would have been; `None` if that is what is wrong.
    pub kind: Option<Kind>,
    /// Why it is none.
    pub why: Malformed,
}

impl Rejected {
    /// The answer, in the form that the dialect has for this request; `reason` is the text, most simply that of
    /// [`Malformed`].
    pub fn answer<'a>(&self, dialect: Dialect, reason: Text<'a>) -> Message<'a> {
        let response = Response { error: self.why.errno().number(), message: reason };
        Message::refusal(dialect, self.cookie, self.kind, response)
    }
}

impl Malformed {
    /// The error number for it.
    pub const fn errno(self) -> Errno {
        match self {
            Malformed::Field(Field::Proto, _) => Errno::EPROTONOSUPPORT,
            _ => Errno::EINVAL,
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Malformed::Length => f.write_str("a message of the wrong size"),
            Malformed::Type(id) => write!(f, "message type {id} is unknown"),
            Malformed::Kind(kind) => write!(f, "{}: no such message in this dialect", kind.name()),
            Malformed::Field(field, fault) => write!(f, "{}: {}", field.name(), fault.text()),
        }
    }
}

impl Field {
    /// The header's name of it.
    pub const fn name(self) -> &'static str {
        match self {
            Field::Path => "path",
            Field::Secondary => "secondary",
            Field::Message => "message",
            Field::Pool => "pool",
            Field::Domid => "domid",
            Field::Order => "order",
            Field::Proto => "proto",
            Field::Count => "count",
            Field::PrtDevnum => "prt_devnum",
            Field::ReqTimeout => "req_timeout",
            Field::PollDuration => "poll_duration",
            Field::PollIdleThreshold => "poll_idle_threshold",
            Field::Log => "log path",
            Field::Key => "key",
        }
    }
}

impl Fault {
    const fn text(self) -> &'static str {
        match self {
            Fault::NoNul => "not terminated",
            Fault::NotUtf8 => "not UTF-8",
            Fault::OutOfRange => "out of range",
            Fault::NotInDialect => "this dialect has no such field",
            Fault::Unannounced => "the flag and the bytes after the message disagree",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::super::Body;
    use super::*;

    #[test]
    fn texts_name_the_field() {
        let texts = [
            (Malformed::Length, "a message of the wrong size"),
            (Malformed::Type(99), "message type 99 is unknown"),
            (Malformed::Kind(Kind::Commit), "commit: no such message in this dialect"),
            (Malformed::Field(Field::Path, Fault::NoNul), "path: not terminated"),
            (Malformed::Field(Field::Secondary, Fault::NotUtf8), "secondary: not UTF-8"),
            (Malformed::Field(Field::Message, Fault::NoNul), "message: not terminated"),
            (Malformed::Field(Field::Pool, Fault::NoNul), "pool: not terminated"),
            (Malformed::Field(Field::Domid, Fault::OutOfRange), "domid: out of range"),
            (Malformed::Field(Field::Order, Fault::OutOfRange), "order: out of range"),
            (Malformed::Field(Field::Proto, Fault::OutOfRange), "proto: out of range"),
            (Malformed::Field(Field::Count, Fault::OutOfRange), "count: out of range"),
            (Malformed::Field(Field::PrtDevnum, Fault::OutOfRange), "prt_devnum: out of range"),
            (Malformed::Field(Field::ReqTimeout, Fault::NotInDialect), "req_timeout: this dialect has no such field"),
            (
                Malformed::Field(Field::PollDuration, Fault::NotInDialect),
                "poll_duration: this dialect has no such field",
            ),
            (
                Malformed::Field(Field::PollIdleThreshold, Fault::NotInDialect),
                "poll_idle_threshold: this dialect has no such field",
            ),
            (
                Malformed::Field(Field::Log, Fault::Unannounced),
                "log path: the flag and the bytes after the message disagree",
            ),
            (Malformed::Field(Field::Key, Fault::OutOfRange), "key: out of range"),
        ];
        for (malformed, text) in texts {
            assert_eq!(malformed.to_string(), text);
            let proto = text.starts_with("proto");
            assert_eq!(malformed.errno().number(), if proto { 93 } else { 22 });
        }
    }

    #[test]
    fn answers() {
        let why = Malformed::Field(Field::Proto, Fault::OutOfRange);
        let reason = Text::cut("proto: out of range");
        let response = Response { error: 93, message: reason };
        let rejected = Rejected { cookie: 5, kind: Some(Kind::XenblkifConnect), why };
        let own = Message { cookie: 5, body: Body::XenblkifConnectRsp(response) };
        assert_eq!(rejected.answer(Dialect::Rfc, reason), own);
        let error = Message { cookie: 5, body: Body::Error(response) };
        assert_eq!(rejected.answer(Dialect::Blktap, reason), error);
        assert_eq!(Rejected { kind: None, ..rejected }.answer(Dialect::Rfc, reason), error);
    }
}
