//! The backend's half: a slot's bytes become a request, a verdict becomes a response's bytes.

use heapless::Vec;

use super::*;

/// `BLKIF_DISCARD_SECURE`, a bit of a discard's flag.
const DISCARD_SECURE: u8 = 1;

/// A request that keeps every rule that its bytes alone can tell. Still to be checked: the disk's end ([`span`]), a
/// read-only disk, and the segments of an indirect request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The guest's own number, to be echoed. Two requests in flight may carry the same.
    pub id: u64,
    /// The operation to be echoed: of an indirect request the inner one, or Linux takes the backend for broken.
    pub operation: u8,
    /// What is asked.
    pub body: Body,
}

/// What a request asks for. Sectors are 512 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Move the segments' sectors, in order, from or to the disk at `sector`. There is at least one segment.
    Transfer {
        /// Which way.
        way: Way,
        /// The first sector on the disk.
        sector: u64,
        /// Where the data is, 1 to 11 runs.
        segments: Vec<Segment, SEGMENTS_MAX>,
        /// FLUSH_DISKCACHE with data: make all answered writes durable first, then write.
        flush_first: bool,
        /// WRITE_BARRIER with data: earlier writes before it, later ones after it.
        barrier: bool,
    },
    /// The same with the segments in pages of the guest's, to be copied out once and read with [`segments`].
    Indirect {
        /// Which way.
        way: Way,
        /// The first sector on the disk.
        sector: u64,
        /// Segments, 1 to the number we offered.
        count: u16,
        /// Grant references of the descriptor pages: `count / 512` rounded up.
        pages: Vec<u32, INDIRECT_PAGES_MAX>,
    },
    /// FLUSH_DISKCACHE without data: make all answered writes durable.
    Flush,
    /// WRITE_BARRIER without data.
    Barrier,
    /// The guest no longer needs these sectors. `sectors` is not 0.
    Discard {
        /// The first sector.
        sector: u64,
        /// How many; any number but 0.
        sectors: u64,
        /// BLKIF_DISCARD_SECURE is set; to be ignored unless `discard-secure` was offered.
        secure: bool,
    },
}

/// A request that breaks a rule: what to answer, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// To be echoed.
    pub id: u64,
    /// To be echoed.
    pub operation: u8,
    /// The answer.
    pub status: Status,
    /// For counters and the trace.
    pub why: Why,
}

/// Parses one slot, copied out of the ring before.
///
/// `entry` is a private copy of at least `layout.entry_bytes()`. `indirect_max` is the
/// `feature-max-indirect-segments` that we offered, 0 if none; more than 4096 cannot be asked for. The field `handle`
/// is ignored, as Linux does: the ring already says which disk is meant.
///
/// # Panics
/// If `entry` is too short, which is our own length.
pub fn parse(entry: &[u8], layout: Layout, indirect_max: u16) -> Result<Request, Rejected> {
    let slot = Slot::new(entry, layout);
    let id = slot.u64(slot.id);
    let outer = entry[0];
    let operation = if outer == INDIRECT { entry[1] } else { outer };
    let body = match outer {
        READ | WRITE | WRITE_BARRIER | FLUSH_DISKCACHE => slot.transfer(outer),
        DISCARD => slot.discard(),
        INDIRECT => slot.indirect(indirect_max),
        _ => Err(Why::Operation),
    };
    match body {
        Ok(body) => Ok(Request { id, operation, body }),
        Err(why) => {
            let status = if why == Why::Operation { Status::Unsupported } else { Status::Error };
            Err(Rejected { id, operation, status, why })
        }
    }
}

/// A slot's private copy and where the layout puts its fields, in bytes.
struct Slot<'a> {
    entry: &'a [u8],
    id: usize,
    sector: usize,
    /// Segments, or a discard's number of sectors.
    tail: usize,
    /// References of the descriptor pages.
    pages: usize,
}

