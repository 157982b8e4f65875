//! Pages of others mapped, pages of ours lent, copies in batches.

use std::pin::pin;
use std::task::Poll;

use protocol::mem::Memory;
use xen::grant::{Batch, Lent, Mapped};
use xen::limits::{AGAIN_TRIES, COPIES_PER_BATCH};
use xen::page::PageRef;
use xen::port::{Access, Foreign, GrantRef, Move, Refused, Way};

use crate::fake::{PEER, domain, poll, run};

const NO: Refused = Refused(-9);

fn pages(grants: impl IntoIterator<Item = u32>) -> Vec<Foreign> {
    let page = |grant| Foreign { domain: PEER, grant: GrantRef(grant), access: Access::ReadWrite };
    grants.into_iter().map(page).collect()
}

fn moves(grants: impl IntoIterator<Item = u32>) -> impl Iterator<Item = Move> {
    let ours = PageRef::alone().unwrap();
    grants.into_iter().map(move |grant| Move {
        ours: ours.clone(),
        ours_at: 0,
        domain: PEER,
        grant: GrantRef(grant),
        theirs_at: 0,
        bytes: 512,
        way: Way::In,
    })
}

#[test]
fn mapped_pages_are_one_memory_and_end_together() {
    let (domain, fake) = domain();
    let mapped = Mapped::new(&domain, &pages([30, 31, 32])).ok().unwrap();
    assert_eq!((fake.mapped.get(), domain.held.mappings.get()), (3, 3));
    assert_eq!(*fake.maps.borrow(), [[30, 31, 32]], "one hypercall");
    mapped.write(4090, b"across the edge");
    let mut bytes = [0; 15];
    mapped.read(4090, &mut bytes);
    assert_eq!(&bytes, b"across the edge");
    mapped.store(8192, 0x0102_0304);
    assert_eq!((mapped.load(8192), mapped.load(0)), (0x0102_0304, 0));
    drop(mapped);
    assert_eq!((fake.mapped.get(), domain.held.mappings.get()), (0, 0));
}

#[test]
fn one_page_refused_is_none_mapped() {
    let (domain, fake) = domain();
    fake.answer(31, [NO]);
    assert_eq!(Mapped::new(&domain, &pages([30, 31, 32])).err(), Some(NO));
    assert_eq!((fake.mapped.get(), domain.held.mappings.get()), (0, 0));
}

#[test]
fn a_page_that_is_away_is_mapped_again_and_no_other() {
    let (domain, fake) = domain();
    fake.answer(31, [Refused::AGAIN; 3]);
    assert!(Mapped::new(&domain, &pages([30, 31])).is_ok());
    assert_eq!(*fake.maps.borrow(), [vec![30, 31], vec![31], vec![31], vec![31]]);
    assert_eq!(fake.mapped.get(), 0);
    fake.maps.borrow_mut().clear();
    fake.answer(31, [Refused::AGAIN; 100]);
    assert_eq!(Mapped::new(&domain, &pages([30, 31])).err(), Some(Refused::AGAIN));
    assert_eq!(fake.maps.borrow().len(), 1 + AGAIN_TRIES, "a bounded number of times");
    assert_eq!((fake.mapped.get(), domain.held.mappings.get()), (0, 0));
}

#[test]
fn a_page_is_lent_until_it_is_dropped() {
    let (domain, fake) = domain();
    let page = PageRef::alone().unwrap();
    let lent = Lent::new(&domain, page.clone(), PEER, Access::ReadOnly).ok().unwrap();
    assert_eq!(fake.granted.borrow()[&lent.grant().0], (page.address(), PEER, Access::ReadOnly));
    assert_eq!((lent.page().address(), domain.held.grants.get()), (page.address(), 1));
    drop(lent);
    assert_eq!((fake.granted.borrow().len(), domain.held.grants.get()), (0, 0));
    fake.grants_left.set(0);
    assert_eq!(Lent::new(&domain, page, PEER, Access::ReadOnly).err(), Some(Refused(-13)));
    assert_eq!(domain.held.grants.get(), 0);
}

#[test]
fn a_page_that_is_still_used_is_kept_and_ended_later() {
    let (domain, fake) = domain();
    let lend = || Lent::new(&domain, PageRef::alone().unwrap(), PEER, Access::ReadWrite).ok().unwrap();
    let (first, second) = (lend(), lend());
    let used = [first.grant().0, second.grant().0];
    fake.used.borrow_mut().extend(used);
    drop((first, second));
    assert_eq!((fake.granted.borrow().len(), domain.held.grants.get()), (2, 2));
    Lent::sweep(&domain);
    assert_eq!(domain.held.grants.get(), 2, "still used");
    fake.used.borrow_mut().remove(&used[0]);
    // The next one that lends looks after them too.
    let third = lend();
    assert_eq!(fake.granted.borrow().keys().copied().collect::<Vec<_>>(), [used[1], third.grant().0]);
    fake.used.borrow_mut().clear();
    Lent::sweep(&domain);
    drop(third);
    assert_eq!((fake.granted.borrow().len(), domain.held.grants.get()), (0, 0));
}

