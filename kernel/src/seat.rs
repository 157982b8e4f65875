//! A ring that another vCPU serves. There it has all that a ring has, a minor of its own included, which follows the one
//! that everybody knows: what holds, closes and exchanges an image is told to it, and it tells when nothing is in flight.
//!
//! On the first vCPU a [`Handle`] stands for it, so that whoever ends, counts or lists rings need not know where they
//! are served.

use alloc::rc::Rc;
use alloc::sync::Arc;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::task::Poll;

use drivers::device::ram::Ram;
use protocol::session::State;
use xen::across::Word;
use xen::domain::Domain;
use xen::kept::Kept;
use xen::memory::Promise;
use xen::port::Xen;

use crate::minor::Minor;
use crate::queue::{self, Handle, NoRing, Offer, Ring, Whose};
use crate::request::Desk;
use crate::stats::{RingStats, Stats};

/// What another vCPU needs to serve a ring.
pub(crate) struct Order {
    whose: Whose,
    offer: Offer,
    terms: Terms,
    /// What the ring may count on.
    memory: Promise,
    line: Arc<Line>,
    follows: Follows,
}

/// How its requests are served.
#[derive(Clone, Copy)]
pub(crate) struct Terms {
    pub read_only: bool,
    pub discard: bool,
    /// The guest keeps its pages granted.
    pub persistent: bool,
}

/// How a minor stands, for those of other vCPUs that follow it.
#[derive(Clone)]
pub(crate) struct Follows {
    /// Counts what was told.
    pub word: u64,
    pub number: u16,
    pub state: State,
    pub life: u64,
    pub disk: Option<Ram>,
}

/// What the two sides tell each other.
#[derive(Default)]
struct Line {
    /// To the ring: it is to end.
    stop: Word<()>,
    /// To the ring: how the minor stands now.
    follow: Word<Follows>,
    /// To the ring: how much was done so far?
    count: Word<()>,
    taken: Word<Result<(), NoRing>>,
    broken: Word<()>,
    let_go: Word<()>,
    /// Since this word nothing was in flight that the minor had to wait for.
    drained: Word<u64>,
    counted: Word<(Stats, RingStats)>,
    ended: Word<(Stats, RingStats)>,
}

/// The first vCPU's side of it.
pub(crate) struct Seat {
    line: Arc<Line>,
    handle: Rc<Handle>,
    drained: Cell<u64>,
    /// What it had done when it told so last.
    pub stats: RefCell<Stats>,
    /// How often it told so.
    counts: Cell<u64>,
}

impl Seat {
    /// Tells how the minor stands.
    pub fn follow(&self, follows: Follows) {
        self.line.follow.say(follows);
    }

    /// Whether it has nothing in flight since this word.
    pub fn is_drained(&self, word: u64) -> bool {
        self.drained.get() >= word
    }

    /// Asks what was done so far, and tells how to know that the answer has come.
    pub fn ask(&self) -> u64 {
        self.line.count.say(());
        self.counts.get()
    }

    /// Whether it has told since [`ask`](Seat::ask) said this.
    pub fn has_told(&self, asked: u64) -> bool {
        self.counts.get() != asked
    }

    fn note(&self, (stats, ring): (Stats, RingStats)) {
        self.stats.replace(stats);
        self.handle.stats.set(&ring);
        self.counts.set(self.counts.get() + 1);
    }
}

/// Has vCPU `vcpu` serve a ring of this minor. The handle is the minor's from now on.
pub(crate) async fn begin<X: Xen>(
    shared: &crate::Shared<X>,
    vcpu: usize,
    minor: &Rc<Minor<X>>,
    handle: &Rc<Handle>,
    offer: Offer,
    (terms, memory): (Terms, Promise),
) -> Result<(), NoRing> {
    let line = Arc::new(Line::default());
    let seat = Rc::new(Seat {
        line: line.clone(),
        handle: handle.clone(),
        drained: Cell::new(0),
        stats: RefCell::default(),
        counts: Cell::new(0),
    });
    let order = Order { whose: handle.whose, offer, terms, memory, line, follows: minor.follows() };
    minor.seats.borrow_mut().push(seat.clone());
    shared.crew.send(vcpu, order);
    let taken = seat.line.taken.hear().await;
    if taken.is_err() {
        minor.stand_up(&seat);
        return taken;
    }
    minor.rings.borrow_mut().push(handle.clone());
    shared.domain.exec.spawn(attend(minor.clone(), seat));
    taken
}

