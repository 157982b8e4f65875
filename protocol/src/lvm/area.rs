//! A metadata area: a header of one sector, and a ring of texts behind it.

use super::label::Span;
use super::{Bad, Field, SECTOR_BYTES, sum, u32_at, u64_at};

/// The longest text that is read. A volume of one segment takes about 350 bytes of it.
pub const TEXT_BYTES_MAX: u64 = 4 << 20;
const MAGIC: &[u8; 16] = b" LVM2 x[5A%r0N*>";
/// The area is there to be used later, and what it holds is old.
const IGNORED: u32 = 1;

/// The text that a header points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    /// Where in the ring it begins, in bytes from the area's first.
    offset: u64,
    /// Bytes of it, at most [`TEXT_BYTES_MAX`] and what the ring holds.
    pub bytes: u64,
    /// Its checksum.
    pub checksum: u32,
    area: Span,
}

impl Text {
    /// Where on the disk its bytes from `done` on are, and how many of them lie together; none at its end.
    pub fn place(&self, done: u64) -> Option<(u64, u64)> {
        let left = self.bytes.checked_sub(done).filter(|left| *left > 0)?;
        let (start, end) = (self.area.sector * SECTOR_BYTES as u64, self.area.sectors * SECTOR_BYTES as u64);
        let at = self.offset + done;
        // No overflow: all of it lies within the area, and the area's end can be counted in bytes.
        Some(match at < end {
            true => (start + at, left.min(end - at)),
            false => (start + at - end + SECTOR_BYTES as u64, left),
        })
    }
}

/// A header that keeps the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The text as it is now; none if the volume is in no group, or the area is not used.
    pub text: Option<Text>,
}

impl Header {
    /// Reads the header of an area from its first sector.
    pub fn parse(sector: &[u8; SECTOR_BYTES], area: Span) -> Result<Header, Bad> {
        Header::parse_text(sector, area).map(|text| Header { text }).map_err(Bad::Area)
    }

    fn parse_text(sector: &[u8; SECTOR_BYTES], area: Span) -> Result<Option<Text>, Field> {
        if sector[4..20] != *MAGIC {
            return Err(Field::Magic);
        }
        if u32_at(sector, 0) != sum(&sector[4..]) {
            return Err(Field::Checksum);
        }
        match u32_at(sector, 20) {
            1 => {}
            version => return Err(Field::Version(version)),
        }
        let unit = SECTOR_BYTES as u64;
        let size = u64_at(sector, 32);
        if u64_at(sector, 24) != area.sector * unit {
            return Err(Field::Misplaced);
        }
        if size != area.sectors * unit {
            return Err(Field::Length(size));
        }
        // The first of four is what was committed; the second is only what is being written.
        let (offset, bytes) = (u64_at(sector, 40), u64_at(sector, 48));
        if offset == 0 || u32_at(sector, 60) & IGNORED != 0 {
            return Ok(None);
        }
        if !(unit..size).contains(&offset) {
            return Err(Field::Offset);
        }
        if bytes == 0 || bytes > TEXT_BYTES_MAX.min(size - unit) {
            return Err(Field::Length(bytes));
        }
        Ok(Some(Text { offset, bytes, checksum: u32_at(sector, 56), area }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: Span = Span { sector: 8, sectors: 2040 };

    /// What lvm2 2.03.16 wrote; `pvck --dump headers` says of it: offset 5632, size 1867, checksum 0x893da4c4.
    fn golden() -> [u8; 512] {
        let mut sector = [0; 512];
        sector[..4].copy_from_slice(&0xf6e2_861fu32.to_le_bytes());
        sector[4..20].copy_from_slice(MAGIC);
        sector[20] = 1;
        for (at, value) in [(24, 4096u64), (32, 1044480), (40, 5632), (48, 1867), (56, 0x893d_a4c4)] {
            sector[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        sector
    }

    fn changed(changes: &[(usize, u64)]) -> [u8; 512] {
        let mut sector = golden();
        for (at, value) in changes {
            sector[*at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let sum = sum(&sector[4..]);
        sector[..4].copy_from_slice(&sum.to_le_bytes());
        sector
    }

    fn parse(changes: &[(usize, u64)]) -> Result<Option<Text>, Bad> {
        Header::parse(&changed(changes), AREA).map(|header| header.text)
    }

    #[test]
    fn a_golden_header() {
        let text = Header::parse(&golden(), AREA).unwrap().text.unwrap();
        assert_eq!((text.offset, text.bytes, text.checksum), (5632, 1867, 0x893d_a4c4));
        assert_eq!(text.place(0), Some((9728, 1867)));
        assert_eq!(text.place(1866), Some((11594, 1)));
        assert_eq!((text.place(1867), text.place(u64::MAX)), (None, None));
    }

    #[test]
    fn every_byte_is_checked() {
        for byte in 0..512 {
            let mut sector = golden();
            sector[byte] ^= 0x40;
            let field = if (4..20).contains(&byte) { Field::Magic } else { Field::Checksum };
            assert_eq!(Header::parse(&sector, AREA), Err(Bad::Area(field)), "{byte}");
        }
    }

    #[test]
    fn a_text_goes_on_behind_the_header() {
        let text = parse(&[(40, 1044480 - 100), (48, 300)]).unwrap().unwrap();
        assert_eq!(text.place(0), Some((4096 + 1044480 - 100, 100)));
        assert_eq!(text.place(99), Some((4096 + 1044480 - 1, 1)));
        assert_eq!(text.place(100), Some((4096 + 512, 200)));
        assert_eq!(text.place(299), Some((4096 + 512 + 199, 1)));
        assert_eq!(text.place(300), None);
        // The whole ring, from its middle.
        let text = parse(&[(40, 5632), (48, 1043968)]).unwrap().unwrap();
        assert_eq!(text.place(1038848), Some((4608, 5120)));
    }

    #[test]
    fn fields_that_cannot_be() {
        let wrong = |at, value| match parse(&[(at, value)]) {
            Err(Bad::Area(field)) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(wrong(20, 2), Field::Version(2));
        assert_eq!(wrong(24, 4608), Field::Misplaced);
        assert_eq!(wrong(32, 512), Field::Length(512));
        for offset in [1, 511, 1044480, u64::MAX] {
            assert_eq!(wrong(40, offset), Field::Offset);
        }
        for bytes in [0, 1043969, u64::MAX] {
            assert_eq!(wrong(48, bytes), Field::Length(bytes));
        }
        assert_eq!(parse(&[(40, 0)]), Ok(None));
        assert_eq!(parse(&[(56, 1 << 32)]), Ok(None), "an area that is not used");
        let large = Span { sector: 8, sectors: 1 << 20 };
        let header = |bytes| Header::parse(&changed(&[(32, 512 << 20), (48, bytes)]), large);
        assert!(header(TEXT_BYTES_MAX).is_ok());
        assert_eq!(header(TEXT_BYTES_MAX + 1), Err(Bad::Area(Field::Length(TEXT_BYTES_MAX + 1))));
    }
}
