//! What an image is.

use std::fmt::Write;
use std::path::Path;

use drivers::disk::{Device, SECTOR_BYTES};
use drivers::format::vhd::open::{DEPTH_MAX, Image};
use protocol::vhd::{Kind, UNUSED};
use serde_json::{Map, Value, json};

use super::{Answer, show_id, show_kind};
use crate::arguments::Query;
use crate::disk::{image, load};
use crate::failure::Failure;
use crate::family::{Parent, parent};
use crate::medium::Medium;
use crate::store::{Access, FileStore};

pub(super) fn query(options: &Query) -> Result<Answer, Failure> {
    let mut values = Vec::new();
    let mut store = FileStore::open(&options.image, Access::Share)?;
    loop {
        let its = image(&store)?;
        let parent = match its.footer.kind {
            Kind::Differencing => Some(parent(&store, &its)),
            _ => None,
        };
        values.push(tell(&store, &its, parent.as_ref())?);
        match parent {
            Some(Ok(Parent::Vhd(below))) if options.chain && values.len() < DEPTH_MAX => store = below,
            Some(Ok(Parent::Raw(below))) if options.chain => {
                values.push(raw(&below));
                break;
            }
            // What lacks its parent has no chain.
            Some(Err(why)) if options.chain => return Err(why),
            _ => break,
        }
    }
    let mut text = String::new();
    for value in &values {
        for (key, value) in value {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            // Writing to a string never fails.
            let _ = writeln!(text, "{:<16}{value}", format!("{key}:"));
        }
        text.push('\n');
    }
    let value = match options.chain {
        true => json!(values),
        false => Value::Object(values.swap_remove(0)),
    };
    Ok(Answer::new(text, value))
}

fn raw(store: &FileStore) -> Map<String, Value> {
    let mut value = Map::new();
    value.insert("image".into(), path(store.path()));
    value.insert("kind".into(), json!("raw"));
    value.insert("size".into(), json!(store.info().sectors * SECTOR_BYTES as u64));
    value
}

fn path(path: &Path) -> Value {
    json!(path.display().to_string())
}

fn tell(
    store: &FileStore,
    image: &Image,
    parent: Option<&Result<Parent<FileStore>, Failure>>,
) -> Result<Map<String, Value>, Failure> {
    let footer = &image.footer;
    let mut value = Map::new();
    let mut put = |key: &str, what: Value| value.insert(key.into(), what);
    put("image", path(store.path()));
    put("kind", json!(show_kind(footer.kind)));
    put("size", json!(footer.sectors() * SECTOR_BYTES as u64));
    put("image-size", json!(store.info().sectors * SECTOR_BYTES as u64));
    put("allocated", json!(store.allocated_bytes()));
    put("creator", json!(footer.creator.escape_ascii().to_string()));
    put("version", json!(format!("{}.{}", footer.creator_version >> 16, footer.creator_version & 0xffff)));
    put("id", json!(show_id(&footer.id)));
    put("hidden", json!(footer.hidden != 0));
    if !image.footer_at_end {
        put("footer", json!("the copy; the one at the end is none"));
    }
    if let Some(header) = &image.header {
        put("block", json!(u64::from(header.block_sectors) * SECTOR_BYTES as u64));
        put("blocks", json!(header.entries));
        put("blocks-there", json!(blocks(store, header.table_at, header.entries)?));
    }
    match parent {
        None => {}
        Some(Ok(Parent::Vhd(parent))) => {
            put("parent", path(parent.path()));
            put("parent-kind", json!("vhd"));
        }
        Some(Ok(Parent::Raw(parent))) => {
            put("parent", path(parent.path()));
            put("parent-kind", json!("raw"));
        }
        Some(Err(why)) => {
            put("parent", Value::Null);
            put("parent-missing", json!(why.to_string()));
        }
    }
    Ok(value)
}

/// Counts the blocks that are there.
fn blocks(store: &FileStore, table_at: u64, entries: u32) -> Result<u64, Failure> {
    const STEP: u32 = 64 << 10;
    let (mut count, mut block) = (0, 0);
    while block < entries {
        let here = STEP.min(entries - block);
        let sectors = u64::from(here * 4).div_ceil(SECTOR_BYTES as u64);
        let bytes = load(store, table_at + u64::from(block) * 4 / SECTOR_BYTES as u64, sectors)?;
        let words = bytes.as_chunks().0.iter().take(here as usize);
        count += words.filter(|word| u32::from_be_bytes(**word) != UNUSED).count() as u64;
        block += here;
    }
    Ok(count)
}
