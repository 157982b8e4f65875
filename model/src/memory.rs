//! A ring's page as two processors see it: indices with the orderings that [`Memory`] promises, slots with none.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering, fence};
use protocol::mem::Memory;

/// Words before the slots.
const HEAD: usize = 4;
/// Where the slots begin, in bytes.
const SLOTS: usize = 64;

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
}

/// One side's view of the words; clones share them.
#[derive(Clone)]
pub struct Words {
    words: Arc<Vec<AtomicU32>>,
    without: Without,
}

impl Words {
    /// The four indices and so many words of slots, zero.
    pub fn new(slots: usize, without: Without) -> Self {
        Words { words: Arc::new((0..HEAD + slots).map(|_| AtomicU32::new(0)).collect()), without }
    }

    /// The word at a byte offset; the words between indices and slots are not there, and nobody may want them.
    fn word(&self, at: usize) -> &AtomicU32 {
        let slot = at.checked_sub(SLOTS).map(|at| HEAD + at / 4);
        &self.words[slot.unwrap_or_else(|| if at < HEAD * 4 { at / 4 } else { panic!("byte {at} is nobody's") })]
    }
}

impl Memory for Words {
    fn load(&self, at: usize) -> u32 {
        let acquires = self.without != Without::Acquire;
        self.word(at).load(if acquires { Ordering::Acquire } else { Ordering::Relaxed })
    }

    fn store(&self, at: usize, value: u32) {
        let releases = self.without != Without::Release;
        self.word(at).store(value, if releases { Ordering::Release } else { Ordering::Relaxed });
    }

    fn read(&self, at: usize, into: &mut [u8]) {
        for (i, word) in into.chunks_mut(4).enumerate() {
            word.copy_from_slice(&self.word(at + 4 * i).load(Ordering::Relaxed).to_le_bytes());
        }
    }

    fn write(&self, at: usize, from: &[u8]) {
        // The head is laid out before anybody else has the page.
        let words = from.chunks(4).take(if at == 0 { HEAD } else { usize::MAX });
        for (i, word) in words.enumerate() {
            let word = word.try_into().expect("whole words");
            self.word(at + 4 * i).store(u32::from_le_bytes(word), Ordering::Relaxed);
        }
    }

    fn fence(&self) {
        if self.without != Without::Fence {
            fence(Ordering::SeqCst);
        }
    }
}
