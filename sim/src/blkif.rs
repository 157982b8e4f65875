//! The block protocol's bytes (`io/blkif.h`, `io/ring.h`), read a second time.
//!
//! The product reads them in `protocol`. If both readings were one, a misreading would agree with itself; so nothing
//! here comes from there.

use protocol::mem::Memory;
use xen::page::{PAGE_BYTES, PageRef, Span};
use xen::port::GrantRef;

/// `BLKIF_OP_*`.
#[allow(missing_docs)]
pub mod op {
    pub const READ: u8 = 0;
    pub const WRITE: u8 = 1;
    pub const BARRIER: u8 = 2;
    pub const FLUSH: u8 = 3;
    pub const DISCARD: u8 = 5;
    pub const INDIRECT: u8 = 6;
}

/// `BLKIF_RSP_*`.
#[allow(missing_docs)]
pub mod status {
    pub const OKAY: i16 = 0;
    pub const ERROR: i16 = -1;
    pub const EOPNOTSUPP: i16 = -2;
}

/// Segments in a plain request.
pub const SEGMENTS_MAX: usize = 11;
/// Segments in one indirect page.
pub const SEGMENTS_PER_PAGE: usize = 512;
/// Bytes in a sector, the protocol's only unit.
pub const SECTOR: usize = 512;

/// Whose compiler laid the structures out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// 64-bit guests; a backend of our own width.
    X86_64,
    /// 32-bit guests.
    X86_32,
}

impl Layout {
    /// The value of the node `protocol`.
    pub fn protocol(self) -> &'static str {
        match self {
            Layout::X86_64 => "x86_64-abi",
            Layout::X86_32 => "x86_32-abi",
        }
    }

    /// From that value. No node is what a Linux backend takes for 32 bits.
    pub fn named(protocol: &str) -> Option<Layout> {
        [Layout::X86_64, Layout::X86_32].into_iter().find(|layout| layout.protocol() == protocol)
    }

    fn entry(self) -> usize {
        self.pick(112, 108)
    }

    fn pick(self, wide: usize, narrow: usize) -> usize {
        if self == Layout::X86_64 { wide } else { narrow }
    }

    /// How many entries a ring of that many pages has.
    pub fn slots(self, pages: usize) -> u32 {
        let fit = (pages * PAGE_BYTES - 64) / self.entry();
        1 << fit.ilog2()
    }
}

/// A piece of a page, in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The page.
    pub grant: GrantRef,
    /// The first sector in it.
    pub first: u8,
    /// The last one, included.
    pub last: u8,
}

impl Segment {
    /// Its eight bytes.
    pub fn encode(self) -> [u8; 8] {
        let grant = self.grant.0.to_le_bytes();
        [grant[0], grant[1], grant[2], grant[3], self.first, self.last, 0, 0]
    }

    /// From its eight bytes.
    pub fn decode(bytes: &[u8]) -> Self {
        Segment { grant: GrantRef(u32::from_le_bytes(array(bytes))), first: bytes[4], last: bytes[5] }
    }
}

/// What comes with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Segments in the entry itself.
    Segments(Vec<Segment>),
    /// Segments in pages of their own.
    Indirect {
        /// How many.
        count: u16,
        /// Where.
        pages: Vec<GrantRef>,
    },
    /// A range.
    Discard {
        /// Its length.
        sectors: u64,
    },
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do; of an indirect one the inner operation.
    pub op: u8,
    /// The frontend's own number.
    pub id: u64,
    /// Where.
    pub sector: u64,
    /// With what.
    pub body: Body,
}

