//! The label: one sector that says that a disk is a physical volume, and where its metadata is.

use super::{Bad, Field, Id, SECTOR_BYTES, bytes_at, sum, u32_at, u64_at};

/// A label is in one of so many sectors from a disk's first on.
pub const LABEL_SECTORS: u64 = 4;
/// Metadata areas that `pvcreate --metadatacopies` makes at most.
pub const AREAS_MAX: usize = 2;
/// Where the checksummed part begins.
const SUMMED: usize = 20;
/// Bytes of the label's own header.
const HEADER_BYTES: usize = 32;
/// Bytes of the identifier and the disk's size, which the list of areas follows.
const VOLUME_BYTES: usize = 40;

/// Sectors of a disk that lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first.
    pub sector: u64,
    /// How many, at least 1; the end is a sector's number too.
    pub sectors: u64,
}

impl Span {
    /// From an area of bytes; the error is the field that is wrong.
    fn of(offset: u64, bytes: u64) -> Result<Span, Field> {
        let unit = SECTOR_BYTES as u64;
        if !offset.is_multiple_of(unit) {
            return Err(Field::Offset);
        }
        if bytes == 0 || !bytes.is_multiple_of(unit) || offset.checked_add(bytes).is_none() {
            return Err(Field::Length(bytes));
        }
        Ok(Span { sector: offset / unit, sectors: bytes / unit })
    }

    /// The first sector behind it.
    pub fn end(&self) -> u64 {
        // No overflow: both came from bytes that can be counted.
        self.sector + self.sectors
    }
}

/// A label that keeps the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// The physical volume's own number.
    pub id: Id,
    /// Bytes of the disk when the label was written.
    pub disk_bytes: u64,
    areas: [Option<Span>; AREAS_MAX],
}

impl Label {
    /// Reads the label in sector `number`; none if there is none of LVM2's.
    pub fn parse(sector: &[u8; SECTOR_BYTES], number: u64) -> Result<Option<Label>, Bad> {
        if sector[..8] != *b"LABELONE" || sector[24..HEADER_BYTES] != *b"LVM2 001" {
            return Ok(None);
        }
        Label::parse_ours(sector, number).map(Some).map_err(Bad::Label)
    }

    fn parse_ours(sector: &[u8; SECTOR_BYTES], number: u64) -> Result<Label, Field> {
        if u32_at(sector, 16) != sum(&sector[SUMMED..]) {
            return Err(Field::Checksum);
        }
        if u64_at(sector, 8) != number {
            return Err(Field::Misplaced);
        }
        let volume_at = u32_at(sector, 20) as usize;
        if !(HEADER_BYTES..=SECTOR_BYTES - VOLUME_BYTES).contains(&volume_at) {
            return Err(Field::Offset);
        }
        let volume = &sector[volume_at..];
        let id = Id::of(&bytes_at(volume, 0)).ok_or(Field::Id)?;
        let mut list = List { bytes: &volume[VOLUME_BYTES..] };
        // Where the data begins is said by the text, for each volume.
        while list.next()?.is_some() {}
        let mut areas = [None; AREAS_MAX];
        let mut places = areas.iter_mut();
        while let Some((offset, bytes)) = list.next()? {
            *places.next().ok_or(Field::Areas)? = Some(Span::of(offset, bytes)?);
        }
        Ok(Label { id, disk_bytes: u64_at(volume, 32), areas })
    }

    /// Its metadata areas, perhaps none. Whether they are within the disk is for the caller to see.
    pub fn areas(&self) -> impl Iterator<Item = Span> {
        self.areas.into_iter().flatten()
    }
}

/// Pairs of an offset and a length, the last all zero.
struct List<'a> {
    bytes: &'a [u8],
}

