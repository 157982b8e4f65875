//! Mending what a crash can leave: a footer that is not there (tapdisk takes it away while it writes), a copy that is
//! another one, a batmap that is none, a header that is not in its place, names that are not the parent's.

use std::path::Path;

use drivers::disk::SECTOR_BYTES;
use drivers::format::vhd::open::Place;
use embassy_futures::block_on;
use protocol::vhd::{Batmap, Footer, Header, Kind, TEXT_BYTES_MAX};
use serde_json::json;

use super::Answer;
use super::fields::name_parent;
use crate::check::{NAMES, Options, Report, check, is_away};
use crate::disk::{image, load, on, save, sync};
use crate::failure::Failure;
use crate::layout::{HEADER_SECTORS, data_end, names_end, places};
use crate::medium::Medium;
use crate::store::{Access, FileStore};
use crate::structures::{HOME, put_header};

pub(super) fn repair(path: &Path) -> Result<Answer, Failure> {
    let store = FileStore::open(path, Access::Write)?;
    let (done, left) = mend(&store)?;
    let mut text: String = done.iter().map(|done| format!("{}: {done}\n", path.display())).collect();
    if done.is_empty() {
        text += &format!("{}: nothing to mend\n", path.display());
    }
    left.findings.iter().for_each(|finding| text += &format!("{}: {finding}\n", path.display()));
    let mut value = left.json();
    value["image"] = json!(path.display().to_string());
    value["done"] = json!(done);
    Ok(Answer::new(text, value))
}

/// Mends what can be, and says what that was and what is still wrong.
///
/// # Errors
/// What the store says; EINVAL if there is no footer, or no room for what is missing.
pub fn mend(store: &impl Medium) -> Result<(Vec<&'static str>, Report), Failure> {
    let mut done = Vec::new();
    let footer = mend_footers(store, &mut done)?;
    let footer = match footer.header_at {
        Some(at) if footer.kind != Kind::Fixed => mend_header(store, footer, at, &mut done)?,
        _ => footer,
    };
    let report = check(store, Options::default())?;
    let is_wrong = |part| report.findings.iter().any(|finding| finding.part == part);
    if footer.has_batmap() && is_wrong("batmap") {
        mend_batmap(store, &footer)?;
        done.push("a new batmap");
    }
    if is_wrong(NAMES) && mend_names(store)? {
        done.push("the parent's names from the header");
    }
    Ok((done, check(store, Options::default())?))
}

/// Puts a header that was being changed back where it belongs.
fn mend_header(store: &impl Medium, footer: Footer, at: u64, done: &mut Vec<&'static str>) -> Result<Footer, Failure> {
    let header = header(store, &footer)?;
    if !is_away(at, &header) {
        return Ok(footer);
    }
    put_header(store, &footer, HOME, &load(store, at, HEADER_SECTORS)?)?;
    done.push("the header, in its place");
    Ok(Footer { header_at: Some(HOME), ..footer })
}

/// Writes the names that locators have of the parent anew, if the header's name is that of the parent that it wants.
fn mend_names(store: &impl Medium) -> Result<bool, Failure> {
    let its = image(store)?;
    let Some(header) = &its.header else { return Ok(false) };
    let mut name = heapless::String::<TEXT_BYTES_MAX>::new();
    if header.parent_name(&mut name).is_err() {
        return Ok(false);
    }
    let Ok((found, _)) = block_on(store.place()?.parent(&name)) else { return Ok(false) };
    let is_raw = header.parent == [0; 16];
    let is_parent = is_raw || image(&found).is_ok_and(|found| found.footer.id == header.parent);
    drop(found);
    if is_parent {
        name_parent(store, &its, (header.parent, header.parent_timestamp), &name)?;
    }
    Ok(is_parent)
}

fn mend_footers(store: &impl Medium, done: &mut Vec<&'static str>) -> Result<Footer, Failure> {
    let sectors = store.info().sectors;
    let invalid = |why: String| Failure::invalid(format_args!("{}: {why}", store.path().display()));
    if sectors < 2 {
        return Err(invalid("too small for an image".into()));
    }
    let (end, copy) = (load(store, sectors - 1, 1)?, load(store, 0, 1)?);
    let parse = |bytes: &[u8]| Footer::parse(bytes.first_chunk().expect("a sector"));
    match (parse(&end), parse(&copy)) {
        (Ok(footer), _) => {
            if footer.kind != Kind::Fixed && end != copy {
                save(store, 0, &end)?;
                sync(store)?;
                done.push("the copy from the footer");
            }
            Ok(footer)
        }
        (Err(_), Ok(footer)) if footer.kind != Kind::Fixed => {
            let header = header(store, &footer)?;
            let end = data_end(footer.header_at.unwrap_or(1), &header, &places(store, &header)?);
            let end = end.max(batmap_end(store, &footer, &header)?);
            // A device keeps it in its last sector.
            let at = if store.is_device() { sectors - 1 } else { end };
            if end > sectors || end > at {
                return Err(invalid(format!(
                    "its blocks end at sector {end}, it ends at {sectors}: bytes are missing"
                )));
            }
            save(store, at, &copy)?;
            if !store.is_device() {
                store.set_sectors(at + 1).map_err(|error| on(store, error))?;
            }
            sync(store)?;
            done.push("the footer from its copy");
            Ok(footer)
        }
        (Err(bad), _) => Err(invalid(format!("{bad}, and there is no copy"))),
    }
}

fn header(store: &impl Medium, footer: &Footer) -> Result<Header, Failure> {
    let bytes = load(store, footer.header_at.unwrap_or(1), 2)?;
    let header = Header::parse(bytes.first_chunk().expect("two sectors"), footer.sectors());
    header.map_err(|bad| Failure::invalid(format_args!("{}: {bad}", store.path().display())))
}

/// The sector behind the batmap; 0 if there is none.
fn batmap_end(store: &impl Medium, footer: &Footer, header: &Header) -> Result<u64, Failure> {
    if !footer.has_batmap() || header.batmap_at() >= store.info().sectors {
        return Ok(0);
    }
    let bytes = load(store, header.batmap_at(), 1)?;
    let batmap = Batmap::parse(bytes.first_chunk().expect("a sector"), header.entries);
    Ok(batmap.map_or(0, |batmap| batmap.at + u64::from(batmap.sectors)))
}

/// Writes a batmap that says of no block that it is full, if nothing else is there.
fn mend_batmap(store: &impl Medium, footer: &Footer) -> Result<(), Failure> {
    let header = header(store, footer)?;
    let at = header.batmap_at();
    let batmap = Batmap::new(at, header.entries);
    let end = batmap.at + u64::from(batmap.sectors);
    let block = places(store, &header)?.iter().map(|(_, at)| u64::from(*at)).min().unwrap_or(u64::MAX);
    let header_at = footer.header_at.unwrap_or(1);
    let names = header.locators.iter().filter_map(|locator| locator.place().ok());
    let mut names = names.map(|(at, bytes)| (at, at + bytes.div_ceil(SECTOR_BYTES) as u64));
    let taken = block < end
        || (header_at < end && at < header_at + 2)
        || (names_end(&header) > at && names.any(|(from, to)| from < end && at < to));
    if taken || end > store.info().sectors - 1 {
        let text = format_args!("{}: there is no room for a batmap after the table", store.path().display());
        return Err(Failure::invalid(text));
    }
    save(store, batmap.at, &vec![0; batmap.sectors as usize * SECTOR_BYTES])?;
    sync(store)?;
    save(store, at, &batmap.encode())?;
    sync(store)
}
