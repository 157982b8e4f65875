//! Writing footers and headers, so that whatever a power cut leaves is an image.

use drivers::disk::SECTOR_BYTES;
use protocol::vhd::{Footer, Header, Kind};
use rustix::io::Errno;

use crate::disk::{load, on, save, sync};
use crate::failure::Failure;
use crate::layout::{HEADER_SECTORS, gap};
use crate::medium::Medium;

/// Where everybody has the header: behind the footer's copy.
pub const HOME: u64 = 1;

/// Writes both footers, the copy first: the one at the end is the one that readers look at.
///
/// # Errors
/// What the store says.
pub fn save_footer(store: &impl Medium, footer: &Footer) -> Result<(), Failure> {
    if footer.kind != Kind::Fixed {
        save(store, 0, &footer.encode())?;
        sync(store)?;
    }
    save(store, store.info().sectors - 1, &footer.encode())?;
    sync(store)
}

/// Writes a header. It has two sectors, of which a power cut may leave one, and its checksum is over both: where both change,
/// the new header is first written somewhere else and the footers name that place.
///
/// # Errors
/// What the store says; ENOSPC if there is no somewhere else.
pub fn save_header(store: &impl Medium, footer: &Footer, header: &Header) -> Result<(), Failure> {
    let at = footer.header_at.unwrap_or(HOME);
    let (old, new) = (load(store, at, HEADER_SECTORS)?, header.encode());
    let pairs = (at..).zip(old.chunks(SECTOR_BYTES).zip(new.chunks(SECTOR_BYTES)));
    let changes: Vec<_> = pairs.filter(|(_, (old, new))| old != new).map(|(at, (_, new))| (at, new)).collect();
    if let [] | [_] = changes[..] {
        changes.iter().try_for_each(|(at, sector)| save(store, *at, sector))?;
        return sync(store);
    }
    let end = store.info().sectors;
    let other = match gap(store, footer, header)? {
        Some(other) => other,
        None if store.is_device() => {
            let text = format_args!("{}: there is no room for a second header", store.path().display());
            return Err(Failure::new(Errno::NOSPC, text));
        }
        None => {
            // The footer that is there and one behind the room count both, whichever the file ends with.
            save(store, end + HEADER_SECTORS, &footer.encode())?;
            sync(store)?;
            end
        }
    };
    put_header(store, footer, other, &new)?;
    if other == HOME {
        return Ok(());
    }
    put_header(store, &Footer { header_at: Some(other), ..*footer }, at, &new)?;
    if store.info().sectors > end {
        store.set_sectors(end).map_err(|error| on(store, error))?;
        sync(store)?;
    }
    Ok(())
}

/// Puts a header where nothing is, and lets the footers say so.
///
/// # Errors
/// What the store says.
pub fn put_header(store: &impl Medium, footer: &Footer, at: u64, header: &[u8]) -> Result<(), Failure> {
    save(store, at, header)?;
    sync(store)?;
    save_footer(store, &Footer { header_at: Some(at), ..*footer })
}