#[test]
fn orders_of_one_turn_are_one_hypercall_and_each_has_its_own_result() {
    let (domain, fake) = domain();
    let batch = Batch::default();
    fake.answer(21, [NO]);
    fake.answer(22, [Refused(-3)]);
    assert!(!batch.run(&domain), "nobody has ordered yet");
    let mut first = pin!(batch.copy(moves([10, 11])));
    let mut second = pin!(batch.copy(moves([20, 21, 22])));
    let mut empty = pin!(batch.copy(moves([])));
    let mut third = pin!(batch.copy(moves([30])));
    assert!(poll(first.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
    assert!(poll(empty.as_mut()).is_pending() && poll(third.as_mut()).is_pending());
    assert!(poll(first.as_mut()).is_pending(), "asked twice, ordered once");
    assert!(batch.run(&domain));
    assert_eq!(*fake.copies.borrow(), [[10, 11, 20, 21, 22, 30]]);
    assert_eq!(poll(second.as_mut()), Poll::Ready(Err(NO)), "the first of its errors");
    assert_eq!(poll(third.as_mut()), Poll::Ready(Ok(())));
    assert_eq!(poll(empty.as_mut()), Poll::Ready(Ok(())));
    assert!(!batch.run(&domain), "what is done is not done again");
    // Another takes the place of one that has its result; the first one's is still its own.
    let mut late = pin!(batch.copy(moves([40])));
    assert!(poll(late.as_mut()).is_pending());
    fake.answer(40, [NO]);
    assert!(batch.run(&domain));
    assert_eq!(fake.copies.borrow()[1..], [[40]]);
    assert_eq!((poll(first.as_mut()), poll(late.as_mut())), (Poll::Ready(Ok(())), Poll::Ready(Err(NO))));
}

#[test]
fn who_waits_for_a_copy_is_woken() {
    for refuses in [false, true] {
        let (domain, _fake) = domain();
        let batch = std::rc::Rc::new(Batch::default());
        for grant in 0..3 {
            let batch = batch.clone();
            domain.exec.spawn(async move {
                let expected = if refuses { Err(Refused::GONE) } else { Ok(()) };
                assert_eq!(batch.copy(moves([grant])).await, expected);
            });
        }
        run(&domain);
        assert_eq!(domain.exec.tasks(), 3);
        assert!(if refuses { batch.refuse() } else { batch.run(&domain) });
        run(&domain);
        assert_eq!(domain.exec.tasks(), 0);
    }
}

#[test]
fn what_is_refused_is_never_copied() {
    let (domain, fake) = domain();
    let batch = Batch::default();
    assert!(!batch.refuse());
    let mut done = pin!(batch.copy(moves([10])));
    assert!(poll(done.as_mut()).is_pending() && batch.run(&domain));
    let mut waits = pin!(batch.copy(moves([11, 12])));
    assert!(poll(waits.as_mut()).is_pending());
    assert!(batch.refuse());
    assert!(!batch.run(&domain) && !batch.refuse());
    assert_eq!(fake.copies.borrow().len(), 1);
    assert_eq!((poll(waits.as_mut()), poll(done.as_mut())), (Poll::Ready(Err(Refused::GONE)), Poll::Ready(Ok(()))));
    // Its moves went with it.
    let mut next = pin!(batch.copy(moves([13])));
    assert!(poll(next.as_mut()).is_pending() && batch.run(&domain));
    assert_eq!(fake.copies.borrow()[1], [13]);
}

#[test]
fn a_copy_of_a_page_that_is_away_is_made_again_and_no_other() {
    let (domain, fake) = domain();
    let batch = Batch::default();
    fake.answer(11, [Refused::AGAIN, Refused::AGAIN]);
    fake.answer(13, [Refused::AGAIN, NO]);
    let mut first = pin!(batch.copy(moves([10, 11])));
    let mut second = pin!(batch.copy(moves([12, 13])));
    assert!(poll(first.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
    assert!(batch.run(&domain));
    assert_eq!(*fake.copies.borrow(), [vec![10, 11, 12, 13], vec![11], vec![13], vec![11]]);
    assert_eq!((poll(first.as_mut()), poll(second.as_mut())), (Poll::Ready(Ok(())), Poll::Ready(Err(NO))));
    fake.copies.borrow_mut().clear();
    fake.answer(10, [Refused::AGAIN; 100]);
    let mut never = pin!(batch.copy(moves([10])));
    assert!(poll(never.as_mut()).is_pending() && batch.run(&domain));
    assert_eq!(fake.copies.borrow().len(), 1 + AGAIN_TRIES, "a bounded number of times");
    assert_eq!(poll(never.as_mut()), Poll::Ready(Err(Refused::AGAIN)));
}

#[test]
fn a_long_batch_is_cut() {
    let (domain, fake) = domain();
    let batch = Batch::default();
    let many = COPIES_PER_BATCH as u32 + 5;
    fake.answer(many - 1, [NO]);
    let mut all = pin!(batch.copy(moves(0..many)));
    assert!(poll(all.as_mut()).is_pending() && batch.run(&domain));
    let copies = fake.copies.borrow();
    assert_eq!(copies.iter().map(Vec::len).collect::<Vec<_>>(), [COPIES_PER_BATCH, 5]);
    assert!(copies.concat().into_iter().eq(0..many), "in order");
    assert_eq!(poll(all.as_mut()), Poll::Ready(Err(NO)), "results past the cut are its own");
}
