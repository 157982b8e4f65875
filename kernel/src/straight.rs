//! The straight way: a read or write by a guest whose pages stay mapped, of sectors that a lower disk has together, its own or
//! those of an image, is handed on from ring to ring in its queue's own turn. It waits for one thing alone, the lower
//! backend's answer, and is no future but a number. What cannot be begun here and now goes the ordinary way.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::task::Context;

use drivers::device::blkfront::Blkfront;
use drivers::disk::{Device, End, Error, Piece, SECTOR_BYTES};
use drivers::stack::{Guest, Stack};
use protocol::blkif::{Body, Request, Segment, Way};
use xen::kept::Kept;
use xen::port::{GrantRef, Instant, Move, Refused, Way as Direction, Xen};
use xen::sync::Completions;

use crate::minor::InFlight;
use crate::request::{Answer, Desk, Failed, segments};
use crate::sheet::Sheet;

/// A transfer under way.
struct Flight<X: Xen> {
    id: u64,
    operation: u8,
    way: Way,
    began: Instant,
    sectors: u64,
    disk: Rc<Blkfront<X>>,
    image: Option<Guest<X>>,
    sheet: Box<Sheet>,
    in_flight: InFlight<X>,
}

/// All of one queue, by number.
pub struct Flights<X: Xen> {
    table: Vec<Option<Flight<X>>>,
    free: Vec<usize>,
    ends: Rc<Completions<Result<(), Error>>>,
    /// Those that have ended, and how many of them have been seen to.
    landed: Vec<(usize, Result<(), Error>)>,
    seen: usize,
}

impl<X: Xen> Default for Flights<X> {
    fn default() -> Self {
        Flights { table: Vec::new(), free: Vec::new(), ends: Rc::default(), landed: Vec::new(), seen: 0 }
    }
}

impl<X: Xen> Flights<X> {
    /// How many are under way.
    pub fn len(&self) -> usize {
        self.table.len() - self.free.len()
    }

    /// The answer to one that has ended. None, and the task is woken by the next end, if there is none.
    pub fn next(&mut self, desk: &Desk<X>, cx: &mut Context<'_>) -> Option<Answer> {
        if self.seen == self.landed.len() {
            self.seen = 0;
            self.ends.tell(&mut self.landed, cx);
        }
        let (number, result) = *self.landed.get(self.seen)?;
        self.seen += 1;
        let flight = self.table[number].take().expect("its end is told once");
        self.free.push(number);
        Some(desk.arrive(flight, result))
    }

    /// A number that none has.
    fn number(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.table.push(None);
            self.table.len() - 1
        })
    }
}

impl<X: Xen> Desk<X> {
    /// Begins the request, if that can be done here and now. False, and nothing has happened, if not.
    pub fn depart(&self, stack: &Rc<Stack<X>>, request: &Request, flights: &mut Flights<X>) -> bool {
        let mut kept = self.kept.borrow_mut();
        let Some(kept) = kept.as_mut() else { return false };
        let mut sheet = self.sheets.take(segments(&request.body));
        let begun = self.ready(stack, kept, request, &mut sheet);
        let Some((way, sectors, disk, at)) = begun else {
            self.sheets.put(sheet);
            return false;
        };
        let number = flights.number();
        disk.begin(way, &sheet.pieces, at, End { to: flights.ends.clone(), number });
        let Request { id, operation, .. } = *request;
        let (began, in_flight) = (self.clock.get(), self.minor.enter_request());
        let (disk, image) = (disk.clone(), stack.stay());
        flights.table[number] = Some(Flight { id, operation, way, began, sectors, disk, image, sheet, in_flight });
        true
    }

