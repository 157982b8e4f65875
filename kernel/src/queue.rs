//! One ring of one disk: requests in, answers out.
//!
//! A turn takes what the ring has, as far as there is room for it, lets every request in flight go a step, makes all
//! copies that these steps want by one hypercall, and answers: at most one notify. A request is taken only when there
//! is a slot for it and, by the ring's own count, a place for its answer; waiting is *not taking*.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;
use core::future::poll_fn;
use core::ops::Deref;
use core::task::{Context, Poll};

use protocol::blkif::{self, Body, Layout, REQUEST_BYTES, Rejected, Request};
use protocol::ring::{Back, Overrun, Shape};
use xen::domain::Domain;
use xen::event::Channel;
use xen::grant::Mapped;
use xen::limits::{REQUESTS_PER_TURN, REQUESTS_PER_VBD, SEGMENTS_INDIRECT};
use xen::look::Look;
use xen::port::{Access, DomId, Foreign, GrantRef, Port, Refused, Xen};
use xen::sync::{Bell, Signal, Slots};

use crate::request::{Answer, Desk};
use crate::stats::{RingStats, add};
use crate::straight::Flights;

/// Whose ring it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whose {
    /// The guest.
    pub guest: DomId,
    /// The disk's number there.
    pub device: u32,
    /// Which of the disk's rings.
    pub queue: u16,
    /// Whether a message connected it.
    pub by_message: bool,
    /// Of which life of its minor it is ([`Minor::life`](crate::minor::Minor::life)).
    pub life: u64,
}

/// How a queue is told to end, and how it tells that something is wrong.
pub struct Handle {
    /// Whose ring it is.
    pub whose: Whose,
    /// The ring's pages.
    pub pages: u32,
    /// What happened on it.
    pub stats: RingStats,
    stop: Cell<bool>,
    stopped: Signal,
    /// The ring and the port are let go of.
    pub(crate) let_go: Bell,
    pub(crate) ended: Bell,
    /// The ring makes no sense; raised once. The queue takes nothing more.
    pub broken: Signal,
}

impl Handle {
    /// For a ring of so many pages.
    pub fn new(whose: Whose, pages: u32) -> Rc<Self> {
        Rc::new(Handle {
            whose,
            pages,
            stats: RingStats::default(),
            stop: Cell::new(false),
            stopped: Signal::default(),
            let_go: Bell::default(),
            ended: Bell::default(),
            broken: Signal::default(),
        })
    }

    /// Lets go of the ring and the port at once and waits until no request is in flight any more.
    pub async fn end(&self) {
        self.stop();
        self.ended().await;
    }

    /// Waits until nothing is left of it.
    pub async fn ended(&self) {
        once(&self.ended).await
    }

    /// As [`end`](Handle::end), without waiting for the requests in flight.
    pub async fn let_go(&self) {
        self.stop();
        once(&self.let_go).await;
    }

    /// Whether it was told to end.
    pub fn is_stopping(&self) -> bool {
        self.stop.get()
    }

    /// Tells it to end, without waiting for that.
    pub fn stop(&self) {
        self.stop.set(true);
        self.stopped.raise();
    }

    /// Ready when it was told to end, once.
    pub(crate) fn poll_stopped(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.stopped.poll(cx)
    }

    /// The ring and the port are let go of.
    pub(crate) fn has_let_go(&self) {
        if self.let_go.rung() == 0 {
            self.let_go.ring();
        }
    }
}

impl Deref for Handle {
    type Target = Whose;

    fn deref(&self) -> &Whose {
        &self.whose
    }
}

/// Waits until it has rung, ever.
async fn once(bell: &Bell) {
    if bell.rung() == 0 {
        bell.listen().wait().await
    }
}

/// What a frontend says of a ring of its.
pub struct Offer {
    /// The grants of its pages, in order.
    pub grants: Vec<u32>,
    /// The port that it opened for us.
    pub port: u32,
    /// How requests are laid out.
    pub layout: Layout,
}

/// The guest's ring.
pub struct Ring<X: Xen> {
    /// Its pages.
    pub pages: u32,
    /// Its half that is ours.
    pub back: Back<Mapped<X>>,
    /// Its event channel.
    pub channel: Channel<X>,
    /// How requests are laid out.
    pub layout: Layout,
}

/// Why a ring could not be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRing {
    /// A page of it cannot be mapped.
    Map(Refused),
    /// Its index is more than a ring ahead from the start.
    Overrun,
    /// Its event channel cannot be bound.
    Bind(Refused),
}

impl fmt::Display for NoRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoRing::Map(refused) => write!(f, "ring-ref cannot be mapped: {refused:?}"),
            NoRing::Overrun => f.write_str("ring is overrun from the start"),
            NoRing::Bind(refused) => write!(f, "event-channel cannot be bound: {refused:?}"),
        }
    }
}

