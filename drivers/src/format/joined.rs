//! A format and its stores as one device: the only place where what is to be moved meets where it lies.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::{Extent, Format, Place};
use crate::disk::{Device, Error, Info, Op, Piece, SECTOR_BYTES, within};
use crate::payload::Rest;

/// An image as a device.
pub struct Joined<F> {
    /// The format.
    pub format: F,
}

impl<F: Format> Joined<F> {
    async fn read(&self, pieces: &[Piece], mut sector: u64, mut left: u64) -> Result<(), Error> {
        let mut rest = Rest::of(pieces);
        while left > 0 {
            let visit = self.format.enter();
            let Some((extent, count)) = self.format.find(sector, left) else {
                drop(visit);
                // What is rare does not make the future of what is frequent large.
                Box::pin(self.format.learn(sector)).await?;
                continue;
            };
            let part = if count == left { rest.all() } else { rest.take(count) };
            match extent {
                Extent::At { layer, sector } => {
                    self.format.store(layer).submit(Op::Read(part.pieces()), sector).await?;
                }
                Extent::Zero => {
                    for piece in part.pieces() {
                        let (at, bytes) = (usize::from(piece.first), usize::from(piece.sectors));
                        piece.page.zero(at * SECTOR_BYTES, bytes * SECTOR_BYTES);
                    }
                }
            }
            (sector, left) = (sector + count, left - count);
        }
        Ok(())
    }

    async fn write(&self, pieces: &[Piece], mut sector: u64, mut left: u64) -> Result<(), Error> {
        let mut rest = Rest::of(pieces);
        while left > 0 {
            let visit = self.format.enter();
            let Some((Place { sector: at, ticket }, count)) = self.format.place(sector, left) else {
                drop(visit);
                Box::pin(self.format.prepare(sector)).await?;
                continue;
            };
            let part = if count == left { rest.all() } else { rest.take(count) };
            let result = self.format.store(0).submit(Op::Write(part.pieces()), at).await;
            if let Some(ticket) = ticket {
                self.format.commit(ticket, result.is_ok());
            }
            result?;
            (sector, left) = (sector + count, left - count);
        }
        Ok(())
    }
}

impl<F: Format> Device for Joined<F> {
    fn info(&self) -> Info {
        self.format.info()
    }

    async fn take(&self, _: u64, shape: impl ExactSizeIterator<Item = (u8, u8)>, into: &mut Vec<Piece>) {
        // A store's pages may be used for any place, and for any layer.
        self.format.store(0).take(0, shape, into).await
    }

    fn give(&self, pieces: &mut Vec<Piece>) {
        self.format.store(0).give(pieces)
    }

    async fn submit(&self, op: Op<'_>, sector: u64) -> Result<(), Error> {
        let count = op.sectors();
        within(sector, count, self.format.sectors())?;
        match op {
            Op::Read(pieces) => self.read(pieces, sector, count).await,
            Op::Write(pieces) => self.write(pieces, sector, count).await,
            Op::Flush => Box::pin(self.format.settle()).await,
            Op::Discard { .. } if self.format.info().read_only => Err(Error::ReadOnly),
            Op::Discard { sectors: 0 } => Ok(()),
            Op::Discard { sectors } => Box::pin(self.format.forget(sector, sectors)).await,
        }
    }
}
