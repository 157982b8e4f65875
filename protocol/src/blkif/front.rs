//! The frontend's half, for the disks below us: requests to bytes, bytes to answers, in the x86_64 layout.

use super::*;

/// Bytes of a request in our layout.
pub const REQUEST_BYTES: usize = Layout::X86_64.entry_bytes();
/// Bytes of a response in our layout, the longest there is.
pub const RESPONSE_BYTES: usize = Layout::X86_64.response_bytes();

/// What we ask of the disk below. Sectors are 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask<'a> {
    /// Move 1 to 11 segments.
    Transfer {
        /// Which way.
        way: Way,
        /// The first sector on the disk.
        sector: u64,
        /// Where the data is.
        segments: &'a [Segment],
    },
    /// Move `count` segments, which [`encode_segments`] has written into granted pages.
    Indirect {
        /// Which way.
        way: Way,
        /// The first sector on the disk.
        sector: u64,
        /// Segments in all.
        count: u16,
        /// The granted pages: `count / 512` rounded up, at most 8.
        pages: &'a [u32],
    },
    /// Make what has been answered durable.
    Flush,
    /// Forget sectors.
    Discard {
        /// The first sector.
        sector: u64,
        /// How many.
        sectors: u64,
    },
}

impl Ask<'_> {
    /// The operation that the answer must echo: of an indirect request the inner one.
    pub fn operation(&self) -> u8 {
        match self {
            Ask::Transfer { way, .. } | Ask::Indirect { way, .. } => code(*way),
            Ask::Flush => FLUSH_DISKCACHE,
            Ask::Discard { .. } => DISCARD,
        }
    }
}

/// The operation of a plain transfer.
fn code(way: Way) -> u8 {
    match way {
        Way::Read => READ,
        Way::Write => WRITE,
    }
}

/// The bytes of a request, as many as say something, made in `entry`. `handle` is the disk's number, the last component of
/// our frontend directory's name; most backends ignore it.
///
/// # Panics
/// If there are no segments or more than fit, or the number of pages is not the one for `count`: our own numbers.
pub fn encode<'a>(id: u64, handle: u16, ask: &Ask, entry: &'a mut [u8; REQUEST_BYTES]) -> &'a [u8] {
    let mut bytes = REQUEST_BYTES;
    *entry = [0; REQUEST_BYTES];
    entry[0] = ask.operation();
    entry[2..4].copy_from_slice(&handle.to_le_bytes());
    entry[8..16].copy_from_slice(&id.to_le_bytes());
    match *ask {
        Ask::Transfer { sector, segments, .. } => {
            assert!((1..=SEGMENTS_MAX).contains(&segments.len()));
            entry[1] = segments.len() as u8;
            entry[16..24].copy_from_slice(&sector.to_le_bytes());
            encode_segments(segments, &mut entry[24..]);
            bytes = 24 + segments.len() * SEGMENT_BYTES;
        }
        Ask::Indirect { sector, count, pages, .. } => {
            assert!(count > 0 && pages.len() == usize::from(count.div_ceil(SEGMENTS_PER_PAGE)));
            assert!(pages.len() <= INDIRECT_PAGES_MAX);
            entry[1] = entry[0];
            entry[0] = INDIRECT;
            entry[2..4].copy_from_slice(&count.to_le_bytes());
            entry[16..24].copy_from_slice(&sector.to_le_bytes());
            entry[24..26].copy_from_slice(&handle.to_le_bytes());
            for (index, page) in pages.iter().enumerate() {
                entry[28 + index * 4..][..4].copy_from_slice(&page.to_le_bytes());
            }
        }
        Ask::Flush => {}
        Ask::Discard { sector, sectors } => {
            entry[16..24].copy_from_slice(&sector.to_le_bytes());
            entry[24..32].copy_from_slice(&sectors.to_le_bytes());
        }
    }
    &entry[..bytes]
}

/// Writes segments, 8 bytes each, as a slot or a descriptor page holds them; the rest of `into` stays as it is.
///
/// # Panics
/// If `into` is too short: our own length.
pub fn encode_segments(segments: &[Segment], into: &mut [u8]) {
    let into = &mut into[..segments.len() * SEGMENT_BYTES];
    for (segment, bytes) in segments.iter().zip(into.as_chunks_mut().0) {
        *bytes = segment.encode();
    }
}

/// What the backend below answers. That `id` and `operation` are those of a request of ours is for the caller to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The request's number, alleged.
    pub id: u64,
    /// The request's operation, alleged.
    pub operation: u8,
    /// The verdict.
    pub status: Status,
}

