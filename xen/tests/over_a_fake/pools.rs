//! Pages lent once and for ever.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::pin::pin;
use std::rc::Rc;

use xen::page::PageRef;
use xen::pool::{NoPool, Pool};
use xen::port::{Access, Refused};

use crate::fake::{PEER, domain, poll, run};

#[test]
fn every_page_is_lent_once_under_its_own_grant() {
    let (domain, fake) = domain();
    let pool = Pool::new(&domain, PEER, 4, 0).ok().unwrap();
    assert_eq!((pool.pages(), domain.held.grants.get(), domain.held.pages.get()), (4, 4, 0));
    let mut pages = Vec::new();
    assert!(poll(pin!(pool.take(4, |page| pages.push(page)))).is_ready());
    assert_eq!(domain.held.pages.get(), 4);
    for page in &pages {
        let expected = (page.address(), PEER, Access::ReadWrite);
        assert_eq!(fake.granted.borrow()[&pool.grant(page).0], expected);
    }
    assert_eq!(pages.iter().map(|page| page.address()).collect::<BTreeSet<_>>().len(), 4);
    pages.drain(..).for_each(|page| pool.put(&page));
    assert_eq!(domain.held.pages.get(), 0);
    drop(pool);
    assert_eq!((fake.granted.borrow().len(), domain.held.grants.get()), (0, 0));
}

#[test]
fn who_wants_many_waits_and_is_not_passed() {
    let (domain, _fake) = domain();
    let pool = Rc::new(Pool::new(&domain, PEER, 3, 0).ok().unwrap());
    let mut held: Vec<PageRef> = Vec::new();
    assert!(poll(pin!(pool.take(2, |page| held.push(page)))).is_ready());
    let order = Rc::new(RefCell::new(Vec::new()));
    for n in [3, 1] {
        let (pool, order) = (pool.clone(), order.clone());
        domain.exec.spawn(async move {
            let mut mine = Vec::new();
            pool.take(n, |page| mine.push(page)).await;
            order.borrow_mut().push(n);
            mine.iter().for_each(|page| pool.put(page));
        });
    }
    run(&domain);
    assert_eq!(*order.borrow(), [0; 0]);
    pool.put(&held.pop().unwrap());
    run(&domain);
    assert_eq!(*order.borrow(), [0; 0], "one is free, three are wanted first");
    pool.put(&held.pop().unwrap());
    run(&domain);
    assert_eq!((order.borrow().as_slice(), domain.held.pages.get()), (&[3, 1][..], 0));
}

#[test]
fn a_pool_that_is_not_granted_whole_is_none() {
    let (domain, fake) = domain();
    fake.grants_left.set(2);
    assert_eq!(Pool::new(&domain, PEER, 3, 0).err(), Some(NoPool::Refused(Refused(-13))));
    assert_eq!((fake.granted.borrow().len(), domain.held.grants.get()), (0, 0));
}

#[test]
#[should_panic]
fn nobody_wants_more_than_there_are() {
    let (domain, _fake) = domain();
    let pool = Pool::new(&domain, PEER, 1, 0).ok().unwrap();
    let _never = poll(pin!(pool.take(2, drop)));
}

#[test]
fn the_reserve_is_there_when_all_else_is_taken() {
    let (domain, _fake) = domain();
    let pool = Pool::new(&domain, PEER, 2, 1).ok().unwrap();
    let (mut held, mut kept) = (Vec::new(), Vec::new());
    assert!(poll(pin!(pool.take(2, |page| held.push(page)))).is_ready());
    assert!(poll(pin!(pool.take(1, |_| {}))).is_pending());
    assert!(poll(pin!(pool.take_reserved(1, |page| kept.push(page)))).is_ready());
    assert!(poll(pin!(pool.take_reserved(1, |_| {}))).is_pending());
    assert_eq!((pool.pages(), domain.held.pages.get()), (2, 3));
    pool.put(&kept.pop().unwrap());
    assert!(poll(pin!(pool.take(1, |_| {}))).is_pending(), "what was reserved goes back to the reserve");
    assert!(poll(pin!(pool.take_reserved(1, |page| kept.push(page)))).is_ready());
    held.iter().chain(&kept).for_each(|page| pool.put(page));
    assert_eq!(domain.held.pages.get(), 0);
}
