//! A world with hostile guests in it, beside honest ones on disks of their own and on partitions of the same disk.
//!
//! Whatever they do, and whatever the toolstack does with them meanwhile: the honest guests' data is right and arrives in
//! time, none of it is ever seen elsewhere, and in the end nothing is left.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use drivers::format::vhd::make::{Form, New};
use xen::page::PAGE_BYTES;
use xen::port::{DomId, Instant};

use crate::blkback;
use crate::blkif::SECTOR;
use crate::disk::{Disk, Model, SharedDisk};
use crate::fault::{self, Fault};
use crate::frontend::{Options, Workload};
use crate::gpt;
use crate::hostile::guest::Hostile;
use crate::hostile::keeps::KEPT_OF_ALL;
use crate::hostile::pages::clean;
use crate::hostile::rows::{Abi, Keep, Load, Step};
use crate::image::lay;
use crate::journal;
use crate::marks;
use crate::memory::{self, Heap, NOTES_LEFT, NOTES_PER_DISK};
use crate::run::{Baseline, DRIVER};
use crate::stage::{Guest, Stage, TURNS_MAX, XVDA};
use crate::toolstack::{JobId, Kind, Vbd};
use crate::worlds::Report;
use crate::worlds::report::Most;

/// Sectors of a partition.
const PART: u64 = 1024;
/// Where the first begins.
const FIRST: u64 = 64;
/// The partition with an image, and how many sectors those have.
const IMAGE: u64 = 4;
const IMAGE_PART: u64 = 2048;
const IMAGE_SECTORS: u64 = 1200;
/// Where a partition begins. What may be cut off lies last.
const fn begin(part: u64) -> u64 {
    match part {
        1 => FIRST,
        IMAGE => FIRST + PART,
        _ => FIRST + IMAGE_PART + (part - 1) * PART,
    }
}
/// The honest guests' numbers begin here.
const HONEST: u16 = 6;
/// A guest that keeps the rules, and asks for as much as it can.
const GREEDY: DomId = DomId(12);
/// The hostile guests' numbers begin here.
const HOSTILE: u16 = 20;
/// Hostile disks in a crowd.
const CROWD: u32 = 6;
/// The same in one that hoards: together more than can be kept of all.
const HOARDERS: u32 = 9;

/// How long a request to the slow disk below takes at most.
const LATENCY: Duration = Duration::from_millis(30);
/// How long the stuck one answers nothing.
const STUCK: Duration = Duration::from_secs(3);
/// What of the world's time an answer may take beside that: it passes while the product looks at rings instead of sleeping,
/// once for each answer from below.
const LOOKS: Duration = Duration::from_millis(10);
/// How many times that an answer on a partition may take, and one on an image, for which bitmaps are read and written too.
const REQUESTS_BELOW: u32 = 10;
const REQUESTS_BELOW_OF_IMAGE: u32 = 50;

/// How often honest guests ask again while hostile ones are at it.
const ROUNDS: u32 = 24;

/// How long hostile guests may go on, in time of the world.
const LONG: Duration = Duration::from_secs(600);
/// How long an honest guest may wait for all its answers.
const BOUND: Duration = Duration::from_secs(60);

/// What the disk below is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lower {
    Good,
    Slow,
    Stuck,
    Failing,
    Shrinking,
}

struct Bad {
    hostile: Rc<RefCell<Hostile>>,
    vbd: Vbd,
    part: Option<u64>,
    attaching: JobId,
}

/// One world.
struct Scene {
    stage: Stage,
    clean: Baseline,
    lower: Lower,
    honest: Vec<Guest>,
    greedy: Option<Guest>,
    bad: Vec<Bad>,
    grace: Rc<Cell<Instant>>,
    attaches: u64,
    /// The most pages of others that were mapped at once, beside those of rings.
    kept_max: usize,
    /// What the product held before.
    heap: Heap,
}

/// Plays the world of this seed.
pub fn play(seed: u64) -> Report {
    let mut scene = Scene::new(seed);
    scene.begin();
    scene.middle();
    scene.end()
}

