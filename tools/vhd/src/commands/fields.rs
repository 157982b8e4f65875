//! Single fields of an image.

use std::fmt::Write;
use std::path::Path;

use clap::ValueEnum;
use drivers::disk::SECTOR_BYTES;
use drivers::format::vhd::open::{Image, Place};
use embassy_futures::block_on;
use protocol::number;
use protocol::vhd::{Batmap, Code, Footer, Header, Id, Locator, TEXT_BYTES_MAX, locator_bytes};
use serde_json::{Map, Value, json};

use super::{Answer, show_id, show_kind};
use crate::arguments::{Field, Settable};
use crate::disk::{image, load, save, sync};
use crate::failure::Failure;
use crate::medium::Medium;
use crate::store::{Access, FileStore};
use crate::structures::{save_footer, save_header};

pub(super) fn read(path: &Path, fields: &[Field]) -> Result<Answer, Failure> {
    let store = FileStore::open(path, Access::Share)?;
    let its = image(&store)?;
    let wanted = if fields.is_empty() { Field::value_variants() } else { fields };
    let (mut text, mut values) = (String::new(), Map::new());
    for field in wanted {
        let value = match value(&store, &its, *field)? {
            None if fields.is_empty() => continue,
            None => Value::Null,
            Some(value) => value,
        };
        let name = field.to_possible_value().map(|name| name.get_name().to_owned()).unwrap_or_default();
        let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        // Writing to a string never fails. One field is its value alone, for scripts.
        let _ = match fields.len() {
            1 => writeln!(text, "{shown}"),
            _ => writeln!(text, "{:<18}{shown}", format!("{name}:")),
        };
        values.insert(name, value);
    }
    Ok(Answer::new(text, Value::Object(values)))
}

/// A field's value; none if an image of this kind has no such field.
fn value(store: &impl Medium, image: &Image, field: Field) -> Result<Option<Value>, Failure> {
    let footer = &image.footer;
    let header = image.header.as_ref();
    Ok(Some(match field {
        Field::Kind => json!(show_kind(footer.kind)),
        Field::Size => json!(footer.sectors() * SECTOR_BYTES as u64),
        Field::OriginalSize => json!(footer.original_bytes),
        Field::Features => json!(footer.features),
        Field::Timestamp => json!(footer.timestamp),
        Field::Creator => json!(footer.creator.escape_ascii().to_string()),
        Field::CreatorVersion => json!(format!("{}.{}", footer.creator_version >> 16, footer.creator_version & 0xffff)),
        Field::CreatorHost => json!(footer.creator_host),
        Field::Geometry => {
            let shape = footer.geometry;
            json!(format!("{}/{}/{}", shape.cylinders, shape.heads, shape.sectors))
        }
        Field::Id => json!(show_id(&footer.id)),
        Field::Saved => json!(footer.saved),
        Field::Hidden => json!(footer.hidden),
        Field::Block => return Ok(header.map(|header| json!(u64::from(header.block_sectors) * SECTOR_BYTES as u64))),
        Field::Entries => return Ok(header.map(|header| json!(header.entries))),
        Field::Table => return Ok(header.map(|header| json!(header.table_at * SECTOR_BYTES as u64))),
        Field::Marker => match header.filter(|_| footer.has_batmap()) {
            Some(header) => json!(batmap(store, header)?.marker),
            None => return Ok(None),
        },
        Field::Parent => match block_on(image.parent_names(store)).first() {
            Some(name) => json!(name),
            None => return Ok(None),
        },
        Field::ParentId => return Ok(parent(image).map(|header| json!(show_id(&header.parent)))),
        Field::ParentTimestamp => return Ok(parent(image).map(|header| json!(header.parent_timestamp))),
    }))
}

/// The header of an image that has a parent.
fn parent(image: &Image) -> Option<&Header> {
    image.header.as_ref().filter(|_| image.footer.kind == protocol::vhd::Kind::Differencing)
}

