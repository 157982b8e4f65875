//! A guest's block frontend: the state walk of Linux or of OVMF, and judge of everything the backend does.
//!
//! It sleeps until it is notified. Whatever a backend may never do to an honest guest is a panic here: a wrong or
//! second answer, data that is not what was written, a page still mapped after its answer.

mod link;
pub mod slips;
pub mod workload;

use std::collections::VecDeque;

use xen::port::{DomId, GrantRef, Instant};

use crate::blkif::{Layout, SEGMENTS_MAX, status};
use crate::delay::Delay;
use crate::disk::SharedModel;
use crate::frontend::link::{Done, Geometry, Link};
use crate::frontend::slips::{Script, Slip};
pub use crate::frontend::workload::{Io, Workload};
use crate::ledger::SharedLedger;
use crate::marks;
use crate::random::Random;
use crate::run::Actor;
use crate::store::{Client, Store};
use crate::world::World;

/// Requests of [`Frontend::ask`] that are under way at once.
const DEPTH_MAX: usize = 32;

/// Whose way of shaking hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// 1, wait for 2, 3, wait for 4, 4.
    Linux,
    /// 1 to 4 at once, then wait for 4 and be upset by anything above it.
    Ovmf,
    /// As OVMF; and when it ends it waits until the backend has left Closed again (mini-os, and so GRUB).
    Grub,
    /// Linux after a migration: rewrites its keys and goes to 3 whatever the backend shows.
    Resumed,
}

impl Style {
    /// It goes to Connected without asking, with one page and without indirect requests.
    fn jumps(self) -> bool {
        matches!(self, Style::Ovmf | Style::Grub)
    }
}

/// What kind of guest it is.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How it shakes hands.
    pub style: Style,
    /// How its compiler lays requests out.
    pub layout: Layout,
    /// The ring order it would like.
    pub order: u32,
    /// Rings that it would like, as many as it has vCPUs.
    pub queues: u32,
    /// Segments it would put in an indirect request; 0 is a guest that knows of none.
    pub indirect: usize,
    /// It says that it could keep pages granted, as Linux does by default, and does so if the backend offers the same.
    pub persistent: bool,
    /// It closes without waiting for what is under way, as a crash kernel does.
    pub abrupt: bool,
    /// It bears errors; else an error is a panic.
    pub errors: bool,
    /// Its disk may lie: what it reads is not judged.
    pub credulous: bool,
    /// What goes wrong with its next offer. It takes back what it made of it, and comes again.
    pub slip: Option<Slip>,
    /// It gives requests numbers that are under way already.
    pub shares_ids: bool,
}

impl Default for Options {
    fn default() -> Self {
        let (style, layout) = (Style::Linux, Layout::X86_64);
        Options {
            style,
            layout,
            order: 0,
            queues: 1,
            indirect: 32,
            persistent: true,
            abrupt: false,
            errors: false,
            credulous: false,
            slip: None,
            shares_ids: false,
        }
    }
}

impl Options {
    /// A Linux-like guest of whatever geometry the seed likes.
    pub fn any(random: &mut Random) -> Self {
        Options {
            layout: random.pick(&[Layout::X86_64, Layout::X86_32]),
            order: random.below(5) as u32,
            queues: random.pick(&[1, 2, 4]),
            indirect: random.pick(&[0, 32, 256]),
            persistent: !random.one_in(3),
            ..Options::default()
        }
    }
}

/// Where the frontend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No device directory.
    Absent,
    /// State 1.
    Initialising,
    /// The ring is published; the backend is to connect.
    Offered,
    /// State 4.
    Connected,
    /// To close, once nothing is under way.
    Draining,
    /// State 5.
    Closing,
    /// State 6.
    Closed,
    /// At 1 again, and waits for the backend to leave Closed before it makes room for its successor.
    Leaving,
    /// Closed, and everything taken back.
    Off,
    /// The guest does not run any more.
    Dead,
}

/// What came of a guest's requests.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub reads: u32,
    pub writes: u32,
    pub flushes: u32,
    pub discards: u32,
    pub errors: u32,
    pub unsupported: u32,
    /// Under way when the ring was taken down.
    pub lost: u32,
    /// Events without an answer.
    pub spurious: u32,
    pub connects: u32,
    /// Offers that the backend did not take.
    pub refused: u32,
    /// What an answer took at most.
    pub delay_max: Delay,
}

