//! Test boots: real Xen under QEMU, with tapdom or any other domain in it. See docs/testing.md.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use tools::agent::scenarios::ALL;
use tools::boots::bench::{self, Ground, Outcome, profile, table};
use tools::boots::boot::{Boot, EXAMPLES};
use tools::boots::footprint;
use tools::boots::judge::Judge;
use tools::boots::machine::{Ending, Hardware, Shell};
use tools::boots::parts::Parts;
use tools::report::{Backend, Line, Task};
use tools::workload::{Peer, Plan, Workload};

/// Boots Xen under QEMU to show and to test tapdom.
#[derive(Parser)]
struct Options {
    /// Where Debian's parts are kept.
    #[arg(long, default_value = "build/cache", global = true)]
    cache: PathBuf,
    /// Where the logs of the boots are kept.
    #[arg(long, default_value = "build/logs", global = true)]
    logs: PathBuf,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Fetches Debian's parts once.
    Fetch,
    /// Shows tapdom at work, told step by step.
    Run {
        /// Ends in a shell in dom0, with tapdom and a guest running.
        #[arg(long)]
        shell: bool,
        /// The image to show.
        #[arg(long, default_value = "build/tapdom.elf")]
        image: PathBuf,
    },
    /// Judges tapdom by what dom0 and real Linux guests see of it.
    Test {
        /// Only these scenarios, by name; all of them if none is named.
        scenarios: Vec<String>,
        /// Whose disks are judged. dom0's own blkback shows that a scenario is fair.
        #[arg(long, value_enum, default_value = "tapdom")]
        backend: Backend,
        /// The image under test.
        #[arg(long, default_value = "build/tapdom.elf")]
        image: PathBuf,
        /// Writes the records anew instead of comparing with them: what real Xen shows is right.
        #[arg(long)]
        record: bool,
        /// The machine's time is a count of its instructions, the same whatever else the host does. Slow.
        #[arg(long)]
        counted: bool,
        /// Only names the scenarios and what each shows.
        #[arg(long)]
        list: bool,
    },
    /// Measures the data path beside dom0's backends, in counted instructions.
    Bench {
        #[command(flatten)]
        wanted: Wanted,
        /// The image that is measured.
        #[arg(long, default_value = "build/tapdom.elf")]
        image: PathBuf,
    },
    /// Measures how long tapdom and its disks take to be of use, and in what memory.
    Footprint {
        /// Disks that are attached at once.
        #[arg(long, default_value_t = 10)]
        many: u32,
        /// The image that is measured.
        #[arg(long, default_value = "build/tapdom.elf")]
        image: PathBuf,
    },
    /// Measures what a guest that asks for all it can get makes of a quiet one's requests.
    Neighbours {
        /// The image that is measured.
        #[arg(long, default_value = "build/tapdom.elf")]
        image: PathBuf,
    },
    /// Compares backends by the clock on the wall, with a thread of the host for each processor.
    Wall {
        /// Rounds in which each backend has its turn.
        #[arg(long, default_value_t = 5)]
        rounds: u32,
        /// The image that is measured.
        #[arg(long, default_value = "build/tapdom.elf")]
        image: PathBuf,
    },
    /// Starts one ELF file as a PVH domain and prints what it and Xen say.
    Probe {
        elf: PathBuf,
        /// The domain's command line.
        #[arg(long, default_value = "")]
        cmdline: String,
        /// The domain's memory in MiB.
        #[arg(long, default_value_t = 32)]
        memory: u32,
        /// How long the domain is left to run.
        #[arg(long, default_value_t = 10)]
        seconds: u32,
        /// Shows what the domain writes to port 0xE9, in `xl dmesg`. Slow.
        #[arg(long)]
        debug: bool,
    },
}

/// What of the benchmark is wanted.
#[derive(Args)]
struct Wanted {
    /// Only these backends.
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// Only loads whose names have one of these in them.
    #[arg(long)]
    loads: Vec<String>,
    /// Processors of the guest, one or four: each has its part of a load.
    #[arg(long, default_value_t = 1, value_parser = processors)]
    processors: usize,
    /// The hottest functions of each load instead of the table.
    #[arg(long)]
    profile: bool,
    /// Boots so often, and tells how far the last two are apart.
    #[arg(long, default_value_t = 1)]
    runs: u32,
}

fn processors(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "4" => Ok(4),
        _ => Err("one or four".to_owned()),
    }
}

