//! A vchan's page that the other side writes, whatever it likes and whenever: an account kept apart says what each call
//! must come to.

use protocol::mem::{Flat, Memory};
use protocol::ring::Overrun;
use protocol::vchan::{Endpoint, Orders, PAGE_BYTES, Peer, Place, Rings};

use crate::random::Random;

/// The largest ring tried: 8 pages.
type Ring = Flat<32768>;
type Page = Flat<PAGE_BYTES>;

/// One direction: whose index is whose, and where the bytes are.
struct Lane<'a> {
    ours: usize,
    theirs: usize,
    memory: &'a dyn Memory,
    at: usize,
    size: u32,
    own: u32,
}

impl Lane<'_> {
    fn bytes(&self, from: u32, count: usize) -> Vec<u8> {
        (0..count as u32)
            .map(|i| {
                let mut byte = [0];
                self.memory.read(self.at + (from.wrapping_add(i) % self.size) as usize, &mut byte);
                byte[0]
            })
            .collect()
    }
}

/// Either the page or a ring of its own, as one type.
enum Either<'a> {
    Page(&'a Page),
    Ring(&'a Ring),
}

impl Either<'_> {
    fn memory(&self) -> &dyn Memory {
        match self {
            Either::Page(page) => *page,
            Either::Ring(ring) => *ring,
        }
    }
}

