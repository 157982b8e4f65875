//! dom0's libxl 4.17: which nodes it writes, in which order, and how long it waits.
//!
//! A job is started, goes on as the scheduler lets it, and ends with a result. As libxl does, a job looks at a node's
//! current value when a watch tells it to, and a process of dom0 takes its time for that: a state that was left again
//! meanwhile was never seen.

use std::collections::BTreeMap;
use std::time::Duration;

use xen::port::{DomId, Instant};

use crate::random::Random;
use crate::run::Actor;
use crate::store::{Client, Errno, Store};
use crate::world::{DOM0, World};

/// `LIBXL_INIT_TIMEOUT` and `LIBXL_DESTROY_TIMEOUT`.
pub const WAIT: Duration = Duration::from_secs(10);

/// How long after its watch fired libxl looks, at most.
pub const LATENCY_MS_MAX: u64 = 200;

/// The kind of backend that a disk's `format=` and `backendtype=` lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `phy`.
    Vbd,
    /// `qdisk`: nobody waits for it on attach.
    Qdisk,
    /// `tap`, from 4.19 on.
    Vbd3,
}

impl Kind {
    fn directory(self) -> &'static str {
        match self {
            Kind::Vbd => "vbd",
            Kind::Qdisk => "qdisk",
            Kind::Vbd3 => "vbd3",
        }
    }
}

/// One disk of one guest.
#[derive(Clone, Debug)]
pub struct Vbd {
    /// Who serves it.
    pub backend: DomId,
    /// Who uses it.
    pub guest: DomId,
    /// The device number; xvda is 51712.
    pub devid: u32,
    /// The kind of backend.
    pub kind: Kind,
    /// The `target=` of the configuration, as it gets into `params`.
    pub params: String,
    /// `access=rw`.
    pub writable: bool,
    /// A PV guest: libxl itself writes `protocol`.
    pub pv: bool,
}

impl Vbd {
    /// A writable disk xvda of kind vbd.
    pub fn new(backend: DomId, guest: DomId, params: &str) -> Self {
        let (devid, kind) = (51712, Kind::Vbd);
        Vbd { backend, guest, devid, kind, params: params.into(), writable: true, pv: false }
    }

    /// The directory that the backend owns.
    pub fn backend_dir(&self) -> String {
        let Vbd { backend, guest, devid, kind, .. } = self;
        format!("/local/domain/{}/backend/{}/{}/{devid}", backend.0, kind.directory(), guest.0)
    }

    /// The directory that the guest owns.
    pub fn frontend_dir(&self) -> String {
        format!("/local/domain/{}/device/vbd/{}", self.guest.0, self.devid)
    }

    fn private_dir(&self) -> String {
        format!("/libxl/{}/device/vbd/{}", self.guest.0, self.devid)
    }

    fn backend_nodes(&self) -> Vec<(&'static str, String)> {
        let disk = (self.devid >> 4) & 15;
        let script = if self.kind == Kind::Vbd3 { "block-tap" } else { "block" };
        let kind = if self.kind == Kind::Vbd { "phy" } else { self.kind.directory() };
        let mut nodes = vec![
            ("frontend", self.frontend_dir()),
            ("params", self.params.clone()),
            ("script", format!("/etc/xen/scripts/{script}")),
            ("frontend-id", self.guest.0.to_string()),
            ("online", "1".into()),
            ("removable", "0".into()),
            ("bootable", "1".into()),
            ("state", "1".into()),
            ("dev", format!("xvd{}", (b'a' + disk as u8) as char)),
            ("type", kind.into()),
            ("mode", if self.writable { "w" } else { "r" }.into()),
            ("device-type", "disk".into()),
            // libxl's default: whether the disk may be written.
            ("discard-enable", u8::from(self.writable).to_string()),
            ("specification", "xen".into()),
        ];
        if self.kind == Kind::Qdisk {
            nodes.retain(|(key, _)| *key != "script");
        }
        nodes
    }