impl List<'_> {
    fn next(&mut self) -> Result<Option<(u64, u64)>, Field> {
        let (pair, rest) = self.bytes.split_at_checked(16).ok_or(Field::List)?;
        self.bytes = rest;
        let (offset, bytes) = (u64_at(pair, 0), u64_at(pair, 8));
        Ok((offset != 0).then_some((offset, bytes)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What `pvcreate --metadatacopies 2` of lvm2 2.03.16 wrote in sector 1 of a disk of 64 MiB; `pvck --dump headers`
    /// says of it: uuid A1dfNm..., device_size 67108864, areas of 1044480 bytes at 4096 and of 1048576 at 66060288.
    pub fn golden() -> [u8; 512] {
        let mut sector = [0; 512];
        sector[..8].copy_from_slice(b"LABELONE");
        sector[8] = 1;
        sector[16..24].copy_from_slice(&[0xa7, 0x49, 0xe1, 0xee, 0x20, 0, 0, 0]);
        sector[24..64].copy_from_slice(b"LVM2 001A1dfNmZKgGDiP01zDETx9dZtONLmAoal");
        for (at, value) in
            [(64, 67108864u64), (72, 1048576), (104, 4096), (112, 1044480), (120, 66060288), (128, 1048576)]
        {
            sector[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        sector[152] = 2;
        sector[156] = 1;
        sector
    }

    fn changed(at: usize, with: &[u8]) -> [u8; 512] {
        let mut sector = golden();
        sector[at..at + with.len()].copy_from_slice(with);
        let sum = sum(&sector[SUMMED..]);
        sector[16..20].copy_from_slice(&sum.to_le_bytes());
        sector
    }

    fn parse(sector: &[u8; 512]) -> Result<Option<Label>, Bad> {
        Label::parse(sector, 1)
    }

    #[test]
    fn a_golden_label() {
        let label = parse(&golden()).unwrap().unwrap();
        assert_eq!(Some(label.id), Id::parse("A1dfNm-ZKgG-DiP0-1zDE-Tx9d-ZtON-LmAoal"));
        assert_eq!(label.disk_bytes, 67108864);
        let areas = [Span { sector: 8, sectors: 2040 }, Span { sector: 129024, sectors: 2048 }];
        assert!(label.areas().eq(areas));
        assert_eq!(areas[1].end(), 131072);
    }

    #[test]
    fn every_byte_is_checked() {
        for byte in 0..512 {
            let mut sector = golden();
            sector[byte] ^= 0x40;
            let expected = match byte {
                0..8 | 24..32 => Ok(None),
                8..16 => Err(Bad::Label(Field::Misplaced)),
                _ => Err(Bad::Label(Field::Checksum)),
            };
            assert_eq!(parse(&sector), expected, "{byte}");
        }
        assert_eq!(Label::parse(&golden(), 2), Err(Bad::Label(Field::Misplaced)));
        assert_eq!(parse(&[0; 512]), Ok(None));
    }

    #[test]
    fn fields_that_cannot_be() {
        let wrong = |at, with: &[u8]| parse(&changed(at, with)).unwrap_err();
        for offset in [0u32, 31, 473, 512, u32::MAX] {
            assert_eq!(wrong(20, &offset.to_le_bytes()), Bad::Label(Field::Offset));
        }
        assert_eq!(wrong(40, b" "), Bad::Label(Field::Id));
        assert_eq!(wrong(104, &[1]), Bad::Label(Field::Offset));
        assert_eq!(wrong(112, &[1]), Bad::Label(Field::Length(1044481)));
        assert_eq!(wrong(112, &[0; 8]), Bad::Label(Field::Length(0)));
        assert_eq!(wrong(112, &(u64::MAX - 511).to_le_bytes()), Bad::Label(Field::Length(u64::MAX - 511)));
        assert_eq!(wrong(136, &changed(104, &[])[104..120]), Bad::Label(Field::Areas));
        assert_eq!(wrong(72, &[1; 440]), Bad::Label(Field::List));
        // No metadata on this volume: the list is empty.
        let without = parse(&changed(104, &[0; 32])).unwrap().unwrap();
        assert_eq!(without.areas().count(), 0);
    }
}
