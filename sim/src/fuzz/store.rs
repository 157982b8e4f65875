//! A xenstored that is bytes, against the product's client: as long as it keeps to the messages' frame, each request
//! gets the answer that came for it, whatever else comes in between; after that nothing but our own order is kept.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use protocol::mem::Memory;
use protocol::xenstore::{HEADER_BYTES, Header, Kind, PAYLOAD_BYTES, Reason};
use xen::domain::Domain;
use xen::memory::Budget;
use xen::page::PageRef;
use xen::port::{DomId, Port};
use xen::store::Store;

use crate::handle::SimXen;
use crate::random::Random;
use crate::run::heap;
use crate::world::{DOM0, World};

const SELF: DomId = DomId(1);
const RING_BYTES: u32 = 1024;
const REQ_CONS: usize = 2048;
const REQ_PROD: usize = 2052;
const RSP_CONS: usize = 2056;
const RSP_PROD: usize = 2060;
/// Turns of our tasks after one event, which are enough for any answer.
const TURNS_MAX: u32 = 10_000;
/// Rounds of bytes to and fro until all has been said.
const ROUNDS_MAX: u32 = 10_000;
/// The last change that watchers hear of.
const LAST: &str = "w/below/last";

/// A xenstored.
pub fn store(bytes: &[u8]) {
    let mut tape = Random::of(bytes);
    let mut daemon = Daemon::new(tape.pick(&[0, 1000, u32::MAX - 20]));
    let mut us = Us::new(&daemon.world);
    while !tape.is_spent() {
        match tape.below(12) {
            0 | 1 => us.ask(tape.below(8)),
            2 | 3 => us.run(&mut tape),
            4 => daemon.receive(tape.below(1200) as u32),
            5 | 6 => daemon.answer(&mut tape),
            7 => daemon.stray(&mut tape),
            8 | 9 => daemon.send(1 + tape.below(1500) as u32),
            10 => daemon.event(&mut tape),
            _ if tape.one_in(4) => daemon.break_off(&mut tape),
            _ => {}
        }
    }
    // Now an honest end.
    for round in 0..=ROUNDS_MAX {
        us.run(&mut tape);
        let before = daemon.moved;
        daemon.receive(u32::MAX);
        while !daemon.pending.is_empty() {
            daemon.answer_well(0, 0);
        }
        daemon.send(u32::MAX);
        if daemon.moved == before && (daemon.outgoing.is_empty() || !daemon.in_step) {
            if daemon.told_last {
                break;
            }
            // Who watches is told once more, when all that was to be told has been read.
            daemon.tell_last();
        }
        assert!(round < ROUNDS_MAX || !daemon.in_step, "no end");
    }
    if daemon.in_step {
        us.judge(&daemon.said);
    }
}

/// What a request came to.
type Outcome = Result<Vec<u8>, Reason>;

/// The product's side: its client, and tasks that ask.
struct Us {
    domain: Rc<Domain<SimXen>>,
    store: Store<SimXen>,
    asked: Vec<String>,
    got: Rc<RefCell<BTreeMap<String, Outcome>>>,
}

impl Us {
    fn new(world: &World) -> Self {
        let domain = Domain::new(SimXen::new(world, SELF), Budget::new(heap), Arc::default());
        let store = Store::connect(&domain);
        Us { domain, store, asked: Vec::new(), got: Rc::default() }
    }

    /// A task for a path that nobody else asks for.
    fn ask(&mut self, what: u64) {
        let path = format!("p{}", self.asked.len());
        self.asked.push(path.clone());
        let (store, got) = (self.store.clone(), self.got.clone());
        self.domain.exec.spawn(async move {
            let bytes = |result: Result<(), Reason>| result.map(|()| b"OK".to_vec());
            let outcome = match what {
                0..3 => store.read(&path).await.map(String::into_bytes),
                3 => store.list(&path).await.map(|names| names.join("\0").into_bytes()),
                4 => bytes(store.write(&path, "value").await),
                5 => {
                    let body = async |inside: &Store<SimXen>| inside.read("inside").await;
                    store.transaction(body).await.map(|_| b"OK".to_vec())
                }
                _ => match store.watch("w", "w/below").await {
                    Ok(watch) => {
                        let mut told = watch.next().await;
                        while what == 7 && told != LAST {
                            let mine =
                                ["", "/", "w", "w/below"].contains(&told.as_str()) || told.starts_with("w/below/");
                            assert!(mine, "told of {told:?}");
                            told = watch.next().await;
                        }
                        Ok(b"OK".to_vec())
                    }
                    Err(reason) => Err(reason),
                },
            };
            got.borrow_mut().insert(path, outcome);
        });
    }

    fn run(&mut self, tape: &mut Random) {
        self.domain.look();
        let mut turns = 0;
        while self.domain.exec.turn(&mut |ready| tape.index(ready)) {
            turns += 1;
            assert!(turns < TURNS_MAX, "the client is busy without end");
        }
    }

