//! What `make bench` measures: who serves the disk, and what the guest does with it. Both sides of the boot's border know
//! these words.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// Who serves the disk. All of them keep its bytes in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Peer {
    /// dom0's blkback on a RAM disk of dom0's, with persistent grants.
    Blkback,
    /// The same without persistent grants.
    BlkbackPlain,
    /// With persistent grants and a queue for each processor of the guest.
    BlkbackQueues,
    /// A RAM disk of tapdom's own.
    TapdomRam,
    /// The same of a tapdom with two vCPUs, and so with two rings.
    TapdomTwo,
    /// With four.
    TapdomFour,
    /// tapdom's lower disk, which is blkback's RAM disk.
    TapdomAio,
    /// A dynamic VHD on another lower disk of that kind, all its blocks written.
    TapdomVhd,
    /// QEMU in dom0 on that RAM disk.
    Qdisk,
}

impl Peer {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Peer; 9] = [
        Peer::Blkback,
        Peer::BlkbackPlain,
        Peer::BlkbackQueues,
        Peer::TapdomRam,
        Peer::TapdomTwo,
        Peer::TapdomFour,
        Peer::TapdomAio,
        Peer::TapdomVhd,
        Peer::Qdisk,
    ];

    /// Those that are measured with a guest of so many processors if none is named.
    pub fn usual(processors: usize) -> Vec<Peer> {
        let with_one = |peer| matches!(peer, Peer::Blkback | Peer::TapdomRam | Peer::TapdomAio);
        let fits = |peer: &Peer| if processors > 1 { with_one(*peer) || peer.has_queues() } else { !peer.has_queues() };
        Peer::ALL.into_iter().filter(fits).collect()
    }

    /// Whether it has several queues, which only a guest of several processors uses.
    pub fn has_queues(self) -> bool {
        matches!(self, Peer::BlkbackQueues | Peer::TapdomTwo | Peer::TapdomFour)
    }

    /// Whether one guest can have many disks of it: a VHD has one writer, and there is one VHD.
    pub fn has_many_disks(self) -> bool {
        self != Peer::TapdomVhd
    }

    /// As job files and tables have it.
    pub fn word(self) -> &'static str {
        match self {
            Peer::Blkback => "blkback",
            Peer::BlkbackPlain => "blkback-plain",
            Peer::BlkbackQueues => "blkback-queues",
            Peer::TapdomRam => "tapdom-ram",
            Peer::TapdomTwo => "tapdom-two",
            Peer::TapdomFour => "tapdom-four",
            Peer::TapdomAio => "tapdom-aio",
            Peer::TapdomVhd => "tapdom-vhd",
            Peer::Qdisk => "qdisk",
        }
    }
}

impl FromStr for Peer {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Peer> {
        Peer::ALL.into_iter().find(|peer| peer.word() == word).with_context(|| format!("no peer is called {word:?}"))
    }
}

/// What the load does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Seven reads in ten, at random.
    Mixed,
    /// A write, then a flush, one after the other.
    Flush,
}

impl Operation {
    /// As the load program has it.
    pub fn word(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Mixed => "mixed",
            Operation::Flush => "flush",
        }
    }
}

/// One load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Workload {
    /// Bytes of a request. Those of a page are spread at random, larger ones go one after the other.
    pub bytes: u32,
    /// What it does.
    pub operation: Operation,
    /// Requests in flight on each disk.
    pub depth: u32,
    /// Disks that are busy at once.
    pub disks: usize,
}

/// The disks of the loads that have more than one.
pub const DISKS: usize = 8;

/// So many bytes are random, more are sequential.
const PAGE: u32 = 4096;

impl Workload {
    /// Requests that are counted, of all disks: so many that what happens once does not show, and no more.
    pub fn requests(&self) -> u32 {
        let of_one = match self.bytes {
            PAGE => 1920,
            0x10000 => 320,
            _ => 64,
        };
        if self.disks > 1 { 4 * of_one } else { of_one }
    }

