//! Opening a chain: the image that was named, and each one's parent below it.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt::Display;

use protocol::errno::Errno;
use protocol::vhd::{
    Batmap, Code, Footer, Header, Id, Kind as Disk, REACH_SECTORS, SECTOR_BYTES, TEXT_BYTES_MAX, UNUSED, locator_text,
};
use xen::limits::MEMORY_PER_IMAGE;
use xen::sync::{Bell, Credits};

use super::cache::{self, Cache};
use super::layer::{Kind, Layer, Table, blocks_end};
use super::leaf::{self, Leaf, Visits, open_max};
use super::map::{self, Map};
use super::slots::Slots;
use super::{LOOKERS_MAX, Vhd};
use crate::disk::{Device, Error, Store};
use crate::target::OpenError;

/// Images of one chain at most.
pub const DEPTH_MAX: usize = 1024;
/// Places of blocks at most in an image that is written: a bit for each is kept. 2 TiB have room for
/// a million of the usual size.
const PLACES_MAX: u64 = 4 << 20;
/// Bytes for the cache and for account of the places of blocks: what an image is promised, less the map and the blocks that
/// are changing.
const CHANGING_BYTES: usize = MEMORY_PER_IMAGE - map::BYTES_MAX - leaf::BYTES_MAX;
const _: () = assert!(PLACES_MAX as usize / 8 + cache::BYTES_MIN <= CHANGING_BYTES);
/// Bytes of a table read at once.
const SCAN_BYTES: usize = 32 << 10;

/// Where the images of a chain lie: a volume group, a folder. A parent is looked for there and nowhere else.
pub trait Place {
    /// What an image lies on.
    type Store: Store;

    /// What the name says that a child has of its parent: a path with slashes. With it, how it is called in texts.
    fn parent(&self, name: &str) -> impl Future<Output = Result<(Self::Store, String), OpenError>>;
}

/// An image's structures.
pub struct Image {
    /// Its footer.
    pub footer: Footer,
    /// Whether the footer was found where it belongs; else it is the copy.
    pub footer_at_end: bool,
    /// The header of a dynamic one.
    pub header: Option<Header>,
    /// Where its tables are.
    pub table: Option<Box<Table>>,
}

fn bad(name: &str, why: impl Display) -> OpenError {
    OpenError::new(Errno::EINVAL, format!("{name}: {why}"))
}

fn failed<'a>(name: &'a str, what: &'a str) -> impl Fn(Error) -> OpenError + 'a {
    move |error| OpenError::new(error.errno(), format!("{name}: reading the {what}: {error}"))
}

impl Image {
    /// Reads the structures of the image on a store.
    pub async fn read<S: Store>(store: &S, name: &str) -> Result<Image, OpenError> {
        let sectors = store.info().sectors;
        if sectors < 2 {
            return Err(bad(name, "too small for a VHD"));
        }
        let mut bytes = [0; SECTOR_BYTES];
        store.load(sectors - 1, &mut bytes).await.map_err(failed(name, "footer"))?;
        let (footer, footer_at_end) = match Footer::parse(&bytes) {
            Ok(footer) => (footer, true),
            Err(at_end) => {
                store.load(0, &mut bytes).await.map_err(failed(name, "footer's copy"))?;
                match Footer::parse(&bytes) {
                    Ok(footer) if footer.kind != Disk::Fixed => (footer, false),
                    _ => return Err(bad(name, at_end)),
                }
            }
        };
        let Some(header_at) = footer.header_at.filter(|_| footer.kind != Disk::Fixed) else {
            if footer.sectors() > sectors - 1 {
                return Err(bad(name, format_args!("a disk of {} sectors in {sectors}", footer.sectors())));
            }
            return Ok(Image { footer, footer_at_end, header: None, table: None });
        };
        let mut bytes = [0; 2 * SECTOR_BYTES];
        store.load(header_at, &mut bytes).await.map_err(failed(name, "header"))?;
        let header = Header::parse(&bytes, footer.sectors()).map_err(|why| bad(name, why))?;
        let table = Self::table(store, name, &footer, header_at, &header).await?;
        Ok(Image { footer, footer_at_end, header: Some(header), table: Some(Box::new(table)) })
    }

