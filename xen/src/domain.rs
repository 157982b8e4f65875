//! Our own domain: what every task shares.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::task::{Context, Poll, Waker};

use crate::across::Count;
use crate::event::Events;
use crate::exec::{Executor, Timers};
use crate::grant::Lent;
use crate::memory::Budget;
use crate::port::Xen;
use crate::sync::Signal;

/// The hypervisor, the executor and what hangs on them. One per vCPU.
pub struct Domain<X: Xen> {
    /// The hypervisor.
    pub xen: X,
    /// Runs the tasks.
    pub exec: Executor,
    /// Wakes the sleepers.
    pub timers: Timers,
    /// Our own memory.
    pub memory: Budget,
    /// What is held of the hypervisor.
    pub held: Arc<Held>,
    /// Raised when what is held may stand elsewhere for a while: pages come and go with every request, and that is not told.
    pub changed: Signal,
    pub(crate) events: Events,
    /// Pages whose grant did not end because the other side still uses them.
    pub(crate) stuck: RefCell<Vec<Lent<X>>>,
}

/// Counts of what a vCPU holds of the hypervisor and of peers; the same before a disk came and after it went.
#[derive(Default)]
pub struct Held {
    /// Mapped foreign pages.
    pub mappings: Count,
    /// Pages of ours granted to others.
    pub grants: Count,
    /// Event channels.
    pub ports: Count,
    /// Data pages handed out for requests.
    pub pages: Count,
    /// Xenstore nodes we wrote for disks.
    pub nodes: Count,
}

/// Adds to (or takes from) a count of [`Held`].
pub fn count(held: &Count, by: isize) {
    held.add(by);
}

impl<X: Xen> Domain<X> {
    /// A domain in which no task runs yet.
    pub fn new(xen: X, memory: Budget, held: Arc<Held>) -> Rc<Self> {
        Rc::new(Domain {
            xen,
            exec: Executor::default(),
            timers: Timers::default(),
            memory,
            held,
            changed: Signal::default(),
            events: Events::default(),
            stuck: RefCell::default(),
        })
    }

    /// Hands pending events and due timers to those who wait for them.
    pub fn look(&self) {
        self.xen.take_events(&mut |port| self.events.arrived(port));
        if self.timers.next().is_some() {
            self.timers.fire(self.xen.now());
        }
    }

    /// Does a step to its end, also if nobody waits for it any more: what it holds by then, pages or a turn, is given back.
    /// It begins here and now, and goes on in a task of its own.
    pub fn apart<F: Future<Output: 'static> + 'static>(&self, step: F) -> impl Future<Output = F::Output> + use<F, X> {
        let mut step = Box::pin(step);
        let end = Rc::new((Cell::new(None), Signal::default()));
        match step.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => end.0.set(Some(result)),
            Poll::Pending => {
                let ended = end.clone();
                self.exec.spawn(async move {
                    let result = step.await;
                    ended.0.set(Some(result));
                    ended.1.raise();
                });
            }
        }
        poll_fn(move |cx| {
            while end.1.poll(cx).is_ready() {}
            end.0.take().map_or(Poll::Pending, Poll::Ready)
        })
    }

    /// Lets go of everything that tasks and pages hold of the domain: for who has ended it from outside and goes on.
    pub fn end(&self) {
        self.exec.clear();
        self.stuck.take();
    }

    /// Sleeps that long.
    pub async fn sleep(&self, time: core::time::Duration) {
        self.timers.sleep(self.xen.now() + time).await
    }
}
