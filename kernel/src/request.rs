//! One request from its first step to its answer.

use alloc::boxed::Box;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};

use drivers::disk::{Device, Error, Op, Piece, SECTOR_BYTES};
use drivers::stack::Stack;
use protocol::blkif::{self, Body, Request, Segment, Status, Way, Why};
use protocol::mem::Memory;
use xen::grant::Batch;
use xen::kept::Kept;
use xen::limits::SEGMENTS_PER_VBD;
use xen::memory::Promise;
use xen::page::NoMemory;
use xen::port::{DomId, GrantRef, Instant, Move, Refused, Way as Direction, Xen};
use xen::sync::Credits;

use crate::minor::Minor;
use crate::queue::Handle;
use crate::sheet::{Descriptors, Sheet, Sheets};
use crate::stats::{Operation, Stats, add};

/// What the requests of one ring share.
pub struct Desk<X: Xen> {
    /// The disk.
    pub minor: Rc<Minor<X>>,
    pub(crate) ring: Rc<Handle>,
    /// Whose requests.
    pub guest: DomId,
    /// Writes and discards are refused.
    pub read_only: bool,
    /// Discards were offered.
    pub discard: bool,
    /// The time of this turn.
    pub clock: Cell<Instant>,
    pub(crate) stats: Rc<Stats>,
    /// Segments that may still be in flight.
    pub(crate) segments: Credits,
    /// The copies of this turn.
    pub batch: Batch,
    /// Segments copied since the queue last took that off its turn.
    pub(crate) copied: Cell<usize>,
    /// Pages of the guest that stay mapped, if it wants that, as long as its ring is there.
    pub(crate) kept: RefCell<Option<Kept<X>>>,
    /// Memory for what requests note down.
    pub(crate) sheets: Sheets,
    descriptors: Descriptors,
    _memory: Promise,
}

/// What a request asks for, but for what is on its sheet: it is moved some times, and shall be small.
#[derive(Clone, Copy)]
enum Work {
    Transfer { way: Way, sector: u64, flush_first: bool, barrier: bool },
    Indirect { way: Way, sector: u64, count: u16 },
    Flush,
    Discard { sector: u64, sectors: u64 },
}

impl Work {
    fn note(body: Body, sheet: &mut Sheet) -> Work {
        match body {
            Body::Transfer { way, sector, segments, flush_first, barrier } => {
                sheet.segments.extend_from_slice(&segments);
                Work::Transfer { way, sector, flush_first, barrier }
            }
            Body::Indirect { way, sector, count, pages } => {
                sheet.pages.extend_from_slice(&pages);
                Work::Indirect { way, sector, count }
            }
            Body::Flush | Body::Barrier => Work::Flush,
            Body::Discard { sector, sectors, secure: _ } => Work::Discard { sector, sectors },
        }
    }
}

/// What a guest is told.
pub struct Answer {
    /// Echoed.
    pub id: u64,
    /// Echoed.
    pub operation: u8,
    /// The verdict.
    pub status: Status,
}

/// Why a request was not done, and so whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The guest broke a rule.
    Rejected(Why),
    /// The guest's pages are not what it said.
    Grant(Refused),
    /// The guest may not write.
    ReadOnly,
    /// We do not do that.
    Unsupported,
    /// The store did not do it.
    Store(Error),
    /// We are out of memory.
    Memory,
}

impl From<Why> for Failed {
    fn from(why: Why) -> Self {
        Failed::Rejected(why)
    }
}

impl From<Refused> for Failed {
    fn from(refused: Refused) -> Self {
        Failed::Grant(refused)
    }
}

impl From<NoMemory> for Failed {
    fn from(_: NoMemory) -> Self {
        Failed::Memory
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        match error {
            Error::ReadOnly => Failed::ReadOnly,
            Error::Unsupported => Failed::Unsupported,
            // The disk shrank below us between our check and its own.
            Error::OutOfRange => Failed::Rejected(Why::PastEnd),
            Error::Medium | Error::Gone | Error::NoSpace | Error::Corrupt(_) => Failed::Store(error),
        }
    }
}

/// How many segments a request holds while it is in flight.
pub(crate) fn segments(body: &Body) -> usize {
    match body {
        Body::Transfer { segments, .. } => segments.len(),
        Body::Indirect { count, .. } => usize::from(*count),
        Body::Flush | Body::Barrier | Body::Discard { .. } => 0,
    }
}

impl<X: Xen> Desk<X> {
    /// For one connection of one guest, which may count on some memory.
    pub fn new(
        minor: Rc<Minor<X>>,
        ring: Rc<Handle>,
        memory: Promise,
        read_only: bool,
        discard: bool,
        kept: Option<Kept<X>>,
    ) -> Self {
        Desk {
            guest: ring.guest,
            ring,
            clock: Cell::new(Instant::default()),
            stats: minor.stats.clone(),
            minor,
            read_only,
            discard,
            batch: Batch::default(),
            copied: Cell::new(0),
            kept: RefCell::new(kept),
            segments: Credits::new(SEGMENTS_PER_VBD),
            sheets: Sheets::default(),
            descriptors: Descriptors::default(),
            _memory: memory,
        }
    }

