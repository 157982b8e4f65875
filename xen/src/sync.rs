//! Waiting for one another on one vCPU: a signal, counted credits, a queue of in-flight slots, ends told by number.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use crate::atomic::{AtomicU64, Mutex, Ordering};

/// A flag that one task waits for. Raised twice before it is looked at, it is seen once.
#[derive(Default)]
pub struct Signal {
    raised: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Signal {
    /// Raises the flag and wakes who waits.
    pub fn raise(&self) {
        // Who saw it down waits; while it is up nobody does.
        if !self.raised.replace(true)
            && let Some(waker) = self.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }

    /// Takes the flag down without having waited for it.
    pub fn lower(&self) {
        self.raised.set(false);
    }

    /// Whether it is up.
    pub fn is_raised(&self) -> bool {
        self.raised.get()
    }

    /// Ready, and the flag down again, when it was raised.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.raised.replace(false) {
            return Poll::Ready(());
        }
        remember(&self.waker, cx);
        Poll::Pending
    }

    /// Waits until the flag is up, and takes it down.
    pub async fn wait(&self) {
        poll_fn(|cx| self.poll(cx)).await
    }
}

/// A bell that many tasks listen to.
#[derive(Default)]
pub struct Bell(Rc<Rope>);

#[derive(Default)]
struct Rope {
    rung: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, Waker>>,
    serial: Cell<u64>,
}

impl Bell {
    /// Wakes everyone who listens.
    pub fn ring(&self) {
        self.0.rung.set(self.0.rung.get() + 1);
        self.0.waiting.take().into_values().for_each(Waker::wake);
    }

    /// Hears every ring from now on.
    pub fn listen(&self) -> Listener {
        Listener { rope: self.0.clone(), heard: self.rung(), key: None, waits: None }
    }

    /// How often it rang.
    pub fn rung(&self) -> u64 {
        self.0.rung.get()
    }

    /// How many wait for it.
    pub fn waiting(&self) -> usize {
        self.0.waiting.borrow().len()
    }
}

/// One who listens to a [`Bell`]. It leaves nothing there when it is dropped: some bells never ring, and tasks that come
/// and go as a guest wants would pile up at them.
pub struct Listener {
    rope: Rc<Rope>,
    heard: u64,
    key: Option<u64>,
    /// Who is at the bell for it.
    waits: Option<Waker>,
}

impl Listener {
    /// Ready when it rang since this was last ready.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let rope = &self.rope;
        if core::mem::replace(&mut self.heard, rope.rung.get()) != rope.rung.get() {
            self.waits = None;
            return Poll::Ready(());
        }
        if self.waits.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        self.waits = Some(cx.waker().clone());
        let key = *self.key.get_or_insert_with(|| rope.serial.replace(rope.serial.get() + 1));
        let mut waiting = rope.waiting.borrow_mut();
        match waiting.get_mut(&key) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => drop(waiting.insert(key, cx.waker().clone())),
        }
        Poll::Pending
    }

    /// Waits until it rang since this was last ready.
    pub async fn wait(&mut self) {
        poll_fn(|cx| self.poll(cx)).await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.rope.waiting.borrow_mut().remove(&key);
        }
    }
}

