//! A hypervisor that does what it is told and remembers what it was asked. What the real one would punish is a panic.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use xen::domain::Domain;
use xen::exec::Kick;
use xen::memory::Budget;
use xen::page::{Page, PageRef};
use xen::port::{Access, DomId, Foreign, GrantRef, Instant, Move, Port, PortState, Refused, StillInUse, Stop, Xen};

/// The other domain of all tests.
pub const PEER: DomId = DomId(7);
/// The port to xenstored, which nobody opens or closes.
pub const STORE_PORT: Port = Port(1);

/// What was asked, and what is to be answered.
pub struct Record {
    pub ports: RefCell<BTreeSet<u32>>,
    pub pending: RefCell<BTreeSet<u32>>,
    pub notified: RefCell<Vec<u32>>,
    /// Bindings and offers that are still to succeed.
    pub ports_left: Cell<usize>,
    /// Grants by number: the page's address, and how.
    pub granted: RefCell<BTreeMap<u32, (u64, DomId, Access)>>,
    /// Grants that the other side still uses.
    pub used: RefCell<BTreeSet<u32>>,
    /// Grants that are still to succeed.
    pub grants_left: Cell<usize>,
    next_grant: Cell<u32>,
    /// By the peer's grant: what maps and copies of it come to, first first; then they succeed.
    pub answers: RefCell<BTreeMap<u32, VecDeque<Refused>>>,
    /// The grants of each map, and how many are mapped.
    pub maps: RefCell<Vec<Vec<u32>>>,
    pub mapped: Cell<usize>,
    /// The grants of each copy.
    pub copies: RefCell<Vec<Vec<u32>>>,
    pub now: Cell<u64>,
    page: PageRef,
}

/// A handle on it.
#[derive(Clone)]
pub struct Fake(pub Rc<Record>);

impl std::ops::Deref for Fake {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.0
    }
}

/// A domain on a fake, and the fake.
pub fn domain() -> (Rc<Domain<Fake>>, Fake) {
    let fake = Fake(Rc::new(Record {
        ports: RefCell::default(),
        pending: RefCell::default(),
        notified: RefCell::default(),
        ports_left: Cell::new(usize::MAX),
        granted: RefCell::default(),
        used: RefCell::default(),
        grants_left: Cell::new(usize::MAX),
        next_grant: Cell::new(8),
        answers: RefCell::default(),
        maps: RefCell::default(),
        mapped: Cell::new(0),
        copies: RefCell::default(),
        now: Cell::new(0),
        page: PageRef::alone().unwrap(),
    }));
    (Domain::new(fake.clone(), Budget::new(|| (0, usize::MAX)), Arc::default()), fake)
}

/// Hands out events and runs every task until all sleep.
pub fn run(domain: &Domain<Fake>) {
    domain.look();
    while domain.exec.turn(&mut |_| 0) {}
}

/// Polls a future once, for nobody.
pub fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

impl Fake {
    /// Maps and copies of this grant come to that, one after the other.
    pub fn answer(&self, grant: u32, with: impl IntoIterator<Item = Refused>) {
        self.answers.borrow_mut().entry(grant).or_default().extend(with);
    }

    fn verdict(&self, grant: GrantRef) -> Result<(), Refused> {
        let mut answers = self.answers.borrow_mut();
        answers.get_mut(&grant.0).and_then(VecDeque::pop_front).map_or(Ok(()), Err)
    }

    fn open(&self) -> Result<Port, Refused> {
        let left = self.ports_left.get().checked_sub(1).ok_or(Refused(-28))?;
        self.ports_left.set(left);
        let mut ports = self.ports.borrow_mut();
        let port = (2..).find(|port| !ports.contains(port)).unwrap();
        ports.insert(port);
        Ok(Port(port))
    }
}

impl Xen for Fake {
    type Mapping = PageRef;

    fn alloc_unbound(&self, _: DomId) -> Result<Port, Refused> {
        self.open()
    }

    fn bind(&self, _: DomId, _: Port) -> Result<Port, Refused> {
        let port = self.open()?;
        self.pending.borrow_mut().insert(port.0);
        Ok(port)
    }

    fn close(&self, port: Port) {
        assert!(self.ports.borrow_mut().remove(&port.0), "{port:?} is not open");
        self.pending.borrow_mut().remove(&port.0);
    }

    fn notify(&self, port: Port) {
        assert!(port == STORE_PORT || self.ports.borrow().contains(&port.0), "{port:?} is not open");
        self.notified.borrow_mut().push(port.0);
    }

    fn peer(&self, port: Port) -> PortState {
        if self.ports.borrow().contains(&port.0) { PortState::Bound } else { PortState::Closed }
    }

    fn take_events(&self, each: &mut dyn FnMut(Port)) {
        let pending = std::mem::take(&mut *self.pending.borrow_mut());
        pending.into_iter().for_each(|port| each(Port(port)));
    }

    fn lend(&self, page: &PageRef, to: DomId, access: Access) -> Result<GrantRef, Refused> {
        let left = self.grants_left.get().checked_sub(1).ok_or(Refused(-13))?;
        self.grants_left.set(left);
        let grant = self.next_grant.replace(self.next_grant.get() + 1);
        self.granted.borrow_mut().insert(grant, (page.address(), to, access));
        Ok(GrantRef(grant))
    }

    fn reclaim(&self, grant: GrantRef) -> Result<(), StillInUse> {
        if self.used.borrow().contains(&grant.0) {
            return Err(StillInUse);
        }
        assert!(self.granted.borrow_mut().remove(&grant.0).is_some(), "{grant:?} does not stand");
        Ok(())
    }

    fn map(&self, pages: &[Foreign], into: &mut Vec<Result<PageRef, Refused>>) {
        self.maps.borrow_mut().push(pages.iter().map(|page| page.grant.0).collect());
        into.extend(pages.iter().map(|page| {
            self.verdict(page.grant)?;
            self.mapped.set(self.mapped.get() + 1);
            Ok(PageRef::alone().unwrap())
        }));
    }

    fn unmap(&self, pages: &mut Vec<PageRef>) {
        self.mapped.set(self.mapped.get() - pages.drain(..).count());
    }

    fn copy(&self, moves: &[Move], into: &mut Vec<Result<(), Refused>>) {
        self.copies.borrow_mut().push(moves.iter().map(|one| one.grant.0).collect());
        into.extend(moves.iter().map(|one| self.verdict(one.grant)));
    }

    fn now(&self) -> Instant {
        Instant(self.now.get())
    }

    fn wait(&self, _: Option<Instant>) {}

    fn kick(&self) -> Kick {
        Arc::new(|| ())
    }
    fn say(&self, _: &[u8]) {}

    fn store_ring(&self) -> (&Page, Port) {
        (&self.page, STORE_PORT)
    }

    fn stop(&self, reason: Stop) -> ! {
        panic!("stopped: {reason:?}")
    }
}
