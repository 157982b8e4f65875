//! Bugs that cargo-mutants thinks of, judged by suites in turn: those that are fast and tell most come first.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::mutants::suite::{Suite, Verdict};
use crate::mutants::tree::Tree;

/// The crates, and what judges a mutant of each, in this order, until one notices.
const CRATES: [(&str, &[(&str, &str)]); 4] = [
    (
        "protocol",
        &[
            ("protocol", "lib"),
            ("protocol", "tapdisk"),
            ("protocol", "messages"),
            ("protocol", "hostile"),
            ("sim", "hostile"),
            ("sim", "vhd"),
            ("sim", "lvm"),
            ("sim", "control"),
            ("sim", "life"),
        ],
    ),
    (
        "xen",
        &[
            ("xen", "lib"),
            ("xen", "over_a_fake"),
            ("sim", "hostile"),
            ("sim", "looks"),
            ("sim", "control"),
            ("sim", "persistent"),
            ("sim", "minors"),
            ("sim", "regressions"),
            ("sim", "life"),
            ("sim", "io"),
            ("sim", "vchan"),
            ("sim", "store_errors"),
            ("sim", "faults"),
        ],
    ),
    (
        "drivers",
        &[
            ("drivers", "lib"),
            ("sim", "conformance"),
            ("sim", "parents"),
            ("sim", "volumes"),
            ("sim", "hostile"),
            ("sim", "looks"),
            ("sim", "control"),
            ("sim", "crash"),
            ("sim", "regressions"),
            ("sim", "minors"),
            ("sim", "vhd"),
            ("sim", "io"),
            ("sim", "lvm"),
            ("sim", "life"),
            ("sim", "fuzz_replay"),
            ("sim", "store_errors"),
            ("sim", "vhd_tool"),
            ("sim", "vhd_memory"),
            ("sim", "faults"),
            ("sim", "memory"),
        ],
    ),
    (
        "kernel",
        &[
            ("kernel", "lib"),
            ("sim", "hostile"),
            ("sim", "control"),
            ("sim", "looks"),
            ("sim", "control_review"),
            ("sim", "delay"),
            ("sim", "persistent"),
            ("sim", "regressions"),
            ("sim", "minors"),
            ("sim", "life"),
            ("sim", "slips"),
            ("sim", "io"),
            ("sim", "records"),
            ("sim", "vhd"),
            ("sim", "store_errors"),
            ("sim", "faults"),
            ("sim", "memory"),
        ],
    ),
];
/// So many of every hundred have to be noticed.
const KILLED_MIN: usize = 95;
/// A suite that takes this many times what it takes without a mutant, and some seconds more, waits for what the mutant lost.
const HANG_TIMES: u32 = 5;
const HANG_AT_LEAST: Duration = Duration::from_secs(30);

/// One bug.
struct Mutant {
    /// Where it is and what it is.
    name: String,
    file: String,
    /// From and to, a line and a column each.
    span: [(usize, usize); 2],
    new: String,
}

/// What came of the mutants of a crate.
#[derive(Default)]
struct Figures {
    killed: usize,
    missed: usize,
    unbuilt: usize,
}

/// Has cargo-mutants think of mutants of the crates named (all without any), or of a part of them (`k/n`), and judges them.
/// False if too few are noticed.
pub fn run(words: &[String]) -> Result<bool> {
    let (parts, crates): (Vec<_>, Vec<_>) = words.iter().partition(|word| word.contains('/'));
    for name in &crates {
        ensure!(CRATES.iter().any(|(known, _)| known == name), "no crate {name} has suites for its mutants");
    }
    let tree = Tree::of_this()?;
    let mut all = Vec::new();
    for (name, suites) in CRATES.iter().filter(|(name, _)| crates.is_empty() || crates.iter().any(|it| it == name)) {
        let suites: Vec<Suite> = suites.iter().map(|(package, target)| Suite::whole(package, target)).collect();
        let suites = suites.into_iter().map(|suite| Ok((honest(&suite, &tree)?, suite))).collect::<Result<Vec<_>>>()?;
        let mut figures = Figures::default();
        for mutant in think(name, &parts, &tree)? {
            judge(&mutant, &suites, &tree, &mut figures).with_context(|| mutant.name.clone())?;
        }
        all.push((*name, figures));
    }
    let mut total = Figures::default();
    for (name, Figures { killed, missed, unbuilt }) in all {
        println!("{name}: {killed} of {} killed, {unbuilt} do not compile", killed + missed);
        total.killed += killed;
        total.missed += missed;
    }
    println!("{} of {} killed", total.killed, total.killed + total.missed);
    Ok(total.killed * 100 >= (total.killed + total.missed) * KILLED_MIN)
}