fn remember(slot: &RefCell<Option<Waker>>, cx: &mut Context<'_>) {
    let mut slot = slot.borrow_mut();
    match slot.as_mut() {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

/// A number of equal things (pages, ring slots) that many tasks take some of. First come, first served: whoever wants
/// many is not starved by those who want few.
pub struct Credits {
    free: Cell<usize>,
    /// Whether anybody is in the queue.
    awaited: Cell<bool>,
    queue: RefCell<VecDeque<(u64, usize, Waker)>>,
    serial: Cell<u64>,
}

impl Credits {
    /// That many to begin with.
    pub fn new(free: usize) -> Self {
        Credits { free: Cell::new(free), awaited: Cell::new(false), queue: RefCell::default(), serial: Cell::new(0) }
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        self.free.get()
    }

    /// Takes `n` here and now; false, and nothing is taken, if there are fewer or somebody waits already.
    pub fn take_now(&self, n: usize) -> bool {
        let there = self.has(n);
        if there {
            self.free.set(self.free.get() - n);
        }
        there
    }

    /// Whether [`take_now`](Credits::take_now) would take `n`.
    pub fn has(&self, n: usize) -> bool {
        self.free.get() >= n && !self.awaited.get()
    }

    /// Takes `n` at once, waiting for its turn. `n` must not be more than there ever are, or it waits for ever.
    pub async fn take(&self, n: usize) {
        if self.take_now(n) {
            return;
        }
        let mut ticket = Ticket { credits: self, serial: None };
        poll_fn(|cx| ticket.poll(n, cx)).await
    }

    /// Puts `n` back, or adds them.
    pub fn put(&self, n: usize) {
        self.free.set(self.free.get() + n);
        if self.awaited.get() {
            self.wake_first();
        }
    }

    fn wake_first(&self) {
        if let Some((_, n, waker)) = self.queue.borrow().front()
            && *n <= self.free.get()
        {
            waker.wake_by_ref();
        }
    }
}

struct Ticket<'a> {
    credits: &'a Credits,
    serial: Option<u64>,
}

impl Ticket<'_> {
    fn poll(&mut self, n: usize, cx: &mut Context<'_>) -> Poll<()> {
        let credits = self.credits;
        let mut queue = credits.queue.borrow_mut();
        let mine = self.serial.and_then(|serial| queue.iter().position(|entry| entry.0 == serial));
        let first = match mine {
            Some(place) => place == 0,
            None => queue.is_empty(),
        };
        if first && credits.free.get() >= n {
            if mine.is_some() {
                queue.pop_front();
                credits.awaited.set(!queue.is_empty());
            }
            drop(queue);
            self.serial = None;
            credits.free.set(credits.free.get() - n);
            credits.wake_first();
            return Poll::Ready(());
        }
        match mine {
            Some(place) => queue[place].2.clone_from(cx.waker()),
            None => {
                let serial = credits.serial.replace(credits.serial.get() + 1);
                queue.push_back((serial, n, cx.waker().clone()));
                credits.awaited.set(true);
                self.serial = Some(serial);
            }
        }
        Poll::Pending
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(serial) = self.serial {
            let mut queue = self.credits.queue.borrow_mut();
            queue.retain(|entry| entry.0 != serial);
            self.credits.awaited.set(!queue.is_empty());
            drop(queue);
            self.credits.wake_first();
        }
    }
}

/// Ends of what one task began without a future for each: it is told by number.
pub struct Completions<T> {
    ended: RefCell<Vec<(usize, T)>>,
    posted: Signal,
}

impl<T> Default for Completions<T> {
    fn default() -> Self {
        Completions { ended: RefCell::default(), posted: Signal::default() }
    }
}

impl<T> Completions<T> {
    /// Tells that what was begun under this number has ended, and wakes the task.
    pub fn post(&self, number: usize, end: T) {
        self.ended.borrow_mut().push((number, end));
        self.posted.raise();
    }

    /// Exchanges `told`, which has been seen to, for the ends that were not told yet, in order. The next one wakes the task.
    pub fn tell(&self, told: &mut Vec<(usize, T)>, cx: &mut Context<'_>) {
        told.clear();
        while self.posted.poll(cx).is_ready() {}
        core::mem::swap(&mut *self.ended.borrow_mut(), told);
    }
}

/// Futures of one kind in flight inside one task. A slot is allocated when first needed and used again ever after, so
/// a disk under load allocates nothing.
pub struct Slots<F: Future> {
    slots: Vec<(Pin<Box<Option<F>>>, Waker)>,
    free: Vec<usize>,
    limit: usize,
    woken: Arc<Woken>,
}

struct Woken {
    bits: Box<[AtomicU64]>,
    parent: Mutex<Option<Waker>>,
}

struct SlotWake {
    slot: usize,
    woken: Arc<Woken>,
}

impl Wake for SlotWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.bits[self.slot / 64].fetch_or(1 << (self.slot % 64), Ordering::AcqRel);
        if let Some(parent) = self.woken.parent.lock().as_ref() {
            parent.wake_by_ref();
        }
    }
}

