//! A hostile guest's requests: valid ones, valid ones with one thing wrong, and noise.

use xen::port::GrantRef;

use crate::blkif::{Body, Layout, Request, SEGMENTS_MAX, Segment, op};
use crate::hostile::book::Book;
use crate::hostile::pages::{Kind, Pages};
use crate::hostile::rows::Ask;
use crate::random::Random;

/// What requests are made of.
pub struct Kit<'a> {
    /// The seed's choices.
    pub random: &'a mut Random,
    /// Memory.
    pub pages: &'a mut Pages,
    /// What is in flight: a grant whose number is used again may be named there.
    pub book: &'a mut Book,
    /// Grants of good pages.
    pub stock: &'a [GrantRef],
    /// How the guest lays requests out.
    pub layout: Layout,
    /// The disk's size.
    pub sectors: u64,
    /// Its size before it shrank, if it did.
    pub sectors_before: u64,
    /// Segments offered for indirect requests.
    pub indirect: u16,
}

/// A slot's bytes, and the grants that are for it alone.
pub struct Made {
    /// The bytes.
    pub entry: Vec<u8>,
    /// The grants.
    pub own: Vec<GrantRef>,
}

/// Where the fields of an entry are.
#[derive(Clone, Copy)]
pub struct Fields {
    /// The number.
    pub id: usize,
    /// The sector.
    pub sector: usize,
    /// Segments, or a discard's length.
    pub tail: usize,
    /// Descriptor pages.
    pub tables: usize,
}

impl Fields {
    /// In this layout.
    pub fn of(layout: Layout) -> Self {
        match layout {
            Layout::X86_64 => Fields { id: 8, sector: 16, tail: 24, tables: 28 },
            Layout::X86_32 => Fields { id: 4, sector: 12, tail: 20, tables: 24 },
        }
    }
}

