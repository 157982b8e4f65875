//! What both ends believe about bytes: the lower backend's [`Disk`], and a guest's [`Model`] of what it must read.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::blkif::SECTOR;
use crate::crash::{Entry, Recording};
use crate::random::Random;

/// A disk with a volatile cache: what was written since the last flush may be lost, any part of it.
pub struct Disk {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    cached: Vec<u64>,
    recording: Option<Recording>,
}

thread_local! {
    /// Models made in this world so far: each has an owner of its own.
    static OWNERS: Cell<u64> = const { Cell::new(1) };
}

/// A disk that a backend and a test share.
pub type SharedDisk = Rc<RefCell<Disk>>;

/// A new world begins on this thread: its owners are counted from the start, so that a seed writes the same bytes again.
pub(crate) fn begin() {
    OWNERS.set(1);
}

fn range(sector: u64, sectors: u64) -> std::ops::Range<usize> {
    sector as usize * SECTOR..(sector + sectors) as usize * SECTOR
}

impl Disk {
    /// A disk of zeroes.
    pub fn new(sectors: u64) -> Self {
        let bytes = vec![0; sectors as usize * SECTOR];
        Disk { durable: bytes.clone(), bytes, cached: Vec::new(), recording: None }
    }

    /// A disk whose bytes the seed decides.
    pub fn random(sectors: u64, random: &mut Random) -> SharedDisk {
        let mut disk = Disk::new(sectors);
        random.fill_sectors(&mut disk.bytes);
        disk.durable.clone_from(&disk.bytes);
        Rc::new(RefCell::new(disk))
    }

    /// How many sectors.
    pub fn sectors(&self) -> u64 {
        (self.bytes.len() / SECTOR) as u64
    }

    /// Whether all of the range is on the disk.
    pub fn holds(&self, sector: u64, sectors: u64) -> bool {
        sector.checked_add(sectors).is_some_and(|end| end <= self.sectors())
    }

    /// Reads; the range must be on the disk.
    pub fn read(&self, sector: u64, into: &mut [u8]) {
        into.copy_from_slice(&self.bytes[range(sector, (into.len() / SECTOR) as u64)]);
    }

    /// Writes, into the cache; the range must be on the disk.
    pub fn write(&mut self, sector: u64, from: &[u8]) {
        let sectors = (from.len() / SECTOR) as u64;
        self.bytes[range(sector, sectors)].copy_from_slice(from);
        self.cached.extend(sector..sector + sectors);
        if let Some(recording) = &mut self.recording {
            recording.push(Entry::Write { sector, data: from.to_vec() });
        }
    }

    /// Records from now on what reaches the disk, which is durable as it is.
    pub fn record(&mut self) {
        self.flush();
        self.recording = Some(Recording::of(&self.bytes));
    }

    /// What was recorded.
    pub fn recording(&self) -> &Recording {
        self.recording.as_ref().expect("told to record")
    }

    /// How many entries were recorded.
    pub fn recorded(&self) -> usize {
        self.recording.as_ref().map_or(0, Recording::len)
    }

    /// Makes everything written so far durable.
    pub fn flush(&mut self) {
        self.flush_to(self.recorded());
    }

    /// As [`flush`](Disk::flush); a recording takes only what was written before that entry for durable.
    pub fn flush_to(&mut self, covers: usize) {
        if let Some(recording) = &mut self.recording {
            recording.push(Entry::Flush { covers });
        }
        for sector in self.cached.drain(..) {
            let range = range(sector, 1);
            self.durable[range.clone()].copy_from_slice(&self.bytes[range]);
        }
    }

    /// A larger or smaller disk.
    pub fn resize(&mut self, sectors: u64) {
        self.bytes.resize(sectors as usize * SECTOR, 0);
        self.durable.resize(sectors as usize * SECTOR, 0);
        self.cached.retain(|sector| *sector < sectors);
    }

    /// The power fails: of what was not flushed the seed keeps some sectors and loses the others.
    pub fn crash(&mut self, random: &mut Random) {
        self.cached.sort_unstable();
        self.cached.dedup();
        for sector in std::mem::take(&mut self.cached) {
            if random.one_in(2) {
                let range = range(sector, 1);
                self.durable[range.clone()].copy_from_slice(&self.bytes[range]);
            }
        }
        self.bytes.clone_from(&self.durable);
    }

    /// What a power cut now would surely leave.
    pub fn durable(&self) -> &[u8] {
        &self.durable
    }

