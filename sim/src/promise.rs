//! What guests that keep the rules allow a backend to do with their pages: exactly what a request in flight asks for.
//!
//! Xen refuses a write to a page that was granted for reading only. Here the product may not even ask: a copy that no
//! request in flight wants, the other way round, or past what was asked is a panic, and so is one after the answer. And
//! what one guest wrote goes to nobody but those who share its disk.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use xen::port::{DomId, GrantRef, Move, Way};

use crate::blkif::SECTOR;
use crate::world::{Life, World};

/// Where in a sector its owner stands: in what an honest guest writes, and on what disks held before.
const OWNER_AT: usize = 32;
/// What stands before the owner.
const OWNED: [u8; 8] = *b"\xb7owned:\xb7";

/// Writes into every sector whose it is.
pub fn own(sectors: &mut [u8], owner: u64) {
    for sector in sectors.chunks_mut(SECTOR) {
        sector[OWNER_AT..OWNER_AT + 8].copy_from_slice(&OWNED);
        sector[OWNER_AT + 8..OWNER_AT + 16].copy_from_slice(&owner.to_le_bytes());
    }
}

/// Whose the sectors are, as far as they say so.
pub fn owners(sectors: &[u8]) -> impl Iterator<Item = u64> {
    sectors
        .chunks_exact(SECTOR)
        .filter(|sector| sector[OWNER_AT..OWNER_AT + 8] == OWNED)
        .map(|sector| u64::from_le_bytes(sector[OWNER_AT + 8..OWNER_AT + 16].try_into().expect("eight bytes")))
}

struct Promise {
    way: Way,
    bytes: Range<usize>,
}

/// All promises of one world.
#[derive(Default)]
pub(crate) struct Promises {
    /// Guests all of whose grants are spoken for.
    strict: BTreeSet<DomId>,
    pages: BTreeMap<(DomId, GrantRef), Promise>,
    sees: BTreeSet<(DomId, u64)>,
}

impl Promises {
    /// The domain is gone; its number means another one from now on.
    pub fn forget(&mut self, guest: DomId) {
        self.strict.remove(&guest);
        self.pages.retain(|(domain, _), _| *domain != guest);
        self.sees.retain(|(domain, _)| *domain != guest);
    }
}

impl World {
    /// From now on every copy to or from a page of this guest must be promised, and no sector of another owner may reach
    /// it.
    pub fn keep_to_promises(&self, guest: DomId) {
        self.hypervisor().promises.strict.insert(guest);
    }

    /// Somebody took a device from under this guest: what its backend does until it has noticed is nobody's fault.
    pub fn excuse(&self, guest: DomId) {
        self.hypervisor().promises.strict.remove(&guest);
    }

    /// The guest may see what this owner wrote.
    pub fn may_see(&self, guest: DomId, owner: u64) {
        self.hypervisor().promises.sees.insert((guest, owner));
    }

    /// A request in flight wants these bytes of the granted page read (`In`) or written (`Out`).
    pub fn promise(&self, guest: DomId, grant: GrantRef, way: Way, bytes: Range<usize>) {
        self.hypervisor().promises.pages.insert((guest, grant), Promise { way, bytes });
    }

    /// The request was answered.
    pub fn settle(&self, guest: DomId, grant: GrantRef) {
        self.hypervisor().promises.pages.remove(&(guest, grant));
    }

    /// Panics if the domain under test asks for what nobody wants.
    pub(crate) fn judge(&self, what: &Move) {
        let xen = self.look();
        let Move { domain, grant, way, .. } = *what;
        // To a domain that is dying Xen refuses everything, and its guest promises nothing any more.
        let alive = xen.domains.get(&domain).is_some_and(|domain| domain.life == Life::Alive);
        if !alive || !xen.promises.strict.contains(&domain) {
            return;
        }
        let bytes = usize::from(what.theirs_at)..usize::from(what.theirs_at) + usize::from(what.bytes);
        let promise = xen.promises.pages.get(&(domain, grant));
        let kept = promise.is_some_and(|p| p.way == way && p.bytes.start <= bytes.start && bytes.end <= p.bytes.end);
        assert!(kept, "a copy {way:?} of {bytes:?} under {grant:?} of {domain:?}, which no request in flight asks for");
    }

    /// Panics if these sectors, on their way to a guest, are another's.
    pub(crate) fn judge_secret(&self, guest: DomId, sectors: &[u8]) {
        let xen = self.look();
        for owner in owners(sectors) {
            assert!(xen.promises.sees.contains(&(guest, owner)), "{guest:?} is given a sector of owner {owner}");
        }
    }
}

#[cfg(test)]
mod tests {
    use xen::page::PageRef;

    use super::*;
    use crate::random::Random;

    fn moved(way: Way, theirs_at: u16, bytes: u16) -> Move {
        let ours = PageRef::alone().unwrap();
        Move { ours, ours_at: 0, domain: DomId(5), grant: GrantRef(8), theirs_at, bytes, way }
    }

    fn world() -> World {
        let world = World::new(Random::new(1));
        world.create(DomId(5));
        world.keep_to_promises(DomId(5));
        world.promise(DomId(5), GrantRef(8), Way::Out, 512..1024);
        world
    }

    #[test]
    fn what_is_promised_may_be_done() {
        let world = world();
        world.judge(&moved(Way::Out, 512, 512));
        world.judge(&Move { domain: DomId(6), ..moved(Way::In, 0, 4096) });
        world.excuse(DomId(5));
        world.judge(&moved(Way::In, 0, 4096));
    }

    #[test]
    #[should_panic(expected = "no request in flight")]
    fn not_the_other_way_round() {
        world().judge(&moved(Way::In, 512, 512));
    }

    #[test]
    #[should_panic(expected = "no request in flight")]
    fn not_past_it() {
        world().judge(&moved(Way::Out, 512, 1024));
    }

    #[test]
    #[should_panic(expected = "no request in flight")]
    fn not_after_the_answer() {
        let world = world();
        world.settle(DomId(5), GrantRef(8));
        world.judge(&moved(Way::Out, 512, 512));
    }

    #[test]
    #[should_panic(expected = "a sector of owner 7")]
    fn nobody_sees_what_is_not_his() {
        let (world, mut sectors) = (world(), [0; 1024]);
        own(&mut sectors, 7);
        world.may_see(DomId(6), 7);
        world.judge_secret(DomId(6), &sectors);
        world.judge_secret(DomId(5), &sectors);
    }
}
