//! The page between a domain and its store: `struct xenstore_domain_interface` of `io/xs_wire.h`.
//!
//! Two byte rings of 1024 bytes, requests and answers. Indices count for ever, need not start at 0, and wrap at 2^32.
//! As in [`ring`](crate::ring), our own index is private and the peer's is fetched once per call.
//!
//! Whoever moved at least one byte notifies the other side: the store waits for room as well as for bytes, and an
//! event too many costs it nothing.

use crate::mem::Memory;
use crate::ring::Overrun;

/// Bytes of the page that the protocol uses are fewer; this is what a page holds.
pub const PAGE_BYTES: usize = 4096;
/// `XENSTORE_RING_SIZE`.
const RING_BYTES: u32 = 1024;

/// One direction: where its bytes and its two indices lie.
#[derive(Clone, Copy)]
struct Lane {
    bytes: usize,
    cons: usize,
    prod: usize,
}

const REQUESTS: Lane = Lane { bytes: 0, cons: 2048, prod: 2052 };
const ANSWERS: Lane = Lane { bytes: 1024, cons: 2056, prod: 2060 };

impl Lane {
    /// Appends what fits of `from`, and returns how much; `prod` is the writer's own index.
    fn write<M: Memory>(self, memory: &M, prod: &mut u32, from: &[u8]) -> Result<usize, Overrun> {
        let used = prod.wrapping_sub(memory.load(self.cons));
        let room = RING_BYTES.checked_sub(used).ok_or(Overrun)?;
        let count = from.len().min(room as usize);
        let (first, second) = from[..count].split_at(count.min(to_end(*prod)));
        memory.write(self.bytes + offset(*prod), first);
        memory.write(self.bytes, second);
        advance(memory, self.prod, prod, count);
        Ok(count)
    }

    /// Takes what is there, at most `into.len()`, and returns how much; `cons` is the reader's own index.
    fn read<M: Memory>(self, memory: &M, cons: &mut u32, into: &mut [u8]) -> Result<usize, Overrun> {
        let there = memory.load(self.prod).wrapping_sub(*cons);
        if there > RING_BYTES {
            return Err(Overrun);
        }
        let count = into.len().min(there as usize);
        let (first, second) = into[..count].split_at_mut(count.min(to_end(*cons)));
        memory.read(self.bytes + offset(*cons), first);
        memory.read(self.bytes, second);
        // The bytes are out before the writer may use their place again.
        memory.fence();
        advance(memory, self.cons, cons, count);
        Ok(count)
    }
}

/// Where an index points in its ring.
fn offset(index: u32) -> usize {
    (index % RING_BYTES) as usize
}

/// Bytes from there to the ring's end.
fn to_end(index: u32) -> usize {
    RING_BYTES as usize - offset(index)
}

/// Moves our own index and shows it, if there is anything to show.
fn advance<M: Memory>(memory: &M, at: usize, index: &mut u32, count: usize) {
    if count > 0 {
        // At most 1024.
        *index = index.wrapping_add(count as u32);
        memory.store(at, *index);
    }
}

/// The domain's half: writes requests, reads answers and events.
pub struct Client<M> {
    memory: M,
    req_prod: u32,
    rsp_cons: u32,
}

impl<M: Memory> Client<M> {
    /// Joins the page where its last user (a boot loader, hvmloader) left it.
    pub fn new(memory: M) -> Self {
        let (req_prod, rsp_cons) = (memory.load(REQUESTS.prod), memory.load(ANSWERS.cons));
        Client { memory, req_prod, rsp_cons }
    }

    /// Writes what fits, and returns how many bytes that were. If any: notify.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, Overrun> {
        REQUESTS.write(&self.memory, &mut self.req_prod, bytes)
    }

    /// Reads what is there, and returns how many bytes that were. If any: notify.
    pub fn read(&mut self, into: &mut [u8]) -> Result<usize, Overrun> {
        ANSWERS.read(&self.memory, &mut self.rsp_cons, into)
    }

    /// The shared memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }
}

/// The store's half, for simulations: reads requests, writes answers and events.
pub struct Server<M> {
    memory: M,
    req_cons: u32,
    rsp_prod: u32,
}

impl<M: Memory> Server<M> {
    /// Joins the page at its present indices.
    pub fn new(memory: M) -> Self {
        let (req_cons, rsp_prod) = (memory.load(REQUESTS.cons), memory.load(ANSWERS.prod));
        Server { memory, req_cons, rsp_prod }
    }

    /// Writes what fits, and returns how many bytes that were. If any: notify.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, Overrun> {
        ANSWERS.write(&self.memory, &mut self.rsp_prod, bytes)
    }

    /// Reads what is there, and returns how many bytes that were. If any: notify.
    pub fn read(&mut self, into: &mut [u8]) -> Result<usize, Overrun> {
        REQUESTS.read(&self.memory, &mut self.req_cons, into)
    }

    /// The shared memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }
}
