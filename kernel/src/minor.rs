//! Minors: what tapdisk's messages call a VBD. A minor has a name, the image opened under it, and the rings that are
//! served from it; an image can be held (PAUSE), exchanged (RESUME) and closed under its rings.
//!
//! A minor is made by a message (ATTACH) and stays until one takes it away (DETACH), or it is made for a directory of
//! xenstore that names an image, and then lives as long as the directory's task.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::rc::{Rc, Weak};
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::Deref;
use core::task::Context;
use protocol::errno::Errno;

use drivers::device::lowers::Lowers;
use drivers::device::ram::Ram;
use drivers::disk::{Device, Error, Info};
use drivers::stack::Stack;
use drivers::target::OpenError;
use protocol::session::{State, Verdict, verdict};
use protocol::tapdisk::Kind;
use xen::domain::Domain;
use xen::limits::VBDS;
use xen::port::{Instant, Xen};
use xen::sync::{Bell, Listener};

use crate::attach::Key;
use crate::failures::{Failures, Last};
use crate::queue::Handle;
use crate::seat::{Follows, Seat};
use crate::stats::Stats;

/// Who made a minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A message; it is taken away by one too.
    Message,
    /// The directory of this disk; it goes with the directory's task.
    Directory(Key),
}

/// One minor.
pub struct Minor<X: Xen> {
    number: u16,
    by: By,
    name: RefCell<String>,
    read_only: Cell<bool>,
    state: Cell<State>,
    stack: RefCell<Option<Rc<Stack<X>>>>,
    /// What the image was when it was last open.
    info: Cell<Option<Info>>,
    /// How often its image was closed: what was begun with one image must not go on with the next.
    life: Cell<u64>,
    /// How many messages were at work on it, the present one included: who waited finds out whether it still is the one.
    works: Cell<u64>,
    in_flight: Cell<usize>,
    users: Cell<usize>,
    /// The rings served now.
    pub rings: RefCell<Vec<Rc<Handle>>>,
    /// What happened on it.
    pub stats: Rc<Stats>,
    /// Its rings that other vCPUs serve.
    pub(crate) seats: RefCell<Vec<Rc<Seat>>>,
    /// Counts what they were told.
    word: Cell<u64>,
    /// Rings when they told what they had done.
    pub(crate) counted: Bell,
    /// Rings when the state changed, or the last request in flight ended.
    pub changed: Bell,
    /// By cause: the store said so, it was gone, it was full, the image is damaged, any other.
    failed: [Last; 5],
    registry: Weak<Minors<X>>,
}

/// All minors, by number.
pub struct Minors<X: Xen> {
    table: RefCell<BTreeMap<u16, Rc<Minor<X>>>>,
    /// The domain is to end: there will be no more of them.
    closed: Cell<bool>,
    /// Failures of their stores.
    pub failures: Failures,
}

impl<X: Xen> Default for Minors<X> {
    fn default() -> Self {
        Minors { table: RefCell::default(), closed: Cell::new(false), failures: Failures::default() }
    }
}

/// Minors are below this, as blktap's are (`MAX_DEVICES` of its allocator).
pub const MINORS_MAX: u16 = 16384;

impl<X: Xen> Minors<X> {
    /// The minor of this number.
    pub fn get(&self, number: u16) -> Option<Rc<Minor<X>>> {
        self.table.borrow().get(&number).cloned()
    }

    /// All of them, by number.
    pub fn all(&self) -> Vec<Rc<Minor<X>>> {
        self.table.borrow().values().cloned().collect()
    }