    /// Every request has ended, each with its own answer.
    fn judge(&self, said: &BTreeMap<String, Outcome>) {
        let got = self.got.borrow();
        for path in &self.asked {
            let outcome = got.get(path).unwrap_or_else(|| panic!("{path} waits for ever"));
            if let Some(expected) = said.get(path) {
                let text = expected.clone().and_then(|v| String::from_utf8(v).map_err(|_| Reason::Invalid));
                assert_eq!(*outcome, text.map(String::into_bytes), "{path}");
            }
        }
        // The one that moves the bytes stays.
        assert_eq!(self.domain.exec.tasks(), 1);
    }
}

/// What an event has for a number.
const NOBODY: Header = Header { kind: 0, request: 0, transaction: 0, bytes: 0 };

struct Daemon {
    world: World,
    page: PageRef,
    port: Port,
    incoming: Vec<u8>,
    pending: Vec<(Header, Vec<u8>)>,
    answered: Vec<(Header, Vec<u8>)>,
    outgoing: Vec<u8>,
    tokens: Vec<String>,
    /// What was answered to the reads and the writes, by path.
    said: BTreeMap<String, Outcome>,
    /// All that was sent is whole messages, and the indices make sense.
    in_step: bool,
    /// Bytes moved, ever.
    moved: u64,
    told_last: bool,
}

impl Daemon {
    fn new(start: u32) -> Self {
        let world = World::new(Random::new(0));
        world.create(SELF);
        let page = PageRef::alone().expect("memory for a test");
        let port = world.alloc_unbound(SELF, DOM0).expect("a new domain has ports");
        let ours = world.bind(DOM0, SELF, port).expect("just made");
        world.set_store(SELF, page.clone(), port);
        [REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD].iter().for_each(|at| page.store(*at, start));
        Daemon {
            world,
            page,
            port: ours,
            incoming: Vec::new(),
            pending: Vec::new(),
            answered: Vec::new(),
            outgoing: Vec::new(),
            tokens: Vec::new(),
            said: BTreeMap::new(),
            in_step: true,
            moved: 0,
            told_last: false,
        }
    }

    /// Takes up to so many bytes of requests. They are the product's, and keep the rules.
    fn receive(&mut self, bytes: u32) {
        let (prod, cons) = (self.page.load(REQ_PROD), self.page.load(REQ_CONS));
        let ready = prod.wrapping_sub(cons);
        if ready > RING_BYTES {
            return assert!(!self.in_step, "{ready} bytes of requests in the ring");
        }
        let bytes = bytes.min(ready);
        for i in 0..bytes {
            let mut byte = [0];
            self.page.read((cons.wrapping_add(i) % RING_BYTES) as usize, &mut byte);
            self.incoming.extend(byte);
        }
        self.page.store(REQ_CONS, cons.wrapping_add(bytes));
        self.moved += u64::from(bytes);
        if bytes > 0 {
            self.world.notify(DOM0, self.port);
        }
        while let Some(head) = self.incoming.first_chunk::<HEADER_BYTES>() {
            let header = match Header::decode(head) {
                Ok(header) if Kind::of(header.kind).is_some() => header,
                _ if self.in_step => panic!("a request out of step"),
                _ => return self.incoming.clear(),
            };
            let end = HEADER_BYTES + header.bytes as usize;
            if self.incoming.len() < end {
                break;
            }
            let payload: Vec<u8> = self.incoming.drain(..end).skip(HEADER_BYTES).collect();
            assert!(!self.in_step || payload.is_ascii(), "a request that is no text");
            self.pending.push((header, payload));
        }
    }

    fn say(&mut self, kind: Kind, to: &Header, payload: &[u8]) {
        let bytes = payload.len() as u32;
        let header = Header { kind: kind as u32, request: to.request, transaction: to.transaction, bytes };
        self.outgoing.extend(header.encode());
        self.outgoing.extend(payload);
    }

    /// Answers one of those that wait, in any order, well or with an error.
    fn answer(&mut self, tape: &mut Random) {
        if self.pending.is_empty() {
            return;
        }
        let which = tape.index(self.pending.len());
        let how = tape.below(256);
        if how < 192 {
            return self.answer_well(which, how as usize);
        }
        let (header, payload) = self.pending.remove(which);
        let reason = tape.pick(&[Reason::NoEntry, Reason::Again, Reason::Quota, Reason::Other, Reason::Exists]);
        if let (Some(Kind::Read | Kind::Write | Kind::Directory), 0) = (Kind::of(header.kind), header.transaction) {
            self.said.insert(path(&payload), Err(reason));
        }
        if header.kind == Kind::Watch as u32 && reason == Reason::Exists {
            self.tokens.push(token(&payload));
        }
        self.say(Kind::Error, &header, format!("{}\0", reason.name()).as_bytes());
        self.answered.push((header, payload));
    }

