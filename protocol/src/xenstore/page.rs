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

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::mem::Flat;

    type Page = Flat<PAGE_BYTES>;

    fn bytes(page: &Page, at: usize, count: usize) -> Vec<u8> {
        let mut bytes = std::vec![0; count];
        page.read(at, &mut bytes);
        bytes
    }

    /// A page at rest with all indices at `start`.
    fn page(start: u32) -> Page {
        let page = Page::default();
        [2048, 2052, 2056, 2060].into_iter().for_each(|index| page.store(index, start));
        page
    }

    #[test]
    fn bytes_and_indices_lie_where_the_header_puts_them() {
        // Offsets of struct xenstore_domain_interface, printed by a C program.
        let page = page(0);
        let (mut client, mut server) = (Client::new(&page), Server::new(&page));
        let mut into = [0; 16];
        assert_eq!(client.write(b"request"), Ok(7));
        assert_eq!((bytes(&page, 0, 8), page.load(2052), page.load(2048)), (b"request\0".to_vec(), 7, 0));
        assert_eq!((server.read(&mut into), &into[..7]), (Ok(7), b"request".as_slice()));
        assert_eq!(page.load(2048), 7);
        assert_eq!(server.write(b"answer"), Ok(6));
        assert_eq!((bytes(&page, 1024, 7), page.load(2060), page.load(2056)), (b"answer\0".to_vec(), 6, 0));
        assert_eq!((client.read(&mut into[..4]), &into[..4]), (Ok(4), b"answ".as_slice()));
        assert_eq!((client.read(&mut into), &into[..2]), (Ok(2), b"er".as_slice()));
        assert_eq!((client.read(&mut into), page.load(2056)), (Ok(0), 6));
    }

    #[test]
    fn both_wraps() {
        for start in [1020, u32::MAX - 2, u32::MAX] {
            let page = page(start);
            let (mut client, mut server) = (Client::new(&page), Server::new(&page));
            let sent: Vec<u8> = (0..1100).map(|byte| byte as u8).collect();
            let mut got = [0; 2000];
            assert_eq!(client.write(&sent), Ok(1024));
            assert_eq!(client.write(&sent[1024..]), Ok(0));
            assert_eq!(server.read(&mut got), Ok(1024));
            assert_eq!(client.write(&sent[1024..]), Ok(76));
            assert_eq!(server.read(&mut got[1024..]), Ok(76));
            assert_eq!(got[..1100], sent);
            assert_eq!(page.load(2048), start.wrapping_add(1100));
            assert_eq!(server.write(&sent), Ok(1024));
            assert_eq!(client.read(&mut got), Ok(1024));
            assert_eq!(got[..1024], sent[..1024]);
        }
    }

    #[test]
    fn indices_that_make_no_sense() {
        for start in [0, 5000, u32::MAX] {
            for jump in [1025, 1 << 31, u32::MAX] {
                let page = page(start);
                let (mut client, mut server) = (Client::new(&page), Server::new(&page));
                page.store(2060, start.wrapping_add(jump));
                assert_eq!((client.read(&mut [0; 8]), page.load(2056)), (Err(Overrun), start));
                page.store(2048, start.wrapping_sub(jump));
                assert_eq!((client.write(&[0; 8]), page.load(2052)), (Err(Overrun), start));
                page.store(2052, start.wrapping_add(jump));
                assert_eq!(server.read(&mut [0; 8]), Err(Overrun));
                page.store(2056, start.wrapping_sub(jump));
                assert_eq!(server.write(&[0; 8]), Err(Overrun));
            }
        }
    }

    #[test]
    fn our_own_index_is_never_read_back() {
        let page = page(0);
        let mut client = Client::new(&page);
        assert_eq!(client.write(b"ab"), Ok(2));
        page.store(2052, 77);
        assert_eq!(client.write(b"cd"), Ok(2));
        assert_eq!((bytes(&page, 0, 4), page.load(2052)), (b"abcd".to_vec(), 4));
    }
}
