//! A vchan server: byte streams that other domains open by a path in xenstore, as libxenvchan's clients do.
//!
//! Each client gets a page, rings and a port that nobody had before. What a client left in its rings is nobody else's to
//! read, and a client that keeps the pages mapped has only its own. The next set is published before a connection is
//! handed out, which also makes waiting clients look again: they watch the path. So who comes after an answer was seen
//! finds a set that nobody had, and not what the client before left.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::future::poll_fn;
use core::pin::pin;
use core::task::{Context, Poll};
use core::time::Duration;

use embedded_io_async::{ErrorKind, ErrorType, Read, Write};
use protocol::ring::Overrun;
use protocol::vchan::{Endpoint, Moved, Orders, PAGE_BYTES, Peer, Place, Rings, fits};
use protocol::xenstore::Reason;

use crate::domain::Domain;
use crate::event::Channel;
use crate::grant::Lent;
use crate::limits::{VCHAN_LOOK_SECONDS, VCHAN_PAGES_STUCK};
use crate::page::{self, NoMemory, PageRef, Run, Span};
use crate::port::{Access, DomId, PortState, Refused, Xen};
use crate::store::Store;

/// Where the page is granted and which port was made for it, below the path.
const NODES: [&str; 2] = ["ring-ref", "event-channel"];

const DOM0: DomId = DomId(0);

const LOOK: Duration = Duration::from_secs(VCHAN_LOOK_SECONDS);

const _: () = assert!(PAGE_BYTES == page::PAGE_BYTES);

/// The path is no xenstore path, or longer than clients can hold, see [`protocol::vchan::PATH_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPath;

impl fmt::Display for NoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a path that vchan clients can hold: at most 49 characters with /local/domain/<5 digits>/")
    }
}

/// Pages whose clients had not let go of them yet.
type Stuck<X> = Rc<RefCell<Vec<Lent<X>>>>;

/// Offers a vchan to one domain at one path.
pub struct Server<X: Xen> {
    domain: Rc<Domain<X>>,
    store: Store<X>,
    path: String,
    client: DomId,
    orders: Orders,
    stuck: Stuck<X>,
    /// Offered already.
    next: Option<Link<X>>,
}

impl<X: Xen> Server<X> {
    /// A server at `path`, from the root or from our home; nothing is offered yet.
    pub fn new(store: &Store<X>, path: &str, client: DomId, orders: Orders) -> Result<Self, NoPath> {
        if !fits(path) {
            return Err(NoPath);
        }
        let (domain, store) = (store.domain().clone(), store.clone());
        Ok(Server { domain, store, path: path.to_string(), client, orders, stuck: Stuck::default(), next: None })
    }

    /// Waits for a client of the vchan that is offered, and offers the next. What cannot be had now (a page, a port,
    /// xenstore) is asked for again until it can; a client that is here does not wait for that.
    ///
    /// Connections are independent of each other: the next one may be offered while this one lasts. To be polled to
    /// its end, as xenstore transactions are.
    pub async fn accept(&mut self) -> Connection<X> {
        loop {
            let link = match self.next.take() {
                Some(link) => link,
                None => self.offer().await,
            };
            let met = self.meet(&link).await;
            // A client that is in the page but not at the port was never there, or died since.
            if met == Peer::Here && link.is_bound() {
                self.next = self.publish().await.ok();
                return Connection(link);
            }
        }
    }

    /// Waits until there has been a client in the page; how it is.
    async fn meet(&self, link: &Link<X>) -> Peer {
        loop {
            let until = self.domain.xen.now() + LOOK;
            let met = link.until(|end, _| match end.peer() {
                Peer::Awaited if self.client != DOM0 && self.domain.xen.now() >= until => Poll::Ready(None),
                Peer::Awaited => Poll::Pending,
                met => Poll::Ready(Some(met)),
            });
            if let Some(met) = met.await {
                return met;
            }
            // A refusal is not for ever, and the next look is soon.
            if let Err(reason) = self.store.transaction(async |store| self.share(store).await).await {
                log::debug!("vchan {}: cannot be shared again: {reason:?}", self.path);
            }
        }
    }

    /// Lets the client's domain read where the vchan is.
    ///
    /// From a domain that dies xenstored takes this right (XSA-322), also when the next domain of its number is there at once,
    /// and it tells nobody. Asked for the permissions it still names the domain, so they are given again and again while a
    /// client is awaited. Of dom0 nothing is taken.
    async fn share(&self, store: &Store<X>) -> Result<(), Reason> {
        for node in NODES {
            store.share(&format!("{}/{node}", self.path), self.client).await?;
        }
        Ok(())
    }

