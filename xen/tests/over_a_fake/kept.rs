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
    let all: Vec<_> = (0..KEPT_PAGES / KEPT_PER_RING + 2)
        .map(|_| {
            let mut kept = Kept::new(&domain, PEER);
            let made = (0..4 * KEPT_PER_RING as u32).filter(|grant| copy(&mut kept, 8 + grant)).count();
            (kept, made)
        })
        .collect();
    let made: Vec<_> = all.iter().map(|(_, made)| *made).collect();
    assert!(made.iter().all(|made| *made <= KEPT_PER_RING) && made[0] > KEPT_PER_RING * 99 / 100, "{made:?}");
    assert_eq!((made.last(), fake.mapped.get()), (Some(&0), KEPT_PAGES));
    drop(all);
    assert_eq!((fake.mapped.get(), domain.held.mappings.get()), (0, 0));
}

#[test]
fn what_was_not_used_for_long_makes_room() {
    let (domain, fake) = domain();
    let mut kept = Kept::new(&domain, PEER);
    // Their places begin with the first.
    let same: Vec<u32> = (8..).filter(|grant: &u32| grant.wrapping_mul(0x9e37_79b9) < 1 << 21).take(17).collect();
    let (last, others) = same.split_last().unwrap();
    assert!(others.iter().all(|grant| copy(&mut kept, *grant)));
    assert!(!copy(&mut kept, *last), "those have just been used");
    assert!((0..5 * KEPT_PER_RING).all(|_| copy(&mut kept, same[3])));
    assert!(copy(&mut kept, *last) && copy(&mut kept, same[3]));
    assert_eq!(fake.mapped.get(), 16);
    let before = fake.maps.borrow().len();
    assert!(others[1..].iter().all(|grant| copy(&mut kept, *grant)), "the oldest went");
    assert_eq!(fake.maps.borrow().len(), before);
}

#[test]
fn all_pages_of_a_linux_ring_find_a_place_whatever_lies_between_their_references() {
    for apart in [1, 2, 8, 11, 512, 2048] {
        let (domain, fake) = domain();
        let mut kept = Kept::new(&domain, PEER);
        assert!((0..1056).all(|n| copy(&mut kept, 8 + n * apart)), "{apart}");
        assert_eq!(fake.mapped.get(), 1056);
    }
}
