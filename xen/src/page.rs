//! Pages: 4 KiB of memory that another domain may write at any moment.
//!
//! A [`Page`] is never borrowed as bytes; it is only copied from and to, or touched a word at a time. A [`Run`] is a
//! fixed number of our own pages, a [`PageRef`] names one of them and keeps its run alive.
//!
//! The only `unsafe` outside the image's own package is here: what the hardware allows and Rust's memory model has no
//! word for, bytes that change under us.
#![allow(unsafe_code)]

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::ops::Deref;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use protocol::mem::Memory;

use crate::schedule;

/// Bytes in a page.
pub const PAGE_BYTES: usize = 4096;

/// One page that a peer may write.
#[repr(C, align(4096))]
pub struct Page(UnsafeCell<[u8; PAGE_BYTES]>);

// SAFETY: every access goes through atomics or through the two bulk copies below, neither of which makes a reference
// to the bytes or assumes that they hold still.
unsafe impl Sync for Page {}

impl Page {
    /// A page of zeroes.
    pub const fn zeroed() -> Self {
        Page(UnsafeCell::new([0; PAGE_BYTES]))
    }

    /// Where the page is. The image maps all memory at its own physical address, so there this is the physical address.
    pub fn address(&self) -> u64 {
        self.0.get() as u64
    }

    /// Fills `bytes` bytes from `at` with zeroes.
    pub fn zero(&self, at: usize, bytes: usize) {
        const ZEROES: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
        self.write(at, &ZEROES[..bytes]);
    }

    /// Copies `bytes` bytes from `from_at` of another page to `at`; both lie inside their pages.
    pub fn copy(&self, at: usize, from: &Page, from_at: usize, bytes: usize) {
        assert!(at <= PAGE_BYTES && bytes <= PAGE_BYTES - at);
        assert!(from_at <= PAGE_BYTES && bytes <= PAGE_BYTES - from_at);
        schedule::point();
        let cut = schedule::cut(bytes);
        let copy = |range: core::ops::Range<usize>| {
            let (from, into) = (from.0.get().cast::<u8>(), self.0.get().cast::<u8>());
            // SAFETY: both ranges are inside their pages (asserted), and two pages do not overlap; where they are one, a
            // string copy gives some mixture of its bytes, as it does when a peer writes meanwhile.
            unsafe { copy(from.add(from_at + range.start), into.add(at + range.start), range.len()) }
        };
        if cut > 0 {
            copy(0..cut);
            schedule::point();
        }
        copy(cut..bytes);
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at < PAGE_BYTES);
        // SAFETY: `at` is aligned and inside the page, the page lives as long as `self`, and no other access to the
        // word on our side is non-atomic but the bulk copies, which do not go through Rust's memory model.
        unsafe { AtomicU32::from_ptr(self.0.get().cast::<u8>().add(at).cast()) }
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        assert!(at < PAGE_BYTES);
        // SAFETY: `at` is inside the page, the page lives as long as `self`, and no other access to the byte on our
        // side is non-atomic but the bulk copies, which do not go through Rust's memory model. That a word with this
        // byte in it is never accessed as a word meanwhile is the protocols' affair: none has a byte flag in a word.
        unsafe { AtomicU8::from_ptr(self.0.get().cast::<u8>().add(at)) }
    }

    fn fetch(&self, at: usize, into: &mut [u8]) {
        assert!(at <= PAGE_BYTES && into.len() <= PAGE_BYTES - at);
        // SAFETY: the source is inside the page (asserted), the destination is a private borrow of the same length.
        unsafe { copy(self.0.get().cast::<u8>().add(at), into.as_mut_ptr(), into.len()) }
    }

    fn put(&self, at: usize, from: &[u8]) {
        assert!(at <= PAGE_BYTES && from.len() <= PAGE_BYTES - at);
        // SAFETY: the destination is inside the page (asserted), the source is a private borrow of the same length.
        unsafe { copy(from.as_ptr(), self.0.get().cast::<u8>().add(at), from.len()) }
    }
}

impl Memory for Page {
    fn load(&self, at: usize) -> u32 {
        schedule::point();
        u32::from_le(self.word(at).load(Ordering::Acquire))
    }

    fn store(&self, at: usize, value: u32) {
        schedule::point();
        self.word(at).store(value.to_le(), Ordering::Release);
    }

    fn read(&self, at: usize, into: &mut [u8]) {
        schedule::point();
        let cut = schedule::cut(into.len());
        if cut > 0 {
            self.fetch(at, &mut into[..cut]);
            schedule::point();
        }
        self.fetch(at + cut, &mut into[cut..]);
    }

    fn write(&self, at: usize, from: &[u8]) {
        schedule::point();
        let cut = schedule::cut(from.len());
        if cut > 0 {
            self.put(at, &from[..cut]);
            schedule::point();
        }
        self.put(at + cut, &from[cut..]);
    }

