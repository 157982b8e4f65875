//! Tasks and timers.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use xen::exec::{Executor, Timers, yield_now};
use xen::grant::Lent;
use xen::page::PageRef;
use xen::port::{Access, DomId, Instant};

use crate::fake::{domain, run};

/// Counts how often it was woken.
#[derive(Default)]
pub struct Count(AtomicU32);

impl Count {
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A task that waits for ever, its waker, and how often it was polled.
fn idle(exec: &Executor) -> (Rc<RefCell<Option<Waker>>>, Rc<Cell<u32>>) {
    let (waker, polls) = (Rc::new(RefCell::new(None)), Rc::new(Cell::new(0)));
    let (handed, counted) = (waker.clone(), polls.clone());
    exec.spawn(poll_fn(move |cx| {
        counted.set(counted.get() + 1);
        *handed.borrow_mut() = Some(cx.waker().clone());
        Poll::<()>::Pending
    }));
    (waker, polls)
}

#[test]
fn woken_often_is_polled_once() {
    let exec = Executor::default();
    let (waker, polls) = idle(&exec);
    assert!(exec.turn(&mut |_| 0));
    assert!(!exec.turn(&mut |_| 0), "nobody woke it");
    let waker = waker.borrow().clone().unwrap();
    (0..5).for_each(|_| waker.wake_by_ref());
    assert!(exec.turn(&mut |_| 0) && !exec.turn(&mut |_| 0));
    assert_eq!(polls.get(), 2);
    waker.wake();
    assert!(exec.turn(&mut |_| 0) && !exec.turn(&mut |_| 0));
    assert_eq!((polls.get(), exec.tasks()), (3, 1));
}

#[test]
fn the_waker_of_a_task_that_ended_harms_nobody() {
    let exec = Executor::default();
    let waker = Rc::new(RefCell::new(None));
    let handed = waker.clone();
    exec.spawn(poll_fn(move |cx| {
        *handed.borrow_mut() = Some(cx.waker().clone());
        Poll::Ready(())
    }));
    assert!(exec.turn(&mut |_| 0));
    assert_eq!(exec.tasks(), 0);
    let waker = waker.take().unwrap();
    waker.wake_by_ref();
    assert!(exec.turn(&mut |_| 0), "an empty place was ready");
    assert!(!exec.turn(&mut |_| 0));
    // Its place is another's now, which may be polled for nothing and is not ended by it.
    let (_, polls) = idle(&exec);
    waker.wake();
    while exec.turn(&mut |_| 0) {}
    assert!((1..=2).contains(&polls.get()) && exec.tasks() == 1);
}

#[test]
fn a_choice_beyond_the_last_is_the_last_and_one_is_no_choice() {
    let exec = Executor::default();
    let order = Rc::new(RefCell::new(Vec::new()));
    for i in 0..3 {
        let order = order.clone();
        exec.spawn(async move { order.borrow_mut().push(i) });
    }
    let asked = RefCell::new(Vec::new());
    while exec.turn(&mut |ready| {
        asked.borrow_mut().push(ready);
        99
    }) {}
    assert_eq!((order.borrow().as_slice(), asked.borrow().as_slice()), (&[2, 1, 0][..], &[3, 2][..]));
}

#[test]
fn who_yields_lets_the_others_go_first() {
    let exec = Executor::default();
    let order = Rc::new(RefCell::new(Vec::new()));
    for i in 0..2 {
        let order = order.clone();
        exec.spawn(async move {
            for round in 0..2 {
                order.borrow_mut().push((round, i));
                yield_now().await;
            }
        });
    }
    while exec.turn(&mut |_| 0) {}
    assert_eq!(*order.borrow(), [(0, 0), (0, 1), (1, 0), (1, 1)]);
}

#[test]
fn sleepers_are_woken_when_due_in_order_and_by_their_last_waker() {
    let timers = Timers::default();
    let (first, last) = (Arc::new(Count::default()), Arc::new(Count::default()));
    let wakers = [Waker::from(first.clone()), Waker::from(last.clone())];
    let mut late = pin!(timers.sleep(Instant(9)));
    let mut soon = pin!(timers.sleep(Instant(3)));
    let mut twin = pin!(timers.sleep(Instant(3)));
    for sleep in [&mut late, &mut soon, &mut twin] {
        assert!(sleep.as_mut().poll(&mut Context::from_waker(&wakers[0])).is_pending());
    }
    assert!(soon.as_mut().poll(&mut Context::from_waker(&wakers[1])).is_pending());
    assert_eq!(timers.next(), Some(Instant(3)));
    timers.fire(Instant(2));
    assert_eq!((first.get(), last.get()), (0, 0));
    timers.fire(Instant(3));
    assert_eq!((first.get(), last.get(), timers.next()), (1, 1, Some(Instant(9))));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(soon.as_mut().poll(&mut cx).is_ready() && twin.as_mut().poll(&mut cx).is_ready());
    assert!(late.as_mut().poll(&mut cx).is_pending());
    timers.fire(Instant(100));
    assert!(late.as_mut().poll(&mut cx).is_ready());
}

#[test]
fn a_domain_sleeps_by_its_own_clock() {
    let (domain, fake) = domain();
    fake.now.set(1000);
    let woken = Rc::new(Cell::new(false));
    let (sleeper, told) = (domain.clone(), woken.clone());
    domain.exec.spawn(async move {
        sleeper.sleep(Duration::from_nanos(50)).await;
        told.set(true);
    });
    run(&domain);
    for (now, expected) in [(1049, false), (1050, true)] {
        fake.now.set(now);
        run(&domain);
        assert_eq!(woken.get(), expected, "at {now}");
    }
}

#[test]
fn a_domain_that_was_ended_from_outside_is_gone() {
    let (domain, fake) = domain();
    let lent = Lent::new(&domain, PageRef::alone().unwrap(), DomId(7), Access::ReadWrite).ok().unwrap();
    fake.used.borrow_mut().insert(lent.grant().0);
    // A page that could not be taken back holds the domain, and so does a task.
    drop(lent);
    fake.used.borrow_mut().clear();
    let sleeper = domain.clone();
    domain.exec.spawn(async move { sleeper.sleep(Duration::MAX).await });
    run(&domain);
    let left = Rc::downgrade(&domain);
    domain.end();
    drop(domain);
    assert!(left.upgrade().is_none() && fake.granted.borrow().is_empty());
}
