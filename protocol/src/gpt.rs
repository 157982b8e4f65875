//! GUID partition tables (UEFI specification 2.10, chapter 5.3), read only.
//!
//! The caller reads sectors of 512 bytes; this says what they mean and where the next ones are. A header is at sector
//! 1, its copy at the disk's last. Partitions are numbered from 1, as everywhere on Linux.

use crc32fast::Hasher;

/// Bytes of a sector, the unit of all positions here.
const SECTOR_BYTES: usize = 512;
const HEADER_BYTES_MIN: u32 = 92;
/// Where a header's own checksum lies; it counts as zero.
const HEADER_CRC: usize = 16;
/// Bytes of an entry that have a meaning.
const ENTRY_BYTES_MIN: u32 = 128;
/// The most entries that a header may announce here; the usual number is 128.
pub const ENTRIES_MAX: u32 = 1024;

/// A globally unique number, in the byte order of the disk.
pub type Guid = [u8; 16];

/// What is wrong with a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// No GPT header here.
    Signature,
    /// Header or entry sizes that the specification forbids, or more entries than we take.
    Size,
    /// The header's checksum is wrong.
    HeaderChecksum,
    /// The entries' checksum is wrong.
    EntriesChecksum,
    /// The header says that it lies elsewhere.
    Misplaced,
    /// Something reaches outside the disk or its usable sectors, ends before it begins, or overlaps the table.
    Range,
}

/// A header that keeps the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The disk's own number.
    pub disk: Guid,
    /// Where the other copy of the header is said to be.
    pub other: u64,
    /// The first sector that a partition may use.
    pub usable_first: u64,
    /// The last one, inclusive.
    pub usable_last: u64,
    /// The first sector of the entries.
    pub entries_at: u64,
    /// Entries, used or not: 1 to [`ENTRIES_MAX`].
    pub entries: u32,
    /// Bytes of an entry: 128, 256 or 512, so that none spans two sectors.
    pub entry_bytes: u32,
    entries_crc: u32,
}

impl Header {
    /// Reads the header at sector `lba` of a disk of `disk_sectors`.
    pub fn parse(sector: &[u8; SECTOR_BYTES], lba: u64, disk_sectors: u64) -> Result<Header, Bad> {
        if sector[..8] != *b"EFI PART" {
            return Err(Bad::Signature);
        }
        check_own(sector)?;
        if u64_at(sector, 24) != lba {
            return Err(Bad::Misplaced);
        }
        let header = Header {
            disk: bytes_at(sector, 56),
            other: u64_at(sector, 32),
            usable_first: u64_at(sector, 40),
            usable_last: u64_at(sector, 48),
            entries_at: u64_at(sector, 72),
            entries: u32_at(sector, 80),
            entry_bytes: u32_at(sector, 84),
            entries_crc: u32_at(sector, 88),
        };
        header.check(lba, disk_sectors)?;
        Ok(header)
    }

    fn check(&self, lba: u64, disk_sectors: u64) -> Result<(), Bad> {
        let sized = (1..=ENTRIES_MAX).contains(&self.entries) && matches!(self.entry_bytes, 128 | 256 | 512);
        if !sized {
            return Err(Bad::Size);
        }
        let end = self.entries_at.checked_add(self.entries_sectors()).ok_or(Bad::Range)?;
        let usable = self.usable_first..=self.usable_last;
        let outside = end <= self.usable_first || self.entries_at > self.usable_last;
        let apart = outside && !usable.contains(&lba) && !(self.entries_at..end).contains(&lba);
        let inside = self.entries_at > 0 && end <= disk_sectors && self.usable_last < disk_sectors;
        if usable.is_empty() || !apart || !inside { Err(Bad::Range) } else { Ok(()) }
    }

    /// Sectors of the entries, the last perhaps not full: 1 to 1024.
    pub fn entries_sectors(&self) -> u64 {
        u64::from(self.entries_bytes()).div_ceil(SECTOR_BYTES as u64)
    }

    /// Bytes of the entries, which the checksum covers.
    fn entries_bytes(&self) -> u32 {
        // At most 1024 * 512.
        self.entries * self.entry_bytes
    }