    async fn table<S: Store>(
        store: &S,
        name: &str,
        footer: &Footer,
        header_at: u64,
        header: &Header,
    ) -> Result<Table, OpenError> {
        let mut table = Table::new(header.table_at, header.entries, header.block_sectors);
        table.reserve(0, 1);
        table.reserve(header_at, 2);
        table.reserve(header.table_at, header.table_sectors());
        let end = header.table_at + header.table_sectors();
        if end > store.info().sectors {
            return Err(bad(name, format_args!("the table ends at sector {end} of {}", store.info().sectors)));
        }
        if footer.has_batmap() {
            let (at, mut bytes) = (header.batmap_at(), [0; SECTOR_BYTES]);
            store.load(at, &mut bytes).await.map_err(failed(name, "batmap's header"))?;
            match Batmap::parse(&bytes, header.entries) {
                Ok(batmap) if batmap.is_encrypted() => return Err(bad(name, "encrypted images are not supported")),
                Ok(batmap) => {
                    table.reserve(at, 1);
                    table.reserve(batmap.at, batmap.sectors.into());
                    table.batmap = Some(at);
                }
                // It is a hint, and blktap does without it too.
                Err(why) => log::warn!("{name}: {why}; it is not used"),
            }
        }
        for locator in header.locators.iter().filter(|locator| locator.code != Code::None) {
            if let Ok((at, bytes)) = locator.place() {
                table.reserve(at, bytes.div_ceil(SECTOR_BYTES) as u64);
            }
        }
        Ok(table)
    }

    /// The names that an image has of its parent, best first.
    pub async fn parent_names<S: Store>(&self, store: &S) -> Vec<String> {
        let mut names = Vec::new();
        let Some(header) = &self.header else { return names };
        let mut text = heapless::String::<TEXT_BYTES_MAX>::new();
        for code in [Code::W2ru, Code::Macx, Code::W2ku] {
            for locator in header.locators.iter().filter(|locator| locator.code == code) {
                let Ok((at, bytes)) = locator.place() else { continue };
                let mut sectors = alloc::vec![0; bytes.next_multiple_of(SECTOR_BYTES)];
                if store.load(at, &mut sectors).await.is_ok()
                    && locator_text(code, &sectors[..bytes], &mut text).is_ok()
                {
                    names.push(String::from(text.as_str()));
                }
            }
        }
        if header.parent_name(&mut text).is_ok() {
            names.push(String::from(text.as_str()));
        }
        names.dedup();
        names
    }
}