    fn frontend_nodes(&self) -> Vec<(&'static str, String)> {
        let mut nodes = vec![
            ("backend", self.backend_dir()),
            ("backend-id", self.backend.0.to_string()),
            ("state", "1".into()),
            ("virtual-device", self.devid.to_string()),
            ("device-type", "disk".into()),
            ("trusted", "1".into()),
        ];
        if self.pv {
            nodes.push(("protocol", "x86_64-abi".into()));
        }
        nodes
    }
}

/// Why a job failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The backend never showed this state.
    NoState(u32),
    /// The backend never removed its directory.
    NotGone,
    /// The directory vanished before the state was seen (`devstate_callback` takes that for an error).
    Vanished,
}

/// A job's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobId(u32);

enum Wait {
    State(u32, Instant),
    Gone(Instant),
    Over(Result<(), Failure>),
}

enum Work {
    Attach,
    Detach,
    Destroy(DomId),
}

struct Job {
    id: JobId,
    work: Work,
    disks: Vec<(Vbd, Wait)>,
}

/// libxl.
pub struct Toolstack {
    world: World,
    store: Store,
    client: Client,
    disks: Vec<Vbd>,
    jobs: Vec<Job>,
    results: BTreeMap<JobId, Result<(), Failure>>,
    next: u32,
    random: Random,
    look_at: Option<Instant>,
}

impl Toolstack {
    /// A dom0.
    pub fn new(world: &World, store: &Store, random: Random) -> Self {
        let client = store.client(DOM0);
        client.permit("/", &["r0"]).expect("dom0 may");
        // As xenstored and libxl set it up: /local is listed by nobody but dom0.
        for dir in ["/local/domain/0", "/libxl", "/tool"] {
            client.mkdir(dir).expect("dom0 may");
        }
        for dir in ["/local", "/local/domain", "/local/domain/0", "/libxl"] {
            client.permit(dir, &["n0"]).expect("dom0 may");
        }
        Toolstack {
            world: world.clone(),
            store: store.clone(),
            client,
            disks: Vec::new(),
            jobs: Vec::new(),
            results: BTreeMap::new(),
            next: 1,
            random,
            look_at: None,
        }
    }

    /// A domain with what libxl gives every one: its home, and in it the directories that it may write.
    pub fn create(&mut self, id: DomId) {
        self.world.create(id);
        let home = format!("/local/domain/{}", id.0);
        let made = self.client.together(|store| {
            store.mkdir(&home)?;
            store.permit(&home, &["n0", &format!("r{}", id.0)])?;
            for dir in ["cpu", "memory", "device", "backend", "control", "hvmloader"] {
                store.mkdir(&format!("{home}/{dir}"))?;
            }
            store.write(&format!("{home}/domid"), &id.0.to_string())?;
            store.write(&format!("{home}/name"), &format!("domain-{}", id.0))?;
            let own = format!("n{}", id.0);
            for dir in [
                "data",
                "drivers",
                "feature",
                "attr",
                "error",
                "control/shutdown",
                "control/feature-poweroff",
                "control/feature-reboot",
                "control/feature-suspend",
                "control/sysrq",
                "device/suspend/event-channel",
            ] {
                store.mkdir(&format!("{home}/{dir}"))?;
                store.permit(&format!("{home}/{dir}"), &[&own])?;
            }
            Ok(())
        });
        made.expect("dom0 may");
        self.store.introduce(id);
    }

    /// `xl shutdown`, `xl reboot`: writes the node and leaves.
    pub fn shutdown(&mut self, id: DomId, reason: &str) {
        let node = format!("/local/domain/{}/control/shutdown", id.0);
        self.client.write(&node, reason).expect("dom0 may");
    }

    /// `xl block-attach`, or a disk of `xl create`.
    pub fn attach(&mut self, disk: &Vbd) -> JobId {
        let written = self.client.together(|store| self.write(store, disk));
        written.expect("dom0 may");
        self.enlist(disk);
        let wait = match disk.kind {
            Kind::Qdisk => Wait::Over(Ok(())),
            Kind::Vbd | Kind::Vbd3 => Wait::State(2, self.world.now() + WAIT),
        };
        self.start(Work::Attach, vec![(disk.clone(), wait)])
    }

    /// Writes a disk's directories and waits for nothing: what a domain builder does before anybody runs.
    pub fn place(&mut self, disk: &Vbd) {
        let written = self.client.together(|store| self.write(store, disk));
        written.expect("dom0 may");
        self.enlist(disk);
    }

