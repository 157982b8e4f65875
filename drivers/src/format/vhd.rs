//! VHD: fixed, dynamic and differencing images, and chains of them to any depth.
//!
//! The format's own parts, bytes in and verdicts out, are in [`protocol::vhd`]. Here is what it takes to serve one: the map
//! over all layers, the blocks that are changing, and the order in which changes reach the store (see [`leaf`]).
//!
//! # Layout
//! - [`open`]: a store becomes a chain of layers; [`make`]: an empty image
//! - [`layer`]: one image of the chain, and where its tables are
//! - [`map`]: which layer holds a sector, whatever the depth
//! - [`leaf`]: what is changing, [`blocks`]: in which blocks; [`settle`]: how that becomes durable; [`slots`]: room for new ones
//! - [`chain`]: looking through all layers; [`cache`]: metadata that was read lately

mod blocks;
mod cache;
mod chain;
mod layer;
mod leaf;
pub mod make;
mod map;
pub mod open;
mod settle;
mod slots;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use protocol::vhd::{Footer, bits};
use xen::sync::{Bell, Credits};

use crate::disk::{Discard, Error, Info, Op, SECTOR_BYTES, Store, within};
use crate::format::{Extent, Format, Place, Stay};
use blocks::Open;
use cache::Cache;
use layer::{Kind, Layer, Table};
use leaf::{Leaf, Visit, Visits};
use map::Map;

/// What those hold at most who read metadata at once, in bitmaps of one sector: the largest block's has 32.
const LOOKERS_MAX: usize = 32;
/// Who looks through the layers may hold 48 KiB of runs, and as much that is left to look at.
const LOOK_SHARE: usize = 8;

/// A chain of images as one disk.
pub struct Vhd<S> {
    /// The one that is written first, the others below it.
    layers: Vec<Layer<S>>,
    /// Sectors of the disk.
    sectors: u64,
    /// Sectors of a block of the leaf, as a power of two.
    shift: u32,
    /// Less one.
    mask: u32,
    read_only: bool,
    map: RefCell<Map>,
    cache: RefCell<Cache>,
    /// What is changing; none if nothing can, because the leaf has no blocks or is not written.
    leaf: Option<RefCell<Leaf>>,
    /// The block that was opened last, or written to since. It is asked first when something is to be written.
    recent: Cell<u32>,
    /// The leaf's footer.
    footer: Footer,
    /// Counts of changes to blocks, by the last bits of their number: what was learnt meanwhile is not what is.
    changes: [Cell<u32>; 64],
    /// Metadata of the leaf that were written: what was read meanwhile may be older.
    saves: Cell<u64>,
    visits: Visits,
    /// One makes changes durable at a time.
    turn: Credits,
    settles: Cell<u64>,
    settled: Cell<u64>,
    /// Rings when a write to a new block ended, or the block may be written again.
    bell: Bell,
    /// How many may wait for a block that is written to no more.
    awaited: Cell<u32>,
    /// What those may hold together who read metadata.
    lookers: Credits,
    /// What the checksum of blktap's map of full blocks lacks for bits that are cleared on the store.
    batmap_lost: Cell<u32>,
    /// The image says what cannot be. It is not written any more.
    damaged: Cell<bool>,
    /// It is not written, for one of these reasons.
    frozen: Cell<bool>,
}

impl<S: Store> Vhd<S> {
    /// The first layer's table; none if it has none.
    fn table(&self) -> Option<&Table> {
        match &self.layers[0].kind {
            Kind::Flat => None,
            Kind::Dynamic(table) => Some(table),
        }
    }

    fn change(&self, block: u32) -> &Cell<u32> {
        &self.changes[block as usize % self.changes.len()]
    }

    fn changed(&self, block: u32) {
        let change = self.change(block);
        change.set(change.get().wrapping_add(1));
    }

    fn is_writable(&self) -> Result<(), Error> {
        match () {
            () if self.read_only => Err(Error::ReadOnly),
            () if self.damaged.get() => Err(Error::Corrupt("the image, earlier; it is not written any more")),
            () => Ok(()),
        }
    }