fn main() -> ExitCode {
    match work(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("boots: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn work(options: &Options) -> Result<()> {
    ensure!(
        Path::new(EXAMPLES).is_dir(),
        "run this in the project's folder: {EXAMPLES}, with the configurations that the boots use, is not here"
    );
    match &options.command {
        Verb::Fetch => fetch(options).map(drop),
        Verb::Run { shell, image } => run(options, *shell, image),
        Verb::Test { list: true, .. } => {
            ALL.iter().for_each(|scenario| println!("{:14} {}", scenario.name, scenario.shows));
            Ok(())
        }
        Verb::Test { scenarios, backend, image, record, counted, .. } => {
            test(options, scenarios, *backend, image, *record, *counted)
        }
        Verb::Bench { wanted, image } => bench(options, wanted, image),
        Verb::Footprint { many, image } => measured(options, image, |ground, say| {
            footprint::run(ground, *many, say).and_then(|figures| tools::footprint::table(&figures))
        }),
        Verb::Neighbours { image } => measured(options, image, |ground, say| bench::neighbours(ground, say)),
        Verb::Wall { rounds, image } => measured(options, image, |ground, say| bench::wall(ground, *rounds, say)),
        Verb::Probe { elf, cmdline, memory, seconds, debug } => {
            need_image(elf)?;
            let task = Task::Probe { cmdline: cmdline.clone(), memory_mib: *memory, seconds: *seconds };
            probe(options, elf, task, *debug, Duration::from_secs(u64::from(*seconds)) + BOOT)
        }
    }
}

/// The boot itself and what dom0 does before and after the work: 15 to 25 s were measured, three times that is a fault.
const BOOT: Duration = Duration::from_secs(120);

/// The story took 70 s; a fault shows in the limits inside long before this.
const STORY: Duration = Duration::from_secs(600);

/// How long a person may play before the machine ends by itself.
const AFTERNOON: Duration = Duration::from_secs(6 * 3600);

/// All scenarios together take a third of this on two cores without KVM.
const SUITE: Duration = Duration::from_secs(1200);

fn fetch(options: &Options) -> Result<Parts> {
    Parts::fetch(&options.cache, |text| println!("{text}"))
}

fn need_image(image: &Path) -> Result<()> {
    ensure!(image.is_file(), "{} is not there: build it first (`make build`)", image.display());
    Ok(())
}

/// A boot of which nothing is counted.
fn ordinary<'a>(
    options: &'a Options,
    parts: &'a Parts,
    name: &'a str,
    image: &'a Path,
    task: Task,
    limit: Duration,
) -> Boot<'a> {
    let (logs, domain, hardware) = (&options.logs, Some(image), Hardware::ORDINARY);
    Boot { name, logs, parts, domain, task, guest_debug: false, counted: false, counts: None, hardware, limit }
}

fn probe(options: &Options, elf: &Path, task: Task, guest_debug: bool, limit: Duration) -> Result<()> {
    let parts = fetch(options)?;
    let boot = Boot { guest_debug, ..ordinary(options, &parts, "probe", elf, task, limit) };
    let mut failure = Some("dom0 reported no end".to_owned());
    let ending = boot.run(|line| match line.parse::<Line>() {
        Ok(Line::Step(text)) => println!("{text}"),
        Ok(Line::End) => failure = None,
        Ok(Line::Fail(_, _, why)) => failure = Some(why),
        _ => println!("{line}"),
    })?;
    match failure {
        None if ending == Ending::PoweredOff => Ok(()),
        failure => bail!("{}; the boot ended with {ending:?}\n{}", failure.unwrap_or_default(), boot.last_words()),
    }
}

