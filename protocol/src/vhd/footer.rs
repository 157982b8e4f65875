//! The footer: what the disk is, how large, and who made it.

use super::{Bad, Field, Id, SECTOR_BYTES, bytes_at, checksum, put, sector, u16_at, u32_at, u64_at};

/// What a footer begins with.
pub const COOKIE: [u8; 8] = *b"conectix";
/// What it begins with while vhd-util resizes the image.
const POISON: [u8; 8] = *b"v_poison";
/// Creator of blktap's images, and of ours: every reader takes the current size of these.
pub const TAP: [u8; 4] = *b"tap\0";
/// The version that blktap writes and the newest that it opens for writing, 1.3.
pub const TAP_VERSION: u32 = 0x0001_0003;
/// The largest disk that cylinders, heads and sectors can count; geometry of larger disks says this too.
pub const CHS_SECTORS_MAX: u64 = 65535 * 16 * 255;

const VERSION: u32 = 0x0001_0000;
/// A bit that the specification wants set in every image.
const FEATURES: u32 = 2;
const CHECKSUM: usize = 64;
const HIDDEN: usize = 85;
/// Where a fixed disk says that its header is.
const NOWHERE: u64 = u64::MAX;

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All data in one piece, as in a raw image.
    Fixed = 2,
    /// Blocks that come as they are written.
    Dynamic = 3,
    /// The same, above a parent.
    Differencing = 4,
}

/// A disk's shape for a PC's firmware of old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads, at most 16 in what the specification computes.
    pub heads: u8,
    /// Sectors of a track.
    pub sectors: u8,
}

impl Geometry {
    /// Sectors of such a disk.
    pub fn count(&self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors)
    }
}

/// The geometry of a disk of `sectors`, as the specification's appendix computes it: never more than there are.
pub fn geometry(sectors: u64) -> Geometry {
    // No overflow: the largest is 267382800.
    let total = sectors.min(CHS_SECTORS_MAX) as u32;
    let (mut heads, mut track) = (16, 255);
    if total < 65535 * 16 * 63 {
        track = 17;
        heads = (total / track).div_ceil(1024).max(4);
        if total / track >= heads * 1024 || heads > 16 {
            (heads, track) = (16, 31);
        }
        if total / track >= heads * 1024 {
            track = 63;
        }
    }
    Geometry { cylinders: (total / track / heads) as u16, heads: heads as u8, sectors: track as u8 }
}

/// A footer that keeps the rules.
///
/// # How large the disk is
/// Two fields say it, and who made the image decides which one counts. Its readers agree on these:
///
/// | creator | what counts |
/// |---|---|
/// | `tap\0` blktap, `win ` Windows, `d2v ` Disk2vhd, `CTXS` XenConverter, `qem2` QEMU with `force_size`, `wa\0\0` Azure | current size |
/// | `vpc ` Virtual PC, `vs  ` Virtual Server, `qemu` QEMU | geometry, if it is not the largest possible, [`CHS_SECTORS_MAX`] |
/// | anyone else | current size |
///
/// blktap takes the current size for everybody. QEMU takes geometry for "anyone else".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Feature bits: 2 in every image, 1 for one that may be deleted.
    pub features: u32,
    /// Where the [`Header`](super::Header) is: a sector after the copy of this, of a [`Kind::Fixed`] disk `None`.
    pub header_at: Option<u64>,
    /// Seconds since the year 2000, UTC.
    pub timestamp: u32,
    /// Who made the image.
    pub creator: [u8; 4],
    /// Its version, 16 bits before the point and 16 after.
    pub creator_version: u32,
    /// What it ran on; blktap says 0.
    pub creator_host: u32,
    /// Bytes of the disk when it was made.
    pub original_bytes: u64,
    /// Bytes of the disk now.
    pub current_bytes: u64,
    /// The disk's shape.
    pub geometry: Geometry,
    /// What the image is.
    pub kind: Kind,
    /// The image's own number; a child names its parent by it.
    pub id: Id,
    /// A virtual machine's state was saved with it: 1, else 0. Kept as it is found.
    pub saved: u8,
    /// blktap's mark for an image that is a part of a chain and no disk of its own: 1, else 0. Kept as it is found.
    pub hidden: u8,
}

