//! A payload cut where what it is for is cut.

use alloc::vec::Vec;

use crate::disk::Piece;

/// What is left of a payload: pieces, and how many sectors of the first are behind us.
pub struct Rest<'a> {
    pieces: &'a [Piece],
    behind: u8,
}

/// The next part of a payload: whole pieces where it is cut between two, copies of pieces where it is cut within one.
pub enum Part<'a> {
    /// As they are.
    Whole(&'a [Piece]),
    /// The first or the last of them is a part of one.
    Cut(Vec<Piece>),
}

impl Part<'_> {
    /// The pieces of it.
    pub fn pieces(&self) -> &[Piece] {
        match self {
            Part::Whole(pieces) => pieces,
            Part::Cut(pieces) => pieces,
        }
    }
}

impl<'a> Rest<'a> {
    /// All of these.
    pub fn of(pieces: &'a [Piece]) -> Self {
        Rest { pieces, behind: 0 }
    }

    /// Takes all that there is.
    pub fn all(&mut self) -> Part<'a> {
        match self.behind {
            0 => Part::Whole(core::mem::take(&mut self.pieces)),
            _ => self.take(crate::disk::sectors(self.pieces) - u64::from(self.behind)),
        }
    }

    /// Takes `count` sectors, at most what there is.
    pub fn take(&mut self, count: u64) -> Part<'a> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sectors;
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
            let (mut rest, mut seen) = (Rest::of(&pieces), Vec::new());
            for count in &cuts {
                let part = rest.take(*count);
                assert_eq!(sectors(part.pieces()), *count, "{cuts:?}");
                seen.extend(shape(part.pieces()).iter().flat_map(|(first, n)| *first..first + n));
            }
            let all: Vec<u8> = shape(&pieces).iter().flat_map(|(first, n)| *first..first + n).collect();
            assert_eq!(seen, all, "{cuts:?}");
        }
        let mut rest = Rest::of(&pieces);
        assert!(matches!(rest.take(13), Part::Whole(some) if some.len() == 2), "what needs no cut is not copied");
    }
}
