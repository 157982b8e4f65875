//! The scheduler: who runs next is the seed's choice, time passes only when all sleep, or when the domain under test looks
//! around and finds nothing.
//!
//! The domain under test gets a turn when its last one left it busy, when an event is pending for it, or when its own
//! timer is due, and at no other time: a wake-up that it lost stays lost.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use xen::domain::Domain;
use xen::port::{DomId, Instant, Stop};

use crate::blkback::{Blkback, SharedBlkback};
use crate::disk::{SharedDisk, SharedModel};
use crate::frontend::{Frontend, Phase};
use crate::handle::SimXen;
use crate::journal;
use crate::memory::{self, of_product};
use crate::random::Random;
use crate::schedule::{Peers, Rate};
use crate::store::Store;
use crate::toolstack::{Failure, JobId, Toolstack, Vbd};
use crate::world::{Holdings, World};
use kernel::control::Channel;
use kernel::crew::{Crew, Mate};

/// Somebody who runs beside the domain under test.
pub trait Actor {
    /// Does one thing. False if there was nothing to do, and will not be until something stirs in the world.
    fn turn(&mut self) -> bool;

    /// When it wants to run even if nothing stirs.
    fn timer(&self) -> Option<Instant> {
        None
    }

    /// Who it is, for the trace of a replay.
    fn name(&self) -> String {
        "somebody".into()
    }
}

/// What a turn of the domain under test came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There is more to do.
    Busy,
    /// It sleeps, until an event or until then.
    Idle(Option<Instant>),
    /// It ended.
    Stop(Stop),
}

impl From<kernel::Turn> for Turn {
    fn from(turn: kernel::Turn) -> Self {
        match turn {
            kernel::Turn::Busy => Turn::Busy,
            kernel::Turn::Idle(until) => Turn::Idle(until),
            kernel::Turn::Stop(reason) => Turn::Stop(reason),
        }
    }
}

/// A vCPU of the domain under test.
pub type Driven = Box<dyn FnMut() -> Turn>;

/// What the scheduler knows of it.
pub(crate) struct Vcpu {
    number: usize,
    domain: Driven,
    busy: bool,
    timer: Option<Instant>,
    kicked: Arc<AtomicBool>,
    stopped: Option<Stop>,
}

impl Vcpu {
    fn new(number: usize, domain: Driven, kicked: Arc<AtomicBool>) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Vcpu { number, domain, busy: true, timer: None, kicked, stopped: None }))
    }

    /// Whether it can use a turn.
    pub fn is_awake(&self, world: &World) -> bool {
        let due = self.timer.is_some_and(|timer| timer <= world.now());
        self.stopped.is_none()
            && (self.busy || due || self.kicked.load(Ordering::Relaxed) || world.has_events_of(DRIVER, self.number))
    }

    /// Its turn.
    pub fn turn(&mut self) {
        self.busy = false;
        self.timer = None;
        self.kicked.store(false, Ordering::Relaxed);
        match (self.domain)() {
            Turn::Busy => self.busy = true,
            Turn::Idle(timer) => self.timer = timer,
            Turn::Stop(reason) => self.stopped = Some(reason),
        }
    }
}

impl Actor for Store {
    fn turn(&mut self) -> bool {
        Store::turn(self)
    }

    fn name(&self) -> String {
        "xenstored".into()
    }
}

/// What a domain holds, in the hypervisor and in xenstore: the same before and after, or something leaked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Baseline {
    /// Mappings, grants, ports.
    pub holdings: Holdings,
    /// Nodes it pays for.
    pub nodes: usize,
    /// Watches it set.
    pub watches: usize,
}

/// A frontend that a test and the scheduler share.
pub type SharedFrontend = Rc<RefCell<Frontend>>;

/// The number the domain under test gets.
pub const DRIVER: DomId = DomId(1);

thread_local! {
    static MEMORY: Cell<(usize, usize)> = const { Cell::new((3 << 10, 32 << 20)) };
}

/// What the domain under test is told of its heap: bytes in use, and in all.
pub fn heap() -> (usize, usize) {
    MEMORY.get()
}

