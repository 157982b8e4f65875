//! A program in some domain that connects to one path again and again and expects every byte to come back: honest,
//! clumsy or hostile.
//!
//! It acts when an event came, when the path's watch fired, or when its own time has come, and at no other time.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use protocol::mem::Memory;
use xen::port::{DomId, Instant};

use crate::marks;
use crate::random::Random;
use crate::run::{Actor, DRIVER, Run};
use crate::store;
use crate::vchan::client::{Client, offer};
use crate::vchan::page::at;
use crate::world::World;

/// What it does to a connection beside using it. The names are rows of [`marks`](crate::marks).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Deed {
    Honest,
    PartialThenClose,
    RepliesUnread,
    NeverReads,
    Killed,
    KilledWithoutEvent,
    Vanishes,
    KeepsMapped,
    SecondProcess,
    ConnectsAgain,
    NoKick,
    ProducerBeyond,
    ProducerBack,
    ConsumerBeyond,
    ConsumerBack,
    ClientFlag,
    ServerFlag,
    Orders,
    Grants,
    Wishes,
    OurIndices,
    Storm,
}

use Deed::*;

/// What buggy and unlucky programs do.
pub const CLUMSY: [Deed; 10] = [
    PartialThenClose,
    RepliesUnread,
    NeverReads,
    Killed,
    KilledWithoutEvent,
    Vanishes,
    KeepsMapped,
    SecondProcess,
    ConnectsAgain,
    NoKick,
];

/// What only an attacker does.
pub const HOSTILE: [Deed; 11] = [
    ProducerBeyond,
    ProducerBack,
    ConsumerBeyond,
    ConsumerBack,
    ClientFlag,
    ServerFlag,
    Orders,
    Grants,
    Wishes,
    OurIndices,
    Storm,
];

/// Every deed's row.
pub const ROWS: [&str; 1 + CLUMSY.len() + HOSTILE.len()] = {
    let mut rows = [Honest.mark(); 1 + CLUMSY.len() + HOSTILE.len()];
    let mut i = 0;
    while i < CLUMSY.len() {
        rows[1 + i] = CLUMSY[i].mark();
        i += 1;
    }
    while i < CLUMSY.len() + HOSTILE.len() {
        rows[1 + i] = HOSTILE[i - CLUMSY.len()].mark();
        i += 1;
    }
    rows
};

impl Deed {
    /// Its row.
    pub const fn mark(self) -> &'static str {
        match self {
            Honest => "vchan: keeps every rule",
            PartialThenClose => "vchan: closes in the middle of a message",
            RepliesUnread => "vchan: closes with replies unread",
            NeverReads => "vchan: never reads replies",
            Killed => "vchan: killed, and the kernel says so",
            KilledWithoutEvent => "vchan: killed, and no event comes",
            Vanishes => "vchan: vanishes without a word",
            KeepsMapped => "vchan: keeps the pages mapped",
            SecondProcess => "vchan: a second process in the page",
            ConnectsAgain => "vchan: closes and connects again before anybody looks",
            NoKick => "vchan: connects without an event",
            ProducerBeyond => "vchan: producer beyond the ring",
            ProducerBack => "vchan: producer goes back",
            ConsumerBeyond => "vchan: consumer beyond the producer",
            ConsumerBack => "vchan: consumer goes back",
            ClientFlag => "vchan: cli_live is nonsense",
            ServerFlag => "vchan: srv_live rewritten",
            Orders => "vchan: orders rewritten",
            Grants => "vchan: grants rewritten",
            Wishes => "vchan: notify bits are nonsense",
            OurIndices => "vchan: the server's indices rewritten",
            Storm => "vchan: a storm of events",
        }
    }

    /// Whether a server must throw one out who does that.
    fn is_fatal(self) -> bool {
        matches!(self, ProducerBeyond | ProducerBack | ConsumerBeyond | ConsumerBack | ClientFlag | SecondProcess)
    }

    /// Whether nobody can say any more which bytes are to come back. What a server does not look at again is not
    /// among these: it must go on as if nothing had been.
    fn confuses(self) -> bool {
        self.is_fatal() || matches!(self, ServerFlag | OurIndices)
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Connections made.
    pub connects: u32,
    /// Connections used to their honest end.
    pub finished: u32,
    /// Connections that the server ended.
    pub dropped: u32,
    /// Bytes that came back.
    pub echoed: u64,
}