impl Scene {
    fn new(seed: u64) -> Self {
        let mut stage = Stage::with_lower(seed, begin(3) + PART + 64);
        let lower = stage.run.random.pick(&[
            Lower::Good,
            Lower::Good,
            Lower::Good,
            Lower::Slow,
            Lower::Stuck,
            Lower::Failing,
            Lower::Shrinking,
        ]);
        let options = blkback::Options { latency: Duration::ZERO, ..stage.back().borrow().options.clone() };
        let latency = if lower == Lower::Slow { LATENCY } else { Duration::ZERO };
        stage.back().borrow_mut().options = blkback::Options { latency, ..options };
        part_up(&stage.disk());
        let clean = stage.run.baseline(DRIVER);
        memory::peak();
        let heap = memory::held();
        if stage.run.random.one_in(4) {
            fault::some(
                &stage.run.world,
                &mut stage.run.random,
                &[Fault::Conflict, Fault::StoreSlow, Fault::EventTwice],
            );
        }
        let grace = Rc::new(Cell::new(Instant(0)));
        let (honest, bad) = (Vec::new(), Vec::new());
        Scene { stage, clean, lower, honest, greedy: None, bad, grace, attaches: 0, kept_max: 0, heap }
    }

    /// Attaches all disks, the honest ones first.
    fn begin(&mut self) {
        // On a partition, in memory, on an image: some of these.
        let some = self.stage.run.random.between(1, 7);
        for i in (0..3).filter(|i| some & 1 << i != 0) {
            let id = DomId(HONEST + i);
            let guest = match i {
                0 => self.honest_on(id, 1),
                1 => self.stage.on_ram(id, PART),
                _ => self.honest_on_image(id),
            };
            guest.front.borrow_mut().options.errors = self.lower == Lower::Failing;
            self.stage.attach(&guest);
            self.attaches += 1;
            self.honest.push(guest);
        }
        let crowd = self.stage.run.random.one_in(24);
        let hoard = crowd && self.stage.run.random.one_in(3);
        let guests = if crowd { 1 } else { self.stage.run.random.between(1, 2) };
        for i in 0..guests {
            let id = DomId(HOSTILE + i as u16);
            self.stage.run.toolstack.borrow_mut().create(id);
            // Partition 1 is the honest guest's.
            let shrinks = self.lower == Lower::Shrinking;
            let part = if shrinks { 3 - i } else { 2 + i };
            let part = Some(part).filter(|_| crowd || shrinks || self.stage.run.random.one_in(2));
            let disks = if hoard { HOARDERS } else { CROWD };
            for disk in 0..if crowd { disks } else { 1 } {
                let part = part.filter(|_| disk == 0);
                let bad = self.let_in(id, XVDA + 16 * disk, part, crowd, guests == 1 && !crowd);
                bad.borrow_mut().options.hoards = hoard;
            }
        }
        if crowd {
            marks::hit(Load::Crowd.mark());
        } else if self.stage.run.random.one_in(3) {
            // The last partition is nobody's where there is one hostile guest, unless it is cut off.
            let free = guests == 1 && self.lower != Lower::Shrinking;
            self.let_in_greedy(free);
        }
    }

    /// One who keeps a ring of the largest kind full.
    fn let_in_greedy(&mut self, part_is_free: bool) {
        let on_part = part_is_free && self.stage.run.random.one_in(2);
        let guest = if on_part { self.honest_on(GREEDY, 3) } else { self.stage.on_ram(GREEDY, PART) };
        let errors = self.lower == Lower::Failing;
        let options = guest.front.borrow().options;
        guest.front.borrow_mut().options = Options { order: 4, errors, ..options };
        self.stage.attach(&guest);
        self.attaches += 1;
        self.greedy = Some(guest);
    }

    fn honest_on(&mut self, id: DomId, part: u64) -> Guest {
        let at = begin(part) as usize * SECTOR;
        let model = Model::of(&self.stage.disk().borrow().bytes()[at..at + PART as usize * SECTOR]);
        self.stage.guest(Vbd::new(DRIVER, id, &format!("aio:/dev/xvda{part}")), &model)
    }

    fn honest_on_image(&mut self, id: DomId) -> Guest {
        let target = format!("vhd:/dev/xvda{IMAGE}");
        self.stage.guest(Vbd::new(DRIVER, id, &target), &Model::zeroes(IMAGE_SECTORS))
    }

