//! Clients of the control plane in dom0 that send anything at any moment, in both dialects, beside guests whose disks they
//! open, hold and close; some go in the middle, some write half a message. Every whole request is answered, in order and
//! with its own cookie, and at the end what they made can be taken away again.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use xen::port::{DomId, Instant};

use crate::control::{Control, Dialect, Message, id};
use crate::disk::Model;
use crate::frontend::Workload;
use crate::marks;
use crate::random::Random;
use crate::run::{Actor, DRIVER, Run};
use crate::stage::{Guest, Stage};
use crate::store;
use crate::toolstack::Vbd;
use crate::vchan::client::Client;
use crate::world::{DOM0, World};
use crate::worlds::Report;

/// Minors that clients name.
const MINORS: u64 = 4;
/// Requests of one client that wait for their answers at once.
const WAITING_MAX: usize = 4;
/// How long answers may take once no store hinders anybody.
const BOUND: Duration = Duration::from_secs(60);

/// The rows of the marks.
pub const ROWS: &[&str] = &[
    "message: done",
    "message: refused",
    "message: nonsense is refused",
    "message: several at once",
    "message: a client is killed with requests out",
    "message: a client closes with requests out",
    "message: a client goes in the middle of one",
];

/// Whether a message of type `id` can be the answer to one of type `asked`: FORCE_SHUTDOWN is answered as CLOSE is.
fn is_answer(id: u16, asked: u16) -> bool {
    let form = if asked == id::FORCE_SHUTDOWN { id::CLOSE } else { asked } + 1;
    id == form || id == id::ERROR
}

/// One client after the other.
struct Clerk {
    world: World,
    store: store::Client,
    random: Random,
    dialect: Dialect,
    client: Option<Client>,
    /// Sent and not answered: type and cookie.
    waiting: VecDeque<(u16, u16)>,
    /// Bytes of the present message that are still to be written.
    rest: Vec<u8>,
    /// Bytes read that are no whole answer yet.
    heard: Vec<u8>,
    /// Bytes of JSON that follow.
    json: usize,
    /// It has had an answer on this connection.
    met: bool,
    /// Some client went before the server had met it, with a request written: whoever comes into its page next gets the answer,
    /// as docs/architecture.md says. From then on an answer to somebody else is no fault.
    unmet: Rc<Cell<bool>>,
    next_at: Instant,
    /// No new requests.
    stopped: bool,
}

impl Clerk {
    fn new(stage: &mut Stage, unmet: &Rc<Cell<bool>>) -> Rc<RefCell<Self>> {
        let mut random = stage.run.random.fork();
        let clerk = Rc::new(RefCell::new(Clerk {
            world: stage.run.world.clone(),
            store: stage.run.store.client(DOM0),
            dialect: random.pick(&[Dialect::Rfc, Dialect::Blktap]),
            random,
            client: None,
            waiting: VecDeque::new(),
            rest: Vec::new(),
            heard: Vec::new(),
            json: 0,
            met: false,
            unmet: unmet.clone(),
            next_at: Instant(0),
            stopped: false,
        }));
        stage.run.add(clerk.clone());
        clerk
    }

    fn is_quiet(&self) -> bool {
        self.client.is_none() || self.waiting.is_empty() && self.json == 0
    }

    fn read(&mut self) -> bool {
        let Some(client) = &self.client else { return false };
        let ready = client.data_ready();
        if ready == 0 {
            return false;
        }
        self.heard.extend(client.read(ready));
        loop {
            let json = self.json.min(self.heard.len());
            self.heard.drain(..json);
            self.json -= json;
            if self.json > 0 || self.heard.len() < self.dialect.bytes() {
                return true;
            }
            let answer = Message(self.heard.drain(..self.dialect.bytes()).collect());
            // Cookies are minors, and few: that of another's request may be the same.
            let is_its = |asked: u16, cookie: u16| answer.cookie() == cookie && is_answer(answer.id(), asked);
            let awaited = self.waiting.front().is_some_and(|(asked, cookie)| is_its(*asked, *cookie));
            if !awaited && self.unmet.get() {
                self.go();
                return true;
            }
            self.answered(&answer);
        }
    }

