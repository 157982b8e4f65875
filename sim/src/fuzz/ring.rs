//! The two halves of a ring against bytes: an account in wide numbers, kept apart, says what each call must come to.

use protocol::blkif::{Answer, RESPONSE_BYTES, Status};
use protocol::mem::{Flat, Memory};
use protocol::ring::{Back, Front, Overrun, Shape};

use super::blkif::{agree, product};
use crate::blkif::{Body, Layout, Request, Segment, op, status};
use crate::random::Random;
use xen::port::GrantRef;

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;

/// 16 pages, the largest ring we offer.
type Pages = Flat<65536>;

/// What one half has done, in numbers that do not wrap.
struct Account {
    /// The index at which it all began.
    start: u32,
    slots: u64,
    /// The peer's producer as far as it was believed.
    seen: u64,
    taken: u64,
    put: u64,
    published: u64,
}

impl Account {
    fn new(start: u32, slots: u32) -> Self {
        Account { start, slots: slots.into(), seen: 0, taken: 0, put: 0, published: 0 }
    }

    /// A count as an index of the ring.
    fn index(&self, count: u64) -> u32 {
        self.start.wrapping_add(count as u32)
    }

    /// The byte offset of the slot of that count.
    fn at(&self, count: u64, stride: usize) -> usize {
        64 + (u64::from(self.index(count)) % self.slots) as usize * stride
    }

    /// The count that a peer's index stands for, if it lies in `from..=to`.
    fn count(&self, index: u32, from: u64, to: u64) -> Option<u64> {
        (from..=to).find(|count| self.index(*count) == index)
    }

    /// Whether the peer's event index lies in what is about to be shown.
    fn wants_event(&self, event: u32) -> bool {
        self.count(event, self.published + 1, self.put).is_some()
    }
}

/// A frontend's ring.
pub fn requests(bytes: &[u8]) {
    let mut tape = Random::of(bytes);
    let layout = tape.pick(&[Layout::X86_64, Layout::X86_32]);
    let stride = product(layout).entry_bytes();
    let shape = Shape::new(1 << tape.below(5), stride);
    let start = tape.pick(&[0, 5, u32::MAX, u32::MAX - 40, shape.slots - 1]);
    let memory = Pages::default();
    for (at, value) in [(REQ_PROD, start), (REQ_EVENT, start.wrapping_add(1)), (RSP_PROD, start), (RSP_EVENT, 0)] {
        memory.store(at, value);
    }
    let mut account = Account::new(start, shape.slots);
    let ahead = tape.below(256) as u32;
    memory.store(REQ_PROD, start.wrapping_add(ahead));
    let mut back = match Back::attach(&memory, shape) {
        Ok(back) => back,
        Err(Overrun) => return assert!(ahead > shape.slots),
    };
    assert!(ahead <= shape.slots);
    account.seen = ahead.into();
    let offered = tape.pick(&[0, 32, 256]);
    while !tape.is_spent() {
        match tape.below(9) {
            0 | 1 => {
                let request = request(&mut tape);
                // Where the next request goes, by somebody who keeps count; or anywhere.
                let index = if tape.one_in(8) { tape.next() as u32 } else { memory.load(REQ_PROD) };
                let slot = index % shape.slots;
                memory.write(64 + slot as usize * stride, &request.encode(layout, 0));
                memory.store(REQ_PROD, memory.load(REQ_PROD).wrapping_add(1));
            }
            2 => {
                let (at, value) = (tape.index(16) * 4, tape.next() as u32);
                let near = account.index(account.taken).wrapping_add(value % 64).wrapping_sub(16);
                memory.store(at, if tape.one_in(4) { value } else { near });
            }
            3 => {
                let (slot, at) = (tape.index(shape.slots as usize), tape.index(stride));
                memory.write(64 + slot * stride + at, &[tape.below(256) as u8]);
            }
            4 | 5 => take(&mut back, &mut account, &memory, layout, offered),
            6 if account.taken > account.put => {
                let response = tape.next().to_le_bytes();
                back.put(&response);
                let mut written = [0; 8];
                memory.read(account.at(account.put, stride), &mut written);
                assert_eq!(written, response, "where the frontend looks for it");
                account.put += 1;
            }
            7 => {
                let before = memory.load(RSP_PROD);
                let wanted = account.wants_event(memory.load(RSP_EVENT));
                let news = account.put != account.published;
                assert_eq!(back.publish(), wanted);
                assert_eq!(memory.load(RSP_PROD), if news { account.index(account.put) } else { before });
                account.published = account.put;
            }
            8 => {
                let due = account.seen == account.taken;
                let expected = if due { look(&mut account, &memory) } else { Ok(true) };
                assert_eq!(back.rearm(), expected);
                assert!(!due || memory.load(REQ_EVENT) == account.index(account.taken + 1));
            }
            _ => {}
        }
        assert_eq!(u64::from(back.taken()), account.taken - account.put);
    }
}

/// What a look at the producer must come to: at most a ring of requests that were not answered, and none taken back.
fn look(account: &mut Account, memory: &Pages) -> Result<bool, Overrun> {
    let index = memory.load(REQ_PROD);
    let seen = account.count(index, account.taken, account.published + account.slots).ok_or(Overrun)?;
    account.seen = seen;
    Ok(seen > account.taken)
}

