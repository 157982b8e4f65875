//! What a guest reads is what was written, whatever the disks below and the guests beside do.

use std::cell::Cell;
use std::time::Duration;

use sim::blkif::{Layout, SECTOR};
use sim::frontend::{Io, Options, Workload};
use sim::run::{DRIVER, seeds};
use sim::schedule::Rate;
use sim::stage::{GUEST, Stage};
use xen::port::DomId;

#[test]
fn random_requests_on_memory() {
    seeds(0..20, |seed| {
        let mut stage = Stage::bare(seed);
        let guest = stage.on_ram(GUEST, 8192);
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload::mixed(400));
        stage.run.at_rest(&guest.front);
        stage.verify(&guest);
        stage.detach(&guest);
        stage.assert_clean();
    });
}

/// xenstored counts nodes: one that would only say the default is not there.
#[test]
fn the_physical_sector_of_a_lower_disk_is_told() {
    let told = [Cell::new(false), Cell::new(false)];
    seeds(0..12, |seed| {
        let mut stage = Stage::with_lower(seed, 1024);
        let guest = stage.on_lower(GUEST);
        stage.attach(&guest);
        let large = stage.back().borrow().options.physical_bytes == 4096;
        told[usize::from(large)].set(true);
        let node = format!("{}/physical-sector-size", guest.vbd.backend_dir());
        assert_eq!(stage.run.store.client(DomId(0)).number(&node), large.then_some(4096));
    });
    assert!(std::env::var("SEED").is_ok() || told.iter().all(Cell::get));
}

#[test]
fn random_requests_on_a_lower_disk() {
    seeds(0..20, |seed| {
        let mut stage = Stage::with_lower(seed, 8192);
        let guest = stage.on_lower(GUEST);
        // The straight way and the ordinary one.
        guest.front.borrow_mut().options.persistent = seed % 2 == 0;
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload::mixed(400));
        stage.run.at_rest(&guest.front);
        stage.verify(&guest);
        guest.model.borrow().compare(stage.disk().borrow().bytes()).expect("dom0 finds what the guest wrote");
        stage.detach(&guest);
        stage.assert_clean();
    });
}

#[test]
fn a_flush_reaches_the_lower_disk() {
    seeds(0..20, |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let guest = stage.on_lower(GUEST);
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload { sectors_max: 88, ..Workload::writing(40) });
        stage.run.at_rest(&guest.front);
        guest.front.borrow_mut().ask(Io::Flush);
        stage.run.at_rest(&guest.front);
        assert_eq!(guest.front.borrow().tally.flushes, 1);
        guest.model.borrow().compare(stage.disk().borrow().durable()).expect("what was flushed is durable");
    });
}

#[test]
fn read_only_is_read_only() {
    seeds(0..20, |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let mut guest = stage.on_lower(GUEST);
        guest.vbd.writable = false;
        let options = Options { errors: true, persistent: seed % 2 == 0, ..guest.front.borrow().options };
        guest.front.borrow_mut().options = options;
        let before = stage.disk().borrow().bytes().to_vec();
        stage.attach(&guest);
        assert_eq!(guest.front.borrow().offer.info & 4, 4, "the frontend is told");
        assert!(!guest.front.borrow().offer.discard, "a discard is offered that would be refused");
        guest.front.borrow_mut().ask(Io::Write { sector: 8, data: vec![1; 8 * SECTOR] });
        guest.front.borrow_mut().ask(Io::Discard { sector: 16, sectors: 8 });
        guest.front.borrow_mut().ask(Io::Read { sector: 8, sectors: 8 });
        stage.run.at_rest(&guest.front);
        let tally = guest.front.borrow().tally;
        assert_eq!((tally.writes, tally.discards, tally.reads), (0, 0, 1), "{tally:?}");
        assert!(stage.disk().borrow().bytes() == before, "a read-only disk was changed");
        stage.detach(&guest);
        stage.assert_clean();
    });
}

#[test]
fn past_the_end_is_an_error_and_nothing_else() {
    seeds(0..20, |seed| {
        let mut stage = Stage::bare(seed);
        let guest = stage.on_ram(GUEST, 1024);
        guest.front.borrow_mut().options.errors = true;
        stage.attach(&guest);
        for sector in [1024, 1020, 2048] {
            guest.front.borrow_mut().ask(Io::Read { sector, sectors: 8 });
            guest.front.borrow_mut().ask(Io::Write { sector, data: vec![1; 8 * SECTOR] });
        }
        guest.front.borrow_mut().ask(Io::Read { sector: 1016, sectors: 8 });
        stage.run.at_rest(&guest.front);
        let tally = guest.front.borrow().tally;
        assert_eq!((tally.errors, tally.reads), (6, 1), "{tally:?}");
    });
}

#[test]
fn a_lower_disk_that_fails_now_and_then() {
    seeds(0..20, |seed| {
        let mut stage = Stage::with_lower(seed, 4096);
        let guest = stage.on_lower(GUEST);
        guest.front.borrow_mut().options.errors = true;
        stage.attach(&guest);
        stage.back().borrow_mut().options.failures = 10;
        guest.front.borrow_mut().work(Workload::mixed(200));
        stage.run.at_rest(&guest.front);
        let tally = guest.front.borrow().tally;
        assert!(tally.errors > 0 && tally.reads > 0, "{tally:?}");
        stage.verify(&guest);
        stage.detach(&guest);
        stage.assert_clean();
    });
}