impl<'a> Slot<'a> {
    fn new(entry: &'a [u8], layout: Layout) -> Self {
        let entry = &entry[..layout.entry_bytes()];
        match layout {
            Layout::X86_64 => Slot { entry, id: 8, sector: 16, tail: 24, pages: 28 },
            Layout::X86_32 => Slot { entry, id: 4, sector: 12, tail: 20, pages: 24 },
        }
    }

    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.entry[at..at + N]);
        bytes
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    fn transfer(&self, operation: u8) -> Result<Body, Why> {
        let count = usize::from(self.entry[1]);
        match (count, operation) {
            (0, FLUSH_DISKCACHE) => return Ok(Body::Flush),
            (0, WRITE_BARRIER) => return Ok(Body::Barrier),
            (0, _) => return Err(Why::NoSegments),
            _ if count > SEGMENTS_MAX => return Err(Why::TooManySegments),
            _ => {}
        }
        let mut segments = Vec::new();
        for index in 0..count {
            let segment = Segment::decode(&self.bytes(self.tail + index * SEGMENT_BYTES))?;
            segments.push(segment).map_err(|_| Why::TooManySegments)?;
        }
        Ok(Body::Transfer {
            way: if operation == READ { Way::Read } else { Way::Write },
            sector: self.u64(self.sector),
            segments,
            flush_first: operation == FLUSH_DISKCACHE,
            barrier: operation == WRITE_BARRIER,
        })
    }

    fn indirect(&self, offered: u16) -> Result<Body, Why> {
        let way = match self.entry[1] {
            READ => Way::Read,
            WRITE => Way::Write,
            _ => return Err(Why::InnerOperation),
        };
        let count = u16::from_le_bytes(self.bytes(2));
        if count == 0 {
            return Err(Why::NoSegments);
        }
        if count > offered {
            return Err(Why::TooManySegments);
        }
        let mut pages = Vec::new();
        for index in 0..usize::from(count.div_ceil(SEGMENTS_PER_PAGE)) {
            // Full after the 8 references that a slot has room for, whatever was offered.
            if pages.is_full() {
                return Err(Why::TooManySegments);
            }
            let page = u32::from_le_bytes(self.bytes(self.pages + index * 4));
            pages.push(page).map_err(|_| Why::TooManySegments)?;
        }
        Ok(Body::Indirect { way, sector: self.u64(self.sector), count, pages })
    }

    fn discard(&self) -> Result<Body, Why> {
        let sectors = self.u64(self.tail);
        if sectors == 0 {
            return Err(Why::NoSectors);
        }
        let secure = self.entry[1] & DISCARD_SECURE != 0;
        Ok(Body::Discard { sector: self.u64(self.sector), sectors, secure })
    }
}

/// Reads `count` segments of an indirect request from a private copy of its descriptor pages, one after the other.
///
/// # Panics
/// If `bytes` is shorter than `count` segments of 8 bytes, which is our own length.
pub fn segments(bytes: &[u8], count: u16) -> impl Iterator<Item = Result<Segment, Why>> {
    let bytes = &bytes[..usize::from(count) * SEGMENT_BYTES];
    bytes.as_chunks().0.iter().map(Segment::decode)
}

/// The bytes of a response: 16 or 12 of them, padding zero, so that nothing of ours leaks (XSA-216).
pub fn respond(id: u64, operation: u8, status: Status, layout: Layout) -> Vec<u8, RESPONSE_BYTES> {
    let mut bytes = [0; RESPONSE_BYTES];
    bytes[..8].copy_from_slice(&id.to_le_bytes());
    bytes[8] = operation;
    bytes[10..12].copy_from_slice(&(status as i16).to_le_bytes());
    let mut response = Vec::from_array(bytes);
    response.truncate(layout.response_bytes());
    response
}