/// Prints a table.
fn measured(
    options: &Options,
    image: &Path,
    measure: impl FnOnce(&Ground<'_>, &dyn Fn(&str)) -> Result<String>,
) -> Result<()> {
    need_image(image)?;
    let ground = Ground { parts: &fetch(options)?, logs: &options.logs, domain: image };
    print!("\n{}", measure(&ground, &|text| eprintln!("{text}"))?);
    Ok(())
}

fn bench(options: &Options, wanted: &Wanted, image: &Path) -> Result<()> {
    need_image(image)?;
    let Wanted { peers, loads, processors, profile: profiled, runs } = wanted;
    let all = Workload::all();
    let named = |name: &str| loads.is_empty() || loads.iter().any(|load| name.contains(load.as_str()));
    let workloads: Vec<usize> =
        (0..all.len()).filter(|at| all[*at].suits(*processors) && named(&all[*at].to_string())).collect();
    ensure!(!workloads.is_empty(), "no load has one of these in its name: {loads:?}");
    let peers = if peers.is_empty() { Peer::usual(*processors) } else { peers.clone() };
    let plan = Plan { peers, workloads, processors: *processors, names: *profiled };
    let parts = fetch(options)?;
    let ground = Ground { parts: &parts, logs: &options.logs, domain: image };
    let mut last: Option<Outcome> = None;
    for _ in 0..*runs.max(&1) {
        let outcome = bench::run(&ground, &plan, |text| eprintln!("{text}"))?;
        println!();
        if *profiled {
            print!("{}", profile::of(&outcome));
        } else {
            println!("{}\n{}", table::of(&outcome), table::goals(&outcome));
            if *processors > 1 {
                println!("{}", table::vcpus(&outcome));
            }
        }
        if let Some(before) = &last {
            println!("{}", table::difference(before, &outcome));
        }
        last = Some(outcome);
    }
    Ok(())
}

fn run(options: &Options, shell: bool, image: &Path) -> Result<()> {
    need_image(image)?;
    ensure!(!shell || std::io::stdin().is_terminal(), "a shell needs a terminal to talk to");
    println!(
        "Real Xen boots now under QEMU, with Debian's Linux as its dom0. Nothing is installed on this machine, and"
    );
    println!("without hardware virtualisation every step takes some seconds. Debian's parts are fetched once.");
    let parts = fetch(options)?;
    let (task, limit) = (Task::Story { shell }, if shell { AFTERNOON } else { STORY });
    let boot = ordinary(options, &parts, "run", image, task, limit);
    let mut failure = Some("dom0 reported no end".to_owned());
    let mut hear = |line: &str| {
        match line.parse::<Line>() {
            Ok(Line::Step(text)) => println!("{text}"),
            Ok(Line::Fail(_, _, why)) => failure = Some(why),
            Ok(Line::Shell) => {
                failure = None;
                return Shell::Opens;
            }
            Ok(Line::End) => failure = None,
            _ => {}
        }
        Shell::NotYet
    };
    let ending = if shell {
        boot.run_with_terminal(&mut hear).map(|()| Ending::PoweredOff)?
    } else {
        boot.run(|line| {
            hear(line);
        })?
    };
    match failure {
        None if ending == Ending::PoweredOff => Ok(()),
        failure => bail!("{}; the boot ended with {ending:?}\n{}", failure.unwrap_or_default(), boot.last_words()),
    }
}

fn test(
    options: &Options,
    wanted: &[String],
    backend: Backend,
    image: &Path,
    record: bool,
    counted: bool,
) -> Result<()> {
    let domain = match backend {
        Backend::Tapdom => {
            need_image(image)?;
            Some(image)
        }
        Backend::Dom0 => None,
    };
    let names = choose(wanted, backend)?;
    let parts = fetch(options)?;
    let task = Task::Test { backend, scenarios: names.clone() };
    let name = format!("test-{}", backend.word());
    let (name, logs, guest_debug) = (name.as_str(), options.logs.as_path(), false);
    let boot = Boot {
        name,
        logs,
        parts: &parts,
        domain,
        task,
        guest_debug,
        counted,
        counts: None,
        hardware: Hardware::ORDINARY,
        limit: SUITE,
    };
    let mut judge = if record { Judge::recording(&names) } else { Judge::new(&names) };
    let started = Instant::now();
    let ending = boot.run(|line| {
        let Ok(line) = line.parse::<Line>() else { return };
        match &line {
            Line::Start(name) => println!("...   {name}"),
            Line::Step(text) => println!("      {text}"),
            Line::Fail(name, _, why) => println!("      {name} failed: {why}"),
            _ => {}
        }
        judge.hear(&line);
    })?;
    if record {
        for (name, text) in judge.records() {
            let path = Path::new(records::FOLDER).join(format!("{name}.txt"));
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            println!("recorded {}", path.display());
        }
    }
    let summary = judge.close(&ending);
    if summary.failed() > 0 {
        println!("{}", boot.last_words());
        println!("everything that was said is in {} and {}", boot.report().display(), boot.log().display());
    }
    println!("one boot, {} s, backend {}", started.elapsed().as_secs(), backend.word());
    print!("{summary}");
    ensure!(summary.failed() == 0, "some scenarios did not hold");
    Ok(())
}

/// The scenarios to be judged, in their own order. One that was asked for by name and does not exist, or cannot be asked
/// of this backend, is an error and not a skip.
fn choose(wanted: &[String], backend: Backend) -> Result<Vec<String>> {
    for name in wanted {
        match ALL.iter().find(|known| known.name == name) {
            None => bail!("no scenario is called {name}; `boots test --list` names them"),
            Some(known) if backend == Backend::Dom0 && !known.fits_dom0 => {
                bail!("{name} asks for what only tapdom has");
            }
            Some(_) => {}
        }
    }
    Ok(ALL
        .iter()
        .filter(|known| backend == Backend::Tapdom || known.fits_dom0)
        .filter(|known| wanted.is_empty() || wanted.iter().any(|name| name == known.name))
        .map(|known| known.name.to_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_chosen_by_name_in_their_own_order() {
        let wanted = ["pv-fio".to_owned(), "dom0-frontend".to_owned()];
        assert_eq!(choose(&wanted, Backend::Tapdom).unwrap(), ["dom0-frontend", "pv-fio"]);
        assert_eq!(choose(&[], Backend::Tapdom).unwrap().len(), ALL.len());
        assert!(choose(&[], Backend::Dom0).unwrap().len() < ALL.len());
    }

    #[test]
    fn what_cannot_be_judged_is_an_error() {
        assert!(choose(&["no-such".to_owned()], Backend::Tapdom).is_err());
        assert!(choose(&["ready".to_owned()], Backend::Dom0).is_err());
    }
}
