//! Which images are open. An image keeps what it knows in memory, so nobody else may write it, nor write what it lies on.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use core::cell::RefCell;

/// Where an image lies: the number of a lower disk, and the first sector on it.
pub type Place = (u32, u64);

#[derive(Clone, Copy)]
enum Held {
    Written,
    Read(usize),
}

/// All that are open.
#[derive(Clone, Default)]
pub struct Claims(Rc<RefCell<BTreeMap<Place, Held>>>);

/// One of them, until it is dropped.
pub struct Claim(Claims, Place);

impl Claims {
    /// Claims an image: alone, to write it, or beside others that read it; none if somebody has it who does not bear that.
    pub fn claim(&self, place: Place, write: bool) -> Option<Claim> {
        let mut all = self.0.borrow_mut();
        let held = match (all.get(&place), write) {
            (None, true) => Held::Written,
            (None, false) => Held::Read(1),
            (Some(Held::Read(n)), false) => Held::Read(n + 1),
            (Some(_), _) => return None,
        };
        all.insert(place, held);
        drop(all);
        Some(Claim(self.clone(), place))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut all = self.0.0.borrow_mut();
        match all.get(&self.1).copied() {
            Some(Held::Read(n)) if n > 1 => drop(all.insert(self.1, Held::Read(n - 1))),
            _ => drop(all.remove(&self.1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_writes_or_many_read() {
        let (claims, here, there) = (Claims::default(), (51712, 0), (51712, 8));
        let writer = claims.claim(here, true);
        assert!(writer.is_some() && claims.claim(here, true).is_none() && claims.claim(here, false).is_none());
        assert!(claims.claim(there, true).is_some(), "another place");
        drop(writer);
        let readers = [claims.claim(here, false), claims.claim(here, false)];
        assert!(readers.iter().all(Option::is_some) && claims.claim(here, true).is_none());
        let [one, other] = readers;
        drop(one);
        assert!(claims.claim(here, true).is_none());
        drop(other);
        assert!(claims.claim(here, true).is_some());
    }
}