/// What the backend said of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Its size.
    pub sectors: u64,
    /// Its logical sector.
    pub sector_size: u64,
    /// `VDISK_*` bits.
    pub info: u64,
    /// It flushes.
    pub flush: bool,
    /// It discards.
    pub discard: bool,
    /// Indirect segments.
    pub indirect: usize,
    /// Its physical sector.
    pub physical_size: u64,
    /// The smallest range it discards, in bytes.
    pub granularity: u64,
    /// Where the first of those begins, in bytes.
    pub alignment: u64,
    /// How much it discards at once, in sectors: Linux looks at the size for that when it connects, and not again.
    pub discard_sectors: u64,
}

impl Offer {
    /// What Linux makes of it (`blkif_set_queue_limits` and what follows it), under the names of its sysfs.
    pub fn limits(&self, segments_max: usize) -> Vec<(&'static str, String)> {
        let discard = |value: u64| if self.discard { value } else { 0 };
        let granularity = if self.granularity == 0 { self.physical_size } else { self.granularity };
        let text = |name, value: u64| (name, value.to_string());
        vec![
            text("size", self.sectors),
            text("ro", u64::from(self.info & 4 != 0)),
            text("discard_alignment", discard(self.alignment)),
            text("queue/logical_block_size", self.sector_size),
            text("queue/physical_block_size", self.physical_size),
            text("queue/discard_granularity", discard(granularity)),
            text("queue/discard_max_bytes", discard(self.discard_sectors * 512)),
            text("queue/max_segments", segments_max as u64),
            text("queue/max_segment_size", 4096),
            text("queue/max_hw_sectors_kb", segments_max as u64 * 4),
            ("queue/write_cache", if self.flush { "write back" } else { "write through" }.into()),
            text("queue/fua", 0),
        ]
    }
}

/// One frontend.
pub struct Frontend {
    world: World,
    client: Client,
    random: Random,
    guest: DomId,
    devid: u32,
    dir: String,
    backend: DomId,
    backend_dir: String,
    phase: Phase,
    links: Vec<Link>,
    model: SharedModel,
    wanted: VecDeque<Io>,
    workload: Option<Workload>,
    deferred: Vec<GrantRef>,
    again: Option<Style>,
    /// It has been here before, and the backend may not have noticed that it is back.
    returning: bool,
    /// Its driver is taken from the device.
    unbound: bool,
    /// What it has still to write of its offer, and the slip that it made with it.
    script: Script,
    slipped: Option<Slip>,
    /// What was said when an offer was refused last.
    pub refusal: Option<String>,
    /// How it behaves; may be changed between connections.
    pub options: Options,
    /// What came of it.
    pub tally: Tally,
    /// What the backend said last.
    pub offer: Offer,
    /// Where it notes what it asks and what it is told, for the judge of power cuts.
    pub ledger: Option<SharedLedger>,
    /// It stops looking at its ring and at xenstore, as a paused or stuck guest does.
    pub silent: bool,
}

