//! What one vCPU tells another: each has an executor and tasks of its own, and shares nothing with the others but this.
//!
//! A lock is held for a few instructions, with no touch of a peer's page and no hypercall in between.

use alloc::collections::VecDeque;
use core::future::poll_fn;
use core::task::{Context, Poll, Waker};

use crate::atomic::{AtomicUsize, Mutex, Ordering};

/// The last word of one side, for one task of the other. What was not heard before the next is said is forgotten.
pub struct Word<T>(Mutex<Said<T>>);

struct Said<T> {
    word: Option<T>,
    waker: Option<Waker>,
}

impl<T> Default for Word<T> {
    fn default() -> Self {
        Word(Mutex::new(Said { word: None, waker: None }))
    }
}

impl<T> Word<T> {
    /// Says it, and wakes who waits for it.
    pub fn say(&self, word: T) {
        let (unheard, waker) = {
            let mut said = self.0.lock();
            (said.word.replace(word), said.waker.take())
        };
        drop(unheard);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Ready with what was said since this was last ready.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<T> {
        let mut said = self.0.lock();
        match said.word.take() {
            Some(word) => Poll::Ready(word),
            None => {
                remember(&mut said.waker, cx);
                Poll::Pending
            }
        }
    }

    /// Waits until something is said.
    pub async fn hear(&self) -> T {
        poll_fn(|cx| self.poll(cx)).await
    }
}

/// Things handed over, in order, to one task of the other side.
pub struct Mail<T>(Mutex<Bag<T>>);

struct Bag<T> {
    things: VecDeque<T>,
    waker: Option<Waker>,
}

impl<T> Default for Mail<T> {
    fn default() -> Self {
        Mail(Mutex::new(Bag { things: VecDeque::new(), waker: None }))
    }
}

impl<T> Mail<T> {
    /// Hands it over.
    pub fn send(&self, thing: T) {
        let waker = {
            let mut bag = self.0.lock();
            bag.things.push_back(thing);
            bag.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// Waits for the next.
    pub async fn next(&self) -> T {
        poll_fn(|cx| {
            let mut bag = self.0.lock();
            match bag.things.pop_front() {
                Some(thing) => Poll::Ready(thing),
                None => {
                    remember(&mut bag.waker, cx);
                    Poll::Pending
                }
            }
        })
        .await
    }
}

fn remember(slot: &mut Option<Waker>, cx: &mut Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

/// A number that one vCPU changes and all may look at.
#[derive(Default)]
pub struct Count(AtomicUsize);

impl Count {
    /// What it is.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds to it, or takes from it. For its own vCPU alone: there is no other that changes it meanwhile.
    pub fn add(&self, by: isize) {
        let now = self.get().checked_add_signed(by).expect("a count of held things below zero");
        self.0.store(now, Ordering::Relaxed);
    }
}
