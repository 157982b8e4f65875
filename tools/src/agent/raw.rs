//! Plain reads and writes of a disk, past the page cache: what is read is what the backend answered.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::OFlags;

use records::pattern;

/// One transfer. A multiple of every sector size in use.
const CHUNK: usize = 1 << 20;

/// Alignment that `O_DIRECT` is content with on every device.
const ALIGNMENT: usize = 4096;

/// A buffer whose usable part begins at an address that `O_DIRECT` takes.
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// So many bytes.
    pub fn new(length: usize) -> Aligned {
        let bytes = vec![0; length + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Aligned { bytes, start, length }
    }

    /// The bytes.
    pub fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

fn open(disk: &str, write: bool) -> Result<File> {
    direct(disk, write).with_context(|| format!("opening {disk}"))
}

fn direct(disk: &str, write: bool) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(write).custom_flags(OFlags::DIRECT.bits() as i32).open(disk)
}

fn chunks(offset: u64, length: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..length.div_ceil(CHUNK as u64)).map(move |index| {
        let at = index * CHUNK as u64;
        (offset + at, (length - at).min(CHUNK as u64) as usize)
    })
}

/// Writes the content of a seed to a range, then flushes it to the device.
pub fn write(disk: &str, offset: u64, length: u64, seed: u64) -> Result<()> {
    let file = open(disk, true)?;
    let mut buffer = Aligned::new(CHUNK);
    for (at, count) in chunks(offset, length) {
        pattern::fill(seed, at, &mut buffer.get()[..count]);
        file.write_all_at(&buffer.get()[..count], at)
            .with_context(|| format!("writing {count} bytes at {at} of {disk}"))?;
    }
    file.sync_data().with_context(|| format!("flushing {disk}"))
}

/// Reads a range and demands the content of a seed.
pub fn expect(disk: &str, offset: u64, length: u64, seed: u64) -> Result<()> {
    each_chunk(disk, offset, length, |at, bytes| {
        ensure!(
            pattern::difference(seed, at, bytes).is_none(),
            "{disk}: not what was written at byte {:?}",
            pattern::difference(seed, at, bytes)
        );
        Ok(())
    })
}

/// The CRC-32 of a range.
pub fn checksum(disk: &str, offset: u64, length: u64) -> Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    each_chunk(disk, offset, length, |_, bytes| {
        hasher.update(bytes);
        Ok(())
    })?;
    Ok(hasher.finalize())
}

fn each_chunk(disk: &str, offset: u64, length: u64, mut each: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let file = open(disk, false)?;
    let mut buffer = Aligned::new(CHUNK);
    for (at, count) in chunks(offset, length) {
        let bytes = &mut buffer.get()[..count];
        file.read_exact_at(bytes, at).with_context(|| format!("reading {count} bytes at {at} of {disk}"))?;
        each(at, bytes)?;
    }
    Ok(())
}

/// Writes bytes of whole sectors, then flushes them to the device. What went wrong is for the caller to judge.
pub fn put(disk: &str, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    let file = direct(disk, true)?;
    let mut buffer = Aligned::new(bytes.len());
    buffer.get().copy_from_slice(bytes);
    file.write_all_at(buffer.get(), offset)?;
    file.sync_data()
}

/// Reads whole sectors.
pub fn get(disk: &str, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut buffer = Aligned::new(length);
    direct(disk, false)?.read_exact_at(buffer.get(), offset)?;
    Ok(buffer.get().to_vec())
}

/// Demands that the disk takes no write: neither opening it for writing nor a write itself may succeed.
pub fn refused(disk: &str) -> Result<String> {
    let file = match open(disk, true) {
        Err(error) => return Ok(format!("opening it for writing: {:#}", error)),
        Ok(file) => file,
    };
    let mut buffer = Aligned::new(ALIGNMENT);
    match file.write_all_at(buffer.get(), 0) {
        Err(error) => Ok(format!("writing to it: {error}")),
        Ok(()) => bail!("{disk} took a write"),
    }
}

/// The size of a disk in bytes, as the block layer believes it.
pub fn size(disk: &str) -> Result<u64> {
    let name = disk.trim_start_matches("/dev/");
    let sectors = std::fs::read_to_string(format!("/sys/class/block/{name}/size"))
        .with_context(|| format!("{disk} is no disk here"))?;
    Ok(sectors.trim().parse::<u64>()? * 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_into_chunks_without_gaps() {
        assert_eq!(chunks(512, 0).count(), 0);
        let cut: Vec<_> = chunks(512, (2 * CHUNK + 512) as u64).collect();
        assert_eq!(cut, [(512, CHUNK), (512 + CHUNK as u64, CHUNK), (512 + 2 * CHUNK as u64, 512)]);
    }

    #[test]
    fn the_buffer_is_aligned() {
        let mut buffer = Aligned::new(8192);
        assert_eq!(buffer.get().as_ptr().align_offset(ALIGNMENT), 0);
        assert_eq!(buffer.get().len(), 8192);
    }
}
