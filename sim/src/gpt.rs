//! A GUID partition table, written from the UEFI specification (2.10, chapter 5.3) and not with the product's reading
//! of it: four entries, at both ends of a disk.

use crate::disk::Disk;

const SECTOR: usize = 512;
const ENTRY: usize = 128;

/// CRC-32 as the specification has it, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

/// Writes a table with these partitions, each its first sector and its length; at most four.
pub fn write(disk: &mut Disk, partitions: &[(u64, u64)]) {
    let last = disk.sectors() - 1;
    let mut entries = [0; SECTOR];
    for (entry, (first, sectors)) in entries.chunks_mut(ENTRY).zip(partitions) {
        entry[..32].fill(0x5a);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&(first + sectors - 1).to_le_bytes());
    }
    for (at, other, entries_at) in [(1, last, 2), (last, 1, last - 1)] {
        let mut header = [0; SECTOR];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"EFI PART");
        put(8, &0x0001_0000u32.to_le_bytes());
        put(12, &92u32.to_le_bytes());
        put(24, &u64::to_le_bytes(at));
        put(32, &u64::to_le_bytes(other));
        put(40, &3u64.to_le_bytes());
        put(48, &(last - 2).to_le_bytes());
        put(56, &[0x11; 16]);
        put(72, &u64::to_le_bytes(entries_at));
        put(80, &4u32.to_le_bytes());
        put(84, &(ENTRY as u32).to_le_bytes());
        put(88, &crc(&entries).to_le_bytes());
        let sum = crc(&header[..92]);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        disk.write(at, &header);
        disk.write(entries_at, &entries);
    }
    disk.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_usual_one() {
        assert_eq!(crc(b"123456789"), 0xcbf4_3926);
    }
}
