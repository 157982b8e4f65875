//! The words of storage: what a disk is, what may be asked of it, and how it says no.
//!
//! Sectors are 512 bytes everywhere, whatever a disk's own blocks are (`io/blkif.h`, "sector units").

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::fmt;

use protocol::errno::Errno;
use xen::page::PageRef;
use xen::sync::Completions;

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;
/// Sectors of a page.
pub const SECTORS_PER_PAGE: u8 = 8;

/// Some sectors of one page of ours.
#[derive(Clone)]
pub struct Piece {
    /// The page.
    pub page: PageRef,
    /// First sector in the page.
    pub first: u8,
    /// How many; `first + sectors` is at most [`SECTORS_PER_PAGE`].
    pub sectors: u8,
}

/// Sectors of a payload: its pieces one after the other.
#[inline]
pub fn sectors(pieces: &[Piece]) -> u64 {
    // Most have one.
    if let [piece] = pieces {
        return piece.sectors.into();
    }
    pieces.iter().map(|piece| u64::from(piece.sectors)).sum()
}

/// What may be asked of a disk. The place is told beside it.
#[derive(Clone, Copy)]
pub enum Op<'a> {
    /// Fill the pieces with the sectors.
    Read(&'a [Piece]),
    /// Write the pieces to the sectors; durable after the next flush.
    Write(&'a [Piece]),
    /// So many sectors are not needed any more; what is read there later is undefined but never somebody else's.
    Discard {
        /// How many.
        sectors: u64,
    },
    /// Everything whose write was answered is durable when this is answered.
    Flush,
}

impl Op<'_> {
    /// How many sectors it touches.
    pub fn sectors(&self) -> u64 {
        match self {
            Op::Read(pieces) | Op::Write(pieces) => self::sectors(pieces),
            Op::Discard { sectors } => *sectors,
            Op::Flush => 0,
        }
    }
}

/// How a disk discards, in bytes as `io/blkif.h` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discard {
    /// `discard-granularity`
    pub granularity_bytes: u32,
    /// `discard-alignment`
    pub alignment_bytes: u32,
}

/// What a disk is. May change while it is open: a disk can grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Size.
    pub sectors: u64,
    /// `physical-sector-size`: what it likes to be written in; a power of two, at least 512.
    pub physical_bytes: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// It has a cache that a flush empties. Without one every write is durable when answered.
    pub flush: bool,
    /// Whether and how it discards.
    pub discard: Option<Discard>,
    /// A write past the end makes it larger, as with a file of a host. What was never written reads as zeroes there.
    pub grows: bool,
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sectors in blocks of {} bytes", self.sectors, self.physical_bytes)?;
        let words = [
            (self.read_only, "read-only"),
            (self.flush, "flush"),
            (self.discard.is_some(), "discard"),
            (self.grows, "grows"),
        ];
        words.iter().filter(|(so, _)| *so).try_for_each(|(_, word)| write!(f, ", {word}"))
    }
}

/// Why a disk could not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The store below failed.
    Medium,
    /// The store below is gone or not there yet.
    Gone,
    /// It may not be written.
    ReadOnly,
    /// Past the end.
    OutOfRange,
    /// It cannot do that at all.
    Unsupported,
    /// The store below is full.
    NoSpace,
    /// The image says what cannot be; the text names the field.
    Corrupt(&'static str),
}

impl Error {
    /// The errno of Linux that says it.
    pub fn errno(self) -> Errno {
        match self {
            Error::Medium => Errno::EIO,
            Error::Gone => Errno::ESHUTDOWN,
            Error::ReadOnly => Errno::EROFS,
            Error::OutOfRange => Errno::EINVAL,
            Error::Unsupported => Errno::EOPNOTSUPP,
            Error::NoSpace => Errno::ENOSPC,
            Error::Corrupt(_) => Errno::EIO,
        }
    }

