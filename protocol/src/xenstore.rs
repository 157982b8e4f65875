//! The store's wire format (`io/xs_wire.h`, docs/misc/xenstore.txt).
//!
//! A message is a header of 16 bytes and at most 4096 bytes of payload. Requests and answers are matched by number;
//! watch events come in between. The bytes travel through one shared page:
//!
//! - `xenstore/page.rs`: the page's two byte rings, the client's half and the server's
//! - `xenstore/reason.rs`: why the store said no

mod page;
mod reason;

pub use page::{Client, PAGE_BYTES, Server};
pub use reason::Reason;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 16;
/// The most bytes that follow a header: `XENSTORE_PAYLOAD_MAX`.
pub const PAYLOAD_BYTES: usize = 4096;
/// The longest path from the root: `XENSTORE_ABS_PATH_MAX`.
pub const ABSOLUTE_PATH_BYTES: usize = 3072;
/// The longest path from a domain's home: `XENSTORE_REL_PATH_MAX`.
pub const RELATIVE_PATH_BYTES: usize = 2048;

/// What a message is (`enum xsd_sockmsg_type`). An answer has the kind of its request, or is an [`Error`](Kind::Error).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// XS_CONTROL: for dom0 only.
    Control = 0,
    /// XS_DIRECTORY: path NUL -> names, each with a NUL.
    Directory = 1,
    /// XS_READ: path NUL -> value.
    Read = 2,
    /// XS_GET_PERMS: path NUL -> permissions, each with a NUL.
    GetPerms = 3,
    /// XS_WATCH: path NUL token NUL.
    Watch = 4,
    /// XS_UNWATCH: path NUL token NUL.
    Unwatch = 5,
    /// XS_TRANSACTION_START: NUL -> number NUL.
    TransactionStart = 6,
    /// XS_TRANSACTION_END: `T` or `F` NUL.
    TransactionEnd = 7,
    /// XS_INTRODUCE: for dom0 only.
    Introduce = 8,
    /// XS_RELEASE: for dom0 only.
    Release = 9,
    /// XS_GET_DOMAIN_PATH: domain id NUL -> path NUL.
    GetDomainPath = 10,
    /// XS_WRITE: path NUL value.
    Write = 11,
    /// XS_MKDIR: path NUL.
    Mkdir = 12,
    /// XS_RM: path NUL.
    Rm = 13,
    /// XS_SET_PERMS: path NUL permissions, each with a NUL.
    SetPerms = 14,
    /// XS_WATCH_EVENT: path NUL token NUL, from the server alone.
    WatchEvent = 15,
    /// XS_ERROR: the name of a [`Reason`] NUL, from the server alone.
    Error = 16,
    /// XS_IS_DOMAIN_INTRODUCED: domain id NUL -> `T` or `F` NUL.
    IsDomainIntroduced = 17,
    /// XS_RESUME: for dom0 only.
    Resume = 18,
    /// XS_SET_TARGET: for dom0 only.
    SetTarget = 19,
    /// XS_RESET_WATCHES: NUL.
    ResetWatches = 21,
    /// XS_DIRECTORY_PART: path NUL offset NUL -> generation NUL names.
    DirectoryPart = 22,
}

impl Kind {
    const ALL: [Kind; 22] = [
        Kind::Control,
        Kind::Directory,
        Kind::Read,
        Kind::GetPerms,
        Kind::Watch,
        Kind::Unwatch,
        Kind::TransactionStart,
        Kind::TransactionEnd,
        Kind::Introduce,
        Kind::Release,
        Kind::GetDomainPath,
        Kind::Write,
        Kind::Mkdir,
        Kind::Rm,
        Kind::SetPerms,
        Kind::WatchEvent,
        Kind::Error,
        Kind::IsDomainIntroduced,
        Kind::Resume,
        Kind::SetTarget,
        Kind::ResetWatches,
        Kind::DirectoryPart,
    ];