impl<X: Xen> Ring<X> {
    /// Maps the pages that a frontend granted for its ring, in order, and binds its port. A power of two of pages, as
    /// many as were offered at most.
    pub fn take(
        domain: &Rc<Domain<X>>,
        guest: DomId,
        grants: &[u32],
        port: u32,
        layout: Layout,
    ) -> Result<Self, NoRing> {
        let foreign = |grant: &u32| Foreign { domain: guest, grant: GrantRef(*grant), access: Access::ReadWrite };
        let pages: Vec<_> = grants.iter().map(foreign).collect();
        let memory = Mapped::new(domain, &pages).map_err(NoRing::Map)?;
        let shape = Shape::new(pages.len(), layout.entry_bytes());
        let back = Back::attach(memory, shape).map_err(|_| NoRing::Overrun)?;
        let channel = Channel::bind(domain, guest, Port(port)).map_err(NoRing::Bind)?;
        Ok(Ring { pages: pages.len() as u32, back, channel, layout })
    }
}

/// Segments that count as one request of a turn when they are copied: 8 KiB, so that a turn copies 512 KiB. Who comes
/// meanwhile waits for that, at most about as long as a small request takes by itself.
const SEGMENTS_PER_SHARE: usize = 2;

/// Takes off a turn what was copied meanwhile.
fn spend<X: Xen>(budget: &mut usize, desk: &Desk<X>) {
    *budget = budget.saturating_sub(desk.copied.take() / SEGMENTS_PER_SHARE);
}

/// Requests in flight: those that go straight, and those that are futures.
struct Flow<X: Xen, F: Future> {
    flights: Flights<X>,
    slots: Slots<F>,
    limit: usize,
}

impl<X: Xen, F: Future<Output = Answer>> Flow<X, F> {
    fn new() -> Self {
        Flow { flights: Flights::default(), slots: Slots::new(REQUESTS_PER_VBD), limit: REQUESTS_PER_VBD }
    }

    fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.flights.len() == 0
    }

    fn is_full(&self) -> bool {
        self.slots.len() + self.flights.len() >= self.limit
    }

    /// Lets every one that can go a step. True if any could.
    fn poll(
        &mut self,
        desk: &Desk<X>,
        cx: &mut Context<'_>,
        budget: &mut usize,
        mut answered: impl FnMut(Answer),
    ) -> bool {
        // Both are looked at: each must know whom to wake.
        let mut landed = false;
        while *budget > 0
            && let Some(answer) = self.flights.next(desk, cx)
        {
            landed = true;
            spend(budget, desk);
            answered(answer);
        }
        self.slots.poll(cx, answered) || landed
    }
}

/// A request that must be alone: WRITE_BARRIER.
enum Alone {
    No,
    /// Taken; waits for those before it. Nothing after it is taken.
    Waits(Request),
    Runs,
}

/// Serves a ring until told to end. The minor knows of it from now on; one task runs what is returned.
pub fn start<X: Xen>(
    domain: Rc<Domain<X>>,
    desk: Rc<Desk<X>>,
    ring: Ring<X>,
    handle: Rc<Handle>,
) -> impl Future<Output = ()> {
    desk.minor.rings.borrow_mut().push(handle.clone());
    run(domain, desk, ring, handle)
}

