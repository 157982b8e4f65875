//! The vCPUs. The first one does all that has to do with xenstore, messages and stores below; each of the others serves
//! rings that the first hands to it, of disks in our own memory. They share nothing but what
//! [`xen::across`] carries and the pages of those disks.

use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;

use xen::across::Mail;
use xen::domain::{Domain, Held};
use xen::memory::Budget;
use xen::port::Xen;

use crate::Turn;
use crate::seat::{self, Order};

/// What the vCPUs share. Made by the first, before the others run.
pub struct Crew {
    memory: Budget,
    members: Vec<Member>,
}

#[derive(Default)]
struct Member {
    held: Arc<Held>,
    orders: Mail<Order>,
}

/// What is held of the hypervisor by all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    /// Mapped foreign pages.
    pub mappings: usize,
    /// Pages of ours granted to others.
    pub grants: usize,
    /// Event channels.
    pub ports: usize,
    /// Data pages handed out for requests.
    pub pages: usize,
    /// Xenstore nodes we wrote for disks.
    pub nodes: usize,
}

impl Crew {
    /// A crew of so many. `memory` tells the bytes of the heap in use, and in all.
    pub fn new(memory: fn() -> (usize, usize), vcpus: usize) -> Arc<Self> {
        let members = (0..vcpus.max(1)).map(|_| Member::default()).collect();
        Arc::new(Crew { memory: Budget::new(memory), members })
    }

    /// How many there are.
    pub fn vcpus(&self) -> usize {
        self.members.len()
    }

    /// The domain as one of them sees it.
    pub(crate) fn domain<X: Xen>(&self, xen: X, vcpu: usize) -> Rc<Domain<X>> {
        let domain = Domain::new(xen, self.memory.clone(), self.members[vcpu].held.clone());
        if self.vcpus() > 1 {
            domain.exec.kicked_by(domain.xen.kick());
        }
        domain
    }

    /// Has one of them serve a ring.
    pub(crate) fn send(&self, vcpu: usize, order: Order) {
        self.members[vcpu].orders.send(order);
    }

    /// What all of them hold.
    pub fn holds(&self) -> Holds {
        self.members.iter().fold(Holds::default(), |all, Member { held, .. }| Holds {
            mappings: all.mappings + held.mappings.get(),
            grants: all.grants + held.grants.get(),
            ports: all.ports + held.ports.get(),
            pages: all.pages + held.pages.get(),
            nodes: all.nodes + held.nodes.get(),
        })
    }
}

/// Who serves the next ring: one after the other, so that disks with one ring are shared out too.
#[derive(Default)]
pub(crate) struct Rota(Cell<usize>);

impl Rota {
    /// The vCPU whose turn it is.
    pub fn next(&self, crew: &Crew) -> usize {
        let next = self.0.get() % crew.vcpus();
        self.0.set(next + 1);
        next
    }
}

/// A vCPU beside the first.
pub struct Mate<X: Xen>(Rc<Domain<X>>);

impl<X: Xen> Mate<X> {
    /// The vCPU of this number, from 1 on. Nothing runs before its first turn.
    pub fn new(xen: X, crew: &Arc<Crew>, vcpu: usize) -> Self {
        let (domain, crew) = (crew.domain(xen, vcpu), crew.clone());
        let all = domain.clone();
        domain.exec.spawn(async move {
            loop {
                let order = crew.members[vcpu].orders.next().await;
                all.exec.spawn(seat::serve(all.clone(), order));
            }
        });
        Mate(domain)
    }

    /// What it does in its turn, see [`Tapdom::turn_with`](crate::Tapdom::turn_with).
    pub fn turn_with(&self, choose: &mut dyn FnMut(usize) -> usize) -> Turn {
        crate::turn(&self.0, choose)
    }

    /// Its domain.
    pub fn domain(&self) -> &Rc<Domain<X>> {
        &self.0
    }

    /// Runs it, for ever.
    pub fn run(self) -> ! {
        loop {
            if let Turn::Idle(until) = self.turn_with(&mut |_| 0) {
                self.0.xen.wait(until);
            }
        }
    }
}
