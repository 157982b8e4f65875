//! Making a disk larger. Whatever a power cut leaves on the way is an image: of the old size or of the new one, perhaps
//! with a footer to be mended from its copy, or with a batmap that is none.

use std::path::Path;

use drivers::disk::SECTOR_BYTES;
use embassy_futures::block_on;
use protocol::vhd::{
    Batmap, Code, Footer, Header, Kind, Locator, REACH_SECTORS, batmap_sectors, block_place, geometry,
};
use protocol::vhd::{Sum, table_sectors};
use serde_json::json;

use super::Answer;
use crate::check::{Options, Who, check};
use crate::disk::{image, load, on, save, sync};
use crate::failure::Failure;
use crate::layout::{data_end, names_end, places, set_places, stride};
use crate::medium::Medium;
use crate::progress::Progress;
use crate::store::{Access, FileStore};
use crate::structures::{save_footer, save_header};

pub(super) fn resize(path: &Path, size: u64) -> Result<Answer, Failure> {
    let bytes = to_size(&FileStore::open(path, Access::Write)?, size)?;
    Ok(Answer::new("", json!({"image": path.display().to_string(), "size": bytes})))
}

/// Makes the disk that large, up to whole sectors, and returns its bytes.
///
/// # Errors
/// What the store says; ENOSPC if it is too small; EINVAL for an image that is not sound or would become smaller.
pub fn to_size(store: &impl Medium, size: u64) -> Result<u64, Failure> {
    let path = store.path();
    let invalid = |why: &str| Failure::invalid(format_args!("{}: {why}", path.display()));
    let report = check(store, Options::default())?;
    if let Some(finding) = report.findings.iter().find(|finding| finding.who == Who::Everyone) {
        return Err(invalid(&format!("it has to be sound first: {finding}")));
    }
    let its = image(store)?;
    let (sectors, old) = (size.div_ceil(SECTOR_BYTES as u64), its.footer.sectors());
    if sectors < old {
        return Err(invalid("a disk is not made smaller"));
    }
    let bytes = sectors * SECTOR_BYTES as u64;
    let footer = Footer { current_bytes: bytes, geometry: geometry(sectors), ..its.footer };
    if footer.sectors() != sectors {
        let text = format!("its creator's disks are whole cylinders: {} sectors, not {sectors}", footer.sectors());
        return Err(invalid(&text));
    }
    if sectors > old {
        match (&its.header, footer.kind) {
            (Some(header), Kind::Dynamic | Kind::Differencing) => {
                grow(store, &its.footer, header, sectors)?;
                save_footer(store, &footer)?;
            }
            _ => grow_fixed(store, &footer, old)?,
        }
    }
    Ok(bytes)
}

/// The new footer is there before the old one, which lies where the disk is to be, is zeroes.
fn grow_fixed(store: &impl Medium, footer: &Footer, old: u64) -> Result<(), Failure> {
    let (sectors, failed) = (footer.sectors(), |error| on(store, error));
    let end = store.info().sectors - 1;
    if store.is_device() {
        if sectors > end {
            return Err(no_room(store, sectors + 1));
        }
        block_on(store.zero(old, sectors.min(end) - old)).map_err(failed)?;
        sync(store)?;
        return save_footer(store, footer);
    }
    // What lies between the disk and its footer is nobody's.
    block_on(store.zero(old, end - old)).map_err(failed)?;
    // The write that makes the file longer brings its footer.
    save(store, sectors.max(end), &footer.encode())?;
    sync(store)?;
    if end < sectors {
        block_on(store.zero(end, 1)).map_err(failed)?;
    }
    sync(store)
}

fn no_room(store: &impl Medium, sectors: u64) -> Failure {
    let text = format_args!("{}: it needs {sectors} sectors and has {}", store.path().display(), store.info().sectors);
    Failure::new(rustix::io::Errno::NOSPC, text)
}

/// Where the metadata are to be.
struct Plan {
    entries: u32,
    /// The batmap's header, if there is a batmap.
    batmap_at: Option<u64>,
    /// The first sector of the parent's names that have to move.
    names_at: u64,
    /// The first sector of blocks.
    end: u64,
}