impl Request {
    /// The entry's bytes.
    pub fn encode(&self, layout: Layout, handle: u16) -> Vec<u8> {
        let mut entry = vec![0; layout.entry()];
        let mut put = |at: usize, bytes: &[u8]| entry[at..at + bytes.len()].copy_from_slice(bytes);
        put(layout.pick(8, 4), &self.id.to_le_bytes());
        put(layout.pick(16, 12), &self.sector.to_le_bytes());
        match &self.body {
            Body::Segments(segments) => {
                put(0, &[self.op, segments.len() as u8]);
                put(2, &handle.to_le_bytes());
                for (i, segment) in segments.iter().enumerate() {
                    put(layout.pick(24, 20) + 8 * i, &segment.encode());
                }
            }
            Body::Indirect { count, pages } => {
                put(0, &[op::INDIRECT, self.op]);
                put(2, &count.to_le_bytes());
                put(layout.pick(24, 20), &handle.to_le_bytes());
                for (i, page) in pages.iter().enumerate() {
                    put(layout.pick(28, 24) + 4 * i, &page.0.to_le_bytes());
                }
            }
            Body::Discard { sectors } => {
                put(0, &[self.op, 0]);
                put(layout.pick(24, 20), &sectors.to_le_bytes());
            }
        }
        entry
    }

    /// From the entry's bytes; `None` where the counts are impossible.
    pub fn decode(layout: Layout, entry: &[u8]) -> Option<Self> {
        let long = |at: usize| u64::from_le_bytes(array(&entry[at..]));
        let (id, sector) = (long(layout.pick(8, 4)), long(layout.pick(16, 12)));
        let (op, body) = match entry[0] {
            op::DISCARD => (op::DISCARD, Body::Discard { sectors: long(layout.pick(24, 20)) }),
            op::INDIRECT => {
                let count = u16::from_le_bytes(array(&entry[2..]));
                let pages = usize::from(count).div_ceil(SEGMENTS_PER_PAGE);
                let at = layout.pick(28, 24);
                if pages > 8 {
                    return None;
                }
                let pages = entry[at..at + 4 * pages].chunks(4).map(|raw| GrantRef(u32::from_le_bytes(array(raw))));
                (entry[1], Body::Indirect { count, pages: pages.collect() })
            }
            op => {
                let count = usize::from(entry[1]);
                if count > SEGMENTS_MAX {
                    return None;
                }
                let at = layout.pick(24, 20);
                let segments = entry[at..at + 8 * count].chunks(8).map(Segment::decode);
                (op, Body::Segments(segments.collect()))
            }
        };
        Some(Request { op, id, sector, body })
    }
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The request's number.
    pub id: u64,
    /// The request's operation; of an indirect one the inner.
    pub op: u8,
    /// [`status`].
    pub status: i16,
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes[..N].try_into().expect("as many bytes as asked for")
}

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;

/// Whether who asked for an event at `event` is to have one when the index goes from `old` to `new`.
fn crosses(event: u32, old: u32, new: u32) -> bool {
    new.wrapping_sub(event) < new.wrapping_sub(old)
}

/// The shared ring, with the geometry both ends agreed on.
struct Shared {
    span: Span<PageRef>,
    layout: Layout,
    slots: u32,
}

impl Shared {
    fn new(pages: Vec<PageRef>, layout: Layout) -> Self {
        let slots = layout.slots(pages.len());
        Shared { span: Span(pages), layout, slots }
    }

    fn at(&self, index: u32) -> usize {
        64 + (index % self.slots) as usize * self.layout.entry()
    }
}

/// The frontend's end.
pub struct FrontRing {
    shared: Shared,
    handle: u16,
    req_prod: u32,
    published: u32,
    rsp_cons: u32,
}

impl FrontRing {
    /// A fresh ring in these pages.
    pub fn new(pages: Vec<PageRef>, layout: Layout, handle: u16) -> Self {
        let shared = Shared::new(pages, layout);
        for (at, value) in [(REQ_PROD, 0), (REQ_EVENT, 1), (RSP_PROD, 0), (RSP_EVENT, 1)] {
            shared.span.store(at, value);
        }
        FrontRing { shared, handle, req_prod: 0, published: 0, rsp_cons: 0 }
    }

