//! What crosses the border of the virtual machine: a job goes in (a file of the initramfs), lines come out (the second
//! serial port, which carries nothing else, so kernel messages cannot tear a line apart).

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use crate::workload::{Peer, Plan};

/// One line that dom0's agent writes for the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// Something worth telling a person who watches.
    Step(String),
    /// Kept in the report file, shown only when something failed.
    Detail(String),
    /// A line of the record of this name.
    Record(String, String),
    /// A scenario begins.
    Start(String),
    /// A scenario held, after so many milliseconds.
    Pass(String, u64),
    /// A scenario did not hold, after so many milliseconds, and why.
    Fail(String, u64, String),
    /// From here on the port carries a shell and no more lines.
    Shell,
    /// Everything asked for was done; dom0 powers off now.
    End,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Step(text) => write!(f, "step {}", flat(text)),
            Line::Detail(text) => write!(f, "detail {}", flat(text)),
            Line::Record(name, text) => write!(f, "record {name} {text}"),
            Line::Start(name) => write!(f, "start {name}"),
            Line::Pass(name, ms) => write!(f, "pass {name} {ms}"),
            Line::Fail(name, ms, why) => write!(f, "fail {name} {ms} {}", flat(why)),
            Line::Shell => write!(f, "shell"),
            Line::End => write!(f, "end"),
        }
    }
}

/// A report is one line; a text of several lines stays readable with its breaks spelled.
fn flat(text: &str) -> String {
    text.trim_end().replace('\r', "").replace('\n', " | ")
}

impl FromStr for Line {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Line> {
        let line = line.trim_end_matches(['\r', '\n']);
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        Ok(match kind {
            "step" => Line::Step(rest.to_owned()),
            "detail" => Line::Detail(rest.to_owned()),
            "record" => {
                let (name, text) = rest.split_once(' ').context("a record without a name")?;
                Line::Record(name.to_owned(), text.to_owned())
            }
            "start" => Line::Start(rest.to_owned()),
            "pass" => {
                let (name, ms) = rest.split_once(' ').context("a verdict without its time")?;
                Line::Pass(name.to_owned(), ms.parse()?)
            }
            "fail" => {
                let mut parts = rest.splitn(3, ' ');
                let (name, ms) = (parts.next(), parts.next());
                let (name, ms) = name.zip(ms).context("a verdict without its time")?;
                Line::Fail(name.to_owned(), ms.parse()?, parts.next().unwrap_or("").to_owned())
            }
            "shell" => Line::Shell,
            "end" => Line::End,
            _ => bail!("not a report line: {line:?}"),
        })
    }
}

/// Who serves the disks under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// The image that this project builds.
    Tapdom,
    /// dom0's own blkback: shows that a scenario is fair before tapdom has to pass it.
    Dom0,
}

impl Backend {
    /// The word used on command lines and in job files.
    pub fn word(self) -> &'static str {
        match self {
            Backend::Tapdom => "tapdom",
            Backend::Dom0 => "dom0",
        }
    }
}

/// What dom0's agent shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Create one PVH domain from an ELF file and show what it says for so many seconds.
    Probe {
        /// The domain's command line.
        cmdline: String,
        /// The domain's memory.
        memory_mib: u32,
        /// How long it is left to run.
        seconds: u32,
    },
    /// Judge these scenarios, in this order.
    Test {
        /// Whose disks are judged.
        backend: Backend,
        /// The names of the scenarios.
        scenarios: Vec<String>,
    },
    /// Run the loads of the benchmark.
    Bench(Plan),
    /// Measure how long things take to be ready, and in what memory.
    Footprint {
        /// Disks that are attached at once.
        many: u32,
    },
    /// Measure what a guest makes of another's requests.
    Neighbours,
    /// Put the same loads on disks of several backends, round after round.
    Wall {
        /// How many.
        rounds: u32,
    },
    /// Tell the whole story to a newcomer; afterwards a shell if asked.
    Story {
        /// Whether it ends in a shell.
        shell: bool,
    },
}

