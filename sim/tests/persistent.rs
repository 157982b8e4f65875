//! Guests that keep pages granted, and what they may do about it.

use std::time::Duration;

use sim::blkif::SECTOR;
use sim::frontend::{Io, Options, Workload};
use sim::run::{DRIVER, seeds};
use sim::stage::{GUEST, Stage};

#[test]
fn pages_stay_mapped_while_the_disk_is_used_and_none_after() {
    seeds(0..20, |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let guest = if seed % 2 == 0 { stage.on_ram(GUEST, 1024) } else { stage.on_lower(GUEST) };
        guest.front.borrow_mut().options.persistent = true;
        stage.attach(&guest);
        let ring = stage.run.world.mapped_by(DRIVER, GUEST);
        guest.front.borrow_mut().work(Workload::mixed(100));
        stage.run.at_rest(&guest.front);
        assert!(stage.run.world.mapped_by(DRIVER, GUEST) > ring, "{}", stage.run.scene());
        stage.verify(&guest);
        stage.detach(&guest);
        stage.assert_clean();
    });
}

#[test]
fn a_guest_that_does_not_offer_it_has_nothing_mapped_but_its_ring() {
    let mut stage = Stage::bare(3);
    let guest = stage.on_ram(GUEST, 1024);
    guest.front.borrow_mut().options.persistent = false;
    stage.attach(&guest);
    let ring = stage.run.world.mapped_by(DRIVER, GUEST);
    guest.front.borrow_mut().work(Workload::mixed(50));
    stage.run.at_rest(&guest.front);
    assert_eq!(stage.run.world.mapped_by(DRIVER, GUEST), ring);
    stage.detach(&guest);
    stage.assert_clean();
}

#[test]
fn a_guest_that_dies_with_pages_mapped_is_gone_at_once() {
    seeds(0..10, |seed| {
        let mut stage = Stage::bare(seed);
        let guest = stage.on_ram(GUEST, 1024);
        guest.front.borrow_mut().options.persistent = true;
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload::mixed(10_000));
        let front = guest.front.clone();
        assert!(stage.run.until(Duration::from_secs(20), |_| front.borrow().tally.reads > 5));
        assert_eq!(stage.run.destroy(GUEST), Ok(()), "{}", stage.run.scene());
        assert_eq!(stage.run.world.mapped_by(DRIVER, GUEST), 0);
        stage.assert_clean();
    });
}

#[test]
fn a_read_only_disk_in_memory_is_not_written() {
    let mut stage = Stage::bare(5);
    let mut guest = stage.on_ram(GUEST, 1024);
    guest.vbd.writable = false;
    let options = Options { errors: true, persistent: true, ..guest.front.borrow().options };
    guest.front.borrow_mut().options = options;
    stage.attach(&guest);
    guest.front.borrow_mut().ask(Io::Write { sector: 8, data: vec![1; 8 * SECTOR] });
    guest.front.borrow_mut().ask(Io::Read { sector: 8, sectors: 8 });
    stage.run.at_rest(&guest.front);
    let tally = guest.front.borrow().tally;
    assert_eq!((tally.writes, tally.reads, tally.errors), (0, 1, 1), "{tally:?}");
    stage.detach(&guest);
    stage.assert_clean();
}