    /// How many requests still fit.
    pub fn free(&self) -> u32 {
        self.shared.slots - self.req_prod.wrapping_sub(self.rsp_cons)
    }

    /// Puts a request; the backend sees it after [`publish`](FrontRing::publish).
    pub fn put(&mut self, request: &Request) {
        assert!(self.free() > 0);
        let entry = request.encode(self.shared.layout, self.handle);
        self.shared.span.write(self.shared.at(self.req_prod), &entry);
        self.req_prod = self.req_prod.wrapping_add(1);
    }

    /// Publishes what was put. Returns whether the backend asked for an event.
    pub fn publish(&mut self) -> bool {
        let old = std::mem::replace(&mut self.published, self.req_prod);
        self.shared.span.store(REQ_PROD, self.req_prod);
        crosses(self.shared.span.load(REQ_EVENT), old, self.req_prod)
    }

    /// The next answer. An index that runs past what was asked is the backend's break of the protocol.
    pub fn take(&mut self) -> Result<Option<Response>, String> {
        let ready = self.shared.span.load(RSP_PROD).wrapping_sub(self.rsp_cons);
        let asked = self.published.wrapping_sub(self.rsp_cons);
        if ready > asked {
            return Err(format!("{ready} answers to {asked} requests"));
        }
        if ready == 0 {
            return Ok(None);
        }
        let mut raw = [0; 12];
        self.shared.span.read(self.shared.at(self.rsp_cons), &mut raw);
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        let status = i16::from_le_bytes(array(&raw[10..]));
        Ok(Some(Response { id: u64::from_le_bytes(array(&raw)), op: raw[8], status }))
    }

    /// Asks for an event at the next answer. Returns whether one came meanwhile.
    pub fn arm(&mut self) -> bool {
        self.shared.span.store(RSP_EVENT, self.rsp_cons.wrapping_add(1));
        self.shared.span.load(RSP_PROD) != self.rsp_cons
    }
}

/// The backend's end.
pub struct BackRing {
    shared: Shared,
    req_cons: u32,
    rsp_prod: u32,
    published: u32,
}

impl BackRing {
    /// The ring that a frontend made in these pages.
    pub fn new(pages: Vec<PageRef>, layout: Layout) -> Self {
        BackRing { shared: Shared::new(pages, layout), req_cons: 0, rsp_prod: 0, published: 0 }
    }

    /// The next request: `Some(None)` is one that cannot be read.
    pub fn take(&mut self) -> Option<Option<Request>> {
        let prod = self.shared.span.load(REQ_PROD);
        let held = prod.wrapping_sub(self.rsp_prod);
        assert!(held <= self.shared.slots, "the frontend has {held} requests in {} slots", self.shared.slots);
        if prod == self.req_cons {
            return None;
        }
        let mut entry = vec![0; self.shared.layout.entry()];
        self.shared.span.read(self.shared.at(self.req_cons), &mut entry);
        self.req_cons = self.req_cons.wrapping_add(1);
        Some(Request::decode(self.shared.layout, &entry))
    }

    /// Whether every slot holds a request that was taken and not answered.
    pub fn is_full(&self) -> bool {
        self.req_cons.wrapping_sub(self.rsp_prod) == self.shared.slots
    }

    /// Puts an answer.
    pub fn put(&mut self, response: Response) {
        assert!(self.rsp_prod != self.req_cons, "more answers than requests");
        let mut raw = [0xee; 12];
        raw[..8].copy_from_slice(&response.id.to_le_bytes());
        raw[8] = response.op;
        raw[10..].copy_from_slice(&response.status.to_le_bytes());
        self.shared.span.write(self.shared.at(self.rsp_prod), &raw);
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
    }

    /// Publishes what was put. Returns whether the frontend asked for an event.
    pub fn publish(&mut self) -> bool {
        let old = std::mem::replace(&mut self.published, self.rsp_prod);
        self.shared.span.store(RSP_PROD, self.rsp_prod);
        crosses(self.shared.span.load(RSP_EVENT), old, self.rsp_prod)
    }

