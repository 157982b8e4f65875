//! The two halves of a Xen ring (`io/ring.h`).
//!
//! One page or several hold four indices and a power of two of slots; requests and responses share the slots. Indices
//! count for ever and wrap at 2^32; slot `i` is `i % slots`.
//!
//! Each half keeps its own indices private and believes no other: the shared copies of *our* indices are written,
//! never read back (but for the start of [`Back`]), and a peer's index is fetched once per call, checked, and kept.
//! Between two checks nothing the peer writes can change how many slots we take.

use crate::mem::Memory;

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
/// Where the slots begin, in bytes; the indices and the private words of other implementations lie before.
const SLOTS: usize = 64;
const PAGE_BYTES: usize = 4096;

/// How many slots a ring has, and how far they are apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shape {
    /// Slots; a power of two.
    pub slots: u32,
    /// Bytes from one slot to the next: the larger of a request and a response.
    pub stride: usize,
}

impl Shape {
    /// The shape of a ring of `pages` pages of 4096 bytes with slots of `stride` bytes: as many slots as fit, rounded
    /// down to a power of two (`__RING_SIZE` of `io/ring.h`).
    ///
    /// # Panics
    /// If not one slot fits, or more than 2^31: both numbers are ours, bounded by the caller.
    pub const fn new(pages: usize, stride: usize) -> Self {
        assert!(pages > 0 && pages <= 1 << 16 && stride > 0);
        let fit = (pages * PAGE_BYTES - SLOTS) / stride;
        assert!(fit > 0 && fit <= 1 << 31);
        Shape { slots: 1 << fit.ilog2(), stride }
    }

    /// Bytes that the ring occupies from the start of its first page.
    pub const fn bytes(&self) -> usize {
        SLOTS + self.slots as usize * self.stride
    }

    /// The byte offset of the slot that index `index` falls on.
    const fn at(&self, index: u32) -> usize {
        SLOTS + (index & (self.slots - 1)) as usize * self.stride
    }
}

/// The peer's producer index is further ahead than a ring can hold, or has gone backward. The ring is broken for good
/// (XSA-39): stop serving it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overrun;

/// `index` as an advance over `from`, if it is one of at most `limit`.
fn ahead(index: u32, from: u32, limit: u32) -> Result<u32, Overrun> {
    if index.wrapping_sub(from) <= limit { Ok(index) } else { Err(Overrun) }
}

/// The notify rule of `RING_PUSH_*_AND_CHECK_NOTIFY`: has the peer's event index been crossed going from `old` to
/// `new`? A nonsensical event index costs the peer an event too few or too many, nobody else.
fn crossed(event: u32, old: u32, new: u32) -> bool {
    new.wrapping_sub(event) < new.wrapping_sub(old)
}

/// The backend's half: takes requests, puts responses.
#[derive(Debug)]
pub struct Back<M> {
    memory: M,
    shape: Shape,
    /// The next request to take.
    req_cons: u32,
    /// The peer's producer as last fetched and checked; `req_cons..req_prod` may be taken without another look.
    req_prod: u32,
    /// The next response to put.
    rsp_prod: u32,
    /// What the peer knows of `rsp_prod`.
    published: u32,
}

impl<M: Memory> Back<M> {
    /// Joins a ring that the frontend has laid out in `memory`, which holds at least `shape.bytes()`.
    ///
    /// Starts at the shared response producer, as Linux does: zero on a fresh ring, and after a reconnect to a live
    /// one the first request that nobody answered.
    pub fn attach(memory: M, shape: Shape) -> Result<Self, Overrun> {
        let start = memory.load(RSP_PROD);
        let req_prod = ahead(memory.load(REQ_PROD), start, shape.slots)?;
        Ok(Back { memory, shape, req_cons: start, req_prod, rsp_prod: start, published: start })
    }

    /// Copies the next request out, each byte fetched once; `false` if there is none.
    ///
    /// `entry` is at most a stride long and gets the slot's first bytes. The producer is looked at only when the
    /// requests known of are used up.
    pub fn take(&mut self, entry: &mut [u8]) -> Result<bool, Overrun> {
        assert!(entry.len() <= self.shape.stride);
        if self.req_cons == self.req_prod && !self.look()? {
            return Ok(false);
        }
        self.memory.read(self.shape.at(self.req_cons), entry);
        self.req_cons = self.req_cons.wrapping_add(1);
        Ok(true)
    }

    /// Requests taken and not yet answered: at most `slots`.
    pub fn taken(&self) -> u32 {
        self.req_cons.wrapping_sub(self.rsp_prod)
    }

    /// Writes the next response. The peer sees it after [`publish`](Self::publish).
    ///
    /// # Panics
    /// If no taken request is left to answer, or `response` is longer than the stride: both are our own count.
    pub fn put(&mut self, response: &[u8]) {
        assert!(self.taken() > 0 && response.len() <= self.shape.stride);
        self.memory.write(self.shape.at(self.rsp_prod), response);
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
    }