    async fn offer(&self) -> Link<X> {
        let mut told = false;
        loop {
            match self.publish().await {
                Ok(link) => return link,
                Err(why) if !told => log::warn!("vchan {}: cannot be offered: {why}", self.path),
                Err(_) => {}
            }
            told = true;
            self.domain.sleep(LOOK).await;
        }
    }

    async fn publish(&self) -> Result<Link<X>, Why> {
        if sweep(&self.domain, &self.stuck) > VCHAN_PAGES_STUCK {
            return Err(Why::Stuck);
        }
        let link = Link::new(self)?;
        let values = [link.lent[0].grant().0, link.channel.port().0];
        // In one transaction: a client that finds one node takes the other for there.
        let written = self.store.transaction(async |store| {
            for (node, value) in NODES.iter().zip(values) {
                store.write(&format!("{}/{node}", self.path), &value.to_string()).await?;
            }
            self.share(store).await
        });
        written.await?;
        Ok(link)
    }
}

/// Tries again to take pages back; how many are left.
fn sweep<X: Xen>(domain: &Domain<X>, stuck: &Stuck<X>) -> usize {
    let before = stuck.take();
    let stuck_before = before.len();
    let kept: Vec<_> = before.into_iter().filter_map(|lent| lent.release().err()).collect();
    let left = kept.len();
    if left < stuck_before {
        domain.changed.raise();
    }
    // What came meanwhile is none: releasing waits for nothing.
    stuck.replace(kept);
    left
}

/// Why no vchan can be offered now.
enum Why {
    Memory,
    Refused(Refused),
    Store(Reason),
    Stuck,
}

impl From<NoMemory> for Why {
    fn from(_: NoMemory) -> Self {
        Why::Memory
    }
}

impl From<Refused> for Why {
    fn from(refused: Refused) -> Self {
        Why::Refused(refused)
    }
}

impl From<Reason> for Why {
    fn from(reason: Reason) -> Self {
        Why::Store(reason)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Memory => f.write_str("no memory"),
            Why::Refused(refused) => write!(f, "Xen refused a grant or a port ({})", refused.0),
            Why::Store(reason) => write!(f, "xenstore: {reason:?}"),
            Why::Stuck => f.write_str("earlier clients keep too many pages mapped"),
        }
    }
}

/// One vchan: pages, grants, port, offered or connected.
struct Link<X: Xen> {
    domain: Rc<Domain<X>>,
    end: RefCell<Endpoint<Span<PageRef>>>,
    /// The page first.
    lent: Vec<Lent<X>>,
    channel: Channel<X>,
    /// The other end of the port is gone, whatever the page says.
    deserted: Cell<bool>,
    stuck: Stuck<X>,
}

impl<X: Xen> Link<X> {
    fn new(server: &Server<X>) -> Result<Self, Why> {
        let Server { domain, client, orders, .. } = server;
        let channel = Channel::offer(domain, *client)?;
        let run = Run::new(1 + orders.grants())?;
        let left = 1 + orders.left().pages();
        // The client writes the page and the left ring, and only reads the right one.
        let access = |i: usize| if i < left { Access::ReadWrite } else { Access::ReadOnly };
        let lend = |i| Lent::new(domain, run.page(i), *client, access(i));
        let lent = (0..run.pages()).map(lend).collect::<Result<Vec<_>, _>>()?;
        let ring = |place: Place, first: usize| match place {
            Place::InPage(_) => Span(Vec::from([run.page(0)])),
            Place::Pages(pages) => Span((first..first + pages).map(|i| run.page(i)).collect()),
        };
        let rings = Rings { left: ring(orders.left(), 1), right: ring(orders.right(), left) };
        let grants = lent[1..].iter().map(|lent| lent.grant().0);
        let end = Endpoint::serve(Span(Vec::from([run.page(0)])), rings, *orders, grants);
        Ok(Link {
            domain: domain.clone(),
            end: RefCell::new(end),
            lent,
            channel,
            deserted: Cell::new(false),
            stuck: server.stuck.clone(),
        })
    }

    fn is_bound(&self) -> bool {
        self.domain.xen.peer(self.channel.port()) == PortState::Bound
    }

