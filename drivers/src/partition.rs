//! GPT partitions of a lower disk: a name with a number becomes a run of sectors.

use alloc::format;
use protocol::errno::Errno;

use protocol::gpt::{Bad, Entry, Header};

use crate::disk::{Error, SECTOR_BYTES, Store};
use crate::target::{Lower, OpenError};

/// A run of a disk's sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first.
    pub start: u64,
    /// How many.
    pub sectors: u64,
}

enum Failed {
    Store(Error),
    Table(Bad),
    /// The table has no such partition.
    None,
}

impl From<Bad> for Failed {
    fn from(bad: Bad) -> Self {
        Failed::Table(bad)
    }
}

/// Finds partition `number` by the table at the disk's head, or by its copy at the end if that one is damaged.
pub async fn find<D: Store>(disk: &D, lower: &Lower, number: u32) -> Result<Extent, OpenError> {
    let last = disk.info().sectors.saturating_sub(1);
    let found = match look(disk, 1, number).await {
        Err(Failed::Table(_)) => look(disk, last, number).await,
        found => found,
    };
    found.map_err(|failed| match failed {
        Failed::Store(error) => OpenError::new(Errno::EIO, format!("{lower}: reading the partition table: {error}")),
        Failed::Table(bad) => {
            OpenError::new(Errno::EINVAL, format!("{lower}: the partition table is damaged: {bad:?}"))
        }
        Failed::None => OpenError::new(Errno::ENOENT, format!("{lower}: no such partition")),
    })
}

async fn look<D: Store>(disk: &D, at: u64, number: u32) -> Result<Extent, Failed> {
    let header = Header::parse(&sector(disk, at).await?, at, disk.info().sectors)?;
    let (entry_at, offset) = header.place(number).ok_or(Failed::None)?;
    let (mut checksum, mut entry) = (header.checksum(), None);
    let mut left = header.entries as usize * header.entry_bytes as usize;
    for at in header.entries_at..header.entries_at + header.entries_sectors() {
        let bytes = sector(disk, at).await?;
        let used = left.min(SECTOR_BYTES);
        checksum.update(&bytes[..used]);
        left -= used;
        if at == entry_at {
            entry = Entry::parse(&bytes[offset..offset + header.entry_bytes as usize], &header)?;
        }
    }
    checksum.finish()?;
    let entry = entry.ok_or(Failed::None)?;
    Ok(Extent { start: entry.first, sectors: entry.sectors() })
}

async fn sector<D: Store>(disk: &D, at: u64) -> Result<[u8; SECTOR_BYTES], Failed> {
    let mut bytes = [0; SECTOR_BYTES];
    disk.load(at, &mut bytes).await.map_err(Failed::Store)?;
    Ok(bytes)
}