    /// A hostile disk.
    fn let_in(&mut self, id: DomId, devid: u32, part: Option<u64>, crowd: bool, alone: bool) -> Rc<RefCell<Hostile>> {
        let run = &mut self.stage.run;
        let random = run.random.fork();
        let mut hostile = Hostile::new(&run.store, &run.world, random, id, devid, DRIVER);
        hostile.options.abi = run.random.pick(&[Abi::Wide, Abi::Narrow, Abi::Unsaid]);
        hostile.options.alone = alone;
        hostile.options.soft = part.is_some() && self.lower == Lower::Failing;
        hostile.options.crowd = crowd;
        hostile.grace = self.grace.clone();
        let deeds = if crowd { 8 } else { run.random.between(15, 50) as u32 };
        hostile.let_loose(deeds);
        let hostile = Rc::new(RefCell::new(hostile));
        run.add(hostile.clone());
        let target = part.map_or("ram:512K".into(), |part| format!("aio:/dev/xvda{part}"));
        let kind = run.random.pick(&[Kind::Vbd, Kind::Qdisk, Kind::Vbd3]);
        let vbd = Vbd { devid, kind, writable: !run.random.one_in(4), ..Vbd::new(DRIVER, id, &target) };
        let attaching = run.toolstack.borrow_mut().attach(&vbd);
        self.attaches += 1;
        self.bad.push(Bad { hostile: hostile.clone(), vbd, part, attaching });
        hostile
    }

    /// All do what they do; the toolstack interferes.
    fn middle(&mut self) {
        for guest in &self.honest {
            let sectors_max = self.stage.run.random.pick(&[8, 88, 256]);
            guest.front.borrow_mut().work(Workload { depth: 8, sectors_max, ..Workload::mixed(40) });
        }
        if let Some(guest) = &self.greedy {
            let sectors_max = self.stage.run.random.pick(&[8, 8, 88]);
            guest.front.borrow_mut().work(Workload { depth: 512, sectors_max, writes: 10, ..Workload::mixed(400) });
        }
        let some = Duration::from_micros(self.stage.run.random.pick(&[50, 5_000, 700_000]));
        self.stage.run.rest(some);
        // Requests that are answered without a wait are all answered by now.
        self.ask_again();
        self.trouble_below();
        if self.stage.run.random.one_in(4) {
            self.destroy_one();
        } else {
            let bad: Vec<_> = self.bad.iter().map(|bad| bad.hostile.clone()).collect();
            let (mut kept_max, rings) = (0, 16 * (self.attaches as usize + 1));
            let mut play = |scene: &mut Scene, time| {
                scene.stage.run.until(time, |run| {
                    kept_max = kept_max.max(run.world.holdings(DRIVER).mappings.saturating_sub(rings));
                    bad.iter().all(|bad| bad.borrow().is_over())
                })
            };
            let mut over = false;
            for _ in 0..ROUNDS {
                self.ask_again();
                let time = Duration::from_micros(self.stage.run.random.pick(&[10, 1_000, 20_000, 300_000]));
                over = over || play(self, time);
            }
            let over = over || play(self, LONG);
            assert!(over, "{}\n{}", tell(&bad), self.stage.run.scene());
            self.kept_max = kept_max;
        }
        assert!(
            self.kept_max <= KEPT_OF_ALL,
            "{} pages of guests are mapped, {KEPT_OF_ALL} are the most",
            self.kept_max
        );
        // Some of the pages that were taken off are no rings' in truth.
        if self.kept_max + 16 * (self.attaches as usize + 1) >= KEPT_OF_ALL {
            marks::hit(Keep::AllFull.mark());
        }
        self.honest_are_served();
        self.look_for_secrets();
    }

    /// Honest guests who have nothing to wait for ask for a few things more.
    fn ask_again(&mut self) {
        for guest in &self.honest {
            let mut front = guest.front.borrow_mut();
            if front.at_rest() {
                front.work(Workload { depth: 4, sectors_max: 88, ..Workload::mixed(4) });
            }
        }
    }

    /// The disk below misbehaves for a while.
    fn trouble_below(&mut self) {
        let back = self.stage.back();
        if matches!(self.lower, Lower::Failing | Lower::Shrinking) {
            // What is opened meanwhile is refused, and what is cut off never is opened.
            let jobs: Vec<_> = self.bad.iter().map(|bad| bad.attaching).collect();
            let toolstack = self.stage.run.toolstack.clone();
            let soon = Duration::from_secs(2);
            self.stage.run.until(soon, |_| jobs.iter().all(|job| toolstack.borrow().result(*job).is_some()));
        }
        match self.lower {
            Lower::Good => {}
            Lower::Slow => marks::hit(Load::SlowStore.mark()),
            Lower::Failing => {
                let (now, time) = (self.stage.run.world.now(), Duration::from_millis(200));
                for bad in self.bad.iter().filter(|bad| bad.part.is_some()) {
                    bad.hostile.borrow_mut().pardon = now + time;
                }
                back.borrow_mut().options.failures = 12;
                self.stage.run.rest(time);
                back.borrow_mut().options.failures = 0;
                marks::hit(Load::FailingStore.mark());
            }
            Lower::Stuck => {
                self.grace.set(self.stage.run.world.now() + STUCK);
                back.borrow_mut().options.stuck = true;
                self.stage.run.rest(STUCK);
                back.borrow_mut().options.stuck = false;
                self.stage.run.world.stir();
                marks::hit(Load::StuckStore.mark());
            }
            Lower::Shrinking => {
                for bad in self.bad.iter().filter(|bad| bad.part.is_some()) {
                    bad.hostile.borrow_mut().shrunk(if bad.part == Some(3) { PART / 2 } else { PART });
                }
                back.borrow_mut().resize(begin(3) + PART / 2);
            }
        }
    }

