//! The hostile guest: from its first sight of a disk to the end of what it does there.
//!
//! Its connections are begun and ended in order, unless disorder is what it does just then: only so is it certain which
//! answers are right. Whatever the product may never do to it, or through it to others, is a panic here.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use xen::port::{DomId, GrantRef, Instant};

use crate::blkif::{Response, SEGMENTS_MAX};
use crate::hostile::asks::{Kit, Made};
use crate::hostile::book::Book;
use crate::hostile::judge::{Env, judge};
use crate::hostile::keys::{Offerer, Outcome};
use crate::hostile::pages::{Kind, Pages};
use crate::hostile::ring::Ring;
use crate::hostile::rows::{Abi, Key, PAIRS};
use crate::marks;
use crate::random::Random;
use crate::run::Actor;
use crate::store::{Client, Store};
use crate::world::World;

/// How long an answer, a refusal or a close may take when nothing hinders the product.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What kind of guest it is.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How it says its layout.
    pub abi: Abi,
    /// The ring order it uses.
    pub order: u32,
    /// Where its ring's indices begin.
    pub start: u32,
    /// The store below may fail anything.
    pub soft: bool,
    /// Things it does of its own; 0 is one that a test leads.
    pub deeds: u32,
    /// It does nothing but fill the largest rings with the largest requests.
    pub crowd: bool,
    /// It lets the backend keep its pages mapped.
    pub keeps: bool,
    /// It does nothing but what there is to do about such pages.
    pub keeper: bool,
    /// It does nothing but name more pages than can be kept.
    pub hoards: bool,
    /// It has the grant table and the faults of the world to itself.
    pub alone: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            abi: Abi::Wide,
            order: 0,
            start: 0,
            soft: false,
            deeds: 0,
            crowd: false,
            keeps: false,
            keeper: false,
            hoards: false,
            alone: true,
        }
    }
}

/// Where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No device.
    Absent,
    /// At the beginning, with no ring.
    Fresh,
    /// An offer is out.
    Offered(Outcome, Instant),
    /// Served.
    Connected,
    /// It says these states, one after the other, and then leaves.
    Saying(VecDeque<u8>),
    /// It has said 5, or something that is no state, and stays like that.
    Lingering(Instant),
    /// Its ring is overrun: the product has to close.
    Doomed(Instant),
    /// It has said 6.
    Leaving(Instant),
    /// Its directory is gone, its ring perhaps not yet.
    Gone,
    /// It does nothing any more.
    Over,
}

/// One connection.
pub struct Link {
    /// Its ring.
    pub ring: Ring,
    /// What is in flight.
    pub book: Book,
    /// What was done to it leaves no answer certain.
    pub wild: bool,
    /// The backend was seen to have it mapped.
    pub(super) seen_mapped: bool,
    pub(super) start: u32,
    /// Slots of which a byte of what may be an answer's number was written over.
    pub(super) spoilt: BTreeMap<u32, usize>,
}

/// A byte that changes between two values while a request is in flight.
pub(super) struct Flicker {
    pub id: u64,
    pub place: Place,
    pub bytes: [u8; 2],
}

/// Where such a byte is.
pub(super) enum Place {
    /// In the slot of this index, so far from its beginning.
    Slot(u32, usize),
    /// In a page.
    Page(usize, usize),
}

/// Something to do at the next opportunity, while this request is in flight.
pub(super) enum Later {
    Revoke(u64, GrantRef),
    Reuse(u64, GrantRef),
    Balloon(u64, GrantRef),
    SwitchBack,
}

