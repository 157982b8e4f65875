//! What a guest asks of its disk: one [`Io`], or a seeded stream of them.

use crate::blkif::{SECTOR, op};
use crate::promise::own;
use crate::random::Random;

/// One request, as the guest's block layer means it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Io {
    /// Read a range.
    Read {
        /// Its first sector.
        sector: u64,
        /// Its length.
        sectors: u64,
    },
    /// Write a range.
    Write {
        /// Its first sector.
        sector: u64,
        /// Whole sectors.
        data: Vec<u8>,
    },
    /// Make what was answered durable.
    Flush,
    /// Make what was answered durable, then write a range: FLUSH_DISKCACHE with data.
    FlushWrite {
        /// Its first sector.
        sector: u64,
        /// Whole sectors.
        data: Vec<u8>,
    },
    /// Write a range after all that stands before it on the ring, and before all that stands behind: WRITE_BARRIER.
    Barrier {
        /// Its first sector.
        sector: u64,
        /// Whole sectors; none is a barrier alone.
        data: Vec<u8>,
    },
    /// Forget a range.
    Discard {
        /// Its first sector.
        sector: u64,
        /// Its length.
        sectors: u64,
    },
}

impl Io {
    /// Its operation in the protocol.
    pub fn op(&self) -> u8 {
        match self {
            Io::Read { .. } => op::READ,
            Io::Write { .. } => op::WRITE,
            Io::Flush | Io::FlushWrite { .. } => op::FLUSH,
            Io::Barrier { .. } => op::BARRIER,
            Io::Discard { .. } => op::DISCARD,
        }
    }

    /// The sectors it is about: first and how many.
    pub fn range(&self) -> (u64, u64) {
        match self {
            Io::Read { sector, sectors } | Io::Discard { sector, sectors } => (*sector, *sectors),
            Io::Write { sector, data } | Io::FlushWrite { sector, data } | Io::Barrier { sector, data } => {
                (*sector, (data.len() / SECTOR) as u64)
            }
            Io::Flush => (0, 0),
        }
    }

    /// Whether it changes what the range holds.
    pub fn changes(&self) -> bool {
        !matches!(self, Io::Read { .. } | Io::Flush)
    }

    /// Whether it says what is to be durable before its own data is.
    pub fn orders(&self) -> bool {
        matches!(self, Io::FlushWrite { .. } | Io::Barrier { .. })
    }

    /// What it writes.
    pub fn data(&self) -> Option<&[u8]> {
        match self {
            Io::Write { data, .. } | Io::FlushWrite { data, .. } | Io::Barrier { data, .. } => Some(data),
            _ => None,
        }
    }

    /// Whether the two may be under way at once with a result that a model can tell: no file system writes a block
    /// that it is reading.
    pub fn independent(&self, other: &Io) -> bool {
        let ((a, n), (b, m)) = (self.range(), other.range());
        let apart = a + n <= b || b + m <= a;
        apart || !(self.changes() || other.changes())
    }
}

/// Sectors of a request that cannot be indirect, however its segments are cut.
const ORDERED_MAX: u64 = 11;

/// A stream of requests.
#[derive(Clone, Debug)]
pub struct Workload {
    /// How many are still to come.
    pub left: u32,
    /// How many at once.
    pub depth: usize,
    /// The largest one, in sectors.
    pub sectors_max: u64,
    /// Writes among every 100.
    pub writes: u64,
    /// Flushes among every 100.
    pub flushes: u64,
    /// Discards among every 100.
    pub discards: u64,
    /// Barriers and flushes with data among every 100, in as many plain segments as there are: no Linux of today sends
    /// them to us, for we do not offer them.
    pub ordered: u64,
}

impl Workload {
    /// Half reads, half writes, now and then a flush or a discard.
    pub fn mixed(requests: u32) -> Self {
        Workload { left: requests, depth: 32, sectors_max: 256, writes: 45, flushes: 4, discards: 3, ordered: 0 }
    }

    /// Writes only: something is surely under way when the guest is destroyed.
    pub fn writing(requests: u32) -> Self {
        Workload { writes: 100, flushes: 0, discards: 0, ..Workload::mixed(requests) }
    }

    /// Reads only.
    pub fn reading(requests: u32) -> Self {
        Workload { writes: 0, flushes: 0, discards: 0, ..Workload::mixed(requests) }
    }

    /// The next request for a disk of that size, no longer than `longest`, with what it writes marked as of `owner`.
    pub(crate) fn next(&mut self, random: &mut Random, disk: u64, longest: u64, owner: u64) -> Io {
        let longest = longest.min(self.sectors_max).min(disk);
        // Small ones are as frequent as large ones; file systems like 8.
        let sectors = match random.below(4) {
            0 => random.between(1, longest.min(7)),
            1 => longest.min(8),
            _ => random.between(1, longest),
        };
        let last = disk - sectors;
        let sector = match random.below(16) {
            0 => 0,
            1 => last,
            _ => random.between(0, last),
        };
        let draw = random.below(100);
        if draw < self.writes {
            let mut data = vec![0; sectors as usize * SECTOR];
            random.fill_sectors(&mut data);
            own(&mut data, owner);
            Io::Write { sector, data }
        } else if draw < self.writes + self.flushes {
            Io::Flush
        } else if draw < self.writes + self.flushes + self.discards {
            Io::Discard { sector, sectors }
        } else if draw < self.writes + self.flushes + self.discards + self.ordered {
            let mut data = vec![0; sectors.min(ORDERED_MAX) as usize * SECTOR];
            random.fill_sectors(&mut data);
            match random.one_in(2) {
                true => Io::Barrier { sector, data },
                false => Io::FlushWrite { sector, data },
            }
        } else {
            Io::Read { sector, sectors }
        }
    }
}
