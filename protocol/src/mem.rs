//! Memory that somebody else writes while we look at it.
//!
//! Every call is one fetch or one store: what a caller wants to check it must first have in a private copy
//! (XSA-155). Offsets are ours, never a peer's: an offset past the end is our bug and panics.

use core::cell::RefCell;

/// Peer-writable bytes.
///
/// `load` acquires and `store` releases, so that what was written before a `store` is seen by whoever loads the
/// stored value; [`fence`](Memory::fence) orders a store against a later load, which neither does.
pub trait Memory {
    /// Loads the little-endian word at byte offset `at`, a multiple of 4, in one access.
    fn load(&self, at: usize) -> u32;
    /// Stores the little-endian word at byte offset `at`, a multiple of 4, in one access.
    fn store(&self, at: usize, value: u32);
    /// Copies `into.len()` bytes out, each fetched once, in no promised order.
    fn read(&self, at: usize, into: &mut [u8]);
    /// Copies `from` in, each byte stored once, in no promised order.
    fn write(&self, at: usize, from: &[u8]);
    /// A full barrier between the accesses before it and those after it.
    fn fence(&self) {
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    }
}

impl<M: Memory + ?Sized> Memory for &M {
    fn load(&self, at: usize) -> u32 {
        (**self).load(at)
    }
    fn store(&self, at: usize, value: u32) {
        (**self).store(at, value)
    }
    fn read(&self, at: usize, into: &mut [u8]) {
        (**self).read(at, into)
    }
    fn write(&self, at: usize, from: &[u8]) {
        (**self).write(at, from)
    }
    fn fence(&self) {
        (**self).fence()
    }
}

/// `N` bytes of ordinary memory, for tests: two halves of a protocol on one thread.
pub struct Flat<const N: usize>(RefCell<[u8; N]>);

impl<const N: usize> Default for Flat<N> {
    fn default() -> Self {
        Flat(RefCell::new([0; N]))
    }
}

impl<const N: usize> Memory for Flat<N> {
    fn load(&self, at: usize) -> u32 {
        assert!(at.is_multiple_of(4));
        let mut word = [0; 4];
        word.copy_from_slice(&self.0.borrow()[at..at + 4]);
        u32::from_le_bytes(word)
    }
    fn store(&self, at: usize, value: u32) {
        assert!(at.is_multiple_of(4));
        self.0.borrow_mut()[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    fn read(&self, at: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.0.borrow()[at..at + into.len()]);
    }
    fn write(&self, at: usize, from: &[u8]) {
        self.0.borrow_mut()[at..at + from.len()].copy_from_slice(from);
    }
}