/// Makes the table long enough for a disk of `sectors`.
fn grow(store: &impl Medium, footer: &Footer, header: &Header, sectors: u64) -> Result<(), Failure> {
    let entries = u32::try_from(sectors.div_ceil(header.block_sectors.into())).ok();
    let Some(entries) = entries.filter(|_| sectors <= REACH_SECTORS) else {
        let text = format_args!("{}: a disk above 2 TiB is too large for a VHD with blocks", store.path().display());
        return Err(Failure::invalid(text));
    };
    if entries <= header.entries {
        return Ok(());
    }
    let plan = plan(footer, header, entries);
    let header_at = footer.header_at.unwrap_or(1);
    if header_at + 2 > header.table_at {
        let text = format_args!("{}: its header lies behind its table", store.path().display());
        return Err(Failure::invalid(text));
    }
    let marks = old_batmap(store, footer, header)?;
    move_blocks(store, footer, header, plan.end)?;
    let header = move_names(store, footer, header, &plan)?;
    // The table's new sectors, then the batmap's, then the word that both count.
    let (mut at, end) = (header.batmap_at(), header.table_at + table_sectors(entries));
    while at < end {
        let here = (end - at).min(2048);
        save(store, at, &vec![0xff; here as usize * SECTOR_BYTES])?;
        at += here;
    }
    fill_last(store, &header)?;
    if let Some(at) = plan.batmap_at {
        write_batmap(store, at, entries, marks)?;
    }
    sync(store)?;
    save_header(store, footer, &Header { entries, ..header })
}

fn plan(footer: &Footer, header: &Header, entries: u32) -> Plan {
    let table_end = header.table_at + table_sectors(entries);
    let batmap_at = footer.has_batmap().then_some(table_end);
    let end = batmap_at.map_or(table_end, |at| at + 1 + batmap_sectors(entries));
    // The new names lie on no old ones, which count until the header is another one.
    let names_at = end.max(names_end(header));
    let names: u64 = moving(header, end).map(|(_, locator)| names_sectors(locator)).sum();
    Plan { entries, batmap_at, names_at, end: if names > 0 { names_at + names } else { end.max(names_end(header)) } }
}

/// The locators whose names lie where table and batmap are to be.
fn moving(header: &Header, end: u64) -> impl Iterator<Item = (usize, &Locator)> {
    let table_at = header.table_at;
    header.locators.iter().enumerate().filter(move |(_, locator)| {
        let place = locator.place().ok().filter(|_| locator.code != Code::None);
        place.is_some_and(|(at, _)| at < end && at + names_sectors(locator) > table_at)
    })
}

fn names_sectors(locator: &Locator) -> u64 {
    locator.place().map_or(0, |(_, bytes)| bytes.div_ceil(SECTOR_BYTES) as u64)
}

/// Moves what lies before sector `end` behind everything else.
fn move_blocks(store: &impl Medium, footer: &Footer, header: &Header, end: u64) -> Result<(), Failure> {
    let places = places(store, header)?;
    let moving: Vec<_> = places.iter().filter(|(_, at)| u64::from(*at) < end).copied().collect();
    let last = store.info().sectors - 1;
    let free = data_end(footer.header_at.unwrap_or(1), header, &places).max(end);
    if store.is_device() && free > last {
        return Err(no_room(store, free + 1));
    }
    let (mut free, mut moved) = (free, Vec::new());
    let mut progress = Progress::new("moving blocks", moving.len() as u64);
    for (done, (block, at)) in moving.iter().enumerate() {
        progress.done(done as u64);
        let place = block_place(free, header.block_sectors);
        let place = place.filter(|place| !store.is_device() || u64::from(*place) + stride(header) <= last);
        let place = place.ok_or_else(|| no_room(store, free + 2 * stride(header)))?;
        save(store, place.into(), &load(store, (*at).into(), stride(header))?)?;
        moved.push((*block, place));
        free = u64::from(place) + stride(header);
    }
    if !store.is_device() && free > last {
        // What was the footer may be a block's by now.
        save(store, free, &footer.encode())?;
    }
    sync(store)?;
    set_places(store, header, &moved)?;
    sync(store)
}

/// Moves the parent's names and lets the header say so.
fn move_names(store: &impl Medium, footer: &Footer, header: &Header, plan: &Plan) -> Result<Header, Failure> {
    let mut new = *header;
    let end = plan
        .batmap_at
        .map_or(header.table_at + table_sectors(plan.entries), |at| at + 1 + batmap_sectors(plan.entries));
    let mut at = plan.names_at;
    for (number, locator) in moving(header, end) {
        let Ok((from, bytes)) = locator.place() else { continue };
        let sectors = names_sectors(locator);
        save(store, at, &load(store, from, sectors)?)?;
        new.locators[number] = Locator::new(locator.code, bytes as u32, at);
        at += sectors;
    }
    if new != *header {
        sync(store)?;
        save_header(store, footer, &new)?;
    }
    Ok(new)
}

/// Marks the words of the old table's last sector that counted for nothing.
fn fill_last(store: &impl Medium, header: &Header) -> Result<(), Failure> {
    let used = header.entries as usize * 4 % SECTOR_BYTES;
    if used > 0 {
        let at = header.batmap_at() - 1;
        let mut sector = load(store, at, 1)?;
        sector[used..].fill(0xff);
        save(store, at, &sector)?;
    }
    Ok(())
}