    fn answered(&mut self, answer: &Message) {
        self.met = true;
        let Some((asked, cookie)) = self.waiting.front().copied() else {
            panic!("an answer that nobody waits for: {} for {}", answer.id(), answer.cookie());
        };
        assert_eq!(answer.cookie(), cookie, "the answer {} to {asked} has another's cookie", answer.id());
        assert!(is_answer(answer.id(), asked), "{asked} is answered by {}", answer.id());
        let told = answer.id() != id::ERROR;
        // The RFC's dialect has the errno in the answers of these.
        let bare = [id::ATTACH, id::DETACH, id::CLOSE, id::FORCE_SHUTDOWN, id::PAUSE, id::RESUME].contains(&asked);
        let refused = !told || bare && answer.response().0 != 0;
        if refused {
            let (errno, text) = answer.response();
            assert!(errno > 0 && !text.is_empty(), "{asked} is refused with {errno} and the text {text:?}");
        }
        match asked {
            id::LIST if !refused && answer.word(0) > 0 => return,
            id::STATS if !refused => self.json = answer.long(8) as usize,
            _ => {}
        }
        marks::hit(match (refused, asked > 60) {
            (true, true) => "message: nonsense is refused",
            (true, false) => "message: refused",
            (false, false) => "message: done",
            (false, true) => panic!("{asked}, which is no message, is done"),
        });
        self.waiting.pop_front();
    }

    fn make(&mut self) -> Message {
        let (dialect, minor) = (self.dialect, self.random.below(MINORS) as u16);
        let kinds = [
            id::ATTACH,
            id::OPEN,
            id::OPEN,
            id::PAUSE,
            id::RESUME,
            id::RESUME,
            id::CLOSE,
            id::DETACH,
            id::LIST_MINORS,
            id::LIST,
            id::STATS,
            id::FORCE_SHUTDOWN,
            id::PID,
            dialect.info(),
            61 + self.random.below(1000) as u16,
        ];
        let kind = self.random.pick(&kinds);
        match kind {
            id::OPEN | id::RESUME => {
                let path = self.random.pick(&["aio:/dev/xvda", "ram:512K", "ram:1M", "aio:/dev/xvdq", "junk", ""]);
                Message::params(dialect, kind, minor, 0, path)
            }
            // Of every minor.
            id::LIST if self.random.one_in(2) => Message::new(dialect, kind, 0xffff),
            _ => Message::new(dialect, kind, minor),
        }
    }

    /// It goes, in order or not.
    fn go(&mut self) {
        let Some(client) = self.client.take() else { return };
        let killed = self.random.one_in(2);
        if !self.met && !self.waiting.is_empty() {
            self.unmet.set(true);
        }
        if !self.rest.is_empty() {
            marks::hit("message: a client goes in the middle of one");
        } else if !self.waiting.is_empty() {
            marks::hit(match killed {
                true => "message: a client is killed with requests out",
                false => "message: a client closes with requests out",
            });
        }
        if killed {
            client.kill(self.random.one_in(2))
        } else {
            client.close()
        }
        self.waiting.clear();
        self.rest.clear();
        self.heard.clear();
        (self.json, self.met) = (0, false);
    }

    fn write(&mut self) -> bool {
        let Some(client) = &self.client else { return false };
        let part = if self.random.one_in(4) { self.random.between(1, 600) as usize } else { usize::MAX };
        let written = client.write(&self.rest[..self.rest.len().min(part)]);
        self.rest.drain(..written);
        written > 0
    }
}

impl Actor for Clerk {
    fn turn(&mut self) -> bool {
        let event = self.client.as_ref().is_some_and(Client::take_event);
        let read = self.read();
        if !self.rest.is_empty() && !self.stopped && self.random.one_in(16) {
            self.go();
            return true;
        }
        if !self.rest.is_empty() && self.write() {
            return true;
        }
        if self.client.as_ref().is_some_and(|client| !client.is_open()) {
            // One that came into a page that another had left, before the server looked, is told to come again.
            let pardoned = !self.met || self.waiting.is_empty() || !self.rest.is_empty();
            assert!(pardoned, "a client is sent away with requests out");
            self.go();
        }
        if self.stopped || self.world.now() < self.next_at || !self.rest.is_empty() {
            return event || read;
        }
        let pause = self.random.pick(&[0, 0, 10, 1000, 50_000, 2_000_000]);
        self.next_at = self.world.now() + Duration::from_micros(pause);
        if self.client.is_none() {
            self.client = Client::connect(&self.world, &self.store, (DOM0, DRIVER), self.dialect.path(), true).ok();
            return true;
        }
        if self.random.one_in(40) {
            self.go();
            return true;
        }
        if self.waiting.len() >= WAITING_MAX {
            return event || read;
        }
        let message = self.make();
        self.waiting.push_back((message.id(), message.cookie()));
        if self.waiting.len() > 1 {
            marks::hit("message: several at once");
        }
        self.rest = message.0;
        self.write();
        true
    }