/// One hostile disk user.
pub struct Hostile {
    pub(super) world: World,
    pub(super) client: Client,
    pub(super) random: Random,
    pub(super) guest: DomId,
    backend: DomId,
    pub(super) dir: String,
    pub(super) backend_dir: String,
    pub(super) pages: Pages,
    pub(super) stock: Vec<GrantRef>,
    pub(super) odd: Odd,
    /// A descriptor page of many requests.
    pub(super) table: Option<GrantRef>,
    /// References of a hoard, and how many times one was used.
    pub(super) hoard: Vec<GrantRef>,
    pub(super) hoarded: usize,
    /// It went while pages of it were mapped.
    pub(super) left_mapped: bool,
    pub(super) link: Option<Link>,
    pub(super) phase: Phase,
    pub(super) env: Env,
    pub(super) sectors_before: u64,
    limit: Option<u64>,
    pub(super) flickers: Vec<Flicker>,
    pub(super) later: Vec<Later>,
    pub(super) storm: u32,
    pub(super) wrong: Option<&'static str>,
    pub(super) said: u8,
    /// The backend's state when a watch last told of it, and whether our own directory was there.
    pub(super) back: Option<u64>,
    there: bool,
    /// The backend gave up the last offer. It tries again once it has seen us move, and a move that is taken back before it
    /// looks was none.
    pub(super) given_up: bool,
    pub(super) left: u32,
    pub(super) next_at: Instant,
    /// What a test wants to be wrong with the next offer.
    pub next_key: Option<Key>,
    /// Offers before then may find that the disk cannot be opened: the store below fails.
    pub pardon: Instant,
    /// How it behaves.
    pub options: Options,
    /// Answers as they came, of a guest that a test leads.
    pub heard: Vec<Response>,
    /// Before this moment nothing is late: the world hinders the product.
    pub grace: Rc<Cell<Instant>>,
    /// Requests answered, over all connections.
    pub answered: u64,
    /// Connections.
    pub connects: u32,
    /// When the last answer came.
    heard_at: Instant,
}

/// Grants that are of no use, or of little.
pub(super) struct Odd {
    pub read_only: GrantRef,
    pub other: GrantRef,
    pub mmio: GrantRef,
    pub foreign: GrantRef,
    pub ballooned: GrantRef,
}

/// Pages that good requests use.
const STOCK: usize = 12;

impl Hostile {
    /// A guest of `backend` with one device, there from now on, whether the device is or not.
    pub fn new(store: &Store, world: &World, mut random: Random, guest: DomId, devid: u32, backend: DomId) -> Self {
        let client = store.client(guest);
        client.watch("device/vbd", "device").expect("a guest has watches");
        let mut pages = Pages::new(world, guest, backend);
        let mut lend = |kind| {
            let page = pages.page(&mut random);
            pages.lend(page, kind)
        };
        let stock = (0..STOCK).map(|_| lend(Kind::Fine)).collect();
        let odd = Odd {
            read_only: lend(Kind::ReadOnly),
            other: lend(Kind::Other),
            mmio: lend(Kind::Gone),
            foreign: lend(Kind::Gone),
            ballooned: lend(Kind::Gone),
        };
        let options = Options::default();
        let env = Env {
            layout: options.abi.layout(),
            sectors_min: 0,
            sectors_max: 0,
            read_only: false,
            discard: false,
            indirect: 0,
            soft: false,
        };
        Hostile {
            world: world.clone(),
            client,
            random,
            guest,
            backend,
            dir: format!("/local/domain/{}/device/vbd/{devid}", guest.0),
            backend_dir: String::new(),
            pages,
            stock,
            odd,
            table: None,
            hoard: Vec::new(),
            hoarded: 0,
            left_mapped: false,
            link: None,
            phase: Phase::Absent,
            env,
            sectors_before: 0,
            limit: None,
            flickers: Vec::new(),
            later: Vec::new(),
            storm: 0,
            wrong: None,
            said: 1,
            back: None,
            there: false,
            given_up: false,
            left: 0,
            next_at: Instant(0),
            next_key: None,
            options,
            heard: Vec::new(),
            grace: Rc::new(Cell::new(Instant(0))),
            pardon: Instant(0),
            answered: 0,
            connects: 0,
            heard_at: Instant(0),
        }
    }

    /// Begins to do things of its own.
    pub fn let_loose(&mut self, deeds: u32) {
        self.options.deeds = deeds;
        self.left = deeds;
        self.world.stir();
    }

    /// Where it is.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Where it is, with what it has still to do, for the text of a failure.
    pub fn tell(&self) -> String {
        let (guest, left, next) = (self.guest.0, self.left, self.next_at);
        let wild = self.link.as_ref().is_some_and(|link| link.wild);
        let oldest =
            self.link.as_ref().and_then(|link| link.book.oldest().map(|(id, since)| (link.book.tell(id), since)));
        let flying = self.in_flight();
        format!(
            "{guest} in {:?} at {:?}, {left} deeds left, the next at {next:?}; {flying} in flight, wild: {wild}; {oldest:?}",
            self.phase,
            self.now()
        )
    }

