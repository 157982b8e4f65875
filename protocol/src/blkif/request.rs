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