    /// Notes that the image is damaged, if that is what an error says.
    fn note<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(Error::Corrupt(what)) = &result
            && !self.damaged.replace(true)
        {
            self.frozen.set(true);
            log::error!("a VHD is damaged ({what}); it is not written any more");
        }
        result
    }

    /// Bytes on the heap, about.
    pub fn memory_bytes(&self) -> usize {
        let leaf = self.leaf.as_ref().map_or(0, |leaf| {
            let leaf = leaf.borrow();
            leaf.slots.bytes() + leaf.open.bytes() + leaf.freed.len() * 16
        });
        self.layers.len() * size_of::<Layer<S>>() + self.map.borrow().bytes() + self.cache.borrow().bytes() + leaf
    }

    /// What the image that is written lies on.
    pub fn leaf(&self) -> &S {
        &self.layers[0].store
    }

    /// What its images lie on, the one that is written first.
    pub fn stores(&self) -> impl Iterator<Item = &S> {
        self.layers.iter().map(|layer| &layer.store)
    }

    /// How many images deep it is.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// The leaf's footer as it was opened.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// The block that a sector is in, and where in it.
    #[inline(always)]
    fn split(&self, sector: u64) -> (u32, u32) {
        (sector.wrapping_shr(self.shift) as u32, sector as u32 & self.mask)
    }

    /// Splits a range at the ends of blocks: block, first and end within it.
    fn blocks(&self, sector: u64, count: u64) -> impl Iterator<Item = (u32, u32, u32)> + use<S> {
        let shift = self.shift;
        let (mut at, end) = (sector, sector + count);
        core::iter::from_fn(move || {
            (at < end).then(|| {
                let block = at >> shift;
                let base = block << shift;
                let to = end.min(base + (1 << shift));
                let part = (block as u32, (at - base) as u32, (to - base) as u32);
                at = to;
                part
            })
        })
    }

    /// Opens a block of the leaf: its bitmap comes to memory. If the leaf has no such block, it gets one, or, without
    /// `allocate`, it does not; false then.
    async fn open_block(&self, table: &Table, leaf: &RefCell<Leaf>, block: u32, allocate: bool) -> Result<bool, Error> {
        let mut rounds = 0;
        loop {
            let closed = leaf.borrow().open.get(&block).map(|open| open.closed);
            match closed {
                Some(false) => {
                    self.recent.set(block);
                    return Ok(true);
                }
                Some(true) => {
                    self.bell.listen().wait().await;
                    continue;
                }
                None => {}
            }
            self.make_room(leaf).await?;
            let change = self.change(block).get();
            let bitmap = async {
                let at = self.entry(0, table, block).await?;
                let bits = match at {
                    Some(at) => self.bits(table, at).await?,
                    None => alloc::vec![0; table.bitmap as usize * SECTOR_BYTES].into_boxed_slice(),
                };
                Ok((at, bits))
            };
            let (at, bits) = self.look_up(table.bitmap as usize, bitmap).await?;
            // Others may have taken what room there was.
            if self.change(block).get() != change
                || leaf.borrow().open.contains_key(&block)
                || leaf.borrow().is_crowded()
            {
                continue;
            }
            let new = at.is_none();
            if new && !allocate {
                return Ok(false);
            }
            let room = at.or_else(|| self.allocate(&mut leaf.borrow_mut()));
            let Some(at) = room else {
                if rounds == 3 {
                    return Err(Error::NoSpace);
                }
                // Room that was freed becomes usable in two steps.
                rounds += 1;
                self.settle().await?;
                continue;
            };
            let (store, alone) = (self.layers[0].store.info(), self.layers.len() == 1);
            // Behind the end of a store that grows there are zeroes, and a block without a layer below has no need of its
            // bitmap then.
            let zeroes = new && alone && store.grows && u64::from(at) >= store.sectors;
            let clean = !new || !alone || zeroes;
            let mut open = Open {
                at,
                data: at + table.bitmap,
                bits,
                new,
                named: !new,
                dirty: zeroes,
                unfilled: false,
                clean,
                writing: 0,
                closed: false,
            };
            if zeroes {
                // All of it is the leaf's at once, so the map alone says where the next write goes.
                bits::set_range(&mut open.bits, 0, table.sectors());
                self.changed(block);
                let place = map::Place::At(0, open.data);
                self.map.borrow_mut().learn_block(block, place);
            } else {
                self.recent.set(block);
            }
            leaf.borrow_mut().open.insert(block, open);
            return Ok(true);
        }
    }

    /// The map hears that sectors of a block are the leaf's now.
    #[inline(never)]
    fn moved(&self, block: u32, from: u32, to: u32, data: u32) {
        self.map.borrow_mut().patch(block, from, to, map::Place::At(0, data + from));
    }

    /// Does what holds the bytes of metadata until it is done: few may at once, the more it holds.
    async fn look_up<T>(&self, share: usize, work: impl Future<Output = T>) -> T {
        self.lookers.take(share).await;
        let result = work.await;
        self.lookers.put(share);
        result
    }

    /// Makes changes durable until another block may be changing. Who waits here holds none, so those that are written to will
    /// not be for ever.
    async fn make_room(&self, leaf: &RefCell<Leaf>) -> Result<(), Error> {
        leaf.borrow_mut().tidy();
        while leaf.borrow().is_crowded() {
            self.settle().await?;
            leaf.borrow_mut().tidy();
            let mut ended = self.bell.listen();
            let is_busy = |leaf: &Leaf| leaf.is_crowded() && leaf.open.all().all(Open::is_busy);
            if is_busy(&leaf.borrow()) {
                self.awaited.set(self.awaited.get() + 1);
                ended.wait().await;
                self.awaited.set(self.awaited.get() - 1);
            }
        }
        Ok(())
    }

    /// Room for a block.
    fn allocate(&self, leaf: &mut Leaf) -> Option<u32> {
        let store = &self.layers[0].store.info();
        // A store may have grown since.
        leaf.slots.set_end(layer::blocks_end(store));
        u32::try_from(leaf.slots.allocate()?).ok()
    }

    /// A whole bitmap from the store.
    async fn bits(&self, table: &Table, at: u32) -> Result<Box<[u8]>, Error> {
        let mut bits = alloc::vec![0; table.bitmap as usize * SECTOR_BYTES].into_boxed_slice();
        for (i, sector) in bits.as_chunks_mut().0.iter_mut().enumerate() {
            *sector = self.metadata(0, u64::from(at) + i as u64).await?;
        }
        Ok(bits)
    }
}

