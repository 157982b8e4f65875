//! What a guest that asks for all it can get makes of a quiet one's requests.

use std::fmt::Write;

use anyhow::{Context, Result};

use super::counts::{DOM0, GUEST, OWNERS, Phase, TAPDOM};
use crate::neighbours::{Noise, Seen};
use crate::workload::Peer;

const HEAD: &str = "\
| both served by | beside the quiet guest | p50, us | p99 | p99.9 | longest | p99.9 of alone | on its own way, p99.9 | of alone |
|---|---|---|---|---|---|---|---|---|
";

/// The issue's, and nothing below it.
const GOAL: f64 = 3.0;

/// What was seen, and counted meanwhile.
pub struct Pair {
    /// By the guest.
    pub seen: Seen,
    /// By the plugin.
    pub phase: Phase,
}

impl Pair {
    /// Instructions of those who have a part in a request, of the 999th of 1000.
    fn own_way(&self) -> Result<u64> {
        let parts: &[usize] = match self.seen.peer {
            Peer::Blkback => &[GUEST, DOM0],
            Peer::TapdomRam => &[GUEST, TAPDOM],
            _ => &[GUEST, TAPDOM, DOM0],
        };
        let sum = |lap: &[u64; OWNERS]| parts.iter().map(|owner| lap[*owner]).sum::<u64>();
        let requests = self.phase.laps.chunks_exact(2);
        let mut took: Vec<u64> = requests.map(|request| sum(&request[1]) - sum(&request[0])).collect();
        took.sort_unstable();
        took.get(took.len() * 999 / 1000).copied().context("no request was counted")
    }
}

/// A line for each, and the goal beside those where both guests have the same backend.
pub fn table(pairs: &[Pair]) -> Result<String> {
    let mut text = HEAD.to_owned();
    let mut goals = String::from("| what | measured | goal | |\n|---|---|---|---|\n");
    for pair in pairs {
        let Seen { peer, noise, ns } = pair.seen;
        let alone = pairs.iter().find(|pair| pair.seen.peer == peer && pair.seen.noise == Noise::Alone);
        let alone = alone.context("the quiet guest alone")?;
        let (way, way_alone) = (pair.own_way()?, alone.own_way()?);
        let ratio = ns[2] as f64 / alone.seen.ns[2] as f64;
        let us: Vec<String> = ns.iter().map(|ns| format!("{:.1}", *ns as f64 / 1000.0)).collect();
        let (us, peer) = (us.join(" | "), peer.word());
        let way_ratio = way as f64 / way_alone as f64;
        writeln!(text, "| {peer} | {noise} | {us} | {ratio:.2} | {way} | {way_ratio:.2} |")?;
        if matches!(noise, Noise::Small | Noise::Large) && peer != Peer::Blkback.word() {
            let what = format!("{peer}, p99.9 of a quiet guest beside {noise}: of alone");
            let verdict = if ratio <= GOAL { "goal" } else { "missed" };
            writeln!(goals, "| {what} | {ratio:.2} | {GOAL} | {verdict} |")?;
        }
    }
    Ok(format!("{text}\n{goals}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_is_that_of_those_who_have_a_part() {
        let lap = |at: u64| [100 * at, 10 * at, at, 1000 * at];
        let pair = |noise, ns| Pair {
            seen: Seen { peer: Peer::TapdomRam, noise, ns },
            phase: Phase { laps: vec![lap(1), lap(3), lap(4), lap(5)], ..Phase::default() },
        };
        let pairs = [pair(Noise::Alone, [1, 2, 1000, 4]), pair(Noise::Small, [1, 2, 2500, 4])];
        assert_eq!(pairs[0].own_way().unwrap(), 22);
        let text = table(&pairs).unwrap();
        assert!(text.contains("| tapdom-ram | nobody | 0.0 | 0.0 | 1.0 | 0.0 | 1.00 | 22 | 1.00 |"), "{text}");
        assert!(text.contains("depth 32: of alone | 2.50 | 3 | goal |"), "{text}");
        assert!(table(&pairs[1..]).is_err());
    }
}
