//! GUID partition tables (UEFI specification 2.10, chapter 5.3), read only.
//!
//! The caller reads sectors of 512 bytes; this says what they mean and where the next ones are. A header is at sector
//! 1, its copy at the disk's last. Partitions are numbered from 1, as everywhere on Linux.

use crate::bytes::bytes_at;
use crate::bytes::little::{u32_at, u64_at};
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

#[cfg(test)]
mod tests {
    use std::string::String;

    use super::*;

    const DISK: u64 = 2048;
    const KIND: &str = "af3dc60f838472478e793d69d8477de4";

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        let mut bytes = [0; N];
        for (index, byte) in bytes[..hex.len() / 2].iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[index * 2..][..2], 16).unwrap();
        }
        bytes
    }

    // What sgdisk 1.0.9 wrote on a disk of 1 MiB, and xxd printed:
    // sgdisk -a 1 -n 3:100:1999 -c 3:tapdom -t 3:8300 -n 1:40:99 -c 1:'\u{e9}\u{1d11e}' -t 1:ef00 -A 1:set:2
    //        -U 11223344-5566-7788-99AA-BBCCDDEEFF00 -u 1:...0001 -u 3:...0003

    /// Sector 1.
    fn first() -> [u8; 512] {
        bytes(concat!(
            "4546492050415254000001005c000000b55ed6cb000000000100000000000000",
            "ff070000000000002200000000000000de070000000000004433221166558877",
            "99aabbccddeeff000200000000000000800000008000000026c1f16000000000",
        ))
    }

    /// Sector 2047.
    fn last() -> [u8; 512] {
        bytes(concat!(
            "4546492050415254000001005c000000be70a47800000000ff07000000000000",
            "01000000000000002200000000000000de070000000000004433221166558877",
            "99aabbccddeeff00df07000000000000800000008000000026c1f16000000000",
        ))
    }

    /// Sector 2; the entries' other sectors are zero.
    fn entries() -> [u8; 512] {
        let mut sector = [0; 512];
        sector[..128].copy_from_slice(&bytes::<128>(concat!(
            "28732ac11ff8d211ba4b00a0c93ec93b00000000000000000000000000000001",
            "280000000000000063000000000000000400000000000000e90034d81edd0000",
        )));
        sector[256..384].copy_from_slice(&bytes::<128>(concat!(
            "af3dc60f838472478e793d69d8477de400000000000000000000000000000003",
            "6400000000000000cf0700000000000000000000000000007400610070006400",
            "6f006d00",
        )));
        sector
    }

    /// The first header with some bytes changed, and the checksum made right again.
    fn changed(changes: &[(usize, &[u8])]) -> [u8; 512] {
        let mut sector = first();
        for (at, with) in changes {
            sector[*at..at + with.len()].copy_from_slice(with);
        }
        sector[16..20].fill(0);
        let length = (u32_at(&sector, 12) as usize).min(512);
        let crc = crc32fast::hash(&sector[..length]);
        sector[16..20].copy_from_slice(&crc.to_le_bytes());
        sector
    }

    #[test]
    fn golden_headers() {
        let header = Header::parse(&first(), 1, DISK).unwrap();
        assert_eq!(header.disk, bytes("443322116655887799aabbccddeeff00"));
        assert_eq!((header.other, header.usable_first, header.usable_last), (2047, 34, 2014));
        assert_eq!((header.entries_at, header.entries, header.entry_bytes), (2, 128, 128));
        assert_eq!(header.entries_sectors(), 32);
        let copy = Header::parse(&last(), 2047, DISK).unwrap();
        assert_eq!(copy, Header { other: 1, entries_at: 2015, ..header });
    }

    #[test]
    fn golden_checksum() {
        let header = Header::parse(&first(), 1, DISK).unwrap();
        let feed = |sectors, flipped: Option<usize>| {
            let mut checksum = header.checksum();
            for index in 0..sectors {
                let mut sector = if index == 0 { entries() } else { [0; 512] };
                if let Some(byte) = flipped.filter(|byte| byte / 512 == index) {
                    sector[byte % 512] ^= 1;
                }
                checksum.update(&sector[..200]);
                checksum.update(&sector[200..]);
            }
            checksum.finish()
        };
        assert_eq!(feed(32, None), Ok(()));
        assert_eq!(feed(33, None), Ok(()));
        assert_eq!(feed(31, None), Err(Bad::EntriesChecksum));
        for byte in [0, 56, 511, 512, 16383] {
            assert_eq!(feed(32, Some(byte)), Err(Bad::EntriesChecksum));
        }
        assert_eq!(feed(33, Some(16384)), Ok(()));
    }

    #[test]
    fn golden_entries() {
        let header = Header::parse(&first(), 1, DISK).unwrap();
        let read = |number| {
            let (sector, byte) = header.place(number)?;
            assert_eq!(sector, 2);
            Entry::parse(&entries()[byte..][..128], &header).unwrap()
        };
        let one = read(1).unwrap();
        assert_eq!((one.first, one.last, one.sectors(), one.attributes), (40, 99, 60, 4));
        assert_eq!(one.name().collect::<String>(), "\u{e9}\u{1d11e}");
        assert_eq!((read(2), read(4)), (None, None));
        let three = read(3).unwrap();
        assert_eq!((three.first, three.last, three.sectors(), three.attributes), (100, 1999, 1900, 0));
        assert_eq!((three.kind, three.id[15]), (bytes(KIND), 3));
        assert_eq!(three.name().collect::<String>(), "tapdom");
        assert_eq!(header.place(0), None);
        assert_eq!(header.place(5), Some((3, 0)));
        assert_eq!(header.place(128), Some((33, 384)));
        assert_eq!(header.place(129), None);
    }

    #[test]
    fn every_byte_is_checked() {
        for byte in 0..92 {
            let mut sector = first();
            sector[byte] ^= 0x40;
            assert!(Header::parse(&sector, 1, DISK).is_err(), "{byte}");
        }
        let mut sector = first();
        sector[16] ^= 1;
        assert_eq!(Header::parse(&sector, 1, DISK), Err(Bad::HeaderChecksum));
        assert_eq!(Header::parse(&first(), 2, DISK), Err(Bad::Misplaced));
        assert_eq!(Header::parse(&[0; 512], 1, DISK), Err(Bad::Signature));
    }

    #[test]
    fn sizes() {
        let parse = |at, value: u32| Header::parse(&changed(&[(at, &value.to_le_bytes())]), 1, DISK).map(|_| ());
        for fine in [92, 93, 512] {
            assert_eq!(parse(12, fine), Ok(()));
        }
        for wrong in [0, 91, 513, u32::MAX] {
            assert_eq!(parse(12, wrong), Err(Bad::Size));
        }
        // 128 entries of 128 bytes fill the room before the first usable sector.
        assert_eq!((parse(80, 1), parse(80, 129), parse(84, 256)), (Ok(()), Err(Bad::Range), Err(Bad::Range)));
        for wrong in [0, ENTRIES_MAX + 1, u32::MAX] {
            assert_eq!(parse(80, wrong), Err(Bad::Size));
        }
        for wrong in [0, 64, 127, 192, 1024, u32::MAX] {
            assert_eq!(parse(84, wrong), Err(Bad::Size));
        }
        let large = changed(&[(80, &16u32.to_le_bytes()), (84, &512u32.to_le_bytes())]);
        let header = Header::parse(&large, 1, DISK).unwrap();
        assert_eq!((header.entries_sectors(), header.place(16)), (16, Some((17, 0))));
        let odd = changed(&[(80, &5u32.to_le_bytes())]);
        assert_eq!(Header::parse(&odd, 1, DISK).unwrap().entries_sectors(), 2);
    }

    #[test]
    fn ranges() {
        let parse = |at, value: u64| Header::parse(&changed(&[(at, &value.to_le_bytes())]), 1, DISK).map(|_| ());
        let (usable_first, usable_last, entries_at) = (40, 48, 72);
        for (at, fine, wrong) in [
            (usable_first, [34, 35, 2014].as_slice(), [0, 1, 33, 2015, u64::MAX].as_slice()),
            (usable_last, &[34, 2047], &[0, 33, 2048, u64::MAX]),
            (entries_at, &[2, 2015, 2016], &[0, 1, 3, 34, 1000, 2014, 2017, u64::MAX - 31, u64::MAX]),
        ] {
            fine.iter().for_each(|value| assert_eq!(parse(at, *value), Ok(()), "{at} {value}"));
            wrong.iter().for_each(|value| assert_eq!(parse(at, *value), Err(Bad::Range), "{at} {value}"));
        }
        // A copy at the end whose entries would lie on the boot record and on the first header.
        let at_zero = changed(&[(24, &2047u64.to_le_bytes()), (entries_at, &0u64.to_le_bytes())]);
        assert_eq!(Header::parse(&at_zero, 2047, DISK), Err(Bad::Range));
        assert!(Header::parse(&first(), 1, 2015).is_ok());
        assert_eq!(Header::parse(&first(), 1, 2014), Err(Bad::Range));
    }

    #[test]
    fn entries_outside() {
        let header = Header::parse(&first(), 1, DISK).unwrap();
        let parse = |first: u64, last: u64| {
            let mut entry = bytes::<128>(KIND);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
            Entry::parse(&entry, &header).map(|entry| entry.unwrap().sectors())
        };
        assert_eq!(parse(34, 2014), Ok(1981));
        assert_eq!(parse(34, 34), Ok(1));
        for (first, last) in [(33, 40), (0, 0), (34, 2015), (40, 39), (u64::MAX, u64::MAX), (34, u64::MAX), (2014, 34)]
        {
            assert_eq!(parse(first, last), Err(Bad::Range));
        }
    }

    #[test]
    fn names_of_any_bytes() {
        let header = Header::parse(&first(), 1, DISK).unwrap();
        let mut entry = entries();
        entry[256 + 56..384].fill(0xd8);
        let entry = Entry::parse(&entry[256..], &header).unwrap().unwrap();
        assert_eq!(entry.name().collect::<String>(), "\u{fffd}".repeat(36));
    }
}
