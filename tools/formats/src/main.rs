//! What image formats cost in instructions, counted by valgrind: `make bench-formats`.
//!
//! Without arguments it runs itself under valgrind, each case with two numbers of requests; the difference is what the
//! requests cost, without what it took to make the image. The store below does nothing and costs nothing but a count, and
//! what a request costs on it alone is subtracted: what remains is the format and the loop that joins it to the store.
//!
//! # Layout
//! - [`cases`]: images and requests; [`store`]: a store of metadata alone

mod cases;
mod store;

use std::env;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use cases::Case;

/// Requests of the shorter of two runs.
const REQUESTS: u64 = 20_000;

fn main() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    match words.as_slice() {
        [] => table(),
        [case, requests] => {
            let case = Case::ALL.into_iter().find(|known| known.name() == case).context("no such case")?;
            let done = case.run(requests.parse()?);
            println!("{} {} {}", done.writes, done.reads, done.memory);
            Ok(())
        }
        _ => bail!("without arguments, or CASE REQUESTS"),
    }
}

/// What a case cost.
struct Cost {
    /// Instructions of one request.
    instructions: f64,
    /// Writes to the store for one request, and reads.
    writes: f64,
    reads: f64,
    /// Bytes on the heap at the end.
    memory: u64,
}

/// Runs a case twice under valgrind.
fn measure(case: Case) -> Result<Cost> {
    let one = run(case, REQUESTS)?;
    let two = run(case, 2 * REQUESTS)?;
    let per = |of: fn(&Counted) -> u64| (of(&two) as f64 - of(&one) as f64) / REQUESTS as f64;
    Ok(Cost {
        instructions: per(|counted| counted.instructions),
        writes: per(|counted| counted.writes),
        reads: per(|counted| counted.reads),
        memory: two.memory,
    })
}

struct Counted {
    instructions: u64,
    writes: u64,
    reads: u64,
    memory: u64,
}

fn run(case: Case, requests: u64) -> Result<Counted> {
    let output = Command::new("valgrind")
        .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args([case.name(), &requests.to_string()])
        .output()
        .context("valgrind is missing: install Debian's package valgrind")?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}: {err}", case.name());
    let refs = err.lines().find(|line| line.contains("I") && line.contains("refs:")).context("valgrind's count")?;
    let digits: String = refs.rsplit(':').next().unwrap_or("").chars().filter(char::is_ascii_digit).collect();
    let mut words = out.split_whitespace().map(str::parse::<u64>);
    let mut next = || anyhow::Ok(words.next().context("three numbers")??);
    Ok(Counted { instructions: digits.parse()?, writes: next()?, reads: next()?, memory: next()? })
}

fn table() -> Result<()> {
    println!("instructions of the format for one request of 4 KiB; store requests; memory of the image, KiB");
    println!("{:<44} {:>12} {:>8} {:>8} {:>10} {:>7}", "case", "instructions", "writes", "reads", "memory", "ratio");
    let mut costs: Vec<(Case, f64)> = Vec::new();
    for case in Case::ALL {
        let cost = measure(case)?;
        let below = case.below().and_then(|below| costs.iter().find(|(known, _)| *known == below));
        let own = cost.instructions - below.map_or(0.0, |(_, cost)| *cost);
        // Ratios are of the whole request, store and all.
        let ratio = case.beside().and_then(|beside| costs.iter().find(|(known, _)| *known == beside));
        let ratio = ratio.map_or(String::new(), |(_, other)| format!("{:.2}", cost.instructions / other));
        println!(
            "{:<44} {own:>12.0} {:>8.3} {:>8.3} {:>10} {ratio:>7}",
            case.shows(),
            cost.writes,
            cost.reads,
            cost.memory >> 10
        );
        costs.push((case, cost.instructions));
    }
    Ok(())
}