struct Talk {
    client: Client,
    deed: Deed,
    /// Turns before the deed.
    patience: u64,
    done: bool,
    message: Vec<u8>,
    sent: usize,
    received: usize,
    /// It sleeps until an event.
    asleep: bool,
    /// When it goes, whatever the server does.
    leave: Option<Instant>,
    /// The server must have thrown it out before.
    condemned: bool,
    /// Events it still sends for nothing.
    storm: u32,
}

impl Talk {
    fn reads(&self) -> bool {
        !(self.deed == NeverReads || self.deed == RepliesUnread && self.patience < 6)
    }
}

/// The program.
pub struct Caller {
    world: World,
    store: store::Client,
    random: Random,
    id: DomId,
    server: DomId,
    path: String,
    talk: Option<Talk>,
    /// The watch fired, or it begins.
    look: bool,
    /// The server has certainly seen the last connection.
    met: bool,
    kept: Vec<(Instant, Vec<u64>)>,
    /// Which deeds it may choose from for each connection.
    pub deeds: Vec<Deed>,
    /// Connections that it still wants to use to their end.
    pub rounds: u32,
    /// The longest message.
    pub bytes_max: u64,
    /// What came of it so far.
    pub tally: Tally,
}

/// A caller that a test and the scheduler share.
pub type SharedCaller = Rc<RefCell<Caller>>;

impl Caller {
    /// A program of `id` that wants to talk to the domain under test that many times.
    pub fn join(run: &mut Run, id: DomId, path: &str, deeds: &[Deed], rounds: u32) -> SharedCaller {
        let store = run.store.client(id);
        store.watch(path, "vchan").expect("a watch");
        let caller = Rc::new(RefCell::new(Caller {
            world: run.world.clone(),
            store,
            random: run.random.fork(),
            id,
            server: DRIVER,
            path: path.into(),
            talk: None,
            look: true,
            met: false,
            kept: Vec::new(),
            deeds: deeds.to_vec(),
            rounds,
            bytes_max: 20_000,
            tally: Tally::default(),
        }));
        run.add(caller.clone());
        caller
    }

    /// Whether it has all it wanted and holds nothing any more.
    pub fn at_rest(&self) -> bool {
        self.rounds == 0 && self.talk.is_none() && self.kept.is_empty()
    }

    /// Whether it is connected.
    pub fn is_connected(&self) -> bool {
        self.talk.is_some()
    }

    /// What it is about, for the text of a failure.
    pub fn state(&self) -> String {
        let talk = self.talk.as_ref().map(|talk| {
            let (sent, received, of) = (talk.sent, talk.received, talk.message.len());
            format!(
                "{:?} sent {sent} received {received} of {of}, asleep {}, leaves {:?}",
                talk.deed, talk.asleep, talk.leave
            )
        });
        format!("{talk:?}, {} rounds, {} kept, looks {}", self.rounds, self.kept.len(), self.look)
    }

    fn connect(&mut self) -> bool {
        if self.rounds == 0 || !std::mem::take(&mut self.look) {
            return false;
        }
        let deed = self.random.pick(&self.deeds);
        let ends = (self.id, self.server);
        let Ok(client) = Client::connect(&self.world, &self.store, ends, &self.path, deed != NoKick) else {
            return true;
        };
        self.begin(client, deed);
        true
    }

