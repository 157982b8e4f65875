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

#[cfg(test)]
mod tests {
    use core::cell::{Cell, RefCell};
    use std::boxed::Box;
    use std::collections::VecDeque;
    use std::vec::Vec;

    use super::*;
    use crate::mem::Flat;

    const BYTES: usize = 4096;
    /// 4 slots of 16 bytes, in the first bytes of a page.
    const SMALL: Shape = Shape { slots: 4, stride: 16 };

    /// What the peer does to the page.
    type Act<'a> = Box<dyn FnMut(&Flat<BYTES>) + 'a>;

    /// Memory that counts the loads of each index and lets the peer act at the full barrier.
    struct Watched<'a> {
        flat: &'a Flat<BYTES>,
        loads: [Cell<u32>; 4],
        at_fence: RefCell<Option<Act<'a>>>,
    }

    impl<'a> Watched<'a> {
        fn new(flat: &'a Flat<BYTES>) -> Self {
            Watched { flat, loads: Default::default(), at_fence: RefCell::default() }
        }
        fn loads(&self) -> [u32; 4] {
            self.loads.each_ref().map(Cell::get)
        }
        fn at_fence(&self, act: impl FnMut(&Flat<BYTES>) + 'a) {
            *self.at_fence.borrow_mut() = Some(Box::new(act));
        }
    }

    impl Memory for Watched<'_> {
        fn load(&self, at: usize) -> u32 {
            let loads = &self.loads[at / 4];
            loads.set(loads.get() + 1);
            self.flat.load(at)
        }
        fn store(&self, at: usize, value: u32) {
            self.flat.store(at, value)
        }
        fn read(&self, at: usize, into: &mut [u8]) {
            self.flat.read(at, into)
        }
        fn write(&self, at: usize, from: &[u8]) {
            self.flat.write(at, from)
        }
        fn load8(&self, at: usize) -> u8 {
            self.flat.load8(at)
        }
        fn store8(&self, at: usize, value: u8) {
            self.flat.store8(at, value)
        }
        fn fetch_or8(&self, at: usize, bits: u8) -> u8 {
            self.flat.fetch_or8(at, bits)
        }
        fn fetch_and8(&self, at: usize, bits: u8) -> u8 {
            self.flat.fetch_and8(at, bits)
        }
        fn fence(&self) {
            if let Some(act) = self.at_fence.borrow_mut().as_mut() {
                act(self.flat)
            }
        }
    }

    /// A ring at rest with all indices at `start`.
    fn ring(start: u32) -> Flat<BYTES> {
        let flat = Flat::default();
        flat.store(REQ_PROD, start);
        flat.store(REQ_EVENT, start.wrapping_add(1));
        flat.store(RSP_PROD, start);
        flat.store(RSP_EVENT, start.wrapping_add(1));
        flat
    }

    /// A frontend that has used its ring up to `start`.
    fn front(flat: &Flat<BYTES>, start: u32) -> Front<&Flat<BYTES>> {
        Front { memory: flat, shape: SMALL, req_prod: start, published: start, rsp_cons: start, rsp_prod: start }
    }

    #[test]
    fn shapes_of_the_header() {
        // __RING_SIZE of io/ring.h, printed by a C program for 1 to 16 pages, both layouts.
        for (pages, slots) in [(1, 32), (2, 64), (4, 128), (8, 256), (16, 512)] {
            assert_eq!(Shape::new(pages, 112), Shape { slots, stride: 112 });
            assert_eq!(Shape::new(pages, 108), Shape { slots, stride: 108 });
            assert!(Shape::new(pages, 112).bytes() <= pages * 4096);
        }
        assert_eq!(Shape::new(1, 112).bytes(), 64 + 32 * 112);
        assert_eq!(Shape::new(1, 4032).slots, 1);
        for (pages, stride) in [(0, 112), (1, 4033), (1, 0), ((1 << 16) + 1, 112)] {
            assert!(std::panic::catch_unwind(|| Shape::new(pages, stride)).is_err(), "{pages} {stride}");
        }
        assert_eq!(Shape::new(1, 63).slots, 64);
    }

    #[test]
    fn slots_lie_where_the_header_puts_them() {
        let flat = ring(0);
        flat.write(64 + 2 * 112, b"third");
        flat.store(REQ_PROD, 3);
        let mut back = Back::attach(&flat, Shape::new(1, 112)).unwrap();
        let mut entry = [0; 112];
        for expected in [&[0; 5], &[0; 5], b"third"] {
            assert_eq!(back.take(&mut entry), Ok(true));
            assert_eq!(&entry[..5], expected);
        }
        assert_eq!(back.take(&mut entry), Ok(false));
        back.put(b"one");
        back.put(b"two");
        let mut bytes = [0; 3];
        flat.read(64 + 112, &mut bytes);
        assert_eq!(&bytes, b"two");
        assert_eq!(flat.load(RSP_PROD), 0);
        assert!(back.publish());
        assert_eq!(flat.load(RSP_PROD), 2);
    }

    #[test]
    fn a_fresh_ring_is_the_headers() {
        let flat = Flat::<BYTES>::default();
        flat.write(0, &[0xa5; 128]);
        let front = Front::init(&flat, SMALL);
        let mut head = [0xff; 64];
        flat.read(0, &mut head);
        assert_eq!(head[..16], [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(head[16..], [0; 48]);
        assert_eq!((front.free(), front.outstanding()), (4, 0));
    }

    #[test]
    fn attach_starts_where_answers_end() {
        for (start, ahead, fine) in
            [(0, 0, true), (7, 4, true), (u32::MAX, 4, true), (7, 5, false), (7, u32::MAX, false)]
        {
            let flat = ring(start);
            flat.store(REQ_PROD, start.wrapping_add(ahead));
            let mut entry = [0; 16];
            match Back::attach(&flat, SMALL) {
                Ok(mut back) => {
                    assert!(fine);
                    for _ in 0..ahead {
                        assert_eq!(back.take(&mut entry), Ok(true));
                    }
                    assert_eq!(back.take(&mut entry), Ok(false));
                    assert_eq!(back.taken(), ahead);
                }
                Err(Overrun) => assert!(!fine),
            }
        }
    }

    #[test]
    fn producers_that_jump_are_overruns() {
        for start in [0, 5, u32::MAX - 1] {
            for jump in [5, 6, 1 << 31, (1 << 31) - 1, u32::MAX] {
                let flat = ring(start);
                let mut back = Back::attach(&flat, SMALL).unwrap();
                flat.store(REQ_PROD, start.wrapping_add(jump));
                assert_eq!(back.take(&mut [0; 16]), Err(Overrun));
                assert_eq!(back.rearm(), Err(Overrun));
                assert_eq!(back.taken(), 0);
            }
        }
    }

    #[test]
    fn a_producer_may_not_go_back_nor_pass_what_it_has_seen() {
        let flat = ring(0);
        let mut back = Back::attach(&flat, SMALL).unwrap();
        let mut entry = [0; 16];
        flat.store(REQ_PROD, 3);
        for _ in 0..3 {
            assert_eq!(back.take(&mut entry), Ok(true));
        }
        flat.store(REQ_PROD, 2);
        assert_eq!(back.take(&mut entry), Err(Overrun));
        flat.store(REQ_PROD, 5);
        assert_eq!(back.take(&mut entry), Err(Overrun));
        // Put but not yet published: the frontend cannot have known.
        back.put(&[0; 16]);
        assert_eq!(back.take(&mut entry), Err(Overrun));
        assert!(back.publish());
        assert_eq!(back.take(&mut entry), Ok(true));
        assert_eq!(back.take(&mut entry), Ok(true));
        assert_eq!((back.take(&mut entry), back.taken()), (Ok(false), 4));
    }

    #[test]
    fn a_batch_looks_once() {
        let flat = ring(0);
        let memory = Watched::new(&flat);
        let mut back = Back::attach(&memory, SMALL).unwrap();
        flat.store(REQ_PROD, 4);
        let before = memory.loads();
        for _ in 0..4 {
            assert_eq!(back.take(&mut [0; 16]), Ok(true));
            // What it says while we take cannot change how much we take.
            flat.store(REQ_PROD, 0x1234_5678);
        }
        assert_eq!(memory.loads()[REQ_PROD / 4], before[REQ_PROD / 4] + 1);
        assert_eq!(back.take(&mut [0; 16]), Err(Overrun));
        assert_eq!(memory.loads()[RSP_PROD / 4], before[RSP_PROD / 4]);
    }

    #[test]
    fn the_notify_rule() {
        // old, new, event -> notify: the event index lies in old+1..=new.
        for start in [0, u32::MAX - 2] {
            for event in 0..8u32 {
                let flat = ring(start);
                flat.store(REQ_PROD, start.wrapping_add(4));
                let mut back = Back::attach(&flat, SMALL).unwrap();
                for count in [1, 2, 1] {
                    let old = back.published.wrapping_sub(start);
                    flat.store(RSP_EVENT, start.wrapping_add(event));
                    for _ in 0..count {
                        assert_eq!(back.take(&mut [0; 16]), Ok(true));
                        back.put(&[0; 16]);
                    }
                    assert_eq!(back.publish(), (old + 1..=old + count).contains(&event), "{event} after {old}");
                    assert!(!back.publish(), "nothing new");
                }
            }
        }
    }

    #[test]
    fn publish_looks_at_the_event_after_the_barrier() {
        let flat = ring(0);
        flat.store(REQ_PROD, 1);
        flat.store(RSP_EVENT, 0x7000_0000);
        let memory = Watched::new(&flat);
        let mut back = Back::attach(&memory, SMALL).unwrap();
        assert_eq!(back.take(&mut [0; 16]), Ok(true));
        back.put(&[0; 16]);
        memory.at_fence(|flat| {
            assert_eq!(flat.load(RSP_PROD), 1);
            flat.store(RSP_EVENT, 1);
        });
        assert!(back.publish());
        // And the frontend's.
        let flat = ring(0);
        flat.store(REQ_EVENT, 0x7000_0000);
        let memory = Watched::new(&flat);
        memory.at_fence(|flat| {
            assert_eq!(flat.load(REQ_PROD), flat.load(RSP_PROD) + 1);
            flat.store(REQ_EVENT, 1);
        });
        let mut front = front(&flat, 0).with(&memory);
        front.put(&[0; 16]);
        assert!(front.publish());
    }

    impl<'a> Front<&'a Flat<BYTES>> {
        fn with<'w>(self, memory: &'w Watched<'a>) -> Front<&'w Watched<'a>> {
            let Front { shape, req_prod, published, rsp_cons, rsp_prod, .. } = self;
            Front { memory, shape, req_prod, published, rsp_cons, rsp_prod }
        }
    }

    #[test]
    fn rearm_looks_after_the_barrier() {
        let flat = ring(9);
        let memory = Watched::new(&flat);
        let mut back = Back::attach(&memory, SMALL).unwrap();
        assert_eq!(back.rearm(), Ok(false));
        assert_eq!(flat.load(REQ_EVENT), 10);
        memory.at_fence(|flat| {
            assert_eq!(flat.load(REQ_EVENT), 10);
            flat.store(REQ_PROD, 10);
        });
        assert_eq!(back.rearm(), Ok(true));
        assert_eq!(back.take(&mut [0; 16]), Ok(true));
        // And the frontend's.
        let flat = ring(9);
        let memory = Watched::new(&flat);
        let mut front = front(&flat, 9).with(&memory);
        front.put(&[0; 16]);
        assert!(front.publish());
        flat.store(RSP_EVENT, 0);
        memory.at_fence(|flat| {
            assert_eq!(flat.load(RSP_EVENT), 10);
            flat.store(RSP_PROD, 10);
        });
        assert_eq!(front.rearm(), Ok(true));
        assert_eq!(front.take(&mut [0; 16]), Ok(true));
    }

    #[test]
    fn rearm_knows_of_requests_not_taken() {
        let flat = ring(0);
        flat.store(REQ_PROD, 2);
        let mut back = Back::attach(&flat, SMALL).unwrap();
        assert_eq!((back.rearm(), flat.load(REQ_EVENT)), (Ok(true), 1));
        assert_eq!(back.take(&mut [0; 16]), Ok(true));
        assert_eq!((back.rearm(), flat.load(REQ_EVENT)), (Ok(true), 1));
        assert_eq!(back.take(&mut [0; 16]), Ok(true));
        assert_eq!((back.rearm(), flat.load(REQ_EVENT)), (Ok(false), 3));
    }

    #[test]
    fn rearm_knows_of_responses_not_taken() {
        let flat = ring(0);
        let mut front = front(&flat, 0);
        front.put(&[0; 16]);
        front.put(&[0; 16]);
        assert!(front.publish());
        flat.store(RSP_PROD, 2);
        assert_eq!(front.take(&mut [0; 16]), Ok(true));
        assert_eq!((front.rearm(), flat.load(RSP_EVENT)), (Ok(true), 1));
        assert_eq!(front.take(&mut [0; 16]), Ok(true));
        assert_eq!((front.rearm(), flat.load(RSP_EVENT)), (Ok(false), 3));
    }

    #[test]
    fn a_backend_cannot_answer_what_was_not_asked() {
        for start in [0, u32::MAX] {
            let flat = ring(start);
            let mut front = front(&flat, start);
            flat.store(RSP_PROD, start.wrapping_add(1));
            assert_eq!(front.take(&mut [0; 16]), Err(Overrun));
            assert_eq!(front.rearm(), Err(Overrun));
            front.put(&[0; 16]);
            front.put(&[0; 16]);
            assert_eq!(front.take(&mut [0; 16]), Err(Overrun), "put, but not shown");
            let _ = front.publish();
            assert_eq!(front.take(&mut [0; 16]), Ok(true));
            flat.store(RSP_PROD, start);
            assert_eq!(front.take(&mut [0; 16]), Err(Overrun), "backward");
            flat.store(RSP_PROD, start.wrapping_add(3));
            assert_eq!(front.take(&mut [0; 16]), Err(Overrun), "one too many");
        }
    }

    #[test]
    #[should_panic]
    fn no_response_without_a_request() {
        Back::attach(&ring(0), SMALL).unwrap().put(&[0; 16]);
    }

    #[test]
    #[should_panic]
    fn no_request_without_a_slot() {
        let flat = ring(0);
        let mut front = front(&flat, 0);
        (0..5).for_each(|_| front.put(&[0; 16]));
    }

    #[test]
    fn an_event_is_for_answers_that_were_asked_about() {
        let flat = ring(9);
        let memory = Watched::new(&flat);
        let mut back = Back::attach(&memory, SMALL).unwrap();
        flat.store(REQ_PROD, 11);
        flat.store(RSP_EVENT, 11);
        assert_eq!(back.take(&mut [0; 16]), Ok(true));
        assert!(!back.publish(), "an event without an answer");
        back.put(b"one");
        assert!(!back.publish(), "an event for the first answer, asked for at the second");
        assert_eq!(back.take(&mut [0; 16]), Ok(true));
        back.put(b"two");
        assert!(back.publish());
        assert_eq!(memory.loads()[RSP_PROD / 4], 1, "our own index, read back after the start");
    }

    /// Two honest halves in random order, across the wrap: everything arrives once and in order, and a half that went
    /// to sleep after `rearm` is always notified.
    #[test]
    fn honest_halves_lose_nothing() {
        for seed in 1..200u32 {
            let start = 0u32.wrapping_sub(seed % 40);
            let flat = ring(start);
            let (mut front, mut back) = (front(&flat, start), Back::attach(&flat, SMALL).unwrap());
            let (mut asked, mut answered, mut held) = (0u32, 0u32, VecDeque::new());
            let (mut back_sleeps, mut front_sleeps) = (false, false);
            let mut state = seed;
            let mut buffer = [0; 16];
            for _ in 0..2000 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                match state >> 29 {
                    0 | 1 if front.free() > 0 => {
                        front.put(&[asked.to_le_bytes(), [0; 4], [0; 4], [0; 4]].concat());
                        asked += 1;
                    }
                    2 => {
                        let news = front.published != front.req_prod;
                        let notify = front.publish();
                        assert!(!back_sleeps || notify == news, "a lost wake-up");
                        back_sleeps &= !notify;
                    }
                    3 if !back_sleeps => {
                        if back.take(&mut buffer).unwrap() {
                            held.push_back(buffer);
                        } else {
                            back_sleeps = !back.rearm().unwrap();
                        }
                    }
                    4 => {
                        if let Some(request) = held.pop_front() {
                            back.put(&request);
                        }
                    }
                    5 => {
                        let news = back.published != back.rsp_prod;
                        let notify = back.publish();
                        assert!(!front_sleeps || notify == news, "a lost wake-up");
                        front_sleeps &= !notify;
                    }
                    6 if !front_sleeps => {
                        if front.take(&mut buffer).unwrap() {
                            assert_eq!(buffer[..4], answered.to_le_bytes());
                            answered += 1;
                        } else {
                            front_sleeps = !front.rearm().unwrap();
                        }
                    }
                    _ => {}
                }
                assert_eq!(held.len(), back.taken() as usize);
                assert_eq!(front.outstanding(), asked - answered);
            }
            assert!(answered > 50, "{answered}");
        }
    }

    #[test]
    fn nothing_of_the_private_words_is_touched() {
        let flat = ring(0);
        flat.write(16, &[0xa5; 48]);
        flat.store(REQ_PROD, 4);
        let mut back = Back::attach(&flat, SMALL).unwrap();
        while back.take(&mut [0; 16]).unwrap() {
            back.put(&[0xff; 16]);
        }
        let _ = (back.publish(), back.rearm());
        let mut words = Vec::from([0; 48]);
        flat.read(16, &mut words);
        assert_eq!(words, [0xa5; 48]);
        flat.read(64 + 64, &mut words);
        assert_eq!(words, [0; 48], "behind the last slot");
    }
}
