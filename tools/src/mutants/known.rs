//! Bugs that backends had or that this one could have, in tables: what is changed, and the test that has to notice.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::mutants::suite::{Suite, Verdict};
use crate::mutants::tree::Tree;

/// The crates that have a table.
const TABLES: [&str; 4] = ["protocol", "xen", "drivers", "kernel"];
/// The tests take seconds.
const HANG: Duration = Duration::from_secs(180);

/// One bug, and who notices it.
struct Mutant {
    name: String,
    file: String,
    test: Suite,
    old: String,
    new: String,
}

/// Runs the mutants of the tables whose names are in `wanted` (all without any) and tells each verdict; false if one
/// survived.
pub fn run(wanted: &[String]) -> Result<bool> {
    let mut mutants = tables(Path::new("."))?;
    for name in wanted {
        ensure!(mutants.iter().any(|mutant| mutant.name == *name), "no mutant is named {name}");
    }
    mutants.retain(|mutant| wanted.is_empty() || wanted.contains(&mutant.name));
    let tree = Tree::of_this()?;
    let honest: BTreeSet<&Suite> = mutants.iter().map(|mutant| &mutant.test).collect();
    for test in honest {
        let verdict = test.play(&tree, HANG)?;
        ensure!(verdict == Verdict::Passed, "{test} without any mutant: {verdict:?}");
    }
    let mut survivors = 0;
    for mutant in &mutants {
        let (test, began) = (&mutant.test, Instant::now());
        let verdict = tree.with(&mutant.file, |text| mutated(mutant, text), || test.play(&tree, HANG))?;
        let word = match verdict.with_context(|| mutant.name.clone())? {
            Verdict::Passed => "SURVIVED",
            Verdict::Failed(_) => "killed",
            Verdict::Hung => "killed (hung)",
            // Such a mutant says nothing about tests.
            Verdict::Unbuilt(why) => bail!("{} does not build:\n{why}", mutant.name),
        };
        survivors += usize::from(word == "SURVIVED");
        println!("{word:9} {} by {test} ({} s)", mutant.name, began.elapsed().as_secs());
    }
    println!("{} mutants, {} killed", mutants.len(), mutants.len() - survivors);
    Ok(survivors == 0)
}

/// The mutants of all tables of a tree. A table that the tree has left behind is wrong even if nobody runs it.
fn tables(top: &Path) -> Result<Vec<Mutant>> {
    let mut mutants = Vec::new();
    for table in TABLES {
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
                let test = Suite { package: package.into(), target: target.into(), function: Some(function.into()) };
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