impl Footer {
    /// A footer as we write it: for a disk of `sectors` (at most 2^55, which is no limit in practice).
    pub fn new(kind: Kind, sectors: u64, id: Id, timestamp: u32) -> Footer {
        let bytes = sectors.saturating_mul(SECTOR_BYTES as u64);
        Footer {
            features: FEATURES,
            header_at: (kind != Kind::Fixed).then_some(1),
            timestamp,
            creator: TAP,
            creator_version: TAP_VERSION,
            creator_host: 0,
            original_bytes: bytes,
            current_bytes: bytes,
            geometry: geometry(sectors),
            kind,
            id,
            saved: 0,
            hidden: 0,
        }
    }

    /// Reads a footer, or the copy of one.
    ///
    /// # Errors
    /// [`Bad::Footer`], with the field. The disk's size is at least 1 sector afterwards, and not more than the format
    /// can hold if the image has a block table.
    pub fn parse(bytes: &[u8; SECTOR_BYTES]) -> Result<Footer, Bad> {
        check(bytes).and_then(|()| fields(bytes)).map_err(Bad::Footer)
    }

    /// The bytes of it, with the checksum.
    pub fn encode(&self) -> [u8; SECTOR_BYTES] {
        let mut bytes = [0; SECTOR_BYTES];
        let header_at = self.header_at.map_or(NOWHERE, |at| at * SECTOR_BYTES as u64);
        put(&mut bytes, 0, &COOKIE);
        put(&mut bytes, 8, &self.features.to_be_bytes());
        put(&mut bytes, 12, &VERSION.to_be_bytes());
        put(&mut bytes, 16, &header_at.to_be_bytes());
        put(&mut bytes, 24, &self.timestamp.to_be_bytes());
        put(&mut bytes, 28, &self.creator);
        put(&mut bytes, 32, &self.creator_version.to_be_bytes());
        put(&mut bytes, 36, &self.creator_host.to_be_bytes());
        put(&mut bytes, 40, &self.original_bytes.to_be_bytes());
        put(&mut bytes, 48, &self.current_bytes.to_be_bytes());
        put(&mut bytes, 56, &self.geometry.cylinders.to_be_bytes());
        put(&mut bytes, 58, &[self.geometry.heads, self.geometry.sectors]);
        put(&mut bytes, 60, &(self.kind as u32).to_be_bytes());
        put(&mut bytes, 68, &self.id);
        put(&mut bytes, 84, &[self.saved, self.hidden]);
        let sum = checksum(&bytes, CHECKSUM);
        put(&mut bytes, CHECKSUM, &sum.to_be_bytes());
        bytes
    }

    /// Sectors of the disk, at least 1, as its creator's own reader counts them; see the table above.
    pub fn sectors(&self) -> u64 {
        let (shape, current) = (self.geometry.count(), self.current_bytes / SECTOR_BYTES as u64);
        let by_shape = matches!(&self.creator, b"vpc " | b"vs  " | b"qemu");
        if by_shape && shape != CHS_SECTORS_MAX && shape != 0 { shape } else { current }
    }

    /// Whether blktap made it, or we did.
    pub fn is_tap(&self) -> bool {
        self.creator[..3] == TAP[..3]
    }

    /// Whether an image with this footer has a [`Batmap`](super::Batmap); blktap's 1.1 may lack it.
    pub fn has_batmap(&self) -> bool {
        self.is_tap() && self.kind != Kind::Fixed && self.creator_version > 0x0001_0001
    }
}

