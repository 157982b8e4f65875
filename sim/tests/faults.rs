//! Xen refuses, xenstored is full, the disk below goes away: what is hit says so, and all else goes on.

use std::time::Duration;

use sim::fault::Fault;
use sim::frontend::{Phase, Workload};
use sim::run::{DRIVER, seeds};
use sim::stage::{GUEST, Stage, XVDA};
use sim::store::tree::NODES_MAX;
use sim::toolstack::Vbd;
use sim::world::DOM0;
use xen::port::DomId;

#[test]
fn pages_that_are_away_for_the_moment_are_asked_for_again() {
    seeds(0..20, |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let guest = stage.on_lower(GUEST);
        for fault in [Fault::MapAgain, Fault::CopyAgain] {
            stage.run.world.faults().allow(fault, 40, 4);
        }
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload::mixed(100));
        stage.run.at_rest(&guest.front);
        assert!(stage.run.world.faults().injected(Fault::CopyAgain) > 0);
        stage.run.world.faults().end();
        stage.verify(&guest);
        stage.detach(&guest);
        stage.assert_clean();
    });
}

#[test]
fn a_copy_that_fails_fails_its_request_only() {
    seeds(0..20, |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let guest = stage.on_lower(GUEST);
        guest.front.borrow_mut().options.errors = true;
        stage.attach(&guest);
        stage.run.world.faults().allow(Fault::Copy, 8, 10);
        guest.front.borrow_mut().work(Workload::mixed(150));
        stage.run.at_rest(&guest.front);
        let tally = guest.front.borrow().tally;
        assert!(tally.errors > 0 && tally.errors <= 8 && tally.reads > 0, "{tally:?}");
        stage.run.world.faults().end();
        stage.verify(&guest);
        stage.detach(&guest);
        stage.assert_clean();
    });
}

#[test]
fn an_attach_that_xen_refuses_leaves_nothing_and_the_next_succeeds() {
    seeds(0..20, |seed| {
        let mut stage = Stage::bare(seed);
        let guest = stage.on_ram(GUEST, 1024);
        let fault = stage.run.random.pick(&[Fault::Map, Fault::Bind]);
        stage.run.world.faults().allow(fault, 1, 1);
        let attached = stage.run.attach(&guest.vbd);
        stage.run.rest(Duration::from_secs(3));
        assert_eq!(stage.run.world.faults().injected(fault), 1);
        assert_ne!(guest.front.borrow().phase(), Phase::Connected, "{attached:?}");
        assert_eq!(stage.run.destroy(GUEST), Ok(()), "{}", stage.run.scene());
        assert_eq!(stage.run.world.life(GUEST), None);
        assert_eq!(stage.run.world.holdings(DRIVER).mappings, 0);
        let next = stage.on_ram(GUEST, 1024);
        stage.attach(&next);
        next.front.borrow_mut().work(Workload::mixed(30));
        stage.run.at_rest(&next.front);
        stage.detach(&next);
    });
}

#[test]
fn transactions_that_conflict_are_made_again() {
    seeds(0..20, |seed| {
        let mut stage = Stage::bare(seed);
        let guest = stage.on_ram(GUEST, 1024);
        stage.run.world.faults().allow(Fault::Conflict, 12, 1);
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload::mixed(30));
        stage.run.at_rest(&guest.front);
        stage.detach(&guest);
        assert!(stage.run.world.faults().injected(Fault::Conflict) > 0);
        stage.assert_clean();
    });
}