/// Has the domain under test hear that so many bytes of its heap are in use, of so many, until this is called again.
pub fn use_memory(used: usize, all: usize) {
    MEMORY.set((used, all));
}

/// Steps within a moment of the world's time that are a livelock, and how long such a moment is: who sets a timer for the next
/// nanosecond again and again gets nowhere either.
const STEPS_MAX: u64 = 3_000_000;
const MOMENT: Duration = Duration::from_millis(1);
/// Turns of the domain that it calls busy though nothing in the world changes.
const SPINS_MAX: u32 = 20_000;
/// How long such a turn takes: who looks at a ring instead of sleeping does it for some time.
const SPIN: Duration = Duration::from_micros(40);

/// One run.
pub struct Run {
    /// The seed, to be told when the run fails.
    pub seed: u64,
    /// The hypervisor.
    pub world: World,
    /// xenstored.
    pub store: Store,
    /// dom0.
    pub toolstack: Rc<RefCell<Toolstack>>,
    /// Choices of the test itself.
    pub random: Random,
    scheduler: Random,
    peers: Rc<Peers>,
    frontends: Vec<(DomId, SharedFrontend)>,
    lowers: Vec<SharedBlkback>,
    vcpus: Vec<Rc<RefCell<Vcpu>>>,
    tapdom: Option<Rc<kernel::Tapdom<SimXen>>>,
    /// Let go of what holds itself in the domain under test.
    ended: Vec<Box<dyn FnOnce()>>,
    stopped: Option<Stop>,
    /// The control channels that the product will have. None unless said: they hold pages and ports, which tests count.
    pub channels: Vec<Channel>,
    /// How many vCPUs the product will have; the seed's choice.
    pub crew: usize,
    /// Turns the domain under test has had.
    pub turns: u64,
    /// Steps of this moment: the product's, and those of peers by their places.
    steps: u64,
    own_steps: u64,
    peer_steps: Vec<u64>,
    moment: Instant,
    spins: u32,
}

impl Run {
    /// A world of which this seed decides everything: dom0, xenstored, and the domain under test created, not started.
    pub fn new(seed: u64) -> Self {
        journal::begin();
        memory::begin();
        crate::disk::begin();
        let mut random = Random::new(seed);
        let world = World::new(random.fork());
        let store = Store::new(&world, random.fork());
        let mut toolstack = Toolstack::new(&world, &store, random.fork());
        toolstack.create(DRIVER);
        let toolstack = Rc::new(RefCell::new(toolstack));
        let scheduler = random.fork();
        let peers = Peers::new(&world, random.fork());
        let crew = random.pick(&[1, 1, 2, 3]);
        let mut run = Run {
            seed,
            world,
            store: store.clone(),
            toolstack: toolstack.clone(),
            random,
            scheduler,
            peers,
            frontends: Vec::new(),
            lowers: Vec::new(),
            vcpus: Vec::new(),
            tapdom: None,
            ended: Vec::new(),
            stopped: None,
            channels: Vec::new(),
            crew,
            turns: 0,
            steps: 0,
            own_steps: 0,
            peer_steps: Vec::new(),
            moment: Instant(0),
            spins: 0,
        };
        run.add(Rc::new(RefCell::new(store)));
        run.add(toolstack);
        let world = run.world.clone();
        journal::clock(move || world.now());
        run
    }