    /// Shows the responses put so far; `true` if the peer wants an event for them.
    ///
    /// Without a new response nothing is written and the answer is `false`: Linux frontends slow a backend down that
    /// sends events without responses.
    #[must_use = "the peer sleeps until it is notified"]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.rsp_prod);
        if old == new {
            return false;
        }
        self.memory.store(RSP_PROD, new);
        self.published = new;
        self.memory.fence();
        crossed(self.memory.load(RSP_EVENT), old, new)
    }

    /// Asks for an event at the next request and looks once more; `true` if requests are there, so do not sleep
    /// (`RING_FINAL_CHECK_FOR_REQUESTS`).
    pub fn rearm(&mut self) -> Result<bool, Overrun> {
        if self.req_cons != self.req_prod {
            return Ok(true);
        }
        self.memory.store(REQ_EVENT, self.req_cons.wrapping_add(1));
        self.memory.fence();
        self.look()
    }

    /// The shared memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Gives the shared memory back; nothing more is taken or answered.
    pub fn into_memory(self) -> M {
        self.memory
    }

    /// Fetches the producer and checks it; `true` if there are requests to take.
    ///
    /// An honest frontend has at most `slots` requests beyond the responses it can have seen, that is the published
    /// ones; and its producer never goes back behind what we took.
    fn look(&mut self) -> Result<bool, Overrun> {
        let unseen = self.req_cons.wrapping_sub(self.published);
        let room = self.shape.slots.checked_sub(unseen).ok_or(Overrun)?;
        self.req_prod = ahead(self.memory.load(REQ_PROD), self.req_cons, room)?;
        Ok(self.req_cons != self.req_prod)
    }
}

/// The frontend's half, on a ring of our own: puts requests, takes responses.
#[derive(Debug)]
pub struct Front<M> {
    memory: M,
    shape: Shape,
    /// The next request to put.
    req_prod: u32,
    /// What the peer knows of `req_prod`.
    published: u32,
    /// The next response to take.
    rsp_cons: u32,
    /// The peer's producer as last fetched and checked.
    rsp_prod: u32,
}

impl<M: Memory> Front<M> {
    /// Lays a fresh ring out in `memory`, which holds at least `shape.bytes()`: producers 0, events 1
    /// (`SHARED_RING_INIT`). Before any backend has it.
    pub fn init(memory: M, shape: Shape) -> Self {
        memory.write(0, &[0; SLOTS]);
        memory.store(REQ_EVENT, 1);
        memory.store(RSP_EVENT, 1);
        Front { memory, shape, req_prod: 0, published: 0, rsp_cons: 0, rsp_prod: 0 }
    }

    /// Slots for further requests.
    pub fn free(&self) -> u32 {
        self.shape.slots - self.outstanding()
    }

    /// Requests put, published or not, whose responses have not been taken.
    pub fn outstanding(&self) -> u32 {
        self.req_prod.wrapping_sub(self.rsp_cons)
    }

    /// Writes the next request. The peer sees it after [`publish`](Self::publish).
    ///
    /// # Panics
    /// If no slot is free, or `request` is longer than the stride: both are our own count.
    pub fn put(&mut self, request: &[u8]) {
        assert!(self.free() > 0 && request.len() <= self.shape.stride);
        self.memory.write(self.shape.at(self.req_prod), request);
        self.req_prod = self.req_prod.wrapping_add(1);
    }

    /// Shows the requests put so far; `true` if the peer wants an event for them.
    #[must_use = "the peer sleeps until it is notified"]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.req_prod);
        if old == new {
            return false;
        }
        self.memory.store(REQ_PROD, new);
        self.published = new;
        self.memory.fence();
        crossed(self.memory.load(REQ_EVENT), old, new)
    }

    /// Copies the next response out, each byte fetched once; `false` if there is none.
    ///
    /// More responses than published requests are an [`Overrun`]. That a response names a request of ours is for the
    /// caller to check.
    pub fn take(&mut self, response: &mut [u8]) -> Result<bool, Overrun> {
        assert!(response.len() <= self.shape.stride);
        if self.rsp_cons == self.rsp_prod && !self.look()? {
            return Ok(false);
        }
        self.memory.read(self.shape.at(self.rsp_cons), response);
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        Ok(true)
    }

    /// Asks for an event at the next response and looks once more; `true` if responses are there, so do not sleep
    /// (`RING_FINAL_CHECK_FOR_RESPONSES`).
    pub fn rearm(&mut self) -> Result<bool, Overrun> {
        if self.rsp_cons != self.rsp_prod {
            return Ok(true);
        }
        self.memory.store(RSP_EVENT, self.rsp_cons.wrapping_add(1));
        self.memory.fence();
        self.look()
    }

    /// The shared memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Gives the shared memory back.
    pub fn into_memory(self) -> M {
        self.memory
    }

    fn look(&mut self) -> Result<bool, Overrun> {
        let unanswered = self.published.wrapping_sub(self.rsp_cons);
        self.rsp_prod = ahead(self.memory.load(RSP_PROD), self.rsp_cons, unanswered)?;
        Ok(self.rsp_cons != self.rsp_prod)
    }
}
