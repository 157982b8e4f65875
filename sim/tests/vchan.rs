//! A server of vchans in the domain under test, and all kinds of clients: every honest one gets its bytes back, and
//! after each of them nothing is left.

use std::sync::Arc;
use std::time::Duration;

use protocol::mem::Memory;
use protocol::vchan::Orders;
use sim::event::Channel;
use sim::fault::Fault;
use sim::handle::SimXen;
use sim::marks;
use sim::run::{DRIVER, Run, heap, seeds};
use sim::vchan::caller::{CLUMSY, Caller, Deed, HOSTILE, ROWS};
use sim::vchan::client::{Client, offer};
use sim::world::DOM0;
use sim::worlds::vchan::{Echo, path};
use xen::domain::Domain;
use xen::limits::VCHAN_PAGES_STUCK;
use xen::memory::Budget;
use xen::port::{Access, DomId, Foreign, GrantRef};
use xen::store::Store;
use xen::vchan::{NoPath, Server};

#[test]
fn honest_clients_come_and_go() {
    let pairs = [(12, 12), (10, 11), (11, 10), (10, 12), (13, 11), (14, 12)];
    seeds(0..24, |seed| {
        let (left, right) = pairs[seed as usize % pairs.len()];
        let mut stage = Echo::new(seed, &[("tapdisk", DOM0)], Orders::new(left, right).unwrap());
        let caller = Caller::join(&mut stage.run, DOM0, &path("tapdisk"), &[Deed::Honest, Deed::NoKick], 5);
        stage.all_at_rest(std::slice::from_ref(&caller));
        stage.assert_clean();
        let tally = caller.borrow().tally;
        assert!(tally.finished == 5 && tally.echoed > 5, "{tally:?}");
    });
}

#[test]
fn clumsy_and_hostile_clients_harm_only_themselves() {
    seeds(0..60, |seed| {
        let guest = DomId(5);
        let mut stage = Echo::new(seed, &[("odd", guest), ("tapdisk", DOM0)], Orders::ONE_PAGE_EACH);
        let deeds = [&CLUMSY[..], &HOSTILE[..], &[Deed::Honest]].concat();
        let odd = Caller::join(&mut stage.run, guest, &path("odd"), &deeds, 12);
        let good = Caller::join(&mut stage.run, DOM0, &path("tapdisk"), &[Deed::Honest], 12);
        stage.all_at_rest(&[odd.clone(), good.clone()]);
        let tally = good.borrow().tally;
        assert_eq!((tally.finished, tally.connects - tally.dropped), (12, 12), "{tally:?}");
        // The odd one's path serves whoever comes next.
        odd.borrow_mut().deeds = vec![Deed::Honest];
        odd.borrow_mut().rounds = 1;
        stage.run.world.stir();
        stage.all_at_rest(&[odd]);
        stage.assert_clean();
    });
    let hits = marks::take();
    let missing: Vec<_> = ROWS.iter().filter(|row| !hits.contains_key(*row)).collect();
    assert!(std::env::var("SEED").is_ok() || missing.is_empty(), "never met: {missing:?}");
}

/// What the client may read and nobody else, in nodes of the names and values libxenvchan looks for.
#[test]
fn what_is_published() {
    let stage = Echo::new(1, &[("tapdisk", DomId(5))], Orders::ONE_PAGE_EACH);
    let (server, client, other) = (DRIVER, stage.run.store.client(DomId(5)), stage.run.store.client(DomId(6)));
    let (grant, port) = offer(&client, &path("tapdisk")).expect("both nodes, not 0");
    assert!(stage.run.world.bind(DomId(5), server, port).is_ok());
    assert!(grant.0 >= 8);
    for name in ["ring-ref", "event-channel"] {
        let node = format!("{}/{name}", path("tapdisk"));
        assert!(client.read(&node).is_ok() && other.read(&node).is_err(), "{node}");
        assert!(client.write(&node, "0").is_err(), "{node}");
    }
    // A client's ring is its to write, the server's is not.
    let page = Foreign { domain: DRIVER, grant, access: Access::ReadWrite };
    let (_, page) = stage.run.world.map(DomId(5), page).unwrap();
    let [left, right] = [24, 28].map(|at| GrantRef(page.load(at)));
    let map = |grant, access| stage.run.world.map(DomId(5), Foreign { domain: DRIVER, grant, access }).is_ok();
    assert!(map(left, Access::ReadWrite) && map(right, Access::ReadOnly) && !map(right, Access::ReadWrite));
}

