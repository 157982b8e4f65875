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
use core::future::poll_fn;
use core::ops::Deref;
use core::task::{Context, Poll};

use drivers::device::lowers::Lowers;
use drivers::disk::{Device, Info};
use drivers::stack::Stack;
use drivers::target::{OpenError, errno};
use xen::limits::VBDS;
use xen::port::Xen;
use xen::sync::Bell;

use crate::attach::Key;
use crate::queue::Handle;
use crate::stats::Stats;

/// Who made a minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A message; it is taken away by one too.
    Message,
    /// The directory of this disk; it goes with the directory's task.
    Directory(Key),
}

/// What a minor has of its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No image yet.
    Attached,
    /// The image is open, and requests are taken.
    Open,
    /// No new requests are taken; those in flight go on.
    Pausing,
    /// No request is in flight, the image is closed (a RAM disk is kept), and rings wait.
    Paused,
    /// As [`Paused`](State::Paused), after a RESUME that failed.
    ResumeFailed,
    /// No new requests are taken; to be closed once none is in flight.
    Closing,
    /// The image was closed; rings that are still there get errors.
    Closed,
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
    in_flight: Cell<usize>,
    users: Cell<usize>,
    /// The rings served now.
    pub rings: RefCell<Vec<Rc<Handle>>>,
    /// What happened on it.
    pub stats: Rc<Stats>,
    /// Rings when the state changed, or the last request in flight ended.
    pub changed: Bell,
    registry: Weak<Minors<X>>,
}

/// All minors, by number.
pub struct Minors<X: Xen>(RefCell<BTreeMap<u16, Rc<Minor<X>>>>);

impl<X: Xen> Default for Minors<X> {
    fn default() -> Self {
        Minors(RefCell::default())
    }
}

/// Minors are below this, as blktap's are (`MAX_DEVICES` of its allocator).
pub const MINORS_MAX: u16 = 16384;

impl<X: Xen> Minors<X> {
    /// The minor of this number.
    pub fn get(&self, number: u16) -> Option<Rc<Minor<X>>> {
        self.0.borrow().get(&number).cloned()
    }

    /// All of them, by number.
    pub fn all(&self) -> Vec<Rc<Minor<X>>> {
        self.0.borrow().values().cloned().collect()
    }

    /// A new minor: of this number, or of the lowest that is free.
    pub fn attach(self: &Rc<Self>, number: Option<u16>, by: By) -> Result<Rc<Minor<X>>, OpenError> {
        let mut minors = self.0.borrow_mut();
        if minors.len() >= VBDS {
            return Err(OpenError::new(errno::ENOMEM, format!("{VBDS} disks are served already")));
        }
        let number = match number {
            Some(number) if number >= MINORS_MAX => {
                return Err(OpenError::new(errno::EINVAL, format!("minor {number}: the last is {}", MINORS_MAX - 1)));
            }
            Some(number) if minors.contains_key(&number) => {
                return Err(OpenError::new(errno::EEXIST, format!("minor {number} is attached already")));
            }
            Some(number) => number,
            // There are fewer than there are numbers.
            None => (0..MINORS_MAX).find(|number| !minors.contains_key(number)).unwrap_or(0),
        };
        let minor = Rc::new(Minor {
            number,
            by,
            name: RefCell::default(),
            read_only: Cell::new(false),
            state: Cell::new(State::Attached),
            stack: RefCell::default(),
            info: Cell::new(None),
            in_flight: Cell::new(0),
            users: Cell::new(0),
            rings: RefCell::default(),
            stats: Rc::default(),
            changed: Bell::default(),
            registry: Rc::downgrade(self),
        });
        minors.insert(number, minor.clone());
        Ok(minor)
    }

    /// Takes a minor off the table.
    pub fn detach(&self, number: u16) {
        self.0.borrow_mut().remove(&number);
    }
}

impl<X: Xen> Minor<X> {
    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Who made it.
    pub fn by(&self) -> By {
        self.by
    }

    /// What it has of its image.
    pub fn state(&self) -> State {
        self.state.get()
    }

    /// The image's name, `TYPE:SOURCE`; empty while there is none.
    pub fn name(&self) -> String {
        self.name.borrow().clone()
    }

    /// Whether it was opened read-only.
    pub fn is_read_only(&self) -> bool {
        self.read_only.get()
    }