    /// What a reader sees now.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What must be on a guest's disk, sector by sector, where that is certain.
pub struct Model {
    /// Whose the bytes are that are written to it.
    owner: u64,
    bytes: Vec<u8>,
    certain: Vec<bool>,
}

/// A model that successive frontends of one disk share.
pub type SharedModel = Rc<RefCell<Model>>;

impl Model {
    /// A disk that is known to hold these bytes.
    pub fn of(bytes: &[u8]) -> SharedModel {
        let (bytes, certain) = (bytes.to_vec(), vec![true; bytes.len() / SECTOR]);
        Rc::new(RefCell::new(Model { owner: OWNERS.replace(OWNERS.get() + 1), bytes, certain }))
    }

    /// A disk of zeroes.
    pub fn zeroes(sectors: u64) -> SharedModel {
        Model::of(&vec![0; sectors as usize * SECTOR])
    }

    /// A disk of whatever size, of which nothing is known.
    pub fn unknown() -> SharedModel {
        Model::zeroes(0)
    }

    /// Whose the bytes are that are written to it.
    pub fn owner(&self) -> u64 {
        self.owner
    }

    /// What is written to it may be seen by whoever may see the other's: both are of one disk.
    pub fn shares(&mut self, other: &SharedModel) {
        self.owner = other.borrow().owner;
    }

    /// How many sectors it knows of.
    pub fn sectors(&self) -> u64 {
        self.certain.len() as u64
    }

    /// A write or discard is under way, or failed, or was lost: the range, as far as it is on the disk, may hold
    /// anything.
    pub fn doubt(&mut self, sector: u64, sectors: u64) {
        let end = self.sectors();
        self.certain[sector.min(end) as usize..(sector + sectors).min(end) as usize].fill(false);
    }

    /// A write was answered. What the disk has lost of its size meanwhile is of no interest.
    pub fn wrote(&mut self, sector: u64, data: &[u8]) {
        let sectors = ((data.len() / SECTOR) as u64).min(self.sectors().saturating_sub(sector));
        if sectors == 0 {
            return;
        }
        let data = &data[..sectors as usize * SECTOR];
        self.bytes[range(sector, sectors)].copy_from_slice(data);
        self.certain[sector as usize..(sector + sectors) as usize].fill(true);
    }

    /// A read was answered: what is certain must be so; what was not is from now on what was read. Returns the first
    /// sector that is wrong.
    pub fn saw(&mut self, sector: u64, data: &[u8]) -> Result<(), u64> {
        for (at, data) in (sector..self.sectors()).zip(data.chunks(SECTOR)) {
            let known = &mut self.bytes[range(at, 1)];
            if self.certain[at as usize] && known != data {
                return Err(at);
            }
            known.copy_from_slice(data);
            self.certain[at as usize] = true;
        }
        Ok(())
    }

    /// The disk has another size now. What is new may hold anything.
    pub fn resize(&mut self, sectors: u64) {
        self.bytes.resize(sectors as usize * SECTOR, 0);
        self.certain.resize(sectors as usize, false);
    }

    /// What it holds, certain or not.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Compares with a whole disk, where certain. Returns the first sector that is wrong.
    pub fn compare(&self, disk: &[u8]) -> Result<(), usize> {
        let wrong =
            |at: &usize| self.certain[*at] && self.bytes[at * SECTOR..][..SECTOR] != disk[at * SECTOR..][..SECTOR];
        (0..self.certain.len()).find(wrong).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_keeps_and_a_crash_loses_some() {
        let mut random = Random::new(5);
        let mut disk = Disk::new(64);
        disk.write(3, &[7; SECTOR]);
        disk.flush();
        disk.write(10, &[9; SECTOR * 32]);
        disk.crash(&mut random);
        assert_eq!(disk.bytes()[3 * SECTOR], 7);
        let kept = (10..42).filter(|at| disk.bytes()[at * SECTOR] == 9).count();
        assert!(kept > 0 && kept < 32, "{kept} of 32 sectors kept");
        assert_eq!(disk.bytes(), disk.durable());
    }

    #[test]
    fn a_model_learns_what_was_in_doubt_and_holds_to_it() {
        let model = Model::zeroes(8);
        let mut model = model.borrow_mut();
        model.doubt(2, 2);
        assert_eq!(model.saw(2, &[5; SECTOR]), Ok(()));
        assert_eq!(model.saw(2, &[6; SECTOR]), Err(2));
        model.wrote(2, &[6; SECTOR]);
        assert_eq!(model.saw(0, &[[0; SECTOR], [1; SECTOR]].concat()), Err(1));
    }
}