impl Frontend {
    /// A guest's driver for one device, there from now on, whether the device is or not.
    pub fn new(store: &Store, world: &World, random: Random, guest: DomId, devid: u32, model: SharedModel) -> Self {
        let dir = format!("/local/domain/{}/device/vbd/{devid}", guest.0);
        let client = store.client(guest);
        client.watch("device/vbd", "device").expect("a guest has watches");
        world.keep_to_promises(guest);
        world.may_see(guest, model.borrow().owner());
        Frontend {
            world: world.clone(),
            client,
            random,
            guest,
            devid,
            dir,
            backend: DomId(0),
            backend_dir: String::new(),
            phase: Phase::Absent,
            links: Vec::new(),
            model,
            wanted: VecDeque::new(),
            workload: None,
            deferred: Vec::new(),
            again: None,
            returning: false,
            unbound: false,
            script: Script::default(),
            slipped: None,
            refusal: None,
            options: Options::default(),
            tally: Tally::default(),
            offer: Offer::default(),
            ledger: None,
            silent: false,
        }
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What its kernel makes of the disk, once connected.
    pub fn limits(&self) -> Vec<(&'static str, String)> {
        self.offer.limits(self.links.first().map_or(0, |link| link.segments_max))
    }

    /// Whether it is connected with nothing to do and nothing under way.
    pub fn at_rest(&self) -> bool {
        self.phase == Phase::Connected && self.workload.is_none() && self.wanted.is_empty() && self.in_flight() == 0
    }

    /// How many requests wait for their answer.
    pub fn in_flight(&self) -> usize {
        self.links.iter().map(Link::in_flight).sum()
    }

    /// How many rings it has.
    pub fn queues(&self) -> usize {
        self.links.len()
    }

    /// Pages of its first ring; 0 while it has none.
    pub fn ring_pages(&self) -> usize {
        self.links.first().map_or(0, |link| link.grants.len())
    }

    /// Segments of its largest request; 0 while it has no ring.
    pub fn segments_max(&self) -> usize {
        self.links.first().map_or(0, |link| link.segments_max)
    }

    /// Asks for one thing.
    pub fn ask(&mut self, io: Io) {
        self.wanted.push_back(io);
        self.world.stir();
    }

    /// Starts a stream of requests.
    pub fn work(&mut self, workload: Workload) {
        self.workload = Some(workload);
        self.world.stir();
    }

    /// Asks for nothing more.
    pub fn stop(&mut self) {
        self.workload = None;
        self.wanted.clear();
    }

    /// Asks for the whole disk, to compare it with the model.
    pub fn read_all(&mut self) {
        let sectors = self.offer.sectors;
        for sector in (0..sectors).step_by(88) {
            self.ask(Io::Read { sector, sectors: (sectors - sector).min(88) });
        }
    }

    /// The guest closes the device, and with a style comes back to it, as after a reboot or a kexec.
    pub fn close(&mut self, again: Option<Style>) {
        self.again = again;
        self.phase = Phase::Draining;
        self.workload = None;
        self.wanted.clear();
        self.world.stir();
    }

    /// The driver is taken from the device, as by `unbind` in Linux's sysfs: it goes to Closed and says no Closing.
    pub fn unbind(&mut self) {
        self.unbound = true;
        self.close(None);
    }

    /// The guest is gone, from one moment to the next.
    pub fn kill(&mut self) {
        for link in std::mem::take(&mut self.links) {
            let (ios, _) = link.end();
            self.lose(ios);
        }
        self.deferred.clear();
        self.phase = Phase::Dead;
    }

    fn fail(&self, why: &str) -> ! {
        panic!("frontend {}/{} in phase {:?}: {why}", self.guest.0, self.devid, self.phase)
    }

    fn lose(&mut self, ios: Vec<Io>) {
        self.tally.lost += ios.len() as u32;
        for io in ios.iter().filter(|io| io.changes()) {
            let (sector, sectors) = io.range();
            self.model.borrow_mut().doubt(sector, sectors);
        }
    }

    fn state(&self, state: u32) {
        let written = self.client.write(&format!("{}/state", self.dir), &state.to_string());
        // The toolstack may have taken the directory a moment ago; the watch will tell.
        let _gone = written.is_err();
    }

    fn back(&self, key: &str) -> Option<u64> {
        self.client.number(&format!("{}/{key}", self.backend_dir))
    }

    /// Looks at both states and does what is due, one step.
    fn follow(&mut self) {
        if self.phase == Phase::Absent {
            return self.probe();
        }
        if !self.client.exists(&format!("{}/backend", self.dir)) {
            return self.removed();
        }
        let back = self.back("state").unwrap_or(0);
        match (self.phase, back) {
            (Phase::Initialising, 2) => {
                self.returning = false;
                self.connect(3);
            }
            (Phase::Offered, 4) => self.connected(),
            (Phase::Offered, 5..) if self.options.style.jumps() => {
                self.fail(&format!("the backend went to {back} while firmware waits for 4"))
            }
            (Phase::Connected, 4) => self.look(),
            // What the last connection left: a kernel that comes back waits for the end of that before it looks.
            (Phase::Initialising, 6) if self.returning => {}
            (Phase::Initialising | Phase::Offered | Phase::Connected, 5 | 6) => {
                if self.phase == Phase::Offered {
                    self.refused();
                }
                self.phase = Phase::Draining;
                self.workload = None;
                self.wanted.clear();
            }
            (Phase::Closing, 5 | 6) => {
                self.state(6);
                self.phase = Phase::Closed;
            }
            (Phase::Leaving, 2..=4) => self.hand_over(),
            (Phase::Closed, 6) => self.closed(true),
            // The directory is gone: whoever took it, the backend may not know yet.
            (Phase::Closed, 0) => self.closed(false),
            _ => {}
        }
    }

    fn probe(&mut self) {
        let Ok(backend_dir) = self.client.read(&format!("{}/backend", self.dir)) else { return };
        let Some(id) = self.client.number(&format!("{}/backend-id", self.dir)) else { return };
        self.backend = DomId(id as u16);
        self.backend_dir = backend_dir;
        self.client.watch(&format!("{}/state", self.backend_dir), "backend").expect("a guest has watches");
        self.phase = Phase::Initialising;
        self.begin();
    }

    /// What a driver does first; Linux waits for the backend.
    fn begin(&mut self) {
        match self.options.style {
            Style::Linux => self.follow(),
            Style::Ovmf | Style::Grub => self.connect(4),
            Style::Resumed => self.connect(3),
        }
    }

    /// Makes a ring and publishes it.
    fn connect(&mut self, state: u32) {
        let order_max = self.back("max-ring-page-order").unwrap_or(0) as u32;
        let order = if self.options.style.jumps() { 0 } else { self.options.order.min(order_max) };
        let (guest, backend, devid, layout) = (self.guest, self.backend, self.devid, self.options.layout);
        let geometry = Geometry { guest, backend, devid, layout, order };
        self.slipped = self.options.slip.take();
        // Who makes slips, and firmware, has one ring.
        let one = self.options.style.jumps() || self.slipped.is_some();
        let queues_max = if one { 1 } else { self.back("multi-queue-max-queues").unwrap_or(1) as u32 };
        let queues = self.options.queues.min(queues_max);
        let mut keys: Vec<(String, String)> = Vec::new();
        let mut put = |key: &str, value: u32| keys.push((key.into(), value.to_string()));
        if order > 0 {
            put("ring-page-order", order);
        }
        if queues > 1 {
            put("multi-queue-num-queues", queues);
            marks::hit("several rings");
        }
        for queue in 0..queues {
            let link = Link::new(&self.world, self.random.fork(), &geometry);
            let place = if queues > 1 { format!("queue-{queue}/") } else { String::new() };
            match order {
                0 => put(&format!("{place}ring-ref"), link.grants[0].0),
                _ => (0..)
                    .zip(&link.grants)
                    .for_each(|(i, grant): (u32, _)| put(&format!("{place}ring-ref{i}"), grant.0)),
            }
            put(&format!("{place}event-channel"), link.port.0);
            self.links.push(link);
        }
        keys.push(("feature-persistent".into(), u32::from(self.persistent()).to_string()));
        keys.push(("protocol".into(), layout.protocol().into()));
        self.phase = Phase::Offered;
        if let Some(slip) = self.slipped {
            return self.slip(slip, keys);
        }
        let written = self.client.together(|store| {
            keys.iter().try_for_each(|(key, value)| store.write(&format!("{}/{key}", self.dir), value))
        });
        if written.is_ok() {
            self.state(state);
        }
    }

    fn persistent(&self) -> bool {
        self.options.persistent && !self.options.style.jumps()
    }

    fn connected(&mut self) {
        self.look();
        let knows = if self.options.style.jumps() { 0 } else { self.options.indirect };
        let segments = knows.min(self.offer.indirect).max(SEGMENTS_MAX);
        let offers = self.persistent() || self.slipped == Some(Slip::FeatureChanged);
        let persistent = offers && self.back("feature-persistent") == Some(1);
        let shares_ids = self.options.shares_ids;
        for link in &mut self.links {
            (link.segments_max, link.persistent, link.shares_ids) = (segments, persistent, shares_ids);
        }
        self.phase = Phase::Connected;
        self.tally.connects += 1;
        if !self.options.style.jumps() {
            self.state(4);
        }
        if !self.fits() {
            self.close(Some(Style::Linux));
        }
    }

    fn link_mut(&mut self) -> &mut Link {
        self.links.first_mut().expect("offered one")
    }

    /// Removes what it offered: a number that is left would soon mean something else.
    fn take_back(&self) {
        let names = self.client.directory(&self.dir).unwrap_or_default();
        let is_its =
            |name: &str| ["ring-", "event-channel", "queue-", "multi-queue-"].iter().any(|key| name.starts_with(key));
        for name in names.iter().filter(|name| is_its(name)) {
            let _gone = self.client.remove(&format!("{}/{name}", self.dir));
        }
    }

    /// Reads what the backend says of the disk: at first, and whenever it writes its state again.
    fn look(&mut self) {
        let sectors = self.back("sectors").unwrap_or_else(|| self.fail("connected without sectors"));
        let offer = Offer {
            sectors,
            sector_size: self.back("sector-size").unwrap_or_else(|| self.fail("connected without sector-size")),
            info: self.back("info").unwrap_or_else(|| self.fail("connected without info")),
            flush: self.back("feature-flush-cache") == Some(1),
            discard: self.back("feature-discard") == Some(1),
            indirect: self.back("feature-max-indirect-segments").unwrap_or(0) as usize,
            physical_size: self.back("physical-sector-size").or(self.back("sector-size")).unwrap_or(0),
            granularity: self.back("discard-granularity").unwrap_or(0),
            alignment: self.back("discard-alignment").unwrap_or(0),
            discard_sectors: if self.phase == Phase::Connected { self.offer.discard_sectors } else { sectors },
        };
        if offer.sectors != self.model.borrow().sectors() {
            self.model.borrow_mut().resize(offer.sectors);
        }
        self.offer = offer;
    }

    /// The backend is done with the ring; if it says so itself, everything can be taken back now.
    fn closed(&mut self, said: bool) {
        self.phase = Phase::Off;
        self.script.end();
        if !said && self.in_flight() > 0 {
            self.world.excuse(self.guest);
        }
        for link in std::mem::take(&mut self.links) {
            let (ios, grants) = link.end();
            self.lose(ios);
            self.deferred.extend(grants);
            self.retry_deferred();
            if said && !self.deferred.is_empty() {
                self.fail("the backend says it is closed and still maps our pages");
            }
        }
        if self.again.is_some() {
            self.take_back();
            self.state(1);
            match self.options.style {
                Style::Grub => {
                    self.phase = Phase::Leaving;
                    self.follow();
                }
                _ => self.hand_over(),
            }
        }
    }

    /// The next driver of this device begins.
    fn hand_over(&mut self) {
        let Some(style) = self.again.take() else { return };
        self.options.style = style;
        self.phase = Phase::Initialising;
        self.returning = true;
        self.begin();
    }

    /// The toolstack took the directory. The backend may not have noticed; its pages come back when it has.
    fn removed(&mut self) {
        let _gone = self.client.unwatch(&format!("{}/state", self.backend_dir), "backend");
        if self.in_flight() > 0 {
            self.world.excuse(self.guest);
        }
        for link in std::mem::take(&mut self.links) {
            let (ios, grants) = link.end();
            self.lose(ios);
            self.deferred.extend(grants);
        }
        self.workload = None;
        self.wanted.clear();
        self.script.end();
        self.phase = Phase::Absent;
    }

    fn drain(&mut self) -> bool {
        if self.in_flight() > 0 && !self.options.abrupt {
            return false;
        }
        // Who is asked to close goes straight to 6; who closes of its own will says so first, but for a driver that is
        // only taken away.
        let asked = std::mem::take(&mut self.unbound) || matches!(self.back("state"), Some(5 | 6) | None);
        self.phase = if asked { Phase::Closed } else { Phase::Closing };
        self.state(if asked { 6 } else { 5 });
        self.follow();
        true
    }

    fn interrupt(&mut self) -> bool {
        let (world, guest) = (&self.world, self.guest);
        let Some(link) = self.links.iter_mut().find(|link| world.take_event(guest, link.port)) else { return false };
        let done = match link.interrupt() {
            Ok(done) => done,
            Err(why) => self.fail(&why),
        };
        if done.is_empty() {
            self.tally.spurious += 1;
        }
        for done in done {
            self.account(done);
        }
        true
    }

    fn account(&mut self, done: Done) {
        let Done { io, line, status, data, delay } = done;
        self.tally.delay_max = self.tally.delay_max.max(delay.unwrap_or_default());
        if let (Some(ledger), Some(line)) = (&self.ledger, line) {
            ledger.borrow_mut().answered(line, status == status::OKAY);
        }
        let (sector, sectors) = io.range();
        if status != status::OKAY {
            if status == status::EOPNOTSUPP {
                self.tally.unsupported += 1;
            } else {
                self.tally.errors += 1;
            }
            if !self.options.errors {
                self.fail(&format!("status {status} for operation {} at {sector}+{sectors}", io.op()));
            }
            return;
        }
        match io {
            Io::Read { .. } => {
                self.tally.reads += 1;
                let seen = self.model.borrow_mut().saw(sector, &data);
                if let Err(at) = seen.or_else(|at| if self.options.credulous { Ok(()) } else { Err(at) }) {
                    self.fail(&format!("sector {at} (read {sector}+{sectors}) is not what was written"));
                }
            }
            Io::Write { data, .. } | Io::FlushWrite { data, .. } | Io::Barrier { data, .. } => {
                self.tally.writes += 1;
                self.model.borrow_mut().wrote(sector, &data);
            }
            Io::Flush => self.tally.flushes += 1,
            Io::Discard { .. } => self.tally.discards += 1,
        }
    }

    /// Puts as many requests as the ring, the depth and the other requests allow.
    fn submit(&mut self) -> bool {
        if self.phase != Phase::Connected {
            return false;
        }
        let in_flight = self.in_flight();
        // A vCPU of the guest asks by the ring that is its own.
        let with_room: Vec<_> = (0..self.links.len()).filter(|at| self.links[*at].has_room(0)).collect();
        let which = match with_room.len() {
            0 => return false,
            1 => with_room[0],
            more => with_room[self.random.index(more)],
        };
        let (links, link) = (&self.links, &self.links[which]);
        let fits =
            |io: &Io, batch: &[Io]| link.has_room(batch.len()) && links.iter().all(|link| link.independent(io, batch));
        let mut batch: Vec<Io> = Vec::new();
        while let Some(io) = self.wanted.front() {
            if !fits(io, &batch) || in_flight + batch.len() >= DEPTH_MAX {
                break;
            }
            batch.push(self.wanted.pop_front().expect("just seen"));
        }
        // On a disk without sectors there is nothing to do.
        self.workload = self.workload.take().filter(|_| self.offer.sectors > 0);
        if let Some(workload) = &mut self.workload {
            let longest = 8 * link.segments_max as u64;
            while workload.left > 0 && in_flight + batch.len() < workload.depth {
                let io = workload.next(&mut self.random, self.offer.sectors, longest, self.model.borrow().owner());
                let offered = match io {
                    Io::Flush => self.offer.flush,
                    Io::Discard { .. } => self.offer.discard,
                    _ => true,
                };
                workload.left -= u32::from(!offered);
                if offered && !fits(&io, &batch) {
                    break;
                }
                if offered {
                    workload.left -= 1;
                    batch.push(io);
                }
            }
            if workload.left == 0 {
                self.workload = None;
            }
        }
        if batch.is_empty() {
            return false;
        }
        for io in batch.iter().filter(|io| io.changes()) {
            let (sector, sectors) = io.range();
            self.model.borrow_mut().doubt(sector, sectors);
        }
        let ledger = &self.ledger;
        let line = |io: &Io| ledger.as_ref().map(|ledger| ledger.borrow_mut().asked(io));
        let batch = batch.into_iter().map(|io| (line(&io), io)).map(|(line, io)| (io, line));
        self.links[which].submit(batch.collect());
        true
    }

    fn retry_deferred(&mut self) -> bool {
        let (world, guest) = (&self.world, self.guest);
        let before = self.deferred.len();
        self.deferred.retain(|grant| world.reclaim(guest, *grant).is_err());
        self.deferred.len() < before
    }
}

impl Actor for Frontend {
    fn turn(&mut self) -> bool {
        if self.phase == Phase::Dead || self.silent {
            self.links.iter_mut().for_each(Link::look_away);
            return false;
        }
        if !self.world.alive(self.guest) {
            self.kill();
            return false;
        }
        if self.client.event().is_some() {
            self.follow();
            return true;
        }
        self.interrupt()
            || self.phase == Phase::Draining && self.drain()
            || self.write_on()
            || self.submit()
            || self.retry_deferred()
    }

    fn timer(&self) -> Option<Instant> {
        let writes = !self.silent && matches!(self.phase, Phase::Offered | Phase::Connected);
        self.script.due().filter(|_| writes)
    }

    fn name(&self) -> String {
        format!("frontend {}/{} ({:?})", self.guest.0, self.devid, self.phase)
    }
}
