//! Volumes: runs of sectors of lower disks as one device. A whole disk, a partition of it, a logical volume over several.
//!
//! A page that a payload is moved through is lent to the backend of one lower disk. A volume has a home, the disk whose pages
//! it hands out; all volumes of one chain of images have the same. What goes to another disk than home goes through that
//! disk's own pages, one copy more.
//!
//! # Layout
//! - here: runs as a device
//! - [`group`]: which runs a logical volume of LVM2 has

use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;

use protocol::blkif::Way;
use protocol::mem::Memory;
use xen::port::Xen;
use xen::sync::Listener;

use crate::claims::Place;
use crate::device::blkfront::{Blkfront, Life};
use crate::disk::{Device, Error, Info, Op, Piece, SECTOR_BYTES, Store, sectors, within};
use crate::payload::Rest;

pub mod group;

/// The disks that volumes lie on, home first.
pub type Disks<X> = Rc<[Rc<Blkfront<X>>]>;

/// Where a run's sectors are: linear with one leg, striped over several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// How many.
    pub sectors: u64,
    /// Sectors that lie together before the next leg's turn; all of them if there is one leg.
    pub stripe: u64,
    /// Which of the disks, and from which sector on.
    pub legs: Vec<(usize, u64)>,
}

impl Run {
    /// Sectors that all lie together.
    pub fn linear(disk: usize, start: u64, sectors: u64) -> Run {
        Run { sectors, stripe: sectors, legs: vec![(disk, start)] }
    }

    /// Where the run's sector `at` is, and how many from there on lie together.
    fn locate(&self, at: u64) -> (usize, u64, u64) {
        let (row, inside) = (at / self.stripe, at % self.stripe);
        let legs = self.legs.len() as u64;
        let (disk, start) = self.legs[(row % legs) as usize];
        (disk, start + row / legs * self.stripe + inside, (self.stripe - inside).min(self.sectors - at))
    }
}

/// A volume.
pub struct Volume<X: Xen> {
    disks: Disks<X>,
    /// One after the other; none means all of the first disk, also what it grows by.
    runs: Vec<Run>,
    /// Which of the disks it lies on, each once.
    used: Vec<usize>,
    /// Sectors of all runs.
    sectors: u64,
    /// It may not be written, whatever its disks say.
    read_only: bool,
}

/// Bytes that go through another disk's pages at once.
const BOUNCED_BYTES: usize = 32 << 10;

impl<X: Xen> Volume<X> {
    /// A whole disk.
    pub fn whole(disk: Rc<Blkfront<X>>) -> Self {
        Volume { disks: Rc::new([disk]), runs: Vec::new(), used: vec![0], sectors: 0, read_only: false }
    }

    /// Runs of these disks; none is empty, and none names a disk that is not there.
    pub fn of(disks: &Disks<X>, runs: Vec<Run>) -> Self {
        let mut used: Vec<usize> = runs.iter().flat_map(|run| run.legs.iter().map(|leg| leg.0)).collect();
        used.sort_unstable();
        used.dedup();
        let sectors = runs.iter().map(|run| run.sectors).sum();
        Volume { disks: disks.clone(), runs, used, sectors, read_only: false }
    }

    /// The same, but it is not written.
    pub fn read_only(self, read_only: bool) -> Self {
        Volume { read_only, ..self }
    }

    /// Where its first sector is.
    pub fn place(&self) -> Place {
        let (disk, start) = self.runs.first().and_then(|run| run.legs.first()).copied().unwrap_or((0, 0));
        (self.disks[disk].device(), start)
    }

    /// Hears when a disk's size or life changes from now on.
    pub fn changes(&self) -> Listener {
        self.disks[0].changed.listen()
    }

    /// Whether one of its disks went away for good.
    pub fn is_over(&self) -> bool {
        self.used().any(|disk| disk.life() == Life::Over)
    }

    fn writable(&self) -> Result<(), Error> {
        if self.read_only { Err(Error::ReadOnly) } else { Ok(()) }
    }

    /// The disks that it lies on, each once.
    fn used(&self) -> impl Iterator<Item = &Rc<Blkfront<X>>> {
        self.used.iter().map(|disk| &self.disks[*disk])
    }

    /// Where a sector is, and how many from there on lie together.
    fn locate(&self, sector: u64) -> Result<(usize, u64, u64), Error> {
        let mut at = sector;
        for run in &self.runs {
            match at.checked_sub(run.sectors) {
                Some(behind) => at = behind,
                None => return Ok(run.locate(at)),
            }
        }
        Err(Error::OutOfRange)
    }

    /// The disk on which sectors lie together, and where; none if they do not, or may not be moved that way.
    pub fn straight(&self, way: Way, sector: u64, sectors: u64) -> Option<(&Rc<Blkfront<X>>, u64)> {
        if way == Way::Write && self.read_only {
            return None;
        }
        if self.runs.is_empty() {
            return Some((&self.disks[0], sector));
        }
        let (disk, at, together) = self.locate(sector).ok()?;
        (sectors <= together).then(|| (&self.disks[disk], at))
    }