    /// Does a request and says how it went. To be polled to its end. It counts as in flight from now on, before it is
    /// polled first.
    pub fn serve(self: Rc<Self>, request: Request) -> impl Future<Output = Answer> {
        let in_flight = self.minor.enter_request();
        let mut sheet = self.sheets.take(0);
        let (id, operation, segments) = (request.id, request.operation, segments(&request.body));
        let work = Work::note(request.body, &mut sheet);
        async move {
            let answer = Answer { id, operation, status: self.answer(work, segments, sheet).await };
            drop(in_flight);
            answer
        }
    }

    async fn answer(&self, work: Work, segments: usize, mut sheet: Box<Sheet>) -> Status {
        let began = self.clock.get();
        // What it is to hold is granted before it holds anything: who waits here stands in nobody's way.
        self.segments.take(segments).await;
        if let Work::Indirect { .. } = work {
            sheet = self.sheets.widen(sheet, segments);
        }
        let result = match self.minor.stack(self.ring.life) {
            Some(stack) => self.perform(&stack, work, &mut sheet).await,
            // It was closed under its rings.
            None => Err(Failed::Store(Error::Gone)),
        };
        let operation = match work {
            Work::Transfer { way, .. } | Work::Indirect { way, .. } => self.transfers(way),
            Work::Flush => &self.stats.flushes,
            Work::Discard { .. } => &self.stats.discards,
        };
        self.segments.put(segments);
        self.conclude(operation, began, sheet, result)
    }

    /// Counts what became of a request, and says what its guest is told. What it held is given back before.
    #[inline]
    pub(crate) fn conclude(
        &self,
        operation: &Operation,
        began: Instant,
        sheet: Box<Sheet>,
        result: Result<u64, Failed>,
    ) -> Status {
        add(&self.stats.copied, sheet.segments.len() as u64);
        let status = match result {
            Ok(sectors) => {
                operation.done(sectors, self.clock.get().0.saturating_sub(began.0) / 1000);
                Status::Okay
            }
            Err(failed) => self.fail(operation, &sheet, failed),
        };
        self.sheets.put(sheet);
        status
    }

    #[cold]
    fn fail(&self, operation: &Operation, sheet: &Sheet, failed: Failed) -> Status {
        let sectors = sheet.segments.iter().map(|segment| u64::from(segment.sectors())).sum();
        add(&operation.failed_sectors, sectors);
        self.judge(failed)
    }

    /// Counts of reads or of writes.
    pub(crate) fn transfers(&self, way: Way) -> &Operation {
        match way {
            Way::Read => &self.stats.reads,
            Way::Write => &self.stats.writes,
        }
    }

    fn judge(&self, failed: Failed) -> Status {
        log::debug!("domain {}: a request failed: {failed:?}", self.guest.0);
        let (stats, ring) = (&self.stats, &self.ring.stats);
        let both = |disk: &Cell<u64>, ring: &Cell<u64>| {
            add(disk, 1);
            add(ring, 1);
        };
        match failed {
            Failed::Rejected(_) | Failed::ReadOnly | Failed::Unsupported => both(&stats.rejected, &ring.rejected),
            Failed::Grant(_) => both(&stats.grants_refused, &ring.grants_refused),
            Failed::Memory => both(&stats.no_memory, &ring.no_memory),
            Failed::Store(error) => {
                stats.store.add(error);
                add(&ring.failed, 1);
                self.minor.store_failed(error, self.clock.get());
            }
        }
        if failed == Failed::Unsupported { Status::Unsupported } else { Status::Error }
    }

    /// Does it; the sectors that were moved or discarded.
    async fn perform(&self, stack: &Stack<X>, work: Work, sheet: &mut Sheet) -> Result<u64, Failed> {
        match work {
            Work::Flush => Ok(stack.submit(Op::Flush, 0).await.map(|()| 0)?),
            Work::Discard { sector, sectors } => self.discard(stack, sector, sectors).await,
            Work::Transfer { way, sector, flush_first, barrier } => {
                if (flush_first || barrier) && !self.read_only {
                    stack.submit(Op::Flush, 0).await?;
                }
                let sectors = self.transfer(stack, way, sector, sheet).await?;
                if barrier {
                    stack.submit(Op::Flush, 0).await?;
                }
                Ok(sectors)
            }
            Work::Indirect { way, sector, count } => {
                self.fetch(count, sheet).await?;
                self.transfer(stack, way, sector, sheet).await
            }
        }
    }

    async fn discard(&self, stack: &Stack<X>, sector: u64, sectors: u64) -> Result<u64, Failed> {
        if !self.discard {
            return Err(Failed::Unsupported);
        }
        if self.read_only {
            return Err(Failed::ReadOnly);
        }
        blkif::span(sector, sectors, stack.info().sectors)?;
        Ok(stack.submit(Op::Discard { sectors }, sector).await.map(|()| sectors)?)
    }

