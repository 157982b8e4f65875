//! Where an image's blocks are, for commands that move or measure them.

use drivers::disk::SECTOR_BYTES;
use protocol::vhd::{Batmap, Code, Footer, Header, UNUSED, bitmap_sectors};

use crate::disk::{load, save};
use crate::failure::Failure;
use crate::medium::Medium;

/// Sectors of the table that are read at once.
const TABLE_SECTORS: u64 = 512;
const WORDS: u32 = (SECTOR_BYTES / 4) as u32;

/// Sectors of a block with its bitmap.
pub fn stride(header: &Header) -> u64 {
    u64::from(bitmap_sectors(header.block_sectors)) + u64::from(header.block_sectors)
}

/// Reads the table: the blocks that are there, with where each begins.
///
/// # Errors
/// What the store says.
pub fn places(store: &impl Medium, header: &Header) -> Result<Vec<(u32, u32)>, Failure> {
    let (mut places, mut block, mut at) = (Vec::new(), 0, header.table_at);
    while block < header.entries {
        let sectors = TABLE_SECTORS.min(header.batmap_at() - at);
        for word in load(store, at, sectors)?.as_chunks().0 {
            let word = u32::from_be_bytes(*word);
            if word != UNUSED && block < header.entries {
                places.push((block, word));
            }
            block = block.saturating_add(1);
        }
        at += sectors;
    }
    Ok(places)
}

/// Writes words of the table. Blocks that are close to each other should come one after the other.
///
/// # Errors
/// What the store says.
pub fn set_places(store: &impl Medium, header: &Header, places: &[(u32, u32)]) -> Result<(), Failure> {
    for part in places.chunk_by(|one, other| one.0 / WORDS == other.0 / WORDS) {
        let at = header.table_at + u64::from(part[0].0 / WORDS);
        let mut sector = load(store, at, 1)?;
        for (block, place) in part {
            let word = (block % WORDS) as usize * 4;
            sector[word..word + 4].copy_from_slice(&place.to_be_bytes());
        }
        save(store, at, &sector)?;
    }
    Ok(())
}

/// The sector behind all blocks and all metadata, batmap apart.
pub fn data_end(header_at: u64, header: &Header, places: &[(u32, u32)]) -> u64 {
    let blocks = places.iter().map(|(_, at)| u64::from(*at) + stride(header)).max().unwrap_or(0);
    blocks.max(names_end(header)).max(header.batmap_at()).max(header_at + 2)
}

/// The sector behind the parent's names.
pub fn names_end(header: &Header) -> u64 {
    let used = header.locators.iter().filter(|locator| locator.code != Code::None);
    used.filter_map(|locator| locator.place().ok())
        .map(|(at, bytes)| at + bytes.div_ceil(SECTOR_BYTES) as u64)
        .max()
        .unwrap_or(0)
}

/// Sectors of a header.
pub const HEADER_SECTORS: u64 = 2;

/// Room for a header between the structures and blocks of an image, where nothing is; none if there is none.
///
/// # Errors
/// What the store says.
pub fn gap(store: &impl Medium, footer: &Footer, header: &Header) -> Result<Option<u64>, Failure> {
    let header_at = footer.header_at.unwrap_or(1);
    let mut used = vec![(0, 1), (header_at, header_at + HEADER_SECTORS), (header.table_at, header.batmap_at())];
    if footer.has_batmap() {
        let bytes = load(store, header.batmap_at(), 1)?;
        // One that is none may be mended, and has its room then.
        let batmap = Batmap::parse(bytes.first_chunk().expect("a sector"), header.entries);
        let batmap = batmap.unwrap_or_else(|_| Batmap::new(header.batmap_at(), header.entries));
        used.push((header.batmap_at(), header.batmap_at() + 1));
        used.push((batmap.at, batmap.at + u64::from(batmap.sectors)));
    }
    let names = header.locators.iter().filter(|locator| locator.code != Code::None);
    let names = names.filter_map(|locator| locator.place().ok());
    used.extend(names.map(|(at, bytes)| (at, at + bytes.div_ceil(SECTOR_BYTES) as u64)));
    let blocks = places(store, header)?;
    used.extend(blocks.iter().map(|(_, at)| (u64::from(*at), u64::from(*at) + stride(header))));
    used.push((store.info().sectors - 1, u64::MAX));
    used.sort_unstable();
    let mut free = 0;
    for (from, to) in used {
        if from >= free + HEADER_SECTORS {
            return Ok(Some(free));
        }
        free = free.max(to);
    }
    Ok(None)
}
