//! Tests that are built and run in the copy of the tree.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::mutants::tree::Tree;

/// Bytes of addresses that a mutant may use: one that never stops taking memory would take the machine's.
const MEMORY: &str = "--as=8589934592";
/// A mutant is built for one short run: what optimising costs is not paid back.
const CHEAP: [(&str, &str); 2] = [("CARGO_PROFILE_DEV_OPT_LEVEL", "0"), ("CARGO_PROFILE_DEV_DEBUG", "0")];
/// But where suites of the simulator run one after the other: ten seconds then save minutes.
const FAST: [(&str, &str); 2] = [("CARGO_PROFILE_DEV_OPT_LEVEL", "1"), ("CARGO_PROFILE_DEV_DEBUG", "0")];

/// Tests of the workspace: a package, a target (`lib` or a name in `tests`), and one function of it or all.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Suite {
    /// The package.
    pub package: String,
    /// The target.
    pub target: String,
    /// The function.
    pub function: Option<String>,
}

/// What came of a suite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It noticed nothing.
    Passed,
    /// This test failed, if it could say so before its program ended.
    Failed(String),
    /// It waits for what the mutant lost, and has noticed it.
    Hung,
    /// It does not build, and cargo says why.
    Unbuilt(String),
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.package, self.target)?;
        self.function.iter().try_for_each(|function| write!(f, " {function}"))
    }
}

impl Suite {
    /// All tests of a target.
    pub fn whole(package: &str, target: &str) -> Self {
        Suite { package: package.into(), target: target.into(), function: None }
    }

    /// Builds the tests and runs them, for so long.
    pub fn play(&self, tree: &Tree, patience: Duration) -> Result<Verdict> {
        match self.build(tree)? {
            Ok(program) => self.run(tree, &program, patience),
            Err(why) => Ok(Verdict::Unbuilt(why)),
        }
    }

    /// Builds the tests; their program, or what cargo says.
    pub fn build(&self, tree: &Tree) -> Result<Result<PathBuf, String>> {
        let mut cargo = Command::new("cargo");
        cargo.args(["test", "--locked", "--no-run", "-p", &self.package]).current_dir(&tree.top);
        match self.target.as_str() {
            "lib" => cargo.arg("--lib"),
            name => cargo.args(["--test", name]),
        };
        let profile = if self.package == "sim" && self.function.is_none() { FAST } else { CHEAP };
        let cargo = cargo.env("CARGO_TARGET_DIR", &tree.target).env("RUSTFLAGS", "").envs(profile);
        let built = cargo.stdin(Stdio::null()).output()?;
        let told = String::from_utf8_lossy(&built.stderr);
        if !built.status.success() {
            return Ok(Err(told.into()));
        }
        let program = told
            .lines()
            .find_map(|line| line.trim().strip_prefix("Executable ")?.rsplit_once('(')?.1.strip_suffix(')'));
        let program = program.with_context(|| format!("cargo names no program:\n{told}"))?;
        Ok(Ok(tree.top.join(program)))
    }

    /// Runs them.
    pub fn run(&self, tree: &Tree, program: &Path, patience: Duration) -> Result<Verdict> {
        let directory = tree.top.join(match self.package.as_str() {
            "xen-sys" => "xen/sys".into(),
            tool @ ("vhd" | "tap-ctl" | "nbd") => format!("tools/{tool}"),
            package => package.into(),
        });
        let log = std::path::absolute("build/mutants/last.log")?;
        let out = fs::File::create(&log)?;
        let mut program = bounded(program);
        if let Some(function) = &self.function {
            program.args(["--exact", function]);
        }
        program.env("CARGO_MANIFEST_DIR", &directory).current_dir(&directory);
        let child = program.stdin(Stdio::null()).stderr(out.try_clone()?).stdout(out).spawn()?;
        let (status, said) = watch(child, log, patience)?;
        if let Some(failed) = failed(&said) {
            return Ok(Verdict::Failed(failed.into()));
        }
        let Some(status) = status else { return Ok(Verdict::Hung) };
        if !status.success() {
            return Ok(Verdict::Failed(format!("its program ended with {status}")));
        }
        // A name that no test has would pass as well.
        let wanted = self.function.as_ref().map_or("test result: ok. ", |_| "test result: ok. 1 passed");
        ensure!(said.contains(wanted), "{self}: no such test");
        Ok(Verdict::Passed)
    }
}

/// Waits for the end, or for the first test that fails: the others would change nothing. What it said, and how it ended,
/// unless it had to be.
fn watch(mut child: Child, log: PathBuf, patience: Duration) -> Result<(Option<ExitStatus>, String)> {
    let began = Instant::now();
    loop {
        let status = child.try_wait()?;
        let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        if status.is_some() {
            return Ok((status, said));
        }
        if failed(&said).is_some() || began.elapsed() > patience {
            child.kill()?;
            child.wait()?;
            return Ok((None, said));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The first test that failed, by what the program printed.
fn failed(said: &str) -> Option<&str> {
    said.lines().find_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
}

/// A program whose memory has an end; util-linux has what bounds it.
fn bounded(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("prlimit");
    command.args([OsStr::new(MEMORY), program.as_ref()]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_failed_is_named() {
        let said =
            "running 2 tests\ntest a::b ... ok\nsomething else ... FAILED\ntest a::c ... FAILED\ntest d ... FAILED\n";
        assert_eq!(failed(said), Some("a::c"));
        assert_eq!(failed("test a ... ok\n"), None);
    }
}
