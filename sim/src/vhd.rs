//! VHD read a second time, apart from the product's reading: by the specification alone, slowly and with every rule
//! checked. What an image on a disk is to another program.

/// A sector's bytes.
const SECTOR: usize = 512;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn sum(bytes: &[u8], own: usize) -> u32 {
    !bytes
        .iter()
        .enumerate()
        .filter(|(at, _)| !(own..own + 4).contains(at))
        .map(|(_, byte)| u32::from(*byte))
        .sum::<u32>()
}

/// An image that keeps the rules.
#[derive(Debug)]
pub struct Image {
    /// Sectors of the disk.
    pub sectors: usize,
    /// Sectors of a block.
    pub block: usize,
    /// Where each block begins.
    pub table: Vec<Option<usize>>,
    /// Whether there is an image below.
    pub differencing: bool,
    /// Whether the footer at the end is there too.
    pub footer: bool,
}

/// Reads an image's structures and says what is wrong with them.
pub fn check(bytes: &[u8]) -> Result<Image, String> {
    let end = &bytes[bytes.len() - SECTOR..];
    let is_footer = |raw: &[u8]| &raw[..8] == b"conectix" && u32_at(raw, 64) == sum(&raw[..SECTOR], 64);
    if !is_footer(bytes) {
        return Err("the footer's copy is none".into());
    }
    let footer = is_footer(end);
    if footer && end != &bytes[..SECTOR] {
        return Err("the footer is not its copy".into());
    }
    let kind = u32_at(bytes, 60);
    let sectors = u64_at(bytes, 48) as usize / SECTOR;
    let header = &bytes[u64_at(bytes, 16) as usize..][..1024];
    if &header[..8] != b"cxsparse" || u32_at(header, 36) != sum(header, 36) {
        return Err("the header is none".into());
    }
    let block = u32_at(header, 32) as usize / SECTOR;
    let (table_at, entries) = (u64_at(header, 16) as usize, u32_at(header, 28) as usize);
    if entries * block < sectors {
        return Err("the table is too short".into());
    }
    let batmap_at = (table_at + entries * 4).next_multiple_of(SECTOR);
    let batmap = &bytes[batmap_at..][..SECTOR];
    if &batmap[..8] != b"tdbatmap" {
        return Err("no batmap where blktap has it".into());
    }
    let full = &bytes[u64_at(batmap, 8) as usize..][..u32_at(batmap, 16) as usize * SECTOR];
    let mut metadata = u64_at(batmap, 8) as usize / SECTOR + u32_at(batmap, 16) as usize;
    for locator in header[576..].chunks(24).take(8).filter(|locator| u32_at(locator, 0) != 0) {
        metadata = metadata.max((u64_at(locator, 16) as usize + u32_at(locator, 8) as usize).div_ceil(SECTOR));
    }
    let bitmap = block.div_ceil(8 * SECTOR);
    let mut used = vec![false; bytes.len() / SECTOR];
    used[..metadata].fill(true);
    used[bytes.len() / SECTOR - 1] = true;
    let mut table = Vec::new();
    for number in 0..entries {
        let at = u32_at(bytes, table_at + number * 4);
        if at == u32::MAX {
            table.push(None);
            continue;
        }
        let at = at as usize;
        let Some(room) = used.get_mut(at..at + bitmap + block) else {
            return Err(format!("block {number} at {at} ends outside"));
        };
        if room.iter().any(|used| *used) {
            return Err(format!("block {number} at {at} lies on something else"));
        }
        room.fill(true);
        if !(at + bitmap).is_multiple_of(8) {
            return Err(format!("block {number} at {at} is not aligned"));
        }
        let bits = &bytes[at * SECTOR..][..block.div_ceil(8)];
        if full[number / 8] & 0x80 >> (number % 8) != 0 && bits.iter().any(|byte| *byte != 0xff) {
            return Err(format!("block {number} is said to be full"));
        }
        table.push(Some(at));
    }
    if u32_at(batmap, 24) != !full.iter().map(|byte| u32::from(*byte)).sum::<u32>() {
        return Err("the batmap's checksum".into());
    }
    Ok(Image { sectors, block, table, differencing: kind == 4, footer })
}

/// Leaves a child with one name of its parent, the header's, and makes it this one.
pub fn rename_parent(bytes: &mut [u8], name: &str) {
    let header = &mut bytes[SECTOR..3 * SECTOR];
    header[64..].fill(0);
    for (to, from) in header[64..576].chunks_mut(2).zip(name.encode_utf16()) {
        to.copy_from_slice(&from.to_be_bytes());
    }
    let checksum = sum(header, 36);
    header[36..40].copy_from_slice(&checksum.to_be_bytes());
}

/// Notes a block as full in blktap's map of full blocks, as tapdisk does when all of its sectors are written.
pub fn note_full(bytes: &mut [u8], block: usize) {
    let header = u64_at(bytes, 16) as usize;
    let (table_at, entries) = (u64_at(bytes, header + 16) as usize, u32_at(bytes, header + 28) as usize);
    let batmap_at = (table_at + entries * 4).next_multiple_of(SECTOR);
    let (at, length) = (u64_at(bytes, batmap_at + 8) as usize, u32_at(bytes, batmap_at + 16) as usize * SECTOR);
    bytes[at + block / 8] |= 0x80 >> (block % 8);
    let checksum = !bytes[at..at + length].iter().map(|byte| u32::from(*byte)).sum::<u32>();
    bytes[batmap_at + 24..batmap_at + 28].copy_from_slice(&checksum.to_be_bytes());
}

/// Whether blktap's map says that a block is full.
pub fn is_full(bytes: &[u8], block: usize) -> bool {
    let header = u64_at(bytes, 16) as usize;
    let (table_at, entries) = (u64_at(bytes, header + 16) as usize, u32_at(bytes, header + 28) as usize);
    let batmap_at = (table_at + entries * 4).next_multiple_of(SECTOR);
    bytes[u64_at(bytes, batmap_at + 8) as usize + block / 8] & 0x80 >> (block % 8) != 0
}

/// One sector of a chain, leaf first; none is zeroes. A reader that takes `whole` blocks does not look at the bitmap of an
/// image with no parent, as QEMU's does.
pub fn sector<'a>(layers: &[(&'a [u8], &Image)], sector: usize, whole: bool) -> Option<&'a [u8]> {
    for (bytes, image) in layers {
        let (number, inside) = (sector / image.block, sector % image.block);
        let Some(Some(at)) = image.table.get(number).filter(|_| sector < image.sectors) else { continue };
        let set = bytes[at * SECTOR + inside / 8] & 0x80 >> (inside % 8) != 0;
        if set || whole && !image.differencing {
            return Some(&bytes[(at + image.block.div_ceil(8 * SECTOR) + inside) * SECTOR..][..SECTOR]);
        }
    }
    None
}
