//! dom0's block backend under the product: as Linux has it (`drivers/block/xen-blkback`), with every freedom it takes.
//!
//! It answers in an order of its own, keeps granted pages mapped when both ends agreed to that, may fail a request, be
//! slow, close. What a frontend may not do (overrun the ring, end a grant it still uses) is a panic here.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use protocol::mem::Memory;
use xen::page::PageRef;
use xen::port::{Access, DomId, Foreign, GrantRef, Instant, Port};

use crate::blkif::{BackRing, Body, Layout, Request, Response, SECTOR, SEGMENTS_PER_PAGE, Segment, op, status};
use crate::disk::SharedDisk;
use crate::fault::Fault;
use crate::lie::Lie;
use crate::marks;
use crate::random::Random;
use crate::run::Actor;
use crate::store::{Client, Store};
use crate::world::{DOM0, World};

/// What it offers and how it misbehaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// `max-ring-page-order`.
    pub order: u32,
    /// `feature-max-indirect-segments`; 0 is none.
    pub indirect: u16,
    /// `feature-persistent`.
    pub persistent: bool,
    /// `feature-flush-cache`.
    pub flush: bool,
    /// `feature-discard`.
    pub discard: bool,
    /// `physical-sector-size`.
    pub physical_bytes: u64,
    /// `discard-granularity`.
    pub granularity_bytes: u64,
    /// `mode` is `r`: it refuses to write.
    pub read_only: bool,
    /// This many of the next requests fail.
    pub failures: u32,
    /// How long a request takes at most.
    pub latency: Duration,
    /// It takes requests and answers none.
    pub stuck: bool,
    /// The lie it tells at the next occasion, once.
    pub lie: Option<Lie>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            order: 4,
            indirect: 256,
            persistent: true,
            flush: true,
            discard: true,
            // A loop device over a file in tmpfs.
            physical_bytes: 512,
            granularity_bytes: 4096,
            read_only: false,
            failures: 0,
            latency: Duration::ZERO,
            stuck: false,
            lie: None,
        }
    }
}

impl Options {
    /// A backend of whatever generation the seed likes.
    pub fn any(random: &mut Random) -> Self {
        Options {
            order: random.below(5) as u32,
            indirect: random.pick(&[0, 16, 256]),
            persistent: random.one_in(2),
            physical_bytes: random.pick(&[512, 4096]),
            granularity_bytes: random.pick(&[512, 4096, 65536]),
            latency: Duration::from_micros(random.pick(&[0, 0, 500, 20_000])),
            ..Options::default()
        }
    }
}

struct Job {
    request: Request,
    due: Instant,
    /// What had reached the disk and was answered when this was taken: what a flush covers.
    covers: usize,
}

struct Connected {
    ring: BackRing,
    mappings: Vec<u64>,
    port: Port,
    /// It closed its port: the number may be another's by now.
    deaf: bool,
    /// It has lied about its indices, and leaves them so: the next honest word on the ring would take the lie back before
    /// anybody has seen it.
    lost: bool,
    jobs: Vec<Job>,
    /// What had reached the disk at the last answer.
    answered: usize,
    persistent: bool,
    kept: BTreeMap<GrantRef, (u64, PageRef)>,
}

/// One lower disk, as dom0 serves it to the domain under test.
pub struct Blkback {
    world: World,
    client: Client,
    random: Random,
    peer: DomId,
    dir: String,
    front_dir: String,
    state: u32,
    link: Option<Connected>,
    /// The bytes.
    pub disk: SharedDisk,
    /// How it behaves; may be changed at any time.
    pub options: Options,
    /// Requests it served.
    pub served: u32,
    /// Flushes among them.
    pub flushes: u32,
}

/// A backend that a test and the scheduler share.
pub type SharedBlkback = Rc<RefCell<Blkback>>;