    /// A disk made anew after somebody else took its directory is still one disk.
    fn enlist(&mut self, disk: &Vbd) {
        self.disks.retain(|other| other.backend_dir() != disk.backend_dir());
        self.disks.push(disk.clone());
    }

    /// Takes the frontend's directory away, as somebody in dom0 may who has a driver forget its device.
    pub fn remove_frontend(&mut self, disk: &Vbd) {
        self.client.remove(&disk.frontend_dir()).expect("dom0 may");
    }

    /// Makes it again, beside the backend's, which stands.
    pub fn place_frontend(&mut self, disk: &Vbd) {
        self.client.together(|store| self.write_frontend(store, disk)).expect("dom0 may");
    }

    /// `xl block-detach`, without force.
    pub fn detach(&mut self, disk: &Vbd) -> JobId {
        let wait = self.ask_to_close(disk);
        self.start(Work::Detach, vec![(disk.clone(), wait)])
    }

    /// `xl destroy`: the guest is to be paused already.
    pub fn destroy(&mut self, guest: DomId) -> JobId {
        let disks: Vec<Vbd> = self.disks.iter().filter(|disk| disk.guest == guest).cloned().collect();
        let mut waits = Vec::new();
        for disk in disks {
            // First the frontend's directory: a backend that needs it to close finds nothing.
            self.clean(&disk.frontend_dir());
            let wait = self.ask_to_close(&disk);
            waits.push((disk, wait));
        }
        self.start(Work::Destroy(guest), waits)
    }

    /// What came of a job; `None` while it goes on.
    pub fn result(&self, job: JobId) -> Option<Result<(), Failure>> {
        self.results.get(&job).copied()
    }

    fn write(&self, store: &Client, disk: &Vbd) -> Result<(), Errno> {
        let (backend, guest) = (disk.backend.0, disk.guest.0);
        let (back_dir, front_dir, private_dir) = (disk.backend_dir(), disk.frontend_dir(), disk.private_dir());
        // The parents belong to dom0 and can be read by the backend, because its home can.
        self.write_frontend(store, disk)?;
        store.mkdir(&back_dir)?;
        store.permit(&back_dir, &[&format!("n{backend}"), &format!("r{guest}")])?;
        fill(store, &back_dir, &disk.backend_nodes())?;
        store.mkdir(&private_dir)?;
        store.write(&format!("{private_dir}/frontend"), &front_dir)?;
        store.write(&format!("{private_dir}/backend"), &back_dir)?;
        fill(store, &private_dir, &disk.backend_nodes())
    }

    fn write_frontend(&self, store: &Client, disk: &Vbd) -> Result<(), Errno> {
        let dir = disk.frontend_dir();
        store.mkdir(&dir)?;
        store.permit(&dir, &[&format!("n{}", disk.guest.0), &format!("r{}", disk.backend.0)])?;
        fill(store, &dir, &disk.frontend_nodes())
    }

    fn ask_to_close(&self, disk: &Vbd) -> Wait {
        let dir = disk.backend_dir();
        let state = format!("{dir}/state");
        let asked = self.client.together(|store| {
            let old = store.read(&state)?;
            store.write(&format!("{dir}/online"), "0")?;
            if old != "6" {
                store.write(&state, "5")?;
            }
            Ok(old)
        });
        match asked {
            Err(_) => Wait::Over(Ok(())),
            Ok(_) => Wait::State(6, self.world.now() + WAIT),
        }
    }

    fn start(&mut self, work: Work, disks: Vec<(Vbd, Wait)>) -> JobId {
        let id = JobId(self.next);
        self.next += 1;
        for (disk, _) in &disks {
            self.client.watch(&disk.backend_dir(), &id.0.to_string()).expect("dom0 may");
        }
        self.jobs.push(Job { id, work, disks });
        self.world.stir();
        id
    }