impl Kit<'_> {
    /// Grants a page for one request.
    pub fn lend(&mut self, page: usize, kind: Kind) -> GrantRef {
        let grant = self.pages.lend(page, kind);
        self.book.touched(Some(grant.0), self.pages);
        grant
    }

    /// A number that no other is like.
    fn id(&mut self) -> u64 {
        self.random.next() >> self.random.pick(&[0, 0, 8, 16])
    }

    fn segment(&mut self, most: u64) -> Segment {
        let first = self.random.below(8);
        let last = self.random.between(first, (first + most - 1).min(7));
        Segment { grant: self.random.pick(self.stock), first: first as u8, last: last as u8 }
    }

    /// Good segments; of many, each has one sector.
    pub fn segments(&mut self, count: usize) -> Vec<Segment> {
        let most = if count > SEGMENTS_MAX { 1 } else { 8 };
        (0..count).map(|_| self.segment(most)).collect()
    }

    /// A place for that many sectors.
    fn place(&mut self, sectors: u64) -> u64 {
        self.random.between(0, self.sectors - sectors)
    }

    fn entry(&mut self, op: u8, sector: u64, body: Body) -> Vec<u8> {
        let (id, handle) = (self.id(), self.random.below(1 << 16) as u16);
        Request { op, id, sector, body }.encode(self.layout, handle)
    }

    /// A transfer of these segments, wherever it fits.
    pub fn transfer(&mut self, op: u8, segments: Vec<Segment>) -> Made {
        let sector = self.place(length(&segments));
        Made { entry: self.entry(op, sector, Body::Segments(segments)), own: Vec::new() }
    }

    /// The same with the segments in a page.
    pub fn indirect(&mut self, op: u8, segments: &[Segment]) -> Made {
        let table = self.pages.page(self.random);
        // A backend keeps no pages of a guest that grants one for reading only.
        let kind = if self.pages.is_keeping() { Kind::Fine } else { Kind::ReadOnly };
        let grant = self.lend(table, kind);
        Made { own: vec![grant], ..self.indirect_by(op, table, grant, segments) }
    }

    /// The same with this page, which is granted already.
    pub fn indirect_by(&mut self, op: u8, table: usize, grant: GrantRef, segments: &[Segment]) -> Made {
        self.describe(table, segments);
        let sector = self.place(length(segments).min(self.sectors));
        let body = Body::Indirect { count: segments.len() as u16, pages: vec![grant] };
        Made { entry: self.entry(op, sector, body), own: Vec::new() }
    }

    /// Writes descriptors into a page.
    pub fn describe(&mut self, table: usize, segments: &[Segment]) {
        for (i, segment) in segments.iter().take(512).enumerate() {
            self.pages.write(table, 8 * i, &segment.encode());
        }
    }

    /// A discard.
    pub fn discard(&mut self, sector: u64, sectors: u64) -> Made {
        Made { entry: self.entry(op::DISCARD, sector, Body::Discard { sectors }), own: Vec::new() }
    }

    fn way(&mut self) -> u8 {
        self.random.pick(&[op::READ, op::WRITE])
    }

    fn some(&mut self) -> Vec<Segment> {
        let count = self.random.between(1, SEGMENTS_MAX as u64) as usize;
        self.segments(count)
    }

    /// A request that breaks no rule.
    pub fn honest(&mut self) -> Made {
        let (way, some) = (self.way(), self.some());
        match self.random.below(16) {
            0 => {
                let count = self.random.between(1, 40) as usize;
                let segments = self.segments(count);
                self.indirect(way, &segments)
            }
            1 => self.transfer(op::FLUSH, Vec::new()),
            2 => {
                let (sectors, some) = (self.random.between(1, 16), self.sectors);
                let sector = self.random.between(0, some - sectors);
                self.discard(sector, sectors)
            }
            _ => self.transfer(way, some),
        }
    }

    /// Bytes of no meaning, now and then with a first byte that has one.
    pub fn noise(&mut self) -> Made {
        let mut entry = vec![0; if self.layout == Layout::X86_64 { 112 } else { 108 }];
        self.random.fill(&mut entry);
        if !self.random.one_in(4) {
            entry[0] = self.random.below(8) as u8;
            entry[1] = self.random.below(16) as u8;
        }
        Made { entry, own: Vec::new() }
    }

    /// A request that is valid but for this.
    pub fn make(&mut self, ask: Ask) -> Made {
        let (way, some) = (self.way(), self.some());
        let fields = Fields::of(self.layout);
        let with = |mut made: Made, at: usize, bytes: &[u8]| {
            made.entry[at..at + bytes.len()].copy_from_slice(bytes);
            made
        };
        match ask {
            Ask::Operation4 => with(self.transfer(way, some), 0, &[4]),
            Ask::Operation7 => with(self.transfer(way, some), 0, &[7]),
            Ask::Operation255 => with(self.transfer(way, some), 0, &[255]),
            Ask::ReadNone => with(self.transfer(op::READ, some), 1, &[0]),
            Ask::WriteNone => with(self.transfer(op::WRITE, some), 1, &[0]),
            Ask::Segments12 => {
                let eleven = self.segments(SEGMENTS_MAX);
                with(self.transfer(way, eleven), 1, &[12])
            }
            Ask::Segments255 => with(self.transfer(way, some), 1, &[255]),
            Ask::Indirect0 => with(self.indirect(way, &some), 2, &[0, 0]),
            Ask::Indirect1 => self.many(way, 1),
            Ask::Indirect12 => self.many(way, 12),
            Ask::IndirectMost => self.many(way, self.indirect.into()),
            Ask::IndirectMore => self.many(way, usize::from(self.indirect) + 1),
            Ask::Indirect65535 => with(self.indirect(way, &some), 2, &[255, 255]),
            Ask::Inner2 => with(self.indirect(way, &some), 1, &[2]),
            Ask::Inner3 => with(self.indirect(way, &some), 1, &[3]),
            Ask::Inner5 => with(self.indirect(way, &some), 1, &[5]),
            Ask::Inner6 => with(self.indirect(way, &some), 1, &[6]),
            Ask::Inner255 => with(self.indirect(way, &some), 1, &[255]),
            Ask::Handle => with(self.transfer(way, some), 2, &[0x34, 0x12]),
            Ask::FirstPastLast => {
                let at = fields.tail + 8 * self.random.index(some.len());
                with(self.transfer(way, some), at + 4, &[5, 4])
            }
            Ask::Last8 => {
                let (at, first) = (fields.tail + 8 * (some.len() - 1), self.random.below(9) as u8);
                with(self.transfer(way, some), at + 4, &[first, 8])
            }
            Ask::LastMore => {
                let (at, last) = (fields.tail + 8 * self.random.index(some.len()), self.random.between(9, 255) as u8);
                with(self.transfer(way, some), at + 4, &[0, last])
            }
            Ask::IndirectLast8 => {
                let count = self.random.between(12, 40) as usize;
                let mut segments = self.segments(count);
                let at = self.random.index(count);
                segments[at] = Segment { first: 7, last: 8, ..segments[at] };
                self.indirect(way, &segments)
            }
            Ask::SectorOverflows => {
                let sector = u64::MAX - self.random.below(length(&some));
                with(self.transfer(way, some), fields.sector, &sector.to_le_bytes())
            }
            Ask::BytesOverflow => {
                let sector = (1u64 << 55) + self.random.below(self.sectors);
                with(self.transfer(way, some), fields.sector, &sector.to_le_bytes())
            }
            Ask::AtEnd => {
                let sector = self.sectors - length(&some);
                with(self.transfer(way, some), fields.sector, &sector.to_le_bytes())
            }
            Ask::PastEnd => {
                let sector = self.sectors + 1 - length(&some);
                with(self.transfer(way, some), fields.sector, &sector.to_le_bytes())
            }
            Ask::ShrunkAway => {
                let sector = self.random.between(self.sectors, self.sectors_before.max(self.sectors + 1) - 1);
                with(self.transfer(way, some), fields.sector, &sector.to_le_bytes())
            }
            Ask::Misaligned => {
                let segment = Segment { first: 3, last: 5, ..some[0] };
                let sector = 1 + 8 * self.random.below(self.sectors / 8 - 1);
                with(self.transfer(way, vec![segment]), fields.sector, &sector.to_le_bytes())
            }
            Ask::Discard0 => self.discard(self.sectors / 2, 0),
            Ask::DiscardMost => self.discard(0, u64::MAX),
            Ask::DiscardWraps => self.discard(u64::MAX - 3, 8),
            Ask::DiscardPastEnd => self.discard(self.sectors - 1, 2),
            Ask::DiscardReadOnly => self.discard(8, 8),
            Ask::DiscardMisaligned => self.discard(3, 2),
            Ask::DiscardSecure => with(self.discard(8, 8), 1, &[1]),
            Ask::BarrierData | Ask::BarrierReadOnly => self.transfer(op::BARRIER, some),
            Ask::BarrierBare => self.transfer(op::BARRIER, Vec::new()),
            Ask::FlushReadOnly => self.transfer(op::FLUSH, some),
            Ask::WriteReadOnly => self.transfer(op::WRITE, some),
            Ask::IndirectReadOnly => self.indirect(op::WRITE, &some),
        }
    }

    fn many(&mut self, way: u8, count: usize) -> Made {
        let segments = self.segments(count);
        self.indirect(way, &segments)
    }
}

/// Whether the row is about a disk like this one.
pub fn fits(ask: Ask, read_only: bool, shrunk: bool) -> bool {
    match ask {
        Ask::DiscardReadOnly
        | Ask::BarrierReadOnly
        | Ask::FlushReadOnly
        | Ask::WriteReadOnly
        | Ask::IndirectReadOnly => read_only,
        Ask::BarrierData | Ask::DiscardMisaligned | Ask::DiscardSecure => !read_only,
        Ask::ShrunkAway => shrunk,
        _ => true,
    }
}

/// Sectors of all segments.
pub fn length(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.last - segment.first) + 1).sum()
}
