//! Making an image: empty, on nothing or on a parent.

use alloc::format;

use protocol::errno::Errno;
use protocol::vhd::{
    Batmap, Code, Footer, Header, Id, Kind, Locator, REACH_SECTORS, SECTOR_BYTES, batmap_sectors, bitmap_sectors,
    file_name, locator_bytes, table_sectors,
};

use super::layer::blocks_end;
use super::slots::Slots;
use crate::disk::{Error, Op, Store};
use crate::target::OpenError;

/// Sectors of a block as everybody makes them: 2 MiB.
pub const BLOCK_SECTORS: u32 = 4096;
/// Bytes written at once.
const CHUNK_BYTES: usize = 32 << 10;

/// What an image is to be.
#[derive(Clone, Copy, Debug)]
pub struct New<'a> {
    /// Its own number.
    pub id: Id,
    /// Sectors of the disk.
    pub sectors: u64,
    /// When, in seconds since 2000.
    pub timestamp: u32,
    /// What it is.
    pub form: Form<'a>,
}

/// What an image may be.
#[derive(Clone, Copy, Debug)]
pub enum Form<'a> {
    /// All sectors are there, zeroes.
    Fixed,
    /// Blocks of so many sectors come when they are written; a power of two from 8 to 131072.
    Dynamic(u32),
    /// The same on top of another image.
    Differencing(u32, Parent<'a>),
}

/// What an image knows of the one below it.
#[derive(Clone, Copy, Debug)]
pub struct Parent<'a> {
    /// Its number; zeroes if it is no VHD.
    pub id: Id,
    /// When it was changed last, in seconds since 2000.
    pub timestamp: u32,
    /// Its name in the place where both are: no path.
    pub name: &'a str,
}

/// Makes an image on a store, whatever was there. Until it is whole there is none. Of the old content nothing can be read
/// through it.
pub async fn make<S: Store>(store: &S, name: &str, new: &New<'_>) -> Result<(), OpenError> {
    let failed = |error: Error| OpenError::new(error.errno(), format!("{name}: {error}"));
    let bad = |why: &str| OpenError::new(Errno::EINVAL, format!("{name}: {why}"));
    if new.sectors == 0 {
        return Err(bad("a disk of nothing"));
    }
    let last = store.info().sectors.saturating_sub(1);
    let (block_sectors, parent) = match new.form {
        Form::Fixed => {
            let footer = Footer::new(Kind::Fixed, new.sectors, new.id, new.timestamp);
            let footer_at = if store.info().grows { new.sectors } else { last };
            if new.sectors > footer_at {
                return Err(full(name, new.sectors + 1, store.info().sectors));
            }
            let whole = async {
                store.zero(0, new.sectors).await?;
                store.submit(Op::Flush, 0).await?;
                store.save(footer_at, &footer.encode()).await?;
                store.submit(Op::Flush, 0).await
            };
            return whole.await.map_err(failed);
        }
        Form::Dynamic(block_sectors) => (block_sectors, None),
        Form::Differencing(block_sectors, parent) => (block_sectors, Some(parent)),
    };
    if !block_sectors.is_power_of_two() || !(8..=131_072).contains(&block_sectors) {
        return Err(bad("blocks must be a power of two from 4 KiB to 64 MiB"));
    }
    let entries = u32::try_from(new.sectors.div_ceil(block_sectors.into())).ok();
    let Some(entries) = entries.filter(|_| new.sectors < REACH_SECTORS) else {
        return Err(bad("a disk of 2 TiB or more is too large for a VHD with blocks"));
    };
    let mut header = Header::new(entries, block_sectors);
    let batmap = Batmap::new(header.batmap_at(), entries);
    let mut at = batmap.at + batmap_sectors(entries);
    let mut texts = heapless::Vec::<_, 3>::new();
    if let Some(parent) = parent {
        let name = file_name(parent.name).ok_or_else(|| bad("its parent's name is none that an image can have"))?;
        header.parent = parent.id;
        header.parent_timestamp = parent.timestamp;
        header.set_parent_name(name).map_err(|why| bad(&format!("its parent's name: {why:?}")))?;
        for (locator, code) in header.locators.iter_mut().zip([Code::Macx, Code::W2ku, Code::W2ru]) {
            let text = locator_bytes(code, name).map_err(|why| bad(&format!("its parent's name: {why:?}")))?;
            *locator = Locator::new(code, text.len() as u32, at);
            let sectors = text.len().div_ceil(SECTOR_BYTES) as u64;
            let pushed = texts.push((at, text));
            debug_assert!(pushed.is_ok(), "three names");
            at += sectors;
        }
    }
    let end = Slots::new(at, blocks_end(&store.info()), bitmap_sectors(block_sectors), block_sectors).data_end();
    if !store.info().grows && end > last {
        return Err(full(name, end + 1, last + 1));
    }
    let kind = if parent.is_some() { Kind::Differencing } else { Kind::Dynamic };
    let footer = Footer::new(kind, new.sectors, new.id, new.timestamp);
    let whole = async {
        // What was here is no image any more, before anything of it changes.
        store.zero(0, 1).await?;
        if !store.info().grows {
            store.zero(last, 1).await?;
        }
        store.submit(Op::Flush, 0).await?;
        store.save(1, &header.encode()).await?;
        let unused = [0xff; CHUNK_BYTES];
        let (mut table_at, mut left) = (header.table_at, table_sectors(entries) as usize);
        while left > 0 {
            let here = left.min(CHUNK_BYTES / SECTOR_BYTES);
            store.save(table_at, &unused[..here * SECTOR_BYTES]).await?;
            (table_at, left) = (table_at + here as u64, left - here);
        }
        store.save(header.batmap_at(), &batmap.encode()).await?;
        store.zero(batmap.at, batmap_sectors(entries)).await?;
        for (at, text) in &texts {
            let mut sectors = alloc::vec![0; text.len().next_multiple_of(SECTOR_BYTES)];
            sectors[..text.len()].copy_from_slice(text);
            store.save(*at, &sectors).await?;
        }
        store.submit(Op::Flush, 0).await?;
        let footer_at = if store.info().grows { end } else { last };
        store.save(footer_at, &footer.encode()).await?;
        store.save(0, &footer.encode()).await?;
        store.submit(Op::Flush, 0).await
    };
    whole.await.map_err(failed)
}

fn full(name: &str, needs: u64, has: u64) -> OpenError {
    OpenError::new(Errno::ENOSPC, format!("{name}: it needs {needs} sectors and has {has}"))
}