    /// A hostile guest is destroyed in the middle of what it does, and its number given to an honest one.
    fn destroy_one(&mut self) {
        let id = DomId(HOSTILE);
        let flying = self.bad.iter().any(|bad| bad.vbd.guest == id && bad.hostile.borrow().in_flight() > 0);
        let kept: usize =
            self.bad.iter().filter(|bad| bad.vbd.guest == id).map(|bad| bad.hostile.borrow().kept()).sum();
        if self.stage.run.random.one_in(2) {
            self.stage.run.world.destroy(id);
        }
        // What it leaves behind is not its to mend.
        self.bad.iter().for_each(|bad| bad.hostile.borrow_mut().grace.set(Instant(u64::MAX)));
        self.audit_bad();
        let _late = self.stage.run.destroy(id);
        assert_eq!(self.stage.run.world.life(id), None, "a zombie is left\n{}", self.stage.run.scene());
        self.bad.iter().filter(|bad| bad.vbd.guest == id).for_each(|bad| bad.hostile.borrow_mut().kill());
        self.bad.retain(|bad| bad.vbd.guest != id);
        self.grace.set(Instant(0));
        if flying {
            marks::hit(Step::Destroyed.mark());
        }
        if kept > 0 {
            marks::hit(Keep::Died.mark());
        }
        let next = self.stage.on_ram(id, PART);
        self.stage.attach(&next);
        self.attaches += 1;
        next.front.borrow_mut().work(Workload { sectors_max: 16, ..Workload::mixed(10) });
        self.stage.run.at_rest(&next.front);
        self.stage.verify(&next);
        self.honest.push(next);
        marks::hit(Step::NumberReused.mark());
    }

    /// What all of them made the product hold: so much for each disk at most, and nearly nothing in the end.
    fn look_at_the_heap(&self) {
        let (most, left) = (memory::peak() - self.heap, memory::held() - self.heap);
        let bound = self.attaches as usize * NOTES_PER_DISK;
        assert!(most.notes <= bound, "{} disks had the product hold {} bytes beside pages", self.attaches, most.notes);
        // Disks in memory, the room that is tried when one is opened, and a page for descriptors on each ring, of which a disk
        // has as many as there are vCPUs.
        let (disks, rings) = (self.attaches as usize, self.attaches as usize * self.stage.run.crew);
        let bound = disks * (512 << 10) + (4 << 20) + rings * PAGE_BYTES;
        assert!(most.pages <= bound, "{} disks had the product hold {} bytes of pages", self.attaches, most.pages);
        assert!(left.notes <= NOTES_LEFT && left.pages == 0, "{left:?} are still held\n{}", self.stage.run.scene());
    }

    /// No answer to an honest guest took longer than is promised, whatever the others did.
    fn judge_delay(&self, guest: &Guest, most: &mut Most) {
        let delay = guest.front.borrow().tally.delay_max;
        let target = &guest.vbd.params;
        assert!(delay.alone.turns <= TURNS_MAX, "an answer on {target} took {delay}");
        most.turns = most.turns.max(delay.alone.turns);
        let (requests, slowest) = match target {
            _ if target.starts_with("ram:") => (0, None),
            _ if target.starts_with("vhd:") => (REQUESTS_BELOW_OF_IMAGE, Some(&mut most.slow_image)),
            _ => (REQUESTS_BELOW, Some(&mut most.slow_raw)),
        };
        let below = match self.lower {
            Lower::Slow => LATENCY * requests,
            Lower::Stuck if requests > 0 => STUCK,
            _ => Duration::ZERO,
        };
        if let (Lower::Slow, Some(slowest)) = (self.lower, slowest) {
            *slowest = delay.nanos / 1000;
        }
        let bound = (LOOKS + below).as_nanos() as u64;
        assert!(delay.nanos <= bound, "an answer on {target}, {:?}, took {delay}", self.lower);
    }

