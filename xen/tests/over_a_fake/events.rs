//! Event channels.

use std::cell::Cell;
use std::rc::Rc;

use xen::event::Channel;
use xen::port::{Port, Refused};

use crate::fake::{Fake, PEER, domain, run};

/// A task that counts the events of a channel.
fn listen(domain: &Rc<xen::domain::Domain<Fake>>, channel: Channel<Fake>) -> Rc<Cell<u32>> {
    let heard = Rc::new(Cell::new(0));
    let count = heard.clone();
    domain.exec.spawn(async move {
        loop {
            channel.wait().await;
            count.set(count.get() + 1);
        }
    });
    heard
}

#[test]
fn an_event_wakes_who_waits_for_its_port() {
    let (domain, fake) = domain();
    let bound = listen(&domain, Channel::bind(&domain, PEER, Port(9)).ok().unwrap());
    let offered = listen(&domain, Channel::offer(&domain, PEER).ok().unwrap());
    assert_eq!((fake.ports.borrow().len(), domain.held.ports.get()), (2, 2));
    run(&domain);
    assert_eq!((bound.get(), offered.get()), (1, 0), "a binding comes with an event");
    fake.pending.borrow_mut().insert(3);
    run(&domain);
    assert_eq!((bound.get(), offered.get()), (1, 1));
    // Two before a look are one.
    domain.look();
    fake.pending.borrow_mut().insert(2);
    domain.look();
    fake.pending.borrow_mut().insert(2);
    run(&domain);
    assert_eq!((bound.get(), offered.get()), (2, 1));
    // Nobody's port, below and above those there are.
    fake.pending.borrow_mut().extend([0, 1, 1000]);
    run(&domain);
    assert_eq!((bound.get(), offered.get()), (2, 1));
}

#[test]
fn a_channel_is_closed_when_dropped_and_its_number_means_another_then() {
    let (domain, fake) = domain();
    let first = Channel::offer(&domain, PEER).ok().unwrap();
    assert_eq!(first.port(), Port(2));
    first.notify();
    assert_eq!(*fake.notified.borrow(), [2]);
    fake.pending.borrow_mut().insert(2);
    domain.look();
    drop(first);
    assert_eq!((fake.ports.borrow().len(), domain.held.ports.get()), (0, 0));
    // A late event is nobody's.
    fake.pending.borrow_mut().insert(2);
    run(&domain);
    let again = Channel::offer(&domain, PEER).ok().unwrap();
    assert_eq!(again.port(), Port(2));
    let heard = listen(&domain, again);
    run(&domain);
    assert_eq!(heard.get(), 0, "the event was the other channel's");
}

#[test]
fn a_port_that_was_given_is_never_closed() {
    let (domain, fake) = domain();
    drop(Channel::given(&domain, crate::fake::STORE_PORT));
    assert_eq!((fake.ports.borrow().len(), domain.held.ports.get()), (0, 0));
}

#[test]
fn no_port_is_no_channel() {
    let (domain, fake) = domain();
    fake.ports_left.set(0);
    assert_eq!(Channel::bind(&domain, PEER, Port(9)).err(), Some(Refused(-28)));
    assert_eq!(Channel::offer(&domain, PEER).err(), Some(Refused(-28)));
    assert_eq!(domain.held.ports.get(), 0);
}
