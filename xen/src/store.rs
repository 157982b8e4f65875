//! Xenstore, as a client: reads, writes, transactions and watches over the ring shared with xenstored.
//!
//! Requests from many tasks are pipelined, at most [`STORE_OUTSTANDING`] at once; answers find their task by id.
//! Watch events are folded per watcher ([`WATCH_PATHS`], XSA-349): a watcher learns what to look at again, never how
//! often it changed. The facts are `io/xs_wire.h` and docs/misc/xenstore.txt of Xen.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::rc::{Rc, Weak};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::ops::Deref;
use core::task::{Poll, Waker};

use protocol::xenstore::{Client, HEADER_BYTES, Header, Kind, PAYLOAD_BYTES, Reason};

use crate::domain::{Domain, count};
use crate::event::Channel;
use crate::limits::{STORE_OUTSTANDING, STORE_TRANSACTION_TRIES, WATCH_PATHS};
use crate::page::Page;
use crate::port::{DomId, Xen};
use crate::sync::{Credits, Signal};

/// A connection to xenstored, or a view of it inside one transaction. Cloning gives another handle.
pub struct Store<X: Xen> {
    wire: Rc<Wire<X>>,
    transaction: u32,
}

impl<X: Xen> Clone for Store<X> {
    fn clone(&self) -> Self {
        Store { wire: self.wire.clone(), transaction: self.transaction }
    }
}

struct Wire<X: Xen> {
    domain: Rc<Domain<X>>,
    channel: Channel<X>,
    ring: RefCell<Client<StorePage<X>>>,
    outgoing: RefCell<VecDeque<u8>>,
    incoming: RefCell<Vec<u8>>,
    waiting: RefCell<BTreeMap<u32, Answer>>,
    watches: RefCell<BTreeMap<u32, Watched>>,
    credits: Credits,
    transactions: Credits,
    serial: Cell<u32>,
}

enum Answer {
    Awaited(Waker),
    /// Nobody waits: the answer is dropped.
    Ignored,
    Here(Result<Vec<u8>, Reason>),
}

struct Watched {
    path: String,
    /// Xenstored has answered that it watches.
    confirmed: bool,
    watchers: Vec<Weak<Watcher>>,
}

struct Watcher {
    below: String,
    changed: RefCell<BTreeSet<String>>,
    signal: Signal,
}

struct StorePage<X: Xen>(Rc<Domain<X>>);

impl<X: Xen> Deref for StorePage<X> {
    type Target = Page;

    fn deref(&self) -> &Page {
        self.0.xen.store_ring().0
    }
}

impl<X: Xen> Store<X> {
    /// Connects, and spawns the task that moves the bytes.
    pub fn connect(domain: &Rc<Domain<X>>) -> Self {
        let (_, port) = domain.xen.store_ring();
        let wire = Rc::new(Wire {
            domain: domain.clone(),
            channel: Channel::given(domain, port),
            ring: RefCell::new(Client::new(StorePage(domain.clone()))),
            outgoing: RefCell::default(),
            incoming: RefCell::default(),
            waiting: RefCell::default(),
            watches: RefCell::default(),
            credits: Credits::new(STORE_OUTSTANDING),
            transactions: Credits::new(1),
            serial: Cell::new(1),
        });
        let task = wire.clone();
        domain.exec.spawn(async move {
            loop {
                task.move_bytes();
                task.channel.wait().await;
            }
        });
        Store { wire, transaction: 0 }
    }

    /// The domain whose connection this is.
    pub fn domain(&self) -> &Rc<Domain<X>> {
        &self.wire.domain
    }

    /// The value of a node, which must be text.
    pub async fn read(&self, path: &str) -> Result<String, Reason> {
        let value = self.request(Kind::Read, &[path, "\0"]).await?;
        String::from_utf8(value).map_err(|_| Reason::Invalid)
    }

    /// As [`read`](Store::read), with a node that is not there as `None`.
    pub async fn read_if_there(&self, path: &str) -> Result<Option<String>, Reason> {
        match self.read(path).await {
            Ok(value) => Ok(Some(value)),
            Err(Reason::NoEntry) => Ok(None),
            Err(reason) => Err(reason),
        }
    }

