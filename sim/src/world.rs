//! The hypervisor: domains that live, die and are gone, a clock that moves only when all sleep, consoles.
//!
//! A [`World`] is a handle; clones mean the same world. Ports are in [`event`](crate::event), grant tables in
//! [`grant`](crate::grant). Guests and backends of the simulation call the world directly, naming the domain they act
//! for; the domain under test goes through [`SimXen`](crate::handle::SimXen), which adds the strictness.

use std::cell::{Ref, RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{self, Rc};

use xen::page::PageRef;
use xen::port::{DomId, Instant, Port, Stop};

use crate::delay::Effort;
use crate::event::Channel;
use crate::fault::Faults;
use crate::grant::{Grants, Mapped};
use crate::promise::Promises;
use crate::random::Random;

/// dom0.
pub const DOM0: DomId = DomId(0);

/// The errno of a domain that does not exist.
pub(crate) const ESRCH: i16 = -3;

/// Where a domain is in its life. Gone ones are no longer in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It runs.
    Alive,
    /// It was destroyed, but a page of it is still mapped elsewhere: `xl list` shows it as a zombie.
    Dying,
}

/// What a domain holds of the hypervisor's things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Holdings {
    /// Pages of others that it has mapped.
    pub mappings: usize,
    /// Pages it granted to others.
    pub grants: usize,
    /// Its event channel ports.
    pub ports: usize,
}

pub(crate) struct Domain {
    pub life: Life,
    pub ports: BTreeMap<u32, Channel>,
    pub pending: BTreeSet<u32>,
    /// Ports whose events go to another vCPU than the first.
    pub vcpus: BTreeMap<u32, usize>,
    pub grants: Grants,
    pub mappings: BTreeMap<u64, Mapped>,
    pub console: Vec<u8>,
    pub store: Option<(PageRef, Port)>,
    pub stopped: Option<Stop>,
}

impl Domain {
    /// To which vCPU the events of this port go.
    pub fn vcpu(&self, port: u32) -> usize {
        self.vcpus.get(&port).copied().unwrap_or(0)
    }
}

pub(crate) struct Hypervisor {
    pub now: Instant,
    pub domains: BTreeMap<DomId, Domain>,
    pub faults: Faults,
    pub activity: u64,
    pub handles: u64,
    pub promises: Promises,
    pub effort: Effort,
    pub effort_alone: Effort,
}

/// One Xen.
#[derive(Clone)]
pub struct World(Rc<RefCell<Hypervisor>>);

/// A world that ends without being waited for.
#[derive(Clone)]
pub(crate) struct Weak(rc::Weak<RefCell<Hypervisor>>);

impl Weak {
    pub fn upgrade(&self) -> Option<World> {
        self.0.upgrade().map(World)
    }
}

impl World {
    /// A world with only dom0 in it.
    pub fn new(random: Random) -> Self {
        let world = World(Rc::new(RefCell::new(Hypervisor {
            // Not 0: a product that takes 0 for "never" would not be found out.
            now: Instant(1_000_000_000),
            domains: BTreeMap::new(),
            faults: Faults::new(random),
            activity: 1,
            handles: 1,
            promises: Promises::default(),
            effort: Effort::default(),
            effort_alone: Effort::default(),
        })));
        world.create(DOM0);
        crate::fault::scarce_in(&world);
        world
    }

    pub(crate) fn downgrade(&self) -> Weak {
        Weak(Rc::downgrade(&self.0))
    }

    /// A new domain. Its number must be free: a zombie still holds its own.
    pub fn create(&self, id: DomId) {
        let mut xen = self.hypervisor();
        assert!(!xen.domains.contains_key(&id), "{id:?} exists already, alive or as a zombie");
        xen.domains.insert(
            id,
            Domain {
                life: Life::Alive,
                ports: BTreeMap::new(),
                pending: BTreeSet::new(),
                vcpus: BTreeMap::new(),
                grants: Grants::default(),
                mappings: BTreeMap::new(),
                console: Vec::new(),
                store: None,
                stopped: None,
            },
        );
        xen.activity += 1;
    }

    /// Kills a domain. Its ports close and its mappings end; what others have mapped of it keeps it as a zombie.
    pub fn destroy(&self, id: DomId) {
        let (ports, mappings): (Vec<u32>, Vec<u64>) = {
            let mut xen = self.hypervisor();
            let Some(domain) = xen.domains.get_mut(&id).filter(|domain| domain.life == Life::Alive) else { return };
            domain.life = Life::Dying;
            domain.store = None;
            (domain.ports.keys().copied().collect(), domain.mappings.keys().copied().collect())
        };
        for port in ports {
            self.close(id, Port(port));
        }
        for mapping in mappings {
            self.unmap(id, mapping);
        }
        self.bury(id);
    }