impl Answer {
    /// Reads a response. A status that the header does not know is an error.
    pub fn parse(bytes: &[u8; RESPONSE_BYTES]) -> Answer {
        let [a, b, c, d, e, f, g, h, operation, _, low, high, ..] = *bytes;
        let status = match i16::from_le_bytes([low, high]) {
            0 => Status::Okay,
            -2 => Status::Unsupported,
            _ => Status::Error,
        };
        Answer { id: u64::from_le_bytes([a, b, c, d, e, f, g, h]), operation, status }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: u64 = 0x1122_3344_5566_7788;

    fn bytes(hex: &str) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        for (index, byte) in bytes[..hex.len() / 2].iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[index * 2..][..2], 16).unwrap();
        }
        bytes
    }

    /// A request as its slot would hold it, and as many of its bytes as are put there.
    fn said(ask: &Ask) -> ([u8; REQUEST_BYTES], usize) {
        let mut entry = [0xee; REQUEST_BYTES];
        let said = encode(ID, 0xca00, ask, &mut entry).len();
        (entry, said)
    }

    /// The same bytes as a C program printed them from io/blkif.h.
    #[test]
    fn golden_requests() {
        let segments = [Segment::new(0xdead_beef, 0, 7).unwrap(), Segment::new(9, 3, 3).unwrap()];
        let write = Ask::Transfer { way: Way::Write, sector: 0x0102_0304_0506_0708, segments: &segments };
        let hex = "010200ca0000000088776655443322110807060504030201efbeadde00070000090000000303";
        assert_eq!(said(&write), (bytes(hex), 40));
        let read = Ask::Indirect { way: Way::Read, sector: 0x10, count: 513, pages: &[0xa1a2_a3a4, 0xb1b2_b3b4] };
        let hex = "06000102000000008877665544332211100000000000000000ca0000a4a3a2a1b4b3b2b1";
        assert_eq!(said(&read), (bytes(hex), REQUEST_BYTES));
        let discard = Ask::Discard { sector: 0x10, sectors: 1 << 32 };
        let hex = "050000ca00000000887766554433221110000000000000000000000001000000";
        assert_eq!(said(&discard), (bytes(hex), REQUEST_BYTES));
        assert_eq!(said(&Ask::Flush), (bytes("030000ca000000008877665544332211"), REQUEST_BYTES));
        let operations = [write, read, discard, Ask::Flush].map(|ask| ask.operation());
        assert_eq!(operations, [WRITE, READ, DISCARD, FLUSH_DISKCACHE]);
    }

    #[test]
    fn golden_answers() {
        let answer = bytes("88776655443322110500feff00000000");
        assert_eq!(
            Answer::parse(answer.first_chunk().unwrap()),
            Answer { id: ID, operation: 5, status: Status::Unsupported }
        );
    }

    #[test]
    fn every_status() {
        for status in i16::MIN..=i16::MAX {
            let mut response = [0xee; RESPONSE_BYTES];
            response[10..12].copy_from_slice(&status.to_le_bytes());
            let expected = match status {
                0 => Status::Okay,
                -2 => Status::Unsupported,
                _ => Status::Error,
            };
            assert_eq!(Answer::parse(&response).status, expected);
        }
    }

    #[test]
    fn segments_leave_the_rest() {
        let mut page = [0xee; 24];
        encode_segments(&[Segment::new(1, 2, 3).unwrap(), Segment::new(4, 5, 6).unwrap()], &mut page);
        assert_eq!(page, bytes("01000000020300000400000005060000eeeeeeeeeeeeeeee")[..24]);
    }

    #[test]
    fn what_we_may_not_ask() {
        let segments = [Segment::new(1, 0, 7).unwrap(); 12];
        let transfer = |count| Ask::Transfer { way: Way::Read, sector: 0, segments: &segments[..count] };
        let indirect = |count, pages| Ask::Indirect { way: Way::Read, sector: 0, count, pages };
        assert_eq!(said(&transfer(11)).1, REQUEST_BYTES);
        said(&indirect(4096, &[1; 8]));
        let wrong = [
            transfer(0),
            transfer(12),
            indirect(0, &[]),
            indirect(0, &[1]),
            indirect(512, &[1, 2]),
            indirect(513, &[1]),
            indirect(4097, &[1; 9]),
        ];
        for ask in wrong {
            assert!(std::panic::catch_unwind(|| said(&ask)).is_err(), "{ask:?}");
        }
    }
}
