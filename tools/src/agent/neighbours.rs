//! dom0's part of `make bench-neighbours`: two guests on one backend.

use anyhow::{Context, Result};

use super::exercise::Exercise;
use super::measure::{BRD, GUEST, prepare};
use super::pinned::{Pinned, Shape, device};
use super::reporter::Reporter;
use crate::neighbours::{Noise, PEERS, QUIET, Seen};
use crate::report::Line;
use crate::workload::Peer;

/// The processor of the guest that makes the noise.
const NEIGHBOUR: usize = 3;

const DISK: &str = "xvda";

/// Does it all.
pub fn measure(reporter: &Reporter) -> Result<()> {
    prepare()?;
    let guest =
        |name, processor| Pinned::create(&Shape { name, processors: &[processor], mebibytes: None, disks: &[] });
    let mut quiet = guest("quiet", GUEST)?;
    let mut noisy = guest("noisy", NEIGHBOUR)?;
    for peer in PEERS {
        quiet.attach(&spec(peer), DISK)?;
        for noise in Noise::ALL {
            let by = match (noise, peer) {
                (Noise::Elsewhere, Peer::Blkback) => Peer::TapdomRam,
                (Noise::Elsewhere, _) => Peer::Blkback,
                _ => peer,
            };
            let seen = beside(&mut quiet, &mut noisy, noise, &spec(by))?;
            let seen = Seen { peer, noise, ns: seen };
            reporter.say(&Line::Record("seen".to_owned(), seen.to_string()));
            reporter.step(seen.to_string());
        }
        quiet.detach(DISK)?;
    }
    quiet.destroy()?;
    noisy.destroy()
}

fn beside(quiet: &mut Pinned, noisy: &mut Pinned, noise: Noise, spec: &str) -> Result<[u64; 4]> {
    if let Some(words) = noise.words() {
        noisy.attach(spec, DISK)?;
        noisy.ask(&Exercise::Noise { disk: device(DISK), words: words.to_owned() })?;
    }
    let seen = quiet.ask(&Exercise::Measure { disk: device(DISK), words: QUIET.to_owned() })?;
    if noise.words().is_some() {
        noisy.ask(&Exercise::Silence)?;
        noisy.detach(DISK)?;
    }
    let numbers: Vec<u64> = seen.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    numbers.get(1..).and_then(|ns| ns.try_into().ok()).with_context(|| format!("five numbers: {seen:?}"))
}

/// A disk of the size of the others, or as much of it as two guests' fit into tapdom.
fn spec(peer: Peer) -> String {
    let backend = match peer {
        Peer::TapdomRam => "backend=tapdom,target=ram:32M".to_owned(),
        Peer::TapdomAio => "backend=tapdom,target=aio:/dev/xvda".to_owned(),
        _ => format!("backendtype=phy,target={BRD}"),
    };
    format!("format=raw,vdev={DISK},access=rw,{backend}")
}