pub(super) fn set(path: &Path, field: Settable, value: &str) -> Result<Answer, Failure> {
    let store = FileStore::open(path, Access::Write)?;
    let its = image(&store)?;
    let invalid = |why: &str| Failure::invalid(format_args!("{}: {why}", path.display()));
    if !its.footer_at_end {
        return Err(invalid("its footer has to be mended first"));
    }
    let number = |most: u32| {
        let number = number::u32(value).filter(|number| *number <= most);
        number.ok_or_else(|| invalid(&format!("{value:?} is no number from 0 to {most}")))
    };
    match field {
        Settable::Hidden => save_footer(&store, &Footer { hidden: number(1)? as u8, ..its.footer })?,
        Settable::Saved => save_footer(&store, &Footer { saved: number(1)? as u8, ..its.footer })?,
        Settable::Timestamp => save_footer(&store, &Footer { timestamp: number(u32::MAX)?, ..its.footer })?,
        Settable::Marker => {
            let header = its.header.as_ref().filter(|_| its.footer.has_batmap());
            let header = header.ok_or_else(|| invalid("it has no batmap"))?;
            let batmap = Batmap { marker: number(255)? as u8, ..batmap(&store, header)? };
            save(&store, header.batmap_at(), &batmap.encode())?;
            sync(&store)?;
        }
        Settable::Parent => set_parent(&store, &its, value)?,
    }
    Ok(Answer::new("", json!({"image": path.display().to_string()})))
}

fn batmap(store: &impl Medium, header: &Header) -> Result<Batmap, Failure> {
    let bytes = load(store, header.batmap_at(), 1)?;
    let batmap = Batmap::parse(bytes.first_chunk().expect("a sector"), header.entries);
    batmap.map_err(|bad| Failure::invalid(format_args!("{}: {bad}", store.path().display())))
}

/// Sets the image's parent to another that holds the same.
///
/// # Errors
/// What the store says; EINVAL for what is no child, or a name that has no room.
pub fn set_parent(store: &impl Medium, image: &Image, name: &str) -> Result<(), Failure> {
    let invalid = |why: &str| Failure::invalid(format_args!("{}: {why}", store.path().display()));
    parent(image).ok_or_else(|| invalid("it is no differencing disk"))?;
    let (other, _) = block_on(store.place()?.parent(name))?;
    let other = crate::disk::image(&other)?.footer;
    if other.id == image.footer.id {
        return Err(invalid("no image is its own parent"));
    }
    name_parent(store, image, (other.id, other.timestamp), name)
}

/// Names a parent. The names come first: until the header is the new one, its own name still leads to the old.
///
/// # Errors
/// What the store says; EINVAL for what is no child, or a name that has no room.
pub fn name_parent(store: &impl Medium, image: &Image, (id, timestamp): (Id, u32), name: &str) -> Result<(), Failure> {
    let invalid = |why: &str| Failure::invalid(format_args!("{}: {why}", store.path().display()));
    let header = parent(image).ok_or_else(|| invalid("it is no differencing disk"))?;
    let name = protocol::vhd::file_name(name).ok_or_else(|| invalid("not a name"))?;
    let refused = |reason| invalid(&format!("{name:?}: {reason:?}"));
    let mut new = Header { parent: id, parent_timestamp: timestamp, ..*header };
    new.set_parent_name(name).map_err(refused)?;
    let mut texts = Vec::new();
    for locator in &mut new.locators {
        let Ok(text) = locator_bytes(locator.code, name) else {
            // A kind that we do not write would name the old one for ever.
            *locator = Locator::default();
            continue;
        };
        let (at, _) = locator.place().map_err(|bad| invalid(&bad.to_string()))?;
        let room = Locator { length: text.len() as u32, ..*locator };
        room.place().map_err(|_| invalid("there is no room for so long a name"))?;
        *locator = Locator::new(locator.code, text.len() as u32, at);
        texts.push((at, text));
    }
    if new.locators.iter().all(|locator| locator.code == Code::None) {
        return Err(invalid("it has no locator that could name another parent"));
    }
    let mut fits = heapless::String::<TEXT_BYTES_MAX>::new();
    new.parent_name(&mut fits).map_err(refused)?;
    for (at, text) in texts {
        let mut sectors = text.to_vec();
        sectors.resize(text.len().next_multiple_of(SECTOR_BYTES), 0);
        save(store, at, &sectors)?;
    }
    sync(store)?;
    save_header(store, &image.footer, &new)
}