    /// The kind with this number, if there is one.
    pub fn of(number: u32) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u32 == number)
    }
}

/// A message that breaks the format. The byte stream has no marks to find the next message by: the connection is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// `struct xsd_sockmsg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// A [`Kind`] as its number; unknown ones are for the reader to refuse.
    pub kind: u32,
    /// The number that an answer repeats.
    pub request: u32,
    /// The transaction, 0 for none.
    pub transaction: u32,
    /// Bytes that follow, at most [`PAYLOAD_BYTES`] once decoded.
    pub bytes: u32,
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let words = [self.kind, self.request, self.transaction, self.bytes];
        for (to, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        bytes
    }

    /// Reads a header; [`Malformed`] if it announces more than [`PAYLOAD_BYTES`].
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, Malformed> {
        let [k0, k1, k2, k3, r0, r1, r2, r3, t0, t1, t2, t3, b0, b1, b2, b3] = *bytes;
        let header = Header {
            kind: u32::from_le_bytes([k0, k1, k2, k3]),
            request: u32::from_le_bytes([r0, r1, r2, r3]),
            transaction: u32::from_le_bytes([t0, t1, t2, t3]),
            bytes: u32::from_le_bytes([b0, b1, b2, b3]),
        };
        if header.bytes as usize > PAYLOAD_BYTES { Err(Malformed) } else { Ok(header) }
    }
}

/// The parts of a payload that a NUL ends each; the last one's may be missing. Text that is not UTF-8 comes as `None`.
pub fn parts(payload: &[u8]) -> impl Iterator<Item = Option<&str>> {
    let payload = payload.strip_suffix(&[0]).unwrap_or(payload);
    let empty = payload.is_empty();
    payload.split(|byte| *byte == 0).map(|part| core::str::from_utf8(part).ok()).skip(usize::from(empty))
}

/// The children's names in the answer to [`Kind::Directory`]. What cannot be a child's name is left out.
pub fn names(payload: &[u8]) -> impl Iterator<Item = &str> {
    parts(payload).flatten().filter(|name| valid_path(name) && !name.contains('/'))
}

/// The owner in the answer to [`Kind::GetPerms`]: the domain that the first permission names.
pub fn owner(payload: &[u8]) -> Option<u16> {
    let first = parts(payload).next()??;
    crate::number::u16(first.strip_prefix(['n', 'r', 'w', 'b'])?)
}

/// A watch event: something changed at `path`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The changed node, as the watch named it: absolute, or relative to our home.
    pub path: &'a str,
    /// The watch's token, ours.
    pub token: &'a str,
}

impl<'a> Event<'a> {
    /// Reads the payload of [`Kind::WatchEvent`].
    pub fn parse(payload: &'a [u8]) -> Result<Event<'a>, Malformed> {
        let mut parts = parts(payload);
        match (parts.next(), parts.next()) {
            (Some(Some(path)), Some(Some(token))) if !path.is_empty() => Ok(Event { path, token }),
            _ => Err(Malformed),
        }
    }
}

/// Whether a store would take `path`: letters, digits and `-_/@:+.` only, no empty component, not ending in `/` but
/// for the root itself, and at most 3072 bytes from the root or 2048 from a home.
pub fn valid_path(path: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_/@:+.".contains(&byte);
    let bytes_max = if path.starts_with('/') { ABSOLUTE_PATH_BYTES } else { RELATIVE_PATH_BYTES };
    (1..=bytes_max).contains(&path.len())
        && path.bytes().all(legal)
        && !path.contains("//")
        && (path == "/" || !path.ends_with('/'))
}

#[cfg(test)]
mod tests {
    use std::string::String;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn kinds_of_the_header() {
        // Printed by a C program from io/xs_wire.h.
        assert_eq!((Kind::Error as u32, Kind::ResetWatches as u32, Kind::DirectoryPart as u32), (16, 21, 22));
        for number in 0..100 {
            let kind = Kind::of(number);
            assert_eq!(kind.is_some(), number < 23 && number != 20);
            assert!(kind.is_none_or(|kind| kind as u32 == number));
        }
        assert_eq!(Kind::of(0xffff), None);
    }