    /// Starts the product in the domain under test. Which of its ready tasks runs next is the seed's choice too.
    pub fn boot(&mut self) {
        let xen = SimXen::new(&self.world, DRIVER);
        let crew = of_product(|| Crew::new(heap, self.crew));
        let mates = (1..self.crew).map(|vcpu| xen.beside(vcpu)).collect::<Vec<_>>();
        let kicked = xen.kicked();
        let tapdom = Rc::new(of_product(|| kernel::start(xen, &crew, self.channels.clone())));
        let mut random = self.random.fork();
        self.tapdom = Some(tapdom.clone());
        self.when_ended(&tapdom.shared().domain);
        self.drive_by(Box::new(move || tapdom.turn_with(&mut |ready| random.index(ready)).into()));
        self.vcpus[0].borrow_mut().kicked = kicked;
        for (vcpu, xen) in (1..).zip(mates) {
            let (kicked, mut random) = (xen.kicked(), self.random.fork());
            let mate = of_product(|| Mate::new(xen, &crew, vcpu));
            self.when_ended(mate.domain());
            let turn = Box::new(move || mate.turn_with(&mut |ready| random.index(ready)).into());
            self.vcpus.push(Vcpu::new(vcpu, turn, kicked));
        }
        self.peers.set_vcpus(self.vcpus.clone());
    }

    /// Puts something else into the domain under test.
    pub fn drive_by(&mut self, domain: Driven) {
        self.vcpus = vec![Vcpu::new(0, domain, Arc::default())];
        self.stopped = None;
    }

    /// The domain whose code ends with the domain under test: its tasks hold it, and it holds them.
    pub fn when_ended(&mut self, domain: &Rc<Domain<SimXen>>) {
        let domain = domain.clone();
        self.ended.push(Box::new(move || domain.end()));
    }

    /// The product, as long as it runs.
    pub fn tapdom(&self) -> Option<&kernel::Tapdom<SimXen>> {
        self.tapdom.as_deref()
    }

    /// One more who runs.
    pub fn add(&mut self, actor: Rc<RefCell<dyn Actor>>) {
        self.peers.add(actor);
    }

    /// How often peers run within a turn of the product; the seed's choice unless this is called.
    pub fn interleave(&mut self, rate: Rate) {
        self.peers.set_rate(rate);
    }

    /// How often that is.
    pub fn rate(&self) -> Rate {
        self.peers.rate()
    }

    /// Schedule points passed within the product's turns, and turns that peers had at them.
    pub fn points(&self) -> (u64, u64) {
        (self.peers.points(), self.peers.switches())
    }

    /// The longest that a task of the product kept others waiting, in schedule points, and which one.
    pub fn longest(&self) -> (u64, &'static str) {
        self.peers.longest()
    }

    /// A lower disk of the domain under test, as its xl config has it: xvda is the first.
    pub fn lower(&mut self, devid: u32, disk: &SharedDisk) -> SharedBlkback {
        self.serve(DRIVER, devid, disk)
    }

    /// A disk that dom0 serves to some domain.
    pub fn serve(&mut self, domain: DomId, devid: u32, disk: &SharedDisk) -> SharedBlkback {
        let vbd = Vbd { devid, ..Vbd::new(crate::world::DOM0, domain, "phy:/dev/lower") };
        self.toolstack.borrow_mut().place(&vbd);
        let back = Blkback::new(&self.store, &self.world, self.random.fork(), domain, devid, disk.clone());
        let back = Rc::new(RefCell::new(back));
        self.add(back.clone());
        self.lowers.extend((domain == DRIVER).then(|| back.clone()));
        back
    }

    /// A guest's frontend; the guest is created if it is not there.
    pub fn frontend(&mut self, guest: DomId, devid: u32, model: &SharedModel) -> SharedFrontend {
        if !self.world.alive(guest) {
            self.toolstack.borrow_mut().create(guest);
        }
        let front = Frontend::new(&self.store, &self.world, self.random.fork(), guest, devid, model.clone());
        let front = Rc::new(RefCell::new(front));
        self.frontends.push((guest, front.clone()));
        self.add(front.clone());
        front
    }

    /// What a domain holds now.
    pub fn baseline(&self, domain: DomId) -> Baseline {
        Baseline {
            holdings: self.world.holdings(domain),
            nodes: self.store.owned(domain),
            watches: self.store.watches(domain),
        }
    }

    /// Why the domain under test ended.
    pub fn stopped(&self) -> Option<Stop> {
        self.stopped
    }

    /// One turn of one who can use it. False if nobody can, ever again.
    pub fn step(&mut self) -> bool {
        self.step_before(Instant(u64::MAX))
    }

