//! The stage of every test with the product in it: it is booted, with a lower disk if wanted, and at the end nothing
//! may be left of what came meanwhile.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use crate::blkback::SharedBlkback;
use crate::disk::{Disk, Model, SharedDisk, SharedModel};
use crate::frontend::{Options, Phase};
use crate::handle::SimXen;
use crate::memory::{self, Heap, NOTES_LEFT};
use crate::run::{Baseline, DRIVER, Run, SharedFrontend};
use crate::toolstack::{Kind, Vbd};
use drivers::target::OpenError;
use kernel::Shared;
use kernel::control::Channel;
use kernel::minor::By;
use xen::port::DomId;

/// The guest of a test that has one.
pub const GUEST: DomId = DomId(5);
/// The device number of xvda.
pub const XVDA: u32 = 51712;

/// The most turns of the product that an answer may take on a disk in memory, whatever others do meanwhile. A request waits
/// for those of its own ring before it, 64 of which are taken in a round, and its task for its draw among the ready ones, 32
/// of which run in a turn: the worst of some thousand worlds was 55. One that waits for another guest or for a lower disk
/// takes turns without number.
pub const TURNS_MAX: u64 = 200;

/// A run with the product booted in it.
pub struct Stage {
    /// The run.
    pub run: Run,
    /// The lower disk and who serves it.
    pub lower: Option<(SharedDisk, SharedBlkback)>,
    /// Whoever gets at the whole lower disk may see what others wrote there.
    sharers: Option<SharedModel>,
    clean: Baseline,
    heap: Heap,
}

/// A guest with its disk.
pub struct Guest {
    /// Its driver.
    pub front: SharedFrontend,
    /// What must be on the disk.
    pub model: SharedModel,
    /// The disk as the toolstack knows it.
    pub vbd: Vbd,
}

impl Stage {
    /// The product with no disk below it.
    pub fn bare(seed: u64) -> Self {
        Stage::boot(Run::new(seed))
    }

    /// The product with a lower disk of that many sectors, as /dev/xvda.
    pub fn with_lower(seed: u64, sectors: u64) -> Self {
        let mut run = Run::new(seed);
        let disk = Disk::random(sectors, &mut run.random);
        let back = run.lower(XVDA, &disk);
        back.borrow_mut().options = crate::blkback::Options::any(&mut run.random);
        Stage { lower: Some((disk, back)), ..Stage::boot(run) }
    }

    /// The product with its control channels, and with a lower disk of that many sectors.
    pub fn with_control(seed: u64, sectors: u64) -> Self {
        let mut run = Run::new(seed);
        run.channels = Channel::defaults();
        let disk = Disk::random(sectors, &mut run.random);
        let back = run.lower(XVDA, &disk);
        Stage { lower: Some((disk, back)), ..Stage::boot(run) }
    }

    /// The product with this disk below it, served with these manners, as the device of that number.
    pub fn over(seed: u64, devid: u32, disk: &SharedDisk, manners: crate::blkback::Options) -> Self {
        let mut run = Run::new(seed);
        let back = run.lower(devid, disk);
        back.borrow_mut().options = manners;
        Stage { lower: Some((disk.clone(), back)), ..Stage::boot(run) }
    }

    /// The product booted in a run that was prepared, with this disk below it.
    pub fn boot_over(run: Run, disk: SharedDisk, back: SharedBlkback) -> Self {
        Stage { lower: Some((disk, back)), ..Stage::boot(run) }
    }

    /// The product booted in a run that was prepared.
    pub fn boot(mut run: Run) -> Self {
        run.boot();
        let client = run.store.client(DRIVER);
        let ready = run.until(Duration::from_secs(20), |_| client.exists("data/ready"));
        assert!(ready, "never ready:\n{}", run.scene());
        run.rest(Duration::from_secs(2));
        let (clean, heap) = (run.baseline(DRIVER), memory::held());
        Stage { run, lower: None, sharers: None, clean, heap }
    }

    /// The lower disk.
    pub fn disk(&self) -> SharedDisk {
        self.lower.as_ref().expect("a stage with a lower disk").0.clone()
    }

    /// Who serves the lower disk.
    pub fn back(&self) -> SharedBlkback {
        self.lower.as_ref().expect("a stage with a lower disk").1.clone()
    }

    /// A guest on the lower disk.
    pub fn on_lower(&mut self, guest: DomId) -> Guest {
        let model = Model::of(self.disk().borrow().bytes());
        self.share_lower(&model);
        self.guest(Vbd::new(DRIVER, guest, "aio:/dev/xvda"), &model)
    }

    /// What is written to the lower disk through this model and through others is one disk's.
    pub fn share_lower(&mut self, model: &SharedModel) {
        match &self.sharers {
            Some(first) => model.borrow_mut().shares(first),
            None => self.sharers = Some(model.clone()),
        }
    }