    fn answer_well(&mut self, which: usize, how: usize) {
        let (header, payload) = self.pending.remove(which);
        let kind = Kind::of(header.kind).expect("seen when it came");
        let value = match kind {
            // Now and then what is no text.
            Kind::Read => vec![if how == 77 { 0xff } else { b'x' }; how * how % (PAYLOAD_BYTES + 1)],
            Kind::Directory => b"one\0two\0".to_vec(),
            Kind::TransactionStart => format!("{}\0", how + 1).into_bytes(),
            _ => b"OK\0".to_vec(),
        };
        if header.transaction == 0 {
            let said = match kind {
                Kind::Read => Some(value.clone()),
                Kind::Directory => Some(b"one\0two".to_vec()),
                Kind::Write => Some(b"OK".to_vec()),
                _ => None,
            };
            self.said.extend(said.map(|said| (path(&payload), Ok(said))));
        }
        self.say(kind, &header, &value);
        if kind == Kind::Watch {
            // Its token is what we are to call it by; the first event comes at once.
            let token = token(&payload);
            self.say(Kind::WatchEvent, &NOBODY, format!("w\0{token}\0").as_bytes());
            self.tokens.push(token);
        }
        self.answered.push((header, payload));
    }

    /// A whole message that nobody asked for: again what was answered, an unknown number, an event that is no event.
    fn stray(&mut self, tape: &mut Random) {
        let nobody = Header { request: tape.next() as u32 | 1 << 31, ..NOBODY };
        let junk: Vec<u8> = (0..tape.below(64)).map(|_| tape.pick(&[0, b'w', b'/', b'1', 0xff])).collect();
        match tape.below(4) {
            0 if !self.answered.is_empty() => {
                let (header, _) = self.answered[tape.index(self.answered.len())];
                self.say(Kind::Read, &header, &junk);
            }
            1 => self.say(Kind::WatchEvent, &nobody, &junk),
            2 => self.say(Kind::Error, &nobody, &junk),
            _ => self.say(Kind::Read, &nobody, &junk),
        }
    }

    /// Something changed, below a watch or beside it; the watch may have ended.
    fn event(&mut self, tape: &mut Random) {
        let token = match self.tokens.len() {
            0 => "1".to_string(),
            some => self.tokens[tape.index(some)].clone(),
        };
        let place = tape.pick(&["w", "w/below", "w/below/x", "w/beside", "w/belowly", "/", ""]);
        self.say(Kind::WatchEvent, &NOBODY, format!("{place}\0{token}\0").as_bytes());
    }

    fn tell_last(&mut self) {
        for token in core::mem::take(&mut self.tokens) {
            self.say(Kind::WatchEvent, &NOBODY, format!("{LAST}\0{token}\0").as_bytes());
        }
        self.told_last = true;
    }

    /// Leaves the frame: a length that is too long, bytes from the middle of nowhere, an index that makes no sense.
    fn break_off(&mut self, tape: &mut Random) {
        self.in_step = false;
        match tape.below(3) {
            0 => {
                let bytes = tape.pick(&[4097, 65536, u32::MAX]);
                self.outgoing.extend(Header { kind: 2, request: 1, transaction: 0, bytes }.encode());
            }
            1 => self.outgoing.extend((0..tape.below(64)).map(|_| tape.below(256) as u8)),
            _ => {
                let at = tape.pick(&[REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD]);
                self.page.store(at, tape.next() as u32);
                self.world.notify(DOM0, self.port);
            }
        }
    }

    /// Sends up to so many bytes.
    fn send(&mut self, bytes: u32) {
        let (prod, cons) = (self.page.load(RSP_PROD), self.page.load(RSP_CONS));
        let Some(room) = RING_BYTES.checked_sub(prod.wrapping_sub(cons)) else {
            return assert!(!self.in_step, "the client broke the ring");
        };
        let bytes = bytes.min(room).min(self.outgoing.len() as u32);
        for (i, byte) in self.outgoing.drain(..bytes as usize).enumerate() {
            self.page.write(1024 + (prod.wrapping_add(i as u32) % RING_BYTES) as usize, &[byte]);
        }
        self.page.store(RSP_PROD, prod.wrapping_add(bytes));
        self.moved += u64::from(bytes);
        if bytes > 0 {
            self.world.notify(DOM0, self.port);
        }
    }
}

/// One of a request's words; what is out of step may have none.
fn word(payload: &[u8], index: usize) -> String {
    let word = payload.split(|byte| *byte == 0).nth(index).unwrap_or_default();
    String::from_utf8_lossy(word).into_owned()
}

fn path(payload: &[u8]) -> String {
    word(payload, 0)
}

fn token(payload: &[u8]) -> String {
    word(payload, 1)
}
