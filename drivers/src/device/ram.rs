//! A disk in our own memory, zero at first and gone with its last user. All its pages are there from the start: a
//! write never finds memory short.

use alloc::vec::Vec;

use xen::exec::yield_now;
use xen::page::{NoMemory, PAGE_BYTES, Page, Run};

use crate::disk::{Device, Discard, Error, Info, Op, Piece, SECTOR_BYTES, SECTORS_PER_PAGE, within};

/// The disk; cloning gives another handle on the same one, for any vCPU.
#[derive(Clone)]
pub struct Ram {
    run: Run,
    sectors: u64,
}

/// Pages that must stay free beside a RAM disk, for the rest of the domain to go on with: 4 MiB.
const SPARE_PAGES: usize = 1024;

/// Sectors zeroed before others get their turn: 512 KiB.
const SECTORS_AT_ONCE: u64 = 1024;

impl Ram {
    /// A disk of `pages` pages of zeroes, if the domain can spare them.
    pub fn new(pages: usize) -> Result<Self, NoMemory> {
        let run = Run::new(pages)?;
        Run::new(SPARE_PAGES)?;
        Ok(Ram { run, sectors: pages as u64 * u64::from(SECTORS_PER_PAGE) })
    }

    /// How many sectors it has.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The page that a sector is in, and which of its sectors it is. It must be one of the disk's.
    pub fn at(&self, sector: u64) -> (&Page, u32) {
        let per_page = u64::from(SECTORS_PER_PAGE);
        (self.run.at((sector / per_page) as usize), (sector % per_page) as u32)
    }

    /// Calls `each` with what the range touches of every page: page, first sector in it, sectors.
    fn split(&self, sector: u64, sectors: u64, mut each: impl FnMut(Piece)) {
        let (mut at, end) = (sector, sector + sectors);
        while at < end {
            let first = (at % u64::from(SECTORS_PER_PAGE)) as u8;
            let n = u64::from(SECTORS_PER_PAGE - first).min(end - at);
            let page = self.run.page((at / u64::from(SECTORS_PER_PAGE)) as usize);
            each(Piece { page, first, sectors: n as u8 });
            at += n;
        }
    }
}

impl Device for Ram {
    fn info(&self) -> Info {
        Info {
            sectors: self.sectors,
            physical_bytes: PAGE_BYTES as u32,
            read_only: false,
            // A flush has nothing to do here, but a guest that moves on to a disk that needs one should not have
            // learnt otherwise.
            flush: true,
            discard: Some(Discard { granularity_bytes: PAGE_BYTES as u32, alignment_bytes: 0 }),
            grows: false,
        }
    }

    async fn take(&self, sector: u64, shape: impl ExactSizeIterator<Item = (u8, u8)>, into: &mut Vec<Piece>) {
        let sectors = shape.map(|(_, sectors)| u64::from(sectors)).sum();
        self.split(sector, sectors, |piece| into.push(piece));
    }

    fn give(&self, pieces: &mut Vec<Piece>) {
        pieces.clear();
    }

    async fn submit(&self, op: Op<'_>, sector: u64) -> Result<(), Error> {
        within(sector, op.sectors(), self.sectors)?;
        match op {
            // The pieces are the disk.
            Op::Read(_) | Op::Write(_) | Op::Flush => Ok(()),
            Op::Discard { sectors } => {
                let (mut at, end) = (sector, sector + sectors);
                while at < end {
                    let some = (end - at).min(SECTORS_AT_ONCE);
                    self.split(at, some, |piece| {
                        let (at, bytes) = (usize::from(piece.first), usize::from(piece.sectors));
                        piece.page.zero(at * SECTOR_BYTES, bytes * SECTOR_BYTES);
                    });
                    at += some;
                    if at < end {
                        yield_now().await;
                    }
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::pin::pin;
    use core::task::{Context, Poll, Waker};
    use protocol::mem::Memory;

    fn now<F: Future>(future: F) -> F::Output {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => output,
            Poll::Pending => panic!("a RAM disk never waits"),
        }
    }

    #[test]
    fn pieces_are_the_disk_itself_and_a_discard_zeroes_just_its_sectors() {
        let ram = Ram::new(3).unwrap();
        let mut pieces = Vec::new();
        now(ram.take(5, [(0u8, 8u8), (0, 4)].into_iter(), &mut pieces));
        assert_eq!(
            pieces.iter().map(|p| (p.page.index(), p.first, p.sectors)).collect::<Vec<_>>(),
            [(0, 5, 3), (1, 0, 8), (2, 0, 1)]
        );
        pieces
            .iter()
            .for_each(|p| p.page.write(usize::from(p.first) * 512, &[7; 4096][..usize::from(p.sectors) * 512]));
        ram.give(&mut pieces);
        assert_eq!(now(ram.submit(Op::Discard { sectors: 8 }, 6)), Ok(()));
        let mut seen = Vec::new();
        for sector in 0..24u64 {
            let mut byte = [0];
            ram.run.page((sector / 8) as usize).read((sector % 8) as usize * 512, &mut byte);
            if byte[0] != 0 {
                seen.push(sector);
            }
        }
        assert_eq!(seen, [5, 14, 15, 16]);
    }

    #[test]
    fn nothing_is_done_past_the_end() {
        let ram = Ram::new(1).unwrap();
        assert_eq!(now(ram.submit(Op::Discard { sectors: 9 }, 0)), Err(Error::OutOfRange));
        assert_eq!(now(ram.submit(Op::Discard { sectors: u64::MAX }, 1)), Err(Error::OutOfRange));
    }
}