    fn pattern(&self) -> &'static str {
        if self.bytes == PAGE { "random" } else { "sequential" }
    }

    /// The words of the load program after the disks' names, for a guest with so many processors.
    pub fn words(&self, processors: usize) -> String {
        let Workload { bytes, operation, depth, .. } = self;
        let (what, pattern, requests) = (operation.word(), self.pattern(), self.requests());
        format!("{what} {pattern} {bytes} {depth} {requests} {processors}")
    }

    /// Whether so many processors can share it. Their disks are not eight: Linux keeps 4 MiB for each queue of each.
    pub fn suits(&self, processors: usize) -> bool {
        let shared = (self.depth as usize).is_multiple_of(processors) && self.operation != Operation::Flush;
        processors == 1 || (shared && self.disks == 1)
    }

    /// All that are measured.
    pub fn all() -> Vec<Workload> {
        let one = |bytes, operation, depth| Workload { bytes, operation, depth, disks: 1 };
        let depths = |operation| [1, 2, 4, 8, 16, 32].map(|depth| one(PAGE, operation, depth));
        let mut all = Vec::new();
        all.extend(depths(Operation::Read));
        all.extend(depths(Operation::Write));
        all.push(one(PAGE, Operation::Mixed, 32));
        all.push(one(PAGE, Operation::Flush, 1));
        for bytes in [0x10000, 0x100000] {
            all.extend([one(bytes, Operation::Read, 4), one(bytes, Operation::Write, 4)]);
        }
        let many = [(PAGE, 1), (PAGE, 32), (0x100000, 4)];
        all.extend(many.map(|(bytes, depth)| Workload { disks: DISKS, ..one(bytes, Operation::Read, depth) }));
        all
    }
}

/// A size as people say it.
fn size(bytes: u32) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{} KiB", bytes >> 10) }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Workload { bytes, operation, depth, disks } = self;
        let what = match operation {
            Operation::Mixed => "70 % reads, 30 % writes",
            Operation::Flush => "write and flush",
            _ => operation.word(),
        };
        write!(f, "{} {} {what}, depth {depth}", size(*bytes), self.pattern())?;
        if *disks > 1 { write!(f, ", {disks} disks") } else { Ok(()) }
    }
}

/// Functions that Xen calls once for each page of a grant copy.
pub const COPY: &[&str] = &["common/grant_table.c#acquire_grant_for_copy"];
/// Once for each grant that is mapped, by the kind of domain.
pub const MAP: &[&str] = &["create_grant_pv_mapping", "create_grant_p2m_mapping"];
/// Once for each event that is sent.
pub const SEND: &[&str] = &["evtchn_send"];
/// All whose calls are counted.
pub const COUNTED: [&[&str]; 3] = [COPY, MAP, SEND];

/// What a boot measures: written to the job, read by dom0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Whose disks, in order.
    pub peers: Vec<Peer>,
    /// What is done with each, in order: indices of [`Workload::all`].
    pub workloads: Vec<usize>,
    /// Processors of the guest: each has its part of a load.
    pub processors: usize,
    /// The names of all of Xen's functions are wanted, not only of those counted.
    pub names: bool,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peers: Vec<&str> = self.peers.iter().map(|peer| peer.word()).collect();
        let workloads: Vec<String> = self.workloads.iter().map(usize::to_string).collect();
        write!(f, "{} {} {} {}", peers.join(","), workloads.join(","), self.processors, self.names)
    }
}

impl FromStr for Plan {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Plan> {
        let [peers, workloads, processors, names] = text.split(' ').collect::<Vec<_>>()[..] else {
            bail!("a plan has four words: {text:?}")
        };
        Ok(Plan {
            peers: peers.split(',').map(str::parse).collect::<Result<_>>()?,
            workloads: workloads.split(',').map(str::parse).collect::<Result<_, _>>()?,
            processors: processors.parse()?,
            names: names.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_survives_the_job_file() {
        let plan = Plan { peers: Peer::ALL.to_vec(), workloads: vec![0, 5, 17], processors: 4, names: true };
        assert_eq!(plan.to_string().parse::<Plan>().unwrap(), plan);
        assert!("blkback".parse::<Plan>().is_err());
        assert!("blkfront 1 1 true".parse::<Plan>().is_err());
    }

    #[test]
    fn workloads_are_said_in_the_words_of_the_load_program() {
        let all = Workload::all();
        assert_eq!(all.len(), 21);
        assert_eq!(all[5].words(1), "read random 4096 32 1920 1");
        assert_eq!(all[17].words(4), "write sequential 1048576 4 64 4");
        assert_eq!(all[17].to_string(), "1 MiB sequential write, depth 4");
        assert_eq!(
            (all[19].words(1), all[19].to_string()),
            ("read random 4096 32 7680 1".into(), "4 KiB random read, depth 32, 8 disks".into())
        );
        assert!(all[2].suits(4) && !all[1].suits(4) && !all[13].suits(4) && !all[19].suits(4) && all[19].suits(1));
    }
}