impl Blkback {
    /// A backend for the device that the toolstack has written, or will.
    pub fn new(store: &Store, world: &World, random: Random, peer: DomId, devid: u32, disk: SharedDisk) -> Self {
        let client = store.client(DOM0);
        let dir = format!("/local/domain/0/backend/vbd/{}/{devid}", peer.0);
        let front_dir = format!("/local/domain/{}/device/vbd/{devid}", peer.0);
        client.watch(&dir, "back").expect("dom0 may");
        client.watch(&front_dir, "front").expect("dom0 may");
        Blkback {
            world: world.clone(),
            client,
            random,
            peer,
            dir,
            front_dir,
            state: 1,
            link: None,
            disk,
            options: Options::default(),
            served: 0,
            flushes: 0,
        }
    }

    /// The disk grows or shrinks while in use.
    pub fn resize(&mut self, sectors: u64) {
        self.disk.borrow_mut().resize(sectors);
        let told = self.client.together(|store| {
            store.write(&format!("{}/sectors", self.dir), &sectors.to_string())?;
            store.write(&format!("{}/state", self.dir), &self.state.to_string())
        });
        told.expect("dom0 may");
    }

    /// Whether it was asked something that it has not answered.
    pub fn owes(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.ring.owes())
    }

    /// It closes of its own will, as on `xl block-detach` of the lower disk or a failing device.
    pub fn close(&mut self) {
        self.go(5);
    }

    fn go(&mut self, state: u32) {
        self.state = state;
        self.client.write(&format!("{}/state", self.dir), &state.to_string()).expect("dom0 may");
    }

    fn put(&self, key: &str, value: u64) {
        self.client.write(&format!("{}/{key}", self.dir), &value.to_string()).expect("dom0 may");
    }

    fn follow(&mut self) {
        if !self.client.exists(&format!("{}/state", self.dir)) {
            self.state = 1;
            return self.disconnect();
        }
        match self.client.number(&format!("{}/state", self.front_dir)) {
            Some(1) if matches!(self.state, 1 | 6) => self.offer(),
            Some(3 | 4) if matches!(self.state, 1 | 2) => self.connect(),
            Some(5) if self.state < 5 => self.go(5),
            Some(6) | None if self.state > 1 && self.state != 6 => {
                self.disconnect();
                self.go(6);
            }
            _ => {}
        }
    }

    fn offer(&mut self) {
        self.put("max-ring-page-order", self.options.order.into());
        self.put("multi-queue-max-queues", 4);
        self.put("feature-persistent", self.options.persistent.into());
        if self.options.indirect > 0 {
            self.put("feature-max-indirect-segments", self.options.indirect.into());
        }
        self.go(2);
    }

    fn connect(&mut self) {
        let front = |key: &str| self.client.number(&format!("{}/{key}", self.front_dir));
        let protocol = self.client.read(&format!("{}/protocol", self.front_dir)).unwrap_or_default();
        let layout = Layout::named(&protocol).unwrap_or_else(|| panic!("the frontend says protocol {protocol:?}"));
        let need = |key: &str| front(key).unwrap_or_else(|| panic!("the frontend at 3 has no {key}")) as u32;
        let grants: Vec<GrantRef> = match front("ring-page-order") {
            None => vec![GrantRef(need("ring-ref"))],
            Some(order) => {
                assert!(order <= self.options.order.into(), "ring order {order} was not offered");
                (0..1 << order).map(|i| GrantRef(need(&format!("ring-ref{i}")))).collect()
            }
        };
        let (mut mappings, mut pages) = (Vec::new(), Vec::new());
        for grant in grants {
            let what = Foreign { domain: self.peer, grant, access: Access::ReadWrite };
            let (mapping, page) = self.world.map(DOM0, what).expect("the frontend's ring cannot be mapped");
            mappings.push(mapping);
            pages.push(page);
        }
        let port = self.world.bind(DOM0, self.peer, Port(need("event-channel")));
        let persistent = self.options.persistent && front("feature-persistent") == Some(1);
        self.link = Some(Connected {
            ring: BackRing::new(pages, layout),
            mappings,
            port: port.expect("the frontend's port cannot be bound"),
            deaf: false,
            lost: false,
            jobs: Vec::new(),
            answered: 0,
            persistent,
            kept: BTreeMap::new(),
        });
        self.publish();
        self.go(4);
    }

    fn publish(&self) {
        self.put("feature-flush-cache", self.options.flush.into());
        self.put("feature-barrier", 0);
        self.put("feature-discard", self.options.discard.into());
        if self.options.discard {
            self.put("discard-granularity", self.options.granularity_bytes);
            self.put("discard-alignment", 0);
            self.put("discard-secure", 0);
        }
        self.put("sectors", self.disk.borrow().sectors());
        self.put("sector-size", 512);
        self.put("physical-sector-size", self.options.physical_bytes);
        self.put("info", if self.options.read_only { 4 } else { 0 });
    }

    fn disconnect(&mut self) {
        let Some(link) = self.link.take() else { return };
        // What was taken and not answered is lost, as on a device that fails.
        for (mapping, _) in link.kept.into_values() {
            self.unmap(mapping);
        }
        for mapping in link.mappings {
            self.unmap(mapping);
        }
        if !link.deaf {
            self.world.close(DOM0, link.port);
        }
    }

    fn unmap(&self, mapping: u64) {
        self.world.unmap(DOM0, mapping);
    }

    /// Takes what is on the ring, if it was told to look.
    fn take(&mut self) -> bool {
        let Some(link) = &mut self.link else { return false };
        if link.deaf || link.lost || !self.world.take_event(DOM0, link.port) {
            return false;
        }
        loop {
            while let Some(request) = link.ring.take() {
                let request = request.expect("the frontend wrote a request with impossible counts");
                let mut latency = Duration::from_nanos(self.random.between(0, self.options.latency.as_nanos() as u64));
                if self.world.faults().strikes(Fault::DiskSlow).is_some() {
                    latency += Duration::from_millis(self.random.between(100, 5000));
                }
                let due = self.world.now() + latency;
                link.jobs.push(Job { request, due, covers: link.answered });
            }
            if link.ring.is_full() {
                marks::hit("lower ring full");
            }
            if !link.ring.arm() {
                return true;
            }
        }
    }

    /// Serves some of what is due, in no order, and answers once.
    fn serve(&mut self) -> bool {
        let Some(mut link) = self.link.take() else { return false };
        let now = self.world.now();
        let ready =
            |link: &Connected| -> Vec<usize> { (0..link.jobs.len()).filter(|i| link.jobs[*i].due <= now).collect() };
        let mut busy = false;
        while let some @ [_, ..] = &ready(&link)[..]
            && !(self.options.stuck || link.lost)
        {
            let job = link.jobs.swap_remove(some[self.random.index(some.len())]);
            let status = self.perform(&mut link, &job);
            let response = Response { id: job.request.id, op: job.request.op, status };
            match self.options.lie.filter(|lie| lie.is_an_answer()) {
                Some(lie) => self.lie_on_ring(lie, &mut link, response),
                None => link.ring.put(response),
            }
            self.served += 1;
            busy = true;
            if link.lost || self.random.one_in(3) {
                break;
            }
        }
        // Only now is anything of it an answer.
        if busy {
            link.answered = self.disk.borrow().recorded();
        }
        if busy && !link.lost && link.ring.publish() && !link.deaf {
            self.world.notify(DOM0, link.port);
        }
        self.link = Some(link);
        busy
    }

    /// Tells its lie with an answer, if this is the occasion.
    fn lie_on_ring(&mut self, lie: Lie, link: &mut Connected, honest: Response) {
        let another = link.jobs.first().map(|job| job.request.id);
        let lied = match (lie, another) {
            (Lie::WrongId, Some(id)) => Response { id, ..honest },
            (Lie::UnknownId, _) => {
                Response { id: self.random.pick(&[u64::MAX, 255, 1 << 32, honest.id + 256]), ..honest }
            }
            (Lie::WrongOp, _) => Response { op: self.random.pick(&[1 - (honest.op & 1), 6, 255]), ..honest },
            (Lie::OddStatus, _) => Response { status: self.random.pick(&[1, -3, i16::MIN, i16::MAX]), ..honest },
            // A slot for the second of two answers is one that another request has given up.
            (Lie::Twice, Some(_)) => {
                link.ring.put(honest);
                link.jobs.swap_remove(0);
                honest
            }
            // What is taken back before it was taken is no lie.
            (Lie::Backward, _) if link.ring.is_heard() => honest,
            (Lie::TooMany | Lie::LateWrite, _) => honest,
            (_, _) => return link.ring.put(honest),
        };
        link.ring.put(lied);
        match lie {
            Lie::TooMany | Lie::Backward => {
                let by = self.random.pick(&[1, 7, 32, 1 << 20, i32::MAX]);
                link.ring.misstate(if lie == Lie::TooMany { by } else { -by });
                link.lost = true;
                self.world.notify(DOM0, link.port);
            }
            Lie::LateWrite => {
                // The pages that it has kept are the product's for ever; it scribbles on what is under way or free.
                let Some(at) = link.kept.keys().nth(self.random.index(link.kept.len().max(1))) else { return };
                let (_, page) = &link.kept[at];
                page.write(0, &[0xbd; xen::page::PAGE_BYTES]);
            }
            _ => {}
        }
        self.told(lie);
    }

    fn told(&mut self, lie: Lie) {
        marks::hit(lie.mark());
        self.options.lie = None;
    }

    /// Tells its lie in its directory, if it is one of those.
    fn lie_aside(&mut self) -> bool {
        let Some(lie) = self.options.lie.filter(|lie| !lie.is_an_answer()) else { return false };
        let Some(link) = &mut self.link else { return false };
        let put = |key: &str, value: &str| self.client.write(&format!("{}/{key}", self.dir), value);
        let done = match lie {
            Lie::ClosePort => {
                link.deaf |= self.world.close(DOM0, link.port);
                Ok(())
            }
            Lie::NoDirectory => self.client.remove(&self.dir),
            Lie::Sectors(text) => put("sectors", text).and_then(|()| put("state", "4")),
            Lie::SectorSize(text) => put("sector-size", text).and_then(|()| put("state", "4")),
            Lie::Features(text) => {
                let keys = ["feature-flush-cache", "feature-discard", "discard-granularity", "info"];
                let all = keys.iter().try_for_each(|key| put(key, text));
                all.and_then(|()| put("state", "4"))
            }
            Lie::State(state) => put("state", &state.to_string()),
            _ => unreachable!("these are told on the ring"),
        };
        let _gone = done.is_err();
        self.told(lie);
        true
    }

    fn perform(&mut self, link: &mut Connected, job: &Job) -> i16 {
        let request = &job.request;
        if self.options.failures > 0 {
            self.options.failures -= 1;
            return status::ERROR;
        }
        if let Some(verdict) = self.world.faults().strikes(Fault::Disk) {
            return verdict.code;
        }
        match (&request.body, request.op) {
            (Body::Discard { sectors }, op::DISCARD) => {
                if !self.options.discard {
                    return status::EOPNOTSUPP;
                }
                let mut disk = self.disk.borrow_mut();
                if self.options.read_only || !disk.holds(request.sector, *sectors) {
                    return status::ERROR;
                }
                // What a discarded range reads as is nobody's promise.
                if self.random.one_in(2) {
                    disk.write(request.sector, &vec![0xdd; *sectors as usize * SECTOR]);
                }
                status::OKAY
            }
            (Body::Segments(segments), op::FLUSH) => {
                assert!(segments.is_empty(), "a flush with data, which no Linux sends");
                if !self.options.flush {
                    return status::EOPNOTSUPP;
                }
                self.flushes += 1;
                self.disk.borrow_mut().flush_to(job.covers);
                status::OKAY
            }
            (Body::Segments(segments), op::READ | op::WRITE) => self.transfer(link, request, segments),
            (Body::Indirect { count, pages }, op::READ | op::WRITE) => {
                assert!(*count <= self.options.indirect, "{count} indirect segments were not offered");
                let segments = self.table(*count, pages);
                self.transfer(link, request, &segments)
            }
            _ => status::EOPNOTSUPP,
        }
    }

    fn table(&self, count: u16, pages: &[GrantRef]) -> Vec<Segment> {
        let mut segments = Vec::new();
        for grant in pages {
            let what = Foreign { domain: self.peer, grant: *grant, access: Access::ReadOnly };
            let (mapping, page) = self.world.map(DOM0, what).expect("an indirect page cannot be mapped");
            for i in 0..SEGMENTS_PER_PAGE.min(usize::from(count) - segments.len()) {
                let mut raw = [0; 8];
                page.read(8 * i, &mut raw);
                segments.push(Segment::decode(&raw));
            }
            self.unmap(mapping);
        }
        segments
    }

    /// Maps all the pages of a request, as blkback does, moves the data, and unmaps what does not stay mapped.
    fn transfer(&mut self, link: &mut Connected, request: &Request, segments: &[Segment]) -> i16 {
        let write = request.op == op::WRITE;
        let (mut pages, mut mapped) = (Vec::new(), Vec::new());
        for segment in segments {
            // A page that stays mapped is mapped for both ways, whatever it is wanted for first.
            let writable = !write || link.persistent;
            let access = if writable { Access::ReadWrite } else { Access::ReadOnly };
            let what = Foreign { domain: self.peer, grant: segment.grant, access };
            let page = match link.kept.get(&segment.grant) {
                Some(kept) => kept.1.clone(),
                None => match self.world.map(DOM0, what) {
                    Ok(new) => {
                        mapped.push((segment.grant, new.0, new.1.clone()));
                        new.1
                    }
                    Err(refused) => panic!("the frontend's page cannot be mapped: {refused:?}"),
                },
            };
            pages.push(page);
        }
        let status = self.move_data(request, segments, &pages);
        for (grant, mapping, page) in mapped {
            if link.persistent && !link.kept.contains_key(&grant) {
                link.kept.insert(grant, (mapping, page));
            } else {
                self.unmap(mapping);
            }
        }
        status
    }

    fn move_data(&mut self, request: &Request, segments: &[Segment], pages: &[PageRef]) -> i16 {
        let write = request.op == op::WRITE;
        let mut sector = request.sector;
        let torn = write && self.world.faults().strikes(Fault::DiskTorn).is_some();
        let mut whole = if torn { self.random.below(sectors(segments)) } else { u64::MAX };
        for (segment, page) in segments.iter().zip(pages) {
            assert!(segment.first <= segment.last && segment.last < 8, "an impossible segment {segment:?}");
            let (first, sectors) = (usize::from(segment.first), u64::from(segment.last - segment.first) + 1);
            if !self.disk.borrow().holds(sector, sectors) || write && self.options.read_only {
                return status::ERROR;
            }
            let mut bytes = vec![0; sectors as usize * SECTOR];
            if write {
                page.read(first * SECTOR, &mut bytes);
                bytes.truncate(sectors.min(whole) as usize * SECTOR);
                whole -= sectors.min(whole);
                self.disk.borrow_mut().write(sector, &bytes);
            } else {
                self.disk.borrow().read(sector, &mut bytes);
                page.write(first * SECTOR, &bytes);
            }
            sector += sectors;
        }
        if torn { status::ERROR } else { status::OKAY }
    }
}

fn sectors(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.last - segment.first) + 1).sum()
}

impl Actor for Blkback {
    fn turn(&mut self) -> bool {
        if !self.world.alive(self.peer) {
            self.disconnect();
            return false;
        }
        if self.client.event().is_some() {
            self.follow();
            return true;
        }
        self.lie_aside() || self.take() || self.serve()
    }

    fn timer(&self) -> Option<Instant> {
        let jobs = &self.link.as_ref().filter(|link| !(self.options.stuck || link.lost))?.jobs;
        jobs.iter().map(|job| job.due).min()
    }

    fn name(&self) -> String {
        format!("blkback {}", self.dir.trim_start_matches("/local/domain/0/backend/"))
    }
}
