//! The world of a boot: lower disks, the backend under test, dom0 as a frontend, Linux guests. A scenario finds what it
//! needs here, and the world proves after each one that nothing was left behind.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::backend::{Server, Source, devid};
use super::domain::{self, XL};
use super::exercise::{Exercise, Gymnast};
use super::guest::{COMMAND, READY, RESULT, TOOLS_DISK};
use super::lower::{Lower, TOOLS_LOOP};
use super::process::{ask, run};
use super::reporter::Reporter;
use super::{evidence, lower, store, tap_ctl};
use crate::report::Backend;

/// From `xl create` to the agent's word: 12 s for a PV guest and 30 s for a PVH guest were measured on two cores that
/// had nothing else to do.
const GUEST_UP: Duration = Duration::from_secs(120);

/// A guest has nothing to do at its end but to write back its root.
const GUEST_DOWN: Duration = Duration::from_secs(120);

/// The longest exercise, fio, ends by itself before this.
const EXERCISE: Duration = Duration::from_secs(240);

/// Who uses a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// dom0's own blkfront.
    Dom0,
    /// A Linux guest, by name.
    Guest(&'static str),
}

impl Side {
    fn domain(self) -> &'static str {
        match self {
            Side::Dom0 => "0",
            Side::Guest(name) => name,
        }
    }
}

/// A Linux guest that is up.
struct Guest {
    id: u32,
    commands: u32,
}

/// Everything in this boot.
pub struct World<'a> {
    /// The way to the host.
    pub reporter: &'a Reporter,
    /// What the backend's disks lie on.
    pub lower: Vec<Lower>,
    /// The backend under test.
    pub server: Server,
    gymnast: Gymnast,
    guests: BTreeMap<&'static str, Guest>,
    attached: Vec<(Side, String)>,
    server_gone: bool,
}

/// The lower disks in mebibytes: one for everything, one with partitions, one that grows, one more.
const DISKS: [u64; 4] = [192, 128, 64, 64];

