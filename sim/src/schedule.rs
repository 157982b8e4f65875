//! Schedule points: while the product has its turn, every touch of a page and every hypercall is a moment at which peers
//! on other processors may run. How often they do is the run's rate, which peers and how long is the seed's choice.
//!
//! A wake-up lost between two touches is found only so: between two turns the product is asleep or about to look again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::fault::Fault;
use crate::journal;
use crate::marks;
use crate::memory::{of_product, of_world};
use crate::random::Random;
use crate::run::{Actor, Vcpu};
use crate::world::World;

/// How often peers run within a turn of the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Never: as on a machine with one processor, where the product is not preempted.
    Off,
    /// At a few points of a turn.
    Sometimes,
    /// At every few points.
    Often,
}

impl Rate {
    /// Points between two at which peers run, at most; 0 where they never do.
    fn gap_max(self) -> u64 {
        match self {
            Rate::Off => 0,
            Rate::Sometimes => 400,
            Rate::Often => 8,
        }
    }
}

struct Slot {
    actor: Rc<RefCell<dyn Actor>>,
    /// The world's activity when it last found nothing to do.
    idle_at: u64,
}

/// All who run beside the domain under test.
pub(crate) struct Peers {
    world: World,
    slots: RefCell<Vec<Slot>>,
    vcpus: RefCell<Vec<Rc<RefCell<Vcpu>>>>,
    random: RefCell<Random>,
    rate: Cell<Rate>,
    points: Cell<u64>,
    switches: Cell<u64>,
    /// The task that is polled, and the points passed before it was.
    task: Cell<(&'static str, u64)>,
    /// The longest poll so far, and whose.
    longest: Cell<(u64, &'static str)>,
    /// How often each task was polled since this was last forgotten.
    polls: RefCell<BTreeMap<(usize, &'static str), u64>>,
}

/// The most points that a task may pass before it lets others go: 64 requests, or a turn of 128 segments in requests of many and
/// what is in flight of one ring besides, 512 more. Each of these is a copy of two, and where its page is new to a guest that
/// keeps pages, a mapping.
pub const TOUCHES_PER_POLL: u64 = 4_000;

/// The same where Xen says of pages that they are away for the moment: each of those segments is asked for sixteen times more.
const TOUCHES_OF_AWAY: u64 = 12_000;

impl Peers {
    pub fn new(world: &World, mut random: Random) -> Rc<Self> {
        xen::schedule::install(point, polls);
        let rate = random.pick(&[Rate::Off, Rate::Sometimes, Rate::Sometimes, Rate::Often]);
        Rc::new(Peers {
            world: world.clone(),
            slots: RefCell::default(),
            vcpus: RefCell::default(),
            random: RefCell::new(random),
            rate: Cell::new(rate),
            points: Cell::new(0),
            switches: Cell::new(0),
            task: Cell::new(("none", 0)),
            longest: Cell::new((0, "none")),
            polls: RefCell::default(),
        })
    }

    pub fn add(&self, actor: Rc<RefCell<dyn Actor>>) {
        self.slots.borrow_mut().push(Slot { actor, idle_at: 0 });
    }

    /// The vCPUs of the domain under test: at a point of one the others may have a whole turn.
    pub fn set_vcpus(&self, vcpus: Vec<Rc<RefCell<Vcpu>>>) {
        *self.vcpus.borrow_mut() = vcpus;
    }

    pub fn set_rate(&self, rate: Rate) {
        self.rate.set(rate);
    }

    pub fn rate(&self) -> Rate {
        self.rate.get()
    }

    /// Points passed.
    pub fn points(&self) -> u64 {
        self.points.get()
    }

    /// Turns that peers had at them.
    pub fn switches(&self) -> u64 {
        self.switches.get()
    }

    /// Those that may have something to do.
    pub fn ready(&self) -> Vec<usize> {
        let activity = self.world.activity();
        let slots = self.slots.borrow();
        (0..slots.len()).filter(|i| slots[*i].idle_at != activity).collect()
    }

    /// Gives one of them its turn, unless somebody is looking at it. False if it had nothing to do.
    pub fn turn(&self, slot: usize) -> bool {
        let actor = self.slots.borrow()[slot].actor.clone();
        let Ok(mut actor) = actor.try_borrow_mut() else { return false };
        let busy = actor.turn();
        if busy {
            journal::trace(|| actor.name());
        } else {
            self.slots.borrow_mut()[slot].idle_at = self.world.activity();
        }
        busy
    }

    /// Who that is.
    pub fn name(&self, slot: usize) -> String {
        self.slots.borrow()[slot].actor.borrow().name()
    }

    /// When the first of them wants to run though nothing stirs.
    pub fn timers(&self) -> Vec<xen::port::Instant> {
        self.slots.borrow().iter().filter_map(|slot| slot.actor.borrow().timer()).collect()
    }

    /// Lets the product have its turn, in which peers may run.
    pub fn beside<T>(self: &Rc<Self>, product: impl FnOnce() -> T) -> T {
        let _until_the_end = Within;
        PEERS.set(Some(self.clone()));
        LEFT.set(self.gap());
        self.task.set(("none", self.passed()));
        let done = product();
        self.polled();
        self.unpassed(LEFT.get());
        done
    }

    /// Points passed, in the middle of a turn.
    fn passed(&self) -> u64 {
        self.points.get() - LEFT.get()
    }

    /// A task begins its poll.
    fn polls(&self, task: usize, name: &'static str) {
        self.polled();
        self.task.set((name, self.passed()));
        *self.polls.borrow_mut().entry((task, name)).or_default() += 1;
    }

    /// The task that is polled has come so far.
    fn polled(&self) {
        let (name, began) = self.task.get();
        let touches = self.passed() - began;
        if touches > self.longest.get().0 {
            self.longest.set((touches, name));
        }
        let away = self.world.faults().injected(Fault::CopyAgain) > 0;
        let most = if away { TOUCHES_OF_AWAY } else { TOUCHES_PER_POLL };
        assert!(touches <= most, "{name} goes on and on: {touches} touches, and others wait");
    }

    /// The longest poll of a task, in points, and whose that was.
    pub fn longest(&self) -> (u64, &'static str) {
        self.longest.get()
    }

    /// Forgets who was polled.
    pub fn forget_polls(&self) {
        self.polls.borrow_mut().clear();
    }

    /// The tasks of the product that were polled most since that was last forgotten, with how often.
    pub fn busiest(&self) -> String {
        let mut polls: Vec<_> = self.polls.take().into_iter().collect();
        polls.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
        let told = polls.iter().take(3).map(|((task, name), times)| format!("{times} polls of task {task}, {name}"));
        told.collect::<Vec<_>>().join("; ")
    }

    /// How many points are to pass until peers run. They count as passed from now on.
    fn gap(&self) -> u64 {
        let gap = match self.rate.get().gap_max() {
            0 => NEVER,
            most => self.random.borrow_mut().between(1, most),
        };
        self.points.set(self.points.get() + gap);
        gap
    }

    /// So many of them will not be passed.
    fn unpassed(&self, left: u64) {
        self.points.set(self.points.get() - left);
    }

    fn jumps(&self) -> bool {
        let rate = self.rate.get();
        rate != Rate::Off && self.random.borrow_mut().one_in(if rate == Rate::Often { 2 } else { 4 })
    }

    /// Another vCPU has its turn, maybe.
    fn another_vcpu(&self) {
        let awake = |vcpu: &&Rc<RefCell<Vcpu>>| vcpu.try_borrow().is_ok_and(|vcpu| vcpu.is_awake(&self.world));
        let others: Vec<_> = self.vcpus.borrow().iter().filter(awake).cloned().collect();
        if others.is_empty() || self.random.borrow_mut().one_in(2) {
            return;
        }
        let chosen = &others[self.random.borrow_mut().index(others.len())];
        let polled = self.task.get();
        marks::hit("another vCPU within a turn");
        journal::trace(|| "tapdom, another vCPU".into());
        journal::deeper(|| of_product(|| chosen.borrow_mut().turn()));
        self.task.set(polled);
    }

    /// Some of them run, each for a few steps: a guest that is woken and fills its ring takes two, a toolstack that takes
    /// a device away some more.
    fn interleave(&self) {
        let (who, steps) = {
            let mut random = self.random.borrow_mut();
            (if random.one_in(4) { random.between(2, 6) } else { 1 }, random.between(1, 4))
        };
        self.another_vcpu();
        for _ in 0..who {
            // Most of them have nothing to do: the first that has is it.
            while let ready = self.ready()
                && !ready.is_empty()
            {
                let chosen = ready[self.random.borrow_mut().index(ready.len())];
                let made = (0..steps).take_while(|_| self.turn(chosen)).count();
                self.switches.set(self.switches.get() + made as u64);
                if made > 0 {
                    break;
                }
            }
        }
    }
}

/// A gap that no turn comes to the end of.
const NEVER: u64 = u64::MAX / 2;

thread_local! {
    /// Points until the next at which peers run; 0 where nobody else may.
    static LEFT: Cell<u64> = const { Cell::new(0) };
    static PEERS: RefCell<Option<Rc<Peers>>> = const { RefCell::new(None) };
}

/// The product's turn; over when dropped, also by a panic.
struct Within;

impl Drop for Within {
    fn drop(&mut self) {
        LEFT.set(0);
        PEERS.set(None);
    }
}

/// Peers may run, if this is a moment of the product's turn.
pub fn point() {
    match LEFT.get() {
        0 => {}
        1 => {
            // Peers touch pages too; theirs are no points.
            LEFT.set(0);
            let peers = PEERS.with_borrow(Clone::clone).expect("points are counted only in a turn");
            of_world(|| journal::deeper(|| peers.interleave()));
            peers.polled();
            LEFT.set(peers.gap());
        }
        left => LEFT.set(left - 1),
    }
}

/// A task of the product is about to be polled.
fn polls(task: usize, name: &'static str) {
    PEERS.with_borrow(|peers| peers.iter().for_each(|peers| peers.polls(task, name)));
}

/// A point at which peers are likely to run: somebody was just woken, on a processor that had nothing to do.
pub(crate) fn woken() {
    let left = LEFT.get();
    let jumps = |peers: &Option<Rc<Peers>>| {
        let peers = peers.as_ref().filter(|peers| peers.jumps());
        peers.inspect(|peers| peers.unpassed(left - 1)).is_some()
    };
    if left > 0 && PEERS.with_borrow(jumps) {
        LEFT.set(1);
    }
    point();
}

/// Does something in which nobody else runs, though it touches pages: what is one act for Xen.
pub(crate) fn undisturbed<T>(act: impl FnOnce() -> T) -> T {
    let left = LEFT.replace(0);
    let done = act();
    LEFT.set(left);
    done
}