    /// A new minor: of this number, or of the lowest that is free.
    pub fn attach(self: &Rc<Self>, number: Option<u16>, by: By) -> Result<Rc<Minor<X>>, OpenError> {
        if self.closed.get() {
            return Err(OpenError::new(Errno::ESHUTDOWN, "this domain is about to end"));
        }
        let mut minors = self.table.borrow_mut();
        if minors.len() >= VBDS {
            return Err(OpenError::new(Errno::ENOMEM, format!("{VBDS} disks are served already")));
        }
        let number = match number {
            Some(number) if number >= MINORS_MAX => {
                return Err(OpenError::new(Errno::EINVAL, format!("minor {number}: the last is {}", MINORS_MAX - 1)));
            }
            Some(number) if minors.contains_key(&number) => {
                return Err(OpenError::new(Errno::EEXIST, format!("minor {number} is attached already")));
            }
            Some(number) => number,
            // There are fewer than there are numbers.
            None => (0..MINORS_MAX).find(|number| !minors.contains_key(number)).unwrap_or(0),
        };
        let minor = Minor::new(number, by, Rc::downgrade(self));
        minors.insert(number, minor.clone());
        Ok(minor)
    }

    /// Lets no more be made: between EXIT and the end its client may take time to read the answer, and a disk that was
    /// attached meanwhile would lose what its guest writes.
    pub fn close(&self) {
        self.closed.set(true);
    }

    /// Makes durable what all images know, as far as that works.
    pub async fn settle(&self) {
        for minor in self.all() {
            if let Err(error) = minor.settle().await {
                log::error!("minor {}: what was not flushed is lost: {error}", minor.number);
            }
        }
    }

    /// Takes a minor off the table.
    pub fn detach(&self, number: u16) {
        self.table.borrow_mut().remove(&number);
    }
}

impl<X: Xen> Minor<X> {
    fn new(number: u16, by: By, registry: Weak<Minors<X>>) -> Rc<Self> {
        Rc::new(Minor {
            number,
            by,
            name: RefCell::default(),
            read_only: Cell::new(false),
            state: Cell::new(State::Attached),
            stack: RefCell::default(),
            info: Cell::new(None),
            life: Cell::new(0),
            works: Cell::new(0),
            in_flight: Cell::new(0),
            users: Cell::new(0),
            rings: RefCell::default(),
            stats: Rc::default(),
            seats: RefCell::default(),
            word: Cell::new(0),
            counted: Bell::default(),
            changed: Bell::default(),
            failed: Default::default(),
            registry,
        })
    }

    /// What stands for a minor on another vCPU.
    pub(crate) fn mirror(follows: &Follows) -> Rc<Self> {
        let minor = Minor::new(follows.number, By::Message, Weak::new());
        minor.follow(follows);
        minor
    }

    /// Stands as the minor does for which it stands.
    pub(crate) fn follow(&self, follows: &Follows) {
        self.life.set(follows.life);
        *self.stack.borrow_mut() = follows.disk.as_ref().map(|disk| Rc::new(Stack::resident_in(disk.clone())));
        self.enter(follows.state);
    }

    /// Nothing is in flight: a disk that is being closed is nobody's here from now on.
    pub(crate) fn let_disk_go(&self) {
        if self.state.get() == State::Closing {
            self.stack.borrow_mut().take();
        }
    }

    /// How it stands, for those who follow it.
    pub(crate) fn follows(&self) -> Follows {
        let (word, number, state, life) = (self.word.get(), self.number, self.state.get(), self.life.get());
        Follows { word, number, state, life, disk: self.disk() }
    }

    /// Its disk, if that is all in our own memory: what other vCPUs can serve.
    pub fn disk(&self) -> Option<Ram> {
        self.stack.borrow().as_ref().and_then(|stack| stack.resident().cloned())
    }

    /// Rings that other vCPUs serve.
    pub fn seated(&self) -> usize {
        self.seats.borrow().len()
    }

    /// A ring that another vCPU was to serve has ended, or never was one: nobody shall wait for its word.
    pub(crate) fn stand_up(&self, seat: &Rc<Seat>) {
        self.seats.borrow_mut().retain(|other| !Rc::ptr_eq(other, seat));
        self.counted.ring();
        self.changed.ring();
    }

    fn is_seated(&self, seat: &Rc<Seat>) -> bool {
        self.seats.borrow().iter().any(|other| Rc::ptr_eq(other, seat))
    }

