//! A frontend's ring while there is one: its pages, its grants, its port, and what is under way.

use std::collections::BTreeMap;

use protocol::mem::Memory;
use xen::page::{PAGE_BYTES, PageRef};
use xen::port::{Access, DomId, GrantRef, Port, StillInUse, Way};

use crate::blkif::{
    Body, FrontRing, Layout, Request, Response, SECTOR, SEGMENTS_MAX, SEGMENTS_PER_PAGE, Segment, status,
};
use crate::delay::{Delay, Moment};
use crate::frontend::slips::{Slip, Spare};
use crate::frontend::workload::Io;
use crate::marks;
use crate::random::Random;
use crate::world::World;

/// What fills a page around and before the payload: whoever writes outside the segment is seen.
const FILLED: [u8; PAGE_BYTES] = [0xe5; PAGE_BYTES];

struct Piece {
    page: PageRef,
    grant: GrantRef,
    first: usize,
    sectors: usize,
}

struct Flight {
    /// When it was asked; none where nobody looked for the answer.
    asked: Option<Moment>,
    io: Io,
    line: Option<usize>,
    pieces: Vec<Piece>,
    tables: Vec<(PageRef, GrantRef)>,
}

/// Requests under way that carry one number, and what was answered under it so far. Which of them an answer is for nobody
/// can tell, so all wait for the last.
#[derive(Default)]
struct Group {
    flights: Vec<Flight>,
    answers: Vec<(u8, i16)>,
}

/// Requests that carry one number at most.
const GROUP_MAX: usize = 4;

/// An answered request.
pub(crate) struct Done {
    pub io: Io,
    /// Its line in the ledger.
    pub line: Option<usize>,
    pub status: i16,
    /// What was read.
    pub data: Vec<u8>,
    /// From question to answer; none where nobody looked for it.
    pub delay: Option<Delay>,
}

/// How to make one.
pub(crate) struct Geometry {
    pub guest: DomId,
    pub backend: DomId,
    pub devid: u32,
    pub layout: Layout,
    pub order: u32,
}

pub(crate) struct Link {
    world: World,
    random: Random,
    guest: DomId,
    backend: DomId,
    ring: FrontRing,
    pub grants: Vec<GrantRef>,
    pub port: Port,
    /// What a slip named beside these.
    pub spare: Spare,
    flights: BTreeMap<u64, Group>,
    /// Requests may carry a number that is under way already.
    pub shares_ids: bool,
    /// Segments in one request: 11, or more where the backend offers indirect ones.
    pub segments_max: usize,
    /// Both sides have offered to keep pages (`feature-persistent`): what the backend has mapped after its answer is used
    /// again under the same reference.
    pub persistent: bool,
    kept: Vec<(PageRef, GrantRef)>,
}

impl Link {
    pub fn new(world: &World, random: Random, geometry: &Geometry) -> Self {
        let Geometry { guest, backend, .. } = *geometry;
        let pages: Vec<PageRef> = (0..1 << geometry.order).map(|_| page()).collect();
        let lend = |page| world.lend(guest, page, backend, Access::ReadWrite).expect("a guest's table is large");
        let grants = pages.iter().map(lend).collect();
        Link {
            world: world.clone(),
            random,
            guest,
            backend,
            ring: FrontRing::new(pages, geometry.layout, geometry.devid as u16),
            grants,
            port: world.alloc_unbound(guest, backend).expect("a guest has ports"),
            spare: Spare::default(),
            flights: BTreeMap::new(),
            shares_ids: false,
            segments_max: SEGMENTS_MAX,
            persistent: false,
            kept: Vec::new(),
        }
    }

    /// A page that is granted as a page of the ring is, and is none.
    pub fn spare_ring(&mut self) -> GrantRef {
        let lent = self.world.lend(self.guest, &page(), self.backend, Access::ReadWrite);
        let grant = lent.expect("a guest's table is large");
        self.spare.grants.push(grant);
        grant
    }

    /// A port like its own.
    pub fn spare_port(&mut self) -> Port {
        let port = self.world.alloc_unbound(self.guest, self.backend).expect("a guest has ports");
        *self.spare.port.insert(port)
    }

    /// How many requests wait for their answer.
    pub fn in_flight(&self) -> usize {
        self.flights.values().map(|group| group.flights.len() - group.answers.len()).sum()
    }

    /// Whether there is a slot beyond so many.
    pub fn has_room(&self, batch: usize) -> bool {
        if self.ring.free() == 0 {
            marks::hit("frontend ring full");
        }
        self.ring.free() as usize > batch
    }