#[test]
fn a_full_xenstore_refuses_a_disk_and_not_the_others() {
    seeds(0..6, |seed| {
        let mut stage = Stage::bare(seed);
        let good = stage.on_ram(DomId(6), 1024);
        stage.attach(&good);
        let dom0 = stage.run.store.client(DOM0);
        let junk = "/local/domain/1/data/junk";
        dom0.mkdir(junk).unwrap();
        let room = stage.run.random.below(24) as usize;
        for i in 0.. {
            if stage.run.store.owned(DRIVER) + room >= NODES_MAX {
                break;
            }
            dom0.mkdir(&format!("{junk}/{i}")).unwrap();
        }
        let bad = stage.on_ram(GUEST, 1024);
        let _whatever = stage.run.attach(&bad.vbd);
        stage.run.rest(Duration::from_secs(2));
        good.front.borrow_mut().work(Workload::mixed(30));
        stage.run.at_rest(&good.front);
        assert_eq!(stage.run.destroy(GUEST), Ok(()), "{}", stage.run.scene());
        dom0.remove(junk).unwrap();
        let next = stage.on_ram(GUEST, 1024);
        stage.attach(&next);
        stage.detach(&next);
        stage.detach(&good);
        assert_eq!(stage.run.world.holdings(DRIVER).mappings, 0);
    });
}

#[test]
fn a_lower_disk_that_hangs_holds_no_guest_as_a_zombie() {
    seeds(0..20, |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let (stuck, other) = (stage.on_lower(GUEST), stage.on_ram(DomId(6), 2048));
        stage.attach(&stuck);
        stage.attach(&other);
        stage.back().borrow_mut().options.stuck = true;
        stuck.front.borrow_mut().work(Workload::mixed(1000));
        other.front.borrow_mut().work(Workload::mixed(100));
        stage.run.at_rest(&other.front);
        assert!(stuck.front.borrow().in_flight() > 0);
        // libxl waits in vain for a disk that cannot drain, and then takes it apart.
        let _late = stage.run.destroy(GUEST);
        assert_eq!(stage.run.world.life(GUEST), None, "a zombie is left");
        stage.detach(&other);
        stage.back().borrow_mut().options.stuck = false;
        stage.run.world.stir();
        stage.assert_clean();
    });
}

#[test]
fn a_lower_disk_that_is_taken_away_and_comes_back() {
    seeds(0..20, |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let guest = stage.on_lower(GUEST);
        guest.front.borrow_mut().options.errors = true;
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload::mixed(10_000));
        let front = guest.front.clone();
        assert!(stage.run.until(Duration::from_secs(20), |_| front.borrow().tally.reads > 5));
        let lower = Vbd { devid: XVDA, ..Vbd::new(DOM0, DRIVER, "phy:/dev/lower") };
        let detached = stage.run.detach(&lower);
        assert_eq!(detached, Ok(()), "{}", stage.run.scene());
        stage.run.rest(Duration::from_secs(1));
        assert_eq!(stage.run.world.mapped_by(DOM0, DRIVER), 0, "{}", stage.run.scene());
        assert_eq!(stage.run.destroy(GUEST), Ok(()), "{}", stage.run.scene());
        assert_eq!(stage.run.world.life(GUEST), None);

        stage.run.toolstack.borrow_mut().place(&lower);
        stage.run.rest(Duration::from_secs(2));
        let model = guest.model.clone();
        let next = stage.guest(Vbd::new(DRIVER, GUEST, "aio:/dev/xvda"), &model);
        stage.attach(&next);
        stage.verify(&next);
        stage.detach(&next);
    });
}

#[test]
fn a_directory_that_is_removed_under_it() {
    seeds(0..20, |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let guest = stage.on_lower(GUEST);
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload::mixed(10_000));
        let front = guest.front.clone();
        assert!(stage.run.until(Duration::from_secs(20), |_| front.borrow().tally.reads > 5));
        stage.run.store.client(DOM0).remove(&guest.vbd.backend_dir()).unwrap();
        stage.run.rest(Duration::from_secs(1));
        assert_eq!(stage.run.world.mapped_by(DRIVER, GUEST), 0, "{}", stage.run.scene());
        assert_eq!(stage.run.destroy(GUEST), Ok(()), "{}", stage.run.scene());
        stage.assert_clean();
    });
}