/// Checks what makes a footer one.
fn check(bytes: &[u8; SECTOR_BYTES]) -> Result<(), Field> {
    if bytes[..8] != COOKIE {
        return Err(match bytes {
            _ if bytes[1..9] == COOKIE => Field::Short,
            _ if bytes[..8] == POISON => Field::Journal,
            _ => Field::Cookie,
        });
    }
    let (sum, said) = (checksum(bytes, CHECKSUM), u32_at(bytes, CHECKSUM));
    // blktap 0.1 and 1.1 set the hidden mark and left the checksum as it was.
    let marked = bytes[28..31] == TAP[..3] && matches!(u32_at(bytes, 32), 1 | 0x0001_0001);
    if sum != said && !(marked && sum.wrapping_add(u32::from(bytes[HIDDEN])) == said) {
        return Err(Field::Checksum);
    }
    match u32_at(bytes, 12) {
        VERSION => Ok(()),
        other => Err(Field::Version(other)),
    }
}

fn fields(bytes: &[u8; SECTOR_BYTES]) -> Result<Footer, Field> {
    let kind = match u32_at(bytes, 60) {
        2 => Kind::Fixed,
        3 => Kind::Dynamic,
        4 => Kind::Differencing,
        other => return Err(Field::Kind(other)),
    };
    let header_at = match kind {
        Kind::Fixed => None,
        _ => Some(sector(u64_at(bytes, 16)).filter(|at| *at > 0).ok_or(Field::Offset)?),
    };
    let footer = Footer {
        features: u32_at(bytes, 8),
        header_at,
        timestamp: u32_at(bytes, 24),
        creator: bytes_at(bytes, 28),
        creator_version: u32_at(bytes, 32),
        creator_host: u32_at(bytes, 36),
        original_bytes: u64_at(bytes, 40),
        current_bytes: u64_at(bytes, 48),
        geometry: Geometry { cylinders: u16_at(bytes, 56), heads: bytes[58], sectors: bytes[59] },
        kind,
        id: bytes_at(bytes, 68),
        saved: bytes[84],
        hidden: bytes[HIDDEN],
    };
    match footer.sectors() {
        0 => Err(Field::Size),
        sectors if kind != Kind::Fixed && sectors > super::REACH_SECTORS => Err(Field::Size),
        _ if kind != Kind::Fixed && footer.is_tap() && footer.creator_version == 1 => Err(Field::BitOrder),
        _ => Ok(footer),
    }
}

#[cfg(test)]
mod tests {
    use super::super::hex;
    use super::*;

    // Each is what qemu-img 7.2 wrote, and xxd printed.

    /// create -f vpc -o subformat=fixed, 1 MiB.
    const FIXED: &str = concat!(
        "636f6e65637469780000000200010000ffffffffffffffff329865b371656d75",
        "000500035769326b00000000001078000000000000107800001f041100000002",
        "ffffe5c0638b3f40b5914299ace32bc6fc5693af",
    );
    /// create -f vpc, 64 MiB.
    const DYNAMIC: &str = concat!(
        "636f6e656374697800000002000100000000000000000200329865b371656d75",
        "000500035769326b0000000004004000000000000400400003c4081100000003",
        "ffffee7ddb4028537d0c4f728584d36699e6ec29",
    );
    /// create -f vpc -o force_size=on, 2040 GiB.
    const FORCED: &str = concat!(
        "636f6e656374697800000002000100000000000000000200329865b371656d32",
        "000500035769326b000001fe00000000000001fe00000000ffff10ff00000003",
        "ffffeaf3d29eeb5769894a5185aa1721c9484cdd",
    );

    fn changed(from: &str, changes: &[(usize, &[u8])]) -> [u8; 512] {
        let mut bytes = hex(from);
        for (at, with) in changes {
            put(&mut bytes, *at, with);
        }
        let sum = checksum(&bytes, CHECKSUM);
        put(&mut bytes, CHECKSUM, &sum.to_be_bytes());
        bytes
    }

