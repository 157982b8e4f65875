//! Making changes durable, in the order that [`leaf`](super::leaf) tells.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::RefCell;

use protocol::vhd::{Batmap, UNUSED, bits};

use super::Vhd;
use super::layer::Table;
use super::leaf::Leaf;
use super::map::Place;
use crate::disk::{Error, Op, SECTOR_BYTES, Store};

/// What one block is to be on the store.
struct Change {
    block: u32,
    at: u32,
    bits: Box<[u8]>,
    new: bool,
    /// blktap's map of full blocks may say that it is full, and it is not, or not yet.
    unfill: bool,
}

impl<S: Store> Vhd<S> {
    /// Everything that is known now, and nothing that comes meanwhile.
    pub(super) async fn settle_now(&self, leaf: &RefCell<Leaf>) -> Result<(), Error> {
        let Some(table) = self.table() else { return Ok(()) };
        let store = &self.layers[0].store;
        leaf.borrow_mut().drop_empty();
        self.fill(table, leaf).await?;
        let mut changes = Vec::new();
        for (block, open) in leaf.borrow_mut().open.iter_mut() {
            // One that came while others were filled has to be filled first, too: it waits for the next time.
            if (open.clean || !open.new) && core::mem::take(&mut open.dirty) {
                let lacks = open.new || !bits::all(&open.bits, 0, table.sectors());
                let unfill = lacks && !open.unfilled;
                changes.push(Change { block: *block, at: open.at, bits: open.bits.clone(), new: open.new, unfill });
            }
        }
        let freed: Vec<_> = leaf.borrow().freed.iter().map(|(block, at)| (*block, *at)).collect();
        let result = match changes.is_empty() && freed.is_empty() {
            true => store.submit(Op::Flush, 0).await,
            false => self.write(table, leaf, &changes, &freed).await,
        };
        Self::settled(&mut leaf.borrow_mut(), &changes, &freed, result.is_ok());
        result?;
        self.reuse(leaf).await;
        Ok(())
    }

    /// Notes what became of changes.
    fn settled(leaf: &mut Leaf, changes: &[Change], freed: &[(u32, u32)], well: bool) {
        for change in changes {
            // What is written to is never taken away meanwhile, nor is what a table may name.
            if let Some(open) = leaf.open.get_mut(&change.block) {
                match well {
                    true => (open.new, open.unfilled) = (false, open.unfilled || change.unfill),
                    false => open.dirty = true,
                }
            }
        }
        // A whole block changes no more: the map alone knows it from now on.
        leaf.open.retain(|_, open| !open.is_settled() || !bits::all(&open.bits, 0, open.bits.len() as u32 * 8));
        for (block, at) in freed.iter().filter(|_| well) {
            leaf.freed.remove(block);
            leaf.limbo[1].push(*at);
        }
    }

    /// The two steps.
    async fn write(
        &self,
        table: &Table,
        leaf: &RefCell<Leaf>,
        changes: &[Change],
        freed: &[(u32, u32)],
    ) -> Result<(), Error> {
        let store = &self.layers[0].store;
        for change in changes.iter().filter(|change| change.new) {
            self.save(change.at.into(), &change.bits).await?;
        }
        self.no_longer_full(table, changes, freed).await?;
        let end = match store.info().grows {
            true => leaf.borrow().slots.data_end(),
            false => store.info().sectors.saturating_sub(1),
        };
        if leaf.borrow().footer_at != Some(end) {
            store.save(end, &self.footer.encode()).await?;
            leaf.borrow_mut().footer_at = Some(end);
        }
        store.submit(Op::Flush, 0).await?;
        for change in changes.iter().filter(|change| !change.new) {
            self.save(change.at.into(), &change.bits).await?;
        }
        // A block that was freed and has a new place is named there.
        let mut words: Vec<(u32, u32)> = freed.iter().map(|(block, _)| (*block, UNUSED)).collect();
        for change in changes.iter().filter(|change| change.new) {
            words.push((change.block, change.at));
            if let Some(open) = leaf.borrow_mut().open.get_mut(&change.block) {
                open.named = true;
            }
        }
        words.sort_by_key(|(block, _)| *block);
        let per_sector = (SECTOR_BYTES / 4) as u32;
        let mut words = words.into_iter().peekable();
        while let Some((block, _)) = words.peek().copied() {
            let place = table.sector + u64::from(block / per_sector);
            let mut sector = self.metadata(0, place).await?;
            while let Some((block, at)) = words.next_if(|next| next.0 / per_sector == block / per_sector) {
                let word = (block % per_sector) as usize * 4;
                sector[word..word + 4].copy_from_slice(&at.to_be_bytes());
            }
            self.save(place, &sector).await?;
        }
        store.submit(Op::Flush, 0).await
    }

    /// Writes metadata of the leaf.
    async fn save(&self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        self.saves.set(self.saves.get() + 1);
        let result = self.layers[0].store.save(at, bytes).await;
        self.saves.set(self.saves.get() + 1);
        result?;
        let mut cache = self.cache.borrow_mut();
        for (i, sector) in bytes.as_chunks().0.iter().enumerate() {
            cache.put(0, at + i as u64, sector);
        }
        Ok(())
    }