    /// The image, while it is open.
    pub fn stack(&self) -> Option<Rc<Stack<X>>> {
        self.stack.borrow().clone().filter(|_| !matches!(self.state.get(), State::Paused | State::ResumeFailed))
    }

    /// What the image is, or was when it was last open; none if it never was.
    pub fn info(&self) -> Option<Info> {
        if let Some(stack) = self.stack.borrow().as_ref() {
            self.info.set(Some(stack.info()));
        }
        self.info.get()
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Directories and rings that use it.
    pub fn users(&self) -> usize {
        self.users.get()
    }

    /// Opens an image. The caller has seen that there is none.
    pub async fn open(&self, lowers: &Lowers<X>, name: &str, read_only: bool) -> Result<(), OpenError> {
        let stack = Stack::open(lowers, name).await?;
        *self.stack.borrow_mut() = Some(Rc::new(stack));
        *self.name.borrow_mut() = name.into();
        self.read_only.set(read_only);
        self.info();
        self.enter(State::Open);
        Ok(())
    }

    /// Takes no new requests, waits until none is in flight, and closes the image. The caller has seen that it is open,
    /// or being paused by somebody else already, who then is waited for too.
    ///
    /// False if it was not to be paused any more when the last request ended.
    pub async fn pause(&self) -> bool {
        self.enter(State::Pausing);
        self.drained(State::Pausing).await;
        if self.state.get() == State::Pausing {
            self.info();
            self.put_away();
            self.enter(State::Paused);
        }
        self.state.get() == State::Paused
    }

    /// Opens the image again, or another of the same size under the same rings. The caller has seen that it is paused.
    pub async fn resume(&self, lowers: &Lowers<X>, name: Option<&str>) -> Result<(), OpenError> {
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
        if !matches!(self.state.get(), State::Paused | State::ResumeFailed) {
            return Err(OpenError::new(errno::EBUSY, format!("minor {} was closed meanwhile", self.number)));
        }
        if let (Some(name), false) = (name, same) {
            *self.name.borrow_mut() = name.into();
            self.stack.borrow_mut().take();
        }
        match result {
            Ok(stack) => {
                *self.stack.borrow_mut() = Some(stack);
                self.enter(State::Open);
                Ok(())
            }
            Err(error) => {
                self.enter(State::ResumeFailed);
                Err(error)
            }
        }
    }

    /// The same image may have grown meanwhile, as it may while it is open; another one must be of the same size.
    async fn reopen(&self, lowers: &Lowers<X>, name: &str, same: bool) -> Result<Rc<Stack<X>>, OpenError> {
        let stack = Stack::open(lowers, name).await?;
        let (old, new) = (self.info.get().map_or(0, |info| info.sectors), stack.info().sectors);
        if new < old || new > old && !same {
            let text = format!("target \"{name}\": {new} sectors, but minor {} has {old}", self.number);
            return Err(OpenError::new(errno::EMEDIUMTYPE, text));
        }
        Ok(Rc::new(stack))
    }

    /// Closes the image when no request is in flight any more, or at once with `force`; requests that come later get
    /// errors.
    pub async fn close(&self, force: bool) {
        self.info();
        self.enter(State::Closing);
        if !force {
            self.drained(State::Closing).await;
        }
        self.stack.borrow_mut().take();
        self.name.borrow_mut().clear();
        self.enter(State::Closed);
    }

    /// Waits while it is in this state and requests are in flight.
    async fn drained(&self, state: State) {
        let mut heard = self.changed.rung();
        poll_fn(|cx| {
            // Listens first, for what happens after the look.
            while self.changed.poll(&mut heard, cx).is_ready() {}
            if self.in_flight.get() > 0 && self.state.get() == state { Poll::Pending } else { Poll::Ready(()) }
        })
        .await
    }

    fn put_away(&self) {
        let mut stack = self.stack.borrow_mut();
        if !stack.as_ref().is_some_and(|stack| stack.is_volatile()) {
            stack.take();
        }
    }

    fn enter(&self, state: State) {
        self.state.set(state);
        self.changed.ring();
    }

    /// Whether requests are to stay on their rings. Tells of a change by `cx`.
    pub fn is_held(&self, heard: &mut u64, cx: &mut Context<'_>) -> bool {
        while self.changed.poll(heard, cx).is_ready() {}
        matches!(self.state.get(), State::Pausing | State::Paused | State::ResumeFailed | State::Closing)
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
