//! One boot from beginning to end: an image for its job, a machine for the image, and where both leave their traces.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::image::{self, Ours};
use super::machine::{Ending, Hardware, Machine, Shell, last_lines};
use super::parts::Parts;
use crate::report::Task;

/// The folder with the configurations that users are shown.
pub const EXAMPLES: &str = "docs/examples";

/// A boot to be made.
pub struct Boot<'a> {
    /// Its name, and that of its files.
    pub name: &'a str,
    /// The folder for its files.
    pub logs: &'a Path,
    /// Debian's parts.
    pub parts: &'a Parts,
    /// The domain under test, if there is one.
    pub domain: Option<&'a Path>,
    /// What dom0 shall do.
    pub task: Task,
    /// Whether Xen shows what guests write to its debug port.
    pub guest_debug: bool,
    /// Whether the machine's time is a count of its instructions.
    pub counted: bool,
    /// The plugin that counts instructions, and where it writes them.
    pub counts: Option<(&'a Path, &'a Path)>,
    /// What it runs on.
    pub hardware: Hardware,
    /// The end of all patience.
    pub limit: Duration,
}

impl Boot<'_> {
    /// Where the console of Xen and dom0 is kept.
    pub fn log(&self) -> PathBuf {
        self.logs.join(format!("{}.log", self.name))
    }

    /// Where the agent's lines are kept.
    pub fn report(&self) -> PathBuf {
        self.logs.join(format!("{}.report", self.name))
    }

    fn image(&self) -> PathBuf {
        self.logs.join(format!("{}.img", self.name))
    }

    /// Runs it, giving each line of the agent to `each`.
    pub fn run(&self, each: impl FnMut(&str)) -> Result<Ending> {
        self.build_image()?;
        let ending = self.machine(&self.image()).run(each);
        // It is large, and made anew each time.
        fs::remove_file(self.image()).context("removing the image")?;
        ending
    }

    /// Runs it for a person at the terminal.
    pub fn run_with_terminal(&self, each: impl FnMut(&str) -> Shell) -> Result<()> {
        self.build_image()?;
        let ended = self.machine(&self.image()).run_with_terminal(each);
        fs::remove_file(self.image()).context("removing the image")?;
        ended
    }

    /// The end of both logs, for the message about a boot that did not do as it should.
    pub fn last_words(&self) -> String {
        [self.log(), self.report()]
            .iter()
            .map(|path| format!("--- the last lines of {} ---\n{}\n", path.display(), last_lines(path, 25)))
            .collect()
    }

    fn build_image(&self) -> Result<()> {
        fs::create_dir_all(self.logs)?;
        let beside = std::env::current_exe()?;
        let [agent, tap_ctl, vhd] = ["agent", "tap-ctl", "vhd"].map(|name| beside.with_file_name(name));
        let ours =
            Ours { agent: &agent, tap_ctl: &tap_ctl, vhd: &vhd, domain: self.domain, examples: Path::new(EXAMPLES) };
        image::dom0(self.parts, &ours, &self.task, &self.image())
    }

    fn machine<'a>(&'a self, image: &'a Path) -> Machine<'a> {
        Machine {
            parts: self.parts,
            image,
            log: self.log(),
            report: self.report(),
            guest_debug: self.guest_debug,
            counted: self.counted,
            counts: self.counts,
            hardware: self.hardware,
            limit: self.limit,
        }
    }
}