impl<'a> World<'a> {
    /// Sets the stage: disks, then the backend.
    pub fn new(reporter: &'a Reporter, kind: Backend) -> Result<World<'a>> {
        lower::mount_tools()?;
        lower::mount_place()?;
        let disks = DISKS.iter().enumerate().map(|(at, &size)| Lower::new(at, size)).collect::<Result<Vec<_>>>()?;
        disks[1].partition(32)?;
        let server = Server::start(kind, &disks)?;
        Ok(World {
            reporter,
            lower: disks,
            server,
            gymnast: Gymnast::default(),
            guests: BTreeMap::new(),
            attached: Vec::new(),
            server_gone: false,
        })
    }

    /// Sees to it that a guest of this name and type is up, with these disks from the start if it is made now.
    pub fn guest(&mut self, name: &'static str, kind: &str, disks: &[(&str, Source)]) -> Result<Side> {
        let side = Side::Guest(name);
        if self.guests.contains_key(name) {
            for (vdev, source) in disks {
                self.attach(side, vdev, "rw", *source)?;
            }
            return Ok(side);
        }
        self.create(name, kind, disks, &[])?;
        Ok(side)
    }

    /// A PV guest that has its root on this disk.
    pub fn rooted_guest(&mut self, name: &'static str, source: Source) -> Result<Side> {
        self.create(name, "pv", &[("xvda", source)], &["root=\"/dev/xvda\""])?;
        Ok(Side::Guest(name))
    }

    /// A PV guest of so many vCPUs.
    pub fn wide_guest(&mut self, name: &'static str, vcpus: u32) -> Result<Side> {
        self.create(name, "pv", &[], &[&format!("vcpus={vcpus}")])?;
        Ok(Side::Guest(name))
    }

    fn create(&mut self, name: &'static str, kind: &str, disks: &[(&str, Source)], more: &[&str]) -> Result<()> {
        let tools = format!("format=raw,vdev={TOOLS_DISK},access=r,backendtype=phy,target={TOOLS_LOOP}");
        let specs: Vec<String> = std::iter::once(tools)
            .chain(disks.iter().map(|(vdev, source)| self.server.disk(vdev, "rw", *source)))
            .map(|spec| format!("\"{spec}\""))
            .collect();
        let started = Instant::now();
        let mut settings =
            vec![format!("name=\"{name}\""), format!("type=\"{kind}\""), format!("disk=[{}]", specs.join(","))];
        settings.extend(more.iter().map(|word| (*word).to_owned()));
        domain::create("guest.cfg", &settings)?;
        let id = domain::id(name)?;
        self.guests.insert(name, Guest { id, commands: 0 });
        self.await_guest(id, name)?;
        self.reporter.detail(&format!("guest {name} ({kind}) is up after {} ms", started.elapsed().as_millis()));
        for (vdev, _) in disks {
            let side = Side::Guest(name);
            self.attached.push((side, (*vdev).to_owned()));
            self.ask(side, &Exercise::Appear { disk: format!("/dev/{vdev}") })?;
        }
        Ok(())
    }

    fn await_guest(&self, id: u32, name: &str) -> Result<()> {
        store::wait_for(&format!("/local/domain/{id}/{READY}"), &format!("guest {name} is up"), GUEST_UP, |value| {
            value == Some("ready")
        })
        .map(drop)
    }

    /// The number of a side's domain.
    pub fn id(&self, side: Side) -> Result<u32> {
        match side {
            Side::Dom0 => Ok(0),
            Side::Guest(name) => Ok(self.guests.get(name).with_context(|| format!("no guest {name} is up"))?.id),
        }
    }

    /// After a reboot a guest is another domain with the same name and disks.
    pub fn await_reboot(&mut self, name: &'static str) -> Result<()> {
        let old = self.guests.get(name).context("a guest that is up")?.id;
        let deadline = Instant::now() + GUEST_UP;
        let id = loop {
            match domain::id(name) {
                Ok(id) if id != old => break id,
                _ if Instant::now() > deadline => bail!("{name} did not come back after its reboot"),
                _ => std::thread::sleep(Duration::from_millis(250)),
            }
        };
        self.guests.insert(name, Guest { id, commands: 0 });
        self.await_guest(id, name)
    }

    /// Has a side do one exercise.
    pub fn ask(&mut self, side: Side, exercise: &Exercise) -> Result<String> {
        let started = Instant::now();
        let answer = match side {
            Side::Dom0 => self.gymnast.perform(exercise),
            Side::Guest(name) => self.ask_guest(name, exercise),
        }
        .with_context(|| format!("{}: {exercise}", side.domain()))?;
        let took = started.elapsed().as_millis();
        self.reporter.detail(&format!("{}: {exercise}: {answer} ({took} ms)", side.domain()));
        Ok(answer)
    }

    fn ask_guest(&mut self, name: &'static str, exercise: &Exercise) -> Result<String> {
        let guest = self.guests.get_mut(name).with_context(|| format!("no guest {name} is up"))?;
        guest.commands += 1;
        let (id, number) = (guest.id, guest.commands);
        store::write(&format!("/local/domain/{id}/{COMMAND}"), &format!("{number} {exercise}"))?;
        let prefix = format!("{number} ");
        let answer =
            store::wait_for(&format!("/local/domain/{id}/{RESULT}"), "the guest answers", EXERCISE, |value| {
                value.is_some_and(|value| value.starts_with(&prefix))
            })?
            .context("an answer")?;
        let answer = &answer[prefix.len()..];
        match answer.split_once(' ') {
            Some(("ok", text)) => Ok(text.to_owned()),
            _ => bail!("{answer}"),
        }
    }

    /// Has dom0 do one exercise on a lower disk, past the backend.
    pub fn look_below(&mut self, disk: usize, exercise: impl FnOnce(String) -> Exercise) -> Result<String> {
        let (lower, gymnast, reporter) = (&self.lower[disk], &mut self.gymnast, self.reporter);
        lower.look(|device| {
            let exercise = exercise(device.to_owned());
            let answer = gymnast.perform(&exercise).with_context(|| format!("dom0 on the lower disk: {exercise}"))?;
            reporter.detail(&format!("dom0 on the lower disk: {exercise}: {answer}"));
            Ok(answer)
        })
    }

    /// The same on the disk that a VHD is, as another reader read it last.
    pub fn look_at_converted(&mut self, exercise: impl FnOnce(String) -> Exercise) -> Result<String> {
        let (gymnast, reporter) = (&mut self.gymnast, self.reporter);
        lower::look_at_converted(|device| {
            let exercise = exercise(device.to_owned());
            let answer = gymnast.perform(&exercise).with_context(|| format!("dom0 on what was read: {exercise}"))?;
            reporter.detail(&format!("dom0 on what was read: {exercise}: {answer}"));
            Ok(answer)
        })
    }

    /// The same on the VHD on a lower disk, read anew.
    pub fn look_into_vhd(&mut self, disk: usize, exercise: impl FnOnce(String) -> Exercise) -> Result<String> {
        self.lower[disk].convert_vhd()?;
        self.look_at_converted(exercise)
    }

    /// Attaches a disk to a running side and waits until it is there. xl is content only if the backend reached InitWait
    /// within the 10 s that libxl grants.
    pub fn attach(&mut self, side: Side, vdev: &str, access: &str, source: Source) -> Result<()> {
        let spec = self.server.disk(vdev, access, source);
        let said = ask(&["xl", "block-attach", side.domain(), &spec], XL)?;
        self.attached.push((side, vdev.to_owned()));
        ensure!(said.ok(), "xl block-attach {} {spec} ended with {:?}: {}", side.domain(), said.code, said.words());
        self.reporter.detail(&format!("attached {spec} to {} in {} ms", side.domain(), said.took.as_millis()));
        self.ask(side, &Exercise::Appear { disk: format!("/dev/{vdev}") }).map(drop)
    }

    /// Detaches a disk from a running side.
    pub fn detach(&mut self, side: Side, vdev: &str) -> Result<()> {
        let said = ask(&["xl", "block-detach", side.domain(), vdev], XL)?;
        ensure!(said.ok(), "xl block-detach {} {vdev} ended with {:?}: {}", side.domain(), said.code, said.words());
        self.attached.retain(|(known, name)| (*known, name.as_str()) != (side, vdev));
        self.reporter.detail(&format!("detached {vdev} from {} in {} ms", side.domain(), said.took.as_millis()));
        self.ask(side, &Exercise::Vanish { disk: format!("/dev/{vdev}") }).map(drop)
    }

    /// Destroys a guest with all its disks, and tells how long that took.
    pub fn destroy(&mut self, name: &'static str) -> Result<Duration> {
        let said = domain::destroy(name)?;
        self.forget(name);
        ensure!(said.ok(), "xl destroy {name} ended with {:?}: {}", said.code, said.words());
        Ok(said.took)
    }

    /// Asks a guest to shut down, and waits until it is gone with all its disks.
    pub fn shut_down(&mut self, name: &'static str) -> Result<()> {
        domain::shutdown(name, GUEST_DOWN)?;
        self.forget(name);
        Ok(())
    }

    /// Destroys a guest if there is one of this name.
    pub fn destroy_if_up(&mut self, name: &'static str) -> Result<()> {
        if self.guests.contains_key(name) {
            self.destroy(name)?;
        }
        Ok(())
    }

    /// The backend was ended on purpose; nobody shall ask for it any more.
    pub fn server_is_gone(&mut self) {
        self.server_gone = true;
    }

    fn forget(&mut self, name: &'static str) {
        self.guests.remove(name);
        self.attached.retain(|(side, _)| *side != Side::Guest(name));
    }

    /// Demands that a scenario left nothing: no disk, no directory, no zombie, no count.
    pub fn demand_nothing_left(&self) -> Result<()> {
        ensure!(self.attached.is_empty(), "the scenario left disks attached: {:?}", self.attached);
        let mut expected: Vec<String> = self.guests.keys().map(|&name| name.to_owned()).collect();
        expected.push("Domain-0".to_owned());
        if self.server.kind == Backend::Tapdom && !self.server_gone {
            expected.push(self.server.name.clone());
        }
        expected.sort();
        expected.dedup();
        let names = domain::names()?;
        ensure!(names == expected, "domains are {names:?}, not {expected:?}: {}", run(&["xl", "list"], XL)?);
        let tools = devid(TOOLS_DISK).to_string();
        for (id, who) in
            self.guests.values().map(|guest| guest.id).chain([0]).map(|id| (id, format!("/local/domain/{id}")))
        {
            for node in [format!("{who}/device/vbd"), format!("/libxl/{id}/device/vbd")] {
                let left: Vec<String> = store::list(&node)?.into_iter().filter(|devid| *devid != tools).collect();
                ensure!(left.is_empty(), "left in xenstore below {node}: {left:?}");
            }
        }
        if self.server_gone { Ok(()) } else { self.server.demand_nothing_left(&tools) }
    }

    /// After a failure: keeps what everybody said and, if there is a next scenario, makes the world anew, so that it is
    /// judged for itself.
    pub fn rebuild(&mut self, go_on: bool) -> Result<()> {
        evidence::keep(self.reporter);
        if !go_on {
            return Ok(());
        }
        self.gymnast = Gymnast::default();
        tap_ctl::forget_markers()?;
        for (side, vdev) in std::mem::take(&mut self.attached) {
            if side == Side::Dom0 {
                ask(&["xl", "block-detach", "0", &vdev, "-f"], XL)?;
            }
        }
        // What a detach could not clear would be blamed on the next scenario.
        for home in ["/local/domain/0/device/vbd", "/libxl/0/device/vbd"] {
            for devid in store::list(home)? {
                store::remove(&format!("{home}/{devid}"))?;
            }
        }
        let guests: Vec<&'static str> = self.guests.keys().copied().collect();
        for name in guests {
            domain::destroy(name)?;
            self.forget(name);
        }
        if self.server.kind == Backend::Tapdom {
            domain::destroy(&self.server.name)?;
            self.server = Server::start(Backend::Tapdom, &self.lower)?;
        }
        Ok(())
    }
}