    fn advance(&self, disk: &Vbd, wait: &Wait) -> Option<Wait> {
        let now = self.world.now();
        let state = self.client.read(&format!("{}/state", disk.backend_dir()));
        match wait {
            Wait::State(..) if state.is_err() => Some(Wait::Over(Err(Failure::Vanished))),
            // A backend in dom0 leaves its directory to libxl, which runs the hotplug script and takes it away.
            Wait::State(6, _) if state.as_deref() == Ok("6") && disk.backend == DOM0 => Some(Wait::Over(Ok(()))),
            Wait::State(6, _) if state.as_deref() == Ok("6") => Some(Wait::Gone(now + WAIT)),
            Wait::State(wanted, _) if state.as_deref() == Ok(wanted.to_string().as_str()) => Some(Wait::Over(Ok(()))),
            Wait::State(wanted, until) if now >= *until => Some(Wait::Over(Err(Failure::NoState(*wanted)))),
            Wait::Gone(_) if state.is_err() => Some(Wait::Over(Ok(()))),
            Wait::Gone(until) if now >= *until => Some(Wait::Over(Err(Failure::NotGone))),
            _ => None,
        }
    }

    fn finish(&mut self, job: Job) {
        let mut result = Ok(());
        for (disk, wait) in &job.disks {
            let _gone = self.client.unwatch(&disk.backend_dir(), &job.id.0.to_string());
            if let Wait::Over(Err(failure)) = wait {
                result = Err(*failure);
            }
        }
        let gone = match job.work {
            Work::Attach => false,
            Work::Detach => result.is_ok(),
            Work::Destroy(_) => true,
        };
        if gone {
            for (disk, _) in &job.disks {
                for dir in [disk.frontend_dir(), disk.backend_dir(), disk.private_dir()] {
                    self.clean(&dir);
                }
                self.disks.retain(|other| other.backend_dir() != disk.backend_dir());
            }
        }
        if let Work::Destroy(guest) = job.work {
            self.world.destroy(guest);
            for dir in ["/local/domain", "/libxl"] {
                let _gone = self.client.remove(&format!("{dir}/{}", guest.0));
            }
            self.store.forget(guest);
        }
        self.results.insert(job.id, result);
        self.world.stir();
    }

    /// Removes a directory and those of its parents that are empty then (`libxl__xs_path_cleanup`).
    fn clean(&self, dir: &str) {
        let _gone = self.client.remove(dir);
        let mut at = dir;
        // The homes, and `backend` itself, stay.
        while let Some((up, _)) = at.rsplit_once('/')
            && up.matches('/').count() > 4
            && self.client.directory(up).is_ok_and(|names| names.is_empty())
        {
            let _gone = self.client.remove(up);
            at = up;
        }
    }
}

fn fill(store: &Client, dir: &str, nodes: &[(&str, String)]) -> Result<(), Errno> {
    nodes.iter().try_for_each(|(key, value)| store.write(&format!("{dir}/{key}"), value))
}

impl Actor for Toolstack {
    fn turn(&mut self) -> bool {
        if self.client.event().is_some() {
            let soon = Duration::from_millis(self.random.between(0, LATENCY_MS_MAX));
            self.look_at.get_or_insert(self.world.now() + soon);
            return true;
        }
        let late = self.timer().is_some_and(|until| until <= self.world.now());
        let over = |job: &Job| job.disks.iter().all(|(_, wait)| matches!(wait, Wait::Over(_)));
        if !late && !self.jobs.iter().any(over) {
            return false;
        }
        self.look_at = self.look_at.filter(|at| *at > self.world.now());
        let mut jobs = std::mem::take(&mut self.jobs);
        for (disk, wait) in jobs.iter_mut().flat_map(|job| &mut job.disks) {
            if let Some(next) = self.advance(disk, wait) {
                *wait = next;
            }
        }
        let (ended, going): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(over);
        self.jobs = going;
        ended.into_iter().for_each(|job| self.finish(job));
        true
    }

    fn timer(&self) -> Option<Instant> {
        let waits = self.jobs.iter().flat_map(|job| &job.disks).map(|(_, wait)| wait);
        let until = waits.filter_map(|wait| match wait {
            Wait::State(_, until) | Wait::Gone(until) => Some(*until),
            Wait::Over(_) => None,
        });
        until.chain(self.look_at).min()
    }

    fn name(&self) -> String {
        "toolstack".into()
    }
}