    /// Whether it is served.
    pub fn is_connected(&self) -> bool {
        self.phase == Phase::Connected
    }

    /// Whether it will do nothing any more of its own.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over | Phase::Absent)
    }

    /// The guest is no more; its number may be another's.
    pub fn kill(&mut self) {
        self.phase = Phase::Over;
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.link.as_ref().map_or(0, |link| link.book.in_flight())
    }

    /// The disk below has so many sectors now, and will not have more. What is in flight may go either way.
    pub fn shrunk(&mut self, sectors: u64) {
        self.limit = Some(sectors);
        self.sectors_before = self.sectors_before.max(self.env.sectors_max);
        (self.env.sectors_min, self.env.sectors_max) = (sectors, sectors);
        if let Some(link) = &mut self.link {
            link.book.touched(None, &mut self.pages);
        }
    }

    /// Nobody has written where nobody may, and nothing of an honest guest's is here.
    pub fn audit(&mut self) {
        self.kept();
        let wild = self.link.as_ref().is_some_and(|link| link.wild);
        if let Err(why) = self.pages.audit()
            && !wild
        {
            self.fail(&why);
        }
    }

    /// The grants of its ring's pages, and the ring itself, for a test.
    pub fn link(&mut self) -> Option<&mut Link> {
        self.link.as_mut()
    }

    pub(super) fn fail(&self, why: &str) -> ! {
        panic!("hostile guest {} in {:?} at {:?}, said {}: {why}", self.guest.0, self.phase, self.now(), self.said)
    }

    pub(super) fn now(&self) -> Instant {
        self.world.now()
    }

    pub(super) fn late(&self, since: Instant) -> bool {
        self.now() >= (since + PATIENCE).max(self.grace.get() + PATIENCE)
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.client.number(&format!("{}/{key}", self.backend_dir))
    }

    pub(super) fn offerer(&self) -> Offerer<'_> {
        let Hostile { world, client, guest, backend, dir, .. } = self;
        let Options { abi, keeps, .. } = self.options;
        Offerer { world, client, guest: *guest, backend: *backend, dir, abi, keeps }
    }

    /// Says a state, if there is still a place to say it.
    pub(super) fn say(&mut self, state: u8) {
        if self.client.exists(&format!("{}/backend", self.dir)) {
            marks::hit(PAIRS[usize::from(self.said)][usize::from(state)]);
            log::debug!("hostile {} says {state}, the backend {:?}", self.guest.0, self.back);
            self.said = state;
            let _full = self.client.write(&format!("{}/state", self.dir), &state.to_string());
        }
    }

    pub(super) fn kit(&mut self) -> Kit<'_> {
        let link = self.link.as_mut().expect("there is a connection");
        Kit {
            random: &mut self.random,
            pages: &mut self.pages,
            book: &mut link.book,
            stock: &self.stock,
            layout: self.env.layout,
            sectors: self.env.sectors_min,
            sectors_before: self.sectors_before,
            indirect: self.env.indirect,
        }
    }

    /// Lets a test make something.
    pub fn with_kit<T>(&mut self, make: impl FnOnce(&mut Kit<'_>) -> T) -> T {
        make(&mut self.kit())
    }

    /// The producer jumps so far.
    pub fn doom(&mut self, jump: u32) {
        let link = self.link.as_mut().expect("there is a connection");
        link.wild = true;
        link.ring.claim(link.ring.published().wrapping_add(jump));
        self.phase = Phase::Doomed(self.now());
    }

    /// Puts a request into the ring and the book; its index and its number.
    pub fn put(&mut self, made: Made, mark: Option<&'static str>) -> (u32, u64) {
        let verdict = judge(&made.entry, &self.env, &self.pages);
        let now = self.now();
        let link = self.link.as_mut().expect("there is a connection");
        let index = link.ring.prod;
        link.ring.put(&made.entry);
        link.book.open(&verdict, made.own, now, &mut self.pages);
        if let Some(mark) = mark {
            link.book.mark(verdict.id, mark);
        }
        (index, verdict.id)
    }

    /// Publishes what was put.
    pub fn publish(&mut self) {
        if let Some(link) = &mut self.link
            && matches!(self.phase, Phase::Connected | Phase::Lingering(_))
            && link.ring.prod != link.ring.published()
        {
            link.ring.publish();
        }
    }

    /// Makes a ring and offers it, with something wrong about it or not, and says `state`.
    pub(super) fn offer(&mut self, wrong: Option<Key>, state: u8) {
        let Options { abi, order, start, keeps, .. } = self.options;
        self.pages.begin(keeps);
        self.env.layout = abi.layout();
        let ring = Ring::new(&self.world, self.guest, self.backend, abi.layout(), order, start);
        let mut random = self.random.fork();
        let outcome = self.offerer().offer(&ring, wrong, &mut random);
        let wild = outcome == Ok(Outcome::Whatever);
        self.link =
            Some(Link { ring, book: Book::default(), wild, seen_mapped: false, start, spoilt: BTreeMap::new() });
        let Ok(outcome) = outcome else { return self.leave() };
        log::debug!("hostile {} offers {wrong:?}: {outcome:?}", self.guest.0);
        self.wrong = wrong.map(Key::mark);
        self.phase = Phase::Offered(outcome, self.now());
        self.say(state);
    }

    /// Says 6, and makes sure that it is heard.
    pub(super) fn leave(&mut self) {
        if self.pages.is_switching() {
            self.pages.switch(false);
        }
        self.leaves_mapped();
        let own = format!("n{}", self.guest.0);
        for node in [format!("{}/state", self.dir), self.dir.clone()] {
            let _gone = self.client.permit(&node, &[&own, &format!("r{}", self.backend.0)]);
        }
        self.phase = Phase::Leaving(self.now());
        self.say(6);
    }

    /// Takes answers; whatever is wrong with one is told.
    fn collect(&mut self) -> bool {
        let Some(link) = &mut self.link else { return false };
        self.world.take_event(self.guest, link.ring.port);
        let mapped = link.ring.is_mapped();
        link.seen_mapped |= mapped;
        if link.wild {
            return false;
        }
        let (mut any, mut wrong) = (false, None);
        loop {
            let index = link.ring.first_owed();
            match link.ring.take() {
                Ok(None) => break,
                Ok(Some(answer)) => {
                    any = true;
                    self.answered += 1;
                    match link.book.answer(answer, link.spoilt.remove(&index), &mut self.pages) {
                        Ok(shown) => shown.into_iter().for_each(marks::hit),
                        Err(why) => wrong = Some(why),
                    }
                    if self.options.deeds == 0 {
                        self.heard.push(answer);
                    }
                }
                Err(why) => wrong = Some(why),
            }
            if wrong.is_some() {
                break;
            }
        }
        if any {
            self.heard_at = self.world.now();
            use crate::hostile::rows::Ring as Row;
            if link.start != 0 {
                marks::hit(Row::AnswersBefore.mark());
            }
            if link.ring.first_owed() < link.start {
                marks::hit(Row::Wraps.mark());
            }
            link.ring.answer_event(link.ring.first_owed().wrapping_add(1));
            if self.random.one_in(8) {
                wrong = wrong.or_else(|| self.pages.audit().err());
            }
        }
        // Said 6, and the ring was let go of: whatever was in flight is not to reach our pages any more.
        if matches!(self.phase, Phase::Leaving(_)) && link.seen_mapped && !mapped {
            wrong = wrong.or_else(|| link.book.abandon(&mut self.pages).err());
        }
        if let Some(why) = wrong {
            self.fail(&why);
        }
        any
    }

    /// The ring ended on both sides: nobody writes to anything of ours from now on.
    fn release(&mut self) {
        self.flickers.clear();
        self.later.clear();
        self.storm = 0;
        if let Some(mut link) = self.link.take() {
            let mut ended = link.book.abandon(&mut self.pages);
            if !link.wild && self.pages.audit().is_err() {
                ended = ended.and(self.pages.audit());
            }
            if let Err(why) = ended {
                self.fail(&why);
            }
            self.offerer().take_back();
            link.ring.close();
            for grant in link.ring.grants {
                let _leaked = self.world.reclaim(self.guest, grant);
            }
        }
        self.pages.retry();
    }

    /// Looks at the backend and does what is due. True if it got somewhere.
    fn follow(&mut self) -> bool {
        if self.phase == Phase::Over {
            return false;
        }
        if self.phase == Phase::Absent {
            return self.there && self.probe();
        }
        let unmapped = self.link.as_ref().is_none_or(|link| !link.ring.is_mapped());
        if self.phase == Phase::Gone {
            if unmapped {
                self.release();
                self.phase = if self.left == 0 && self.options.deeds > 0 { Phase::Over } else { Phase::Absent };
            }
            return unmapped;
        }
        if !self.there {
            self.phase = Phase::Gone;
            return true;
        }
        let back = self.back;
        match self.phase.clone() {
            Phase::Fresh if self.options.deeds == 0 && back == Some(2) => {
                let wrong = self.next_key.take();
                self.offer(wrong, 3);
                true
            }
            Phase::Offered(outcome, since) => self.offered(outcome, since, back, unmapped),
            Phase::Connected if !matches!(back, Some(4)) => {
                let pardoned = self.now() < self.grace.get();
                match self.link.as_ref().is_some_and(|link| link.wild) || pardoned {
                    true => self.leave(),
                    false => self.fail(&format!("the backend left a good connection, to {back:?}")),
                }
                true
            }
            Phase::Doomed(since) => {
                let closed = unmapped && matches!(back, Some(5 | 6));
                if closed {
                    self.given_up = true;
                    self.wrong.take().into_iter().for_each(marks::hit);
                    self.leave();
                } else if self.late(since) {
                    self.fail(&format!("an overrun ring is served on, at {back:?}"));
                }
                closed
            }
            Phase::Leaving(since) => {
                let closed = back == Some(6) && unmapped;
                if closed {
                    self.nothing_is_kept();
                    self.release();
                    self.again();
                } else if self.late(since) {
                    self.fail(&format!("closed long ago, and the backend is at {back:?}"));
                }
                closed
            }
            _ => false,
        }
    }

    /// After a close: once more, or no more.
    fn again(&mut self) {
        if self.left == 0 && self.options.deeds > 0 {
            self.phase = Phase::Over;
            return;
        }
        self.phase = Phase::Fresh;
        self.say(1);
    }

    fn probe(&mut self) -> bool {
        let Ok(backend_dir) = self.client.read(&format!("{}/backend", self.dir)) else { return false };
        self.there = false;
        if self.client.number(&format!("{}/state", self.dir)) != Some(1) {
            return false;
        }
        self.there = true;
        if backend_dir != self.backend_dir {
            self.client.watch(&format!("{backend_dir}/state"), "backend").expect("a guest has watches");
        }
        self.backend_dir = backend_dir;
        self.back = self.number("state");
        self.said = 1;
        self.phase = Phase::Fresh;
        true
    }

    fn offered(&mut self, outcome: Outcome, since: Instant, back: Option<u64>, unmapped: bool) -> bool {
        // A partition table that reaches past a shrunk disk's end is damaged: the disk may not be opened again.
        let pardoned = outcome == Outcome::Served && (self.limit.is_some() || since < self.pardon);
        let outcome = if pardoned { Outcome::Whatever } else { outcome };
        match (outcome, back) {
            (Outcome::Refused, Some(4)) => self.fail(&format!("nonsense is served: {:?}", self.wrong)),
            (Outcome::Served | Outcome::Whatever, Some(4)) => {
                self.connected();
                true
            }
            (Outcome::Refused | Outcome::Whatever, Some(6)) if unmapped => {
                self.refused();
                true
            }
            (Outcome::Served, Some(5 | 6)) if self.said != 4 && self.now() >= self.grace.get() => {
                self.fail(&format!("a good offer is refused ({back:?}): {:?}", self.error()))
            }
            _ if outcome == Outcome::Whatever && self.now() >= since + Duration::from_secs(2) => {
                self.leave();
                true
            }
            _ if self.late(since) => self.fail(&format!("nothing came of an offer: {outcome:?}, {back:?}")),
            _ => false,
        }
    }

    fn error(&self) -> Option<String> {
        self.client.read(&format!("{}/hotplug-error", self.backend_dir)).ok()
    }

    fn refused(&mut self) {
        self.given_up = true;
        if matches!(self.phase, Phase::Offered(Outcome::Refused, _)) {
            let text = self.error().unwrap_or_default();
            if text.is_empty() || text.len() > 300 || !text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
                self.fail(&format!("{:?} was refused with the text {text:?}", self.wrong));
            }
        }
        self.wrong.take().into_iter().for_each(marks::hit);
        self.leave();
    }

    fn connected(&mut self) {
        self.wrong.take().into_iter().for_each(marks::hit);
        self.connects += 1;
        let info = self.number("info").unwrap_or(0);
        let sectors = self.number("sectors").unwrap_or_else(|| self.fail("connected without sectors"));
        let sectors = self.limit.map_or(sectors, |limit| limit.min(sectors));
        self.env = Env {
            layout: self.options.abi.layout(),
            sectors_min: sectors,
            sectors_max: sectors,
            read_only: info & 4 != 0,
            discard: self.number("feature-discard") == Some(1),
            indirect: self.number("feature-max-indirect-segments").unwrap_or(0) as u16,
            soft: self.options.soft,
        };
        assert!(self.env.indirect as usize > SEGMENTS_MAX, "no indirect requests are offered");
        self.phase = match self.link.as_ref().is_some_and(|link| link.wild) {
            true => Phase::Lingering(self.now() + Duration::from_millis(5)),
            false => Phase::Connected,
        };
        if self.said != 4 {
            self.say(4);
        }
    }

    /// Whether nothing is answered that should be.
    fn check(&self) {
        if let Some(link) = &self.link
            && !link.wild
            && matches!(self.phase, Phase::Connected)
            && let Some((id, since)) = link.book.oldest()
            && self.late(since.max(self.heard_at))
        {
            self.fail(&format!("never answered: {}", link.book.tell(id)));
        }
    }
}

