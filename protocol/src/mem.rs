//! Memory that somebody else writes while we look at it.
//!
//! Every call is one fetch or one store: what a caller wants to check it must first have in a private copy
//! (XSA-155). Offsets are ours, never a peer's: an offset past the end is our bug and panics.

use core::cell::{Cell, RefCell};
use core::ops::Deref;

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
    /// Loads the byte at `at` in one access.
    fn load8(&self, at: usize) -> u8;
    /// Stores the byte at `at` in one access, and no byte beside it.
    fn store8(&self, at: usize, value: u8);
    /// Sets `bits` in the byte at `at` and returns what it was, in one step that no other access comes between: both
    /// sides change such a byte, and neither may lose what the other set.
    fn fetch_or8(&self, at: usize, bits: u8) -> u8;
    /// Keeps only `bits` of the byte at `at`, as [`fetch_or8`](Memory::fetch_or8) does.
    fn fetch_and8(&self, at: usize, bits: u8) -> u8;
    /// A full barrier between the accesses before it and those after it.
    fn fence(&self) {
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    }
}

/// Whatever leads to such memory is used as it.
impl<M: Deref<Target: Memory>> Memory for M {
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
    fn load8(&self, at: usize) -> u8 {
        (**self).load8(at)
    }
    fn store8(&self, at: usize, value: u8) {
        (**self).store8(at, value)
    }
    fn fetch_or8(&self, at: usize, bits: u8) -> u8 {
        (**self).fetch_or8(at, bits)
    }
    fn fetch_and8(&self, at: usize, bits: u8) -> u8 {
        (**self).fetch_and8(at, bits)
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
    fn load8(&self, at: usize) -> u8 {
        self.0.borrow()[at]
    }
    fn store8(&self, at: usize, value: u8) {
        self.0.borrow_mut()[at] = value;
    }
    fn fetch_or8(&self, at: usize, bits: u8) -> u8 {
        let byte = self.load8(at);
        self.store8(at, byte | bits);
        byte
    }
    fn fetch_and8(&self, at: usize, bits: u8) -> u8 {
        let byte = self.load8(at);
        self.store8(at, byte & bits);
        byte
    }
}

/// `N` bytes that a hostile peer rewrites all the time, for tests: what is fetched twice differs, indices jump by
/// little and by much, and now and then are what they should be. One seed gives one behaviour.
pub struct Evil<const N: usize> {
    bytes: Flat<N>,
    state: Cell<u64>,
}

impl<const N: usize> Evil<N> {
    /// A peer with this much malice.
    pub fn new(seed: u64) -> Self {
        Evil { bytes: Flat::default(), state: Cell::new(seed | 1) }
    }

    /// The next number (xorshift64*, G. Marsaglia and S. Vigna).
    fn next(&self) -> u64 {
        let mut state = self.state.get();
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        self.state.set(state);
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}

impl<const N: usize> Memory for Evil<N> {
    fn load(&self, at: usize) -> u32 {
        let (choice, value) = (self.next() % 8, self.next() as u32);
        let honest = self.bytes.load(at);
        let word = match choice {
            0 => value,
            1 => honest.wrapping_sub(value % 4),
            2 => honest.wrapping_add(0x8000_0000),
            3 => honest.wrapping_add(value % 2048),
            4..=6 => honest.wrapping_add(value % 4),
            _ => honest,
        };
        self.bytes.store(at, word);
        word
    }
    fn store(&self, at: usize, value: u32) {
        self.bytes.store(at, value);
    }
    fn read(&self, at: usize, into: &mut [u8]) {
        self.bytes.read(at, into);
        for byte in into {
            let (choice, value) = (self.next() % 4, self.next() as u8);
            match choice {
                0 => *byte = value,
                // Many rules are about small numbers.
                1 => *byte = value % 8,
                _ => {}
            }
        }
    }
    fn write(&self, at: usize, from: &[u8]) {
        self.bytes.write(at, from);
    }
    fn load8(&self, at: usize) -> u8 {
        let (choice, value) = (self.next() % 8, self.next() as u8);
        match choice {
            0 => self.bytes.store8(at, value),
            1 => self.bytes.store8(at, value % 4),
            _ => {}
        }
        self.bytes.load8(at)
    }
    fn store8(&self, at: usize, value: u8) {
        self.bytes.store8(at, value);
    }
    fn fetch_or8(&self, at: usize, bits: u8) -> u8 {
        let byte = self.load8(at);
        self.store8(at, byte | bits);
        byte
    }
    fn fetch_and8(&self, at: usize, bits: u8) -> u8 {
        let byte = self.load8(at);
        self.store8(at, byte & bits);
        byte
    }
}
