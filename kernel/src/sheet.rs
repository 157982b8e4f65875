//! What requests note down while they are in flight, and the memory for it, which one request leaves to the next: a disk
//! under load allocates nothing.
//!
//! Memory is held for segments in flight and for nothing else. A request that waits for its share of those has a sheet of
//! the smallest size, and a sheet is at most twice as large as what is to be noted on it: so the segments of one ring bound
//! what all its sheets can come to, however many requests wait and whatever their sizes are.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use drivers::disk::Piece;
use protocol::blkif::Segment;
use xen::limits::{SEGMENTS_INDIRECT, SEGMENTS_PER_VBD};
use xen::page::{NoMemory, PAGE_BYTES, PageRef};

/// Segments of the smallest sheets, which hold what fits a slot of the ring.
const SMALLEST: usize = 16;
/// Sizes of sheets: each is twice the one before it.
const SIZES: usize = 5;
/// Small sheets kept for requests to come; more in flight than these allocate theirs.
const SMALL_KEPT: usize = 32;

const _: () = assert!(SMALLEST << (SIZES - 1) == SEGMENTS_INDIRECT as usize);

/// What one request notes down.
#[derive(Default)]
pub(crate) struct Sheet {
    pub segments: Vec<Segment>,
    pub pieces: Vec<Piece>,
    /// References of the pages with descriptors.
    pub pages: Vec<u32>,
    size: usize,
}

/// Sheets that nobody uses now, by size.
#[derive(Default)]
pub(crate) struct Sheets {
    #[expect(clippy::vec_box, reason = "they are handed on, and shall be cheap to move")]
    kept: [RefCell<Vec<Box<Sheet>>>; SIZES],
}

/// The size of a sheet for so many segments.
fn size(segments: usize) -> usize {
    if segments <= SMALLEST {
        return 0;
    }
    (segments.next_power_of_two() / SMALLEST).ilog2() as usize
}

impl Sheets {
    /// A sheet for so many segments with nothing on it. More than the smallest have are in flight from now on.
    pub fn take(&self, segments: usize) -> Box<Sheet> {
        let size = size(segments);
        let kept = self.kept[size].borrow_mut().pop();
        kept.unwrap_or_else(|| Box::new(Sheet { size, ..Sheet::default() }))
    }

    /// The sheet, or one with room for so many segments and the same pages with descriptors.
    pub fn widen(&self, mut sheet: Box<Sheet>, segments: usize) -> Box<Sheet> {
        if size(segments) == sheet.size {
            return sheet;
        }
        let mut wide = self.take(segments);
        core::mem::swap(&mut wide.pages, &mut sheet.pages);
        self.put(sheet);
        wide
    }

    /// Keeps a sheet for the next request: of the small ones as many as are of use, of others as many as the segments in
    /// flight can fill.
    pub fn put(&self, mut sheet: Box<Sheet>) {
        sheet.segments.clear();
        sheet.pages.clear();
        let (mut kept, size) = (self.kept[sheet.size].borrow_mut(), sheet.size);
        let room = if size == 0 { SMALL_KEPT } else { SEGMENTS_PER_VBD / (SMALLEST << size) };
        if kept.len() < room {
            kept.push(sheet);
        }
    }
}

/// Where descriptors are copied to, before they are read: a page that nobody else can write. Those that are read in one
/// turn share it.
#[derive(Default)]
pub(crate) struct Descriptors {
    page: RefCell<Option<PageRef>>,
    used: Cell<usize>,
    readers: Cell<usize>,
}

/// Some bytes of that page, for one who reads there.
pub(crate) struct Desc<'a> {
    all: &'a Descriptors,
    pub page: PageRef,
    pub at: usize,
}

impl Descriptors {
    /// Room for so many bytes, at most a page of them.
    pub fn take(&self, bytes: usize) -> Result<Desc<'_>, NoMemory> {
        let mut page = self.page.borrow_mut();
        let fits = page.is_some() && self.used.get() + bytes <= PAGE_BYTES;
        if !fits {
            // Whoever reads from the one before keeps that.
            *page = Some(PageRef::alone()?);
            self.used.set(0);
        }
        let at = self.used.replace(self.used.get() + bytes);
        self.readers.set(self.readers.get() + 1);
        Ok(Desc { all: self, page: page.as_ref().expect("it was put there").clone(), at })
    }
}

impl Drop for Desc<'_> {
    fn drop(&mut self) {
        let readers = &self.all.readers;
        readers.set(readers.get() - 1);
        if readers.get() == 0 {
            self.all.used.set(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let sizes = [0, 1, 11, 16, 17, 32, 33, 64, 65, 128, 129, 256].map(size);
        assert_eq!(sizes, [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]);
    }

    #[test]
    fn what_waits_is_small_and_what_is_kept_is_bounded() {
        let sheets = Sheets::default();
        let mut small = sheets.take(0);
        small.pages.push(7);
        let mut wide = sheets.widen(small, 200);
        assert_eq!((wide.size, wide.pages[..] == [7]), (4, true));
        wide.segments.resize(200, Segment::new(9, 0, 7).unwrap());
        let room = wide.segments.capacity();
        sheets.put(wide);
        // The next large request has its memory, and nobody else.
        assert_eq!(sheets.take(64).segments.capacity(), 0);
        let again = sheets.take(129);
        assert!(again.segments.capacity() == room && again.segments.is_empty() && again.pages.is_empty());
        let segments = [1, 32, 64, 128, 256];
        segments.iter().for_each(|n| {
            (0..128).map(|_| sheets.take(*n)).collect::<Vec<_>>().into_iter().for_each(|it| sheets.put(it))
        });
        assert_eq!(sheets.kept.each_ref().map(|kept| kept.borrow().len()), [32, 16, 8, 4, 2]);
    }

    #[test]
    fn descriptors_of_one_turn_share_a_page() {
        let all = Descriptors::default();
        let (a, b) = (all.take(2048).unwrap(), all.take(2040).unwrap());
        assert!((a.at, b.at) == (0, 2048) && a.page.address() == b.page.address());
        // No room beside them: a page of its own, while theirs stays theirs.
        let c = all.take(16).unwrap();
        assert!(c.at == 0 && c.page.address() != a.page.address());
        drop((a, b));
        assert_eq!(all.take(16).unwrap().at, 16);
        let page = c.page.address();
        drop(c);
        let d = all.take(4096).unwrap();
        assert_eq!((d.at, d.page.address()), (0, page));
    }
}