impl Actor for Hostile {
    fn turn(&mut self) -> bool {
        if self.phase == Phase::Over || !self.world.alive(self.guest) {
            return false;
        }
        let mut busy = false;
        while self.client.event().is_some() {
            busy = true;
        }
        if busy {
            self.there = self.client.exists(&format!("{}/backend", self.dir));
            self.back = self.number("state");
        }
        self.flicker();
        busy |= self.collect();
        busy |= self.follow();
        self.check();
        if self.options.deeds > 0 { self.act() || busy } else { busy }
    }

    fn timer(&self) -> Option<Instant> {
        let wait = match &self.phase {
            Phase::Offered(Outcome::Whatever, since) => Some(*since + Duration::from_secs(2)),
            Phase::Offered(_, since) | Phase::Doomed(since) | Phase::Leaving(since) => Some(self.due(*since)),
            Phase::Lingering(until) => Some(*until),
            Phase::Connected => {
                self.link.as_ref().and_then(|link| link.book.oldest()).map(|(_, since)| self.due(since))
            }
            _ => None,
        };
        // Also after its last deed: it pauses once more, and leaves then. Nothing else may stir in the world by then.
        let ends = self.options.deeds > 0 && matches!(self.phase, Phase::Fresh | Phase::Connected);
        let acts = self.left > 0 || ends || matches!(self.phase, Phase::Saying(_) | Phase::Lingering(_));
        let next = acts.then_some(self.next_at);
        wait.into_iter().chain(next).filter(|at| *at > self.now()).min()
    }
}

impl Hostile {
    fn due(&self, since: Instant) -> Instant {
        (since + PATIENCE).max(self.grace.get() + PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where nothing else stirs any more it once slept for ever after its last deed.
    #[test]
    fn a_guest_wakes_by_itself_after_its_last_deed() {
        let mut random = Random::new(1);
        let world = World::new(random.fork());
        let store = Store::new(&world, random.fork());
        let (guest, backend) = (DomId(5), DomId(1));
        world.create(guest);
        world.create(backend);
        let mut hostile = Hostile::new(&store, &world, random, guest, 51712, backend);
        let soon = world.now() + Duration::from_millis(20);
        for phase in [Phase::Fresh, Phase::Connected] {
            (hostile.phase, hostile.options.deeds, hostile.left, hostile.next_at) = (phase, 1, 0, soon);
            assert_eq!(hostile.timer(), Some(soon));
        }
        // Of one that a test leads nothing is due.
        hostile.options.deeds = 0;
        assert_eq!(hostile.timer(), None);
    }
}