impl<S: Store> Format for Vhd<S> {
    type Store = S;
    type Visit<'a>
        = Visit<'a>
    where
        S: 'a;

    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn info(&self) -> Info {
        let (leaf, store) = (&self.layers[0], self.layers[0].store.info());
        Info {
            sectors: leaf.sectors,
            physical_bytes: store.physical_bytes.max(4096),
            read_only: self.read_only || store.read_only,
            // Where sectors are is told to the store only then.
            flush: store.flush || self.leaf.is_some(),
            discard: match leaf.kind {
                Kind::Flat => store.discard,
                Kind::Dynamic(_) => Some(Discard { granularity_bytes: 4096, alignment_bytes: 0 }),
            },
            grows: false,
        }
    }

    fn store(&self, layer: u16) -> &S {
        &self.layers[usize::from(layer)].store
    }

    fn enter(&self) -> Visit<'_> {
        self.visits.enter()
    }

    fn stay(&self) -> Stay {
        Stay(self.visits.stay())
    }

    fn leave(&self, Stay(number): Stay) {
        self.visits.leave(number);
    }

    #[inline(always)]
    fn find(&self, sector: u64, count: u64) -> Option<(Extent, u64)> {
        let found = self.map.borrow().find(sector, count);
        if found.is_some() { found } else { self.find_flat(sector, count) }
    }

    async fn learn(&self, sector: u64) -> Result<(), Error> {
        let result = self.look_up(LOOK_SHARE, self.learn_stretch(sector)).await;
        self.note(result)
    }

    #[inline(always)]
    fn place(&self, sector: u64, count: u64) -> Option<(Place, u64)> {
        let recent = self.split(sector).0 == self.recent.get();
        if recent {
            match self.place_in_block(sector, count) {
                Some(place) => return Some(place),
                None => self.recent.set(u32::MAX),
            }
        }
        if let Some((Extent::At { layer: 0, sector: at }, found)) = self.overwrite(sector, count)
            && (found == count || self.leaf.is_none())
        {
            return Some((Place { sector: at, changes: false }, found));
        }
        if recent { None } else { self.place_in_other(sector, count) }
    }

    #[inline(always)]
    fn overwrite(&self, sector: u64, count: u64) -> Option<(Extent, u64)> {
        let (extent, found) = self.find(sector, count)?;
        (matches!(extent, Extent::At { layer: 0, .. }) && !self.frozen.get()).then_some((extent, found))
    }

    async fn prepare(&self, sector: u64) -> Result<(), Error> {
        self.is_writable()?;
        let (Some(table), Some(leaf)) = (self.table(), &self.leaf) else { return Err(Error::ReadOnly) };
        let block = (sector >> table.shift) as u32;
        let result = self.open_block(table, leaf, block, true).await;
        self.note(result).map(drop)
    }

    #[inline(always)]
    fn commit(&self, sector: u64, count: u64, well: bool) {
        let Some(leaf) = &self.leaf else { return };
        let (block, from) = self.split(sector);
        let to = from + count as u32;
        let mut state = leaf.borrow_mut();
        // It is there: nothing takes away what is written to.
        let Some(open) = state.open.get_mut(&block) else { return };
        open.writing -= 1;
        let (data, last) = (open.data, open.writing == 0);
        if well {
            bits::set_range(&mut open.bits, from, to);
            open.dirty = true;
            self.changed(block);
        }
        drop(state);
        if last && self.awaited.get() > 0 {
            self.bell.ring();
        }
        if well && self.map.borrow().may_know(block) {
            self.moved(block, from, to, data);
        }
    }

    async fn forget(&self, sector: u64, count: u64) -> Result<(), Error> {
        let (Some(table), Some(leaf)) = (self.table(), &self.leaf) else {
            return self.layers[0].store.submit(Op::Discard { sectors: count }, sector).await;
        };
        self.is_writable()?;
        within(sector, count, self.layers[0].sectors)?;
        let most = self.map.borrow().sectors() as usize;
        for (block, from, to) in self.blocks(sector, count) {
            for first in (from..to).step_by(most) {
                let result = self.forget_in(table, leaf, block, first, to.min(first + most as u32)).await;
                self.note(result)?;
            }
        }
        Ok(())
    }

    async fn settle(&self) -> Result<(), Error> {
        let Some(leaf) = &self.leaf else { return self.layers[0].store.submit(Op::Flush, 0).await };
        // One that begins after us makes ours durable too.
        let after = self.settles.get();
        self.turn.take(1).await;
        let result = if self.settled.get() > after {
            Ok(())
        } else {
            let this = self.settles.get() + 1;
            self.settles.set(this);
            let result = self.settle_now(leaf).await;
            if result.is_ok() {
                self.settled.set(this);
            }
            result
        };
        self.turn.put(1);
        result
    }
}

