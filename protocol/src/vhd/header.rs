//! The header of a dynamic or differencing disk, and where its blocks lie.

use super::locator::unicode_name;
use super::{
    ALIGN_SECTORS, Bad, Field, Id, Locator, REACH_SECTORS, Reason, SECTOR_BYTES, TEXT_BYTES_MAX, batmap_sectors,
    bytes_at, checksum, put, sector, u32_at, u64_at,
};

const COOKIE: [u8; 8] = *b"cxsparse";
const VERSION: u32 = 0x0001_0000;
const BYTES: usize = 2 * SECTOR_BYTES;
const CHECKSUM: usize = 36;
const NAME: usize = 64;
const LOCATORS: usize = 576;
/// Bytes of the parent's name, UTF-16BE.
pub const NAME_BYTES: usize = 512;
const BLOCK_BYTES_MIN: u32 = 4 << 10;
const BLOCK_BYTES_MAX: u32 = 64 << 20;

/// Sectors of a block table of `entries`, the last perhaps not full.
pub fn table_sectors(entries: u32) -> u64 {
    u64::from(entries).div_ceil((SECTOR_BYTES / 4) as u64)
}

/// Sectors of the bitmap before the data of a block of `block_sectors`.
pub const fn bitmap_sectors(block_sectors: u32) -> u32 {
    block_sectors.div_ceil(8 * SECTOR_BYTES as u32)
}

/// Where a new block goes if everything from `free` on is free: the first sector whose data is aligned as blktap
/// aligns it, or `None` if the block would end beyond what the table can say.
pub fn block_place(free: u64, block_sectors: u32) -> Option<u32> {
    let (bitmap, align) = (u64::from(bitmap_sectors(block_sectors)), u64::from(ALIGN_SECTORS));
    let data = free.checked_add(bitmap)?.checked_next_multiple_of(align)?;
    let end = data.checked_add(block_sectors.into())?;
    // Not above the bitmap that was added.
    u32::try_from(data - bitmap).ok().filter(|_| end <= REACH_SECTORS)
}

/// A header that keeps the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// A field without use, all ones in every image.
    pub next: u64,
    /// The first sector of the block table.
    pub table_at: u64,
    /// Entries of the block table: enough for the disk.
    pub entries: u32,
    /// Sectors of a block's data: a power of two, 8 to 131072.
    pub block_sectors: u32,
    /// The parent's own number; zero if there is none, or if the parent is a raw image.
    pub parent: Id,
    /// When the parent last changed, in seconds since 2000. blktap does not look at it.
    pub parent_timestamp: u32,
    /// The parent's name, UTF-16BE, zeroes after it; see [`Header::parent_name`].
    pub parent_name: [u8; NAME_BYTES],
    /// Where the parent's name is in the ways of other systems.
    pub locators: [Locator; 8],
}

impl Header {
    /// A header as we write it at sector 1, for a disk without a parent whose table follows it.
    pub fn new(entries: u32, block_sectors: u32) -> Header {
        Header {
            next: u64::MAX,
            table_at: 3,
            entries,
            block_sectors,
            parent: [0; 16],
            parent_timestamp: 0,
            parent_name: [0; NAME_BYTES],
            locators: [Locator::default(); 8],
        }
    }

    /// Reads the header of a disk of `disk_sectors`.
    ///
    /// # Errors
    /// [`Bad::Header`], with the field. Afterwards the table covers the disk, and it and a batmap after it lie below
    /// [`REACH_SECTORS`]; the locators are as they were found.
    pub fn parse(bytes: &[u8; BYTES], disk_sectors: u64) -> Result<Header, Bad> {
        fields(bytes, disk_sectors).map_err(Bad::Header)
    }

    /// The bytes of it, with the checksum.
    pub fn encode(&self) -> [u8; BYTES] {
        let sector_bytes = SECTOR_BYTES as u64;
        let mut bytes = [0; BYTES];
        put(&mut bytes, 0, &COOKIE);
        put(&mut bytes, 8, &self.next.to_be_bytes());
        put(&mut bytes, 16, &(self.table_at * sector_bytes).to_be_bytes());
        put(&mut bytes, 24, &VERSION.to_be_bytes());
        put(&mut bytes, 28, &self.entries.to_be_bytes());
        put(&mut bytes, 32, &(self.block_sectors * SECTOR_BYTES as u32).to_be_bytes());
        put(&mut bytes, 40, &self.parent);
        put(&mut bytes, 56, &self.parent_timestamp.to_be_bytes());
        put(&mut bytes, NAME, &self.parent_name);
        for (locator, into) in self.locators.iter().zip(bytes[LOCATORS..].as_chunks_mut().0) {
            *into = locator.encode();
        }
        let sum = checksum(&bytes, CHECKSUM);
        put(&mut bytes, CHECKSUM, &sum.to_be_bytes());
        bytes
    }