/// Demands that a suite passes without any mutant. How long to wait for it with one.
fn honest(suite: &Suite, tree: &Tree) -> Result<Duration> {
    let program = suite.build(tree)?.map_err(|why| anyhow!("{suite} does not build:\n{why}"))?;
    let began = Instant::now();
    let verdict = suite.run(tree, &program, Duration::from_secs(600))?;
    ensure!(verdict == Verdict::Passed, "{suite} without any mutant: {verdict:?}");
    Ok(began.elapsed() * HANG_TIMES + HANG_AT_LEAST)
}

/// The mutants of a crate, or those of a part, which has some of every file.
fn think(name: &str, parts: &[&String], tree: &Tree) -> Result<Vec<Mutant>> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(&tree.top);
    cargo.args(["mutants", "--list", "--json", "--gitignore=true", "--sharding=round-robin", "-p", name]);
    cargo.args(parts.iter().flat_map(|part| ["--shard", part]));
    let told = cargo.output().context("cargo mutants")?;
    ensure!(told.status.success(), "cargo mutants: {}", String::from_utf8_lossy(&told.stderr));
    let listed: Vec<Value> = serde_json::from_slice(&told.stdout).context("cargo mutants")?;
    listed.iter().map(|mutant| read(mutant).with_context(|| format!("cargo mutants: {mutant}"))).collect()
}

fn read(mutant: &Value) -> Option<Mutant> {
    let text = |name: &str| Some(mutant[name].as_str()?.to_owned());
    let place = |end: &str| {
        let number = |name: &str| mutant["span"][end][name].as_u64().map(|number| number as usize);
        Some((number("line")?, number("column")?))
    };
    Some(Mutant {
        name: text("name")?,
        file: text("file")?,
        span: [place("start")?, place("end")?],
        new: text("replacement")?,
    })
}

/// The text with the bug in it.
fn mutated(mutant: &Mutant, text: &str) -> Result<String> {
    let [from, to] = mutant.span.map(|(line, column)| at(text, line, column));
    let (from, to) = from.zip(to).filter(|(from, to)| from <= to).context("its place is not in the file")?;
    // A word may stand right behind.
    Ok([&text[..from], &mutant.new, " ", &text[to..]].concat())
}

/// Where a line's column is; both count from 1, in characters.
fn at(text: &str, line: usize, column: usize) -> Option<usize> {
    let mut lines = text.split_inclusive('\n');
    let before: usize = lines.by_ref().take(line.checked_sub(1)?).map(str::len).sum();
    let line = lines.next().unwrap_or("");
    let mut columns = line.char_indices().map(|(at, _)| at).chain([line.len()]);
    Some(before + columns.nth(column.checked_sub(1)?)?)
}

/// Tells the verdict on a mutant, and who came to it.
fn judge(mutant: &Mutant, suites: &[(Duration, Suite)], tree: &Tree, figures: &mut Figures) -> Result<()> {
    let began = Instant::now();
    let (verdict, suite) =
        tree.with(&mutant.file, |text| mutated(mutant, text), || first_to_notice(suites, tree))??;
    let told = match verdict {
        Verdict::Passed => "MISSED".into(),
        Verdict::Failed(test) => format!("killed by {suite} {test}"),
        Verdict::Hung => format!("killed by {suite}, which hung"),
        Verdict::Unbuilt(_) => "does not compile".into(),
    };
    match told.as_str() {
        "MISSED" => figures.missed += 1,
        "does not compile" => figures.unbuilt += 1,
        _ => figures.killed += 1,
    }
    println!("{}: {told} ({} s)", mutant.name, began.elapsed().as_secs());
    Ok(())
}

/// The first verdict that is not that all is well, and whose.
fn first_to_notice(suites: &[(Duration, Suite)], tree: &Tree) -> Result<(Verdict, String)> {
    for (patience, suite) in suites {
        let verdict = suite.play(tree, *patience)?;
        if verdict != Verdict::Passed {
            return Ok((verdict, suite.to_string()));
        }
    }
    Ok((Verdict::Passed, String::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutant_is_read_and_put_in_its_place() {
        let listed = r#"{"name": "a.rs:2:7: replace < with >", "file": "a.rs", "replacement": ">",
            "span": {"start": {"line": 2, "column": 7}, "end": {"line": 2, "column": 8}}}"#;
        let mutant = read(&serde_json::from_str(listed).unwrap()).unwrap();
        assert_eq!(mutated(&mutant, "fn f() {\n  'ä' < b\n}\n").unwrap(), "fn f() {\n  'ä' >  b\n}\n");
        assert!(mutated(&mutant, "fn f() {\n").is_err());
        assert!(read(&serde_json::json!({"name": "a"})).is_none());
    }

    #[test]
    fn a_body_of_several_lines_is_replaced() {
        let mutant = Mutant { name: String::new(), file: String::new(), span: [(2, 5), (3, 6)], new: "true".into() };
        assert_eq!(mutated(&mutant, "fn f() {\n    a;\n    b\n}\n").unwrap(), "fn f() {\n    true \n}\n");
    }
}