    /// The names of a node's children.
    pub async fn list(&self, path: &str) -> Result<Vec<String>, Reason> {
        let names = self.request(Kind::Directory, &[path, "\0"]).await?;
        let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        names.map(|name| String::from_utf8(name.to_vec()).map_err(|_| Reason::Invalid)).collect()
    }

    /// Writes a node, making it and its parents if they are not there.
    pub async fn write(&self, path: &str, value: &str) -> Result<(), Reason> {
        self.request(Kind::Write, &[path, "\0", value]).await.map(drop)
    }

    /// Removes a node and all below it.
    pub async fn remove(&self, path: &str) -> Result<(), Reason> {
        self.request(Kind::Rm, &[path, "\0"]).await.map(drop)
    }

    /// Lets another domain read the node, and nobody else but its owner. Only the owner may say so.
    pub async fn share(&self, path: &str, with: DomId) -> Result<(), Reason> {
        let now = self.request(Kind::GetPerms, &[path, "\0"]).await?;
        let owner = protocol::xenstore::owner(&now).ok_or(Reason::Invalid)?;
        let list = format!("n{owner}\0r{}\0", with.0);
        self.request(Kind::SetPerms, &[path, "\0", &list]).await.map(drop)
    }

    /// Runs `body` until its transaction is not disturbed by others, and hands out what it came to. What `body` does,
    /// it may do several times; an error from it ends the transaction without effect.
    pub async fn transaction<T>(&self, body: impl AsyncFn(&Store<X>) -> Result<T, Reason>) -> Result<T, Reason> {
        // One at a time: our own would only disturb each other.
        self.wire.transactions.take(1).await;
        let result = self.transact(body).await;
        self.wire.transactions.put(1);
        result
    }

    async fn transact<T>(&self, body: impl AsyncFn(&Store<X>) -> Result<T, Reason>) -> Result<T, Reason> {
        for _ in 0..STORE_TRANSACTION_TRIES {
            let id = self.request(Kind::TransactionStart, &["\0"]).await?;
            let id = core::str::from_utf8(&id).ok().and_then(|id| id.trim_end_matches('\0').parse().ok());
            let inside = Store { wire: self.wire.clone(), transaction: id.ok_or(Reason::Invalid)? };
            let result = body(&inside).await;
            let word = if result.is_ok() { "T\0" } else { "F\0" };
            match inside.request(Kind::TransactionEnd, &[word]).await {
                Ok(_) => return result,
                Err(Reason::Again) if result.is_ok() => continue,
                Err(reason) => return result.and(Err(reason)),
            }
        }
        Err(Reason::Again)
    }

    /// Watches `path` and all below it. The watcher is told once at the beginning, and then when something changed at
    /// or below `below` or above it. Watchers of one path share one watch of xenstored.
    pub async fn watch(&self, path: &str, below: &str) -> Result<Watch<X>, Reason> {
        let watcher =
            Rc::new(Watcher { below: below.to_string(), changed: RefCell::default(), signal: Signal::default() });
        let shared = {
            let mut watches = self.wire.watches.borrow_mut();
            let watched = watches.iter_mut().find(|(_, watched)| watched.path == path);
            watched.map(|(token, watched)| {
                watched.watchers.push(Rc::downgrade(&watcher));
                (*token, watched.confirmed)
            })
        };
        watcher.changed(below);
        let (token, confirmed) = match shared {
            Some(shared) => shared,
            None => {
                let token = self.wire.serial();
                let watched = Watched {
                    path: path.to_string(),
                    confirmed: false,
                    watchers: alloc::vec![Rc::downgrade(&watcher)],
                };
                self.wire.watches.borrow_mut().insert(token, watched);
                (token, false)
            }
        };
        let watch = Watch { wire: self.wire.clone(), token, watcher };
        // Until one was answered, everybody asks: the first may be refused.
        if !confirmed {
            let mut number = heapless::String::<16>::new();
            // Ten digits fit sixteen bytes.
            let _ = core::fmt::write(&mut number, format_args!("{token}"));
            match self.request(Kind::Watch, &[path, "\0", &number, "\0"]).await {
                Ok(_) | Err(Reason::Exists) => {}
                Err(reason) => return Err(reason),
            }
            if let Some(watched) = self.wire.watches.borrow_mut().get_mut(&token) {
                watched.confirmed = true;
            }
        }
        Ok(watch)
    }