    /// Whether nothing is under way, nor in `batch`, that this one would race with.
    pub fn independent(&self, io: &Io, batch: &[Io]) -> bool {
        self.all().map(|flight| &flight.io).chain(batch).all(|other| other.independent(io))
    }

    fn all(&self) -> impl Iterator<Item = &Flight> {
        self.flights.values().flat_map(|group| &group.flights)
    }

    /// Puts requests on the ring and tells the backend if it asked to be told.
    pub fn submit(&mut self, ios: Vec<(Io, Option<usize>)>) {
        for (io, line) in ios {
            let request = self.build(io, line);
            self.ring.put(&request);
        }
        if self.ring.publish() {
            self.world.notify(self.guest, self.port);
        }
    }

    fn build(&mut self, io: Io, line: Option<usize>) -> Request {
        let id = self.id();
        let (op, (sector, sectors)) = (io.op(), io.range());
        let (mut pieces, mut tables) = (Vec::new(), Vec::new());
        let body = match &io {
            Io::Discard { .. } => Body::Discard { sectors },
            Io::Flush => Body::Segments(Vec::new()),
            Io::Read { .. } => {
                pieces = self.pieces(sectors as usize, None);
                self.body(&pieces, &mut tables)
            }
            Io::Write { data, .. } | Io::FlushWrite { data, .. } | Io::Barrier { data, .. } => {
                pieces = self.pieces(sectors as usize, Some(data));
                self.body(&pieces, &mut tables)
            }
        };
        let flight = Flight { asked: Some(Moment::of(&self.world)), io, line, pieces, tables };
        self.flights.entry(id).or_default().flights.push(flight);
        // A flush names no place; Linux leaves whatever was there.
        let sector = if sectors == 0 { self.random.next() } else { sector };
        Request { op, id, sector, body }
    }

    fn id(&mut self) -> u64 {
        if self.shares_ids && !self.flights.is_empty() && self.random.one_in(2) {
            let (id, group) = self.flights.iter().nth(self.random.index(self.flights.len())).expect("one of them");
            if group.flights.len() < GROUP_MAX {
                return *id;
            }
        }
        loop {
            let id = if self.random.one_in(2) { self.random.next() } else { self.random.below(64) };
            if !self.flights.contains_key(&id) {
                return id;
            }
        }
    }

    /// Pages for that many sectors, cut as the seed likes, granted no more than needed.
    fn pieces(&mut self, sectors: usize, data: Option<&[u8]>) -> Vec<Piece> {
        let (mut pieces, mut done) = (Vec::new(), 0);
        while done < sectors {
            let left = sectors - done;
            let after = self.segments_max - pieces.len() - 1;
            let least = left.saturating_sub(8 * after).max(1);
            let most = left.min(8);
            let size =
                if self.random.one_in(3) { self.random.between(least as u64, most as u64) as usize } else { most };
            let first = self.random.index(8 - size + 1);
            let (page, grant) = self.granted(if data.is_some() { Access::ReadOnly } else { Access::ReadWrite });
            page.write(0, &FILLED);
            if let Some(data) = data {
                page.write(first * SECTOR, &data[done * SECTOR..(done + size) * SECTOR]);
            }
            let way = if data.is_some() { Way::In } else { Way::Out };
            self.world.promise(self.guest, grant, way, first * SECTOR..(first + size) * SECTOR);
            pieces.push(Piece { page, grant, first, sectors: size });
            done += size;
        }
        pieces
    }

    /// A page for one request: one that the backend keeps, or a new one, granted no more than needed where none is kept.
    fn granted(&mut self, access: Access) -> (PageRef, GrantRef) {
        if !self.kept.is_empty() {
            let at = self.random.index(self.kept.len());
            return self.kept.swap_remove(at);
        }
        let access = if self.persistent { Access::ReadWrite } else { access };
        let page = page();
        let grant = self.world.lend(self.guest, &page, self.backend, access).expect("a guest's table is large");
        (page, grant)
    }

    fn body(&mut self, pieces: &[Piece], tables: &mut Vec<(PageRef, GrantRef)>) -> Body {
        let segment = |piece: &Piece| Segment {
            grant: piece.grant,
            first: piece.first as u8,
            last: (piece.first + piece.sectors - 1) as u8,
        };
        if pieces.len() <= SEGMENTS_MAX {
            return Body::Segments(pieces.iter().map(segment).collect());
        }
        for pieces in pieces.chunks(SEGMENTS_PER_PAGE) {
            let (table, grant) = self.granted(Access::ReadOnly);
            for (i, piece) in pieces.iter().enumerate() {
                table.write(8 * i, &segment(piece).encode());
            }
            self.world.promise(self.guest, grant, Way::In, 0..8 * pieces.len());
            tables.push((table, grant));
        }
        Body::Indirect { count: pieces.len() as u16, pages: tables.iter().map(|(_, grant)| *grant).collect() }
    }