#[test]
fn paths_that_clients_cannot_hold_are_refused() {
    let run = Run::new(1);
    let domain = Domain::new(SimXen::new(&run.world, DRIVER), Budget::new(heap), Arc::default());
    let store = Store::connect(&domain);
    let at = |path: &str| Server::new(&store, path, DOM0, Orders::ONE_PAGE_EACH).map(drop);
    assert_eq!(at("data/tapdisk-rfc"), Ok(()));
    assert_eq!(at(&format!("data/{}", "a".repeat(25))), Err(NoPath));
    assert_eq!(at("data//x"), Err(NoPath));
    assert!(NoPath.to_string().contains("49"));
}

/// One that never reads its replies keeps its own channel, and no other.
#[test]
fn a_stuck_client_blocks_nobody_else() {
    seeds(0..20, |seed| {
        let mut stage = Echo::new(seed, &[("rfc", DOM0), ("tapdisk", DOM0)], Orders::ONE_PAGE_EACH);
        let store = stage.run.store.client(DOM0);
        let stuck = Client::connect(&stage.run.world, &store, (DOM0, DRIVER), &path("rfc"), true).unwrap();
        let good = Caller::join(&mut stage.run, DOM0, &path("tapdisk"), &[Deed::Honest], 10);
        for _ in 0..10 {
            stuck.write(&[7; 4096]);
            stage.run.rest(Duration::from_millis(1));
        }
        assert!(stuck.buffer_space() == 0 && stuck.right.ready() == 4096, "it is stuck indeed");
        stage.all_at_rest(&[good]);
        assert!(stuck.is_open());
        stuck.vanish();
        stage.assert_clean();
    });
}

/// Who comes after an answer was seen finds a set of pages that nobody had.
#[test]
fn the_next_vchan_is_offered_before_a_client_is_answered() {
    seeds(0..8, |seed| {
        let mut stage = Echo::new(seed, &[("tapdisk", DOM0)], Orders::ONE_PAGE_EACH);
        let store = stage.run.store.client(DOM0);
        let first = offer(&store, &path("tapdisk"));
        let client = Client::connect(&stage.run.world, &store, (DOM0, DRIVER), &path("tapdisk"), true).unwrap();
        client.write(&[3; 100]);
        client.notify();
        assert!(stage.run.until(Duration::from_secs(1), |_| client.data_ready() == 100), "{}", stage.run.scene());
        let next = offer(&store, &path("tapdisk"));
        assert!(next.is_some() && next != first, "{first:?} is still offered");
    });
}

/// A connection that ends on our side ends on the client's.
#[test]
fn a_client_is_told_when_we_close() {
    let mut stage = Echo::new(1, &[], Orders::ONE_PAGE_EACH);
    // The connection of the stage, which serves nothing, ends with this one.
    let server_store = Store::connect(&stage.domain);
    let mut server = Server::new(&server_store, "data/once", DOM0, Orders::ONE_PAGE_EACH).unwrap();
    stage.domain.exec.spawn(async move {
        loop {
            drop(server.accept().await);
        }
    });
    stage.run.nudge();
    stage.run.rest(Duration::from_millis(1));
    let store = stage.run.store.client(DOM0);
    let client = Client::connect(&stage.run.world, &store, (DOM0, DRIVER), &path("once"), true).unwrap();
    assert!(client.is_open());
    assert!(stage.run.until(Duration::from_secs(10), |_| !client.is_open()), "it waits for ever");
    assert!(client.take_event(), "it sleeps and is not woken");
}

