//! blktap's batmap: a bit for every block whose sectors are all written, so that its bitmap need not be read.
//!
//! It is a hint that blktap writes at close. It may be believed if the image was closed well; a block whose bit is
//! clear may be full all the same.

use super::{Bad, Field, SECTOR_BYTES, put, sector, u32_at, u64_at};

const COOKIE: [u8; 8] = *b"tdbatmap";
/// 1.2, what blktap writes.
const VERSION: u32 = 0x0001_0002;
/// The one before, whose checksum takes bytes as signed numbers.
const VERSION_SIGNED: u32 = 0x0001_0001;
const MARKER: usize = 28;
/// Where an encrypted image's hash of its key begins, with a byte that says whether there is one.
const KEY: usize = 29;

/// Sectors of a batmap for a block table of `entries`, the header not counted.
pub fn batmap_sectors(entries: u32) -> u64 {
    u64::from(entries).div_ceil(8 * SECTOR_BYTES as u64)
}

/// A batmap's header that keeps the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batmap {
    /// The first sector of the bits.
    pub at: u64,
    /// Sectors of the bits, at least [`batmap_sectors`] of the table's entries.
    pub sectors: u32,
    /// 1.1 or 1.2, or older.
    pub version: u32,
    /// What [`Sum`] has to give over all the sectors of the bits.
    pub checksum: u32,
    /// A byte for whoever wants one.
    pub marker: u8,
    /// The hash of a key: a byte that is not zero if there is one, then 32 of nonce and 32 of hash.
    pub key: [u8; 65],
}

impl Batmap {
    /// The header of a batmap that lies in the sector after it, itself at sector `header_at`, all bits clear.
    pub fn new(header_at: u64, entries: u32) -> Batmap {
        // At most 2^20.
        let sectors = batmap_sectors(entries) as u32;
        Batmap { at: header_at + 1, sectors, version: VERSION, checksum: u32::MAX, marker: 0, key: [0; 65] }
    }

    /// Reads the header of a batmap for `entries`.
    ///
    /// # Errors
    /// [`Bad::Batmap`], with the field. The bits were not looked at.
    pub fn parse(bytes: &[u8; SECTOR_BYTES], entries: u32) -> Result<Batmap, Bad> {
        fields(bytes, entries).map_err(Bad::Batmap)
    }

    /// The bytes of it.
    pub fn encode(&self) -> [u8; SECTOR_BYTES] {
        let mut bytes = [0; SECTOR_BYTES];
        put(&mut bytes, 0, &COOKIE);
        put(&mut bytes, 8, &(self.at * SECTOR_BYTES as u64).to_be_bytes());
        put(&mut bytes, 16, &self.sectors.to_be_bytes());
        put(&mut bytes, 20, &self.version.to_be_bytes());
        put(&mut bytes, 24, &self.checksum.to_be_bytes());
        put(&mut bytes, MARKER, &[self.marker]);
        put(&mut bytes, KEY, &self.key);
        bytes
    }

    /// Starts a checksum over the bits, in this version's way.
    pub fn sum(&self) -> Sum {
        Sum { sum: 0, signed: self.version == VERSION_SIGNED }
    }

    /// Whether the image is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.key[0] != 0
    }
}

fn fields(bytes: &[u8; SECTOR_BYTES], entries: u32) -> Result<Batmap, Field> {
    if bytes[..8] != COOKIE {
        return Err(Field::Cookie);
    }
    let version = u32_at(bytes, 20);
    if version > VERSION {
        return Err(Field::Version(version));
    }
    let at = sector(u64_at(bytes, 8)).filter(|at| *at > 0).ok_or(Field::Offset)?;
    let sectors = u32_at(bytes, 16);
    if u64::from(sectors) < batmap_sectors(entries).max(1) || at + u64::from(sectors) > super::REACH_SECTORS {
        return Err(Field::Length(sectors));
    }
    let key = super::bytes_at(bytes, KEY);
    Ok(Batmap { at, sectors, version, checksum: u32_at(bytes, 24), marker: bytes[MARKER], key })
}

/// The checksum of a batmap's bits, fed piece by piece.
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    sum: u32,
    signed: bool,
}

impl Sum {
    /// Feeds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let byte = if self.signed { byte.cast_signed() as u32 } else { u32::from(*byte) };
            self.sum = self.sum.wrapping_add(byte);
        }
    }

    /// The checksum.
    pub fn finish(self) -> u32 {
        !self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(entries: u32, changes: &[(usize, &[u8])]) -> Option<Field> {
        let mut bytes = Batmap::new(4, 33).encode();
        for (at, with) in changes {
            put(&mut bytes, *at, with);
        }
        match Batmap::parse(&bytes, entries) {
            Err(Bad::Batmap(field)) => Some(field),
            Err(other) => panic!("{other}"),
            Ok(_) => None,
        }
    }

    #[test]
    fn there_and_back() {
        let mut batmap = Batmap::new(8163, 0xff000);
        assert_eq!((batmap.at, batmap.sectors, batmap.is_encrypted()), (8164, 255, false));
        batmap.marker = 7;
        batmap.key = [9; 65];
        assert_eq!(Batmap::parse(&batmap.encode(), 0xff000), Ok(batmap));
        assert!(batmap.is_encrypted());
    }

    #[test]
    fn refused_by_name() {
        assert_eq!(field(4096, &[]), None);
        assert_eq!(field(4097, &[]), Some(Field::Length(1)));
        assert_eq!(field(0, &[(16, &[0; 4])]), Some(Field::Length(0)));
        assert_eq!(field(1, &[(16, &[0xff; 4])]), Some(Field::Length(u32::MAX)));
        assert_eq!(field(1, &[(0, b"T")]), Some(Field::Cookie));
        assert_eq!(field(1, &[(20, &[0, 1, 0, 3])]), Some(Field::Version(0x10003)));
        assert_eq!(field(1, &[(20, &[0, 1, 0, 1])]), None);
        for offset in [0, 100, u64::MAX, 0xffff_ffff * 512] {
            assert_eq!(field(1, &[(8, &offset.to_be_bytes())]), Some(Field::Offset));
        }
        assert_eq!(field(1, &[(8, &(0xffff_fffeu64 * 512).to_be_bytes())]), None);
    }

    #[test]
    fn sums() {
        let of = |version, bytes: &[u8]| {
            let mut sum = Batmap { version, ..Batmap::new(4, 33) }.sum();
            let (front, back) = bytes.split_at(bytes.len() / 2);
            sum.update(front);
            sum.update(back);
            sum.finish()
        };
        assert_eq!(of(VERSION, &[0; 512]), Batmap::new(4, 33).checksum);
        assert_eq!(of(VERSION, &[0x80, 1, 0xff]), !0x180);
        assert_eq!(of(VERSION_SIGNED, &[0x80, 1, 0xff]), !(-128i32 + 1 - 1).cast_unsigned());
    }
}
