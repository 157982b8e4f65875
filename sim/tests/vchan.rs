//! A server of vchans in the domain under test, and all kinds of clients: every honest one gets its bytes back, and
//! after each of them nothing is left.

use std::rc::Rc;
use std::time::Duration;

use embedded_io_async::{Read, Write};
use protocol::vchan::Orders;
use sim::handle::SimXen;
use sim::marks;
use sim::run::{Baseline, DRIVER, Run, Turn, seeds};
use sim::vchan::caller::{CLUMSY, Caller, Deed, HOSTILE, ROWS, SharedCaller};
use sim::world::DOM0;
use xen::domain::Domain;
use xen::port::DomId;
use xen::store::Store;
use xen::vchan::{Connection, Server};

/// What a session reads at most at once.
const CHUNK: usize = 1500;

/// A domain that echoes.
struct Stage {
    run: Run,
    domain: Rc<Domain<SimXen>>,
    clean: Baseline,
}

async fn echo(connection: Connection<SimXen>) {
    let mut bytes = [0; CHUNK];
    let (mut from, mut to) = (&connection, &connection);
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        if to.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
}

fn path(name: &str) -> String {
    format!("/local/domain/1/data/{name}")
}

impl Stage {
    /// One server for each name, for these clients and with these orders.
    fn new(seed: u64, names: &[(&str, DomId)], orders: Orders) -> Self {
        let mut run = Run::new(seed);
        let domain = Domain::new(SimXen::new(&run.world, DRIVER));
        let store = Store::connect(&domain);
        for (name, client) in names {
            if !run.world.alive(*client) {
                run.toolstack.borrow_mut().create(*client);
            }
            let mut server = Server::new(&store, &format!("data/{name}"), *client, orders).unwrap();
            domain.exec.spawn(async move {
                loop {
                    echo(server.accept().await).await;
                }
            });
        }
        let (driven, mut random) = (domain.clone(), run.random.fork());
        run.drive_by(Box::new(move || {
            driven.look();
            match (0..4).take_while(|_| driven.exec.turn(&mut |ready| random.index(ready))).count() {
                0 => Turn::Idle(driven.timers.next()),
                _ => Turn::Busy,
            }
        }));
        run.rest(Duration::from_millis(1));
        let clean = run.baseline(DRIVER);
        Stage { run, domain, clean }
    }

    fn all_at_rest(&mut self, callers: &[SharedCaller]) {
        let there =
            self.run.until(Duration::from_secs(3600), |_| callers.iter().all(|caller| caller.borrow().at_rest()));
        let tallies: Vec<_> = callers.iter().map(|caller| caller.borrow().tally).collect();
        let states: Vec<_> = callers.iter().map(|caller| caller.borrow().state()).collect();
        assert!(there, "{tallies:?} {states:?}\n{}", self.run.scene());
    }

    /// After the last client a fresh vchan is offered, and nothing else is there that was not at the beginning.
    fn assert_clean(&mut self) {
        self.run.rest(Duration::from_secs(10));
        let now = self.run.baseline(DRIVER);
        assert_eq!(now, self.clean, "{}", self.run.scene());
        assert_eq!(self.domain.held.grants.get(), now.holdings.grants);
    }
}

#[test]
fn honest_clients_come_and_go() {
    let pairs = [(12, 12), (10, 11), (11, 10), (10, 12), (13, 11), (14, 12)];
    seeds(0..24, |seed| {
        let (left, right) = pairs[seed as usize % pairs.len()];
        let mut stage = Stage::new(seed, &[("tapdisk", DOM0)], Orders::new(left, right).unwrap());
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
        let mut stage = Stage::new(seed, &[("odd", guest), ("tapdisk", DOM0)], Orders::ONE_PAGE_EACH);
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