    /// A guest on memory of that many sectors.
    pub fn on_ram(&mut self, guest: DomId, sectors: u64) -> Guest {
        let model = Model::zeroes(sectors);
        let kind = self.run.random.pick(&[Kind::Vbd, Kind::Qdisk, Kind::Vbd3]);
        let vbd = Vbd::new(DRIVER, guest, &format!("ram:{}", sectors * 512));
        self.guest(Vbd { kind, ..vbd }, &model)
    }

    /// A guest of any geometry, its disk not yet attached.
    pub fn guest(&mut self, vbd: Vbd, model: &SharedModel) -> Guest {
        let front = self.run.frontend(vbd.guest, vbd.devid, model);
        front.borrow_mut().options = Options::any(&mut self.run.random);
        Guest { front, model: model.clone(), vbd }
    }

    /// `xl block-attach`, and waits until the guest has it.
    pub fn attach(&mut self, guest: &Guest) {
        let attached = self.run.attach(&guest.vbd);
        assert_eq!(attached, Ok(()), "{}", self.run.scene());
        self.run.connected(&guest.front);
    }

    /// `xl block-detach`, and waits until the guest has let go.
    pub fn detach(&mut self, guest: &Guest) {
        if guest.vbd.params.starts_with("ram:") {
            let turns = guest.front.borrow().tally.delay_max.all.turns;
            assert!(turns <= TURNS_MAX, "an answer took {turns} turns of the product\n{}", self.run.scene());
        }
        let detached = self.run.detach(&guest.vbd);
        assert_eq!(detached, Ok(()), "{}", self.run.scene());
        let front = guest.front.clone();
        assert!(self.run.until(Duration::from_secs(5), |_| front.borrow().phase() == Phase::Absent));
    }

    /// Reads everything back and compares.
    pub fn verify(&mut self, guest: &Guest) {
        guest.front.borrow_mut().read_all();
        self.run.at_rest(&guest.front);
    }

    /// Runs `body` as a task of the product, to its end.
    pub fn inside<T: 'static>(&mut self, body: impl AsyncFnOnce(Rc<Shared<SimXen>>) -> T + 'static) -> T {
        let (shared, result) = (self.run.tapdom().expect("it runs").shared().clone(), Rc::new(RefCell::new(None)));
        let (given, put) = (shared.clone(), result.clone());
        shared.domain.exec.spawn(async move {
            let came = body(given).await;
            *put.borrow_mut() = Some(came);
        });
        self.run.nudge();
        let done = self.run.until(Duration::from_secs(60), |_| result.borrow().is_some());
        assert!(done, "it does not end:\n{}", self.run.scene());
        result.take().expect("just seen")
    }

    /// The minor that a guest's directory has.
    pub fn minor(&self) -> u16 {
        let minors = self.run.tapdom().expect("it runs").shared().minors.all();
        minors.iter().find(|minor| matches!(minor.by(), By::Directory(_))).expect("a disk is attached").number()
    }

    /// Holds a minor that is there, on a store that works; whether it is held then.
    pub fn pause(&mut self, number: u16) -> bool {
        self.inside(async move |shared| {
            shared.minors.get(number).expect("attached").pause(&shared.domain).await.expect("a store that works")
        })
    }

    /// Lets it go on, on another image if one is named.
    pub fn resume(&mut self, number: u16, name: Option<&'static str>) -> Result<(), OpenError> {
        self.inside(async move |shared| shared.minors.get(number).expect("attached").resume(&shared.lowers, name).await)
    }

    /// What the product holds is what it held after its boot.
    pub fn assert_clean(&mut self) {
        self.run.rest(Duration::from_secs(2));
        assert_eq!(self.run.baseline(DRIVER), self.clean, "{}", self.run.scene());
        let held = self.run.tapdom().expect("it runs").held();
        assert_eq!(held.pages, 0, "pages of requests are still out");
        // The store's own ring page and the console are not the product's to count.
        assert_eq!(held.mappings, self.clean.holdings.mappings);
        assert_eq!(held.grants, self.clean.holdings.grants);
        self.assert_few_notes();
        // Disks of messages are there until a message takes them away.
        let minors = self.run.tapdom().expect("it runs").shared().minors.all();
        let disks: u64 = minors.iter().map(|minor| minor.memory_bytes()).sum();
        let pages = (memory::held() - self.heap).pages as u64;
        assert!(pages <= disks, "{pages} bytes of pages are still held\n{}", self.run.scene());
    }

    /// The product's heap holds hardly more than after its boot; pages that others do not let go of apart.
    pub fn assert_few_notes(&self) {
        let left = (memory::held() - self.heap).notes;
        assert!(left <= NOTES_LEFT, "{left} bytes beside pages are still held\n{}", self.run.scene());
    }
}
