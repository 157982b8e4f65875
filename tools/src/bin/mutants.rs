//! `make mutants`: bugs are put into copies of the tree, and the tests have to notice.
//!
//! `mutants known [NAME...]` puts in those of `tools/mutants`, one at a time, and demands that the test named beside each
//! fails. `mutants made [SHARD] [CRATE...]` lets cargo-mutants think of some, all or a part (`k/n`), and adds up. What came
//! of both is in `docs/mutants.md`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

/// The crates, and what judges a mutant of each: packages, and the fast ones among their tests.
const CRATES: [(&str, &[&str], &[&str]); 4] = [
    ("protocol", &["protocol"], &["tapdisk", "messages", "hostile"]),
    ("xen", &["xen", "sim"], &["over_a_fake", "vchan", "faults", "life"]),
    ("drivers", &["drivers", "sim"], &["io", "faults", "hostile", "fuzz_replay", "conformance", "store_errors"]),
    ("kernel", &["kernel", "sim"], &["io", "life", "faults", "minors", "control", "hostile", "regressions"]),
];
/// So many of every hundred have to be noticed.
const KILLED_MIN: usize = 95;
/// The tests take seconds. One that takes this long waits for what the mutant lost, and has noticed it.
const HANG: Duration = Duration::from_secs(180);

/// Bytes of addresses that a mutant may use, and who builds it: one that never stops taking memory would take the machine's.
const MEMORY: &str = "--as=8589934592";

/// A mutant is built for one short run: what optimising costs is not paid back.
const CHEAP: [(&str, &str); 2] = [("CARGO_PROFILE_DEV_OPT_LEVEL", "0"), ("CARGO_PROFILE_DEV_DEBUG", "0")];

/// One bug, and who notices it.
struct Mutant {
    name: String,
    file: String,
    test: Test,
    old: String,
    new: String,
}

/// A test of the workspace: package, target (`lib` or a name in `tests`), function.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Test {
    package: String,
    target: String,
    function: String,
}

/// What a test came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    Hung,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.split_first() {
        Some((word, names)) if word == "known" => known(names),
        Some((word, rest)) if word == "made" => made(rest),
        _ => Err(anyhow!("known [NAME...], or made [SHARD] [CRATE...]")),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mutants: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Lets cargo-mutants make mutants of the crates and adds up; false if too few were killed.
fn made(words: &[String]) -> Result<bool> {
    let (shards, crates): (Vec<_>, Vec<_>) = words.iter().partition(|word| word.contains('/'));
    let target = std::path::absolute("build/mutants/cargo-target")?;
    let mut figures = Vec::new();
    for (name, packages, tests) in
        CRATES.iter().filter(|(name, ..)| crates.is_empty() || crates.iter().any(|c| c == name))
    {
        let out = format!("build/mutants/{name}");
        fs::create_dir_all(&out).with_context(|| out.clone())?;
        let mut cargo = bounded("cargo");
        cargo.args([
            "mutants",
            "-p",
            name,
            "--test-package",
            &packages.join(","),
            "--no-shuffle",
            // A part has some of every file.
            "--sharding=round-robin",
            "--gitignore=true",
            "--output",
            &out,
        ]);
        // What is built is what is run; the rest of the packages' tests would take most of the time.
        let chosen =
            ["--locked".into(), "--lib".into()].into_iter().chain(tests.iter().map(|test| format!("--test={test}")));
        let chosen: Vec<String> = chosen.collect();
        cargo.args(chosen.iter().map(|word| format!("--cargo-arg={word}")));
        // cargo-mutants would try the crate's own package alone.
        honest(packages, &chosen)?;
        cargo.args(["--baseline=skip", &format!("--timeout={}", HANG.as_secs())]);
        cargo.args(shards.iter().flat_map(|shard| ["--shard", shard]));
        // What is missed is told below, with the others.
        let _status = cargo.env("CARGO_TARGET_DIR", &target).envs(CHEAP).status().context("cargo mutants")?;
        let count =
            |file: &str| fs::read_to_string(format!("{out}/mutants.out/{file}.txt")).map(|text| text.lines().count());
        figures.push((*name, count("caught")? + count("timeout")?, count("missed")?, count("unviable")?));
    }
    let mut all = (0, 0);
    for (name, killed, missed, unviable) in figures {
        println!("{name}: {killed} of {} killed, {unviable} do not compile", killed + missed);
        all = (all.0 + killed, all.1 + killed + missed);
    }
    println!("{} of {} killed", all.0, all.1);
    Ok(all.0 * 100 >= all.1 * KILLED_MIN)
}

/// A program whose memory has an end; util-linux has what bounds it.
fn bounded(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("prlimit");
    command.args([OsStr::new(MEMORY), program.as_ref()]);
    command
}

