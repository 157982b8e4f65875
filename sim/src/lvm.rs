//! LVM2's physical volumes: those that its own programs made (`fixtures/lvm`, with the script that made them and what lvm2
//! says of them), and ones written here from the documented format and not with the product's reading of it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::disk::Disk;

const SECTOR: usize = 512;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/lvm")
}

/// A disk that lvm2 made, `GROUP/DISK`.
pub fn fixture(name: &str) -> Disk {
    let bytes = fs::read(folder().join(name)).expect("a fixture");
    let (mut rest, mut runs) = (&bytes[..], Vec::<(u64, &[u8])>::new());
    loop {
        let word = |at: usize| u64::from_le_bytes(rest[at..at + 8].try_into().expect("eight bytes"));
        let (first, sectors) = (word(0), word(8));
        if sectors == 0 {
            let mut disk = Disk::new(first);
            runs.iter().for_each(|(at, run)| disk.write(*at, run));
            disk.flush();
            return disk;
        }
        let (run, behind) = rest[16..].split_at(sectors as usize * SECTOR);
        runs.push((first, run));
        rest = behind;
    }
}

/// What lvm2 said of a group, line by line and field by field: `lvs` or `pvs`.
pub fn said(name: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(folder().join(name)).expect("a fixture");
    text.lines().map(|line| line.split(';').map(str::to_string).collect()).collect()
}

/// lvm2's CRC-32, bit by bit: another beginning than usual, and nothing inverted.
pub fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xf597_a6cf, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

fn put(into: &mut [u8], at: usize, value: u64) {
    into[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// A label for sector `number`, with areas of metadata (first sector, sectors).
pub fn label(number: u64, id: &[u8; 32], disk_sectors: u64, areas: &[(u64, u64)]) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    sector[..8].copy_from_slice(b"LABELONE");
    put(&mut sector, 8, number);
    sector[20..32].copy_from_slice(b"\x20\0\0\0LVM2 001");
    sector[32..64].copy_from_slice(id);
    put(&mut sector, 64, disk_sectors.wrapping_mul(512));
    put(&mut sector, 72, 1 << 20);
    for (at, (first, sectors)) in (104..496).step_by(16).zip(areas) {
        put(&mut sector, at, first.wrapping_mul(512));
        put(&mut sector, at + 8, sectors.wrapping_mul(512));
    }
    let sum = crc(&sector[20..]);
    sector[16..20].copy_from_slice(&sum.to_le_bytes());
    sector
}

/// The header of an area (first sector, sectors) whose text begins at that byte of it.
pub fn header(area: (u64, u64), offset: u64, bytes: u64, checksum: u32, flags: u32) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    sector[4..20].copy_from_slice(b" LVM2 x[5A%r0N*>");
    sector[20] = 1;
    put(&mut sector, 24, area.0.wrapping_mul(512));
    put(&mut sector, 32, area.1.wrapping_mul(512));
    put(&mut sector, 40, offset);
    put(&mut sector, 48, bytes);
    put(&mut sector, 56, u64::from(checksum) | u64::from(flags) << 32);
    let sum = crc(&sector[4..]);
    sector[..4].copy_from_slice(&sum.to_le_bytes());
    sector
}

/// Makes a disk a physical volume with a text: the label in sector 1, one area from sector 8 to 2047.
pub fn write(disk: &mut Disk, id: &[u8; 32], text: &str) {
    let area = (8, 2040);
    let sectors = disk.sectors();
    disk.write(1, &label(1, id, sectors, &[area]));
    disk.write(area.0, &header(area, 512, text.len() as u64, crc(text.as_bytes()), 0));
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
    disk.write(area.0 + 1, &bytes);
    disk.flush();
}

/// A number as a text has it.
pub fn id(bytes: &[u8; 32]) -> String {
    let mut at = 0;
    let parts = [6, 4, 4, 4, 4, 4, 6].map(|length| {
        at += length;
        String::from_utf8_lossy(&bytes[at - length..at]).into_owned()
    });
    parts.join("-")
}

/// A group's text over one or more physical volumes, `pv0` and so on: extents of 64 sectors, 100 from sector 2048 on.
pub fn text(group: &str, id: &str, seqno: u32, physical: &[&str], volumes: &str) -> String {
    let physical: String = physical
        .iter()
        .zip(0..)
        .map(|(id, n)| format!("pv{n} {{\nid = \"{id}\"\npe_start = 2048\npe_count = 100\n}}\n"))
        .collect();
    format!(
        "{group} {{\nid = \"{id}\"\nseqno = {seqno}\nstatus = [\"READ\", \"WRITE\"]\nextent_size = 64\n\
         physical_volumes {{\n{physical}}}\nlogical_volumes {{\n{volumes}}}\n}}\n# end\n\0"
    )
}

/// A logical volume of a text.
pub fn volume(name: &str, count: u32, segments: &str) -> String {
    format!("{name} {{\nstatus = [\"READ\", \"WRITE\", \"VISIBLE\"]\nsegment_count = {count}\n{segments}}}\n")
}

/// A segment of a logical volume; `rest` is its type and where it lies.
pub fn segment(number: u32, start: u32, extents: u32, rest: &str) -> String {
    format!("segment{number} {{\nstart_extent = {start}\nextent_count = {extents}\n{rest}\n}}\n")
}
