//! Numbers to give out and take back: grant references, places in the foreign window.

use alloc::vec::Vec;
use core::ops::Range;

/// Numbers that are free. Those that came back go out first: they are warm in the caches of Xen and the processor.
pub struct Free {
    fresh: Range<u32>,
    back: Vec<u32>,
    out: usize,
}

impl Free {
    /// All of `numbers` are free.
    pub const fn new(numbers: Range<u32>) -> Self {
        Free { fresh: numbers, back: Vec::new(), out: 0 }
    }

    /// A number, now in use.
    pub fn take(&mut self) -> Option<u32> {
        let number = match self.back.pop() {
            Some(number) => number,
            None => {
                let number = self.fresh.next()?;
                // Room for everything that is out, so that giving back never allocates.
                self.back.reserve(self.out + 1);
                number
            }
        };
        self.out += 1;
        Some(number)
    }

    /// The number is free again.
    pub fn give(&mut self, number: u32) {
        self.out -= 1;
        self.back.push(number);
    }

    /// `more` numbers, following the last, are free too.
    pub fn extend(&mut self, more: u32) {
        self.fresh.end += more;
    }

    /// How many are in use.
    pub fn out(&self) -> usize {
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_goes_out_once() {
        let mut free = Free::new(8..11);
        assert_eq!([free.take(), free.take(), free.take(), free.take()], [Some(8), Some(9), Some(10), None]);
        free.give(9);
        free.give(8);
        assert_eq!((free.take(), free.take(), free.take(), free.out()), (Some(8), Some(9), None, 3));
        free.extend(2);
        assert_eq!((free.take(), free.take(), free.take(), free.out()), (Some(11), Some(12), None, 5));
    }

    #[test]
    fn giving_back_never_allocates() {
        let mut free = Free::new(0..1000);
        let out: Vec<u32> = core::iter::from_fn(|| free.take()).collect();
        let room = free.back.capacity();
        assert!(room >= out.len());
        out.into_iter().for_each(|n| free.give(n));
        assert_eq!((free.back.capacity(), free.out()), (room, 0));
    }
}
