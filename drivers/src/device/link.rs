//! The data path to a lower disk: one ring to its backend, and the requests on it.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::task::{Poll, Waker};

use protocol::blkif::{
    Answer, Ask, Layout, REQUEST_BYTES, RESPONSE_BYTES, SEGMENT_BYTES, SEGMENTS_MAX, Segment, Status, Way, encode,
    encode_segments,
};
use protocol::mem::Memory;
use protocol::ring::{Front, Shape};
use xen::domain::Domain;
use xen::event::Channel;
use xen::grant::Lent;
use xen::limits::{REQUESTS_PER_LOWER, SEGMENTS_INDIRECT};
use xen::look::Look;
use xen::page::{PageRef, Run, Span};
use xen::pool::{NoPool, Pool};
use xen::port::{Access, DomId, Xen};
use xen::sync::{Credits, Signal};

use crate::disk::{End, Error, Op, Piece, sectors};

/// Requests with more segments than fit the ring entry in flight at once, each with a page of descriptors.
const INDIRECT_IN_FLIGHT: usize = 32;

/// Descriptors written at a time.
const DESCRIBED: usize = 32;

/// A ring shared with a backend.
pub struct Link<X: Xen> {
    domain: Rc<Domain<X>>,
    pool: Rc<Pool<X>>,
    handle: u16,
    ring: RefCell<Front<Span<PageRef>>>,
    pages: Vec<Lent<X>>,
    channel: Channel<X>,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<usize>>,
    credits: Credits,
    descriptors: Vec<Lent<X>>,
    descriptors_free: RefCell<Vec<usize>>,
    descriptor_credits: Credits,
    segments_max: usize,
    /// Requests were put on the ring that are not published.
    unseen: Signal,
    /// The backend does what no backend does; whoever looks after the disk is to close it.
    pub broken: Signal,
    distrusted: Cell<bool>,
    state: Cell<State>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Nothing new; what is in flight is awaited.
    Stopped,
    Ended,
}

enum Slot {
    Free,
    Sent(u8, Waiter),
    Done(Result<(), Error>),
}

/// Who hears of the end of a request.
enum Waiter {
    /// A future, which then frees the slot; nobody before it was polled.
    Future(Option<Waker>),
    /// Who began it without one. The slot is free with the end, and so is the page with its descriptors.
    Begun(End, Option<usize>),
}

/// What the backend offers that shapes the ring.
#[derive(Clone, Copy)]
pub struct Offer {
    /// Its domain.
    pub backend: DomId,
    /// The disk's number as requests carry it.
    pub handle: u16,
    /// Ring pages to use.
    pub pages: usize,
    /// `feature-max-indirect-segments`, 0 if it has none.
    pub segments_indirect: u32,
}

impl<X: Xen> Link<X> {
    /// Makes a ring and grants it.
    pub fn new(domain: &Rc<Domain<X>>, pool: Rc<Pool<X>>, offer: Offer) -> Result<Self, NoPool> {
        let run = Run::new(offer.pages)?;
        let lend = |page| Lent::new(domain, page, offer.backend, Access::ReadWrite);
        let pages = (0..offer.pages).map(|i| lend(run.page(i))).collect::<Result<_, _>>()?;
        let shape = Shape::new(offer.pages, Layout::X86_64.entry_bytes());
        let ring = Front::init(Span((0..offer.pages).map(|i| run.page(i)).collect()), shape);
        let indirect = offer.segments_indirect.min(u32::from(SEGMENTS_INDIRECT)) as usize;
        let descriptors: Vec<_> = match indirect > SEGMENTS_MAX {
            true => (0..INDIRECT_IN_FLIGHT)
                .map(|_| lend(PageRef::alone()?).map_err(NoPool::from))
                .collect::<Result<_, _>>()?,
            false => Vec::new(),
        };
        let slots = (shape.slots as usize).min(REQUESTS_PER_LOWER);
        Ok(Link {
            domain: domain.clone(),
            ring: RefCell::new(ring),
            pages,
            channel: Channel::offer(domain, offer.backend)?,
            slots: RefCell::new((0..slots).map(|_| Slot::Free).collect()),
            free: RefCell::new((0..slots).rev().collect()),
            credits: Credits::new(slots),
            descriptor_credits: Credits::new(descriptors.len()),
            descriptors_free: RefCell::new((0..descriptors.len()).collect()),
            descriptors,
            segments_max: indirect.max(SEGMENTS_MAX),
            unseen: Signal::default(),
            broken: Signal::default(),
            distrusted: Cell::new(false),
            state: Cell::new(State::Open),
            handle: offer.handle,
            pool,
        })
    }

