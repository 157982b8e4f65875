//! Every target of the fuzzer, on its committed corpus and on what a fixed seed makes of it: seconds, and the same
//! inputs on every host. What a fuzzer once found is a file of the corpus.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use sim::fuzz::{TARGETS, Target};
use sim::random::Random;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(name)
}

/// The files of a folder, by name.
fn files(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .collect();
    files.sort();
    files
}

/// Changes an input as fuzzers do, a little, and now and then all of it.
fn mutate(random: &mut Random, corpus: &[Vec<u8>], longest: usize) -> Vec<u8> {
    let mut input = random.pick(corpus);
    if random.one_in(8) {
        input = vec![0; random.index(longest + 1)];
        random.fill(&mut input);
    }
    for _ in 0..random.between(1, 6) {
        let at = random.index(input.len() + 1);
        match random.below(6) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.next() as u8,
            2 if at < input.len() => drop(input.drain(at..input.len().min(at + 1 + random.index(8)))),
            3 => input.insert(at, random.pick(&[0, 1, 2, 0x7f, 0x80, 0xff])),
            4 => {
                let other = random.pick(corpus);
                let from = random.index(other.len() + 1);
                input.truncate(at);
                input.extend(&other[from..]);
            }
            _ => {
                let some = input[..at].to_vec();
                input.splice(at..at, some.iter().rev().take(8).rev().copied());
            }
        }
    }
    input.truncate(longest);
    input
}

/// Runs one input; a failure shows it.
fn run(target: &Target, input: &[u8], what: &str) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
        eprintln!("--- target {}, {what}: {input:02x?} ---", target.name);
        resume_unwind(panic);
    }
}

fn replay(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of that name");
    let corpus: Vec<Vec<u8>> = files(&folder("corpus").join(name))
        .into_iter()
        .map(|(file, path)| {
            let input = fs::read(path).unwrap();
            run(target, &input, &file);
            input
        })
        .collect();
    assert!(corpus.len() >= 3, "{name} has a corpus of {}", corpus.len());
    let (inputs, longest) = target.replay;
    let mut random = Random::new(1);
    for i in 0..inputs {
        let input = mutate(&mut random, &corpus, longest);
        run(target, &input, &format!("input {i} of the replay"));
    }
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(#[test] fn $name() { replay(stringify!($name)) })*

        /// No target without its replay, its line in `fuzz/` and its corpus.
        #[test]
        fn all_targets_are_replayed() {
            let ours = BTreeSet::from([$(stringify!($name)),*]);
            assert_eq!(TARGETS.iter().map(|target| target.name).collect::<BTreeSet<_>>(), ours);
            let names = |of: &str| files(&folder(of)).into_iter().map(|(name, _)| name).collect::<BTreeSet<_>>();
            assert_eq!(names("fuzz_targets"), ours.iter().map(|name| format!("{name}.rs")).collect());
            assert_eq!(names("corpus"), ours.iter().map(|name| name.to_string()).collect());
            let manifest = fs::read_to_string(folder("Cargo.toml")).unwrap();
            for name in ours {
                assert!(manifest.contains(&format!("\"fuzz_targets/{name}.rs\"")), "{name} is not in fuzz/Cargo.toml");
            }
        }
    };
}

replays! { answers blkif control domain handshake handshake_lower image names requests store tables vchan volumes }
