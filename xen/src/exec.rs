//! The executor: tasks that take turns, on one vCPU. Each vCPU has one.
//!
//! A woken task is queued once and polled once per time it is taken from the queue; which of the queued ones comes
//! next is the caller's choice, so that a test can try every order. Wakers may be used from anywhere, futures stay.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use crate::atomic::{AtomicBool, Mutex, Ordering};
use crate::port::Instant;
use crate::schedule::{self, Name};

/// Runs tasks; cloning gives another handle on the same one.
#[derive(Clone, Default)]
pub struct Executor(Rc<Tasks>);

#[derive(Default)]
struct Tasks {
    tasks: RefCell<Vec<Option<Task>>>,
    free: RefCell<Vec<usize>>,
    ready: Arc<Ready>,
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    wake: Arc<TaskWake>,
    name: Name,
}

#[derive(Default)]
struct Ready {
    tasks: Mutex<VecDeque<usize>>,
    /// The vCPU sleeps, or is about to.
    asleep: AtomicBool,
    kick: Mutex<Option<Kick>>,
}

/// What ends the sleep of a vCPU, from any other.
pub type Kick = Arc<dyn Fn() + Send + Sync>;

struct TaskWake {
    task: usize,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.ready.push(self.task);
        }
    }
}

impl Ready {
    fn push(&self, task: usize) {
        self.tasks.lock().push_back(task);
        // Whoever lies down says so first and looks at the tasks then: either it sees this one, or this sees it.
        if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            let kick = self.kick.lock().clone();
            kick.inspect(|kick| kick());
        }
    }
}

impl Executor {
    /// For who is woken by other vCPUs too: how they end its sleep.
    pub fn kicked_by(&self, kick: Kick) {
        *self.0.ready.kick.lock() = Some(kick);
    }

    /// To be asked before the vCPU sleeps: false if a task was woken meanwhile. From here to [`rise`](Executor::rise) who
    /// wakes a task kicks.
    pub fn lie_down(&self) -> bool {
        let ready = &self.0.ready;
        ready.asleep.store(true, Ordering::SeqCst);
        let sleeps = ready.tasks.lock().is_empty();
        if !sleeps {
            self.rise();
        }
        sleeps
    }

    /// The vCPU does not sleep any more.
    pub fn rise(&self) {
        self.0.ready.asleep.store(false, Ordering::SeqCst);
    }

    /// Adds a task; it is polled first at a later [`turn`](Executor::turn).
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let mut tasks = self.0.tasks.borrow_mut();
        let task = self.0.free.borrow_mut().pop().unwrap_or(tasks.len());
        let wake = Arc::new(TaskWake { task, queued: AtomicBool::new(false), ready: self.0.ready.clone() });
        let name = Name::of(&future);
        let new = Some(Task { future: Box::pin(future), wake: wake.clone(), name });
        match tasks.get_mut(task) {
            Some(slot) => *slot = new,
            None => tasks.push(new),
        }
        wake.wake();
    }

    /// Polls one of the ready tasks, the one `choose` names among so many; false if none is ready.
    pub fn turn(&self, choose: &mut dyn FnMut(usize) -> usize) -> bool {
        let task = {
            let mut ready = self.0.ready.tasks.lock();
            let Some(last) = ready.len().checked_sub(1) else { return false };
            let chosen = if last == 0 { 0 } else { choose(last + 1).min(last) };
            ready.remove(chosen)
        };
        let Some(id) = task else { return false };
        // The task is out of the table while it runs: it may spawn others.
        let Some(mut task) = self.0.tasks.borrow_mut().get_mut(id).and_then(Option::take) else { return true };
        schedule::polls(id, task.name);
        // A swap, not a store: who found it still queued has said why before, and the poll must see that.
        task.wake.queued.swap(false, Ordering::AcqRel);
        let waker = Waker::from(task.wake.clone());
        if task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.0.tasks.borrow_mut()[id] = Some(task);
        } else {
            self.0.free.borrow_mut().push(id);
        }
        true
    }

    /// Drops every task where it stands, and whatever their ends still spawn. Tasks hold the domain that holds them, so
    /// one who ends a domain from outside, and goes on itself, would never see its memory again.
    pub fn clear(&self) {
        while let tasks = self.0.tasks.take()
            && !tasks.is_empty()
        {
            self.0.free.take();
            drop(tasks);
        }
    }

    /// Tasks that have not ended.
    pub fn tasks(&self) -> usize {
        self.0.tasks.borrow().len() - self.0.free.borrow().len()
    }
}

/// Who sleeps until when.
#[derive(Default)]
pub struct Timers {
    sleepers: RefCell<BTreeMap<(Instant, u64), Waker>>,
    serial: Cell<u64>,
}

impl Timers {
    /// Wakes every sleeper whose time has come.
    pub fn fire(&self, now: Instant) {
        let mut sleepers = self.sleepers.borrow_mut();
        while let Some(first) = sleepers.first_entry() {
            if first.key().0 > now {
                break;
            }
            first.remove().wake();
        }
    }

