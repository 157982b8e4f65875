//! One side of a vchan: reads, writes, asks for events, and tells which ones the other side asked for.

use super::Orders;
use crate::mem::Memory;
use crate::ring::Overrun;

/// Client writes, server reads.
const LEFT: Indices = Indices { cons: 0, prod: 4 };
/// Server writes, client reads.
const RIGHT: Indices = Indices { cons: 8, prod: 12 };

const CLI_LIVE: usize = 20;
const SRV_LIVE: usize = 21;
/// Set by the server, consumed by the client: the events that the server wants.
const CLI_NOTIFY: usize = 22;
/// Set by the client, consumed by the server: the events that the client wants.
const SRV_NOTIFY: usize = 23;
/// Everything before the grants.
const HEAD_BYTES: usize = 24;

/// `VCHAN_NOTIFY_WRITE`: an event is wanted when there is more to read.
const WRITE: u8 = 1;
/// `VCHAN_NOTIFY_READ`: an event is wanted when there is more room.
const READ: u8 = 2;

const GONE: u8 = 0;
const CONNECTED: u8 = 1;
const AWAITED: u8 = 2;
/// What the server makes of a client's 1: see [`Endpoint::peer`].
const MET: u8 = CONNECTED | AWAITED;

#[derive(Clone, Copy, Debug)]
struct Indices {
    cons: usize,
    prod: usize,
}

/// The other side, as it says itself. It may lie, and a domain that dies says nothing: what can be known of it for
/// sure is the state of the event channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// No client has come yet.
    Awaited,
    /// It is there.
    Here,
    /// It has closed. What it wrote before can still be read.
    Gone,
    /// The client that was there has closed, and another one has come: what is in the rings is of either.
    Another,
}

/// What moved, and what the other side wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the peer sleeps until it is notified"]
pub struct Moved {
    /// How many bytes.
    pub bytes: usize,
    /// The other side asked for an event when that happens.
    pub notify: bool,
}

/// Both rings' memory: for a ring in the page the page again, else the ring's own pages.
#[derive(Debug)]
pub struct Rings<M> {
    /// What the client writes.
    pub left: M,
    /// What the server writes.
    pub right: M,
}

/// One direction as one side has it.
#[derive(Debug)]
struct Lane<M> {
    memory: M,
    /// Where the ring begins in it.
    at: usize,
    /// Bytes, a power of two.
    size: u32,
    indices: Indices,
    /// Our index: producer where we write, consumer where we read.
    own: u32,
}

impl<M: Memory> Lane<M> {
    /// Where our index points.
    fn position(&self) -> usize {
        self.at + (self.own & (self.size - 1)) as usize
    }

    /// Bytes from there to the ring's end.
    fn to_end(&self) -> usize {
        (self.size - (self.own & (self.size - 1))) as usize
    }

    /// Bytes to read. The peer's producer is fetched once.
    fn filled<P: Memory>(&self, page: &P) -> Result<usize, Overrun> {
        let filled = page.load(self.indices.prod).wrapping_sub(self.own);
        if filled > self.size { Err(Overrun) } else { Ok(filled as usize) }
    }

    /// Bytes to write. The peer's consumer is fetched once.
    fn room<P: Memory>(&self, page: &P) -> Result<usize, Overrun> {
        let used = self.own.wrapping_sub(page.load(self.indices.cons));
        self.size.checked_sub(used).map(|room| room as usize).ok_or(Overrun)
    }

    /// Moves our index over `bytes`, of which there are at most `size`, and shows it at `at`.
    fn advance<P: Memory>(&mut self, page: &P, at: usize, bytes: usize) {
        self.own = self.own.wrapping_add(bytes as u32);
        page.store(at, self.own);
    }
}

/// Which side we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Server,
    Client,
}

/// One side of a vchan.
///
/// Once an index of the peer made no sense, every read and write is an [`Overrun`]: the peer cannot be trusted to have
/// repaired what it broke.
#[derive(Debug)]
pub struct Endpoint<M> {
    page: M,
    side: Side,
    incoming: Lane<M>,
    outgoing: Lane<M>,
    met: bool,
    broken: bool,
}

impl<M: Memory> Endpoint<M> {
    /// Lays a fresh vchan out, before any client has it. `grants` are those of the left ring's pages, then of the
    /// right one's.
    pub fn serve(page: M, rings: Rings<M>, orders: Orders, grants: impl Iterator<Item = u32>) -> Self {
        page.write(0, &[0; HEAD_BYTES]);
        orders.publish(&page, grants);
        page.store8(CLI_LIVE, AWAITED);
        page.store8(SRV_LIVE, CONNECTED);
        page.store8(CLI_NOTIFY, WRITE);
        Self::new(page, rings, orders, Side::Server)
    }

    /// Whether no client has been in this page yet. One who finds that another was there does best to wait for the next
    /// offer: what is in the rings may be the other's.
    pub fn is_unused(page: &M) -> bool {
        page.load8(CLI_LIVE) == AWAITED
    }

    /// Connects to a server's page with the orders that were read from it once. The server is to be notified, whatever
    /// it asked for: it waits for that.
    ///
    /// The indices are taken as the page has them: another client may have been there before.
    pub fn connect(page: M, rings: Rings<M>, orders: Orders) -> Self {
        let mut client = Self::new(page, rings, orders, Side::Client);
        client.outgoing.own = client.page.load(client.outgoing.indices.prod);
        client.incoming.own = client.page.load(client.incoming.indices.cons);
        client.page.store8(CLI_LIVE, CONNECTED);
        client.page.store8(SRV_NOTIFY, WRITE);
        client
    }