    /// Fills new blocks with zeroes where nothing was written, if there is no layer below: readers that do not look at the
    /// bitmap of such a block, as QEMU, must not find there what the store held before. Then all of the block is its own.
    async fn fill(&self, table: &Table, leaf: &RefCell<Leaf>) -> Result<(), Error> {
        let due: Vec<u32> = {
            let mut state = leaf.borrow_mut();
            let due = state.open.iter_mut().filter(|(_, open)| open.dirty && open.new && !open.clean);
            due.map(|(block, open)| {
                open.closed = true;
                *block
            })
            .collect()
        };
        let mut result = Ok(());
        for block in due {
            if result.is_ok() {
                self.awaited.set(self.awaited.get() + 1);
                result = self.fill_block(table, leaf, block).await;
                self.awaited.set(self.awaited.get() - 1);
            }
            if let Some(open) = leaf.borrow_mut().open.get_mut(&block) {
                open.closed = false;
            }
            self.bell.ring();
        }
        result
    }

    async fn fill_block(&self, table: &Table, leaf: &RefCell<Leaf>, block: u32) -> Result<(), Error> {
        loop {
            let mut ended = self.bell.listen();
            match leaf.borrow().open.get(&block) {
                Some(open) if open.writing > 0 => {}
                _ => break,
            }
            ended.wait().await;
        }
        let (mut gaps, mut data) = (Vec::new(), 0);
        if let Some(open) = leaf.borrow().open.get(&block) {
            data = open.data;
            let mut at = 0;
            while at < table.sectors() {
                let (set, count) = bits::run(&open.bits, at, table.sectors());
                if !set {
                    gaps.push((at, count));
                }
                at += count;
            }
        }
        for (first, count) in gaps {
            self.layers[0].store.zero(u64::from(data) + u64::from(first), count.into()).await?;
        }
        if let Some(open) = leaf.borrow_mut().open.get_mut(&block) {
            bits::set_range(&mut open.bits, 0, table.sectors());
            open.clean = true;
        }
        self.changed(block);
        // All of it is the leaf's now, so whoever reads or writes it next need not look.
        self.map.borrow_mut().learn_block(block, Place::At(0, data));
        Ok(())
    }

    /// Clears bits in blktap's map of full blocks: of new ones, for a block of the same number may have been full before; of
    /// those of which something was discarded; of those that are gone. Nobody here sets one, so that is done once.
    async fn no_longer_full(&self, table: &Table, changes: &[Change], freed: &[(u32, u32)]) -> Result<(), Error> {
        let Some(at) = table.batmap else { return Ok(()) };
        let mut gone: Vec<u32> = changes.iter().filter(|change| change.unfill).map(|change| change.block).collect();
        gone.extend(freed.iter().map(|(block, _)| *block));
        if gone.is_empty() && self.batmap_lost.get() == 0 {
            return Ok(());
        }
        gone.sort_unstable();
        let per_sector = (SECTOR_BYTES * 8) as u32;
        let mut blocks = gone.into_iter().peekable();
        let mut header = Batmap::parse(&self.metadata(0, at).await?, table.entries).map_err(|_| BATMAP)?;
        while let Some(block) = blocks.peek().copied() {
            let place = header.at + u64::from(block / per_sector);
            let old = self.metadata(0, place).await?;
            let mut sector = old;
            while let Some(block) = blocks.next_if(|next| next / per_sector == block / per_sector) {
                bits::clear_range(&mut sector, block % per_sector, block % per_sector + 1);
            }
            if sector != old {
                // The checksum is the complement of a sum, so a sector's part of it can be exchanged.
                let (mut before, mut after) = (header.sum(), header.sum());
                before.update(&old);
                after.update(&sector);
                self.save(place, &sector).await?;
                let lost = after.finish().wrapping_sub(before.finish());
                self.batmap_lost.set(self.batmap_lost.get().wrapping_add(lost));
            }
        }
        if self.batmap_lost.get() != 0 {
            header.checksum = header.checksum.wrapping_add(self.batmap_lost.get());
            self.save(at, &header.encode()).await?;
            self.batmap_lost.set(0);
        }
        Ok(())
    }

    /// Lets room be used again that was freed two changes of visitors ago, and tells the store that it is not needed.
    async fn reuse(&self, leaf: &RefCell<Leaf>) {
        let (Some(table), true) = (self.table(), self.visits.change()) else { return };
        let store = &self.layers[0].store;
        let free = {
            let mut state = leaf.borrow_mut();
            let young = core::mem::take(&mut state.limbo[1]);
            core::mem::replace(&mut state.limbo[0], young)
        };
        for at in free {
            if store.info().discard.is_some() {
                let sectors = u64::from(table.bitmap) + u64::from(table.sectors());
                // It is a wish; a store that does not grant it has the room still.
                if let Err(error) = store.submit(Op::Discard { sectors }, at.into()).await {
                    log::debug!("a VHD's block could not be discarded below: {error}");
                }
            }
            leaf.borrow_mut().slots.free(at.into());
        }
    }
}

const BATMAP: Error = Error::Corrupt("the batmap's header");
