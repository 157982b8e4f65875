//! A format and its stores as one device: the only place where what is to be moved meets where it lies.

use alloc::vec::Vec;

use super::{Extent, Format, Place};
use crate::disk::{Device, Error, Info, Op, Piece, SECTOR_BYTES, sectors, within};

/// An image as a device.
pub struct Joined<F> {
    /// The format.
    pub format: F,
}

/// What is left of a payload: pieces, and how many sectors of the first are behind us.
struct Rest<'a> {
    pieces: &'a [Piece],
    behind: u8,
}

/// The next part of a payload: whole pieces where it is cut between two, copies of pieces where it is cut within one.
enum Part<'a> {
    Whole(&'a [Piece]),
    Cut(Vec<Piece>),
}

impl Part<'_> {
    fn pieces(&self) -> &[Piece] {
        match self {
            Part::Whole(pieces) => pieces,
            Part::Cut(pieces) => pieces,
        }
    }
}

impl<'a> Rest<'a> {
    /// Takes `count` sectors, at most what there is.
    fn take(&mut self, count: u64) -> Part<'a> {
        let (all, begin) = (self.pieces, self.behind);
        let mut left = count;
        while let Some(piece) = self.pieces.first() {
            let here = u64::from(piece.sectors - self.behind);
            if here > left {
                break;
            }
            left -= here;
            (self.pieces, self.behind) = (&self.pieces[1..], 0);
        }
        let whole = &all[..all.len() - self.pieces.len()];
        if begin == 0 && left == 0 {
            return Part::Whole(whole);
        }
        let mut cut = whole.to_vec();
        match cut.first_mut() {
            Some(first) => (first.first, first.sectors) = (first.first + begin, first.sectors - begin),
            // All of it lies within one piece, of which this much is behind us already.
            None => debug_assert_eq!(self.behind, begin),
        }
        if left > 0
            && let Some(piece) = self.pieces.first()
        {
            // Less than a piece has, so it fits.
            let here = left as u8;
            cut.push(Piece { first: piece.first + self.behind, sectors: here, ..piece.clone() });
            self.behind += here;
        }
        Part::Cut(cut)
    }
}

impl<F: Format> Joined<F> {
    async fn read(&self, pieces: &[Piece], mut sector: u64) -> Result<(), Error> {
        let (mut rest, mut left) = (Rest { pieces, behind: 0 }, sectors(pieces));
        while left > 0 {
            let visit = self.format.enter();
            let Some((extent, count)) = self.format.find(sector, left) else {
                drop(visit);
                self.format.learn(sector).await?;
                continue;
            };
            let part = rest.take(count);
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

    async fn write(&self, pieces: &[Piece], mut sector: u64) -> Result<(), Error> {
        let (mut rest, mut left) = (Rest { pieces, behind: 0 }, sectors(pieces));
        while left > 0 {
            let visit = self.format.enter();
            let Some((Place { sector: at, ticket }, count)) = self.format.place(sector, left) else {
                drop(visit);
                self.format.prepare(sector).await?;
                continue;
            };
            let result = self.format.store(0).submit(Op::Write(rest.take(count).pieces()), at).await;
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
        let info = self.info();
        within(sector, op.sectors(), info.sectors)?;
        match op {
            Op::Read(pieces) => self.read(pieces, sector).await,
            Op::Flush => self.format.settle().await,
            Op::Write(_) | Op::Discard { .. } if info.read_only => Err(Error::ReadOnly),
            Op::Write(pieces) => self.write(pieces, sector).await,
            Op::Discard { sectors: 0 } => Ok(()),
            Op::Discard { sectors } => self.format.forget(sector, sectors).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use xen::page::PageRef;

    /// As `(first, sectors)`.
    fn shape(pieces: &[Piece]) -> Vec<(u8, u8)> {
        pieces.iter().map(|piece| (piece.first, piece.sectors)).collect()
    }

    #[test]
    fn a_payload_is_cut_where_its_extents_end() {
        let page = PageRef::alone().unwrap();
        let piece = |first, sectors| Piece { page: page.clone(), first, sectors };
        let pieces = [piece(0, 8), piece(3, 5), piece(0, 8)];
        for cuts in [vec![21], vec![8, 5, 8], vec![1, 1, 19], vec![7, 2, 4, 7, 1], vec![10, 1, 1, 9], vec![3, 18]] {
            let (mut rest, mut seen) = (Rest { pieces: &pieces, behind: 0 }, Vec::new());
            for count in &cuts {
                let part = rest.take(*count);
                assert_eq!(sectors(part.pieces()), *count, "{cuts:?}");
                seen.extend(shape(part.pieces()).iter().flat_map(|(first, n)| *first..first + n));
            }
            let all: Vec<u8> = shape(&pieces).iter().flat_map(|(first, n)| *first..first + n).collect();
            assert_eq!(seen, all, "{cuts:?}");
        }
        let mut rest = Rest { pieces: &pieces, behind: 0 };
        assert!(matches!(rest.take(13), Part::Whole(some) if some.len() == 2), "what needs no cut is not copied");
    }
}