    /// Polls `step` at every event, and now and then without one, until it is ready.
    async fn until<T>(&self, mut step: impl FnMut(&mut Endpoint<Span<PageRef>>, &mut Context<'_>) -> Poll<T>) -> T {
        loop {
            let mut look = pin!(self.domain.sleep(LOOK));
            let done = poll_fn(|cx| {
                // What the event was about is seen in the page; that we are woken by the next one is what counts here.
                while self.channel.poll(cx).is_ready() {}
                match step(&mut self.end.borrow_mut(), cx) {
                    Poll::Ready(done) => Poll::Ready(Some(done)),
                    Poll::Pending => look.as_mut().poll(cx).map(|()| None),
                }
            });
            if let Some(done) = done.await {
                return done;
            }
            sweep(&self.domain, &self.stuck);
            // Until a client has come the port is unbound.
            if self.end.borrow().has_met() && !self.is_bound() {
                self.deserted.set(true);
            }
        }
    }

    /// How the peer is, by the page and by the port.
    fn peer(&self, end: &mut Endpoint<Span<PageRef>>) -> Peer {
        match end.peer() {
            Peer::Here if self.deserted.get() => Peer::Gone,
            peer => peer,
        }
    }

    fn moved(&self, moved: Moved) -> usize {
        if moved.notify {
            self.channel.notify();
        }
        moved.bytes
    }
}

impl<X: Xen> Drop for Link<X> {
    fn drop(&mut self) {
        self.end.borrow_mut().close();
        self.channel.notify();
        let held = self.lent.drain(..).filter_map(|lent| lent.release().err());
        self.stuck.borrow_mut().extend(held);
    }
}

/// A client's connection: a byte stream both ways. The client is told when this is dropped.
///
/// One task has it. Reading and writing by shared reference are there so that it can wait for both at once.
pub struct Connection<X: Xen>(Link<X>);

/// Why a connection moves no more bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The client is gone; what it had sent before could be read.
    Gone,
    /// The client's index made no sense.
    Overrun,
}

impl From<Overrun> for Broken {
    fn from(_: Overrun) -> Self {
        Broken::Overrun
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Broken::Gone => "the client is gone",
            Broken::Overrun => "the client's ring index makes no sense",
        })
    }
}

impl core::error::Error for Broken {}

impl embedded_io_async::Error for Broken {
    fn kind(&self) -> ErrorKind {
        match self {
            Broken::Gone => ErrorKind::BrokenPipe,
            Broken::Overrun => ErrorKind::InvalidData,
        }
    }
}

impl<X: Xen> ErrorType for &Connection<X> {
    type Error = Broken;
}

impl<X: Xen> Read for &Connection<X> {
    /// Waits for bytes; 0 when the client is gone and everything it sent was read.
    async fn read(&mut self, into: &mut [u8]) -> Result<usize, Broken> {
        let link = &self.0;
        let read = link.until(|end, cx| {
            // Before the bytes: what a client writes before it closes is there when it has closed.
            let peer = link.peer(end);
            if peer == Peer::Another || into.is_empty() {
                return Poll::Ready(Ok(0));
            }
            let bytes = link.moved(end.read(into)?);
            if bytes > 0 || peer != Peer::Here {
                return Poll::Ready(Ok(bytes));
            }
            again(end.ask_data()?, cx)
        });
        read.await
    }
}

impl<X: Xen> Write for &Connection<X> {
    /// Waits for room and writes what fits.
    async fn write(&mut self, from: &[u8]) -> Result<usize, Broken> {
        let link = &self.0;
        let written = link.until(|end, cx| {
            if link.peer(end) != Peer::Here {
                return Poll::Ready(Err(Broken::Gone));
            }
            let bytes = link.moved(end.write(from)?);
            if bytes > 0 || from.is_empty() {
                return Poll::Ready(Ok(bytes));
            }
            again(end.ask_room()?, cx)
        });
        written.await
    }

    /// What is written is on its way at once.
    async fn flush(&mut self) -> Result<(), Broken> {
        Ok(())
    }
}

/// Pending; polled again soon if the second look found something. Not at once: a peer that moves its index to and fro
/// would keep all other tasks waiting.
fn again<T>(found: bool, cx: &Context<'_>) -> Poll<T> {
    if found {
        cx.waker().wake_by_ref();
    }
    Poll::Pending
}

impl<X: Xen> Connection<X> {
    /// Waits until the client is gone, whatever it left to be read.
    pub async fn gone(&self) {
        let link = &self.0;
        let gone = link.until(|end, _| match link.peer(end) {
            Peer::Here => Poll::Pending,
            _ => Poll::Ready(()),
        });
        gone.await
    }
}

impl<X: Xen> ErrorType for Connection<X> {
    type Error = Broken;
}

impl<X: Xen> Read for Connection<X> {
    async fn read(&mut self, into: &mut [u8]) -> Result<usize, Broken> {
        (&*self).read(into).await
    }
}

impl<X: Xen> Write for Connection<X> {
    async fn write(&mut self, from: &[u8]) -> Result<usize, Broken> {
        (&*self).write(from).await
    }

    async fn flush(&mut self) -> Result<(), Broken> {
        Ok(())
    }
}
