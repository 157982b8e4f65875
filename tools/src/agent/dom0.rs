//! dom0's work: bring up what xl needs, do the job, say how it went.

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::mount::MountFlags;

use super::process::run;
use super::reporter::Reporter;
use super::system::{mount_at, wait_until};
use super::{evidence, footprint, measure, neighbours, probe, scenarios, store, story, wall};
use crate::report::{BOOT, JOB_PATH, Line, Task};

/// Xen's programs of dom0.
const XEN_PROGRAMS: &str = "/usr/lib/xen-4.17/bin";

/// Xen's daemons start in a second or two; under emulation on a busy machine in ten.
const START: Duration = Duration::from_secs(30);

/// Does the job of this boot.
pub fn main() -> Result<()> {
    let reporter = Reporter::open()?;
    let done = fs::read_to_string(JOB_PATH).context("the job").and_then(|job| {
        let task: Task = job.parse()?;
        start_daemons()?;
        reporter.step("dom0 is up: Xen's store and console daemons answer");
        work(&reporter, &task)
    });
    match done {
        Ok(()) => reporter.say(&Line::End),
        Err(error) => {
            evidence::keep(&reporter);
            reporter.say(&Line::Fail(BOOT.to_owned(), 0, format!("{error:#}")));
        }
    }
    Ok(())
}

fn work(reporter: &Reporter, task: &Task) -> Result<()> {
    match task {
        Task::Probe { cmdline, memory_mib, seconds } => probe::probe(reporter, cmdline, *memory_mib, *seconds),
        Task::Test { backend, scenarios } => scenarios::judge(reporter, *backend, scenarios),
        Task::Bench(plan) => measure::measure(reporter, plan),
        Task::Footprint { many } => footprint::measure(reporter, *many),
        Task::Neighbours => neighbours::measure(reporter),
        Task::Wall { rounds } => wall::measure(reporter, *rounds),
        Task::Story { shell } => story::tell(reporter, *shell),
    }
}

fn start_daemons() -> Result<()> {
    mount_at("xenfs", "xenfs", "/proc/xen", MountFlags::empty(), c"")?;
    for folder in
        ["/run/xen", "/run/xenstored", "/run/lock", "/var/lib/xen", "/var/log/xen/console", "/var/lib/xenstored"]
    {
        fs::create_dir_all(folder)?;
    }
    std::os::unix::fs::symlink("/run", "/var/run").context("linking /var/run")?;
    std::os::unix::fs::symlink("/run/lock", "/var/lock").context("linking /var/lock")?;
    // By default a domain may have 1,000 nodes and 128 watches: enough for forty disks, not for hundreds.
    let quotas = ["--entry-nb", "20000", "--watch-nb", "4000"];
    daemon("xenstored", &[&["--no-fork", "--pid-file", "/run/xen/xenstored.pid"], &quotas[..]].concat())?;
    wait_until("xenstored answers", START, || UnixStream::connect("/run/xenstored/socket").is_ok())?;
    run(&[&format!("{XEN_PROGRAMS}/xen-init-dom0")], START)?;
    daemon("xenconsoled", &["--interactive", "--log=all", "--log-dir=/var/log/xen/console"])?;
    store::wait_for("/local/domain/0/name", "dom0 has its name", START, |name| name.is_some()).map(drop)
}

fn daemon(name: &str, arguments: &[&str]) -> Result<()> {
    let log = fs::File::create(format!("/var/log/xen/{name}.log"))?;
    Command::new(format!("{XEN_PROGRAMS}/{name}"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {name}"))
        .map(drop)
}