    /// Where partition `number` (from 1) is described: the sector, and the byte in it; `None` if there is no such entry.
    pub fn place(&self, number: u32) -> Option<(u64, usize)> {
        let index = number.checked_sub(1).filter(|index| *index < self.entries)?;
        let byte = u64::from(index * self.entry_bytes);
        let sector = SECTOR_BYTES as u64;
        // No overflow: the entries lie on the disk.
        Some((self.entries_at + byte / sector, (byte % sector) as usize))
    }

    /// Starts to check the entries' checksum.
    pub fn checksum(&self) -> Checksum {
        Checksum { hasher: Hasher::new(), left: self.entries_bytes() as usize, expected: self.entries_crc }
    }
}

/// The checksum over the entries, fed sector by sector.
pub struct Checksum {
    hasher: Hasher,
    left: usize,
    expected: u32,
}

impl Checksum {
    /// Feeds the next bytes of the entries; what the last sector holds beyond them is not counted.
    pub fn update(&mut self, bytes: &[u8]) {
        let counted = &bytes[..bytes.len().min(self.left)];
        self.left -= counted.len();
        self.hasher.update(counted);
    }

    /// Whether all entries were fed and are what the header says; else [`Bad::EntriesChecksum`].
    pub fn finish(self) -> Result<(), Bad> {
        if self.left == 0 && self.hasher.finalize() == self.expected { Ok(()) } else { Err(Bad::EntriesChecksum) }
    }
}

/// One partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is for.
    pub kind: Guid,
    /// Its own number.
    pub id: Guid,
    /// The first sector.
    pub first: u64,
    /// The last sector, inclusive; not before the first.
    pub last: u64,
    /// Attribute bits.
    pub attributes: u64,
    name: [u8; 72],
}

impl Entry {
    /// Reads an entry from its bytes, [`Header::entry_bytes`] of them or at least 128; `None` if it is not in use.
    ///
    /// # Panics
    /// If `bytes` is shorter than that, which is our own length.
    pub fn parse(bytes: &[u8], header: &Header) -> Result<Option<Entry>, Bad> {
        let bytes = &bytes[..ENTRY_BYTES_MIN as usize];
        let kind = bytes_at(bytes, 0);
        if kind == [0; 16] {
            return Ok(None);
        }
        let (first, last) = (u64_at(bytes, 32), u64_at(bytes, 40));
        if first < header.usable_first || last < first || last > header.usable_last {
            return Err(Bad::Range);
        }
        let (id, attributes, name) = (bytes_at(bytes, 16), u64_at(bytes, 48), bytes_at(bytes, 56));
        Ok(Some(Entry { kind, id, first, last, attributes, name }))
    }

    /// Sectors of the partition, at least 1.
    pub fn sectors(&self) -> u64 {
        // No overflow: the last sector lies on a disk.
        self.last - self.first + 1
    }

    /// The name, up to 36 characters; what is not UTF-16 comes as U+FFFD.
    pub fn name(&self) -> impl Iterator<Item = char> {
        let units = self.name.as_chunks().0.iter().map(|unit| u16::from_le_bytes(*unit));
        char::decode_utf16(units.take_while(|unit| *unit != 0)).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
    }
}

/// Checks a header's size and checksum.
fn check_own(sector: &[u8; SECTOR_BYTES]) -> Result<(), Bad> {
    let bytes = u32_at(sector, 12);
    if !(HEADER_BYTES_MIN..=SECTOR_BYTES as u32).contains(&bytes) {
        return Err(Bad::Size);
    }
    let mut hasher = Hasher::new();
    hasher.update(&sector[..HEADER_CRC]);
    hasher.update(&[0; 4]);
    hasher.update(&sector[HEADER_CRC + 4..bytes as usize]);
    if hasher.finalize() == u32_at(sector, HEADER_CRC) { Ok(()) } else { Err(Bad::HeaderChecksum) }
}

fn bytes_at<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&from[at..at + N]);
    bytes
}

fn u32_at(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(from, at))
}

fn u64_at(from: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(from, at))
}
