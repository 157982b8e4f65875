//! The benchmark: a boot in which time is a count of instructions, a plugin that counts them on each processor, and a guest
//! that puts the same loads on the disks of several backends. See docs/bench.md.

pub mod counts;
pub mod profile;
pub mod symbols;
pub mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use self::counts::{Counts, Phase};
use self::symbols::Symbols;
use super::boot::Boot;
use super::machine::Ending;
use super::parts::{self, Parts};
use crate::report::{Line, Task};
use crate::workload::{Peer, Plan, Workload};

/// The plugin's source.
const COUNT: &str = include_str!("bench/count.c");

/// All loads on all backends take a third of this.
const LIMIT: Duration = Duration::from_secs(1800);

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

/// Builds the plugin beside the logs.
pub fn plugin(logs: &Path) -> Result<PathBuf> {
    let [source, library] = ["count.c", "count.so"].map(|name| logs.join(name));
    fs::create_dir_all(logs)?;
    fs::write(&source, COUNT).with_context(|| format!("writing {}", source.display()))?;
    let flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"];
    parts::run(Command::new("gcc").args(flags).arg("-o").arg(&library).arg(&source)).context("compiling the plugin")?;
    fs::canonicalize(&library).context("the plugin")
}

/// Boots, measures what the plan says, and says through `say` how it goes.
pub fn run(parts: &Parts, logs: &Path, domain: &Path, plan: &Plan, say: impl Fn(&str)) -> Result<Outcome> {
    let plugin = plugin(logs)?;
    let counts = logs.join("bench.counts");
    let boot = Boot {
        name: "bench",
        logs,
        parts,
        domain: Some(domain),
        task: Task::Bench(plan.clone()),
        guest_debug: false,
        counted: true,
        counts: Some((&plugin, &counts)),
        limit: LIMIT,
    };
    let mut failure = Some("dom0 reported no end".to_owned());
    let mut heard = Vec::new();
    let mut xen = String::new();
    let ending = boot.run(|line| match line.parse::<Line>() {
        Ok(Line::Step(text)) => say(&text),
        Ok(Line::End) => failure = None,
        Ok(Line::Fail(_, _, why)) => failure = Some(why),
        Ok(Line::Record(name, text)) if name == "measured" => heard.push(text),
        Ok(Line::Record(_, text)) => xen.extend([&text, "\n"]),
        _ => {}
    })?;
    if let Some(failure) = failure {
        bail!("{failure}; the boot ended with {ending:?}\n{}", boot.last_words());
    }
    ensure!(ending == Ending::PoweredOff, "the boot ended with {ending:?}\n{}", boot.last_words());
    let symbols = Symbols::new(&xen, domain)?;
    let phases = Counts::read(&counts)?.0;
    ensure!(phases.len() == heard.len(), "{} loads were run and {} were counted", heard.len(), phases.len());
    let measured = heard.iter().zip(phases).map(|(text, phase)| measured(text, phase)).collect::<Result<_>>()?;
    Ok(Outcome { measured, symbols })
}

fn measured(text: &str, phase: Phase) -> Result<Measured> {
    let [peer, index, ns] = text.split(' ').collect::<Vec<_>>()[..] else { bail!("not a measurement: {text:?}") };
    let workload = *Workload::all().get(index.parse::<usize>()?).context("a workload that there is")?;
    Ok(Measured { peer: peer.parse()?, workload, ns: ns.parse()?, phase })
}
