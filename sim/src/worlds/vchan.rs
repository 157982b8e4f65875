//! A server of vchans that echoes, and clients of all kinds at once: each honest one gets its bytes back, the others harm
//! only themselves, and when all have gone a fresh vchan is offered and nothing else is there.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use embedded_io_async::{Read, Write};
use protocol::vchan::Orders;
use xen::domain::Domain;
use xen::memory::Budget;
use xen::port::DomId;
use xen::store::Store;
use xen::vchan::{Connection, Server};

use crate::fault::{self, Fault};
use crate::handle::SimXen;
use crate::run::{Baseline, DRIVER, Run, Turn, heap};
use crate::vchan::caller::{CLUMSY, Caller, Deed, HOSTILE, SharedCaller};
use crate::world::DOM0;
use crate::worlds::Report;

/// What a session reads at most at once.
const CHUNK: usize = 1500;
/// The domain whose clients are odd.
const ODD: DomId = DomId(5);

/// A domain that echoes.
pub struct Echo {
    /// The run.
    pub run: Run,
    /// The domain.
    pub domain: Rc<Domain<SimXen>>,
    /// What it holds while nobody is connected.
    pub clean: Baseline,
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

/// Where a server of that name is.
pub fn path(name: &str) -> String {
    format!("/local/domain/{}/data/{name}", DRIVER.0)
}

impl Echo {
    /// One server for each name, for these clients and with these orders.
    pub fn new(seed: u64, names: &[(&str, DomId)], orders: Orders) -> Self {
        let mut run = Run::new(seed);
        let domain = Domain::new(SimXen::new(&run.world, DRIVER), Budget::new(heap), Arc::default());
        let store = Store::connect(&domain);
        for (name, client) in names {
            if !run.world.alive(*client) {
                run.toolstack.borrow_mut().create(*client);
            }
            let path = format!("data/{name}");
            let mut server = Server::new(&store, &path, *client, orders).expect("a path that clients can hold");
            domain.exec.spawn(async move {
                loop {
                    echo(server.accept().await).await;
                }
            });
        }
        run.when_ended(&domain);
        let (driven, mut random) = (domain.clone(), run.random.fork());
        run.drive_by(Box::new(move || {
            driven.look();
            match (0..4).take_while(|_| driven.exec.turn(&mut |ready| random.index(ready))).count() {
                0 => Turn::Idle(driven.timers.next()),
                _ => Turn::Busy,
            }
        }));
        run.rest(Duration::from_millis(100));
        let clean = run.baseline(DRIVER);
        Echo { run, domain, clean }
    }

    /// Waits until these clients have all they wanted.
    pub fn all_at_rest(&mut self, callers: &[SharedCaller]) {
        let there =
            self.run.until(Duration::from_secs(3600), |_| callers.iter().all(|caller| caller.borrow().at_rest()));
        let tallies: Vec<_> = callers.iter().map(|caller| caller.borrow().tally).collect();
        let states: Vec<_> = callers.iter().map(|caller| caller.borrow().state()).collect();
        assert!(there, "{tallies:?} {states:?}\n{}", self.run.scene());
    }

    /// After the last client a fresh vchan is offered, and nothing else is there that was not at the beginning.
    pub fn assert_clean(&mut self) {
        self.run.rest(Duration::from_secs(10));
        let now = self.run.baseline(DRIVER);
        assert_eq!(now, self.clean, "{}", self.run.scene());
        assert_eq!(self.domain.held.grants.get(), now.holdings.grants);
    }
}

/// Plays it.
pub fn play(seed: u64) -> Report {
    let pairs = [(10, 11), (12, 12), (11, 10), (10, 12), (13, 11)];
    let (left, right) = pairs[seed as usize % pairs.len()];
    let orders = Orders::new(left, right).expect("orders that the library knows");
    let mut echo = Echo::new(seed, &[("odd", ODD), ("tapdisk", DOM0)], orders);
    if echo.run.random.one_in(3) {
        let among =
            [Fault::AllocUnbound, Fault::Lend, Fault::Reclaim, Fault::Memory, Fault::Conflict, Fault::EventTwice];
        fault::some(&echo.run.world, &mut echo.run.random, &among);
    }
    let deeds = [&CLUMSY[..], &HOSTILE[..], &[Deed::Honest]].concat();
    let odd = Caller::join(&mut echo.run, ODD, &path("odd"), &deeds, 8);
    let good = Caller::join(&mut echo.run, DOM0, &path("tapdisk"), &[Deed::Honest, Deed::NoKick], 4);
    echo.all_at_rest(&[odd.clone(), good.clone()]);
    let tally = good.borrow().tally;
    assert_eq!((tally.finished, tally.connects - tally.dropped), (4, 4), "{tally:?}");
    echo.run.world.faults().end();
    // The odd one's path serves whoever comes next.
    odd.borrow_mut().deeds = vec![Deed::Honest];
    odd.borrow_mut().rounds = 1;
    echo.run.world.stir();
    echo.all_at_rest(&[odd]);
    echo.assert_clean();
    Report::of(&echo.run)
}