    /// When the next sleeper is due.
    pub fn next(&self) -> Option<Instant> {
        self.sleepers.borrow().first_key_value().map(|(key, _)| key.0)
    }

    /// Sleeps until [`fire`](Timers::fire) is called with `until` or later.
    pub fn sleep(&self, until: Instant) -> Sleep<'_> {
        Sleep { timers: self, until, key: None }
    }
}

/// A sleeper, see [`Timers::sleep`]; dropped, it is forgotten.
pub struct Sleep<'a> {
    timers: &'a Timers,
    until: Instant,
    key: Option<(Instant, u64)>,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let timers = self.timers;
        let mut sleepers = timers.sleepers.borrow_mut();
        match self.key {
            Some(key) => match sleepers.get_mut(&key) {
                Some(waker) => waker.clone_from(cx.waker()),
                None => return Poll::Ready(()),
            },
            None => {
                let key = (self.until, timers.serial.replace(timers.serial.get() + 1));
                sleepers.insert(key, cx.waker().clone());
                self.key = Some(key);
            }
        }
        Poll::Pending
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.timers.sleepers.borrow_mut().remove(&key);
        }
    }
}

/// Lets every other ready task go first, once.
pub async fn yield_now() {
    let mut yielded = false;
    core::future::poll_fn(|cx| {
        if core::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atomic::AtomicU64;

    #[test]
    fn tasks_run_in_the_order_chosen_and_slots_are_used_again() {
        let exec = Executor::default();
        let order = Rc::new(RefCell::new(Vec::new()));
        for i in 0..3 {
            let order = order.clone();
            exec.spawn(async move {
                order.borrow_mut().push(i);
                yield_now().await;
                order.borrow_mut().push(i + 10);
            });
        }
        while exec.turn(&mut |n| n - 1) {}
        assert_eq!(*order.borrow(), [2, 12, 1, 11, 0, 10]);
        assert_eq!(exec.tasks(), 0);
        exec.spawn(async {});
        assert_eq!((exec.0.tasks.borrow().len(), exec.tasks()), (3, 1));
    }

    #[test]
    fn a_task_may_spawn_and_a_wake_before_the_poll_ends_is_not_lost() {
        let exec = Executor::default();
        let inner = exec.clone();
        let done = Rc::new(Cell::new(0));
        let seen = done.clone();
        exec.spawn(async move {
            inner.spawn(async move { seen.set(seen.get() + 1) });
            yield_now().await;
        });
        while exec.turn(&mut |_| 0) {}
        assert_eq!((done.get(), exec.tasks()), (1, 0));
    }

    #[test]
    fn who_has_a_task_does_not_lie_down() {
        let exec = Executor::default();
        let kicks = Arc::new(AtomicU64::new(0));
        let kicked = kicks.clone();
        exec.kicked_by(Arc::new(move || {
            kicked.fetch_add(1, Ordering::Relaxed);
        }));
        exec.spawn(async {});
        assert!(!exec.lie_down());
        while exec.turn(&mut |_| 0) {}
        assert!(exec.lie_down());
        exec.spawn(async {});
        exec.spawn(async {});
        assert_eq!(kicks.load(Ordering::Relaxed), 1, "once is enough");
        exec.rise();
        while exec.turn(&mut |_| 0) {}
        exec.spawn(async {});
        assert_eq!(kicks.load(Ordering::Relaxed), 1, "who is up needs no kick");
    }

    #[test]
    fn what_is_cleared_lets_go_of_all_it_holds() {
        struct Spawns(Executor, Rc<()>);
        impl Drop for Spawns {
            fn drop(&mut self) {
                let held = self.1.clone();
                self.0.spawn(async move { drop(held) });
            }
        }
        let (exec, held) = (Executor::default(), Rc::new(()));
        let task = Spawns(exec.clone(), held.clone());
        exec.spawn(async move {
            yield_now().await;
            drop(task);
        });
        exec.spawn(async {});
        exec.turn(&mut |n| n - 1);
        exec.clear();
        assert_eq!((Rc::strong_count(&held), exec.tasks()), (1, 0));
        // A waker that outlived its task wakes nobody.
        while exec.turn(&mut |_| 0) {}
    }

    #[test]
    fn sleepers_wake_in_time_and_are_forgotten_when_dropped() {
        let timers = Timers::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut first = Box::pin(timers.sleep(Instant(5)));
        let mut second = Box::pin(timers.sleep(Instant(5)));
        assert!(first.as_mut().poll(&mut cx).is_pending() && second.as_mut().poll(&mut cx).is_pending());
        timers.fire(Instant(4));
        assert!(first.as_mut().poll(&mut cx).is_pending());
        assert_eq!(timers.next(), Some(Instant(5)));
        drop(second);
        timers.fire(Instant(5));
        assert!(first.as_mut().poll(&mut cx).is_ready());
        assert_eq!(timers.next(), None);
    }
}