impl<F: Future> Slots<F> {
    /// At most `limit` at once.
    pub fn new(limit: usize) -> Self {
        let bits = (0..limit.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let woken = Arc::new(Woken { bits, parent: Mutex::new(None) });
        Slots { slots: Vec::new(), free: Vec::new(), limit, woken }
    }

    /// How many are in flight.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether [`start`](Slots::start) must wait.
    pub fn is_full(&self) -> bool {
        self.len() == self.limit
    }

    /// Puts a future in flight; it is polled at the next [`poll`](Slots::poll). There must be room.
    pub fn start(&mut self, future: F) {
        assert!(!self.is_full());
        let slot = self.free.pop().unwrap_or_else(|| {
            let slot = self.slots.len();
            let wake = Waker::from(Arc::new(SlotWake { slot, woken: self.woken.clone() }));
            self.slots.push((Box::pin(None), wake));
            slot
        });
        self.slots[slot].0.as_mut().set(Some(future));
        self.woken.bits[slot / 64].fetch_or(1 << (slot % 64), Ordering::AcqRel);
    }

    /// Polls those that were woken, each once, and hands out what ended. True if any was polled.
    pub fn poll(&mut self, cx: &mut Context<'_>, mut ended: impl FnMut(F::Output)) -> bool {
        {
            let mut parent = self.woken.parent.lock();
            if !parent.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *parent = Some(cx.waker().clone());
            }
        }
        let mut any = false;
        for (i, word) in self.woken.bits.iter().enumerate() {
            let mut bits = word.swap(0, Ordering::AcqRel);
            while bits != 0 {
                let slot = i * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let (future, waker) = &mut self.slots[slot];
                let Some(running) = future.as_mut().as_pin_mut() else { continue };
                any = true;
                if let Poll::Ready(output) = running.poll(&mut Context::from_waker(waker)) {
                    future.as_mut().set(None);
                    self.free.push(slot);
                    ended(output);
                }
            }
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn credits_are_given_in_order_of_asking() {
        let credits = Credits::new(3);
        let mut many = Box::pin(credits.take(4));
        let mut few = Box::pin(credits.take(1));
        assert!(poll_once(many.as_mut()).is_pending());
        assert!(poll_once(few.as_mut()).is_pending(), "few must not pass many");
        credits.put(1);
        assert!(poll_once(many.as_mut()).is_ready());
        assert!(poll_once(few.as_mut()).is_pending());
        credits.put(4);
        assert!(poll_once(few.as_mut()).is_ready());
        assert_eq!(credits.free(), 3);
    }

    #[test]
    fn who_gives_up_waiting_lets_the_next_one_go() {
        let credits = Credits::new(1);
        let mut many = Box::pin(credits.take(2));
        let mut few = Box::pin(credits.take(1));
        assert!(poll_once(many.as_mut()).is_pending() && poll_once(few.as_mut()).is_pending());
        drop(many);
        assert!(poll_once(few.as_mut()).is_ready());
    }

    #[test]
    fn who_does_not_wait_passes_nobody_who_does() {
        let credits = Credits::new(3);
        assert!(credits.take_now(1) && !credits.take_now(3) && credits.free() == 2);
        let mut many = Box::pin(credits.take(3));
        assert!(poll_once(many.as_mut()).is_pending());
        assert!(!credits.take_now(1), "there are two, but somebody waits for three");
        credits.put(1);
        assert!(poll_once(many.as_mut()).is_ready());
        credits.put(1);
        assert!(credits.take_now(1));
    }

    #[test]
    fn ends_are_told_once_in_order_and_wake_who_waits() {
        struct Count(AtomicU64);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::AcqRel);
            }
        }
        let woken = Arc::new(Count(AtomicU64::new(0)));
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let ends = Completions::default();
        let mut told = || {
            let mut told = Vec::from([(9, 'x')]);
            ends.tell(&mut told, &mut cx);
            told
        };
        ends.post(3, 'a');
        assert_eq!((told(), told()), (Vec::from([(3, 'a')]), Vec::new()));
        ends.post(5, 'b');
        ends.post(3, 'c');
        assert_eq!(woken.0.load(Ordering::Acquire), 1);
        assert_eq!((told(), told()), (Vec::from([(5, 'b'), (3, 'c')]), Vec::new()));
        ends.post(0, 'd');
        assert_eq!(woken.0.load(Ordering::Acquire), 2);
    }

    #[test]
    fn slots_poll_only_the_woken_and_are_used_again() {
        let signals: Vec<Rc<Signal>> = (0..70).map(|_| Rc::default()).collect();
        let polls = Rc::new(Cell::new(0));
        let mut slots = Slots::new(70);
        for (i, signal) in signals.iter().enumerate() {
            let (signal, polls) = (signal.clone(), polls.clone());
            slots.start(async move {
                poll_fn(|cx| {
                    polls.set(polls.get() + 1);
                    signal.poll(cx)
                })
                .await;
                i
            });
        }
        assert!(slots.is_full());
        let mut cx = Context::from_waker(Waker::noop());
        let mut ended = Vec::new();
        assert!(slots.poll(&mut cx, |i| ended.push(i)));
        assert_eq!((ended.len(), polls.get()), (0, 70));
        assert!(!slots.poll(&mut cx, |i| ended.push(i)));
        signals[69].raise();
        signals[3].raise();
        slots.poll(&mut cx, |i| ended.push(i));
        assert_eq!((ended.as_slice(), polls.get(), slots.len()), (&[3, 69][..], 72, 68));
    }
}