    fn new(page: M, rings: Rings<M>, orders: Orders, side: Side) -> Self {
        let Rings { left, right } = rings;
        let (at, size) = (orders.left().at(), orders.left_bytes());
        let left = Lane { memory: left, at, size, indices: LEFT, own: 0 };
        let (at, size) = (orders.right().at(), orders.right_bytes());
        let right = Lane { memory: right, at, size, indices: RIGHT, own: 0 };
        let (incoming, outgoing) = match side {
            Side::Server => (left, right),
            Side::Client => (right, left),
        };
        Endpoint { page, side, incoming, outgoing, met: side == Side::Client, broken: false }
    }

    /// Whether the other side is there.
    ///
    /// A server marks the client that it has met, by a bit in `cli_live` which no client reads (each looks at
    /// `srv_live` alone): when that client closes and the next one connects before we look, the mark is gone. Without
    /// it the next one would be given the rest of the first one's conversation.
    pub fn peer(&mut self) -> Peer {
        if self.side == Side::Client {
            return if self.page.load8(SRV_LIVE) == CONNECTED { Peer::Here } else { Peer::Gone };
        }
        match (self.met, self.page.load8(CLI_LIVE)) {
            (false, AWAITED) => Peer::Awaited,
            // It may close between the look and the mark; then the mark is set over a 0, and is no MET.
            (false, CONNECTED) => {
                self.met = self.page.fetch_or8(CLI_LIVE, MET) == CONNECTED;
                if self.met { Peer::Here } else { Peer::Gone }
            }
            (true, MET) => Peer::Here,
            (true, CONNECTED) => Peer::Another,
            _ => Peer::Gone,
        }
    }

    /// Whether there has been a peer.
    pub fn has_met(&self) -> bool {
        self.met
    }

    /// Copies out what is there, at most `into.len()` bytes, each fetched once.
    pub fn read(&mut self, into: &mut [u8]) -> Result<Moved, Overrun> {
        let filled = self.checked(self.incoming.filled(&self.page))?;
        let bytes = into.len().min(filled);
        if bytes == 0 {
            return Ok(Moved { bytes, notify: false });
        }
        let lane = &mut self.incoming;
        let (first, second) = into[..bytes].split_at_mut(bytes.min(lane.to_end()));
        lane.memory.read(lane.position(), first);
        lane.memory.read(lane.at, second);
        // The bytes are out before the writer may use their place again.
        self.page.fence();
        lane.advance(&self.page, lane.indices.cons, bytes);
        Ok(Moved { bytes, notify: self.wanted(READ) })
    }

    /// Writes what fits of `from`.
    pub fn write(&mut self, from: &[u8]) -> Result<Moved, Overrun> {
        let room = self.checked(self.outgoing.room(&self.page))?;
        let bytes = from.len().min(room);
        if bytes == 0 {
            return Ok(Moved { bytes, notify: false });
        }
        let lane = &mut self.outgoing;
        let (first, second) = from[..bytes].split_at(bytes.min(lane.to_end()));
        lane.memory.write(lane.position(), first);
        lane.memory.write(lane.at, second);
        // The store of the index releases the bytes.
        lane.advance(&self.page, lane.indices.prod, bytes);
        Ok(Moved { bytes, notify: self.wanted(WRITE) })
    }

    /// Asks for an event when there is something to read, and looks once more; `true` if there is, so do not sleep.
    pub fn ask_data(&mut self) -> Result<bool, Overrun> {
        self.ask(WRITE);
        self.checked(self.incoming.filled(&self.page)).map(|filled| filled > 0)
    }

    /// Asks for an event when there is room to write, and looks once more; `true` if there is, so do not sleep.
    pub fn ask_room(&mut self) -> Result<bool, Overrun> {
        self.ask(READ);
        self.checked(self.outgoing.room(&self.page)).map(|room| room > 0)
    }

    /// Says that we are gone. The peer is to be notified, whatever it asked for.
    pub fn close(&mut self) {
        let live = if self.side == Side::Server { SRV_LIVE } else { CLI_LIVE };
        self.page.store8(live, GONE);
    }

    /// The page.
    pub fn page(&self) -> &M {
        &self.page
    }

    fn checked(&mut self, looked: Result<usize, Overrun>) -> Result<usize, Overrun> {
        self.broken |= looked.is_err();
        if self.broken { Err(Overrun) } else { looked }
    }

    /// The request is there before the index is looked at again.
    fn ask(&self, what: u8) {
        self.page.fetch_or8(if self.side == Side::Server { CLI_NOTIFY } else { SRV_NOTIFY }, what);
        self.page.fence();
    }

    /// Consumes the peer's wish for an event. Our index is there before we look: or the peer, which asks and then
    /// looks at the index, sees neither the move nor an event.
    fn wanted(&self, what: u8) -> bool {
        self.page.fence();
        let wishes = self.page.fetch_and8(if self.side == Side::Server { SRV_NOTIFY } else { CLI_NOTIFY }, !what);
        wishes & what != 0
    }
}

#[cfg(test)]
mod tests;