    /// What was done on all its rings, those that other vCPUs serve included.
    pub async fn total(&self) -> Stats {
        let mut counted = self.counted.listen();
        let asked: Vec<_> = self.seats.borrow().iter().map(|seat| (seat.clone(), seat.ask())).collect();
        while asked.iter().any(|(seat, asked)| self.is_seated(seat) && !seat.has_told(*asked)) {
            counted.wait().await;
        }
        let total = self.stats.copy();
        self.seats.borrow().iter().for_each(|seat| total.add(&seat.stats.borrow()));
        total
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Who made it.
    pub fn by(&self) -> By {
        self.by
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state.get()
    }

    /// Whether guests' rings can be served from it, now or when it goes on.
    pub fn is_servable(&self) -> bool {
        verdict(Kind::XenblkifConnect, self.state.get()) == Verdict::Do
    }

    /// The image's name, `TYPE:SOURCE`; empty while there is none.
    pub fn name(&self) -> String {
        self.name.borrow().clone()
    }

    /// Whether it was opened read-only.
    pub fn is_read_only(&self) -> bool {
        self.read_only.get()
    }

    /// How often its image was closed. A ring is of one life: the image that is opened in the next one may be another,
    /// smaller, or read-only, and a guest that was not told would go on as if it were the same.
    pub fn life(&self) -> u64 {
        self.life.get()
    }

    /// The image, for a request that was taken in this life of the minor.
    pub fn stack(&self, life: u64) -> Option<Rc<Stack<X>>> {
        match self.state.get() {
            _ if life != self.life.get() => None,
            State::Open | State::Pausing | State::Closing => self.stack.borrow().clone(),
            _ => None,
        }
    }

    /// What the image is, or was when it was last open; none if it never was.
    pub fn info(&self) -> Option<Info> {
        if let Some(stack) = self.stack.borrow().as_ref() {
            self.info.set(Some(stack.info()));
        }
        self.info.get()
    }

    /// The store under it failed a request.
    pub fn store_failed(&self, error: Error, now: Instant) {
        let last = match error {
            Error::Medium => &self.failed[0],
            Error::Gone => &self.failed[1],
            Error::NoSpace => &self.failed[2],
            Error::Corrupt(_) => &self.failed[3],
            Error::ReadOnly | Error::OutOfRange | Error::Unsupported => &self.failed[4],
        };
        if let Some(registry) = self.registry.upgrade() {
            registry.failures.failed(self.number, error, last, now);
        }
    }

    /// Bytes of memory that its image is.
    pub fn memory_bytes(&self) -> u64 {
        self.stack.borrow().as_ref().filter(|stack| stack.is_volatile()).map_or(0, |stack| stack.info().sectors * 512)
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Directories and rings that use it.
    pub fn users(&self) -> usize {
        self.users.get()
    }

    /// OPEN, where its verdict is to do it.
    pub async fn open(&self, lowers: &Lowers<X>, name: &str, read_only: bool) -> Result<(), OpenError> {
        self.begin(Kind::Open);
        let result = Stack::open(lowers, name, read_only).await;
        let well = result.is_ok();
        let result = result.map(|stack| {
            *self.stack.borrow_mut() = Some(Rc::new(stack));
            *self.name.borrow_mut() = name.into();
            self.read_only.set(read_only);
            self.info();
        });
        self.end(well);
        result
    }

    /// PAUSE, where its verdict is to do it: takes no new requests, waits until none is in flight, and closes the image
    /// (a disk in our own memory is kept). False if the minor was closed meanwhile. Dropped before its end, or if the
    /// image cannot make durable what it knows, it is called off, and requests are taken again.
    pub async fn pause(&self, domain: &Domain<X>) -> Result<bool, Error> {
        let work = self.begin(Kind::Pause);
        let _off = CalledOff(self, work);
        self.drained(work).await;
        if !self.is_at_work(work) {
            return Ok(false);
        }
        let stack = self.stack.borrow().clone();
        if let Some(stack) = stack {
            // Called off in the middle of this, it would keep what it had taken of the store.
            domain.apart(async move { stack.close().await }).await?;
        }
        if !self.is_at_work(work) {
            return Ok(false);
        }
        self.info();
        self.put_away();
        self.end(true);
        Ok(true)
    }

    /// Makes durable what the image knows. To be done before it is let go of.
    pub async fn settle(&self) -> Result<(), Error> {
        let stack = self.stack.borrow().clone();
        match stack {
            Some(stack) => stack.close().await,
            None => Ok(()),
        }
    }

    /// RESUME, where its verdict is to do it: opens the image again, or another of the same size under the same rings.
    /// After an error it stays paused, under the new name; but a disk in our own memory stays what it is, for nobody
    /// could open it again.
    pub async fn resume(&self, lowers: &Lowers<X>, name: Option<&str>) -> Result<(), OpenError> {
        let work = self.begin(Kind::Resume);
        let same = name.is_none_or(|name| *name == *self.name.borrow());
        // A disk in our own memory is what its stack holds.
        let kept = self.stack.borrow().clone().filter(|_| same);
        let result = match kept {
            Some(kept) => Ok(kept),
            None => {
                let name = name.map_or_else(|| self.name(), String::from);
                self.reopen(lowers, &name, same).await
            }
        };
        if !self.is_at_work(work) {
            return Err(OpenError::new(Errno::EBUSY, format!("minor {} was closed meanwhile", self.number)));
        }
        let kept = result.is_err() && self.stack.borrow().is_some();
        if let (Some(name), false) = (name, same || kept) {
            *self.name.borrow_mut() = name.into();
        }
        let well = result.is_ok();
        let result = result.map(|stack| *self.stack.borrow_mut() = Some(stack));
        self.end(well);
        result
    }

    /// The same image may have grown meanwhile, as it may while it is open; another one must be of the same size. Neither
    /// may be read-only where the image was not.
    async fn reopen(&self, lowers: &Lowers<X>, name: &str, same: bool) -> Result<Rc<Stack<X>>, OpenError> {
        let stack = Stack::open(lowers, name, self.is_read_only()).await?;
        let (old, new) = (self.info.get().map_or(0, |info| info.sectors), stack.info().sectors);
        if new < old || new > old && !same {
            let text = format!("target \"{name}\": {new} sectors, but minor {} has {old}", self.number);
            return Err(OpenError::new(Errno::EMEDIUMTYPE, text));
        }
        if stack.resident().is_none() && !self.seats.borrow().is_empty() {
            let text =
                format!("target \"{name}\": not in memory, but other vCPUs serve rings of minor {}", self.number);
            return Err(OpenError::new(Errno::EMEDIUMTYPE, text));
        }
        let writes = |info: Info| !info.read_only && !self.is_read_only();
        if stack.info().read_only && self.info.get().is_some_and(writes) {
            // Guests were told that they may write; they would lose all they did.
            let text = format!("target \"{name}\": read-only, but minor {} is not", self.number);
            return Err(OpenError::new(Errno::EMEDIUMTYPE, text));
        }
        Ok(Rc::new(stack))
    }

    /// CLOSE, or FORCE_SHUTDOWN with `force`, where its verdict is to do it: takes no new requests and closes the image
    /// when none is in flight any more, or at once; requests that come later get errors.
    pub async fn close(&self, force: bool) {
        self.info();
        let work = self.begin(Kind::Close);
        if !force {
            self.drained(work).await;
            // Nobody could do anything else with it now, and what was flushed is durable.
            if let Err(error) = self.settle().await {
                log::error!("minor {}: closed, but what was not flushed is lost: {error}", self.number);
            }
        }
        if !self.is_at_work(work) {
            // FORCE_SHUTDOWN came meanwhile and closed it; what is there now is the next one's.
            return;
        }
        self.life.set(self.life.get() + 1);
        self.stack.borrow_mut().take();
        self.name.borrow_mut().clear();
        self.end(true);
    }

    /// Waits until it stands elsewhere.
    pub async fn moved(&self, from: State) {
        let mut changed = self.changed.listen();
        while self.state.get() == from {
            changed.wait().await;
        }
    }

    /// Waits while this message is at work and requests are in flight.
    async fn drained(&self, work: u64) {
        let (mut changed, word) = (self.changed.listen(), self.word.get());
        let drained = || self.in_flight.get() == 0 && self.seats.borrow().iter().all(|seat| seat.is_drained(word));
        while !drained() && self.is_at_work(work) {
            changed.wait().await;
        }
    }

    fn put_away(&self) {
        let mut stack = self.stack.borrow_mut();
        if !stack.as_ref().is_some_and(|stack| stack.is_volatile()) {
            stack.take();
        }
    }

    /// A message is at work from now on; its number.
    fn begin(&self, kind: Kind) -> u64 {
        self.works.set(self.works.get() + 1);
        self.enter(self.state.get().begin(kind));
        self.works.get()
    }

    /// Whether this message was not overtaken. Its state alone does not say so: another may have led there again.
    fn is_at_work(&self, work: u64) -> bool {
        self.works.get() == work
    }

    fn end(&self, well: bool) {
        self.enter(self.state.get().end(well));
    }

    fn enter(&self, state: State) {
        self.state.set(state);
        self.word.set(self.word.get() + 1);
        self.seats.borrow().iter().for_each(|seat| seat.follow(self.follows()));
        self.changed.ring();
    }

    /// Whether requests are to stay on the rings of this life. Tells of a change by `cx`; `changed` listens to its
    /// own bell.
    pub fn is_held(&self, life: u64, changed: &mut Listener, cx: &mut Context<'_>) -> bool {
        while changed.poll(cx).is_ready() {}
        life == self.life.get() && !matches!(self.state.get(), State::Open | State::Attached | State::Closed)
    }

    /// Counts a request as in flight, until what is returned is dropped.
    pub fn enter_request(self: &Rc<Self>) -> InFlight<X> {
        self.in_flight.set(self.in_flight.get() + 1);
        InFlight(self.clone())
    }

    /// One more that uses it, until what is returned is dropped.
    pub fn used(self: &Rc<Self>) -> User<X> {
        self.users.set(self.users.get() + 1);
        User(self.clone())
    }
}

/// A PAUSE that waits.
struct CalledOff<'a, X: Xen>(&'a Minor<X>, u64);

impl<X: Xen> Drop for CalledOff<'_, X> {
    fn drop(&mut self) {
        // Once it has ended it stands elsewhere.
        if self.0.is_at_work(self.1) && self.0.state.get() == State::Pausing {
            self.0.end(false);
        }
    }
}

/// A request in flight.
pub struct InFlight<X: Xen>(Rc<Minor<X>>);

impl<X: Xen> Drop for InFlight<X> {
    fn drop(&mut self) {
        let left = self.0.in_flight.get().saturating_sub(1);
        self.0.in_flight.set(left);
        if left == 0 && matches!(self.0.state.get(), State::Pausing | State::Closing) {
            self.0.changed.ring();
        }
    }
}

/// Somebody who uses a minor. A minor that was made for a directory goes with its last user.
pub struct User<X: Xen>(Rc<Minor<X>>);

impl<X: Xen> Deref for User<X> {
    type Target = Rc<Minor<X>>;

    fn deref(&self) -> &Rc<Minor<X>> {
        &self.0
    }
}

impl<X: Xen> Drop for User<X> {
    fn drop(&mut self) {
        let minor = &self.0;
        minor.users.set(minor.users.get().saturating_sub(1));
        if minor.users.get() == 0 && minor.by != By::Message {
            minor.stack.borrow_mut().take();
            if let Some(registry) = minor.registry.upgrade() {
                registry.detach(minor.number);
            }
        }
    }
}
