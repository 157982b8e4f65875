//! Block requests and responses (`io/blkif.h`).
//!
//! A slot of the ring, once copied out, is parsed into a [`Request`] that holds valid values only, or into a
//! [`Rejected`] that already is the answer. Sectors are 512 bytes everywhere (the header's wording since Xen 4.20).
//!
//! - `blkif/request.rs`: the backend's half: slot -> request, verdict -> response
//! - `blkif/front.rs`: the frontend's half, for the disks below us
//! - `blkif/keys.rs`: names of the store nodes

mod front;
pub mod keys;
mod request;

pub use front::{Answer, Ask, REQUEST_BYTES, RESPONSE_BYTES, encode, encode_segments};
pub use request::{Body, Rejected, Request, parse, respond, segments, span};

/// `BLKIF_OP_READ`.
pub const READ: u8 = 0;
/// `BLKIF_OP_WRITE`.
pub const WRITE: u8 = 1;
/// `BLKIF_OP_WRITE_BARRIER`.
pub const WRITE_BARRIER: u8 = 2;
/// `BLKIF_OP_FLUSH_DISKCACHE`.
pub const FLUSH_DISKCACHE: u8 = 3;
/// `BLKIF_OP_DISCARD`.
pub const DISCARD: u8 = 5;
/// `BLKIF_OP_INDIRECT`.
pub const INDIRECT: u8 = 6;

/// Segments in a slot: `BLKIF_MAX_SEGMENTS_PER_REQUEST`.
pub const SEGMENTS_MAX: usize = 11;
/// Descriptor pages of one indirect request: `BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`.
pub const INDIRECT_PAGES_MAX: usize = 8;
/// Bytes of one segment, in a slot and in a descriptor page.
pub const SEGMENT_BYTES: usize = 8;
/// Segments that one descriptor page of 4096 bytes holds.
pub const SEGMENTS_PER_PAGE: u16 = 512;
/// Sectors of 512 bytes in a page: the last one a segment can name is one less.
pub const SECTORS_PER_PAGE: u8 = 8;

/// `VDISK_CDROM`, a bit of the node `info`.
pub const INFO_CDROM: u32 = 1;
/// `VDISK_REMOVABLE`, a bit of the node `info`.
pub const INFO_REMOVABLE: u32 = 2;
/// `VDISK_READONLY`, a bit of the node `info`.
pub const INFO_READONLY: u32 = 4;

/// How a guest's compiler laid the structures out: 64-bit numbers aligned to 8 bytes, or to 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `x86_64-abi`; ours too.
    X86_64,
    /// `x86_32-abi`.
    X86_32,
}

impl Layout {
    /// The layout that the frontend's node `protocol` names (`io/protocols.h`); `None` for one we do not speak.
    ///
    /// Without the node it is `X86_32`, as with Linux's, QEMU's and blktap's backends; the header says native, but
    /// who leaves the node out was built against those.
    pub fn of_protocol(text: Option<&str>) -> Option<Layout> {
        match text {
            None | Some("x86_32-abi") => Some(Layout::X86_32),
            Some("x86_64-abi") => Some(Layout::X86_64),
            Some(_) => None,
        }
    }

    /// Bytes of a request, which is also the stride of the ring.
    pub const fn entry_bytes(self) -> usize {
        match self {
            Layout::X86_64 => 112,
            Layout::X86_32 => 108,
        }
    }

    /// Bytes of a response.
    pub const fn response_bytes(self) -> usize {
        match self {
            Layout::X86_64 => 16,
            Layout::X86_32 => 12,
        }
    }
}

/// Which way the payload moves, seen from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the disk into the guest's pages.
    Read,
    /// From the guest's pages to the disk.
    Write,
}

/// A run of sectors in one granted page: `first..=last`, with `first <= last <= 7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Segment {
    /// The page's grant reference, alleged: Xen decides whether it is one.
    pub grant: u32,
    /// The first sector in the page.
    pub first: u8,
    /// The last sector in the page, inclusive.
    pub last: u8,
}

impl Segment {
    /// A segment, if `first <= last <= 7`; else [`Why::Segment`].
    pub const fn new(grant: u32, first: u8, last: u8) -> Result<Segment, Why> {
        if first <= last && last < SECTORS_PER_PAGE { Ok(Segment { grant, first, last }) } else { Err(Why::Segment) }
    }

    /// Sectors of the run, 1 to 8.
    pub const fn sectors(self) -> u32 {
        self.last as u32 + 1 - self.first as u32
    }

    /// Where the run begins in its page, in bytes.
    pub const fn offset(self) -> usize {
        self.first as usize * 512
    }

    /// Bytes of the run, 512 to 4096.
    pub const fn bytes(self) -> usize {
        self.sectors() as usize * 512
    }

    /// Reads the 8 bytes of `struct blkif_request_segment`; the last two are padding.
    fn decode(bytes: &[u8; SEGMENT_BYTES]) -> Result<Segment, Why> {
        let [a, b, c, d, first, last, _, _] = *bytes;
        Segment::new(u32::from_le_bytes([a, b, c, d]), first, last)
    }

    /// The inverse of `decode`, padding zero.
    fn encode(self) -> [u8; SEGMENT_BYTES] {
        let [a, b, c, d] = self.grant.to_le_bytes();
        [a, b, c, d, self.first, self.last, 0, 0]
    }
}

/// The three answers to a request (`BLKIF_RSP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum Status {
    /// Done.
    Okay = 0,
    /// Failed; also the answer to a request that breaks the rules.
    Error = -1,
    /// We do not do this operation; frontends stop asking for it.
    Unsupported = -2,
}

/// The rule that a request broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The operation is none that we know.
    Operation,
    /// An indirect request wraps something else than a read or a write.
    InnerOperation,
    /// A read or write of no segments, or an indirect request of none.
    NoSegments,
    /// More segments than a slot holds, or than we offered for an indirect request.
    TooManySegments,
    /// A segment's sectors are not `first <= last <= 7`.
    Segment,
    /// A discard of no sectors.
    NoSectors,
    /// The sectors reach beyond the end of the disk.
    PastEnd,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols() {
        // io/protocols.h
        assert_eq!(Layout::of_protocol(Some("x86_64-abi")), Some(Layout::X86_64));
        assert_eq!(Layout::of_protocol(Some("x86_32-abi")), Some(Layout::X86_32));
        assert_eq!(Layout::of_protocol(None), Some(Layout::X86_32));
        for other in ["arm-abi", "", "x86_64-abi\n", "X86_64-ABI", "x86_64"] {
            assert_eq!(Layout::of_protocol(Some(other)), None);
        }
        assert_eq!(Layout::of_protocol(Some(keys::PROTOCOL_X86_64)), Some(Layout::X86_64));
    }

    #[test]
    fn every_segment() {
        for first in 0..=255 {
            for last in 0..=255 {
                let segment = Segment::new(9, first, last);
                assert_eq!(segment.is_ok(), first <= last && last <= 7, "{first} {last}");
                if let Ok(segment) = segment {
                    assert_eq!(segment.sectors(), (first..=last).count() as u32);
                    assert_eq!(segment.bytes(), segment.sectors() as usize * 512);
                    assert!(segment.offset() + segment.bytes() <= 4096);
                }
            }
        }
        assert_eq!(Segment::new(1, 3, 3).unwrap().offset(), 1536);
    }
}