/// Opens the image on `store`, called `name` in texts, and all below it.
pub async fn open<P: Place>(
    place: &P,
    store: P::Store,
    name: &str,
    read_only: bool,
) -> Result<Vhd<P::Store>, OpenError> {
    let leaf = Image::read(&store, name).await?;
    let (footer, footer_at_end) = (leaf.footer, leaf.footer_at_end);
    let (mut layers, mut seen) = (Vec::new(), BTreeSet::<Id>::new());
    let (mut image, mut store, mut name) = (leaf, store, String::from(name));
    loop {
        if layers.len() == DEPTH_MAX {
            return Err(bad(&name, format_args!("its chain is deeper than {DEPTH_MAX} images")));
        }
        if !seen.insert(image.footer.id) && image.footer.kind == Disk::Differencing {
            return Err(bad(&name, "its chain comes back to it"));
        }
        let parent = match (&image.header, image.footer.kind) {
            (Some(header), Disk::Differencing) => Some(find_parent(place, &image, header, &store, &name).await?),
            _ => None,
        };
        let kind = image.table.map_or(Kind::Flat, Kind::Dynamic);
        layers.push(Layer { store, kind, sectors: image.footer.sectors() });
        match parent {
            None => break,
            Some((parent, Some(its), its_name)) => (store, image, name) = (parent, its, its_name),
            Some((parent, None, _)) => {
                let sectors = parent.info().sectors.min(REACH_SECTORS);
                layers.push(Layer { store: parent, kind: Kind::Flat, sectors });
                break;
            }
        }
    }
    let read_only = read_only || layers[0].store.info().read_only;
    let (shift, leaf): (_, Option<RefCell<Leaf>>) = match &layers[0].kind {
        Kind::Flat => (12, None),
        Kind::Dynamic(table) => {
            let leaf = match read_only {
                true => None,
                false => Some(RefCell::new(scan(&layers[0].store, table, footer_at_end, &name).await?)),
            };
            (table.shift, leaf)
        }
    };
    // The more room for blocks there is to keep account of, the less is kept of the tables.
    let slots = leaf.as_ref().map_or(0, |leaf| leaf.borrow().slots.places().div_ceil(8) as usize);
    Ok(Vhd {
        sectors: layers[0].sectors,
        layers,
        shift,
        mask: (1 << shift) - 1,
        read_only,
        map: RefCell::new(Map::new(shift)),
        cache: RefCell::new(Cache::new(CHANGING_BYTES.saturating_sub(slots))),
        leaf,
        recent: Cell::new(u32::MAX),
        footer,
        changes: [const { Cell::new(0) }; 64],
        saves: Cell::new(0),
        visits: Visits::default(),
        turn: Credits::new(1),
        settles: Cell::new(0),
        settled: Cell::new(0),
        bell: Bell::default(),
        awaited: Cell::new(0),
        lookers: Credits::new(LOOKERS_MAX),
        batmap_lost: Cell::new(0),
        damaged: Cell::new(false),
        frozen: Cell::new(read_only),
    })
}

/// The parent that a header wants: its store, its structures if it is a VHD, its name.
async fn find_parent<P: Place>(
    place: &P,
    image: &Image,
    header: &Header,
    store: &P::Store,
    name: &str,
) -> Result<(P::Store, Option<Image>, String), OpenError> {
    let mut why = bad(name, "it has no name of its parent that can be read");
    for text in image.parent_names(store).await {
        let (parent, its_name) = match place.parent(&text).await {
            Ok(found) => found,
            Err(error) => {
                why = OpenError::new(error.errno, format!("{name}: its parent: {}", error.text));
                continue;
            }
        };
        // blktap's way to say that the parent is no VHD.
        if header.parent == [0; 16] {
            return Ok((parent, None, its_name));
        }
        match Image::read(&parent, &its_name).await {
            Ok(its) if its.footer.id == header.parent => return Ok((parent, Some(its), its_name)),
            Ok(_) => why = bad(name, format_args!("{its_name} is not the parent it was made on: another unique id")),
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// Goes through the leaf's table for the room that its blocks have.
async fn scan<S: Store>(store: &S, table: &Table, footer_at_end: bool, name: &str) -> Result<Leaf, OpenError> {
    let info = store.info();
    let mut slots = Slots::new(table.metadata_end(), blocks_end(&info), table.bitmap, table.sectors());
    if slots.places() > PLACES_MAX && !info.grows {
        let why =
            format_args!("blocks of {} sectors are too small to write in {} sectors", table.sectors(), info.sectors);
        return Err(bad(name, why));
    }
    let mut buffer = alloc::vec![0; SCAN_BYTES];
    let (mut sector, mut left) = (table.sector, table.entries as usize);
    while left > 0 {
        let here = (left * 4).min(SCAN_BYTES);
        let part = &mut buffer[..here.next_multiple_of(SECTOR_BYTES)];
        store.load(sector, part).await.map_err(failed(name, "table"))?;
        for word in part[..here].as_chunks().0 {
            match u32::from_be_bytes(*word) {
                UNUSED => {}
                at => slots.note(at.into()),
            }
        }
        (sector, left) = (sector + (part.len() / SECTOR_BYTES) as u64, left - here / 4);
    }
    let footer_at = footer_at_end.then(|| info.sectors - 1);
    let open_max = open_max(table.bitmap);
    Ok(Leaf {
        slots,
        open: Default::default(),
        open_max,
        freed: Default::default(),
        limbo: Default::default(),
        footer_at,
    })
}