    fn load8(&self, at: usize) -> u8 {
        schedule::point();
        self.byte(at).load(Ordering::Acquire)
    }

    fn store8(&self, at: usize, value: u8) {
        schedule::point();
        self.byte(at).store(value, Ordering::Release);
    }

    fn fetch_or8(&self, at: usize, bits: u8) -> u8 {
        schedule::point();
        self.byte(at).fetch_or(bits, Ordering::SeqCst)
    }

    fn fetch_and8(&self, at: usize, bits: u8) -> u8 {
        schedule::point();
        self.byte(at).fetch_and(bits, Ordering::SeqCst)
    }
}

/// Copies `bytes` bytes by the processor's own string copy, of which the compiler assumes nothing: a peer that writes
/// the same bytes meanwhile gives us some mixture, never undefined behaviour.
///
/// # Safety
/// `from` must be readable and `into` writable for `bytes` bytes, and the two must not overlap.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn copy(from: *const u8, into: *mut u8, bytes: usize) {
    // SAFETY: the caller vouches for both ranges; the direction flag is clear by the calling convention.
    unsafe {
        core::arch::asm!(
            "rep movsq",
            "mov ecx, {tail:e}",
            "rep movsb",
            tail = in(reg) bytes & 7,
            inout("rcx") bytes >> 3 => _,
            inout("rsi") from => _,
            inout("rdi") into => _,
            options(nostack, preserves_flags),
        );
    }
}

/// As above for a host that cannot run the instruction (Miri, other processors): a byte at a time, volatile.
///
/// # Safety
/// As above.
#[cfg(any(not(target_arch = "x86_64"), miri))]
unsafe fn copy(from: *const u8, into: *mut u8, bytes: usize) {
    for i in 0..bytes {
        // SAFETY: the caller vouches for both ranges.
        unsafe { into.add(i).write_volatile(from.add(i).read_volatile()) }
    }
}

/// A fixed number of our own pages, zeroed, in one piece of memory.
#[derive(Clone)]
pub struct Run(Arc<Vec<Page>>);

/// Memory ran out; nothing was allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

/// Says whether that many pages are refused to this line of code.
#[cfg(feature = "scarce")]
pub type Scarce = fn(usize, &'static core::panic::Location<'static>) -> bool;

/// Asked before any pages are allocated: how a simulation makes memory short for the product and for nobody else.
#[cfg(feature = "scarce")]
pub static SCARCE: spin::Once<Scarce> = spin::Once::new();

impl Run {
    /// Allocates `pages` zeroed pages.
    #[cfg_attr(feature = "scarce", track_caller)]
    pub fn new(pages: usize) -> Result<Self, NoMemory> {
        #[cfg(feature = "scarce")]
        {
            // A closure would be its own caller.
            let by = core::panic::Location::caller();
            if SCARCE.get().is_some_and(|refuses| refuses(pages, by)) {
                return Err(NoMemory);
            }
        }
        let mut run = Vec::new();
        run.try_reserve_exact(pages).map_err(|_| NoMemory)?;
        run.extend((0..pages).map(|_| Page::zeroed()));
        Ok(Run(Arc::new(run)))
    }

    /// How many pages it has.
    pub fn pages(&self) -> usize {
        self.0.len()
    }

    /// The page with this index, which must be below [`pages`](Run::pages), for as long as this handle is there.
    pub fn at(&self, index: usize) -> &Page {
        &self.0[index]
    }

    /// The page with this index, which must be below [`pages`](Run::pages).
    pub fn page(&self, index: usize) -> PageRef {
        assert!(index < self.0.len());
        PageRef { run: self.clone(), index: index as u32 }
    }
}

/// One page of a [`Run`]; keeps the run alive.
#[derive(Clone)]
pub struct PageRef {
    run: Run,
    index: u32,
}

impl PageRef {
    /// Allocates one page on its own.
    #[cfg_attr(feature = "scarce", track_caller)]
    pub fn alone() -> Result<Self, NoMemory> {
        Ok(Run::new(1)?.page(0))
    }

    /// Its index in its run.
    pub fn index(&self) -> usize {
        self.index as usize
    }
}

impl Deref for PageRef {
    type Target = Page;

    fn deref(&self) -> &Page {
        &self.run.0[self.index as usize]
    }
}

/// Pages seen as one piece of memory, in order: a ring of several pages.
pub struct Span<P>(pub Vec<P>);

impl<P: Deref<Target = Page>> Span<P> {
    /// The one page that the whole range is in, if there is one, and where it begins there.
    fn whole(&self, at: usize, bytes: usize) -> Option<(&Page, usize)> {
        let (page, offset) = (at / PAGE_BYTES, at % PAGE_BYTES);
        if bytes <= PAGE_BYTES - offset { Some((&self.0[page], offset)) } else { None }
    }