/// Demands that these tests pass in a copy of the tree without any mutant.
fn honest(packages: &[&str], chosen: &[String]) -> Result<()> {
    let (tree, target) = (PathBuf::from("build/mutants/tree"), std::path::absolute("build/mutants/target")?);
    copy(&tree)?;
    let mut cargo = Command::new("cargo");
    cargo.arg("test").args(packages.iter().map(|package| format!("--package={package}"))).args(chosen);
    let status = cargo.current_dir(&tree).env("CARGO_TARGET_DIR", &target).envs(CHEAP).stdin(Stdio::null()).status()?;
    ensure!(status.success(), "the tests of {packages:?} fail without any mutant");
    Ok(())
}

/// Runs the mutants of the tables whose names are in `wanted` (all without any) and tells each verdict; false if one
/// survived.
fn known(wanted: &[String]) -> Result<bool> {
    let mut mutants = tables(Path::new("."))?;
    for name in wanted {
        ensure!(mutants.iter().any(|mutant| mutant.name == *name), "no mutant is named {name}");
    }
    mutants.retain(|mutant| wanted.is_empty() || wanted.contains(&mutant.name));
    let (tree, target) = (PathBuf::from("build/mutants/tree"), std::path::absolute("build/mutants/target")?);
    copy(&tree)?;
    let mut honest = BTreeMap::new();
    for mutant in &mutants {
        honest.entry(mutant.test.clone()).or_insert(());
    }
    for test in honest.keys() {
        let verdict = test.play(&tree, &target)?;
        ensure!(verdict == Verdict::Passed, "{test} without any mutant: {verdict:?}");
    }
    let mut survivors = 0;
    for mutant in &mutants {
        let (path, began) = (tree.join(&mutant.file), Instant::now());
        let text = fs::read_to_string(&path)?;
        fs::write(&path, mutated(mutant, &text)?)?;
        let verdict = mutant.test.play(&tree, &target);
        fs::write(&path, text)?;
        let word = match verdict.with_context(|| mutant.name.clone())? {
            Verdict::Passed => "SURVIVED",
            Verdict::Failed => "killed",
            Verdict::Hung => "killed (hung)",
        };
        survivors += usize::from(word == "SURVIVED");
        println!("{word:9} {} by {} ({} s)", mutant.name, mutant.test, began.elapsed().as_secs());
    }
    println!("{} mutants, {} killed", mutants.len(), mutants.len() - survivors);
    Ok(survivors == 0)
}

/// The mutants of all tables of a tree. A table that the tree has left behind is wrong even if nobody runs it.
fn tables(top: &Path) -> Result<Vec<Mutant>> {
    let mut mutants = Vec::new();
    for (table, ..) in CRATES {
        let path = top.join(format!("tools/mutants/{table}.txt"));
        let name = path.display();
        let text = fs::read_to_string(&path).with_context(|| format!("{name}, from the top of the tree"))?;
        mutants.extend(parse(&text).with_context(|| name.to_string())?);
    }
    let mut stale = Vec::new();
    for mutant in &mutants {
        let text = fs::read_to_string(top.join(&mutant.file)).with_context(|| mutant.file.clone())?;
        stale.extend(mutated(mutant, &text).err().map(|error| error.to_string()));
    }
    ensure!(stale.is_empty(), "{}", stale.join("\n"));
    Ok(mutants)
}

/// The file with the bug in it. Its old text must be there once, in whole lines.
fn mutated(mutant: &Mutant, text: &str) -> Result<String> {
    let (old, new, text) = (format!("\n{}", mutant.old), format!("\n{}", mutant.new), format!("\n{text}"));
    // Two places may share a line's end.
    let places = text.match_indices('\n').filter(|(at, _)| text[*at..].starts_with(&old)).count();
    ensure!(places == 1, "{}: its old text is {places} times in {}", mutant.name, mutant.file);
    Ok(text.replacen(&old, &new, 1).split_off(1))
}

/// Brings the copy of the tree up to date; files that are the same keep their times, or all would be built again.
fn copy(tree: &Path) -> Result<()> {
    let listed = Command::new("git").args(["ls-files", "-z"]).output()?;
    ensure!(listed.status.success(), "git ls-files failed");
    for name in String::from_utf8(listed.stdout)?.split('\0').filter(|name| !name.is_empty()) {
        let (from, to) = (Path::new(name), tree.join(name));
        let Ok(bytes) = fs::read(from) else { continue };
        if fs::read(&to).ok().as_ref() != Some(&bytes) {
            fs::create_dir_all(to.parent().context("a file has a directory")?)?;
            fs::write(&to, bytes)?;
        }
    }
    Ok(())
}

impl std::fmt::Display for Test {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.package, self.target, self.function)
    }
}

