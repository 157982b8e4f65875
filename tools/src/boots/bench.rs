//! The benchmark: a boot in which time is a count of instructions, a plugin that counts them on each processor, and a guest
//! that puts the same loads on the disks of several backends. See docs/bench.md.

pub mod counts;
pub mod neighbours;
pub mod profile;
pub mod symbols;
pub mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use self::counts::{Counts, FOUR_OF_A_GUEST, Owners, Phase, THREE, TWO_GUESTS};
use self::neighbours::Pair;
use self::symbols::Symbols;
use super::boot::Boot;
use super::machine::{Ending, Hardware};
use super::parts::{self, Parts};
use crate::neighbours::Seen;
use crate::report::{Line, Task};
use crate::wall::{self, Turn};
use crate::workload::{Peer, Plan, Workload};

/// The plugin's source.
const COUNT: &str = include_str!("bench/count.c");

/// All loads on all backends take a third of this.
const LIMIT: Duration = Duration::from_secs(1800);

/// The machine's memory, in mebibytes.
const MEMORY: u32 = 3072;

/// One load on one backend's disk, as it was counted.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Whose disk.
    pub peer: Peer,
    /// Which load.
    pub workload: Workload,
    /// The guest's clock from its begin to its end.
    pub ns: u64,
    /// What the processors did meanwhile.
    pub phase: Phase,
}

/// What a boot brought.
pub struct Outcome {
    /// In the order in which it happened.
    pub measured: Vec<Measured>,
    /// Names of functions.
    pub symbols: Symbols,
}

/// What a counted boot is made of.
pub struct Ground<'a> {
    /// Debian's parts.
    pub parts: &'a Parts,
    /// The folder for its files.
    pub logs: &'a Path,
    /// The image that is measured.
    pub domain: &'a Path,
}

/// What a counted boot brought.
pub struct Counted {
    /// What dom0 recorded.
    pub records: Records,
    /// What was counted meanwhile.
    pub phases: Vec<Phase>,
}

/// What dom0 recorded: names and texts.
pub struct Records(Vec<(String, String)>);

impl Records {
    /// The texts of a name.
    pub fn of(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, text)| text.as_str())
    }
}

impl Ground<'_> {
    /// Boots a machine on which each processor has an owner, and says through `say` how it goes.
    pub fn counted(&self, name: &str, task: Task, owners: Owners, memory: u32, say: impl Fn(&str)) -> Result<Counted> {
        let plugin = self.plugin()?;
        let counts = self.logs.join(format!("{name}.counts"));
        let hardware = Hardware { processors: owners.len(), memory };
        let records = self.run(&self.boot(name, task, hardware, Some((&plugin, &counts))), say)?;
        Ok(Counted { records, phases: Counts::read(&counts, owners)?.0 })
    }

    fn boot<'a>(
        &'a self,
        name: &'a str,
        task: Task,
        hardware: Hardware,
        counts: Option<(&'a Path, &'a Path)>,
    ) -> Boot<'a> {
        let (logs, parts, domain, counted) = (self.logs, self.parts, Some(self.domain), counts.is_some());
        Boot { name, logs, parts, domain, task, guest_debug: false, counted, counts, hardware, limit: LIMIT }
    }

    /// What dom0 recorded in a boot, if it came to its end.
    fn run(&self, boot: &Boot<'_>, say: impl Fn(&str)) -> Result<Records> {
        if boot.task.has_qdisk() {
            self.parts.fetch_qdisk(&say)?;
        }
        let mut failure = Some("dom0 reported no end".to_owned());
        let mut records = Vec::new();
        let ending = boot.run(|line| match line.parse::<Line>() {
            Ok(Line::Step(text)) => say(&text),
            Ok(Line::End) => failure = None,
            Ok(Line::Fail(_, _, why)) => failure = Some(why),
            Ok(Line::Record(name, text)) => records.push((name, text)),
            _ => {}
        })?;
        if let Some(failure) = failure {
            bail!("{failure}; the boot ended with {ending:?}\n{}", boot.last_words());
        }
        ensure!(ending == Ending::PoweredOff, "the boot ended with {ending:?}\n{}", boot.last_words());
        Ok(Records(records))
    }

    /// Builds the plugin beside the logs.
    fn plugin(&self) -> Result<PathBuf> {
        let [source, library] = ["count.c", "count.so"].map(|name| self.logs.join(name));
        fs::create_dir_all(self.logs)?;
        fs::write(&source, COUNT).with_context(|| format!("writing {}", source.display()))?;
        let flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"];
        parts::run(Command::new("gcc").args(flags).arg("-o").arg(&library).arg(&source))
            .context("compiling the plugin")?;
        fs::canonicalize(&library).context("the plugin")
    }
}

/// Measures what the plan says.
pub fn run(ground: &Ground<'_>, plan: &Plan, say: impl Fn(&str)) -> Result<Outcome> {
    let owners = if plan.processors > 1 { FOUR_OF_A_GUEST } else { THREE };
    let counted = ground.counted("bench", Task::Bench(plan.clone()), owners, MEMORY, say)?;
    let xen: String = counted.records.of("symbol").flat_map(|text| [text, "\n"]).collect();
    let symbols = Symbols::new(&xen, ground.domain)?;
    let heard: Vec<&str> = counted.records.of("measured").collect();
    ensure!(counted.phases.len() == heard.len(), "{} loads, {} were counted", heard.len(), counted.phases.len());
    let measured = heard.iter().zip(&counted.phases);
    let measured = measured.map(|(text, phase)| measured_as(text, phase.clone())).collect::<Result<_>>()?;
    Ok(Outcome { measured, symbols })
}

/// Measures what a loud guest makes of a quiet one's requests.
pub fn neighbours(ground: &Ground<'_>, say: impl Fn(&str)) -> Result<String> {
    let counted = ground.counted("neighbours", Task::Neighbours, TWO_GUESTS, MEMORY, say)?;
    let seen: Vec<Seen> = counted.records.of("seen").map(str::parse).collect::<Result<_>>()?;
    ensure!(counted.phases.len() == seen.len(), "{} loads, {} were counted", seen.len(), counted.phases.len());
    let pairs: Vec<Pair> = seen.into_iter().zip(counted.phases).map(|(seen, phase)| Pair { seen, phase }).collect();
    neighbours::table(&pairs)
}

/// Measures by the clock on the wall, so many rounds.
pub fn wall(ground: &Ground<'_>, rounds: u32, say: impl Fn(&str)) -> Result<String> {
    let hardware = Hardware { processors: THREE.len(), memory: MEMORY };
    let records = ground.run(&ground.boot("wall", Task::Wall { rounds }, hardware, None), say)?;
    wall::table(&records.of("turn").map(str::parse).collect::<Result<Vec<Turn>>>()?)
}

fn measured_as(text: &str, phase: Phase) -> Result<Measured> {
    let [peer, index, ns] = text.split(' ').collect::<Vec<_>>()[..] else { bail!("not a measurement: {text:?}") };
    let workload = *Workload::all().get(index.parse::<usize>()?).context("a workload that there is")?;
    Ok(Measured { peer: peer.parse()?, workload, ns: ns.parse()?, phase })
}