/// A page, and what the other side does to it.
pub fn vchan(bytes: &[u8]) {
    let mut tape = Random::of(bytes);
    orders(&mut tape);
    let orders = tape.pick(&[(10, 11), (11, 10), (10, 12), (12, 11), (12, 12), (13, 15)]);
    let orders = Orders::new(orders.0, orders.1).expect("a pair that can be");
    let (page, left, right) = (Page::default(), Ring::default(), Ring::default());
    let either = |place, ring| match place {
        Place::InPage(at) => (Either::Page(&page), at),
        Place::Pages(_) => (Either::Ring(ring), 0),
    };
    let (left, right) = (either(orders.left(), &left), either(orders.right(), &right));
    let serves = tape.one_in(2);
    let mut endpoint = {
        let rings = Rings { left: left.0.memory(), right: right.0.memory() };
        if serves {
            Endpoint::serve(&page as &dyn Memory, rings, orders, 8..)
        } else {
            // What a server left there: any indices.
            (0..4).for_each(|i| page.store(4 * i, tape.pick(&[0, 1, 1023, u32::MAX, 70_000])));
            Endpoint::connect(&page as &dyn Memory, rings, orders)
        }
    };
    let lane = |ours: usize, theirs: usize, ring: &(Either<'_>, usize), size| (ours, theirs, ring.1, size);
    let reads = if serves { lane(0, 4, &left, orders.left_bytes()) } else { lane(8, 12, &right, orders.right_bytes()) };
    let writes =
        if serves { lane(12, 8, &right, orders.right_bytes()) } else { lane(4, 0, &left, orders.left_bytes()) };
    let (into, from) = if serves { (&left.0, &right.0) } else { (&right.0, &left.0) };
    let as_lane = |(ours, theirs, at, size): (usize, usize, usize, u32), ring| {
        let own = page.load(ours);
        Lane { ours, theirs, memory: Either::memory(ring), at, size, own }
    };
    let (mut incoming, mut outgoing) = (as_lane(reads, into), as_lane(writes, from));
    let (asked, wished) = if serves { (22, 23) } else { (23, 22) };
    let (mut broken, mut buffer) = (false, vec![0; 40_000]);
    while !tape.is_spent() {
        let wishes = page.load8(wished);
        match tape.below(10) {
            0..2 => {
                // The peer moves an index of its own, well or not.
                let lane = if tape.one_in(2) { &incoming } else { &outgoing };
                let step = tape.pick(&[1, 3, 500, 1024, 4096, 32768, 32769, u32::MAX]);
                page.store(lane.theirs, page.load(lane.theirs).wrapping_add(step));
            }
            2 => page.store(lane_of(&mut tape), tape.next() as u32),
            3 => page.store8(20 + tape.index(4), tape.below(4) as u8),
            4 => incoming.memory.write(incoming.at + tape.index(incoming.size as usize), &[tape.below(256) as u8]),
            5 | 6 => {
                let want = tape.pick(&[0, 1, 7, 544, 4096, 40_000]);
                let there = page.load(incoming.theirs).wrapping_sub(incoming.own);
                broken |= there > incoming.size;
                let moved = endpoint.read(&mut buffer[..want]);
                if broken {
                    assert_eq!(moved, Err(Overrun));
                    continue;
                }
                let (moved, expected) = (moved.expect("in order"), want.min(there as usize));
                assert_eq!(moved.bytes, expected);
                assert_eq!(moved.notify, expected > 0 && wishes & 2 != 0);
                assert!(buffer[..expected] == incoming.bytes(incoming.own, expected), "bytes of the ring");
                incoming.own = incoming.own.wrapping_add(expected as u32);
                assert!(expected == 0 || page.load(incoming.ours) == incoming.own);
                assert_eq!(page.load8(wished), if expected > 0 { wishes & !2 } else { wishes });
            }
            7 | 8 => {
                let count = tape.pick(&[0, 1, 7, 544, 4096, 40_000]);
                let first = tape.below(256) as u8;
                buffer[..count].iter_mut().zip(first..=255).for_each(|(byte, value)| *byte = value);
                let used = outgoing.own.wrapping_sub(page.load(outgoing.theirs));
                broken |= used > outgoing.size;
                let moved = endpoint.write(&buffer[..count]);
                if broken {
                    assert_eq!(moved, Err(Overrun));
                    continue;
                }
                let (moved, expected) = (moved.expect("in order"), count.min((outgoing.size - used) as usize));
                assert_eq!(moved.bytes, expected);
                assert_eq!(moved.notify, expected > 0 && wishes & 1 != 0);
                assert!(buffer[..expected] == outgoing.bytes(outgoing.own, expected), "bytes of ours");
                outgoing.own = outgoing.own.wrapping_add(expected as u32);
                assert!(expected == 0 || page.load(outgoing.ours) == outgoing.own);
                assert_eq!(page.load8(wished), if expected > 0 { wishes & !1 } else { wishes });
            }
            _ => {
                let there = page.load(incoming.theirs).wrapping_sub(incoming.own);
                let used = outgoing.own.wrapping_sub(page.load(outgoing.theirs));
                let (looked, bit, sound, some) = if tape.one_in(2) {
                    (endpoint.ask_data(), 1, there <= incoming.size, there > 0)
                } else {
                    (endpoint.ask_room(), 2, used <= outgoing.size, used < outgoing.size)
                };
                broken |= !sound;
                assert_eq!(looked, if broken { Err(Overrun) } else { Ok(some) });
                assert_eq!(page.load8(asked) & bit, bit, "the wish is there");
                let met = endpoint.has_met();
                let peer = endpoint.peer();
                assert!(!met || peer != Peer::Awaited && endpoint.has_met());
            }
        }
    }
    endpoint.close();
    assert_eq!(page.load8(if serves { 21 } else { 20 }), 0);
}

/// An index of either side.
fn lane_of(tape: &mut Random) -> usize {
    tape.index(4) * 4
}

/// Any pair of orders: those that can be have rings that lie apart from the head, the grants and each other.
fn orders(tape: &mut Random) {
    let page = Page::default();
    let (left, right) = (tape.below(24), tape.below(24));
    page.store(16, (right << 16 | left) as u32);
    let Ok(orders) = Orders::read(&page) else { return };
    assert_eq!((u64::from(orders.left_bytes()), u64::from(orders.right_bytes())), (1 << left, 1 << right));
    let head = 24 + 4 * orders.grants();
    assert!(head <= PAGE_BYTES);
    let lies = |place, bytes: u32| match place {
        Place::InPage(at) => {
            assert!(at >= head && at + bytes as usize <= PAGE_BYTES, "in the page, behind the grants");
            Some(at..at + bytes as usize)
        }
        Place::Pages(pages) => {
            assert_eq!(pages * PAGE_BYTES, bytes as usize);
            None
        }
    };
    if let (Some(left), Some(right)) =
        (lies(orders.left(), orders.left_bytes()), lies(orders.right(), orders.right_bytes()))
    {
        assert!(left.end <= right.start || right.end <= left.start, "one over the other");
    }
}
