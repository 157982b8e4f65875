//! The world as the domain under test sees it, and stricter than Xen: what the product may never do ends the test.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::mem::Memory;
use xen::exec::Kick;
use xen::page::{PAGE_BYTES, Page, PageRef};
use xen::port::{
    Access, DomId, Foreign, GrantRef, Instant, Move, Port, PortState, Refused, StillInUse, Stop, Way, Xen,
};

use crate::event::Channel;
use crate::fault::Fault;
use crate::memory::of_world;
use crate::schedule::{point, undisturbed, woken};
use crate::world::World;

/// What [`SimXen::stop`] panics with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped(pub Stop);

/// The pages the domain has lent, by their addresses.
#[derive(Default)]
struct Lent {
    pages: BTreeSet<u64>,
    grants: BTreeMap<GrantRef, u64>,
}

/// A domain's own hypervisor, as one of its vCPUs sees it.
#[derive(Clone)]
pub struct SimXen {
    world: World,
    id: DomId,
    vcpu: usize,
    kicked: Arc<AtomicBool>,
    store: (PageRef, Port),
    lent: Rc<RefCell<Lent>>,
}

impl SimXen {
    /// The view of `id`, which must be in the world and have been introduced to xenstored.
    pub fn new(world: &World, id: DomId) -> Self {
        let store = world.store(id).expect("introduce the domain to xenstored first");
        SimXen { world: world.clone(), id, vcpu: 0, kicked: Arc::default(), store, lent: Rc::default() }
    }

    /// The same as another vCPU of the domain sees it.
    pub fn beside(&self, vcpu: usize) -> Self {
        SimXen { vcpu, kicked: Arc::default(), ..self.clone() }
    }

    /// Raised when another vCPU ends the sleep of this one.
    pub fn kicked(&self) -> Arc<AtomicBool> {
        self.kicked.clone()
    }

    fn mine(&self, port: Port) -> Port {
        self.world.bind_vcpu(self.id, port, self.vcpu);
        port
    }

    /// The domain has ended, and Xen has taken back all it had: what its code still drops is nothing to anybody.
    fn is_over(&self) -> bool {
        !self.world.alive(self.id)
    }

    fn strike(&self, fault: Fault) -> Result<(), Refused> {
        let struck = self.world.faults().strikes(fault);
        struck.map_or(Ok(()), |verdict| Err(Refused(verdict.code)))
    }

    fn copy_one(&self, what: &Move) -> Result<(), Refused> {
        self.strike(Fault::CopyAgain)?;
        self.strike(Fault::Copy)?;
        self.world.judge(what);
        undisturbed(|| {
            if what.way == Way::Out {
                let mut sectors = vec![0; what.bytes.into()];
                what.ours.read(what.ours_at.into(), &mut sectors);
                self.world.judge_secret(what.domain, &sectors);
            }
            self.world.copy(self.id, what)
        })
    }
}

/// A mapped page. Dropping one that stands is a leak, and a panic.
pub struct SimMapping {
    world: World,
    by: DomId,
    handle: u64,
    page: PageRef,
}

impl Deref for SimMapping {
    type Target = Page;

    fn deref(&self) -> &Page {
        assert!(self.world.is_mapped(self.by, self.handle), "a page is touched after its mapping ended");
        &self.page
    }
}

impl Drop for SimMapping {
    fn drop(&mut self) {
        // A mapping that ends with its domain is no leak; a second panic would only hide the first.
        let leaked = self.world.is_mapped(self.by, self.handle);
        assert!(!leaked || std::thread::panicking(), "{:?} dropped a mapping without unmapping it", self.by);
    }
}

impl Xen for SimXen {
    type Mapping = SimMapping;

    fn alloc_unbound(&self, remote: DomId) -> Result<Port, Refused> {
        point();
        of_world(|| {
            self.strike(Fault::AllocUnbound)?;
            self.world.alloc_unbound(self.id, remote).map(|port| self.mine(port))
        })
    }

    fn bind(&self, remote: DomId, port: Port) -> Result<Port, Refused> {
        point();
        of_world(|| {
            self.strike(Fault::Bind)?;
            self.world.bind(self.id, remote, port).map(|port| self.mine(port))
        })
    }

    fn close(&self, port: Port) {
        if self.is_over() {
            return;
        }
        point();
        let closed = of_world(|| self.world.close(self.id, port));
        assert!(closed, "{:?} closed {port:?}, which is not open", self.id);
    }

    fn notify(&self, port: Port) {
        if self.is_over() {
            return;
        }
        point();
        let notified = of_world(|| self.world.notify(self.id, port));
        assert!(notified, "{:?} notified {port:?}, which is not open", self.id);
        woken();
    }

    fn peer(&self, port: Port) -> PortState {
        match self.world.channel(self.id, port) {
            Some(Channel::Interdomain { .. }) => PortState::Bound,
            Some(Channel::Unbound { .. }) => PortState::Unbound,
            None => PortState::Closed,
        }
    }

    fn take_events(&self, each: &mut dyn FnMut(Port)) {
        point();
        let events = of_world(|| self.world.take_events_of(self.id, self.vcpu));
        events.into_iter().for_each(each);
        point();
    }

    fn lend(&self, page: &PageRef, to: DomId, access: Access) -> Result<GrantRef, Refused> {
        point();
        of_world(|| {
            let address = page.address();
            let mut lent = self.lent.borrow_mut();
            assert!(!lent.pages.contains(&address), "{:?} lent a page twice without reclaiming it", self.id);
            self.strike(Fault::Lend)?;
            let grant = self.world.lend(self.id, page, to, access)?;
            lent.pages.insert(address);
            lent.grants.insert(grant, address);
            Ok(grant)
        })
    }

