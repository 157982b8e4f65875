//! How long to wait before something that was refused is asked for again.

use core::cell::Cell;
use core::time::Duration;

/// The first wait. libxl gives up after 10 s; by then we have asked six times.
const FIRST: Duration = Duration::from_millis(250);
/// Doublings after which it stays as it is: 32 s.
const DOUBLINGS: u32 = 7;

/// Waits that double while they are in vain: what passes soon is hardly noticed, what stays costs little.
#[derive(Default)]
pub struct Patience(Cell<u32>);

impl Patience {
    /// The next wait.
    pub fn next(&self) -> Duration {
        let doubled = self.0.get();
        self.0.set((doubled + 1).min(DOUBLINGS));
        FIRST * (1 << doubled)
    }

    /// It went well: the next wait is a short one again.
    pub fn reset(&self) {
        self.0.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_half_a_minute_and_begin_again() {
        let patience = Patience::default();
        let waits: alloc::vec::Vec<u128> = (0..9).map(|_| patience.next().as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 16000, 32000, 32000]);
        patience.reset();
        assert_eq!(patience.next(), FIRST);
    }
}