    #[test]
    fn golden_header() {
        // A struct xsd_sockmsg { XS_WATCH_EVENT, 0x01020304, 5, 4096 }, printed by a C program.
        let bytes = [0x0f, 0, 0, 0, 4, 3, 2, 1, 5, 0, 0, 0, 0, 0x10, 0, 0];
        let header = Header { kind: Kind::WatchEvent as u32, request: 0x0102_0304, transaction: 5, bytes: 4096 };
        assert_eq!(header.encode(), bytes);
        assert_eq!(Header::decode(&bytes), Ok(header));
        for too_long in [4097, 1 << 16, u32::MAX] {
            assert_eq!(Header::decode(&Header { bytes: too_long, ..header }.encode()), Err(Malformed));
        }
    }

    #[test]
    fn payloads_in_parts() {
        let read = |payload| parts(payload).collect::<Vec<_>>();
        assert_eq!(read(b""), []);
        assert_eq!(read(b"\0"), []);
        assert_eq!(read(b"a"), [Some("a")]);
        assert_eq!(read(b"a\0"), [Some("a")]);
        assert_eq!(read(b"a\0b\0"), [Some("a"), Some("b")]);
        assert_eq!(read(b"a\0\0b"), [Some("a"), Some(""), Some("b")]);
        assert_eq!(read(b"\0\0"), [Some(""), Some("")]);
        assert_eq!(read(b"a\0\xff\0"), [Some("a"), None]);
    }

    #[test]
    fn listings() {
        let read = |payload| names(payload).collect::<Vec<_>>();
        assert_eq!(read(b"51712\0queue-0\0"), ["51712", "queue-0"]);
        assert_eq!(read(b""), [""; 0]);
        assert_eq!(read(b"a\0../b\0c d\0\xff\0\0e\0"), ["a", "e"]);
    }

    #[test]
    fn owners() {
        assert_eq!(owner(b"n1\0r5\0"), Some(1));
        assert_eq!(owner(b"b65535"), Some(65535));
        for wrong in [b"".as_slice(), b"\0", b"n", b"1\0", b"x1\0", b"n65536\0", b"nn1\0", b"\xff1\0"] {
            assert_eq!(owner(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn events() {
        let event = Event { path: "backend/vbd/3/51712/state", token: "7" };
        assert_eq!(Event::parse(b"backend/vbd/3/51712/state\x007\0"), Ok(event));
        assert_eq!(Event::parse(b"backend/vbd/3/51712/state\x007"), Ok(event));
        assert_eq!(Event::parse(b"@releaseDomain\0t\0more\0"), Ok(Event { path: "@releaseDomain", token: "t" }));
        for wrong in [b"".as_slice(), b"\0", b"path", b"path\0", b"\0token\0", b"\xff\0token\0", b"path\0\xff\0"] {
            assert_eq!(Event::parse(wrong), Err(Malformed), "{wrong:?}");
        }
    }

    #[test]
    fn paths() {
        for good in ["/", "/local/domain/0", "backend/vbd/3/51712/state", "@introduceDomain", "a:b+c.d_e-f@g"] {
            assert!(valid_path(good), "{good}");
        }
        for wrong in ["", "//", "/a/", "a/", "a//b", "//a", "a b", "a\0", "é", "a\n", "~/x", "a,b"] {
            assert!(!valid_path(wrong), "{wrong:?}");
        }
        let long = |first: &str, bytes: usize| String::from(first) + &"a".repeat(bytes - 1);
        assert!(valid_path(&long("/", 3072)) && !valid_path(&long("/", 3073)));
        assert!(valid_path(&long("a", 2048)) && !valid_path(&long("a", 2049)));
    }
}
