//! A format and its stores as one device: the only place where what is to be moved meets where it lies.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::pin::Pin;

use super::{Extent, Format, Place};
use crate::disk::{Device, Error, Info, Op, Piece, SECTOR_BYTES, sectors, within};
use crate::payload::Rest;

/// An image as a device.
pub struct Joined<F> {
    /// The format.
    pub format: F,
}

/// Where the next sectors of a payload go to or come from.
enum Step {
    /// A layer's store, from this sector on.
    Move(Move),
    /// Nowhere: they are read as zeroes.
    Zero,
}

struct Move {
    layer: u16,
    /// The format has to be told how it ended.
    changes: bool,
    sector: u64,
}

/// How a request is done. What is rare does not make the future of what is frequent large.
enum Way<'a, F: Format + 'a, P, O> {
    /// By a layer's store: all of it lies together and that is known.
    Whole(Move, F::Visit<'a>),
    /// In parts, or after where it lies was found out.
    Parts(Pin<Box<P>>),
    /// It moves nothing.
    Other(Pin<Box<O>>),
    /// It is done.
    Done(Result<(), Error>),
}

/// Fills a payload with zeroes.
fn zero(pieces: &[Piece]) {
    for piece in pieces {
        let (at, bytes) = (usize::from(piece.first), usize::from(piece.sectors));
        piece.page.zero(at * SECTOR_BYTES, bytes * SECTOR_BYTES);
    }
}

impl<F: Format> Joined<F> {
    /// The layer in whose store these sectors lie together, and where, if that is known and a transfer of them changes nothing
    /// of the image.
    pub fn together(&self, write: bool, sector: u64, count: u64) -> Option<(u16, u64)> {
        within(sector, count, self.format.sectors()).ok()?;
        let (found, all) = match write {
            true => self.format.overwrite(sector, count)?,
            false => self.format.find(sector, count)?,
        };
        match found {
            Extent::At { layer, sector } if all == count => Some((layer, sector)),
            Extent::At { .. } | Extent::Zero => None,
        }
    }

    #[inline(always)]
    fn way<'a>(
        &'a self,
        op: Op<'_>,
        sector: u64,
    ) -> Way<'a, F, impl Future<Output = Result<(), Error>>, impl Future<Output = Result<(), Error>>> {
        let count = op.sectors();
        if let Err(error) = within(sector, count, self.format.sectors()) {
            return Way::Done(Err(error));
        }
        let (Op::Read(pieces) | Op::Write(pieces)) = op else {
            return Way::Other(self.boxed_other(op, sector));
        };
        if count == 0 {
            return Way::Done(Ok(()));
        }
        let visit = self.format.enter();
        match self.step(op, sector, count) {
            Some((Step::Move(whole), all)) if all == count => Way::Whole(whole, visit),
            Some((Step::Zero, all)) if all == count => {
                zero(pieces);
                Way::Done(Ok(()))
            }
            first => {
                let write = matches!(op, Op::Write(_));
                Way::Parts(self.boxed_parts(pieces, write, sector, (visit, first)))
            }
        }
    }

    /// What is rare is made elsewhere: the way of what is frequent stays short enough to be laid out in one piece.
    #[inline(never)]
    fn boxed_parts<'a>(
        &'a self,
        pieces: &[Piece],
        write: bool,
        sector: u64,
        begun: (F::Visit<'a>, Option<(Step, u64)>),
    ) -> Pin<Box<impl Future<Output = Result<(), Error>>>> {
        Box::pin(self.parts(pieces, write, sector, begun))
    }

    #[inline(never)]
    fn boxed_other(&self, op: Op<'_>, sector: u64) -> Pin<Box<impl Future<Output = Result<(), Error>>>> {
        Box::pin(self.other(op, sector))
    }

    /// What is to be done next for `count` sectors from `sector` on, and for how many of them; none if that is not known.
    #[inline(always)]
    fn step(&self, op: Op<'_>, sector: u64, count: u64) -> Option<(Step, u64)> {
        if matches!(op, Op::Write(_)) {
            let (Place { sector, changes }, count) = self.format.place(sector, count)?;
            return Some((Step::Move(Move { layer: 0, changes, sector }), count));
        }
        match self.format.find(sector, count)? {
            (Extent::At { layer, sector }, count) => Some((Step::Move(Move { layer, changes: false, sector }), count)),
            (Extent::Zero, count) => Some((Step::Zero, count)),
        }
    }

    /// A read or write in as many parts as it takes; the first step is known, or none.
    async fn parts<'a>(
        &'a self,
        pieces: &[Piece],
        write: bool,
        mut sector: u64,
        (mut visit, mut first): (F::Visit<'a>, Option<(Step, u64)>),
    ) -> Result<(), Error> {
        let (mut rest, mut left) = (Rest::of(pieces), sectors(pieces));
        while left > 0 {
            let op = |pieces| if write { Op::Write(pieces) } else { Op::Read(pieces) };
            let Some((step, count)) = first.take().or_else(|| self.step(op(&[]), sector, left)) else {
                drop(visit);
                match write {
                    true => Box::pin(self.format.prepare(sector)).await?,
                    false => Box::pin(self.format.learn(sector)).await?,
                }
                visit = self.format.enter();
                continue;
            };
            let part = if count == left { rest.all() } else { rest.take(count) };
            match step {
                Step::Move(Move { layer, changes, sector: at }) => {
                    let result = self.format.store(layer).submit(op(part.pieces()), at).await;
                    if changes {
                        self.format.commit(sector, count, result.is_ok());
                    }
                    result?;
                }
                Step::Zero => zero(part.pieces()),
            }
            (sector, left) = (sector + count, left - count);
            drop(visit);
            visit = self.format.enter();
        }
        Ok(())
    }

    /// What moves nothing.
    async fn other(&self, op: Op<'_>, sector: u64) -> Result<(), Error> {
        match op {
            Op::Read(_) | Op::Write(_) | Op::Discard { sectors: 0 } => Ok(()),
            Op::Flush => self.format.settle().await,
            Op::Discard { .. } if self.format.info().read_only => Err(Error::ReadOnly),
            Op::Discard { sectors } => self.format.forget(sector, sectors).await,
        }
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

    #[expect(clippy::manual_async_fn, reason = "an async fn has its arguments twice in its future")]
    fn submit(&self, op: Op<'_>, sector: u64) -> impl Future<Output = Result<(), Error>> {
        async move {
            match self.way(op, sector) {
                Way::Whole(Move { layer, changes, sector: at }, visit) => {
                    let result = self.format.store(layer).submit(op, at).await;
                    if changes {
                        self.format.commit(sector, op.sectors(), result.is_ok());
                    }
                    drop(visit);
                    result
                }
                Way::Parts(parts) => parts.await,
                Way::Other(other) => other.await,
                Way::Done(result) => result,
            }
        }
    }
}