    /// The grants of the ring's pages, in order.
    pub fn ring_refs(&self) -> impl Iterator<Item = u32> + '_ {
        self.pages.iter().map(|lent| lent.grant().0)
    }

    /// The port offered to the backend.
    pub fn port(&self) -> u32 {
        self.channel.port().0
    }

    /// Moves requests out and answers in until the link has ended. One task runs this.
    pub async fn run(&self) {
        let mut look = Look::default();
        // Whether the next answer is announced by an event; a new ring is made so.
        let mut armed = true;
        poll_fn(|cx| {
            let now = self.domain.xen.now();
            loop {
                if self.state.get() == State::Ended {
                    return Poll::Ready(());
                }
                // Both are looked at, until neither was raised: each must know whom to wake.
                let (event, put) = (self.channel.poll(cx).is_ready(), self.unseen.poll(cx).is_ready());
                if put {
                    look.interrupted();
                    if self.ring.borrow_mut().publish() {
                        self.channel.notify();
                    }
                }
                if (event || !armed) && !self.distrusted.get() && self.answers() {
                    look.found(now);
                    armed = false;
                }
                if event || put {
                    continue;
                }
                if armed || self.distrusted.get() || self.ring.borrow().outstanding() == 0 {
                    return Poll::Pending;
                }
                if look.again(now) {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                match self.ring.borrow_mut().rearm() {
                    Ok(more) => armed = !more,
                    Err(_) => self.distrust("its ring index makes no sense"),
                }
            }
        })
        .await
    }

    /// Takes what was answered; true if anything was.
    fn answers(&self) -> bool {
        let mut entry = [0; RESPONSE_BYTES];
        let mut any = false;
        loop {
            let taken = self.ring.borrow_mut().take(&mut entry);
            match taken {
                Ok(true) => self.answered(&Answer::parse(&entry)),
                Ok(false) => return any,
                Err(_) => {
                    self.distrust("its ring index makes no sense");
                    return any;
                }
            }
            any = true;
        }
    }

    fn answered(&self, answer: &Answer) {
        let mut slots = self.slots.borrow_mut();
        let slot = usize::try_from(answer.id).ok().and_then(|id| slots.get_mut(id));
        let Some(Slot::Sent(operation, _)) = slot else {
            drop(slots);
            return self.distrust("it answered what was not asked");
        };
        if *operation != answer.operation {
            drop(slots);
            return self.distrust("it answered another operation than was asked");
        }
        let result = match answer.status {
            Status::Okay => Ok(()),
            Status::Unsupported => Err(Error::Unsupported),
            Status::Error => Err(Error::Medium),
        };
        self.tell(&mut slots, answer.id as usize, result);
    }

    /// A request that was sent has ended so.
    fn tell(&self, slots: &mut [Slot], slot: usize, result: Result<(), Error>) {
        let Slot::Sent(_, waiter) = core::mem::replace(&mut slots[slot], Slot::Free) else {
            unreachable!("it was sent")
        };
        match waiter {
            Waiter::Future(waker) => {
                slots[slot] = Slot::Done(result);
                waker.into_iter().for_each(Waker::wake);
            }
            Waiter::Begun(end, descriptors) => {
                self.free(slot);
                if let Some(page) = descriptors {
                    self.put_descriptors(page);
                }
                end.to.post(end.number, result);
            }
        }
    }

    fn free(&self, slot: usize) {
        self.free.borrow_mut().push(slot);
        self.credits.put(1);
    }

    fn distrust(&self, why: &str) {
        log::error!("lower disk: the backend is not to be trusted: {why}");
        self.stop();
        self.distrusted.set(true);
        self.broken.raise();
    }

    /// Whether the backend did what no backend does.
    pub fn is_distrusted(&self) -> bool {
        self.distrusted.get()
    }

    /// Takes nothing more; what is in flight is still awaited.
    pub fn stop(&self) {
        if self.state.get() == State::Open {
            self.state.set(State::Stopped);
        }
    }

    /// Requests the backend has not answered.
    pub fn in_flight(&self) -> usize {
        self.slots.borrow().iter().filter(|slot| matches!(slot, Slot::Sent(..))).count()
    }

    /// Ends the link: what is in flight fails. Only for a backend that has let go of its side (it said Closed, or is
    /// gone): until then it may still write to the pages in flight.
    pub fn end(&self) {
        self.state.set(State::Ended);
        let mut slots = self.slots.borrow_mut();
        for slot in 0..slots.len() {
            if matches!(slots[slot], Slot::Sent(..)) {
                self.tell(&mut slots, slot, Err(Error::Gone));
            }
        }
        self.unseen.raise();
    }

    /// Whether [`begin`](Link::begin) can begin a transfer of so many pieces: nothing has to be waited for.
    pub fn is_free(&self, pieces: usize) -> bool {
        self.state.get() == State::Open
            && pieces <= self.segments_max
            && self.credits.has(1)
            && (pieces <= SEGMENTS_MAX || self.descriptor_credits.has(1))
    }

    /// Begins a transfer where the link [is free](Link::is_free) for it. Its end is told in any case.
    pub fn begin(&self, way: Way, pieces: &[Piece], sector: u64, end: End) {
        let free = self.credits.take_now(1) && (pieces.len() <= SEGMENTS_MAX || self.descriptor_credits.take_now(1));
        assert!(free, "who begins has asked before");
        if pieces.len() <= SEGMENTS_MAX {
            let mut segments = heapless::Vec::<Segment, SEGMENTS_MAX>::new();
            self.segments(pieces, &mut segments);
            self.put(&Ask::Transfer { way, sector, segments: &segments }, Waiter::Begun(end, None));
        } else {
            let (page, grant) = self.describe(pieces);
            let ask = Ask::Indirect { way, sector, count: pieces.len() as u16, pages: &[grant] };
            self.put(&ask, Waiter::Begun(end, Some(page)));
        }
    }

    /// Does one operation, in as many requests as the backend's limits make of it.
    pub async fn submit(&self, op: Op<'_>, sector: u64) -> Result<(), Error> {
        match op {
            Op::Read(pieces) => self.transfer(Way::Read, pieces, sector).await,
            Op::Write(pieces) => self.transfer(Way::Write, pieces, sector).await,
            Op::Flush => self.request(&Ask::Flush).await,
            Op::Discard { sectors } => self.request(&Ask::Discard { sector, sectors }).await,
        }
    }

    async fn transfer(&self, way: Way, pieces: &[Piece], mut sector: u64) -> Result<(), Error> {
        for chunk in pieces.chunks(self.segments_max) {
            if chunk.len() <= SEGMENTS_MAX {
                let mut segments = heapless::Vec::<Segment, SEGMENTS_MAX>::new();
                self.segments(chunk, &mut segments);
                self.request(&Ask::Transfer { way, sector, segments: &segments }).await?;
            } else {
                self.indirect(way, chunk, sector).await?;
            }
            sector += sectors(chunk);
        }
        Ok(())
    }

    async fn indirect(&self, way: Way, pieces: &[Piece], sector: u64) -> Result<(), Error> {
        self.descriptor_credits.take(1).await;
        let (page, grant) = self.describe(pieces);
        let result = self.request(&Ask::Indirect { way, sector, count: pieces.len() as u16, pages: &[grant] }).await;
        self.put_descriptors(page);
        result
    }

    /// Writes the pieces' descriptors to a page, for which there is a credit: which one, and its grant.
    fn describe(&self, pieces: &[Piece]) -> (usize, u32) {
        let page = self.descriptors_free.borrow_mut().pop().expect("a credit is a page");
        let lent = &self.descriptors[page];
        let mut at = 0;
        for pieces in pieces.chunks(DESCRIBED) {
            let mut descriptors = [0; DESCRIBED * SEGMENT_BYTES];
            for (piece, bytes) in pieces.iter().zip(descriptors.chunks_exact_mut(SEGMENT_BYTES)) {
                encode_segments(&[self.segment(piece)], bytes);
            }
            let bytes = pieces.len() * SEGMENT_BYTES;
            lent.page().write(at, &descriptors[..bytes]);
            at += bytes;
        }
        (page, lent.grant().0)
    }

    fn put_descriptors(&self, page: usize) {
        self.descriptors_free.borrow_mut().push(page);
        self.descriptor_credits.put(1);
    }

    /// The pieces as segments; into a place, for they are many bytes to move.
    #[inline]
    fn segments(&self, pieces: &[Piece], into: &mut heapless::Vec<Segment, SEGMENTS_MAX>) {
        for piece in pieces {
            into.push(self.segment(piece)).expect("no more pieces than a slot has segments");
        }
    }

    #[inline]
    fn segment(&self, piece: &Piece) -> Segment {
        let grant = self.pool.grant(&piece.page).0;
        Segment::new(grant, piece.first, piece.first + piece.sectors - 1).expect("a piece lies in its page")
    }

    /// Puts one request into a slot, for which there is a credit, and on the ring; which slot.
    fn put(&self, ask: &Ask<'_>, waiter: Waiter) -> usize {
        let slot = self.free.borrow_mut().pop().expect("a credit is a slot");
        self.slots.borrow_mut()[slot] = Slot::Sent(ask.operation(), waiter);
        let mut entry = [0; REQUEST_BYTES];
        self.ring.borrow_mut().put(encode(slot as u64, self.handle, ask, &mut entry));
        self.unseen.raise();
        slot
    }

    /// Puts one request on the ring and waits for its answer.
    async fn request(&self, ask: &Ask<'_>) -> Result<(), Error> {
        self.credits.take(1).await;
        if self.state.get() != State::Open {
            self.credits.put(1);
            return Err(Error::Gone);
        }
        let slot = self.put(ask, Waiter::Future(None));
        let result = poll_fn(|cx| match &mut self.slots.borrow_mut()[slot] {
            Slot::Done(result) => Poll::Ready(*result),
            Slot::Sent(_, Waiter::Future(waker)) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Slot::Sent(_, Waiter::Begun(..)) | Slot::Free => unreachable!("a slot is freed by its request"),
        })
        .await;
        self.slots.borrow_mut()[slot] = Slot::Free;
        self.free(slot);
        result
    }
}