    /// The same, with time passing no further than to `end`.
    fn step_before(&mut self, end: Instant) -> bool {
        let activity = self.world.activity();
        let ready = self.peers.ready();
        let awake: Vec<_> = self.vcpus.iter().filter(|vcpu| vcpu.borrow().is_awake(&self.world)).cloned().collect();
        if ready.is_empty() && awake.is_empty() {
            return self.pass(end);
        }
        self.steps += 1;
        if self.steps > STEPS_MAX {
            panic!("no end after {STEPS_MAX} steps within {MOMENT:?}: {}", self.busiest());
        }
        let choice = self.scheduler.index(ready.len() + awake.len());
        match ready.get(choice) {
            None => {
                self.own_steps += 1;
                self.drive(&awake[choice - ready.len()], activity);
            }
            Some(slot) => {
                let slots = self.peer_steps.len().max(slot + 1);
                self.peer_steps.resize(slots, 0);
                self.peer_steps[*slot] += 1;
                self.peers.turn(*slot);
            }
        }
        true
    }

    /// Who made the steps of this moment, for the text of a failure.
    fn busiest(&self) -> String {
        let mut peers: Vec<_> = self.peer_steps.iter().enumerate().collect();
        peers.sort_by_key(|(_, steps)| std::cmp::Reverse(**steps));
        let peers = peers.into_iter().take(3).map(|(slot, steps)| format!("{steps} of {}", self.peers.name(slot)));
        let peers = peers.collect::<Vec<_>>().join(", ");
        format!("{peers}, {} turns of tapdom, with {}", self.own_steps, self.peers.busiest())
    }

    fn drive(&mut self, vcpu: &Rc<RefCell<Vcpu>>, activity: u64) {
        self.turns += 1;
        let (turns, number) = (self.turns, vcpu.borrow().number);
        journal::trace(|| format!("tapdom, turn {turns}, vCPU {number}"));
        let alone = self.lowers.iter().all(|back| !back.borrow().owes());
        let before = self.peers.points();
        journal::deeper(|| of_product(|| self.peers.beside(|| vcpu.borrow_mut().turn())));
        self.world.count_turn(self.peers.points() - before, alone);
        // Another than this may have had a turn meanwhile, and ended the domain.
        if let Some(reason) = self.vcpus.iter().find_map(|vcpu| vcpu.borrow().stopped) {
            self.stopped = Some(reason);
            return self.end();
        }
        if vcpu.borrow().busy {
            if self.world.activity() != activity {
                self.spins = 0;
                return;
            }
            self.spins += 1;
            if self.spins >= SPINS_MAX {
                panic!("the domain is busy for {SPINS_MAX} turns and does nothing: {}", self.busiest());
            }
            self.pass_to(self.world.now() + SPIN);
        }
    }

    /// Ends the domain under test, from one moment to the next.
    pub fn end(&mut self) {
        // Its mappings end with it, before its code drops what stood for them.
        self.world.destroy(DRIVER);
        self.store.forget(DRIVER);
        self.peers.set_vcpus(Vec::new());
        self.ended.drain(..).for_each(|ended| ended());
        self.tapdom = None;
        self.vcpus.clear();
    }

    /// Lets time pass to the next timer, or to `end` if that comes first.
    fn pass(&mut self, end: Instant) -> bool {
        let now = self.world.now();
        // A timer that is due and was not taken is of one who cannot act yet.
        let own = self.vcpus.iter().filter_map(|vcpu| vcpu.borrow().timer);
        let Some(next) = self.peers.timers().into_iter().chain(own).filter(|at| *at > now).min() else {
            return false;
        };
        self.pass_to(next.min(end));
        true
    }

    fn pass_to(&mut self, now: Instant) {
        self.world.set_now(now);
        if now >= self.moment + MOMENT {
            self.moment = now;
            (self.steps, self.own_steps) = (0, 0);
            self.peer_steps.clear();
            self.peers.forget_polls();
        }
    }

