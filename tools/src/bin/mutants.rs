//! `make mutants`: bugs are put into a copy of the tree, and the tests have to notice.
//!
//! `mutants known [NAME...]` puts in those of `tools/mutants`, one at a time, and demands that the test named beside each
//! fails. `mutants made [k/n] [CRATE...]` has cargo-mutants think of some, all or a part, and counts how many are noticed.
//! What came of both is in `docs/mutants.md`.

use std::process::ExitCode;

use anyhow::anyhow;
use tools::mutants::{known, made};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.split_first() {
        Some((word, names)) if word == "known" => known::run(names),
        Some((word, rest)) if word == "made" => made::run(rest),
        _ => Err(anyhow!("known [NAME...], or made [k/n] [CRATE...]")),
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
