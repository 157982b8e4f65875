//! A shared page as two processors see it: indices and flags with the orderings that [`Memory`] promises, payload with
//! none.

use std::collections::BTreeMap;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};
use protocol::mem::Memory;

/// Where a ring's slots begin, in bytes.
pub const SLOTS: usize = 64;

/// An ordering that is taken away, to see that it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// All are there.
    Nothing,
    /// The full barrier.
    Fence,
    /// `load` acquires.
    Acquire,
    /// `store` releases.
    Release,
    /// The steps on flags acquire and release.
    Flags,
    /// Neither those nor the full barrier.
    FlagsAndFence,
}

/// One side's view of the page; clones share it. Only those bytes are there that the check is about: a checker has to try
/// all values of each, and nobody may want others.
#[derive(Clone)]
pub struct Words {
    words: Arc<BTreeMap<usize, AtomicU32>>,
    bytes: Arc<BTreeMap<usize, AtomicU8>>,
    without: Without,
}

impl Words {
    /// Words and single bytes at these offsets, zero.
    pub fn new(
        words: impl IntoIterator<Item = usize>,
        bytes: impl IntoIterator<Item = usize>,
        without: Without,
    ) -> Self {
        Words {
            words: Arc::new(words.into_iter().map(|at| (at, AtomicU32::new(0))).collect()),
            bytes: Arc::new(bytes.into_iter().map(|at| (at, AtomicU8::new(0))).collect()),
            without,
        }
    }

    /// A ring of so many words of slots.
    pub fn ring(slots: usize, without: Without) -> Self {
        let words = [0, 4, 8, 12].into_iter().chain((0..slots).map(|i| SLOTS + 4 * i));
        Words::new(words, [], without)
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        self.words.get(&at).unwrap_or_else(|| panic!("word {at} is nobody's"))
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        self.bytes.get(&at).unwrap_or_else(|| panic!("byte {at} is nobody's"))
    }

    fn load_order(&self) -> Ordering {
        if self.without == Without::Acquire { Ordering::Relaxed } else { Ordering::Acquire }
    }

    fn store_order(&self) -> Ordering {
        if self.without == Without::Release { Ordering::Relaxed } else { Ordering::Release }
    }

    /// A page's own are sequentially consistent, which loom does not know.
    fn flag_order(&self) -> Ordering {
        let relaxed = matches!(self.without, Without::Flags | Without::FlagsAndFence);
        if relaxed { Ordering::Relaxed } else { Ordering::AcqRel }
    }
}

impl Memory for Words {
    fn load(&self, at: usize) -> u32 {
        self.word(at).load(self.load_order())
    }

    fn store(&self, at: usize, value: u32) {
        self.word(at).store(value, self.store_order());
    }

    fn read(&self, at: usize, into: &mut [u8]) {
        for (i, word) in into.chunks_mut(4).enumerate() {
            word.copy_from_slice(&self.word(at + 4 * i).load(Ordering::Relaxed).to_le_bytes());
        }
    }

    fn write(&self, at: usize, from: &[u8]) {
        // A head is laid out whole, before anybody else has the page: what nobody wants of it is not there.
        let wanted = |at: &usize| at >= &SLOTS || self.words.contains_key(at);
        for (at, word) in (at..).step_by(4).zip(from.chunks(4)).filter(|(at, _)| wanted(at)) {
            let word = word.try_into().expect("whole words");
            self.word(at).store(u32::from_le_bytes(word), Ordering::Relaxed);
        }
    }

    fn load8(&self, at: usize) -> u8 {
        self.byte(at).load(self.load_order())
    }

    fn store8(&self, at: usize, value: u8) {
        self.byte(at).store(value, self.store_order());
    }

    fn fetch_or8(&self, at: usize, bits: u8) -> u8 {
        self.byte(at).fetch_or(bits, self.flag_order())
    }

    fn fetch_and8(&self, at: usize, bits: u8) -> u8 {
        self.byte(at).fetch_and(bits, self.flag_order())
    }

    fn fence(&self) {
        if !matches!(self.without, Without::Fence | Without::FlagsAndFence) {
            fence(Ordering::SeqCst);
        }
    }
}
