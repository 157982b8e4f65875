//! The ring between xenstored and a domain (`io/xs_wire.h`), read apart from the product's own client.
//!
//! Bytes go in pieces that the seed cuts, and a connection is only looked at after its event or when xenstored itself
//! has something for it: a client that forgets to notify is found out.

use std::cell::RefCell;

use protocol::mem::Memory;
use xen::page::PageRef;
use xen::port::{DomId, Port};

use crate::fault::Fault;
use crate::random::Random;
use crate::store::daemon::{Daemon, Out, PAYLOAD_BYTES_MAX, kind};
use crate::world::{DOM0, World};

const RING_BYTES: u32 = 1024;
const REQ_AT: usize = 0;
const RSP_AT: usize = 1024;
const REQ_CONS: usize = 2048;
const REQ_PROD: usize = 2052;
const RSP_CONS: usize = 2056;
const RSP_PROD: usize = 2060;
const HEADER_BYTES: usize = 16;

pub(crate) struct Connection {
    pub domain: DomId,
    pub port: Port,
    client: u32,
    page: PageRef,
    random: Random,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    awake: bool,
    /// Turns that xenstored spends elsewhere.
    away: u64,
}

/// The most turns that xenstored is away at a time.
const AWAY_MAX: u64 = 2000;

impl Connection {
    pub fn new(domain: DomId, client: u32, page: PageRef, port: Port, mut random: Random) -> Self {
        // Nobody promised that indices start at 0, and they wrap.
        for (cons, prod) in [(REQ_CONS, REQ_PROD), (RSP_CONS, RSP_PROD)] {
            let start = if random.one_in(2) { 0 } else { u32::MAX - random.below(3000) as u32 };
            page.store(cons, start);
            page.store(prod, start);
        }
        Connection {
            domain,
            port,
            client,
            page,
            random,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            awake: true,
            away: 0,
        }
    }

    /// Moves some bytes each way. Returns whether it moved any.
    pub fn turn(&mut self, world: &World, daemon: &RefCell<Daemon>) -> bool {
        self.awake |= world.take_event(DOM0, self.port);
        if !self.awake && !daemon.borrow().has_output(self.client) {
            return false;
        }
        if self.away == 0 && self.domain != DOM0 && world.faults().strikes(Fault::StoreSlow).is_some() {
            self.away = world.faults().below(AWAY_MAX);
        }
        if self.away > 0 {
            self.away -= 1;
            self.awake = true;
            return true;
        }
        let mut busy = false;
        if !daemon.borrow().stalled(self.client) {
            busy |= self.receive(world, daemon);
        }
        busy |= self.send(world, daemon);
        self.awake = busy;
        if busy {
            world.stir();
        }
        busy
    }

    fn receive(&mut self, world: &World, daemon: &RefCell<Daemon>) -> bool {
        let (prod, cons) = (self.page.load(REQ_PROD), self.page.load(REQ_CONS));
        let ready = prod.wrapping_sub(cons);
        assert!(ready <= RING_BYTES, "{:?} broke the xenstore ring: {ready} bytes of requests", self.domain);
        if ready == 0 {
            return false;
        }
        let bytes = self.random.between(1, ready.into()) as u32;
        for i in 0..bytes {
            let mut byte = [0];
            self.page.read(REQ_AT + (cons.wrapping_add(i) % RING_BYTES) as usize, &mut byte);
            self.incoming.extend(byte);
        }
        self.page.store(REQ_CONS, cons.wrapping_add(bytes));
        world.notify(DOM0, self.port);
        while self.incoming.len() >= HEADER_BYTES {
            let word = |at: usize| u32::from_le_bytes(self.incoming[at..at + 4].try_into().expect("four bytes"));
            let (kind, request, transaction, length) = (word(0), word(4), word(8), word(12) as usize);
            assert!(length <= PAYLOAD_BYTES_MAX, "{:?} sent a xenstore message of {length} bytes", self.domain);
            if self.incoming.len() < HEADER_BYTES + length {
                break;
            }
            let payload: Vec<u8> = self.incoming.drain(..HEADER_BYTES + length).skip(HEADER_BYTES).collect();
            daemon.borrow_mut().queue(self.client, kind, request, transaction, &payload);
        }
        true
    }

    fn send(&mut self, world: &World, daemon: &RefCell<Daemon>) -> bool {
        if self.outgoing.is_empty() {
            let Some(out) = daemon.borrow_mut().take(self.client) else { return false };
            self.outgoing = encode(out);
        }
        let (prod, cons) = (self.page.load(RSP_PROD), self.page.load(RSP_CONS));
        let used = prod.wrapping_sub(cons);
        assert!(used <= RING_BYTES, "{:?} broke the xenstore ring: {used} bytes of answers", self.domain);
        let room = (RING_BYTES - used).min(self.outgoing.len() as u32);
        if room == 0 {
            return false;
        }
        let bytes = self.random.between(1, room.into()) as u32;
        for (i, byte) in self.outgoing.drain(..bytes as usize).enumerate() {
            self.page.write(RSP_AT + (prod.wrapping_add(i as u32) % RING_BYTES) as usize, &[byte]);
        }
        self.page.store(RSP_PROD, prod.wrapping_add(bytes));
        world.notify(DOM0, self.port);
        true
    }
}

