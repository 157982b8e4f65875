//! What `make bench-wall` measures: time as a clock on the wall shows it, with a thread of the host for each processor. It
//! says little by itself, so only ratios are told: of backends that have their turns in one round, round after round.

use std::fmt::{self, Write};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use crate::workload::{Operation, Peer, Workload};

/// To whom the others are compared.
pub const BASE: Peer = Peer::Blkback;

/// The others.
pub const PEERS: [Peer; 3] = [Peer::TapdomRam, Peer::TapdomAio, Peer::Qdisk];

/// The loads.
pub fn workloads() -> [Workload; 5] {
    let one = |bytes, operation, depth| Workload { bytes, operation, depth, disks: 1 };
    [
        one(4096, Operation::Read, 1),
        one(4096, Operation::Read, 32),
        one(4096, Operation::Write, 32),
        one(1 << 20, Operation::Read, 4),
        one(1 << 20, Operation::Write, 4),
    ]
}

/// One load on one disk in one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Whose disk.
    pub peer: Peer,
    /// Which of [`workloads`].
    pub workload: usize,
    /// The round.
    pub round: u32,
    /// What the guest's processor counted; of which unit does not matter here.
    pub ticks: u64,
}

impl fmt::Display for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Turn { peer, workload, round, ticks } = self;
        write!(f, "{} {workload} {round} {ticks}", peer.word())
    }
}

impl FromStr for Turn {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Turn> {
        let [peer, workload, round, ticks] = text.split(' ').collect::<Vec<_>>()[..] else {
            bail!("not a turn: {text:?}")
        };
        Ok(Turn { peer: peer.parse()?, workload: workload.parse()?, round: round.parse()?, ticks: ticks.parse()? })
    }
}

/// The middle ratio of all rounds, and the ends of what half of them show and of what all do.
pub fn table(turns: &[Turn]) -> Result<String> {
    let mut text =
        format!("time of a backend over that of {}: the middle round (half of the rounds; all)\n\n", BASE.word());
    text.push_str(&format!("| load | {} |\n", PEERS.map(Peer::word).join(" | ")));
    text.push_str("|---|---|---|---|\n");
    for (at, workload) in workloads().iter().enumerate() {
        let cells: Vec<String> = PEERS.iter().map(|peer| cell(turns, at, *peer)).collect::<Result<_>>()?;
        writeln!(text, "| {workload} | {} |", cells.join(" | "))?;
    }
    Ok(text)
}

fn cell(turns: &[Turn], workload: usize, peer: Peer) -> Result<String> {
    let ticks = |peer: Peer, round: u32| {
        let turn = turns.iter().find(|it| (it.peer, it.workload, it.round) == (peer, workload, round));
        turn.map(|turn| turn.ticks as f64)
    };
    let mut ratios: Vec<f64> = (0..).map_while(|round| Some(ticks(peer, round)? / ticks(BASE, round)?)).collect();
    ratios.sort_by(f64::total_cmp);
    let at = |quarters: usize| ratios.get((ratios.len().saturating_sub(1)) * quarters / 4).copied().context("no round");
    let [least, low, middle, high, most] = [at(0)?, at(1)?, at(2)?, at(3)?, at(4)?];
    Ok(format!("{middle:.2} ({low:.2} to {high:.2}; {least:.2} to {most:.2})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_those_of_a_round() {
        let turn = |peer, round, ticks| Turn { peer, workload: 0, round, ticks };
        let mut turns = Vec::new();
        for (round, (base, other)) in [(100, 50), (1000, 400), (10, 8)].into_iter().enumerate() {
            turns.extend([turn(BASE, round as u32, base), turn(Peer::Qdisk, round as u32, other)]);
        }
        assert_eq!(cell(&turns, 0, Peer::Qdisk).unwrap(), "0.50 (0.40 to 0.50; 0.40 to 0.80)");
        assert!(cell(&turns, 1, Peer::Qdisk).is_err() && table(&turns).is_err());
        assert_eq!(turns[0].to_string().parse::<Turn>().unwrap(), turns[0]);
    }
}
