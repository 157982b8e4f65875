//! Guests that keep pages granted, and what they may do about it.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use sim::blkif::SECTOR;
use sim::frontend::{Io, Options, Workload};
use sim::hostile::guest::{Hostile, Options as Manners};
use sim::hostile::keeps::{KEPT_OF_ALL, NEARLY_A_RING};
use sim::hostile::rows::Keep;
use sim::marks;
use sim::run::{DRIVER, seeds};
use sim::stage::{GUEST, Stage, XVDA};
use sim::toolstack::Vbd;
use xen::port::DomId;

const HOSTILE: DomId = DomId(7);

/// A hostile guest's disk in memory, attached, and its owner let loose.
fn let_in(stage: &mut Stage, disk: u32, deeds: u32, shape: impl Fn(&mut Manners)) -> Rc<RefCell<Hostile>> {
    let devid = XVDA + 16 * disk;
    let random = stage.run.random.fork();
    let mut hostile = Hostile::new(&stage.run.store, &stage.run.world, random, HOSTILE, devid, DRIVER);
    shape(&mut hostile.options);
    hostile.let_loose(deeds);
    let hostile = Rc::new(RefCell::new(hostile));
    stage.run.add(hostile.clone());
    let vbd = Vbd { devid, ..Vbd::new(DRIVER, HOSTILE, "ram:512K") };
    // Whose first offer is refused may have left InitWait before libxl has looked.
    let _late = stage.run.attach(&vbd);
    hostile
}

/// Its owner takes pages back, puts others in their place, grants them for reading only, goes, and dies, while they are
/// mapped: the judge of the hostile guest knows what each request may come to, and which pages may change.
#[test]
fn what_a_hostile_guest_may_do_about_pages_that_are_mapped() {
    marks::take();
    seeds(0..30, |seed| {
        let mut stage = Stage::bare(seed);
        let honest = stage.on_ram(GUEST, 1024);
        stage.attach(&honest);
        honest.front.borrow_mut().work(Workload { depth: 4, ..Workload::mixed(60) });
        stage.run.toolstack.borrow_mut().create(HOSTILE);
        let hostile = let_in(&mut stage, 0, 60, |options| options.keeper = true);
        assert!(
            stage.run.until(Duration::from_secs(600), |_| hostile.borrow().is_over()),
            "{}",
            hostile.borrow().tell()
        );
        hostile.borrow_mut().audit();
        assert_eq!(stage.run.destroy(HOSTILE), Ok(()), "{}", stage.run.scene());
        stage.run.at_rest(&honest.front);
        stage.verify(&honest);
        stage.detach(&honest);
        assert_eq!(stage.run.tapdom().expect("it runs").held().mappings, 0);
    });
    let hits = marks::take();
    let elsewhere = [Keep::RingFull, Keep::AllFull, Keep::Died];
    let rows = Keep::ALL.iter().filter(|row| !elsewhere.contains(row));
    let missed: Vec<_> = rows.filter(|row| !hits.contains_key(row.mark())).collect();
    assert!(missed.is_empty() || std::env::var("SEED").is_ok(), "{missed:?}");
}

/// Nine disks of one guest, each with more references than a ring may keep. Whatever is not kept is copied, and an honest
/// guest that comes then is served as ever.
#[test]
fn more_pages_than_can_be_kept() {
    let mut stage = Stage::bare(1);
    stage.run.toolstack.borrow_mut().create(HOSTILE);
    let shape = |options: &mut Manners| (options.crowd, options.hoards) = (true, true);
    let all: Vec<_> = (0..9).map(|disk| let_in(&mut stage, disk, 12, shape)).collect();
    let mut most = 0;
    let over = stage.run.until(Duration::from_secs(600), |run| {
        most = most.max(run.world.holdings(DRIVER).mappings);
        all.iter().all(|hostile| hostile.borrow().is_over())
    });
    assert!(over, "{}", stage.run.scene());
    // What is kept, the rings of 16 pages, and the one of the honest guest.
    assert!((KEPT_OF_ALL..KEPT_OF_ALL + 9 * 16 + 1).contains(&most), "{most} pages were mapped");
    assert!(marks::take().contains_key(Keep::RingFull.mark()), "no ring ever had {NEARLY_A_RING} pages mapped");
    let honest = stage.on_ram(GUEST, 1024);
    stage.attach(&honest);
    honest.front.borrow_mut().work(Workload::mixed(100));
    stage.run.at_rest(&honest.front);
    stage.detach(&honest);
    assert_eq!(stage.run.destroy(HOSTILE), Ok(()), "{}", stage.run.scene());
    assert_eq!(stage.run.tapdom().expect("it runs").held().mappings, 0);
}

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