    fn field(from: &str, changes: &[(usize, &[u8])]) -> Option<Field> {
        match Footer::parse(&changed(from, changes)) {
            Err(Bad::Footer(field)) => Some(field),
            Err(other) => panic!("{other}"),
            Ok(_) => None,
        }
    }

    #[test]
    fn golden() {
        let fixed = Footer::parse(&hex(FIXED)).unwrap();
        assert_eq!((fixed.kind, fixed.header_at, fixed.sectors()), (Kind::Fixed, None, 31 * 4 * 17));
        // What qemu-img info says of the two: 67125248 and 2190433320960 bytes.
        let dynamic = Footer::parse(&hex(DYNAMIC)).unwrap();
        assert_eq!((dynamic.kind, dynamic.header_at, dynamic.sectors()), (Kind::Dynamic, Some(1), 67_125_248 / 512));
        assert_eq!((&dynamic.creator, dynamic.creator_version, dynamic.timestamp), (b"qemu", 0x50003, 0x3298_65b3));
        assert!(!dynamic.is_tap() && !dynamic.has_batmap(), "QEMU's versions are no versions of blktap");
        assert_eq!(dynamic.id, hex("db4028537d0c4f728584d36699e6ec29"));
        let forced = Footer::parse(&hex(FORCED)).unwrap();
        assert_eq!((&forced.creator, forced.sectors()), (b"qem2", 2_190_433_320_960 / 512));
        assert_eq!(forced.geometry.count(), CHS_SECTORS_MAX);
        for (text, footer) in [(FIXED, fixed), (DYNAMIC, dynamic), (FORCED, forced)] {
            assert_eq!(footer.encode(), hex::<512>(text));
        }
    }

    #[test]
    fn geometries() {
        let shape = |sectors| {
            let shape = geometry(sectors);
            assert!(shape.count() <= sectors);
            (shape.cylinders, shape.heads, shape.sectors)
        };
        for (sectors, expected) in [
            // What qemu-img 7.2 wrote (create -f vpc) for disks of these sizes, which are whole cylinders.
            (31 * 4 * 17, (31, 4, 17)),
            (964 * 8 * 17, (964, 8, 17)),
            (1023 * 4 * 17, (1023, 4, 17)),
            (1023 * 16 * 17, (1023, 16, 17)),
            (1023 * 16 * 31, (1023, 16, 31)),
            (65534 * 16 * 63, (65534, 16, 63)),
            (16191 * 16 * 255, (16191, 16, 255)),
            (65534 * 16 * 255, (65534, 16, 255)),
            (CHS_SECTORS_MAX, (65535, 16, 255)),
            // The appendix by hand, around its limits.
            (0, (0, 4, 17)),
            (1024 * 4 * 17 - 1, (1023, 4, 17)),
            (1024 * 4 * 17, (140, 16, 31)),
            (1024 * 4 * 17 + 17, (819, 5, 17)),
            (1024 * 16 * 17 - 1, (1023, 16, 17)),
            (1024 * 16 * 17, (561, 16, 31)),
            (1024 * 16 * 31 - 1, (1023, 16, 31)),
            (1024 * 16 * 31, (503, 16, 63)),
            (65535 * 16 * 63 - 1, (65534, 16, 63)),
            (65535 * 16 * 63, (16191, 16, 255)),
            (CHS_SECTORS_MAX - 1, (65534, 16, 255)),
            (u64::MAX, (65535, 16, 255)),
        ] {
            assert_eq!(shape(sectors), expected, "{sectors}");
        }
    }

    #[test]
    fn whose_size_counts() {
        let sectors = |creator: &[u8; 4], shape: &[u8; 4]| {
            Footer::parse(&changed(DYNAMIC, &[(28, creator), (56, shape)])).unwrap().sectors()
        };
        for creator in [b"tap\0", b"win ", b"d2v ", b"CTXS", b"qem2", b"wa\0\0", b"vbox", b"\0\0\0\0"] {
            assert_eq!(sectors(creator, &[0, 2, 3, 4]), 67_125_248 / 512);
        }
        for creator in [b"vpc ", b"vs  ", b"qemu"] {
            assert_eq!(sectors(creator, &[0, 2, 3, 4]), 24);
            assert_eq!(sectors(creator, &[0xff, 0xff, 16, 255]), 67_125_248 / 512);
            assert_eq!(sectors(creator, &[0, 2, 3, 0]), 67_125_248 / 512);
        }
    }