    /// One word for it, for a log or a count.
    pub fn name(self) -> &'static str {
        match self {
            Error::Medium => "medium",
            Error::Gone => "gone",
            Error::ReadOnly => "read-only",
            Error::OutOfRange => "out of range",
            Error::Unsupported => "unsupported",
            Error::NoSpace => "no space",
            Error::Corrupt(_) => "corrupt",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Corrupt(what) => write!(f, "corrupt: {what}"),
            error => f.write_str(error.name()),
        }
    }
}

/// Where the end of a transfer is told that is begun without a future.
pub struct End {
    /// Whom.
    pub to: Rc<Completions<Result<(), Error>>>,
    /// Which of theirs it is.
    pub number: usize,
}

/// Moves bytes between pages of ours and a place where sectors live.
pub trait Device {
    /// What it is now.
    fn info(&self) -> Info;

    /// Hands out the pages through which the sectors from `sector` on are to be moved: for a disk in our memory the
    /// very pages they are in, for one behind a lower backend pages lent to it, one for each of `shape` (first sector
    /// in a page, sectors), so that a payload keeps the cut its owner gave it. Waits while there are none; a request
    /// must hold no others meanwhile. The caller has checked the range. Every piece goes back by
    /// [`give`](Device::give).
    fn take(
        &self,
        sector: u64,
        shape: impl ExactSizeIterator<Item = (u8, u8)>,
        into: &mut Vec<Piece>,
    ) -> impl Future<Output = ()>;

    /// Takes the pieces of [`take`](Device::take) back; the vector is empty afterwards.
    fn give(&self, pieces: &mut Vec<Piece>);

    /// Does `op` from `sector` on, with pieces that came from [`take`](Device::take) for this place. Checks the range
    /// itself. Poll the future to its end: the other side may own the payload until then.
    fn submit(&self, op: Op<'_>, sector: u64) -> impl Future<Output = Result<(), Error>>;
}

/// A device whose pages are not the disk itself: what [`take`](Device::take) hands out may be submitted for any place of
/// it. An image can lie on one. Its metadata goes in bytes, whole sectors, through pages kept for that alone, so that
/// who holds pages of [`take`](Device::take) may wait for it.
pub trait Store: Device {
    /// Reads whole sectors from `sector` on.
    fn load(&self, sector: u64, bytes: &mut [u8]) -> impl Future<Output = Result<(), Error>>;

    /// Writes whole sectors from `sector` on; durable after the next flush.
    fn save(&self, sector: u64, bytes: &[u8]) -> impl Future<Output = Result<(), Error>>;

    /// Writes zeroes; durable after the next flush.
    fn zero(&self, sector: u64, sectors: u64) -> impl Future<Output = Result<(), Error>>;
}

/// The most sectors a disk may have: what a signed count of bytes holds, as Linux's `loff_t` does.
pub const SECTORS_MAX: u64 = i64::MAX as u64 / SECTOR_BYTES as u64;

/// Whether `sectors` from `sector` on end within `disk` sectors.
pub fn within(sector: u64, sectors: u64, disk: u64) -> Result<(), Error> {
    match sector.checked_add(sectors) {
        Some(end) if end <= disk => Ok(()),
        _ => Err(Error::OutOfRange),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_at_the_end_and_never_wrap() {
        assert_eq!(within(8, 2, 10), Ok(()));
        assert_eq!(within(10, 0, 10), Ok(()));
        assert_eq!(within(9, 2, 10), Err(Error::OutOfRange));
        assert_eq!(within(u64::MAX, 1, u64::MAX), Err(Error::OutOfRange));
        assert_eq!(within(u64::MAX, 2, 10), Err(Error::OutOfRange));
    }

    #[test]
    fn errors_have_the_numbers_that_clients_know() {
        let errors = [
            Error::Medium,
            Error::Gone,
            Error::ReadOnly,
            Error::OutOfRange,
            Error::Unsupported,
            Error::NoSpace,
            Error::Corrupt("footer"),
        ];
        // EIO, ESHUTDOWN, EROFS, EINVAL, EOPNOTSUPP, ENOSPC of Linux, and EIO again.
        assert_eq!(errors.map(|error| error.errno().number()), [5, 108, 30, 22, 95, 28, 5]);
    }
}