    /// Calls `each` with every page the range touches: page, offset in it, and where in the range it lies.
    fn split(&self, at: usize, bytes: usize, mut each: impl FnMut(&Page, usize, core::ops::Range<usize>)) {
        let mut done = 0;
        while done < bytes {
            let (page, offset) = ((at + done) / PAGE_BYTES, (at + done) % PAGE_BYTES);
            let n = (PAGE_BYTES - offset).min(bytes - done);
            each(&self.0[page], offset, done..done + n);
            done += n;
        }
    }
}

impl<P: Deref<Target = Page>> Memory for Span<P> {
    fn load(&self, at: usize) -> u32 {
        self.0[at / PAGE_BYTES].load(at % PAGE_BYTES)
    }
    fn store(&self, at: usize, value: u32) {
        self.0[at / PAGE_BYTES].store(at % PAGE_BYTES, value)
    }
    fn read(&self, at: usize, into: &mut [u8]) {
        if let Some((page, at)) = self.whole(at, into.len()) {
            return page.read(at, into);
        }
        self.split(at, into.len(), |page, offset, range| page.read(offset, &mut into[range]));
    }
    fn write(&self, at: usize, from: &[u8]) {
        if let Some((page, at)) = self.whole(at, from.len()) {
            return page.write(at, from);
        }
        self.split(at, from.len(), |page, offset, range| page.write(offset, &from[range]));
    }
    fn load8(&self, at: usize) -> u8 {
        self.0[at / PAGE_BYTES].load8(at % PAGE_BYTES)
    }
    fn store8(&self, at: usize, value: u8) {
        self.0[at / PAGE_BYTES].store8(at % PAGE_BYTES, value)
    }
    fn fetch_or8(&self, at: usize, bits: u8) -> u8 {
        self.0[at / PAGE_BYTES].fetch_or8(at % PAGE_BYTES, bits)
    }
    fn fetch_and8(&self, at: usize, bits: u8) -> u8 {
        self.0[at / PAGE_BYTES].fetch_and8(at % PAGE_BYTES, bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_every_length_and_offset_touch_only_their_bytes() {
        let page = Page::zeroed();
        // An interpreter takes its time over whole pages.
        let lengths: &[usize] = if cfg!(miri) { &[0, 9] } else { &[0, 1, 7, 8, 9, 63, 64, 65, 96] };
        for at in [0, 1, 7, 8, 4000, 4095] {
            for &bytes in lengths {
                let bytes = bytes.min(PAGE_BYTES - at);
                page.zero(0, PAGE_BYTES);
                page.write(at, &[0xa5; 96][..bytes]);
                let mut all = [0; PAGE_BYTES];
                page.read(0, &mut all);
                assert!(all.iter().enumerate().all(|(i, b)| (*b == 0xa5) == (at..at + bytes).contains(&i)));
            }
        }
    }

    #[test]
    fn a_span_joins_pages_and_words_are_little_endian() {
        let run = Run::new(2).unwrap();
        let span = Span((0..2).map(|i| run.page(i)).collect());
        span.write(4090, b"across the edge");
        let mut back = [0; 15];
        span.read(4090, &mut back);
        assert_eq!(&back, b"across the edge");
        span.store(4096 + 8, 0x0403_0201);
        let mut bytes = [0; 4];
        run.page(1).read(8, &mut bytes);
        assert_eq!(bytes, [1, 2, 3, 4]);
        assert_eq!(span.load(4096 + 8), 0x0403_0201);
    }

    #[test]
    fn a_byte_is_changed_alone() {
        let run = Run::new(2).unwrap();
        let span = Span((0..2).map(|i| run.page(i)).collect());
        for memory in [run.page(1).deref() as &dyn Memory, &span] {
            let base = if core::ptr::eq(memory, &span as &dyn Memory) { PAGE_BYTES } else { 0 };
            memory.store(base + 20, 0x4433_2211);
            memory.store8(base + 21, 0xf0);
            assert_eq!(memory.load(base + 20), 0x4433_f011);
            assert_eq!(memory.fetch_or8(base + 22, 0x0c), 0x33);
            assert_eq!(memory.fetch_and8(base + 23, 0x40), 0x44);
            assert_eq!((memory.load(base + 20), memory.load8(base + 22)), (0x403f_f011, 0x3f));
        }
    }

    #[test]
    #[should_panic]
    fn no_byte_is_past_the_end() {
        Page::zeroed().load8(PAGE_BYTES);
    }

    #[test]
    #[should_panic]
    fn past_the_end_is_our_bug() {
        Page::zeroed().write(4090, &[0; 7]);
    }
}