    #[test]
    fn ours() {
        for sectors in [1, 7, 4096, 1 << 31, (1 << 32) - 1] {
            for kind in [Kind::Fixed, Kind::Dynamic, Kind::Differencing] {
                let footer = Footer::new(kind, sectors, [7; 16], 9);
                assert_eq!(Footer::parse(&footer.encode()), Ok(footer));
                assert_eq!(footer.sectors(), sectors);
                assert_eq!(footer.has_batmap(), kind != Kind::Fixed);
            }
        }
    }

    #[test]
    fn every_byte_is_checked() {
        for byte in 0..512 {
            let mut bytes = hex(DYNAMIC);
            bytes[byte] ^= 0x40;
            assert!(Footer::parse(&bytes).is_err(), "{byte}");
        }
        let mut bytes = hex(DYNAMIC);
        bytes[400] = 1;
        assert_eq!(Footer::parse(&bytes), Err(Bad::Footer(Field::Checksum)));
    }

    #[test]
    fn refused_by_name() {
        assert_eq!(field(DYNAMIC, &[]), None);
        assert_eq!(field(DYNAMIC, &[(0, b"connectix")]), Some(Field::Cookie));
        assert_eq!(field(DYNAMIC, &[(0, b"\0conectix")]), Some(Field::Short));
        assert_eq!(field(DYNAMIC, &[(0, b"v_poison")]), Some(Field::Journal));
        assert_eq!(field(DYNAMIC, &[(12, &[0, 2, 0, 0])]), Some(Field::Version(0x20000)));
        for kind in [0, 1, 5, 6, 0xff] {
            assert_eq!(field(DYNAMIC, &[(63, &[kind])]), Some(Field::Kind(kind.into())));
        }
        for at in [0u64, 511, 513, u64::MAX, u64::MAX - 511, 0xffff_ffff * 512] {
            assert_eq!(field(DYNAMIC, &[(16, &at.to_be_bytes())]), Some(Field::Offset));
        }
        assert_eq!(field(DYNAMIC, &[(16, &(0xffff_fffeu64 * 512).to_be_bytes())]), None);
        assert_eq!(field(DYNAMIC, &[(56, &[0; 4]), (48, &511u64.to_be_bytes())]), Some(Field::Size));
        assert_eq!(field(DYNAMIC, &[(56, &[0; 4]), (48, &512u64.to_be_bytes())]), None);
        assert_eq!(field(FORCED, &[(48, &[0, 0, 2, 0])]), Some(Field::Size));
        assert_eq!(field(FORCED, &[(48, &(u64::MAX).to_be_bytes())]), Some(Field::Size));
        assert_eq!(field(FORCED, &[(48, &(u64::MAX).to_be_bytes()), (63, &[2])]), None);
        assert_eq!(field(FORCED, &[(28, b"tap\0"), (32, &[0, 0, 0, 1])]), Some(Field::BitOrder));
        assert_eq!(field(FORCED, &[(28, b"tap\0"), (32, &[0, 0, 0, 1]), (63, &[2])]), None);
    }

    #[test]
    fn hidden_without_the_checksum() {
        for (version, taken) in [(0x10001u32, true), (0x10002, false), (0x10003, false)] {
            let mut bytes = changed(FORCED, &[(28, b"tap\0"), (32, &version.to_be_bytes())]);
            bytes[HIDDEN] = 1;
            assert_eq!(Footer::parse(&bytes).map(|footer| footer.hidden).ok(), taken.then_some(1));
        }
    }
}