    fn reclaim(&self, grant: GrantRef) -> Result<(), StillInUse> {
        if self.is_over() {
            return Ok(());
        }
        point();
        of_world(|| {
            if self.world.faults().strikes(Fault::Reclaim).is_some() {
                return Err(StillInUse);
            }
            self.world.reclaim(self.id, grant)?;
            let mut lent = self.lent.borrow_mut();
            let address = lent.grants.remove(&grant).expect("lent before it was reclaimed");
            lent.pages.remove(&address);
            Ok(())
        })
    }

    fn map(&self, pages: &[Foreign], into: &mut Vec<Result<SimMapping, Refused>>) {
        // What grows here is the product's.
        into.extend(pages.iter().map(|what| {
            point();
            of_world(|| {
                self.strike(Fault::MapAgain)?;
                let struck = self.world.faults().strikes_with(Some(what.domain), Fault::Map);
                struck.map_or(Ok(()), |verdict| Err(Refused(verdict.code)))?;
                let (handle, page) = self.world.map(self.id, *what)?;
                Ok(SimMapping { world: self.world.clone(), by: self.id, handle, page })
            })
        }));
    }

    fn unmap(&self, pages: &mut Vec<SimMapping>) {
        if self.is_over() {
            return pages.clear();
        }
        for page in pages.drain(..) {
            point();
            of_world(|| self.world.unmap(self.id, page.handle));
        }
    }

    fn copy(&self, moves: &[Move], into: &mut Vec<Result<(), Refused>>) {
        // What grows here is the product's.
        into.extend(moves.iter().map(|what| {
            for at in [what.ours_at, what.theirs_at] {
                assert!(
                    usize::from(at) + usize::from(what.bytes) <= PAGE_BYTES,
                    "{:?} copies over a page's end: {at} + {}",
                    self.id,
                    what.bytes
                );
            }
            // Others run between two copies of a batch, as on other processors they do.
            point();
            of_world(|| self.copy_one(what))
        }));
        point();
    }

    fn now(&self) -> Instant {
        self.world.now()
    }

    /// Returns at once, as Xen may: the scheduler of the simulation sleeps for the domain, between its turns.
    fn wait(&self, _until: Option<Instant>) {}

    fn kick(&self) -> Kick {
        let kicked = self.kicked.clone();
        Arc::new(move || kicked.store(true, Ordering::Relaxed))
    }

    fn say(&self, bytes: &[u8]) {
        of_world(|| self.world.say(self.id, bytes));
    }

    fn store_ring(&self) -> (&Page, Port) {
        (&self.store.0, self.store.1)
    }

    fn stop(&self, reason: Stop) -> ! {
        self.world.set_stopped(self.id, reason);
        std::panic::panic_any(Stopped(reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::store::Store;

    const SELF: DomId = DomId(1);

    fn view() -> (World, SimXen) {
        let mut random = Random::new(1);
        let world = World::new(random.fork());
        let store = Store::new(&world, random.fork());
        world.create(SELF);
        store.introduce(SELF);
        let xen = SimXen::new(&world, SELF);
        (world, xen)
    }

    #[test]
    #[should_panic(expected = "lent a page twice")]
    fn lending_twice_ends_the_test() {
        let (_, xen) = view();
        let page = PageRef::alone().unwrap();
        xen.lend(&page, DomId(0), Access::ReadWrite).unwrap();
        let _ = xen.lend(&page, DomId(0), Access::ReadWrite);
    }

    #[test]
    #[should_panic(expected = "dropped a mapping")]
    fn a_forgotten_mapping_ends_the_test() {
        let (world, xen) = view();
        let page = PageRef::alone().unwrap();
        let grant = world.lend(DomId(0), &page, SELF, Access::ReadOnly).unwrap();
        let mut got = Vec::new();
        xen.map(&[Foreign { domain: DomId(0), grant, access: Access::ReadOnly }], &mut got);
        drop(got);
    }

    #[test]
    #[should_panic(expected = "which is not open")]
    fn notifying_a_closed_port_ends_the_test() {
        let (_, xen) = view();
        let port = xen.alloc_unbound(DomId(0)).unwrap();
        xen.close(port);
        xen.notify(port);
    }

    #[test]
    #[should_panic(expected = "over a page's end")]
    fn copying_over_the_end_ends_the_test() {
        let (_, xen) = view();
        let what = Move {
            ours: PageRef::alone().unwrap(),
            ours_at: 4000,
            domain: DomId(0),
            grant: GrantRef(8),
            theirs_at: 0,
            bytes: 97,
            way: xen::port::Way::In,
        };
        xen.copy(&[what], &mut Vec::new());
    }

    #[test]
    fn a_budgeted_fault_strikes_and_ends() {
        let (world, xen) = view();
        world.faults().allow_as(Fault::AllocUnbound, "alloc_unbound: ENOSPC", 2, 1);
        assert_eq!(xen.alloc_unbound(DomId(0)), Err(Refused(-28)));
        assert_eq!(xen.alloc_unbound(DomId(0)), Err(Refused(-28)));
        assert!(xen.alloc_unbound(DomId(0)).is_ok());
        assert_eq!(world.faults().injected(Fault::AllocUnbound), 2);
    }
}