    /// Whether the frontend has taken all that was published, and sleeps: it asks for an event at the very next answer.
    pub fn is_heard(&self) -> bool {
        self.shared.span.load(RSP_EVENT) == self.published.wrapping_add(1)
    }

    /// Whether a request stands there whose answer was not published.
    pub fn owes(&self) -> bool {
        self.shared.span.load(REQ_PROD) != self.published
    }

    /// Says that it has put some more answers than it has, or fewer than were published.
    pub fn misstate(&mut self, by: i32) {
        let truth = if by < 0 { self.published } else { self.rsp_prod };
        self.shared.span.store(RSP_PROD, truth.wrapping_add_signed(by));
    }

    /// Asks for an event at the next request. Returns whether one came meanwhile.
    pub fn arm(&mut self) -> bool {
        self.shared.span.store(REQ_EVENT, self.req_cons.wrapping_add(1));
        self.shared.span.load(REQ_PROD) != self.req_cons
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Vec<Request> {
        let segment = |i: u32| Segment { grant: GrantRef(i), first: 1, last: 6 };
        vec![
            Request { op: op::READ, id: u64::MAX, sector: 7, body: Body::Segments((8..19).map(segment).collect()) },
            Request { op: op::FLUSH, id: 2, sector: 0, body: Body::Segments(Vec::new()) },
            Request {
                op: op::WRITE,
                id: 3,
                sector: 1 << 40,
                body: Body::Indirect { count: 513, pages: vec![GrantRef(8), GrantRef(9)] },
            },
            Request { op: op::DISCARD, id: 4, sector: 8, body: Body::Discard { sectors: u64::MAX } },
        ]
    }

    #[test]
    fn entries_come_back_in_both_layouts() {
        for layout in [Layout::X86_64, Layout::X86_32] {
            for request in requests() {
                let entry = request.encode(layout, 51712);
                assert_eq!(Request::decode(layout, &entry), Some(request));
            }
        }
    }

    #[test]
    fn the_bytes_are_where_the_header_has_them() {
        let entry = requests()[2].encode(Layout::X86_32, 0x0102);
        assert_eq!(entry.len(), 108);
        assert_eq!(entry[..4], [6, 1, 1, 2]);
        assert_eq!(entry[4..12], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(entry[20..28], [2, 1, 0, 0, 8, 0, 0, 0]);
        let entry = requests()[0].encode(Layout::X86_64, 0x0102);
        assert_eq!(entry.len(), 112);
        assert_eq!(entry[..4], [0, 11, 2, 1]);
        assert_eq!(entry[24..32], [8, 0, 0, 0, 1, 6, 0, 0]);
    }

    #[test]
    fn rings_have_as_many_slots_as_the_header_computes() {
        for layout in [Layout::X86_64, Layout::X86_32] {
            assert_eq!([1, 2, 4, 8, 16].map(|pages| layout.slots(pages)), [32, 64, 128, 256, 512]);
        }
    }

    #[test]
    fn the_two_ends_talk_and_notify_only_who_sleeps() {
        let pages = vec![PageRef::alone().unwrap()];
        let mut front = FrontRing::new(pages.clone(), Layout::X86_32, 0);
        let mut back = BackRing::new(pages, Layout::X86_32);
        front.put(&requests()[1]);
        assert!(front.publish(), "a fresh ring asks for the first request");
        front.put(&requests()[1]);
        assert!(!front.publish(), "the backend is awake");
        assert_eq!(back.take(), Some(Some(requests()[1].clone())));
        assert!(back.arm(), "the second came meanwhile");
        back.take().unwrap();
        assert!(!back.arm());
        back.put(Response { id: 2, op: op::FLUSH, status: status::OKAY });
        assert!(back.publish());
        assert_eq!(front.take(), Ok(Some(Response { id: 2, op: op::FLUSH, status: 0 })));
        assert_eq!(front.take(), Ok(None));
    }
}
