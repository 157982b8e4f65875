//! Schedule points: while the product has its turn, every touch of a page and every hypercall is a moment at which peers
//! on other processors may run. How often they do is the run's rate, which peers and how long is the seed's choice.
//!
//! A wake-up lost between two touches is found only so: between two turns the product is asleep or about to look again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::journal;
use crate::memory::of_world;
use crate::random::Random;
use crate::run::Actor;
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
    /// Points between two at which peers run, at most.
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
    random: RefCell<Random>,
    rate: Cell<Rate>,
    points: Cell<u64>,
    switches: Cell<u64>,
}

impl Peers {
    pub fn new(world: &World, mut random: Random) -> Rc<Self> {
        xen::schedule::install(point);
        let rate = random.pick(&[Rate::Off, Rate::Sometimes, Rate::Sometimes, Rate::Often]);
        Rc::new(Peers {
            world: world.clone(),
            slots: RefCell::default(),
            random: RefCell::new(random),
            rate: Cell::new(rate),
            points: Cell::new(0),
            switches: Cell::new(0),
        })
    }

    pub fn add(&self, actor: Rc<RefCell<dyn Actor>>) {
        self.slots.borrow_mut().push(Slot { actor, idle_at: 0 });
    }

    pub fn set_rate(&self, rate: Rate) {
        self.rate.set(rate);
    }

    pub fn rate(&self) -> Rate {
        self.rate.get()
    }

    /// Points passed, and turns that peers had at them.
    pub fn counts(&self) -> (u64, u64) {
        (self.points.get(), self.switches.get())
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

    /// When the first of them wants to run though nothing stirs.
    pub fn timers(&self) -> Vec<xen::port::Instant> {
        self.slots.borrow().iter().filter_map(|slot| slot.actor.borrow().timer()).collect()
    }

    /// Lets the product have its turn, in which peers may run.
    pub fn beside<T>(self: &Rc<Self>, product: impl FnOnce() -> T) -> T {
        let _until_the_end = Within;
        PEERS.set(Some(self.clone()));
        LEFT.set(self.gap());
        product()
    }

    fn gap(&self) -> u64 {
        let gap = match self.rate.get().gap_max() {
            0 => 0,
            most => self.random.borrow_mut().between(1, most),
        };
        self.points.set(self.points.get() + gap);
        gap
    }

    fn jumps(&self) -> bool {
        let rate = self.rate.get();
        self.random.borrow_mut().one_in(if rate == Rate::Often { 2 } else { 4 })
    }

    /// Some of them run, each for a few steps: a guest that is woken and fills its ring takes two, a toolstack that takes
    /// a device away some more.
    fn interleave(&self) {
        let (who, steps) = {
            let mut random = self.random.borrow_mut();
            (if random.one_in(4) { random.between(2, 6) } else { 1 }, random.between(1, 4))
        };
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
            LEFT.set(peers.gap());
        }
        left => LEFT.set(left - 1),
    }
}

/// A point at which peers are likely to run: somebody was just woken, on a processor that had nothing to do.
pub(crate) fn woken() {
    if LEFT.get() > 0 && PEERS.with_borrow(|peers| peers.as_ref().is_some_and(|peers| peers.jumps())) {
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