fn encode(out: Out) -> Vec<u8> {
    let (kind, request, transaction, payload) = match out {
        Out::Reply { kind, request, transaction, payload } => (kind, request, transaction, payload),
        Out::Event { path, token } => (kind::WATCH_EVENT, 0, 0, format!("{path}\0{token}\0").into_bytes()),
    };
    let header = [kind, request, transaction, payload.len() as u32];
    header.iter().flat_map(|word| word.to_le_bytes()).chain(payload).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handle::SimXen;
    use crate::store::Store;
    use xen::port::Xen;

    const SELF: DomId = DomId(1);

    /// A client of a few lines: sends one message, takes what comes.
    struct Small {
        world: World,
        store: Store,
        xen: SimXen,
    }

    type Message = (u32, u32, u32, Vec<u8>);

    impl Small {
        fn new(seed: u64) -> Self {
            let mut random = Random::new(seed);
            let world = World::new(random.fork());
            let store = Store::new(&world, random.fork());
            world.create(SELF);
            store.introduce(SELF);
            let xen = SimXen::new(&world, SELF);
            Small { world, store, xen }
        }

        fn send(&self, kind: u32, request: u32, transaction: u32, payload: &[u8]) {
            let (page, port) = self.xen.store_ring();
            let header = [kind, request, transaction, payload.len() as u32];
            for byte in header.iter().flat_map(|word| word.to_le_bytes()).chain(payload.iter().copied()) {
                while page.load(REQ_PROD).wrapping_sub(page.load(REQ_CONS)) == RING_BYTES {
                    self.xen.notify(port);
                    assert!(self.store.turn());
                }
                let prod = page.load(REQ_PROD);
                page.write(REQ_AT + (prod % RING_BYTES) as usize, &[byte]);
                page.store(REQ_PROD, prod.wrapping_add(1));
            }
            self.xen.notify(port);
        }

        fn receive(&self, messages: usize) -> Vec<Message> {
            let (page, port) = self.xen.store_ring();
            let mut bytes = Vec::new();
            let mut got = Vec::new();
            while got.len() < messages {
                let progress = self.store.turn();
                let (prod, cons) = (page.load(RSP_PROD), page.load(RSP_CONS));
                assert!(progress || prod != cons, "nothing more comes");
                for i in 0..prod.wrapping_sub(cons) {
                    let mut byte = [0];
                    page.read(RSP_AT + (cons.wrapping_add(i) % RING_BYTES) as usize, &mut byte);
                    bytes.extend(byte);
                }
                page.store(RSP_CONS, prod);
                self.xen.notify(port);
                while bytes.len() >= 16 {
                    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
                    let (head, length) = ((word(0), word(4), word(8)), word(12) as usize);
                    if bytes.len() < 16 + length {
                        break;
                    }
                    let payload = bytes.drain(..16 + length).skip(16).collect();
                    got.push((head.0, head.1, head.2, payload));
                }
            }
            got
        }
    }

    #[test]
    fn messages_survive_every_cutting() {
        for seed in 0..50 {
            let small = Small::new(seed);
            let dom0 = small.store.client(DOM0);
            dom0.mkdir("/local/domain/1").unwrap();
            dom0.permit("/local/domain/1", &["n1"]).unwrap();
            let value = vec![b'x'; 1900];
            small.send(kind::WRITE, 1, 0, &[b"data/big\0".as_slice(), &value].concat());
            assert_eq!(small.receive(1), [(kind::WRITE, 1, 0, b"OK\0".to_vec())]);
            small.send(kind::READ, 2, 0, b"data/big\0");
            assert_eq!(small.receive(1), [(kind::READ, 2, 0, value)]);
            small.send(kind::READ, 3, 0, b"data/none\0");
            assert_eq!(small.receive(1), [(kind::ERROR, 3, 0, b"ENOENT\0".to_vec())]);
            small.send(kind::READ, 4, 0, b"data/none");
            assert_eq!(small.receive(1), [(kind::ERROR, 4, 0, b"EINVAL\0".to_vec())]);
            small.world.take_events(SELF);
        }
    }

    #[test]
    fn a_watch_is_acknowledged_and_then_fires() {
        for seed in 0..20 {
            let small = Small::new(seed);
            small.send(kind::WATCH, 9, 0, b"backend\0tok\0");
            let got = small.receive(2);
            assert_eq!(got[0], (kind::WATCH, 9, 0, b"OK\0".to_vec()));
            assert_eq!(got[1], (kind::WATCH_EVENT, 0, 0, b"backend\0tok\0".to_vec()));
        }
    }

    #[test]
    fn it_stops_listening_to_one_who_takes_no_answers() {
        let small = Small::new(3);
        small.store.client(DOM0).write("/big", &"x".repeat(500)).unwrap();
        small.store.client(DOM0).permit("/big", &["r0"]).unwrap();
        for i in 0..40 {
            small.send(kind::READ, i, 0, b"/big\0");
            while small.store.turn() {}
        }
        let (page, _) = small.xen.store_ring();
        assert_ne!(page.load(REQ_PROD), page.load(REQ_CONS));
        assert_eq!(small.receive(40).len(), 40);
    }
}