    fn timer(&self) -> Option<Instant> {
        (!self.stopped).then_some(self.next_at)
    }

    fn name(&self) -> String {
        format!("a client of {}", self.dialect.path())
    }
}

/// Plays it.
pub fn play(seed: u64) -> Report {
    let mut stage = Stage::with_control(seed, 2048);
    let unmet = Rc::default();
    let clerks: Vec<_> = (0..stage.run.random.between(1, 3)).map(|_| Clerk::new(&mut stage, &unmet)).collect();
    let guests: Vec<Guest> = ["ram:1M", "minor:0", "minor:1"]
        .into_iter()
        .zip(5..)
        .map(|(target, id)| {
            // Any of them may be given any image at any time, also one that another has.
            let model = Model::unknown();
            stage.share_lower(&model);
            let guest = stage.guest(Vbd::new(DRIVER, DomId(id), target), &model);
            {
                let mut front = guest.front.borrow_mut();
                (front.options.errors, front.options.credulous) = (true, true);
            }
            guest
        })
        .collect();
    for _ in 0..30 {
        let guest = &guests[stage.run.random.index(guests.len())];
        match stage.run.random.below(6) {
            0 | 1 => drop(stage.run.toolstack.borrow_mut().attach(&guest.vbd)),
            2 => drop(stage.run.toolstack.borrow_mut().detach(&guest.vbd)),
            3 => guest.front.borrow_mut().work(Workload { sectors_max: 88, ..Workload::mixed(60) }),
            4 => stage.back().borrow_mut().options.stuck ^= true,
            _ => {}
        }
        stage.run.world.stir();
        let some = Duration::from_micros(stage.run.random.pick(&[0, 100, 20_000, 1_000_000]));
        stage.run.rest(some);
    }
    stage.back().borrow_mut().options.stuck = false;
    clerks.iter().for_each(|clerk| clerk.borrow_mut().stopped = true);
    stage.run.world.stir();
    let quiet = stage.run.until(BOUND, |_| clerks.iter().all(|clerk| clerk.borrow().is_quiet()));
    let waiting: Vec<_> = clerks.iter().map(|clerk| clerk.borrow().waiting.clone()).collect();
    assert!(quiet, "requests are not answered: {waiting:?}\n{}", stage.run.scene());
    clerks.iter().for_each(|clerk| clerk.borrow_mut().go());
    let mut report = Report::default();
    end(&mut stage, guests, &mut report);
    report.add(&Report::of(&stage.run));
    report
}

/// All is taken away, the guests first; nothing is left.
fn end(stage: &mut Stage, guests: Vec<Guest>, report: &mut Report) {
    for guest in guests {
        let _late = stage.run.destroy(guest.vbd.guest);
        assert_eq!(stage.run.world.life(guest.vbd.guest), None, "a zombie is left\n{}", stage.run.scene());
        report.guest(&guest.front.borrow().tally);
    }
    let control = Control::join(&mut stage.run, Dialect::Rfc);
    let left = |run: &Run| run.tapdom().expect("it runs").shared().minors.all();
    for minor in left(&stage.run) {
        for kind in [id::CLOSE, id::DETACH] {
            // One that was never opened has nothing to close.
            let _refused = control.plain(&mut stage.run, kind, minor.number());
        }
    }
    control.close();
    stage.run.rest(Duration::from_secs(40));
    let numbers: Vec<u16> = left(&stage.run).iter().map(|minor| minor.number()).collect();
    assert!(numbers.is_empty(), "minors {numbers:?} are left\n{}", stage.run.scene());
    stage.assert_few_notes();
    let held = stage.run.tapdom().expect("it runs").held();
    assert_eq!((held.pages, held.mappings, held.nodes), (0, 0, 0), "{}", stage.run.scene());
}