fn take(back: &mut Back<&Pages>, account: &mut Account, memory: &Pages, layout: Layout, offered: u16) {
    let stride = product(layout).entry_bytes();
    let mut entry = [0; 112];
    let expected = if account.seen > account.taken { Ok(true) } else { look(account, memory) };
    assert_eq!(back.take(&mut entry[..stride]), expected);
    if expected == Ok(true) {
        let mut there = [0; 112];
        memory.read(account.at(account.taken, stride), &mut there[..stride]);
        assert_eq!(entry, there, "the slot at its index");
        agree(&entry[..stride], layout, offered);
        account.taken += 1;
    }
}

/// A request that is nearly right.
fn request(tape: &mut Random) -> Request {
    let op = tape.pick(&[op::READ, op::WRITE, op::FLUSH, op::BARRIER, op::DISCARD, 4, 7]);
    let grant = |tape: &mut Random| GrantRef(tape.below(256) as u32);
    let body = match op {
        op::DISCARD => Body::Discard { sectors: tape.below(65536) },
        _ if tape.one_in(3) => {
            let count: u16 = tape.pick(&[0, 1, 32, 256, 257, 513, 4096]);
            Body::Indirect { count, pages: (0..count.div_ceil(512)).map(|_| grant(tape)).collect() }
        }
        _ => {
            let count = tape.pick(&[0, 1, 2, 10, 11]);
            let mut segment = || Segment { grant: grant(tape), first: tape.below(9) as u8, last: tape.below(9) as u8 };
            Body::Segments((0..count).map(|_| segment()).collect())
        }
    };
    Request { op, id: tape.next(), sector: tape.below(65536), body }
}

/// A lower backend's answers.
pub fn answers(bytes: &[u8]) {
    let mut tape = Random::of(bytes);
    let shape = Shape::new(1 << tape.below(5), 112);
    let memory = Pages::default();
    memory.write(0, &[0xa5; 64]);
    let mut front = Front::init(&memory, shape);
    let mut account = Account::new(0, shape.slots);
    while !tape.is_spent() {
        match tape.below(8) {
            0 | 1 if account.put - account.taken < account.slots => {
                let request = request(&mut tape).encode(Layout::X86_64, 0);
                front.put(&request);
                let mut there = [0; 112];
                memory.read(account.at(account.put, 112), &mut there);
                assert_eq!(there, request[..], "where the backend looks for it");
                account.put += 1;
            }
            2 => {
                let before = memory.load(REQ_PROD);
                let wanted = account.wants_event(memory.load(REQ_EVENT));
                let news = account.put != account.published;
                assert_eq!(front.publish(), wanted);
                assert_eq!(memory.load(REQ_PROD), if news { account.index(account.put) } else { before });
                account.published = account.put;
            }
            3 => {
                let slot = tape.index(shape.slots as usize);
                memory.write(64 + slot * 112, &tape.next().to_le_bytes());
                memory.write(64 + slot * 112 + 8, &tape.next().to_le_bytes());
            }
            4 => memory.store(RSP_PROD, memory.load(RSP_PROD).wrapping_add(1)),
            5 => {
                let near = account.index(account.taken).wrapping_add(tape.below(64) as u32).wrapping_sub(16);
                memory.store(tape.index(16) * 4, near);
            }
            6 => answer(&mut front, &mut account, &memory),
            7 => {
                let due = account.seen == account.taken;
                let expected = if due { heard(&mut account, &memory) } else { Ok(true) };
                assert_eq!(front.rearm(), expected);
                assert!(!due || memory.load(RSP_EVENT) == account.index(account.taken + 1));
            }
            _ => {}
        }
        assert_eq!(u64::from(front.outstanding()), account.put - account.taken);
        assert_eq!(front.free() + front.outstanding(), shape.slots);
    }
}

/// What a look at the backend's producer must come to: no more answers than requests that were shown.
fn heard(account: &mut Account, memory: &Pages) -> Result<bool, Overrun> {
    let seen = account.count(memory.load(RSP_PROD), account.taken, account.published).ok_or(Overrun)?;
    account.seen = seen;
    Ok(seen > account.taken)
}

fn answer(front: &mut Front<&Pages>, account: &mut Account, memory: &Pages) {
    let mut response = [0; RESPONSE_BYTES];
    let expected = if account.seen > account.taken { Ok(true) } else { heard(account, memory) };
    assert_eq!(front.take(&mut response), expected);
    if expected != Ok(true) {
        return;
    }
    let mut there = [0; RESPONSE_BYTES];
    memory.read(account.at(account.taken, 112), &mut there);
    assert_eq!(response, there, "the slot at its index");
    account.taken += 1;
    let answer = Answer::parse(&response);
    assert_eq!((answer.id.to_le_bytes().as_slice(), answer.operation), (&there[..8], there[8]));
    let expected = match i16::from_le_bytes([there[10], there[11]]) {
        status::OKAY => Status::Okay,
        status::EOPNOTSUPP => Status::Unsupported,
        _ => Status::Error,
    };
    assert_eq!(answer.status, expected);
}