    /// Calls for all parts of a range that lie together, one after the other: disk, sector, how many.
    async fn each(
        &self,
        mut sector: u64,
        mut left: u64,
        mut part: impl AsyncFnMut(usize, u64, u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        while left > 0 {
            let (disk, at, together) = self.locate(sector)?;
            let here = together.min(left);
            part(disk, at, here).await?;
            (sector, left) = (sector + here, left - here);
        }
        Ok(())
    }

    /// Moves pieces of home's pages from or to another disk.
    async fn bounce(&self, disk: usize, sector: u64, pieces: &[Piece], write: bool) -> Result<(), Error> {
        let disk = &self.disks[disk];
        let (mut rest, mut left, mut sector) = (Rest::of(pieces), sectors(pieces), sector);
        let mut buffer = vec![0; BOUNCED_BYTES];
        while left > 0 {
            let here = left.min((BOUNCED_BYTES / SECTOR_BYTES) as u64);
            let (part, bytes) = (rest.take(here), &mut buffer[..here as usize * SECTOR_BYTES]);
            if !write {
                disk.load(sector, bytes).await?;
            }
            let mut bytes_left = &mut bytes[..];
            for piece in part.pieces() {
                let (some, rest) = bytes_left.split_at_mut(usize::from(piece.sectors) * SECTOR_BYTES);
                let at = usize::from(piece.first) * SECTOR_BYTES;
                match write {
                    true => piece.page.read(at, some),
                    false => piece.page.write(at, some),
                }
                bytes_left = rest;
            }
            if write {
                disk.save(sector, bytes).await?;
            }
            (sector, left) = (sector + here, left - here);
        }
        Ok(())
    }

    async fn transfer(&self, pieces: &[Piece], sector: u64, write: bool) -> Result<(), Error> {
        let mut rest = Rest::of(pieces);
        self.each(sector, sectors(pieces), async |disk, at, here| {
            let part = rest.take(here);
            match (disk, write) {
                (0, true) => self.disks[0].submit(Op::Write(part.pieces()), at).await,
                (0, false) => self.disks[0].submit(Op::Read(part.pieces()), at).await,
                _ => self.bounce(disk, at, part.pieces(), write).await,
            }
        })
        .await
    }
}

impl<X: Xen> Device for Volume<X> {
    fn info(&self) -> Info {
        let mut infos = self.used().map(|disk| disk.info());
        let Some(first) = infos.next() else { return self.disks[0].info() };
        let all = infos.fold(first, |all, info| Info {
            sectors: 0,
            physical_bytes: all.physical_bytes.max(info.physical_bytes),
            read_only: all.read_only || info.read_only,
            flush: all.flush || info.flush,
            discard: all
                .discard
                .zip(info.discard)
                .map(|(one, other)| if one.granularity_bytes >= other.granularity_bytes { one } else { other }),
            grows: false,
        });
        let sectors = if self.runs.is_empty() { first.sectors } else { self.sectors };
        Info { sectors, read_only: all.read_only || self.read_only, ..all }
    }

    async fn take(&self, sector: u64, shape: impl ExactSizeIterator<Item = (u8, u8)>, into: &mut Vec<Piece>) {
        self.disks[0].take(sector, shape, into).await
    }

    fn give(&self, pieces: &mut Vec<Piece>) {
        self.disks[0].give(pieces)
    }

    async fn submit(&self, op: Op<'_>, sector: u64) -> Result<(), Error> {
        if self.runs.is_empty() {
            return self.disks[0].submit(op, sector).await;
        }
        within(sector, op.sectors(), self.sectors)?;
        match op {
            Op::Write(_) | Op::Discard { .. } if self.read_only => Err(Error::ReadOnly),
            Op::Read(pieces) => self.transfer(pieces, sector, false).await,
            Op::Write(pieces) => self.transfer(pieces, sector, true).await,
            Op::Discard { sectors } => {
                let discard =
                    async |disk: usize, at, sectors| self.disks[disk].submit(Op::Discard { sectors }, at).await;
                self.each(sector, sectors, discard).await
            }
            Op::Flush => {
                for disk in self.used() {
                    disk.submit(Op::Flush, 0).await?;
                }
                Ok(())
            }
        }
    }
}

impl<X: Xen> Store for Volume<X> {
    async fn load(&self, sector: u64, bytes: &mut [u8]) -> Result<(), Error> {
        if self.runs.is_empty() {
            return self.disks[0].load(sector, bytes).await;
        }
        let (count, mut done) = ((bytes.len() / SECTOR_BYTES) as u64, 0);
        self.each(sector, count, async |disk, at, here| {
            let end = done + here as usize * SECTOR_BYTES;
            self.disks[disk].load(at, &mut bytes[done..end]).await?;
            done = end;
            Ok(())
        })
        .await
    }

    async fn save(&self, sector: u64, bytes: &[u8]) -> Result<(), Error> {
        if self.runs.is_empty() {
            return self.disks[0].save(sector, bytes).await;
        }
        self.writable()?;
        let (count, mut done) = ((bytes.len() / SECTOR_BYTES) as u64, 0);
        self.each(sector, count, async |disk, at, here| {
            let end = done + here as usize * SECTOR_BYTES;
            self.disks[disk].save(at, &bytes[done..end]).await?;
            done = end;
            Ok(())
        })
        .await
    }

    async fn zero(&self, sector: u64, sectors: u64) -> Result<(), Error> {
        if self.runs.is_empty() {
            return self.disks[0].zero(sector, sectors).await;
        }
        self.writable()?;
        within(sector, sectors, self.sectors)?;
        self.each(sector, sectors, async |disk, at, here| self.disks[disk].zero(at, here).await).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripes_take_turns() {
        // Two legs, stripes of 4 sectors, 10 stripes.
        let run = Run { sectors: 40, stripe: 4, legs: vec![(0, 100), (2, 200)] };
        let places: Vec<_> = (0..40).step_by(4).map(|at| run.locate(at)).collect();
        let even = |row: u64| (0, 100 + row / 2 * 4, 4);
        let odd = |row: u64| (2, 200 + row / 2 * 4, 4);
        assert_eq!(places, (0..10).map(|row| if row % 2 == 0 { even(row) } else { odd(row) }).collect::<Vec<_>>());
        assert_eq!(run.locate(6), (2, 202, 2));
        assert_eq!(Run::linear(1, 50, 30).locate(29), (1, 79, 1));
    }
}