    /// Takes all that the request needs to be begun, and notes it on the sheet: which way, how many sectors, on which disk
    /// and where. None, and nothing is taken, if there is something to wait for or something is wrong: the ordinary way
    /// finds out what.
    fn ready<'a>(
        &self,
        stack: &'a Stack<X>,
        kept: &mut Kept<X>,
        request: &Request,
        sheet: &mut Sheet,
    ) -> Option<(Way, u64, &'a Rc<Blkfront<X>>, u64)> {
        let (way, sector) = match &request.body {
            Body::Transfer { way, sector, segments, flush_first: false, barrier: false } => {
                // Most have one: a copy of any length would cost more.
                segments.iter().for_each(|segment| sheet.segments.push(*segment));
                (*way, *sector)
            }
            Body::Indirect { way, sector, count, pages } => {
                self.read_descriptors(kept, pages, *count, &mut sheet.segments)?;
                (*way, *sector)
            }
            Body::Transfer { .. } | Body::Flush | Body::Barrier | Body::Discard { .. } => return None,
        };
        let Sheet { segments, pieces, .. } = sheet;
        let sectors = segments.iter().map(|segment| u64::from(segment.sectors())).sum();
        if sectors == 0 {
            return None;
        }
        let (disk, at) = stack.straight(way, sector, sectors)?;
        let mapped = |segment: &Segment| kept.page(GrantRef(segment.grant)).is_some();
        if way == Way::Write && self.read_only || !self.segments.has(segments.len()) || !segments.iter().all(mapped) {
            return None;
        }
        let shape = segments.iter().map(|segment| (segment.first, segment.sectors() as u8));
        if !disk.take_now(way, at, sectors, shape, pieces) {
            return None;
        }
        if way == Way::Write && self.carry(kept, segments, pieces, Direction::In).is_err() {
            disk.give(pieces);
            return None;
        }
        let taken = self.segments.take_now(segments.len());
        debug_assert!(taken, "they were there just now");
        Some((way, sectors, disk, at))
    }

    /// Ends a transfer: what was read is copied before the guest is told.
    fn arrive(&self, flight: Flight<X>, result: Result<(), Error>) -> Answer {
        let Flight { id, operation, way, began, sectors, disk, image, mut sheet, in_flight } = flight;
        let Sheet { segments, pieces, .. } = &mut *sheet;
        let copied = match (result, way, &mut *self.kept.borrow_mut()) {
            (Err(error), ..) => Err(Failed::from(error)),
            (Ok(()), Way::Write, _) => Ok(()),
            (Ok(()), Way::Read, Some(kept)) => self.carry(kept, segments, pieces, Direction::Out).map_err(Failed::from),
            // The guest's pages may be another guest's by now.
            (Ok(()), Way::Read, None) => Err(Failed::from(Refused::GONE)),
        };
        disk.give(pieces);
        self.segments.put(segments.len());
        let status = self.conclude(self.transfers(way), began, sheet, copied.map(|()| sectors));
        drop((image, in_flight));
        Answer { id, operation, status }
    }

    /// Copies between the guest's segments and our pieces, of which each has its own.
    fn carry(&self, kept: &mut Kept<X>, segments: &[Segment], pieces: &[Piece], way: Direction) -> Result<(), Refused> {
        self.spent(segments.len());
        for (segment, piece) in segments.iter().zip(pieces) {
            let [theirs_at, ours_at, bytes] =
                [segment.first, piece.first, piece.sectors].map(|sectors| usize::from(sectors) * SECTOR_BYTES);
            let (ours, grant) = (&piece.page, GrantRef(segment.grant));
            match (kept.page(grant), way) {
                (Some(theirs), Direction::In) => ours.copy(ours_at, theirs, theirs_at, bytes),
                (Some(theirs), Direction::Out) => theirs.copy(theirs_at, ours, ours_at, bytes),
                (None, _) => {
                    let [theirs_at, ours_at, bytes] = [theirs_at, ours_at, bytes].map(|bytes| bytes as u16);
                    let (ours, domain) = (ours.clone(), self.guest);
                    kept.copy_unmapped(&Move { ours, ours_at, domain, grant, theirs_at, bytes, way })?;
                }
            }
        }
        Ok(())
    }
}