    /// Sectors of the block table.
    pub fn table_sectors(&self) -> u64 {
        table_sectors(self.entries)
    }

    /// Where blktap's batmap has its header: after the block table.
    pub fn batmap_at(&self) -> u64 {
        self.table_at + self.table_sectors()
    }

    /// Writes the parent's name to `into`, whose old text goes.
    ///
    /// # Errors
    /// What is wrong with the name; `into` is empty then.
    pub fn parent_name(&self, into: &mut heapless::String<TEXT_BYTES_MAX>) -> Result<(), Reason> {
        unicode_name(&self.parent_name, into)
    }

    /// Sets the parent's name.
    ///
    /// # Errors
    /// [`Reason::TooLong`], and nothing is changed.
    pub fn set_parent_name(&mut self, name: &str) -> Result<(), Reason> {
        let mut bytes = [0; NAME_BYTES];
        let mut units = bytes.as_chunks_mut().0.iter_mut();
        for unit in name.encode_utf16() {
            *units.next().ok_or(Reason::TooLong)? = unit.to_be_bytes();
        }
        self.parent_name = bytes;
        Ok(())
    }
}

fn fields(bytes: &[u8; BYTES], disk_sectors: u64) -> Result<Header, Field> {
    if bytes[..8] != COOKIE {
        return Err(Field::Cookie);
    }
    if checksum(bytes, CHECKSUM) != u32_at(bytes, CHECKSUM) {
        return Err(Field::Checksum);
    }
    if u32_at(bytes, 24) != VERSION {
        return Err(Field::Version(u32_at(bytes, 24)));
    }
    let block_bytes = u32_at(bytes, 32);
    if !block_bytes.is_power_of_two() || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_bytes) {
        return Err(Field::BlockBytes(block_bytes));
    }
    let block_sectors = block_bytes / SECTOR_BYTES as u32;
    let table_at = sector(u64_at(bytes, 16)).filter(|at| *at > 0).ok_or(Field::Offset)?;
    let entries = u32_at(bytes, 28);
    // No overflow: three numbers below 2^32.
    let end = table_at + table_sectors(entries) + 1 + batmap_sectors(entries);
    if u64::from(entries) < disk_sectors.div_ceil(block_sectors.into()) || end > REACH_SECTORS {
        return Err(Field::Entries(entries));
    }
    let mut locators = [Locator::default(); 8];
    for (locator, from) in locators.iter_mut().zip(bytes[LOCATORS..].as_chunks().0) {
        *locator = Locator::parse(from);
    }
    Ok(Header {
        next: u64_at(bytes, 8),
        table_at,
        entries,
        block_sectors,
        parent: bytes_at(bytes, 40),
        parent_timestamp: u32_at(bytes, 56),
        parent_name: bytes_at(bytes, NAME),
        locators,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Code, hex};
    use super::*;

    /// qemu-img 7.2, create -f vpc, 64 MiB; the rest is zero.
    const DYNAMIC: &str =
        concat!("6378737061727365ffffffffffffffff00000000000006000001000000000021", "00200000fffff456",);
    /// The same with force_size=on and 2040 GiB.
    const LARGE: &str =
        concat!("6378737061727365ffffffffffffffff000000000000060000010000000ff000", "00200000fffff378",);

    fn field(disk_sectors: u64, changes: &[(usize, &[u8])]) -> Option<Field> {
        let mut bytes = hex(DYNAMIC);
        for (at, with) in changes {
            put(&mut bytes, *at, with);
        }
        let sum = checksum(&bytes, CHECKSUM);
        put(&mut bytes, CHECKSUM, &sum.to_be_bytes());
        match Header::parse(&bytes, disk_sectors) {
            Err(Bad::Header(field)) => Some(field),
            Err(other) => panic!("{other}"),
            Ok(_) => None,
        }
    }

    #[test]
    fn golden() {
        let header = Header::parse(&hex(DYNAMIC), 67_125_248 / 512).unwrap();
        assert_eq!(header, Header::new(33, 4096));
        assert_eq!(header.encode(), hex::<1024>(DYNAMIC));
        assert_eq!((header.table_sectors(), header.batmap_at()), (1, 4));
        let large = Header::parse(&hex(LARGE), 2_190_433_320_960 / 512).unwrap();
        assert_eq!((large.entries, large.table_sectors()), (0xff000, 8160));
        assert_eq!(large.encode(), hex::<1024>(LARGE));
    }

    #[test]
    fn a_child() {
        let mut header = Header::new(7, 4096);
        header.parent = [3; 16];
        header.parent_timestamp = 5;
        header.set_parent_name("b\u{e4}se \u{1d11e}").unwrap();
        header.locators[2] = Locator { code: Code::W2ru, space: 512, length: 22, offset: 4096 };
        let again = Header::parse(&header.encode(), 7 * 4096).unwrap();
        assert_eq!(again, header);
        assert_eq!(again.parent_name[..4], [0, b'b', 0, 0xe4]);
        let mut name = heapless::String::new();
        assert_eq!(again.parent_name(&mut name), Ok(()));
        assert_eq!(name, "b\u{e4}se \u{1d11e}");
        assert_eq!(header.set_parent_name(&"n".repeat(256)), Ok(()));
        assert_eq!(header.parent_name(&mut name).map(|()| name.len()), Ok(256));
        let before = header;
        assert_eq!(header.set_parent_name(&"n".repeat(257)), Err(Reason::TooLong));
        assert_eq!(header, before);
    }

    #[test]
    fn every_byte_is_checked() {
        for byte in 0..1024 {
            let mut bytes = hex(DYNAMIC);
            bytes[byte] ^= 0x10;
            assert!(Header::parse(&bytes, 1).is_err(), "{byte}");
        }
    }

    #[test]
    fn refused_by_name() {
        assert_eq!(field(33 * 4096, &[]), None);
        assert_eq!(field(33 * 4096 + 1, &[]), Some(Field::Entries(33)));
        assert_eq!(field(u64::MAX, &[]), Some(Field::Entries(33)));
        assert_eq!(field(1, &[(0, b"C")]), Some(Field::Cookie));
        assert_eq!(field(1, &[(24, &[0, 1, 0, 1])]), Some(Field::Version(0x10001)));
        for bytes in [0, 512, 2048, 4095, 4097, 3 << 20, 128 << 20, u32::MAX] {
            assert_eq!(field(1, &[(32, &bytes.to_be_bytes())]), Some(Field::BlockBytes(bytes)));
        }
        for bytes in [4096, 1 << 21, 64 << 20] {
            assert_eq!(field(1, &[(32, &u32::to_be_bytes(bytes))]), None);
        }
        for offset in [0, 1, 1535, u64::MAX, 0xffff_ffff * 512] {
            assert_eq!(field(1, &[(16, &offset.to_be_bytes())]), Some(Field::Offset));
        }
        // A table sector, a batmap header and a batmap sector.
        assert_eq!(field(1, &[(16, &(0xffff_fffc * 512u64).to_be_bytes())]), None);
        assert_eq!(field(1, &[(16, &(0xffff_fffd * 512u64).to_be_bytes())]), Some(Field::Entries(33)));
        assert_eq!(field(1, &[(28, &[0xff; 4])]), None);
        assert_eq!(field(1, &[(28, &[0; 4])]), Some(Field::Entries(0)));
    }

    #[test]
    fn places() {
        assert_eq!(
            (bitmap_sectors(8), bitmap_sectors(4096), bitmap_sectors(4097), bitmap_sectors(1 << 17)),
            (1, 1, 2, 32)
        );
        // blktap's blocks of 2 MiB lie 4104 sectors apart.
        assert_eq!((block_place(4, 4096), block_place(7, 4096), block_place(8, 4096)), (Some(7), Some(7), Some(15)));
        assert_eq!(block_place(7 + 4097, 4096), Some(7 + 4104));
        for free in 0..40 {
            for block_sectors in [8, 4096, 8192, 1 << 17] {
                let place = block_place(free, block_sectors).unwrap();
                assert!((u64::from(place)) >= free && u64::from(place) < free + 8);
                assert_eq!((place + bitmap_sectors(block_sectors)) % 8, 0);
            }
        }
        let last = REACH_SECTORS - 4097;
        assert!(block_place(last - 7, 4096).is_some());
        assert_eq!(block_place(last, 4096), None);
        assert_eq!(block_place(u64::MAX, 4096), None);
        assert_eq!((table_sectors(0), table_sectors(128), table_sectors(129)), (0, 1, 2));
        assert_eq!(table_sectors(u32::MAX), 1 << 25);
    }
}