    async fn request(&self, kind: Kind, payload: &[&str]) -> Result<Vec<u8>, Reason> {
        let wire = &self.wire;
        wire.credits.take(1).await;
        let Some(id) = wire.send(kind, self.transaction, payload) else {
            wire.credits.put(1);
            return Err(Reason::TooBig);
        };
        let mut sent = false;
        poll_fn(|cx| {
            let mut waiting = wire.waiting.borrow_mut();
            match waiting.get_mut(&id) {
                Some(Answer::Here(answer)) => {
                    let answer = core::mem::replace(answer, Err(Reason::Invalid));
                    waiting.remove(&id);
                    return Poll::Ready(answer);
                }
                _ => waiting.insert(id, Answer::Awaited(cx.waker().clone())),
            };
            drop(waiting);
            if !core::mem::replace(&mut sent, true) {
                wire.move_bytes();
            }
            Poll::Pending
        })
        .await
    }
}

impl<X: Xen> Wire<X> {
    fn serial(&self) -> u32 {
        self.serial.replace(self.serial.get().wrapping_add(1))
    }

    /// Queues a request; none if it is longer than the wire allows.
    fn send(&self, kind: Kind, transaction: u32, payload: &[&str]) -> Option<u32> {
        let bytes = payload.iter().map(|part| part.len()).sum::<usize>();
        if bytes > PAYLOAD_BYTES {
            return None;
        }
        let request = self.serial();
        let header = Header { kind: kind as u32, request, transaction, bytes: bytes as u32 };
        let mut outgoing = self.outgoing.borrow_mut();
        outgoing.extend(header.encode());
        payload.iter().for_each(|part| outgoing.extend(part.as_bytes()));
        Some(request)
    }

    /// Moves what the ring takes and gives. A ring whose indices make no sense is left alone: xenstored is what it is.
    fn move_bytes(&self) {
        let mut ring = self.ring.borrow_mut();
        let mut moved = false;
        {
            let mut outgoing = self.outgoing.borrow_mut();
            while !outgoing.is_empty() {
                let written = ring.write(outgoing.as_slices().0).unwrap_or(0);
                outgoing.drain(..written);
                if written == 0 {
                    break;
                }
                moved = true;
            }
        }
        let mut incoming = self.incoming.borrow_mut();
        let mut some = [0; 1024];
        while let Ok(n @ 1..) = ring.read(&mut some) {
            moved = true;
            incoming.extend_from_slice(&some[..n]);
            self.messages(&mut incoming);
        }
        if moved {
            self.channel.notify();
        }
    }

    /// Takes the whole messages off the front of `incoming`.
    fn messages(&self, incoming: &mut Vec<u8>) {
        let mut done = 0;
        while let Some(head) = incoming[done..].first_chunk::<HEADER_BYTES>() {
            let Ok(header) = Header::decode(head) else {
                // Out of step for good: nothing that follows can be trusted.
                log::error!("xenstore: a message of more than {PAYLOAD_BYTES} bytes");
                incoming.clear();
                return;
            };
            let Some(payload) = incoming[done + HEADER_BYTES..].get(..header.bytes as usize) else { break };
            self.message(&header, payload);
            done += HEADER_BYTES + header.bytes as usize;
        }
        incoming.drain(..done);
    }

    fn message(&self, header: &Header, payload: &[u8]) {
        if header.kind == Kind::WatchEvent as u32 {
            return self.changed(payload);
        }
        let answer = match header.kind == Kind::Error as u32 {
            true => Err(Reason::of(payload)),
            false => Ok(payload.to_vec()),
        };
        let mut waiting = self.waiting.borrow_mut();
        match waiting.get_mut(&header.request) {
            Some(place @ Answer::Awaited(_)) => {
                if let Answer::Awaited(waker) = core::mem::replace(place, Answer::Here(answer)) {
                    waker.wake();
                }
            }
            Some(Answer::Ignored) => drop(waiting.remove(&header.request)),
            // A second answer takes nothing from the first, which its task may not have fetched yet.
            Some(Answer::Here(_)) | None => return log::warn!("xenstore: an answer nobody asked for"),
        }
        drop(waiting);
        self.credits.put(1);
    }