impl<S: Store> Vhd<S> {
    /// Where sectors are if the leaf has no blocks, of which the map knows nothing.
    #[cold]
    fn find_flat(&self, sector: u64, count: u64) -> Option<(Extent, u64)> {
        matches!(self.layers[0].kind, Kind::Flat).then_some((Extent::At { layer: 0, sector }, count))
    }

    /// A place in a block that is open.
    #[inline(always)]
    fn place_in_block(&self, sector: u64, count: u64) -> Option<(Place, u64)> {
        let leaf = self.leaf.as_ref().filter(|_| !self.frozen.get())?;
        let (block, from) = self.split(sector);
        let here = count.min(u64::from(self.mask - from) + 1);
        let mut leaf = leaf.borrow_mut();
        let open = leaf.open.get_mut(&block).filter(|open| !open.closed)?;
        let changes = !bits::all(&open.bits, from, from + here as u32);
        if changes {
            open.writing += 1;
        }
        Some((Place { sector: u64::from(open.data) + u64::from(from), changes }, here))
    }

    /// The same in one that was not used last.
    #[inline(never)]
    fn place_in_other(&self, sector: u64, count: u64) -> Option<(Place, u64)> {
        let place = self.place_in_block(sector, count)?;
        self.recent.set(self.split(sector).0);
        Some(place)
    }

    /// Clears the bits of sectors below which there is nothing: those would be read instead.
    async fn forget_in(
        &self,
        table: &Table,
        leaf: &RefCell<Leaf>,
        block: u32,
        from: u32,
        to: u32,
    ) -> Result<(), Error> {
        let begin = u64::from(block) << table.shift;
        let below = self.look_up(LOOK_SHARE, self.resolve(begin + u64::from(from), to - from, 1)).await?;
        // In an iteration a block that was opened may have been closed again.
        loop {
            if !self.open_block(table, leaf, block, false).await? {
                return Ok(());
            }
            let mut state = leaf.borrow_mut();
            let Some(open) = state.open.get_mut(&block).filter(|open| !open.closed) else { continue };
            for (i, run) in below.iter().enumerate() {
                let (first, end) = (from + run.first, below.get(i + 1).map_or(to, |next| from + next.first));
                if run.place == map::Place::Zero {
                    bits::clear_range(&mut open.bits, first, end);
                    open.dirty = true;
                    self.map.borrow_mut().patch(block, first, end, map::Place::Zero);
                }
            }
            drop(state);
            self.changed(block);
            return Ok(());
        }
    }
}
