//! Why the store said no: error names on the wire (`struct xsd_errors` of `io/xs_wire.h`).

/// An error of the store. The names travel as text, since numbers differ between systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// EINVAL: the request or a path is not well-formed.
    Invalid,
    /// EACCES: not ours to read or write.
    Access,
    /// EEXIST: already there; for a watch, the same path and token.
    Exists,
    /// EISDIR.
    IsDirectory,
    /// ENOENT: no such node, transaction or watch.
    NoEntry,
    /// ENOMEM.
    NoMemory,
    /// ENOSPC: a quota of nodes or of a node's size.
    NoSpace,
    /// EIO.
    Io,
    /// ENOTEMPTY.
    NotEmpty,
    /// ENOSYS: the store does not know the kind of request.
    Unimplemented,
    /// EROFS.
    ReadOnly,
    /// EBUSY: too many transactions.
    Busy,
    /// EAGAIN: the transaction collided; start again.
    Again,
    /// EISCONN.
    Connected,
    /// E2BIG: too long, or too many watches.
    TooBig,
    /// EPERM.
    Permission,
    /// EQUOTA: oxenstored's word for any quota.
    Quota,
    /// A name that we do not know.
    Other,
}

/// Each reason, its name, and the number it has on Linux.
const TABLE: [(Reason, &str, i32); 18] = [
    (Reason::Invalid, "EINVAL", 22),
    (Reason::Access, "EACCES", 13),
    (Reason::Exists, "EEXIST", 17),
    (Reason::IsDirectory, "EISDIR", 21),
    (Reason::NoEntry, "ENOENT", 2),
    (Reason::NoMemory, "ENOMEM", 12),
    (Reason::NoSpace, "ENOSPC", 28),
    (Reason::Io, "EIO", 5),
    (Reason::NotEmpty, "ENOTEMPTY", 39),
    (Reason::Unimplemented, "ENOSYS", 38),
    (Reason::ReadOnly, "EROFS", 30),
    (Reason::Busy, "EBUSY", 16),
    (Reason::Again, "EAGAIN", 11),
    (Reason::Connected, "EISCONN", 106),
    (Reason::TooBig, "E2BIG", 7),
    (Reason::Permission, "EPERM", 1),
    (Reason::Quota, "EQUOTA", 122),
    // Last: nobody sends this name, and libxenstore reads a name it does not know as EINVAL.
    (Reason::Other, "EUNKNOWN", 22),
];

impl Reason {
    /// Reads the payload of an error: the name, with its NUL or without.
    pub fn of(payload: &[u8]) -> Reason {
        let name = payload.strip_suffix(&[0]).unwrap_or(payload);
        let found = TABLE.iter().find(|(_, text, _)| text.as_bytes() == name);
        found.map_or(Reason::Other, |(reason, _, _)| *reason)
    }

    /// The name on the wire, without a NUL.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The number of the error on Linux, positive, for dom0's tools.
    pub fn errno(self) -> i32 {
        self.row().2
    }

    fn row(self) -> (Reason, &'static str, i32) {
        // The table has a row for each reason: a test walks it.
        TABLE[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_in_the_order_of_the_enum() {
        for (index, (reason, name, errno)) in TABLE.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert_eq!((reason.name(), reason.errno()), (name, errno));
            assert_eq!(Reason::of(name.as_bytes()), reason);
        }
        assert_eq!(TABLE.len(), Reason::Other as usize + 1);
    }

    #[test]
    fn names_with_and_without_nul() {
        assert_eq!(Reason::of(b"ENOENT\0"), Reason::NoEntry);
        assert_eq!(Reason::of(b"EAGAIN"), Reason::Again);
        for other in [b"".as_slice(), b"\0", b"ENOENT\0\0", b"enoent", b"EDOM\0", b"ENOENT ", b"\xff"] {
            assert_eq!(Reason::of(other), Reason::Other);
        }
    }
}