impl Task {
    /// Whether dom0 needs QEMU.
    pub fn has_qdisk(&self) -> bool {
        match self {
            Task::Bench(plan) => plan.peers.contains(&Peer::Qdisk),
            Task::Wall { .. } => true,
            _ => false,
        }
    }
}

/// The name under which the boot itself fails, when nothing else can be blamed.
pub const BOOT: &str = "boot";

/// Where the initramfs keeps the job.
pub const JOB_PATH: &str = "/job";

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Task::Probe { cmdline, memory_mib, seconds } => write!(f, "probe {memory_mib} {seconds} {cmdline}"),
            Task::Test { backend, scenarios } => write!(f, "test {} {}", backend.word(), scenarios.join(" ")),
            Task::Bench(plan) => write!(f, "bench {plan}"),
            Task::Footprint { many } => write!(f, "footprint {many}"),
            Task::Neighbours => write!(f, "neighbours"),
            Task::Wall { rounds } => write!(f, "wall {rounds}"),
            Task::Story { shell } => write!(f, "story {shell}"),
        }
    }
}

impl FromStr for Task {
    type Err = anyhow::Error;

    fn from_str(job: &str) -> Result<Task> {
        let job = job.trim_end();
        let (kind, rest) = job.split_once(' ').unwrap_or((job, ""));
        match kind {
            "probe" => {
                let mut parts = rest.splitn(3, ' ');
                let memory_mib = parts.next().context("a probe without memory")?.parse()?;
                let seconds = parts.next().context("a probe without seconds")?.parse()?;
                Ok(Task::Probe { cmdline: parts.next().unwrap_or("").to_owned(), memory_mib, seconds })
            }
            "test" => {
                let mut words = rest.split_whitespace();
                let backend = match words.next() {
                    Some("tapdom") => Backend::Tapdom,
                    Some("dom0") => Backend::Dom0,
                    other => bail!("no backend is called {other:?}"),
                };
                Ok(Task::Test { backend, scenarios: words.map(str::to_owned).collect() })
            }
            "bench" => Ok(Task::Bench(rest.parse()?)),
            "footprint" => Ok(Task::Footprint { many: rest.parse()? }),
            "neighbours" => Ok(Task::Neighbours),
            "wall" => Ok(Task::Wall { rounds: rest.parse()? }),
            "story" => Ok(Task::Story { shell: rest.parse()? }),
            _ => bail!("no job is called {kind:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_the_serial_port() {
        for line in [
            Line::Step("Xen is up".into()),
            Line::Detail(String::new()),
            Line::Record("ram".into(), "  backend/state = 4".into()),
            Line::Record("ram".into(), String::new()),
            Line::Start("ready".into()),
            Line::Pass("ready".into(), 1234),
            Line::Fail("ready".into(), 9, "it said nothing".into()),
            Line::Shell,
            Line::End,
        ] {
            assert_eq!(format!("{line}\r\n").parse::<Line>().unwrap(), line);
        }
    }

    #[test]
    fn a_text_of_several_lines_stays_one_line() {
        let said = Line::Fail("ready".into(), 1, "first\nsecond\n".into()).to_string();
        assert_eq!(said, "fail ready 1 first | second");
    }

    #[test]
    fn noise_is_not_a_report() {
        for noise in ["", "[    0.1] kernel", "pass ready", "pass ready soon", "fail ready"] {
            assert!(noise.parse::<Line>().is_err(), "{noise:?}");
        }
    }

    #[test]
    fn jobs_survive_the_file() {
        for task in [
            Task::Probe { cmdline: "log=debug a=b".into(), memory_mib: 32, seconds: 10 },
            Task::Probe { cmdline: String::new(), memory_mib: 32, seconds: 10 },
            Task::Test { backend: Backend::Dom0, scenarios: vec!["a".into(), "b".into()] },
            Task::Bench(Plan { peers: vec![Peer::Qdisk], workloads: vec![0, 3], processors: 1, names: false }),
            Task::Footprint { many: 250 },
            Task::Neighbours,
            Task::Wall { rounds: 7 },
            Task::Story { shell: true },
        ] {
            assert_eq!(task.to_string().parse::<Task>().unwrap(), task);
        }
    }
}