    /// Nobody looks for answers for a while: how long those take that are due now tells nothing.
    pub fn look_away(&mut self) {
        let all = self.flights.values_mut().flat_map(|group| &mut group.flights);
        all.for_each(|flight| flight.asked = None);
    }

    /// Takes all answers there are, and asks for an event at the next.
    pub fn interrupt(&mut self) -> Result<Vec<Done>, String> {
        let mut all = Vec::new();
        loop {
            while let Some(response) = self.ring.take()? {
                all.extend(self.answered(response)?);
            }
            if !self.ring.arm() {
                return Ok(all);
            }
        }
    }

    /// Takes an answer. With the last of those under one number come all requests that carry it.
    fn answered(&mut self, response: Response) -> Result<Vec<Done>, String> {
        let Response { id, op, status } = response;
        let group = self.flights.get_mut(&id).ok_or(format!("an answer to {id:#x}, which is not under way"))?;
        if !matches!(status, status::OKAY | status::ERROR | status::EOPNOTSUPP) {
            return Err(format!("status {status}"));
        }
        group.answers.push((op, status));
        let asked = group.flights.iter().filter(|flight| flight.io.op() == op).count();
        if group.answers.iter().filter(|(other, _)| *other == op).count() > asked {
            let ops: Vec<u8> = group.flights.iter().map(|flight| flight.io.op()).collect();
            return Err(format!("operations {ops:?} under one number answered as {:?}", group.answers));
        }
        if group.answers.len() < group.flights.len() {
            return Ok(Vec::new());
        }
        let Group { mut flights, answers } = self.flights.remove(&id).expect("just seen");
        if flights.len() > 1 {
            marks::hit(Slip::SameId.mark());
            flights.iter_mut().for_each(|flight| flight.asked = None);
        }
        // Of several answers to one operation the worst is the one that nobody can be sure not to have got.
        let worst = |op| answers.iter().filter(|(other, _)| *other == op).map(|(_, status)| *status).min();
        let each = |flight: Flight| {
            let status = worst(flight.io.op()).expect("as many answers as requests of each operation");
            self.finish(id, flight, status)
        };
        flights.into_iter().map(each).collect()
    }

    fn finish(&mut self, id: u64, flight: Flight, status: i16) -> Result<Done, String> {
        let pages = flight.pieces.iter().map(|piece| (piece.page.clone(), piece.grant)).chain(flight.tables);
        for (page, grant) in pages {
            self.world.settle(self.guest, grant);
            match self.world.reclaim(self.guest, grant) {
                Ok(()) => {}
                Err(StillInUse) if self.persistent => {
                    marks::hit("frontend page kept");
                    self.kept.push((page, grant));
                }
                Err(StillInUse) => return Err(format!("answered {id:#x} while its page is still mapped")),
            }
        }
        let mut data = Vec::new();
        for piece in &flight.pieces {
            let mut bytes = [0; PAGE_BYTES];
            piece.page.read(0, &mut bytes);
            let (start, end) = (piece.first * SECTOR, (piece.first + piece.sectors) * SECTOR);
            if bytes[..start] != FILLED[..start] || bytes[end..] != FILLED[end..] {
                return Err(format!("{id:#x} wrote outside its segment"));
            }
            data.extend_from_slice(&bytes[start..end]);
        }
        match flight.io.data() {
            Some(meant) if *meant != data => Err(format!("{id:#x} changed the page it was to write")),
            _ => {
                let delay = flight.asked.map(|asked| Delay::since(&self.world, asked));
                Ok(Done { io: flight.io, line: flight.line, status, data, delay })
            }
        }
    }

    /// Ends it: what was under way, and the grants that are left, ring first.
    pub fn end(self) -> (Vec<Io>, Vec<GrantRef>) {
        for port in self.spare.port.into_iter().chain([self.port]) {
            self.world.close(self.guest, port);
        }
        let mut grants = self.grants;
        grants.extend(self.spare.grants);
        grants.extend(self.kept.iter().map(|(_, grant)| *grant));
        let mut ios = Vec::new();
        for flight in self.flights.into_values().flat_map(|group| group.flights) {
            let tables = flight.tables.iter().map(|(_, grant)| *grant);
            let all = flight.pieces.iter().map(|piece| piece.grant).chain(tables);
            grants.extend(all.inspect(|grant| self.world.settle(self.guest, *grant)));
            ios.push(flight.io);
        }
        (ios, grants)
    }
}

fn page() -> PageRef {
    PageRef::alone().expect("memory for a test")
}