    /// Runs until `done`, or until that much time has passed or nothing can happen any more.
    pub fn until(&mut self, limit: Duration, mut done: impl FnMut(&Run) -> bool) -> bool {
        let end = self.world.now() + limit;
        while !done(self) {
            if !self.step() || self.world.now() > end {
                return done(self);
            }
        }
        true
    }

    /// Lets that much time pass, whatever happens.
    pub fn rest(&mut self, time: Duration) {
        let end = self.world.now() + time;
        while self.world.now() < end {
            if !self.step_before(end) {
                return self.world.set_now(end);
            }
        }
    }

    /// Runs a job of the toolstack to its end.
    pub fn finish(&mut self, job: JobId) -> Result<(), Failure> {
        let toolstack = self.toolstack.clone();
        self.until(Duration::from_secs(60), |_| toolstack.borrow().result(job).is_some());
        toolstack.borrow().result(job).expect("libxl's waits are all bounded")
    }

    /// `xl block-attach`.
    pub fn attach(&mut self, disk: &Vbd) -> Result<(), Failure> {
        let job = self.toolstack.borrow_mut().attach(disk);
        self.finish(job)
    }

    /// `xl block-detach`.
    pub fn detach(&mut self, disk: &Vbd) -> Result<(), Failure> {
        let job = self.toolstack.borrow_mut().detach(disk);
        self.finish(job)
    }

    /// `xl destroy`: the guest stops where it is, then the toolstack takes it apart.
    pub fn destroy(&mut self, guest: DomId) -> Result<(), Failure> {
        let of = |(domain, _): &&(DomId, SharedFrontend)| *domain == guest;
        self.frontends.iter().filter(of).for_each(|(_, front)| front.borrow_mut().silent = true);
        let job = self.toolstack.borrow_mut().destroy(guest);
        let result = self.finish(job);
        self.frontends.iter().filter(of).for_each(|(_, front)| front.borrow_mut().kill());
        self.frontends.retain(|(domain, _)| *domain != guest);
        result
    }

    /// Waits until the frontend is connected.
    pub fn connected(&mut self, front: &SharedFrontend) {
        let there = self.until(Duration::from_secs(20), |_| front.borrow().phase() == Phase::Connected);
        assert!(there, "the frontend stays in {:?}:\n{}", front.borrow().phase(), self.scene());
    }

    /// Gives the domain under test a turn, for what a test put into it from outside.
    pub fn nudge(&mut self) {
        self.vcpus.iter().for_each(|vcpu| vcpu.borrow_mut().busy = true);
    }

    /// Waits until the frontend has all its answers.
    pub fn at_rest(&mut self, front: &SharedFrontend) {
        self.at_rest_within(front, Duration::from_secs(120));
    }

    /// As [`at_rest`](Run::at_rest), for what takes longer.
    pub fn at_rest_within(&mut self, front: &SharedFrontend, limit: Duration) {
        let there = self.until(limit, |_| front.borrow().at_rest());
        let front = front.borrow();
        assert!(there, "{} unanswered in {:?}:\n{}", front.in_flight(), front.phase(), self.scene());
    }

    /// xenstore and the console, for the text of a failure.
    pub fn scene(&self) -> String {
        let nodes = self.store.list("/local/domain").join("\n");
        let (console, log) = (self.world.console(DRIVER), journal::tail());
        format!("{nodes}\n--- console ---\n{console}\n--- log ---\n{log}")
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        journal::scene(|| format!("--- seed {} ---\n{}", self.seed, self.scene()));
        // What a panic left half done may not bear to be dropped in order, and the first panic is the one to tell.
        if std::thread::panicking() {
            self.ended.clear();
        }
        self.end();
    }
}

/// Runs a test over seeds; a failure names its seed.
///
/// `SEED=17 cargo test -p sim name_of_the_test` replays one; `SEEDS=2000` runs that many instead.
pub fn seeds(range: std::ops::Range<u64>, each: impl Fn(u64)) {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
    match (number("SEED"), number("SEEDS")) {
        (Some(seed), _) => each(seed),
        (None, Some(end)) => (0..end).for_each(each),
        (None, None) => range.for_each(each),
    }
}
