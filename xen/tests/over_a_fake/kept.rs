//! Pages of a peer that stay mapped.

use protocol::mem::Memory;
use xen::kept::Kept;
use xen::limits::{KEPT_PAGES, KEPT_PER_RING};
use xen::page::PageRef;
use xen::port::{GrantRef, Move, Refused, Way};

use crate::fake::{Fake, PEER, domain};

fn moved(ours: &PageRef, grant: u32, way: Way) -> Move {
    Move { ours: ours.clone(), ours_at: 512, domain: PEER, grant: GrantRef(grant), theirs_at: 1024, bytes: 512, way }
}

fn copy(kept: &mut Kept<Fake>, grant: u32) -> bool {
    kept.copy(&moved(&PageRef::alone().unwrap(), grant, Way::In))
}

#[test]
fn a_page_is_mapped_once_and_what_goes_there_comes_back() {
    let (domain, fake) = domain();
    let mut kept = Kept::new(&domain, PEER);
    let (from, into) = (PageRef::alone().unwrap(), PageRef::alone().unwrap());
    from.write(512, b"kept");
    assert!(kept.copy(&moved(&from, 30, Way::Out)) && kept.copy(&moved(&into, 30, Way::In)));
    let mut bytes = [0; 4];
    into.read(512, &mut bytes);
    assert_eq!((&bytes, fake.maps.borrow().len()), (b"kept", 1));
    assert!(copy(&mut kept, 31));
    assert_eq!((fake.mapped.get(), domain.held.mappings.get()), (2, 2));
    drop(kept);
    assert_eq!((fake.mapped.get(), domain.held.mappings.get()), (0, 0));
}

#[test]
fn what_is_away_is_asked_for_again_and_after_a_refusal_nothing_more_is_mapped() {
    let (domain, fake) = domain();
    let mut kept = Kept::new(&domain, PEER);
    fake.answer(30, [Refused::AGAIN]);
    fake.answer(31, [Refused(-1)]);
    assert!(!copy(&mut kept, 30) && copy(&mut kept, 30));
    assert!(!copy(&mut kept, 31) && !copy(&mut kept, 31) && !copy(&mut kept, 32));
    assert!(copy(&mut kept, 30), "what is mapped stays");
    assert_eq!(fake.maps.borrow().len(), 3);
}

#[test]
fn there_is_an_end_to_the_pages_of_a_ring_and_of_all() {
    let (domain, fake) = domain();
    let all: Vec<_> = (0..KEPT_PAGES / KEPT_PER_RING + 1)
        .map(|_| {
            let mut kept = Kept::new(&domain, PEER);
            let made = (0..2 * KEPT_PER_RING as u32).filter(|grant| copy(&mut kept, 8 + grant)).count();
            (kept, made)
        })
        .collect();
    let (last, others) = all.split_last().unwrap();
    assert!(others.iter().all(|(_, made)| *made == KEPT_PER_RING));
    assert_eq!((last.1, fake.mapped.get()), (0, KEPT_PAGES));
    drop(all);
    assert_eq!((fake.mapped.get(), domain.held.mappings.get()), (0, 0));
}

#[test]
fn what_was_not_used_for_long_makes_room() {
    let (domain, fake) = domain();
    let mut kept = Kept::new(&domain, PEER);
    let same_set = |n: u32| 8 + n * KEPT_PER_RING as u32;
    assert!((0..4).all(|n| copy(&mut kept, same_set(n))));
    assert!(!copy(&mut kept, same_set(4)), "those have just been used");
    assert!((0..5 * KEPT_PER_RING).all(|_| copy(&mut kept, same_set(3))));
    assert!(copy(&mut kept, same_set(4)) && copy(&mut kept, same_set(3)));
    assert_eq!(fake.mapped.get(), 4);
    let before = fake.maps.borrow().len();
    assert!(copy(&mut kept, same_set(1)) && copy(&mut kept, same_set(2)), "the oldest went");
    assert_eq!(fake.maps.borrow().len(), before);
}
