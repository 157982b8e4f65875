//! What the domain does: it finds the disks a toolstack attaches, opens what they name, and serves their guests.
//!
//! The same code runs in the image (package `boot`) and on the in-memory hypervisor of the tests (package `sim`).
//!
//! # Layout
//! - [`attach`]: directories in xenstore become disks
//! - [`minor`]: an image that is open, held or closed under its rings
//! - [`vbd`]: one disk: handshake, properties, end
//! - [`queue`]: its ring: turns, back-pressure, events
//! - [`crew`]: the vCPUs; `seat`: a ring that another than the first serves
//! - [`request`]: one request from its parsing to its answer; shorter ways: `resident` of those that wait for nothing,
//!   `straight` of those that wait for a lower disk alone; `sheet`: what requests note down
//! - [`control`]: tapdisk's messages; [`failures`]: what its clients are told unasked
//! - [`stats`], [`report`], [`quiet`]: what happened, and what is told of it, within limits
//! - [`power`]: poweroff and reboot
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;

use control::Channel;
use crew::{Crew, Rota};
use drivers::device::lowers::Lowers;
use xen::domain::Domain;
use xen::patience::Patience;
use xen::port::{Instant, Stop, Xen};
use xen::store::Store;
use xen::sync::Signal;

pub mod attach;
pub mod control;
pub mod crew;
pub mod failures;
pub mod minor;
pub mod power;
pub mod queue;
pub mod quiet;
pub mod report;
pub mod request;
mod resident;
mod seat;
mod sheet;
pub mod stats;
mod straight;
pub mod vbd;

/// What all tasks of the domain share.
pub struct Shared<X: Xen> {
    /// The hypervisor and the executor of the first vCPU.
    pub domain: Rc<Domain<X>>,
    /// All vCPUs.
    pub crew: Arc<Crew>,
    pub(crate) rota: Rota,
    /// Xenstore.
    pub store: Store<X>,
    /// The disks below us.
    pub lowers: Rc<Lowers<X>>,
    /// The disks we serve.
    pub vbds: attach::Vbds,
    /// The images under them.
    pub minors: Rc<minor::Minors<X>>,
    /// Errors told.
    pub errors: report::Errors,
    /// Our own domain's number; 0 until xenstore has told it, see [`report::number`].
    number: Cell<u16>,
    stop: Cell<Option<Stop>>,
}

/// The running domain.
pub struct Tapdom<X: Xen>(Rc<Shared<X>>);

/// What a turn came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Something ran; there may be more.
    Busy,
    /// Nothing to do before an event, or before this moment.
    Idle(Option<Instant>),
    /// The domain is to end.
    Stop(Stop),
}

/// Tasks polled between two looks at events.
const TASKS_PER_TURN: usize = 32;

/// Starts the domain's tasks on the first vCPU of the crew; nothing runs before the first turn. `channels` are those of
/// the control plane.
pub fn start<X: Xen>(xen: X, crew: &Arc<Crew>, channels: Vec<Channel>) -> Tapdom<X> {
    let domain = crew.domain(xen, 0);
    let store = Store::connect(&domain);
    let lowers = Lowers::new(&domain, &store);
    let shared = Rc::new(Shared {
        domain: domain.clone(),
        crew: crew.clone(),
        rota: Rota::default(),
        store,
        lowers,
        vbds: attach::Vbds::default(),
        minors: Rc::default(),
        errors: report::Errors::default(),
        number: Cell::new(0),
        stop: Cell::new(None),
    });
    let (exec, all_seen) = (&domain.exec, Rc::new(Signal::default()));
    exec.spawn(shared.lowers.clone().run());
    exec.spawn(power::run(shared.clone()));
    exec.spawn(attach::run(shared.clone(), all_seen.clone()));
    for channel in channels {
        exec.spawn(control::run(shared.clone(), channel));
    }
    let last = shared.clone();
    exec.spawn(async move {
        all_seen.wait().await;
        last.lowers.settled().await;
        let patience = Patience::default();
        while let Err(reason) = report::ready(&last).await {
            log::error!("data/ready: xenstore: {reason:?}");
            last.domain.sleep(patience.next()).await;
        }
        report::counters(last).await;
    });
    Tapdom(shared)
}

impl<X: Xen> Tapdom<X> {
    /// Hands out events and lets some ready tasks run, in the order `choose` wants (it names one of so many).
    pub fn turn_with(&self, choose: &mut dyn FnMut(usize) -> usize) -> Turn {
        let turn = turn(&self.0.domain, choose);
        self.0.stop.get().map_or(turn, Turn::Stop)
    }

    /// As [`turn_with`](Tapdom::turn_with), first come, first served.
    pub fn turn(&self) -> Turn {
        self.turn_with(&mut |_| 0)
    }

    /// What its tasks share.
    pub fn shared(&self) -> &Rc<Shared<X>> {
        &self.0
    }

    /// What all vCPUs hold of the hypervisor.
    pub fn held(&self) -> crew::Holds {
        self.0.crew.holds()
    }
}

/// A vCPU's turn: events, and some of the ready tasks. Who is idle has lain down, and is kicked by whoever wakes a task.
fn turn<X: Xen>(domain: &Domain<X>, choose: &mut dyn FnMut(usize) -> usize) -> Turn {
    domain.exec.rise();
    domain.look();
    let ran = (0..TASKS_PER_TURN).take_while(|_| domain.exec.turn(choose)).count();
    if ran == 0 && domain.exec.lie_down() { Turn::Idle(domain.timers.next()) } else { Turn::Busy }
}

/// Runs the first vCPU to the domain's end.
pub fn run<X: Xen>(xen: X, crew: &Arc<Crew>, channels: Vec<Channel>) -> ! {
    let tapdom = start(xen, crew, channels);
    loop {
        match tapdom.turn() {
            Turn::Busy => {}
            Turn::Idle(until) => tapdom.0.domain.xen.wait(until),
            Turn::Stop(stop) => tapdom.0.domain.xen.stop(stop),
        }
    }
}