    fn begin(&mut self, client: Client, deed: Deed) {
        if deed == NoKick {
            marks::hit(deed.mark());
        }
        self.tally.connects += 1;
        let mut message = vec![0; self.random.between(1, self.bytes_max) as usize];
        self.random.fill(&mut message);
        let patience = self.random.below(12);
        // Who comes into a page that another has left finds the other's bytes, and nobody can tell them from its own:
        // the server must throw it out, at least if it had met the other.
        let condemned = !client.fresh && self.met;
        let leave = (!client.fresh).then(|| self.world.now() + Duration::from_secs(10));
        let talk = Talk {
            client,
            deed,
            patience,
            done: false,
            message,
            sent: 0,
            received: 0,
            asleep: false,
            leave,
            condemned,
            storm: 0,
        };
        self.talk = Some(talk);
    }

    /// Sends some, receives some. False if neither was possible.
    fn talk(&mut self) -> bool {
        let Some(talk) = &mut self.talk else { return false };
        let reads = talk.reads();
        let mut moved = false;
        if talk.sent < talk.message.len() && self.random.one_in(2) {
            let end = talk.message.len().min(talk.sent + self.random.between(1, 6000) as usize);
            let sent = talk.client.write(&talk.message[talk.sent..end]);
            talk.sent += sent;
            moved |= sent > 0;
        }
        if reads {
            let data = talk.client.read(self.random.between(1, 6000) as usize);
            let end = talk.received + data.len();
            let meant = talk.message[..talk.sent].get(talk.received..end);
            let confused = !talk.client.fresh || talk.done && talk.deed.confuses();
            assert!(confused || meant == Some(&data), "{:?}: other bytes came back than were sent", talk.deed);
            talk.received = end;
            self.tally.echoed += data.len() as u64;
            moved |= !data.is_empty();
        }
        moved
    }

    fn finish(&mut self, honest: bool) {
        let Some(talk) = self.talk.take() else { return };
        // One that the server may never have seen leaves its bytes to whoever comes next: wait for another page.
        self.met = talk.received > 0;
        self.look |= self.met;
        if honest {
            marks::hit(Honest.mark());
            self.tally.finished += 1;
        }
        if honest || talk.done {
            self.rounds = self.rounds.saturating_sub(1);
        }
        let now = self.world.now();
        match talk.deed {
            Killed => talk.client.kill(false),
            KilledWithoutEvent => talk.client.kill(true),
            Vanishes => talk.client.vanish(),
            KeepsMapped => {
                let until = now + Duration::from_secs(self.random.between(1, 20));
                self.kept.push((until, talk.client.close_mapped()));
            }
            _ => talk.client.close(),
        }
    }

    /// Does what it came for.
    fn deed(&mut self) {
        let Some(talk) = &mut self.talk else { return };
        let deed = talk.deed;
        // To close and be back before anybody looks, it must have been seen.
        if talk.done || matches!(deed, Honest | NoKick) || deed == ConnectsAgain && talk.received == 0 {
            return;
        }
        marks::hit(deed.mark());
        talk.done = true;
        let (random, page) = (&mut self.random, talk.client.page.clone());
        let add = |at: usize, by: u32| page.store(at, page.load(at).wrapping_add(by));
        let odd = random.next() as u32;
        match deed {
            ProducerBeyond => add(at::LEFT_PROD, random.pick(&[4097, 0x8000_0000, 5000])),
            ProducerBack => add(at::LEFT_PROD, random.pick(&[0xffff_e000, 0x8000_0001, 0xc000_0000])),
            ConsumerBeyond => add(at::RIGHT_CONS, random.pick(&[4097, 0x7fff_ffff, 9000])),
            ConsumerBack => add(at::RIGHT_CONS, random.pick(&[0xffff_e000, 0x8000_0000])),
            ClientFlag => page.store8(at::CLI_LIVE, random.pick(&[2, 4, 77, 255])),
            ServerFlag => page.store8(at::SRV_LIVE, random.pick(&[0, 2, 255])),
            Orders => page.store(at::LEFT_ORDER, odd),
            Grants => (0..8).for_each(|i| page.store(at::GRANTS + 4 * i, odd)),
            Wishes => [at::CLI_NOTIFY, at::SRV_NOTIFY].into_iter().for_each(|at| page.store8(at, odd as u8)),
            OurIndices => {
                page.store(at::LEFT_CONS, odd);
                page.store(at::RIGHT_PROD, odd.rotate_left(7));
            }
            Storm => talk.storm = 300,
            NeverReads | RepliesUnread => {}
            SecondProcess => {
                let Some((grant, port)) = offer(&self.store, &self.path) else { return };
                if let Ok(ours) = self.world.bind(self.id, self.server, port) {
                    // That was the next client's port already; it is left again.
                    assert!(!talk.client.is_open(), "the port was bound twice");
                    self.world.close(self.id, ours);
                    return;
                }
                // The library gives up here. Another program might look first.
                if let Ok(second) = Client::map(&self.world, (self.id, self.server), grant, talk.client.port) {
                    second.page.store8(at::CLI_LIVE, 1);
                    second.unmap();
                }
            }
            ConnectsAgain => return self.again(),
            _ => return self.finish(false),
        }
        // Of a consumer's index the server takes notice when it has something to write.
        let noticed = !matches!(deed, ConsumerBeyond | ConsumerBack) || talk.sent < talk.message.len();
        talk.condemned = deed.is_fatal() && talk.received > 0 && noticed;
        // The server hears of it, and has its time to answer.
        talk.client.notify();
        talk.asleep = false;
        talk.leave = Some(self.world.now() + Duration::from_secs(random.between(1, 10)));
    }