#[test]
fn the_disk_grows_while_it_is_used() {
    seeds(0..20, |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let guest = stage.on_lower(GUEST);
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload { sectors_max: 88, ..Workload::mixed(100) });
        stage.run.rest(Duration::from_millis(1));
        stage.back().borrow_mut().resize(4096);
        let front = guest.front.clone();
        let seen = stage.run.until(Duration::from_secs(10), |_| front.borrow().offer.sectors == 4096);
        assert!(seen, "{}", stage.run.scene());
        stage.run.at_rest(&front);
        front.borrow_mut().work(Workload::mixed(100));
        stage.run.at_rest(&front);
        stage.verify(&guest);
    });
}

#[test]
fn four_guests_and_one_is_silent() {
    seeds(0..20, |seed| {
        let mut stage = Stage::with_lower(seed, 4096);
        let mut guests: Vec<_> = (6..9).map(|id| stage.on_ram(DomId(id), 2048)).collect();
        guests.push(stage.on_lower(GUEST));
        for guest in &guests {
            stage.attach(guest);
            guest.front.borrow_mut().work(Workload::mixed(150));
        }
        let silent = stage.run.random.index(guests.len());
        stage.run.rest(Duration::from_micros(50));
        guests[silent].front.borrow_mut().silent = true;
        for (i, guest) in guests.iter().enumerate() {
            if i != silent {
                stage.run.at_rest(&guest.front);
                stage.verify(guest);
                stage.detach(guest);
            }
        }
        let guest = guests[silent].vbd.guest;
        assert_eq!(stage.run.destroy(guest), Ok(()), "{}", stage.run.scene());
        assert_eq!(stage.run.world.life(guest), None);
        stage.assert_clean();
    });
}

#[test]
fn spurious_events_are_rare() {
    // Linux delays the events of a backend that sends them without an answer, up to a second each.
    seeds(0..20, |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let guest = stage.on_lower(GUEST);
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload { depth: 4, sectors_max: 16, ..Workload::mixed(300) });
        stage.run.at_rest(&guest.front);
        let spurious = guest.front.borrow().tally.spurious;
        assert!(spurious <= 3, "{spurious} events without an answer");
    });
}

#[test]
fn the_same_seed_is_the_same_run() {
    let story = |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let guest = stage.on_lower(GUEST);
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload::mixed(100));
        stage.run.at_rest(&guest.front);
        let bytes = stage.disk().borrow().bytes().to_vec();
        (stage.run.turns, stage.run.world.activity(), stage.run.store.owned(DRIVER), bytes)
    };
    assert!(story(3) == story(3));
}

/// WRITE_BARRIER and FLUSH with data, which we do not offer and serve all the same, alone and among everything else, in
/// both layouts and on rings of every size.
#[test]
fn barriers_and_flushes_with_data() {
    let shapes =
        [Layout::X86_64, Layout::X86_32].into_iter().flat_map(|layout| (0..5).map(move |order| (layout, order)));
    for (layout, order) in shapes {
        let mut stage = Stage::with_lower(order.into(), 2048);
        let guest = stage.on_lower(GUEST);
        guest.front.borrow_mut().options = Options { layout, order, ..Options::default() };
        stage.attach(&guest);
        let before = stage.back().borrow().flushes;
        let front = guest.front.clone();
        let data = || vec![order as u8; 9 * SECTOR];
        let alone = [
            (Io::Barrier { sector: 0, data: Vec::new() }, 1),
            (Io::Barrier { sector: 8, data: data() }, 2),
            (Io::FlushWrite { sector: 30, data: data() }, 1),
        ];
        for (io, flushes) in alone {
            let before = stage.back().borrow().flushes;
            front.borrow_mut().ask(io);
            stage.run.at_rest(&front);
            assert_eq!(stage.back().borrow().flushes - before, flushes);
        }
        front.borrow_mut().work(Workload { ordered: 30, ..Workload::mixed(200) });
        stage.run.at_rest(&front);
        assert!(stage.back().borrow().flushes > before + 20);
        stage.verify(&guest);
        guest.model.borrow().compare(stage.disk().borrow().bytes()).expect("dom0 finds what the guest wrote");
        stage.detach(&guest);
        stage.assert_clean();
    }
}

#[test]
fn a_barrier_on_a_read_only_disk_is_refused_and_the_next_request_is_served() {
    let mut stage = Stage::with_lower(1, 2048);
    let mut guest = stage.on_lower(GUEST);
    guest.vbd.writable = false;
    guest.front.borrow_mut().options.errors = true;
    stage.attach(&guest);
    guest.front.borrow_mut().ask(Io::Barrier { sector: 8, data: vec![1; SECTOR] });
    guest.front.borrow_mut().ask(Io::FlushWrite { sector: 8, data: vec![1; SECTOR] });
    guest.front.borrow_mut().ask(Io::Read { sector: 8, sectors: 8 });
    stage.run.at_rest(&guest.front);
    let tally = guest.front.borrow().tally;
    assert_eq!((tally.writes, tally.errors, tally.reads), (0, 2, 1), "{tally:?}");
}

/// Who asks one thing at a time is not helped by the next one if the product goes to sleep without a second look at the
/// ring: a request put between the last look and the wish to be told is answered only if that look is there.
#[test]
fn a_request_put_while_the_product_falls_asleep_is_seen() {
    seeds(0..24, |seed| {
        let mut stage = Stage::bare(seed);
        stage.run.interleave(Rate::Often);
        let guest = stage.on_ram(GUEST, 1024);
        stage.attach(&guest);
        let depth = 1 + seed as usize % 4;
        guest.front.borrow_mut().work(Workload { depth, sectors_max: 8, ..Workload::mixed(200) });
        stage.run.at_rest(&guest.front);
        stage.verify(&guest);
    });
}