/// The client's domain dies, and another gets its number.
#[test]
fn a_dead_domain_leaves_its_channel_to_the_next_of_its_number() {
    seeds(0..20, |seed| {
        let guest = DomId(5);
        let mut stage = Echo::new(seed, &[("tapdisk", guest)], Orders::ONE_PAGE_EACH);
        for _ in 0..3 {
            let store = stage.run.store.client(guest);
            let client = Client::connect(&stage.run.world, &store, (guest, DRIVER), &path("tapdisk"), true).unwrap();
            client.write(&vec![3; stage.run.random.between(1, 4096) as usize]);
            if stage.run.random.one_in(2) {
                stage.run.rest(Duration::from_millis(1));
            }
            let first = offer(&store, &path("tapdisk"));
            assert_eq!(stage.run.destroy(guest), Ok(()));
            // The next of its number may be there at once, or late. From the offer that stands xenstored has taken the right
            // of the one that died, and tells nobody.
            let (before, after) = if stage.run.random.one_in(2) { (10, 4) } else { (0, 10) };
            stage.run.rest(Duration::from_secs(before));
            stage.run.toolstack.borrow_mut().create(guest);
            stage.run.rest(Duration::from_secs(after));
            let again = offer(&stage.run.store.client(guest), &path("tapdisk"));
            assert!(again.is_some() && stage.run.baseline(DRIVER) == stage.clean, "{first:?} {again:?}");
            assert_eq!(stage.run.world.channel(DRIVER, again.unwrap().1), Some(Channel::Unbound { remote: guest }));
        }
    });
}

/// What cannot be had when a vchan is to be offered is asked for again.
#[test]
fn an_offer_that_fails_is_made_later() {
    seeds(0..20, |seed| {
        let mut stage = Echo::new(seed, &[("tapdisk", DOM0)], Orders::ONE_PAGE_EACH);
        for fault in [Fault::AllocUnbound, Fault::Lend, Fault::Memory, Fault::Conflict, Fault::EventTwice] {
            stage.run.world.faults().allow(fault, 40, 2);
        }
        let caller = Caller::join(&mut stage.run, DOM0, &path("tapdisk"), &[Deed::Honest], 10);
        stage.all_at_rest(&[caller]);
        assert!(stage.run.world.faults().injected(Fault::Lend) > 0);
        stage.run.world.faults().end();
        stage.assert_clean();
    });
}

/// Clients that never let go of their pages cost no more than a fixed number of them.
#[test]
fn pages_that_are_never_given_back_are_bounded() {
    let mut stage = Echo::new(3, &[("tapdisk", DOM0)], Orders::ONE_PAGE_EACH);
    let store = stage.run.store.client(DOM0);
    let mut kept = Vec::new();
    for _ in 0..100 {
        if let Ok(client) = Client::connect(&stage.run.world, &store, (DOM0, DRIVER), &path("tapdisk"), true) {
            stage.run.rest(Duration::from_millis(1));
            kept.extend(client.close_mapped());
        }
        stage.run.rest(Duration::from_secs(4));
    }
    let most = VCHAN_PAGES_STUCK + 2 * 3;
    let grants = stage.run.baseline(DRIVER).holdings.grants;
    assert!((VCHAN_PAGES_STUCK..=most).contains(&grants), "{grants}");
    kept.into_iter().for_each(|handle| stage.run.world.unmap(DOM0, handle));
    stage.run.rest(Duration::from_secs(10));
    let caller = Caller::join(&mut stage.run, DOM0, &path("tapdisk"), &[Deed::Honest], 1);
    stage.all_at_rest(&[caller]);
    stage.assert_clean();
}