    fn changed(&self, payload: &[u8]) {
        let mut parts = payload.split(|byte| *byte == 0).map(core::str::from_utf8);
        let (Some(Ok(path)), Some(Ok(token))) = (parts.next(), parts.next()) else {
            return log::warn!("xenstore: a watch event that is no text");
        };
        let watches = self.watches.borrow();
        // A watch just ended may still have an event on its way.
        let Some(watched) = token.parse().ok().and_then(|token: u32| watches.get(&token)) else { return };
        watched.watchers.iter().filter_map(Weak::upgrade).for_each(|watcher| watcher.changed(path));
    }
}

impl Watcher {
    fn changed(&self, path: &str) {
        let (below, mine) = (self.below.as_str(), |a: &str, b: &str| {
            a.strip_prefix(b).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        if !mine(path, below) && !mine(below, path) {
            return;
        }
        let mut changed = self.changed.borrow_mut();
        if changed.len() >= WATCH_PATHS {
            changed.clear();
            changed.insert(self.below.clone());
        } else {
            changed.insert(path.to_string());
        }
        self.signal.raise();
    }
}

/// One watcher; the watch ends with the last of its path.
pub struct Watch<X: Xen> {
    wire: Rc<Wire<X>>,
    token: u32,
    watcher: Rc<Watcher>,
}

impl<X: Xen> Watch<X> {
    /// Waits for a change and hands out a path to look at again.
    pub async fn next(&self) -> String {
        loop {
            if let Some(path) = self.watcher.changed.borrow_mut().pop_first() {
                return path;
            }
            self.watcher.signal.wait().await;
        }
    }

    /// Ready when something changed since this was last ready; which, does not matter to the caller.
    pub fn poll(&self, cx: &mut core::task::Context<'_>) -> Poll<()> {
        self.watcher.changed.borrow_mut().clear();
        self.watcher.signal.poll(cx)
    }
}

impl<X: Xen> Drop for Watch<X> {
    fn drop(&mut self) {
        let mut watches = self.wire.watches.borrow_mut();
        let Some(watched) = watches.get_mut(&self.token) else { return };
        watched.watchers.retain(|other| !core::ptr::eq(other.as_ptr(), Rc::as_ptr(&self.watcher)));
        if !watched.watchers.is_empty() {
            return;
        }
        let path = core::mem::take(&mut watched.path);
        watches.remove(&self.token);
        drop(watches);
        let (wire, token) = (self.wire.clone(), self.token);
        self.wire.domain.exec.spawn(async move {
            wire.credits.take(1).await;
            match wire.send(Kind::Unwatch, 0, &[&path, "\0", &token.to_string(), "\0"]) {
                Some(id) => {
                    wire.waiting.borrow_mut().insert(id, Answer::Ignored);
                    wire.move_bytes();
                }
                None => wire.credits.put(1),
            }
        });
    }
}

/// Nodes we wrote, counted while they stand.
pub struct Nodes<X: Xen> {
    domain: Rc<Domain<X>>,
    paths: RefCell<BTreeSet<String>>,
}

impl<X: Xen> Nodes<X> {
    /// None yet.
    pub fn new(domain: &Rc<Domain<X>>) -> Self {
        Nodes { domain: domain.clone(), paths: RefCell::default() }
    }

    /// We wrote this one.
    pub fn wrote(&self, path: &str) {
        if self.paths.borrow_mut().insert(path.to_string()) {
            count(&self.domain.held.nodes, 1);
        }
    }

    /// All of them are gone.
    pub fn gone(&self) {
        let paths = core::mem::take(&mut *self.paths.borrow_mut());
        count(&self.domain.held.nodes, -(paths.len() as isize));
    }
}

impl<X: Xen> Drop for Nodes<X> {
    fn drop(&mut self) {
        self.gone();
    }
}