    /// Closes in the middle, and is back before the server had its turn.
    fn again(&mut self) {
        self.finish(false);
        self.look = true;
        let ends = (self.id, self.server);
        if let Ok(client) = Client::connect(&self.world, &self.store, ends, &self.path, true) {
            self.begin(client, Honest);
        }
    }
}

impl Actor for Caller {
    fn turn(&mut self) -> bool {
        let now = self.world.now();
        while self.store.event().is_some() {
            self.look = true;
        }
        let (due, kept) = std::mem::take(&mut self.kept).into_iter().partition::<Vec<_>, _>(|(until, _)| *until <= now);
        self.kept = kept;
        due.into_iter().flat_map(|(_, mappings)| mappings).for_each(|handle| self.world.unmap(self.id, handle));
        let Some(talk) = &mut self.talk else { return self.connect() };
        let came = talk.client.take_event();
        if talk.storm > 0 {
            talk.storm -= 1;
            talk.client.notify();
            return true;
        }
        if talk.asleep && !came && talk.leave.is_none_or(|leave| leave > now) {
            return false;
        }
        talk.asleep = false;
        let open = talk.client.is_open();
        if talk.leave.is_some_and(|leave| leave <= now) {
            assert!(!talk.condemned, "{:?}, and it was not thrown out", talk.deed);
            self.finish(false);
            return true;
        }
        match talk.patience.checked_sub(1) {
            Some(left) => talk.patience = left,
            None => self.deed(),
        }
        let moved = self.talk();
        let Some(talk) = &mut self.talk else { return true };
        let all = talk.received == talk.message.len() && talk.client.fresh;
        if all && matches!(talk.deed, Honest | NoKick) {
            self.finish(true);
        } else if !moved && !open {
            self.tally.dropped += 1;
            self.finish(false);
        } else if !moved {
            // It sleeps once both wishes are told and both looks were in vain, unless it is about to do its deed.
            let full = talk.sent == talk.message.len() || talk.client.buffer_space() == 0;
            let idle =
                talk.done || matches!(talk.deed, Honest | NoKick) || talk.deed == ConnectsAgain && talk.received == 0;
            talk.asleep = full && (!talk.reads() || talk.client.data_ready() == 0) && idle;
        }
        true
    }

    fn timer(&self) -> Option<Instant> {
        let leave = self.talk.as_ref().and_then(|talk| talk.leave);
        self.kept.iter().map(|(until, _)| *until).chain(leave).min()
    }
}