/// Passes on what the one side tells the other, until the ring has ended.
async fn attend<X: Xen>(minor: Rc<Minor<X>>, seat: Rc<Seat>) {
    let (line, handle) = (&*seat.line, &*seat.handle);
    let last = poll_fn(|cx| {
        // Each is asked until it has nothing more to say: only then does it know whom to wake.
        while handle.poll_stopped(cx).is_ready() {
            line.stop.say(());
        }
        while line.broken.poll(cx).is_ready() {
            handle.broken.raise();
        }
        while line.let_go.poll(cx).is_ready() {
            handle.has_let_go();
        }
        while let Poll::Ready(word) = line.drained.poll(cx) {
            seat.drained.set(word);
            minor.changed.ring();
        }
        while let Poll::Ready(counted) = line.counted.poll(cx) {
            seat.note(counted);
            minor.counted.ring();
        }
        line.ended.poll(cx)
    })
    .await;
    seat.note(last);
    minor.stats.add(&seat.stats.take());
    minor.stand_up(&seat);
    minor.rings.borrow_mut().retain(|other| !core::ptr::eq(&**other, handle));
    handle.has_let_go();
    handle.ended.ring();
}

/// The other vCPU's side: serves the ring until it is told to end.
pub(crate) async fn serve<X: Xen>(domain: Rc<Domain<X>>, order: Order) {
    let Order { whose, offer: Offer { grants, port, layout }, terms, memory, line, follows } = order;
    let ring = match Ring::take(&domain, whose.guest, &grants, port, layout) {
        Ok(ring) => ring,
        Err(no) => return line.taken.say(Err(no)),
    };
    let minor = Minor::<X>::mirror(&follows);
    let handle = Handle::new(whose, ring.pages);
    let Terms { read_only, discard, persistent } = terms;
    let kept = persistent.then(|| Kept::new(&domain, whose.guest));
    let desk = Desk::new(minor.clone(), handle.clone(), memory, read_only, discard, kept);
    domain.exec.spawn(queue::start(domain.clone(), Rc::new(desk), ring, handle.clone()));
    line.taken.say(Ok(()));
    let (mut moved, mut owed, mut has_let_go) = (minor.changed.listen(), Some(follows.word), false);
    let (mut letting_go, mut ending) = (handle.let_go.listen(), handle.ended.listen());
    poll_fn(|cx| {
        while line.stop.poll(cx).is_ready() {
            handle.stop();
        }
        while let Poll::Ready(follows) = line.follow.poll(cx) {
            minor.follow(&follows);
            owed = Some(follows.word);
        }
        while moved.poll(cx).is_ready() {}
        if minor.in_flight() == 0
            && let Some(word) = owed.take()
        {
            minor.let_disk_go();
            line.drained.say(word);
        }
        while line.count.poll(cx).is_ready() {
            line.counted.say((minor.stats.copy(), handle.stats.copy()));
        }
        while handle.broken.poll(cx).is_ready() {
            line.broken.say(());
        }
        while letting_go.poll(cx).is_ready() | ending.poll(cx).is_ready() {}
        if handle.let_go.rung() > 0 && !core::mem::replace(&mut has_let_go, true) {
            line.let_go.say(());
        }
        if handle.ended.rung() > 0 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    let last = (minor.stats.copy(), handle.stats.copy());
    // Who hears of the end may want the memory of the disk.
    drop(minor);
    line.ended.say(last);
}