impl Test {
    /// Builds the test and runs it. A build that fails is an error: such a mutant says nothing about tests.
    fn play(&self, tree: &Path, target: &Path) -> Result<Verdict> {
        let mut cargo = Command::new("cargo");
        cargo.args(["test", "--locked", "--no-run", "-p", &self.package]).current_dir(tree);
        match self.target.as_str() {
            "lib" => cargo.arg("--lib"),
            name => cargo.args(["--test", name]),
        };
        let built =
            cargo.env("CARGO_TARGET_DIR", target).env("RUSTFLAGS", "").envs(CHEAP).stdin(Stdio::null()).output()?;
        let told = String::from_utf8_lossy(&built.stderr);
        if !built.status.success() {
            bail!("{self} does not build:\n{told}");
        }
        let program = told
            .lines()
            .find_map(|line| line.trim().strip_prefix("Executable ")?.rsplit_once('(')?.1.strip_suffix(')'));
        let program = program.with_context(|| format!("cargo names no program:\n{told}"))?;
        let directory = match self.package.as_str() {
            "xen-sys" => tree.join("xen/sys"),
            tool @ ("vhd" | "tap-ctl" | "nbd") => tree.join("tools").join(tool),
            package => tree.join(package),
        };
        let directory = std::path::absolute(directory)?;
        let log = std::path::absolute("build/mutants/last.log")?;
        let out = fs::File::create(&log)?;
        let mut child = bounded(tree.canonicalize()?.join(program))
            .args(["--exact", &self.function])
            .env("CARGO_MANIFEST_DIR", &directory)
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stderr(out.try_clone()?)
            .stdout(out)
            .spawn()?;
        let began = Instant::now();
        let status = loop {
            match child.try_wait()? {
                Some(status) => break status,
                None if began.elapsed() > HANG => {
                    child.kill()?;
                    child.wait()?;
                    return Ok(Verdict::Hung);
                }
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        if !status.success() {
            return Ok(Verdict::Failed);
        }
        // A name that no test has would pass as well.
        let said = fs::read_to_string(&log)?;
        ensure!(said.contains("test result: ok. 1 passed"), "{self}: no such test");
        Ok(Verdict::Passed)
    }
}

/// Reads a table; see `tools/mutants/README`.
fn parse(text: &str) -> Result<Vec<Mutant>> {
    let mut mutants: Vec<Mutant> = Vec::new();
    for (at, line) in (1..).zip(text.lines()) {
        let mutant = mutants.last_mut();
        match (line.split_at_checked(1), mutant) {
            (None, _) | (Some(("#", _)), _) => {}
            (Some(("@", head)), _) => {
                let words: Vec<_> = head.split_whitespace().collect();
                let [name, file, package, target, function] = words[..] else {
                    bail!("line {at}: not @ NAME FILE PACKAGE TARGET TEST");
                };
                ensure!(mutants.iter().all(|mutant| mutant.name != name), "line {at}: {name} is there already");
                let test = Test { package: package.into(), target: target.into(), function: function.into() };
                let (old, new) = (String::new(), String::new());
                mutants.push(Mutant { name: name.into(), file: file.into(), test, old, new });
            }
            (Some((mark @ (" " | "-" | "+"), line)), Some(mutant)) => {
                for (text, marks) in [(&mut mutant.old, " -"), (&mut mutant.new, " +")] {
                    if marks.contains(mark) {
                        text.push_str(line);
                        text.push('\n');
                    }
                }
            }
            _ => bail!("line {at}: neither a mutant's head nor a line of one"),
        }
    }
    Ok(mutants)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_bug_has_its_place_in_the_tree() {
        let mutants = tables(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap();
        assert!(mutants.len() >= 100);
    }

    #[test]
    fn a_table_is_read_as_changes() {
        let text = "# why\n@ off-by-one a.rs p lib t::u\n  fn f() {\n-    1\n+    2\n";
        let mutants = parse(text).unwrap();
        let [mutant] = &mutants[..] else { panic!("one mutant") };
        assert_eq!((mutant.name.as_str(), mutant.test.to_string().as_str()), ("off-by-one", "p lib t::u"));
        assert_eq!(mutated(mutant, " fn f() {\n    1\n}\n").unwrap(), " fn f() {\n    2\n}\n");
        assert!(mutated(mutant, " fn f() {\n    3\n}\n").is_err(), "a text that is not there");
        assert!(mutated(mutant, &" fn f() {\n    1\n".repeat(2)).is_err(), "a text that is there twice");
        assert!(parse("@ a b c d\n").is_err() && parse("+x\n").is_err());
        assert!(parse("@ a b c d e\n@ a b c d e\n").is_err(), "a name twice");
    }
}