    /// Takes a dying domain out of the table once nobody has its pages mapped.
    pub(crate) fn bury(&self, id: DomId) {
        let mut xen = self.hypervisor();
        if xen.domains.get(&id).is_some_and(|domain| domain.life == Life::Dying && !domain.grants.pinned()) {
            xen.domains.remove(&id);
            xen.promises.forget(id);
        }
        xen.activity += 1;
    }

    /// Where the domain is in its life; `None` when it is gone.
    pub fn life(&self, id: DomId) -> Option<Life> {
        self.look().domains.get(&id).map(|domain| domain.life)
    }

    /// Whether it runs.
    pub fn alive(&self, id: DomId) -> bool {
        self.life(id) == Some(Life::Alive)
    }

    /// What the domain holds. All zero for one that is gone.
    pub fn holdings(&self, id: DomId) -> Holdings {
        self.look().domains.get(&id).map_or(Holdings::default(), |domain| Holdings {
            mappings: domain.mappings.len(),
            grants: domain.grants.len(),
            ports: domain.ports.len(),
        })
    }

    /// How many pages of `whose` the domain `by` has mapped.
    pub fn mapped_by(&self, by: DomId, whose: DomId) -> usize {
        let xen = self.look();
        xen.domains.get(&by).map_or(0, |domain| domain.mappings.values().filter(|m| m.domain == whose).count())
    }

    /// System time.
    pub fn now(&self) -> Instant {
        self.look().now
    }

    /// Moves the clock; only the scheduler does, and only when all sleep.
    pub fn set_now(&self, now: Instant) {
        let mut xen = self.hypervisor();
        assert!(now >= xen.now, "time went backwards");
        xen.now = now;
        xen.activity += 1;
    }

    /// What the domain under test has done.
    pub fn effort(&self) -> Effort {
        self.look().effort
    }

    /// What it has done in turns at whose begin no lower disk owed it an answer.
    pub fn effort_alone(&self) -> Effort {
        self.look().effort_alone
    }

    /// It had a turn with so many touches.
    pub(crate) fn count_turn(&self, touches: u64, alone: bool) {
        let mut xen = self.hypervisor();
        xen.effort.add(touches);
        if alone {
            xen.effort_alone.add(touches);
        }
    }

    /// Counts everything that may wake somebody. An actor that had nothing to do at this count still has nothing.
    pub fn activity(&self) -> u64 {
        self.look().activity
    }

    /// Tells the scheduler that something changed that is not in the hypervisor.
    pub fn stir(&self) {
        self.hypervisor().activity += 1;
    }

    /// The refusals.
    pub fn faults(&self) -> RefMut<'_, Faults> {
        RefMut::map(self.hypervisor(), |xen| &mut xen.faults)
    }

    /// Everything the domain said, with what is no UTF-8 replaced.
    pub fn console(&self, id: DomId) -> String {
        let xen = self.look();
        xen.domains.get(&id).map_or(String::new(), |domain| String::from_utf8_lossy(&domain.console).into_owned())
    }

    pub(crate) fn say(&self, id: DomId, bytes: &[u8]) {
        if let Some(domain) = self.hypervisor().domains.get_mut(&id) {
            domain.console.extend_from_slice(bytes);
        }
    }

    /// Gives the domain the page and the port that it shares with xenstored.
    pub(crate) fn set_store(&self, id: DomId, page: PageRef, port: Port) {
        self.hypervisor().domains.get_mut(&id).expect("no such domain").store = Some((page, port));
    }

    /// That page and port.
    pub(crate) fn store(&self, id: DomId) -> Option<(PageRef, Port)> {
        self.look().domains.get(&id)?.store.clone()
    }

    /// Why the domain ended, if it did.
    pub fn stopped(&self, id: DomId) -> Option<Stop> {
        self.look().domains.get(&id)?.stopped
    }

    pub(crate) fn set_stopped(&self, id: DomId, reason: Stop) {
        if let Some(domain) = self.hypervisor().domains.get_mut(&id) {
            domain.stopped = Some(reason);
        }
    }

    pub(crate) fn hypervisor(&self) -> RefMut<'_, Hypervisor> {
        self.0.borrow_mut()
    }

    pub(crate) fn look(&self) -> Ref<'_, Hypervisor> {
        self.0.borrow()
    }
}

#[cfg(test)]
mod tests {
    use xen::port::{Access, Foreign};

    use super::*;

    #[test]
    fn a_zombie_stays_as_long_as_its_page_is_mapped() {
        let world = World::new(Random::new(1));
        let (guest, driver) = (DomId(5), DomId(1));
        world.create(guest);
        world.create(driver);
        let page = PageRef::alone().unwrap();
        let grant = world.lend(guest, &page, driver, Access::ReadWrite).unwrap();
        let (handle, _) = world.map(driver, Foreign { domain: guest, grant, access: Access::ReadWrite }).unwrap();
        world.destroy(guest);
        assert_eq!(world.life(guest), Some(Life::Dying));
        world.unmap(driver, handle);
        assert_eq!(world.life(guest), None);
        world.create(guest);
        assert_eq!(world.holdings(guest), Holdings::default());
    }
}