    fn audit_bad(&self) {
        self.bad.iter().for_each(|bad| bad.hostile.borrow_mut().audit());
    }

    fn honest_are_served(&mut self) {
        let fronts: Vec<_> = self.honest.iter().map(|guest| guest.front.clone()).collect();
        let served = self.stage.run.until(BOUND, |_| fronts.iter().all(|front| front.borrow().at_rest()));
        assert!(served, "an honest guest waits\n{}", self.stage.run.scene());
        for guest in &self.honest {
            self.stage.verify(guest);
        }
    }

    /// No byte of an honest guest is in a page of a hostile one, or on its part of the disk.
    fn look_for_secrets(&mut self) {
        self.audit_bad();
        let disk = self.stage.disk();
        for part in self.bad.iter().filter_map(|bad| bad.part) {
            let (disk, at) = (disk.borrow(), begin(part) as usize * SECTOR);
            let bytes = &disk.bytes()[at..disk.bytes().len().min(at + PART as usize * SECTOR)];
            assert_eq!(clean(bytes), Ok(()), "partition {part} holds what an honest guest wrote");
        }
    }

    fn end(mut self) -> Report {
        let mut report = Report::default();
        self.grace.set(Instant(u64::MAX));
        let mut guests: Vec<DomId> = self.bad.iter().map(|bad| bad.vbd.guest).collect();
        guests.dedup();
        for guest in guests {
            let _late = self.stage.run.destroy(guest);
            assert_eq!(self.stage.run.world.life(guest), None, "a zombie is left\n{}", self.stage.run.scene());
        }
        self.bad.iter().for_each(|bad| bad.hostile.borrow_mut().kill());
        if let Some(greedy) = &self.greedy {
            self.stage.run.at_rest(&greedy.front);
        }
        for guest in &self.honest {
            self.judge_delay(guest, &mut report.most);
        }
        for guest in std::mem::take(&mut self.honest).into_iter().chain(self.greedy.take()) {
            self.stage.detach(&guest);
            report.guest(&guest.front.borrow().tally);
        }
        self.stage.run.rest(Duration::from_secs(2));
        self.look_at_the_heap();
        let errors = self.stage.run.store.list(&format!("/local/domain/{}/error", DRIVER.0));
        let told = errors.iter().filter(|line| line.contains("/error = ")).count();
        assert!(told <= 9, "{told} errors are kept:\n{}", errors.join("\n"));
        let now = self.stage.run.baseline(DRIVER);
        let left = Baseline { nodes: now.nodes - (errors.len() - 1), ..now };
        assert_eq!(left, self.clean, "something is left\n{}", self.stage.run.scene());
        assert_eq!(self.stage.run.tapdom().expect("it runs").held().pages, 0, "pages of requests are still out");
        // XSA-43: what guests do fills no log. A burst of 20 lines for every disk attached, then one a second.
        let seconds = self.stage.run.world.now().0 / 1_000_000_000;
        let most = 20 + self.attaches * (20 + seconds);
        assert!(journal::said() <= most, "{} lines in the log, {most} are the most", journal::said());
        report.add(&Report::of(&self.stage.run));
        report
    }
}

/// Where hostile guests are, for the text of a failure.
fn tell(bad: &[Rc<RefCell<Hostile>>]) -> String {
    bad.iter().map(|bad| bad.borrow().tell()).collect::<Vec<_>>().join("; ")
}

/// Partitions on the disk below; what is not the first's is marked as nobody's.
fn part_up(disk: &SharedDisk) {
    let mut disk: std::cell::RefMut<'_, Disk> = disk.borrow_mut();
    gpt::write(&mut disk, &[1, 2, 3, IMAGE].map(|part| (begin(part), if part == IMAGE { IMAGE_PART } else { PART })));
    let nobody = b"hostile!".repeat(2 * PART as usize * SECTOR / 8);
    disk.write(begin(2), &nobody);
    let mut image = Disk::new(IMAGE_PART);
    lay(&mut image, &New { id: [5; 16], sectors: IMAGE_SECTORS, timestamp: 0, form: Form::Dynamic(64) });
    disk.write(begin(IMAGE), image.bytes());
    disk.flush();
}
