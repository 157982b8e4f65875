//! Looking through the layers of a chain.

use alloc::vec::Vec;

use protocol::vhd::{REACH_SECTORS, UNUSED, bits};

use super::Vhd;
use super::cache::Sector;
use super::layer::{Kind, Table};
use super::map::{Place, Run};
use crate::disk::{Error, SECTOR_BYTES, Store};

/// Entries of a table in a sector.
const ENTRIES: u32 = (SECTOR_BYTES / 4) as u32;
/// Blocks whose bits a sector has.
const BITS: u32 = (SECTOR_BYTES * 8) as u32;

/// Sectors of a stretch that no layer was found to hold yet, in order.
#[derive(Default)]
struct Rest(Vec<(u32, u32)>);

impl Rest {
    fn push(&mut self, from: u32, to: u32) {
        match self.0.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ if from < to => self.0.push((from, to)),
            _ => {}
        }
    }
}

impl<S: Store> Vhd<S> {
    /// Looks at a sector of a layer's metadata.
    pub(super) async fn look_at<T>(&self, layer: u16, sector: u64, look: impl Fn(&Sector) -> T) -> Result<T, Error> {
        loop {
            if let Some(bytes) = self.cache.borrow_mut().get(layer, sector) {
                return Ok(look(bytes));
            }
            let (saves, mut bytes) = (self.saves.get(), [0; SECTOR_BYTES]);
            self.layers[usize::from(layer)].store.load(sector, &mut bytes).await?;
            // Only the leaf's are written; what was read while they were may be old.
            if layer != 0 || self.saves.get() == saves {
                self.cache.borrow_mut().put(layer, sector, &bytes);
                return Ok(look(&bytes));
            }
        }
    }

    /// A sector of a layer's metadata.
    pub(super) async fn metadata(&self, layer: u16, sector: u64) -> Result<Sector, Error> {
        self.look_at(layer, sector, |bytes| *bytes).await
    }

    /// Where a layer's block begins, with its bitmap; none if it has no such block.
    pub(super) async fn entry(&self, layer: u16, table: &Table, block: u32) -> Result<Option<u32>, Error> {
        if layer == 0
            && let Some(leaf) = &self.leaf
        {
            let leaf = leaf.borrow();
            if let Some(open) = leaf.open.get(&block) {
                return Ok(Some(open.at));
            }
            if leaf.freed.contains_key(&block) {
                return Ok(None);
            }
        }
        if block >= table.entries {
            return Err(Error::Corrupt("the table has fewer blocks than the disk"));
        }
        let word = |sector: &Sector| u32::from_be_bytes(sector.as_chunks().0[(block % ENTRIES) as usize]);
        let at = self.look_at(layer, table.sector + u64::from(block / ENTRIES), word).await?;
        if at == UNUSED {
            return Ok(None);
        }
        let image = &self.layers[usize::from(layer)];
        let store = image.store.info();
        // The disk's last block need not be whole.
        let used = (image.sectors - (u64::from(block) << table.shift).min(image.sectors)).min(table.sectors().into());
        let end = u64::from(at) + u64::from(table.bitmap) + used;
        // Behind the reach of 32 bits a sector has no number here.
        let limit = if store.grows { REACH_SECTORS } else { store.sectors.min(REACH_SECTORS) };
        match table.is_free(at.into(), end) && end <= limit {
            true => Ok(Some(at)),
            false => Err(Error::Corrupt("a block of the table is not where blocks may be")),
        }
    }

    /// Puts what one layer holds of `from..to` of a stretch to the runs, and what it does not to the rest.
    async fn look(
        &self,
        layer: u16,
        stretch: u64,
        (from, to): (u32, u32),
        runs: &mut Vec<Run>,
        rest: &mut Rest,
    ) -> Result<(), Error> {
        let image = &self.layers[usize::from(layer)];
        let end = image.sectors.saturating_sub(stretch).min(to.into()) as u32;
        let mut at = from;
        while at < end {
            let sector = stretch + u64::from(at);
            let table = match &image.kind {
                Kind::Flat => {
                    // Sizes of disks are below 2 TiB wherever there is a map.
                    runs.push(Run { first: at, place: Place::At(layer, sector as u32) });
                    at = end;
                    break;
                }
                Kind::Dynamic(table) => table,
            };
            let (block, inside) = ((sector >> table.shift) as u32, sector as u32 & (table.sectors() - 1));
            // As far as one sector of the bitmap goes.
            let here = (end - at).min(table.sectors() - inside).min(BITS - inside % BITS);
            match self.entry(layer, table, block).await? {
                None => rest.push(at, at + here),
                Some(block_at) => {
                    let open = match &self.leaf {
                        Some(leaf) if layer == 0 => leaf.borrow().open.get(&block).map(|open| {
                            let part = (inside / BITS) as usize * SECTOR_BYTES;
                            let mut map = [0; SECTOR_BYTES];
                            map.copy_from_slice(&open.bits[part..part + SECTOR_BYTES]);
                            map
                        }),
                        _ => None,
                    };
                    let map = match open {
                        Some(map) => map,
                        None => self.metadata(layer, u64::from(block_at) + u64::from(inside / BITS)).await?,
                    };
                    let data = block_at + table.bitmap;
                    let (mut bit, last) = (inside % BITS, inside % BITS + here);
                    while bit < last {
                        let (set, n) = bits::run(&map, bit, last);
                        let first = at + (bit - inside % BITS);
                        match set {
                            true => {
                                let place = Place::At(layer, data + inside + (first - at));
                                runs.push(Run { first, place });
                            }
                            false => rest.push(first, first + n),
                        }
                        bit += n;
                    }
                }
            }
            at += here;
        }
        rest.push(at, to);
        Ok(())
    }

    /// Where sectors of one block of the leaf are in the layers from `top` down.
    pub(super) async fn resolve(&self, begin: u64, sectors: u32, top: u16) -> Result<Vec<Run>, Error> {
        let (mut runs, mut rest) = (Vec::new(), Rest(alloc::vec![(0, sectors)]));
        for layer in top..self.layers.len() as u16 {
            let mut left = Rest::default();
            for part in rest.0.drain(..) {
                self.look(layer, begin, part, &mut runs, &mut left).await?;
            }
            rest = left;
            if rest.0.is_empty() {
                break;
            }
        }
        runs.extend(rest.0.iter().map(|(first, _)| Run { first: *first, place: Place::Zero }));
        runs.sort_unstable_by_key(|run| run.first);
        runs.dedup_by(|next, last| last.place.skip(next.first - last.first) == next.place);
        Ok(runs)
    }

    /// Reads and notes where the sectors are of the stretch that one is in.
    pub(super) async fn learn_stretch(&self, sector: u64) -> Result<(), Error> {
        let (sectors, block) = (self.map.borrow().sectors(), self.split(sector).0);
        let stretch = sector / u64::from(sectors);
        loop {
            let change = self.change(block).get();
            let runs = self.resolve(stretch * u64::from(sectors), sectors, 0).await?;
            if self.change(block).get() == change {
                self.map.borrow_mut().learn(stretch as u32, &runs);
                return Ok(());
            }
        }
    }
}