/// Checks that `sectors` from `sector` on lie on a disk of `disk_sectors`; else [`Why::PastEnd`]. No value overflows.
pub fn span(sector: u64, sectors: u64, disk_sectors: u64) -> Result<(), Why> {
    match sector.checked_add(sectors) {
        Some(end) if end <= disk_sectors => Ok(()),
        _ => Err(Why::PastEnd),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets of each layout, as a C program printed them from io/blkif.h (x86_32 with `#pragma pack(4)`):
    /// id, sector_number, seg or nr_sectors, indirect_grefs.
    const OFFSETS: [(Layout, [usize; 4]); 2] = [(Layout::X86_64, [8, 16, 24, 28]), (Layout::X86_32, [4, 12, 20, 24])];
    const ID: u64 = 0x1122_3344_5566_7788;

    /// Bytes from hexadecimal, filled up with 0xee, which no parser may read.
    fn entry(hex: &str) -> [u8; 112] {
        let mut entry = [0xee; 112];
        for (index, byte) in entry[..hex.len() / 2].iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[index * 2..][..2], 16).unwrap();
        }
        entry
    }

    /// A request made field by field.
    fn made(layout: Layout, operation: u8, count: u8, sector: u64, tail: &[u8]) -> [u8; 112] {
        let [id, at, rest, _] = OFFSETS[layout as usize].1;
        let mut entry = [0xee; 112];
        entry[..2].copy_from_slice(&[operation, count]);
        entry[id..id + 8].copy_from_slice(&ID.to_le_bytes());
        entry[at..at + 8].copy_from_slice(&sector.to_le_bytes());
        entry[rest..rest + tail.len()].copy_from_slice(tail);
        entry
    }

    fn rejected(operation: u8, why: Why) -> Result<Request, Rejected> {
        let status = if why == Why::Operation { Status::Unsupported } else { Status::Error };
        Err(Rejected { id: ID, operation, status, why })
    }

    fn asked(operation: u8, body: Body) -> Result<Request, Rejected> {
        Ok(Request { id: ID, operation, body })
    }

    #[test]
    fn golden_write() {
        // Printed by a C program that filled a struct blkif_request of io/blkif.h.
        let golden = [
            (Layout::X86_64, "010200ca0000000088776655443322110807060504030201efbeadde00070000090000000303"),
            (Layout::X86_32, "010200ca88776655443322110807060504030201efbeadde00070000090000000303"),
        ];
        for (layout, hex) in golden {
            let segments = [Segment::new(0xdead_beef, 0, 7).unwrap(), Segment::new(9, 3, 3).unwrap()];
            let body = Body::Transfer {
                way: Way::Write,
                sector: 0x0102_0304_0506_0708,
                segments: Vec::from_slice(&segments).unwrap(),
                flush_first: false,
                barrier: false,
            };
            assert_eq!(parse(&entry(hex), layout, 0), asked(WRITE, body));
        }
    }

    #[test]
    fn golden_indirect() {
        let golden = [
            (Layout::X86_64, "06000102000000008877665544332211100000000000000000ca0000a4a3a2a1b4b3b2b1"),
            (Layout::X86_32, "060001028877665544332211100000000000000000ca0000a4a3a2a1b4b3b2b1"),
        ];
        for (layout, hex) in golden {
            let pages = Vec::from_slice(&[0xa1a2_a3a4, 0xb1b2_b3b4]).unwrap();
            let body = Body::Indirect { way: Way::Read, sector: 0x10, count: 513, pages };
            assert_eq!(parse(&entry(hex), layout, 513), asked(READ, body));
            assert_eq!(parse(&entry(hex), layout, 512), rejected(READ, Why::TooManySegments));
        }
    }

    #[test]
    fn golden_discard() {
        let golden = [
            (Layout::X86_64, "050100ca00000000887766554433221110000000000000000000000001000000"),
            (Layout::X86_32, "050100ca887766554433221110000000000000000000000001000000"),
        ];
        for (layout, hex) in golden {
            let body = Body::Discard { sector: 0x10, sectors: 1 << 32, secure: true };
            assert_eq!(parse(&entry(hex), layout, 0), asked(DISCARD, body));
        }
    }

    #[test]
    fn golden_responses() {
        let bytes = respond(ID, DISCARD, Status::Unsupported, Layout::X86_64);
        assert_eq!(bytes, entry("88776655443322110500feff00000000")[..16]);
        let bytes = respond(ID, DISCARD, Status::Unsupported, Layout::X86_32);
        assert_eq!(bytes, entry("88776655443322110500feff")[..12]);
        assert_eq!(respond(0, 1, Status::Error, Layout::X86_32)[8..], [1, 0, 0xff, 0xff]);
        assert_eq!(respond(0, 1, Status::Okay, Layout::X86_32)[8..], [1, 0, 0, 0]);
    }

    #[test]
    fn every_count_of_segments() {
        for (layout, _) in OFFSETS {
            for count in 0..=255u8 {
                for operation in [READ, WRITE, WRITE_BARRIER, FLUSH_DISKCACHE] {
                    let parsed = parse(&made(layout, operation, count, 5, &[0; 88]), layout, 256);
                    match (count, operation) {
                        (0, FLUSH_DISKCACHE) => assert_eq!(parsed, asked(operation, Body::Flush)),
                        (0, WRITE_BARRIER) => assert_eq!(parsed, asked(operation, Body::Barrier)),
                        (0, _) => assert_eq!(parsed, rejected(operation, Why::NoSegments)),
                        (12.., _) => assert_eq!(parsed, rejected(operation, Why::TooManySegments)),
                        (1..=11, _) => {
                            let segment = Segment::new(0, 0, 0).unwrap();
                            let body = Body::Transfer {
                                way: if operation == READ { Way::Read } else { Way::Write },
                                sector: 5,
                                segments: core::iter::repeat_n(segment, count.into()).collect(),
                                flush_first: operation == FLUSH_DISKCACHE,
                                barrier: operation == WRITE_BARRIER,
                            };
                            assert_eq!(parsed, asked(operation, body));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_wrong_segment_anywhere() {
        for (layout, _) in OFFSETS {
            for wrong in 0..11 {
                for (first, last) in [(1, 0), (0, 8), (8, 8), (255, 255), (0, 255)] {
                    let mut tail = [0; 88];
                    tail[wrong * 8 + 4..][..2].copy_from_slice(&[first, last]);
                    let entry = made(layout, WRITE, 11, 0, &tail);
                    assert_eq!(parse(&entry, layout, 0), rejected(WRITE, Why::Segment));
                    // Beyond the count nobody looks.
                    let entry = made(layout, WRITE, wrong as u8, 0, &tail);
                    assert_eq!(parse(&entry, layout, 0).is_ok(), wrong > 0);
                }
            }
        }
    }

    #[test]
    fn operations_nobody_knows() {
        for operation in (0..=255).filter(|operation| *operation == 4 || *operation > 6) {
            for (layout, _) in OFFSETS {
                assert_eq!(
                    parse(&made(layout, operation, 1, 0, &[]), layout, 256),
                    rejected(operation, Why::Operation)
                );
            }
        }
    }

    #[test]
    fn every_inner_operation_is_echoed() {
        for (layout, [.., pages]) in OFFSETS {
            for inner in 0..=255 {
                let mut entry = made(layout, INDIRECT, inner, 7, &[]);
                entry[2..4].copy_from_slice(&1u16.to_le_bytes());
                entry[pages..pages + 4].copy_from_slice(&77u32.to_le_bytes());
                let expected = match inner {
                    0 | 1 => {
                        let way = if inner == 0 { Way::Read } else { Way::Write };
                        asked(
                            inner,
                            Body::Indirect { way, sector: 7, count: 1, pages: Vec::from_slice(&[77]).unwrap() },
                        )
                    }
                    _ => rejected(inner, Why::InnerOperation),
                };
                assert_eq!(parse(&entry, layout, 256), expected);
            }
        }
    }

    #[test]
    fn every_indirect_count() {
        for (layout, _) in OFFSETS {
            for offered in [0, 1, 256, 4096, 5000, u16::MAX] {
                for count in 0..=u16::MAX {
                    let mut entry = made(layout, INDIRECT, WRITE, 0, &[]);
                    entry[2..4].copy_from_slice(&count.to_le_bytes());
                    let parsed = parse(&entry, layout, offered);
                    let fine = count > 0 && count <= offered && count <= 4096;
                    match parsed {
                        Ok(Request { body: Body::Indirect { count: parsed, pages, .. }, .. }) => {
                            assert!(fine && parsed == count);
                            assert_eq!(pages.len(), usize::from(count).div_ceil(512));
                        }
                        other => {
                            let why = if count == 0 { Why::NoSegments } else { Why::TooManySegments };
                            assert!(!fine);
                            assert_eq!(other, rejected(WRITE, why));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn discards() {
        for (layout, _) in OFFSETS {
            for sectors in [1, 1 << 40, u64::MAX] {
                for flag in [0, 1, 2, 3, 255] {
                    let entry = made(layout, DISCARD, flag, 3, &sectors.to_le_bytes());
                    let body = Body::Discard { sector: 3, sectors, secure: flag % 2 == 1 };
                    assert_eq!(parse(&entry, layout, 0), asked(DISCARD, body));
                }
            }
            let entry = made(layout, DISCARD, 0, 3, &[0; 8]);
            assert_eq!(parse(&entry, layout, 0), rejected(DISCARD, Why::NoSectors));
        }
    }

    #[test]
    fn segments_of_a_page() {
        let page = entry("efbeadde00070000090000000303ffff0900000003080000");
        let mut read = segments(&page, 3);
        assert_eq!(read.next(), Some(Segment::new(0xdead_beef, 0, 7)));
        assert_eq!(read.next(), Some(Segment::new(9, 3, 3)));
        assert_eq!(read.next(), Some(Err(Why::Segment)));
        assert_eq!(read.next(), None);
        assert_eq!(segments(&[], 0).count(), 0);
        assert_eq!(segments(&[0; 4096], 512).count(), 512);
    }

    #[test]
    #[should_panic]
    fn segments_that_were_not_copied() {
        let _ = segments(&[0; 15], 2);
    }

    #[test]
    fn spans() {
        for (sector, sectors, disk, fine) in [
            (0, 1, 1, true),
            (0, 0, 0, true),
            (1, 0, 1, true),
            (1, 1, 1, false),
            (0, 2, 1, false),
            (99, 1, 100, true),
            (100, 1, 100, false),
            (u64::MAX, 1, u64::MAX, false),
            (u64::MAX - 1, 1, u64::MAX, true),
            (1, u64::MAX, u64::MAX, false),
            (u64::MAX, u64::MAX, u64::MAX, false),
        ] {
            assert_eq!(span(sector, sectors, disk), if fine { Ok(()) } else { Err(Why::PastEnd) });
        }
    }
}