async fn run<X: Xen>(domain: Rc<Domain<X>>, desk: Rc<Desk<X>>, ring: Ring<X>, handle: Rc<Handle>) {
    let serve = |request| desk.clone().serve(request);
    let mut flow = Flow::new();
    let mut alone = Alone::No;
    let mut ring = Some(ring);
    let mut changed = desk.minor.changed.listen();
    let mut look = Look::default();
    poll_fn(|cx| {
        let mut budget = REQUESTS_PER_TURN;
        desk.clock.set(domain.xen.now());
        loop {
            if handle.stop.get() {
                // Unmapped and closed here and now: a dying guest waits for that, not for our store.
                ring = None;
                desk.let_go();
            }
            if ring.is_none() {
                handle.has_let_go();
            }
            // A held disk leaves new requests where they are.
            let held = desk.minor.is_held(handle.life, &mut changed, cx);
            let mut moved = flow.poll(&desk, cx, &mut budget, |answer| {
                if let Some(ring) = &mut ring {
                    put(ring, &answer, &handle);
                }
            });
            moved |= match ring {
                Some(_) => desk.batch.run(&domain),
                // The guest may have other uses for its pages by now, or be another guest.
                None => desk.batch.refuse(),
            };
            // A request that always has something to do must not keep the others waiting.
            budget = budget.saturating_sub(1);
            spend(&mut budget, &desk);
            if flow.is_empty() && !held {
                match core::mem::replace(&mut alone, Alone::No) {
                    Alone::Waits(request) if ring.is_some() => {
                        flow.slots.start(serve(request));
                        alone = Alone::Runs;
                        moved = true;
                    }
                    _ => {}
                }
            }
            // While memory is short a ring has one request at a time.
            let short = domain.memory.is_short();
            flow.limit = if short { 1 } else { REQUESTS_PER_VBD };
            let taken = match &mut ring {
                Some(ring) if !held => take(ring, &desk, &mut alone, &mut budget, &mut flow, serve),
                _ => Ok(false),
            };
            match taken {
                Ok(true) => {
                    look.found(desk.clock.get());
                    moved = true;
                }
                Ok(false) if moved => look.interrupted(),
                Ok(false) => {}
                Err(Overrun) => {
                    handle.broken.raise();
                    ring = None;
                    desk.let_go();
                }
            }
            if moved && budget > 0 {
                continue;
            }
            let Some(ring) = &mut ring else {
                if flow.is_empty() && handle.stop.get() {
                    return Poll::Ready(());
                }
                if handle.stopped.poll(cx).is_ready() {
                    continue;
                }
                if budget == 0 {
                    cx.waker().wake_by_ref();
                }
                return Poll::Pending;
            };
            if ring.back.publish() {
                add(&handle.stats.kicks_out, 1);
                ring.channel.notify();
            }
            if budget == 0 {
                // Others first, those too whose events came meanwhile.
                domain.look();
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let no_room = held || flow.is_full() || !matches!(alone, Alone::No);
            // While requests are in flight their ends are what comes next, and they wake us.
            if !no_room && flow.is_empty() && look.again(desk.clock.get()) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !idle(ring, no_room, &handle, cx) {
                return Poll::Pending;
            }
        }
    })
    .await;
    desk.minor.rings.borrow_mut().retain(|other| !Rc::ptr_eq(other, &handle));
    handle.ended.ring();
}

fn put<X: Xen>(ring: &mut Ring<X>, answer: &Answer, handle: &Handle) {
    add(&handle.stats.answers, 1);
    ring.back.put(&blkif::respond(answer.id, answer.operation, answer.status, ring.layout));
}

/// Takes requests as long as there are some, budget and room; true if any.
fn take<X: Xen, F: Future<Output = Answer>>(
    ring: &mut Ring<X>,
    desk: &Desk<X>,
    alone: &mut Alone,
    budget: &mut usize,
    flow: &mut Flow<X, F>,
    serve: impl Fn(Request) -> F,
) -> Result<bool, Overrun> {
    let (handle, stack) = (&*desk.ring, desk.minor.stack(desk.ring.life));
    let (mut any, mut entry) = (false, [0; REQUEST_BYTES]);
    while *budget > 0 && !flow.is_full() && matches!(alone, Alone::No) {
        if !ring.back.take(&mut entry[..ring.layout.entry_bytes()])? {
            break;
        }
        (any, *budget) = (true, *budget - 1);
        add(&handle.stats.requests, 1);
        // A request is many bytes: it stays where it was parsed, unless it is kept.
        match &blkif::parse(&entry, ring.layout, SEGMENTS_INDIRECT) {
            Ok(request) if matches!(request.body, Body::Barrier | Body::Transfer { barrier: true, .. }) => {
                *alone = Alone::Waits(request.clone());
            }
            Ok(request) => {
                let stack = stack.as_ref();
                if let Some(answer) = stack.and_then(|it| desk.at_once(it, request)) {
                    put(ring, &answer, handle);
                } else if !stack.is_some_and(|it| desk.depart(it, request, &mut flow.flights)) {
                    flow.slots.start(serve(request.clone()));
                }
                spend(budget, desk);
            }
            Err(rejected) => {
                add(&handle.stats.rejected, 1);
                add(&desk.minor.stats.rejected, 1);
                log::debug!("domain {}: a request is refused: {:?}", desk.guest.0, rejected.why);
                let Rejected { id, operation, status, .. } = *rejected;
                put(ring, &Answer { id, operation, status }, handle);
            }
        }
    }
    Ok(any)
}

/// Whether there is something to do after all, asked last before sleeping. The event is asked for only when there is
/// room for what it would announce; otherwise the end of a request wakes us.
fn idle<X: Xen>(ring: &mut Ring<X>, no_room: bool, handle: &Handle, cx: &mut Context<'_>) -> bool {
    let more = match no_room {
        true => false,
        // An overrun shows again at the next take.
        false => ring.back.rearm().unwrap_or(true),
    };
    let event = ring.channel.poll(cx).is_ready();
    add(&handle.stats.kicks_in, event.into());
    let stopped = handle.stopped.poll(cx).is_ready();
    more || event || stopped
}
