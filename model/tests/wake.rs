//! Wakers used from another thread, as from an interrupt or another vCPU: who was woken is polled, and sees why.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use model::across::Word;
use model::exec::Executor;
use model::sync::Slots;

/// Runs tasks until none is ready.
fn run(exec: &Executor) {
    while exec.turn(&mut |_| 0) {}
}

/// A task that waits until the news is this, polled once: the news, and who wakes it.
fn waits_for(exec: &Executor, last: u32) -> (Arc<AtomicU32>, Waker) {
    let (news, waker) = (Arc::new(AtomicU32::new(0)), Rc::new(Cell::new(None::<Waker>)));
    let (seen, handed) = (news.clone(), waker.clone());
    exec.spawn(poll_fn(move |cx| {
        handed.set(Some(cx.waker().clone()));
        if seen.load(Ordering::Relaxed) == last { Poll::Ready(()) } else { Poll::Pending }
    }));
    run(exec);
    (news, waker.take().expect("it was polled"))
}

/// The news is plain data beside the waker, ordered by nothing but the wake itself.
#[test]
fn a_task_that_is_woken_twice_sees_the_second_reason() {
    loom::model(|| {
        let exec = Executor::default();
        let (news, waker) = waits_for(&exec, 2);
        let other = thread::spawn(move || {
            for reason in [1, 2] {
                news.store(reason, Ordering::Relaxed);
                waker.wake_by_ref();
            }
        });
        run(&exec);
        other.join().expect("it lives");
        run(&exec);
        assert_eq!(exec.tasks(), 0, "a lost wake-up");
    });
}

/// Who sleeps has looked after saying that it would, and whoever wakes a task has looked at that after queueing it.
#[test]
fn who_lies_down_sees_the_task_or_is_kicked() {
    loom::model(|| {
        let exec = Executor::default();
        let kicks = std::sync::Arc::new(AtomicU32::new(0));
        let counted = kicks.clone();
        exec.kicked_by(std::sync::Arc::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        let (news, waker) = waits_for(&exec, 1);
        let other = thread::spawn(move || {
            news.store(1, Ordering::Relaxed);
            waker.wake();
        });
        run(&exec);
        let sleeps = exec.lie_down();
        other.join().expect("it lives");
        assert!(!sleeps || exec.tasks() == 0 || kicks.load(Ordering::Relaxed) == 1, "it sleeps, and a task is ready");
        exec.rise();
        run(&exec);
        assert_eq!(exec.tasks(), 0, "a lost wake-up");
    });
}

/// A word that another vCPU says is heard, whenever it is waited for.
#[test]
fn a_word_is_heard() {
    loom::model(|| {
        let exec = Executor::default();
        let word = std::sync::Arc::new(Word::default());
        let (said, heard) = (word.clone(), Rc::new(Cell::new(0)));
        let hears = heard.clone();
        exec.spawn(async move { hears.set(word.hear().await) });
        let other = thread::spawn(move || said.say(7));
        run(&exec);
        other.join().expect("it lives");
        run(&exec);
        assert_eq!((heard.get(), exec.tasks()), (7, 0), "a lost word");
    });
}

/// Two threads wake one task; it is queued once or twice and never forgotten.
#[test]
fn two_who_wake_one_task_are_both_heard() {
    loom::model(|| {
        let exec = Executor::default();
        let (news, waker) = waits_for(&exec, 2);
        let others = [0; 2].map(|_| {
            let (news, waker) = (news.clone(), waker.clone());
            thread::spawn(move || {
                news.fetch_add(1, Ordering::Relaxed);
                waker.wake();
            })
        });
        run(&exec);
        others.into_iter().for_each(|other| other.join().expect("it lives"));
        run(&exec);
        assert_eq!(exec.tasks(), 0, "a lost wake-up");
    });
}

/// Futures in the slots of one task, woken from elsewhere: bit, parent and queue in one chain.
#[test]
fn a_slot_that_is_woken_is_polled() {
    loom::model(|| {
        let exec = Executor::default();
        let news: [_; 2] = std::array::from_fn(|_| Arc::new(AtomicU32::new(0)));
        let wakers: Rc<[Cell<Option<Waker>>; 2]> = Rc::default();
        let mut slots = Slots::new(2);
        for (i, news) in news.iter().enumerate() {
            let (news, wakers) = (news.clone(), wakers.clone());
            slots.start(poll_fn(move |cx| {
                wakers[i].set(Some(cx.waker().clone()));
                if news.load(Ordering::Relaxed) == 1 { Poll::Ready(()) } else { Poll::Pending }
            }));
        }
        exec.spawn(poll_fn(move |cx| {
            slots.poll(cx, |()| ());
            if slots.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        }));
        run(&exec);
        let wakers = [0, 1].map(|i| wakers[i].take().expect("it was polled"));
        let other = thread::spawn(move || {
            for (news, waker) in news.iter().zip(wakers) {
                news.store(1, Ordering::Relaxed);
                waker.wake();
            }
        });
        run(&exec);
        other.join().expect("it lives");
        run(&exec);
        assert_eq!(exec.tasks(), 0, "a lost wake-up");
    });
}
