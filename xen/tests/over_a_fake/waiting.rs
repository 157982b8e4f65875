//! Signals, bells, credits and slots.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use xen::sync::{Bell, Credits, Signal, Slots};

use crate::executor::Count;
use crate::fake::poll;

fn counted() -> (Arc<Count>, Waker) {
    let count = Arc::new(Count::default());
    (count.clone(), Waker::from(count))
}

#[test]
fn a_signal_is_seen_once_and_its_last_waker_is_woken() {
    let signal = Signal::default();
    let ((old, first), (new, last)) = (counted(), counted());
    assert!(!signal.is_raised() && signal.poll(&mut Context::from_waker(&first)).is_pending());
    assert!(signal.poll(&mut Context::from_waker(&last)).is_pending());
    signal.raise();
    signal.raise();
    assert_eq!((old.get(), new.get(), signal.is_raised()), (0, 1, true));
    assert!(poll(pin!(signal.wait())).is_ready() && !signal.is_raised());
    assert!(poll(pin!(signal.wait())).is_pending());
    signal.raise();
    signal.lower();
    assert!(poll(pin!(signal.wait())).is_pending());
}

#[test]
fn a_bell_is_heard_by_all_who_listen_once_a_ring() {
    let bell = Bell::default();
    let ((one, first), (two, second)) = (counted(), counted());
    let (mut mine, mut theirs) = (bell.listen(), bell.listen());
    assert!(mine.poll(&mut Context::from_waker(&first)).is_pending());
    assert!(mine.poll(&mut Context::from_waker(&first)).is_pending());
    assert!(theirs.poll(&mut Context::from_waker(&second)).is_pending());
    bell.ring();
    assert_eq!((one.get(), two.get(), bell.rung()), (1, 1, 1), "asked twice, woken once");
    bell.ring();
    assert_eq!((one.get(), two.get()), (1, 1), "nobody waited");
    let mut cx = Context::from_waker(Waker::noop());
    assert!(mine.poll(&mut cx).is_ready() && mine.poll(&mut cx).is_pending());
    assert!(theirs.poll(&mut cx).is_ready());
    // Who begins to listen now has not missed anything.
    assert!(bell.listen().poll(&mut cx).is_pending());
}

#[test]
fn who_listens_no_more_leaves_nothing_at_the_bell() {
    let bell = Bell::default();
    let (told, waker) = counted();
    let mut stays = bell.listen();
    assert!(stays.poll(&mut Context::from_waker(&waker)).is_pending());
    for _ in 0..100 {
        let mut goes = bell.listen();
        assert!(goes.poll(&mut Context::from_waker(&waker)).is_pending());
        assert!(poll(pin!(bell.listen().wait())).is_pending());
    }
    assert_eq!(bell.waiting(), 1);
    bell.ring();
    assert_eq!((told.get(), bell.waiting()), (1, 0), "one of a task's two went, the other is still told");
}

#[test]
fn credits_wake_the_first_when_it_can_go_and_then_the_next() {
    let credits = Credits::new(1);
    let ((one, first), (two, second)) = (counted(), counted());
    let (mut many, mut few) = (Box::pin(credits.take(3)), Box::pin(credits.take(1)));
    assert!(many.as_mut().poll(&mut Context::from_waker(&first)).is_pending());
    assert!(few.as_mut().poll(&mut Context::from_waker(&second)).is_pending());
    credits.put(1);
    assert_eq!((one.get(), two.get()), (0, 0), "two of three");
    credits.put(2);
    assert_eq!((one.get(), two.get(), credits.free()), (1, 0, 4));
    assert!(poll(many.as_mut()).is_ready());
    assert_eq!((two.get(), credits.free()), (1, 1), "the first wakes the next as it goes");
    assert!(poll(few.as_mut()).is_ready());
    assert_eq!(credits.free(), 0);
    // Nothing can be had without waiting while somebody waits, and a zero goes like any number.
    let mut waits = Box::pin(credits.take(2));
    let mut none = Box::pin(credits.take(0));
    assert!(poll(waits.as_mut()).is_pending());
    assert!(none.as_mut().poll(&mut Context::from_waker(&second)).is_pending());
    drop(waits);
    assert_eq!(two.get(), 2, "who gives up wakes the next");
    assert!(poll(none.as_mut()).is_ready());
}

/// A future in a slot: its waker, and how often it was polled; it ends with `i` when `end` is set.
struct Probe {
    end: Cell<bool>,
    polls: Cell<u32>,
    waker: Cell<Option<Waker>>,
}

fn probe(i: usize) -> (Rc<Probe>, impl Future<Output = usize>) {
    let probe = Rc::new(Probe { end: Cell::new(false), polls: Cell::new(0), waker: Cell::new(None) });
    let inside = probe.clone();
    let future = poll_fn(move |cx| {
        inside.polls.set(inside.polls.get() + 1);
        inside.waker.set(Some(cx.waker().clone()));
        if inside.end.get() { Poll::Ready(i) } else { Poll::Pending }
    });
    (probe, future)
}

#[test]
fn a_slot_wakes_its_task_and_is_polled_alone() {
    let mut slots = Slots::new(130);
    let probes: Vec<_> = (0..130)
        .map(|i| {
            let (probe, future) = probe(i);
            slots.start(future);
            probe
        })
        .collect();
    assert!(slots.is_full() && slots.len() == 130);
    let ((old, first), (new, last)) = (counted(), counted());
    let mut ended = Vec::new();
    assert!(slots.poll(&mut Context::from_waker(&first), |i| ended.push(i)));
    assert!(!slots.poll(&mut Context::from_waker(&last), |i| ended.push(i)), "none was woken");
    for i in [0, 63, 64, 129] {
        let waker = probes[i].waker.take().unwrap();
        waker.wake_by_ref();
        waker.wake();
    }
    assert_eq!((old.get(), new.get()), (0, 8), "the task that polled last is woken");
    probes[64].end.set(true);
    assert!(slots.poll(&mut Context::from_waker(&last), |i| ended.push(i)));
    let polled: Vec<_> = (0..130).filter(|i| probes[*i].polls.get() == 2).collect();
    assert_eq!((polled.as_slice(), ended.as_slice(), slots.len()), (&[0, 63, 64, 129][..], &[64][..], 129));
    // The place is used again, and polled without being woken.
    let (again, future) = probe(200);
    again.end.set(true);
    slots.start(future);
    assert!(slots.is_full());
    assert!(slots.poll(&mut Context::from_waker(&last), |i| ended.push(i)));
    assert_eq!((ended.as_slice(), again.polls.get()), (&[64, 200][..], 1));
    // A late wake of who was there before is nobody's.
    probes[64].waker.take().unwrap().wake();
    assert!(!slots.poll(&mut Context::from_waker(&last), |i| ended.push(i)));
}

#[test]
#[should_panic]
fn no_more_in_flight_than_the_limit() {
    let mut slots = Slots::new(1);
    slots.start(std::future::pending::<()>());
    assert!(slots.is_full() && !slots.is_empty());
    slots.start(std::future::pending());
}
