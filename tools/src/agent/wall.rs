//! dom0's part of `make bench-wall`: one guest with a disk of each backend, and the same load on one after the other.

use anyhow::Result;

use super::backend::letter;
use super::exercise::Exercise;
use super::measure::{GUEST, prepare, spec};
use super::pinned::{Pinned, Shape, device};
use super::reporter::Reporter;
use crate::report::Line;
use crate::wall::{BASE, PEERS, Turn, workloads};
use crate::workload::Peer;

/// Does it, so many rounds.
pub fn measure(reporter: &Reporter, rounds: u32) -> Result<()> {
    prepare()?;
    let peers: Vec<Peer> = [BASE].into_iter().chain(PEERS).collect();
    // libxl starts QEMU with the guest.
    let (early, late): (Vec<_>, Vec<_>) = (0..peers.len()).partition(|at| peers[*at] == Peer::Qdisk);
    let early: Vec<String> = early.into_iter().map(|at| spec(peers[at], at, 1)).collect();
    let mut guest = Pinned::create(&Shape { name: "guest", processors: &[GUEST], mebibytes: None, disks: &early })?;
    for at in late {
        guest.attach(&spec(peers[at], at, 1), &letter(at))?;
    }
    for round in 0..rounds {
        for (workload, load) in workloads().iter().enumerate() {
            for turn in 0..peers.len() {
                // Who begins is another one each round.
                let at = (turn + round as usize) % peers.len();
                let measure = Exercise::Measure { disk: device(&letter(at)), words: load.words(1) };
                let ticks = guest.ask(&measure)?.parse()?;
                let turn = Turn { peer: peers[at], workload, round, ticks };
                reporter.say(&Line::Record("turn".to_owned(), turn.to_string()));
            }
        }
        reporter.step(format!("round {} of {rounds}", round + 1));
    }
    guest.destroy()
}
