//! Where the instructions of a load go, by function.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::counts::{Block, DOM0, GUEST, TAPDOM};
use super::symbols::Symbols;
use super::{Measured, Outcome};

/// Functions that are shown of each processor.
const SHOWN: usize = 25;

/// The hottest functions of each processor, per request.
pub fn of(outcome: &Outcome) -> String {
    let mut text = String::new();
    for measured in &outcome.measured {
        for (processor, who) in [(TAPDOM, "tapdom's"), (DOM0, "dom0's"), (GUEST, "the guest's")] {
            if measured.phase.processors[processor].instructions > 0 {
                let _ = writeln!(text, "{}, {}: {who} processor", measured.workload, measured.peer.word());
                functions(measured, processor, &outcome.symbols, &mut text);
            }
        }
    }
    text
}

fn functions(measured: &Measured, processor: usize, symbols: &Symbols, text: &mut String) {
    let requests = f64::from(measured.workload.requests());
    let per = |count: u64| count as f64 / requests;
    let mut sums: BTreeMap<String, Block> = BTreeMap::new();
    for (address, block) in &measured.phase.processors[processor].blocks {
        let (name, begins) = symbols.name(processor, *address);
        let sum = sums.entry(name).or_default();
        sum.instructions += block.instructions;
        sum.entered += if begins { block.entered } else { 0 };
    }
    let mut sums: Vec<(String, Block)> = sums.into_iter().collect();
    sums.sort_by_key(|(name, sum)| (std::cmp::Reverse(sum.instructions), name.clone()));
    let all = |sums: &[(String, Block)]| per(sums.iter().map(|(_, sum)| sum.instructions).sum());
    let _ = writeln!(text, "{:>10} {:>8}", "per request", "calls");
    for (name, sum) in sums.iter().take(SHOWN) {
        let _ = writeln!(text, "{:>11.1} {:>8.2}  {name}", per(sum.instructions), per(sum.entered));
    }
    let _ = writeln!(text, "{:>11.1}           all others", all(sums.get(SHOWN..).unwrap_or_default()));
    let _ = writeln!(text, "{:>11.1}           in all\n", all(&sums));
}