/// The batmap's header and bits, if it is one.
fn old_batmap(store: &impl Medium, footer: &Footer, header: &Header) -> Result<Option<(Batmap, Vec<u8>)>, Failure> {
    if !footer.has_batmap() || header.batmap_at() >= store.info().sectors {
        return Ok(None);
    }
    let bytes = load(store, header.batmap_at(), 1)?;
    let Ok(batmap) = Batmap::parse(bytes.first_chunk().expect("a sector"), header.entries) else { return Ok(None) };
    if batmap.at + u64::from(batmap.sectors) > store.info().sectors {
        return Ok(None);
    }
    let bits = load(store, batmap.at, batmap.sectors.into())?;
    let mut sum = batmap.sum();
    sum.update(&bits);
    Ok((sum.finish() == batmap.checksum).then_some((batmap, bits)))
}

fn write_batmap(store: &impl Medium, at: u64, entries: u32, old: Option<(Batmap, Vec<u8>)>) -> Result<(), Failure> {
    let new = Batmap::new(at, entries);
    let mut bits = vec![0; new.sectors as usize * SECTOR_BYTES];
    let new = match old {
        None => new,
        Some((old, marks)) => {
            let count = marks.len().min(bits.len());
            bits[..count].copy_from_slice(&marks[..count]);
            let mut sum: Sum = new.sum();
            sum.update(&bits);
            Batmap { checksum: sum.finish(), marker: old.marker, key: old.key, ..new }
        }
    };
    save(store, new.at, &bits)?;
    save(store, at, &new.encode())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use drivers::format::vhd::make::{Form, New, Parent, make};

    use super::*;
    use crate::commands::repair::repair;
    use crate::disk::{flush, open, read, write};

    const MIB: u64 = 1 << 20;

    fn made(path: &Path, id: u8, form: Form<'_>) {
        let store = FileStore::create(path).unwrap();
        let new = New { id: [id; 16], sectors: 16 * MIB / 512, timestamp: 1, form };
        block_on(make(&store, "test", &new)).unwrap();
    }

    /// What the first 16 MiB of a disk hold.
    fn held(path: &Path) -> Vec<u8> {
        let disk = open(path, Access::Read, Access::Share).unwrap();
        let mut bytes = vec![0; 16 << 20];
        bytes.chunks_mut(1 << 20).enumerate().for_each(|(at, part)| read(&disk, at as u64 * 2048, part).unwrap());
        bytes
    }

    /// Stops before every change that a resize makes; what is there then is mended and holds all it held.
    fn cut_everywhere(name: &str, form: Form<'_>) {
        let folder = std::env::temp_dir().join(format!("vhd-cut-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = |name: &str| -> PathBuf { folder.join(name) };
        made(&file("base"), 1, Form::Dynamic(4096));
        made(&file("image"), 2, form);
        let disk = open(&file("image"), Access::Write, Access::Share).unwrap();
        for block in [3, 0, 7, 1] {
            write(&disk, block * 4096 + 9, &[block as u8 + 1; 6 * 512]).unwrap();
        }
        flush(&disk).unwrap();
        drop(disk);
        let (before, bytes) = (held(&file("image")), fs::read(file("image")).unwrap());
        for cut in 0.. {
            fs::write(file("image"), &bytes).unwrap();
            let store = FileStore::open(&file("image"), Access::Write).unwrap();
            store.changes_left.set(Some(cut));
            let done = to_size(&store, 3 << 30).is_ok();
            drop(store);
            if !done {
                repair(&file("image")).unwrap_or_else(|failure| panic!("{name}, cut {cut}: {failure}"));
            }
            assert!(held(&file("image")) == before, "{name}, cut {cut}");
            let store = FileStore::open(&file("image"), Access::Write).unwrap();
            let report = check(&store, Options::default()).unwrap();
            assert!(report.is_clean(), "{name}, cut {cut}: {:#?}", report.findings);
            // The work can be done again.
            to_size(&store, 3 << 30).unwrap_or_else(|failure| panic!("{name}, cut {cut}: {failure}"));
            drop(store);
            assert!(held(&file("image")) == before, "{name}, cut {cut}, again");
            if done {
                assert!(cut > 2, "it was cut");
                break;
            }
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn cut_off_anywhere_all_is_there() {
        cut_everywhere("dynamic", Form::Dynamic(4096));
        cut_everywhere("fixed", Form::Fixed);
        let parent = Parent { id: [1; 16], timestamp: 1, name: "base" };
        cut_everywhere("child", Form::Differencing(4096, parent));
    }
}