    /// Copies the descriptors of an indirect request to a page nobody else can write, once, and reads them there
    /// (XSA-155).
    async fn fetch(&self, count: u16, sheet: &mut Sheet) -> Result<(), Failed> {
        let mut left = count;
        for index in 0..sheet.pages.len() {
            let here = left.min(blkif::SEGMENTS_PER_PAGE);
            left -= here;
            let bytes = usize::from(here) * blkif::SEGMENT_BYTES;
            let room = self.descriptors.take(bytes)?;
            let fetch = Move {
                ours: room.page.clone(),
                ours_at: room.at as u16,
                domain: self.guest,
                grant: GrantRef(sheet.pages[index]),
                theirs_at: 0,
                bytes: bytes as u16,
                way: Direction::In,
            };
            self.copy(core::iter::once(fetch)).await?;
            let mut descriptors = [0; 512];
            for at in (0..bytes).step_by(descriptors.len()) {
                let some = &mut descriptors[..(bytes - at).min(512)];
                room.page.read(room.at + at, some);
                for segment in blkif::segments(some, (some.len() / blkif::SEGMENT_BYTES) as u16) {
                    sheet.segments.push(segment?);
                }
            }
        }
        Ok(())
    }

    async fn transfer(&self, stack: &Stack<X>, way: Way, sector: u64, sheet: &mut Sheet) -> Result<u64, Failed> {
        let Sheet { segments, pieces, .. } = sheet;
        let sectors = segments.iter().map(|segment| u64::from(segment.sectors())).sum();
        blkif::span(sector, sectors, stack.info().sectors)?;
        if way == Way::Write && self.read_only {
            return Err(Failed::ReadOnly);
        }
        let shape = segments.iter().map(|segment| (segment.first, segment.sectors() as u8));
        stack.take(sector, shape, pieces).await;
        let result = match way {
            Way::Read => self.read(stack, sector, segments, pieces).await,
            Way::Write => self.write(stack, sector, segments, pieces).await,
        };
        stack.give(pieces);
        result.map(|()| sectors)
    }

    /// So many segments were copied, or Xen is to copy them in this turn.
    pub(crate) fn spent(&self, segments: usize) {
        self.copied.set(self.copied.get() + segments);
    }

    async fn read(&self, stack: &Stack<X>, sector: u64, segments: &[Segment], pieces: &[Piece]) -> Result<(), Failed> {
        stack.submit(Op::Read(pieces), sector).await?;
        self.spent(segments.len());
        Ok(self.copy(self.moves(segments, pieces, Direction::Out)).await?)
    }

    async fn write(&self, stack: &Stack<X>, sector: u64, segments: &[Segment], pieces: &[Piece]) -> Result<(), Failed> {
        self.spent(segments.len());
        self.copy(self.moves(segments, pieces, Direction::In)).await?;
        Ok(stack.submit(Op::Write(pieces), sector).await?)
    }

    /// Makes the copies whose pages stay mapped here and now, and lets Xen make the others with those of this turn.
    async fn copy(&self, moves: impl Iterator<Item = Move>) -> Result<(), Refused> {
        let ordered = {
            let mut kept = self.kept.borrow_mut();
            let mut left = moves.filter(|it| !kept.as_mut().is_some_and(|kept| kept.copy(it)));
            let Some(first) = left.next() else { return Ok(()) };
            self.batch.copy(core::iter::once(first).chain(left))
        };
        ordered.await
    }

    /// The ring is gone: the guest's pages may be another guest's by now.
    pub fn let_go(&self) {
        self.kept.take();
    }

    /// Lays the guest's segments beside our pieces: both are the same sectors in the same order, cut differently.
    fn moves<'a>(
        &self,
        segments: &'a [Segment],
        pieces: &'a [Piece],
        way: Direction,
    ) -> impl Iterator<Item = Move> + use<'a, X> {
        let domain = self.guest;
        let (mut segments, mut pieces) = (segments.iter(), pieces.iter());
        let (mut segment, mut piece) = (segments.next(), pieces.next());
        // Sectors of the present segment and the present piece that are behind us.
        let (mut theirs, mut ours) = (0, 0);
        core::iter::from_fn(move || {
            let (s, p) = (segment?, piece?);
            let sectors = (s.sectors() as u8 - theirs).min(p.sectors - ours);
            let bytes = |sectors: u8| u16::from(sectors) * SECTOR_BYTES as u16;
            let next = Move {
                ours: p.page.clone(),
                ours_at: bytes(p.first + ours),
                domain,
                grant: GrantRef(s.grant),
                theirs_at: bytes(s.first + theirs),
                bytes: bytes(sectors),
                way,
            };
            (theirs, ours) = (theirs + sectors, ours + sectors);
            if u32::from(theirs) == s.sectors() {
                (segment, theirs) = (segments.next(), 0);
            }
            if ours == p.sectors {
                (piece, ours) = (pieces.next(), 0);
            }
            Some(next)
        })
    }
}
