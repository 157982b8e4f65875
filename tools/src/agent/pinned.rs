//! A guest of the benchmark: its processors are pinned to processors of the machine that nobody else has, so what those
//! execute is the guest's.

use std::time::Duration;

use anyhow::{Context, Result};

use super::domain;
use super::exercise::Exercise;
use super::guest::{COMMAND, READY, RESULT, TOOLS_DISK};
use super::lower::TOOLS_LOOP;
use super::process::run;
use super::store;

/// A guest takes some seconds of virtual time to start, a load less than one. By the clock on the wall, on a host that has
/// other work, a load took minutes.
const LIMIT: Duration = Duration::from_secs(600);

/// How it is made.
pub struct Shape<'a> {
    /// Its name.
    pub name: &'a str,
    /// The machine's processors, one for each of its own.
    pub processors: &'a [usize],
    /// Its memory, if not the example's.
    pub mebibytes: Option<u32>,
    /// Disks that it has from the start.
    pub disks: &'a [String],
}

/// A guest that is up.
pub struct Pinned {
    /// Its domain's number.
    pub id: u32,
    name: String,
    commands: u32,
}

impl Pinned {
    /// Starts it.
    pub fn create(shape: &Shape<'_>) -> Result<Pinned> {
        let tools = format!("format=raw,vdev={TOOLS_DISK},access=r,backendtype=phy,target={TOOLS_LOOP}");
        let disks: Vec<String> = [&tools].into_iter().chain(shape.disks).map(|disk| format!("\"{disk}\"")).collect();
        let processors: Vec<String> = shape.processors.iter().map(|at| format!("\"{at}\"")).collect();
        let mut settings = vec![
            format!("name=\"{}\"", shape.name),
            format!("disk=[{}]", disks.join(",")),
            format!("vcpus={}", processors.len()),
            format!("cpus=[{}]", processors.join(",")),
            // Else each of the guest's looks at its clock is an exit to Xen.
            "tsc_mode=\"native\"".to_owned(),
        ];
        settings.extend(shape.mebibytes.map(|memory| format!("memory={memory}")));
        domain::create("guest.cfg", &settings)?;
        let id = domain::id(shape.name)?;
        let ready = format!("/local/domain/{id}/{READY}");
        store::wait_for(&ready, "the guest is up", LIMIT, |value| value == Some("ready"))?;
        Ok(Pinned { id, name: shape.name.to_owned(), commands: 0 })
    }

    /// As xl knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Attaches a disk and waits until it is there.
    pub fn attach(&mut self, spec: &str, disk: &str) -> Result<()> {
        run(&["xl", "block-attach", &self.name, spec], domain::XL)?;
        self.ask(&Exercise::Appear { disk: device(disk) }).map(drop)
    }

    /// Detaches a disk and waits until it is gone.
    pub fn detach(&mut self, disk: &str) -> Result<()> {
        run(&["xl", "block-detach", &self.name, disk], domain::XL)?;
        self.ask(&Exercise::Vanish { disk: device(disk) }).map(drop)
    }

    /// Has it do something, and waits for its answer.
    pub fn ask(&mut self, exercise: &Exercise) -> Result<String> {
        self.begin(exercise)?;
        self.end()
    }

    /// Has it begin something.
    pub fn begin(&mut self, exercise: &Exercise) -> Result<()> {
        self.commands += 1;
        store::write(&format!("{}/{COMMAND}", self.home()), &format!("{} {exercise}", self.commands))
    }

    /// Whether it has answered what it began last.
    pub fn has_ended(&self) -> Result<bool> {
        let answer = store::look(&format!("{}/{RESULT}", self.home()))?;
        Ok(answer.is_some_and(|answer| answer.starts_with(&self.prefix())))
    }

    /// Its answer to what it began last.
    pub fn end(&mut self) -> Result<String> {
        let prefix = self.prefix();
        let result = format!("{}/{RESULT}", self.home());
        let what = format!("the answer of {} to its command {}", self.name, self.commands);
        let answer =
            store::wait_for(&result, &what, LIMIT, |value| value.is_some_and(|value| value.starts_with(&prefix)))?;
        let answer = answer.context("an answer")?;
        let said = answer.strip_prefix(&prefix).and_then(|answer| answer.strip_prefix("ok "));
        said.map(str::to_owned).with_context(|| format!("{what}: {answer}"))
    }

    /// Ends it.
    pub fn destroy(self) -> Result<()> {
        domain::destroy(&self.name).map(drop)
    }

    fn home(&self) -> String {
        format!("/local/domain/{}", self.id)
    }

    fn prefix(&self) -> String {
        format!("{} ", self.commands)
    }
}

/// The device of a disk.
pub fn device(disk: &str) -> String {
    format!("/dev/{disk}")
}

/// The devices of some, as the load program has them.
pub fn devices(disks: &[String]) -> String {
    disks.iter().map(|disk| device(disk)).collect::<Vec<_>>().join(",")
}
