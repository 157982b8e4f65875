//! Test boots: real Xen under QEMU, with tapdom or any other domain in it. See docs/testing.md.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use tools::boots::image::{self, Ours};
use tools::boots::machine::{Ending, Machine, last_lines};
use tools::boots::parts::Parts;
use tools::report::{Line, Task};

/// Boots Xen under QEMU to show and to test tapdom.
#[derive(Parser)]
struct Options {
    /// Where Debian's parts are kept.
    #[arg(long, default_value = "build/cache", global = true)]
    cache: PathBuf,
    /// Where the logs of the boots are kept.
    #[arg(long, default_value = "build/boots", global = true)]
    logs: PathBuf,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Fetches Debian's parts once.
    Fetch,
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
        Path::new("docs/examples").is_dir(),
        "run this in the project's folder: docs/examples, with the configurations that the boots use, is not here"
    );
    match &options.command {
        Verb::Fetch => Parts::fetch(&options.cache, |text| println!("{text}")).map(drop),
        Verb::Probe { elf, cmdline, memory, seconds, debug } => {
            let task = Task::Probe { cmdline: cmdline.clone(), memory_mib: *memory, seconds: *seconds };
            probe(options, elf, &task, *debug, Duration::from_secs(u64::from(*seconds) + 180))
        }
    }
}

fn probe(options: &Options, elf: &Path, task: &Task, debug: bool, limit: Duration) -> Result<()> {
    let parts = Parts::fetch(&options.cache, |text| println!("{text}"))?;
    let agent = std::env::current_exe()?.with_file_name("agent");
    let ours = Ours { agent: &agent, domain: Some(elf), examples: Path::new("docs/examples") };
    std::fs::create_dir_all(&options.logs)?;
    let image = options.logs.join("probe.img");
    image::dom0(&parts, &ours, task, &image)?;
    let machine = Machine {
        parts: &parts,
        image: &image,
        log: options.logs.join("probe.log"),
        report: options.logs.join("probe.report"),
        guest_debug: debug,
        limit,
    };
    let mut ended = false;
    let ending = machine.run(|line| match line.parse::<Line>() {
        Ok(Line::Step(text)) => println!("{text}"),
        Ok(Line::End) => ended = true,
        _ => println!("?? {line}"),
    })?;
    ensure!(
        ended && ending == Ending::PoweredOff,
        "the boot ended with {ending:?}; the last lines of {}:\n{}",
        machine.log.display(),
        last_lines(&machine.log, 30)
    );
    std::fs::remove_file(&image).context("removing the image")
}
