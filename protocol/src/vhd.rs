//! VHD images (Microsoft's Virtual Hard Disk Image Format Specification 1.0, and what blktap made of it): bytes to
//! structures and back.
//!
//! The caller reads and writes; this says what the bytes mean, where the next ones are, and what is wrong with them.
//! Numbers are big-endian. Positions are sectors of 512 bytes, but for a locator's length.
//!
//! # Layout of an image
//! A fixed disk is its data and then the footer. A dynamic or differencing disk is a copy of the [`Footer`] (sector 0),
//! the [`Header`] (two sectors), the block table ([`UNUSED`], or where a block's bitmap begins), blktap's [`Batmap`]
//! after it, the parents' names where the [`Locator`]s say, the blocks (bitmap, then data), and at the very end the
//! footer.
//!
//! # Layout
//! - [`footer`](Footer): what the disk is, how large, who made it
//! - [`header`](Header): where the table is, how large blocks are, who the parent is
//! - [`locator`](Locator): the parent's name, as text
//! - [`batmap`](Batmap): which blocks are full, as blktap notes at close
//! - [`bits`]: bitmaps, and how many bits at a time

use crate::bytes::big::{u16_at, u32_at, u64_at};
use crate::bytes::bytes_at;
use core::fmt;

mod batmap;
pub mod bits;
mod footer;
mod header;
mod locator;

pub use batmap::{Batmap, Sum, batmap_sectors};
pub use footer::{CHS_SECTORS_MAX, COOKIE, Footer, Geometry, Kind, TAP, TAP_VERSION, geometry};
pub use header::{Header, NAME_BYTES, bitmap_sectors, block_place, table_sectors};
pub use locator::{Code, LOCATOR_BYTES_MAX, Locator, Reason, TEXT_BYTES_MAX, file_name, locator_bytes, locator_text};

/// Bytes of a sector, the unit of all positions here.
pub const SECTOR_BYTES: usize = 512;
/// The block table's word for a block that is not there.
pub const UNUSED: u32 = u32::MAX;
/// What a block's bitmap and table entry can reach: sectors of an image, at most.
pub const REACH_SECTORS: u64 = UNUSED as u64;
/// Data begins at a multiple of so many sectors in what blktap and we write.
pub const ALIGN_SECTORS: u32 = 8;

/// An image's own number, in the byte order of the image; blktap and RFC 9562 print it in this order.
pub type Id = [u8; 16];

/// Which structure is wrong, and which field of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// The footer or its copy.
    Footer(Field),
    /// The header of a dynamic disk.
    Header(Field),
    /// A parent locator.
    Locator(Field),
    /// The batmap's header.
    Batmap(Field),
}

/// What is wrong with a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The structure is not here.
    Cookie,
    /// The footer of a version before 2004, 511 bytes long.
    Short,
    /// `v_poison`: vhd-util began to resize the image and did not end; `vhd-util revert` needs its journal.
    Journal,
    /// The checksum is wrong.
    Checksum,
    /// A version that the specification, or blktap for its own images, does not have.
    Version(u32),
    /// An image of blktap 0.1, whose bitmaps count bits from the other end.
    BitOrder,
    /// A position that is no multiple of 512 bytes, or nowhere.
    Offset,
    /// A kind of disk other than fixed, dynamic and differencing.
    Kind(u32),
    /// The disk is empty or cannot be reached by its block table.
    Size,
    /// A block size other than a power of two from 4 KiB to 64 MiB.
    BlockBytes(u32),
    /// The table's entries do not cover the disk, or reach too far.
    Entries(u32),
    /// A length of nothing, of more than we take, or of more than there is room for.
    Length(u32),
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (part, field) = match self {
            Bad::Footer(field) => ("footer", field),
            Bad::Header(field) => ("header", field),
            Bad::Locator(field) => ("parent locator", field),
            Bad::Batmap(field) => ("batmap", field),
        };
        write!(f, "VHD {part}: {field}")
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Field::Cookie => f.write_str("no such structure here (cookie)"),
            Field::Short => f.write_str("511 bytes long, as before 2004"),
            Field::Journal => f.write_str("an unfinished journal of vhd-util"),
            Field::Checksum => f.write_str("wrong checksum"),
            Field::Version(version) => write!(f, "version {}.{}", version >> 16, version & 0xffff),
            Field::BitOrder => f.write_str("bitmaps of blktap 0.1"),
            Field::Offset => f.write_str("offset out of place"),
            Field::Kind(kind) => write!(f, "disk type {kind}"),
            Field::Size => f.write_str("size out of range"),
            Field::BlockBytes(bytes) => write!(f, "block size of {bytes} bytes"),
            Field::Entries(entries) => write!(f, "block table of {entries} entries"),
            Field::Length(bytes) => write!(f, "length of {bytes} bytes"),
        }
    }
}

impl core::error::Error for Bad {}

/// The specification's checksum of a structure: the complement of the sum of its bytes, its own four as zero.
fn checksum(bytes: &[u8], own: usize) -> u32 {
    let own: u32 = bytes[own..own + 4].iter().map(|byte| u32::from(*byte)).sum();
    // At most 1024 * 255, and the four bytes are part of the sum.
    !(bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>() - own)
}

/// The sector of a byte offset, if it is one and a table word can say it.
fn sector(offset: u64) -> Option<u64> {
    let bytes = SECTOR_BYTES as u64;
    Some(offset / bytes).filter(|sector| offset.is_multiple_of(bytes) && *sector < REACH_SECTORS)
}

fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    into[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
fn hex<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    for (index, byte) in bytes[..text.len() / 2].iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[index * 2..][..2], 16).unwrap();
    }
    bytes
}
