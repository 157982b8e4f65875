//! What `make bench-neighbours` measures: a quiet guest's requests, one after the other, beside a guest that asks for all it
//! can get. Both sides of the boot's border know these words.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use crate::workload::Peer;

/// Who serves the quiet guest.
pub const PEERS: [Peer; 3] = [Peer::Blkback, Peer::TapdomRam, Peer::TapdomAio];

/// The words of the load program for the quiet guest: of so many requests the longest two are beyond the 999th of 1000.
pub const QUIET: &str = "read random 4096 1 2000 1 each";

/// What the other guest does meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noise {
    /// There is none.
    Alone,
    /// Small reads at depth 32, by another backend: what the machine itself makes of a second guest.
    Elsewhere,
    /// Small reads at depth 32, by the same backend.
    Small,
    /// Reads of 1 MiB at depth 32, by the same backend.
    Large,
}

impl Noise {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Noise; 4] = [Noise::Alone, Noise::Elsewhere, Noise::Small, Noise::Large];

    /// The words of the load program, for a load without an end.
    pub fn words(self) -> Option<&'static str> {
        match self {
            Noise::Alone => None,
            Noise::Elsewhere | Noise::Small => Some("read random 4096 32 4294967295 1"),
            Noise::Large => Some("read sequential 1048576 32 4294967295 1"),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Noise::Alone => "alone",
            Noise::Elsewhere => "elsewhere",
            Noise::Small => "small",
            Noise::Large => "large",
        }
    }
}

/// As tables have it.
impl fmt::Display for Noise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Noise::Alone => "nobody",
            Noise::Elsewhere => "4 KiB reads, depth 32, of another backend",
            Noise::Small => "4 KiB reads, depth 32",
            Noise::Large => "1 MiB reads, depth 32",
        })
    }
}

/// What the quiet guest saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Who served it.
    pub peer: Peer,
    /// Beside whom.
    pub noise: Noise,
    /// Nanoseconds of the 500th, 990th and 999th of 1000 requests, and of the longest.
    pub ns: [u64; 4],
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, p999, most] = self.ns;
        write!(f, "{} {} {p50} {p99} {p999} {most}", self.peer.word(), self.noise.word())
    }
}

impl FromStr for Seen {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Seen> {
        let [peer, noise, p50, p99, p999, most] = text.split(' ').collect::<Vec<_>>()[..] else {
            bail!("not what a quiet guest saw: {text:?}")
        };
        let noise = Noise::ALL.into_iter().find(|known| known.word() == noise).context("a noise that there is")?;
        Ok(Seen { peer: peer.parse()?, noise, ns: [p50.parse()?, p99.parse()?, p999.parse()?, most.parse()?] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_crosses_the_border() {
        let seen = Seen { peer: Peer::TapdomRam, noise: Noise::Large, ns: [1, 2, 3, 4] };
        assert_eq!(seen.to_string().parse::<Seen>().unwrap(), seen);
        assert!("tapdom-ram loud 1 2 3 4".parse::<Seen>().is_err() && "tapdom-ram large 1".parse::<Seen>().is_err());
    }
}
