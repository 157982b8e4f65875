//! A store that keeps metadata and no data: what it costs is a count.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use drivers::disk::{Device, Error, Info, Op, Piece, SECTOR_BYTES, Store};
use drivers::format::vhd::open::Place;
use drivers::target::OpenError;
use protocol::errno::Errno;

/// Sectors of metadata that were saved; all others are zeroes.
#[derive(Clone)]
pub struct Hollow {
    saved: Rc<RefCell<HashMap<u64, [u8; SECTOR_BYTES]>>>,
    /// Writes and flushes so far.
    pub writes: Rc<Cell<u64>>,
    /// Reads so far.
    pub reads: Rc<Cell<u64>>,
    /// Where the file ends; none for a device that is large enough.
    end: Option<Rc<Cell<u64>>>,
}

impl Hollow {
    /// A file, or a device of 4 TiB.
    pub fn new(grows: bool) -> Self {
        let end = grows.then(Rc::default);
        Hollow { saved: Rc::default(), writes: Rc::default(), reads: Rc::default(), end }
    }

    fn reach(&self, end: u64) {
        if let Some(now) = &self.end {
            now.set(now.get().max(end));
        }
    }
}

fn count(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

impl Device for Hollow {
    fn info(&self) -> Info {
        let sectors = self.end.as_ref().map_or(1 << 33, |end| end.get());
        Info { sectors, physical_bytes: 512, read_only: false, flush: true, discard: None, grows: self.end.is_some() }
    }

    async fn take(&self, _: u64, _: impl ExactSizeIterator<Item = (u8, u8)>, _: &mut Vec<Piece>) {
        panic!("pages are the case's own")
    }

    fn give(&self, _: &mut Vec<Piece>) {}

    async fn submit(&self, op: Op<'_>, sector: u64) -> Result<(), Error> {
        self.reach(sector + op.sectors());
        match op {
            Op::Read(_) => count(&self.reads),
            Op::Write(_) | Op::Flush | Op::Discard { .. } => count(&self.writes),
        }
        Ok(())
    }
}

impl Store for Hollow {
    async fn load(&self, sector: u64, bytes: &mut [u8]) -> Result<(), Error> {
        count(&self.reads);
        let saved = self.saved.borrow();
        for (at, bytes) in (sector..).zip(bytes.as_chunks_mut().0) {
            *bytes = saved.get(&at).copied().unwrap_or([0; SECTOR_BYTES]);
        }
        Ok(())
    }

    async fn save(&self, sector: u64, bytes: &[u8]) -> Result<(), Error> {
        count(&self.writes);
        self.reach(sector + (bytes.len() / SECTOR_BYTES) as u64);
        let mut saved = self.saved.borrow_mut();
        for (at, bytes) in (sector..).zip(bytes.as_chunks().0) {
            *saved.entry(at).or_insert([0; SECTOR_BYTES]) = *bytes;
        }
        Ok(())
    }

    async fn zero(&self, sector: u64, sectors: u64) -> Result<(), Error> {
        self.reach(sector + sectors);
        count(&self.writes);
        Ok(())
    }
}

/// A chain's images by number: the parent of `image-7` is `image-6`.
pub struct Row(pub Vec<Hollow>);

impl Place for Row {
    type Store = Hollow;

    async fn parent(&self, name: &str) -> Result<(Hollow, String), OpenError> {
        let number = name.rsplit('-').next().and_then(|number| number.parse::<usize>().ok());
        let image = number.and_then(|number| self.0.get(number));
        let none = || OpenError::new(Errno::ENOENT, format!("{name}: there is none"));
        Ok((image.ok_or_else(none)?.clone(), name.into()))
    }
}
