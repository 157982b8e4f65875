//! Xen refuses, xenstored is full, the disk below goes away: what is hit says so, and all else goes on.

use std::time::Duration;

use sim::blkif::SECTOR;
use sim::disk::{Disk, Model};
use sim::fault::Fault;
use sim::frontend::{Io, Options, Phase, Workload};
use sim::lie::Lie;
use sim::marks;
use sim::run::{DRIVER, Run, seeds, use_memory};
use sim::stage::{GUEST, Stage, XVDA};
use sim::store::tree::NODES_MAX;
use sim::toolstack::Vbd;
use sim::world::DOM0;
use xen::limits::{
    MEMORY_FOR_RINGS, MEMORY_PER_RING, MEMORY_SPARE, PAGES_PER_LOWER, PAGES_RESERVED_PER_LOWER, SEGMENTS_INDIRECT,
};
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
        guest.front.borrow_mut().options.persistent = false;
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
        let ways: Vec<_> =
            [Fault::Map, Fault::Bind].into_iter().flat_map(|f| f.ways().iter().map(move |w| (f, w.row))).collect();
        let (fault, row) = ways[seed as usize % ways.len()];
        stage.run.world.faults().allow_as(fault, row, 1, 1);
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
        let job = stage.run.toolstack.borrow_mut().attach(&bad.vbd);
        // Served or refused, and soon: that there is no room does not pass.
        let state = format!("{}/state", bad.vbd.backend_dir());
        let told = |_: &Run| matches!(dom0.read(&state).as_deref(), Ok("4" | "6"));
        assert!(stage.run.until(Duration::from_secs(3), told), "{}", stage.run.scene());
        let _whatever = stage.run.finish(job);
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
    seeds(0..6, |seed| {
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

/// One answer that no backend gives, and the disk is let go of: what else it would say is worth nothing.
#[test]
fn a_lower_backend_that_answers_nonsense_is_left() {
    seeds(0..24, |seed| {
        let lie = [Lie::WrongOp, Lie::UnknownId, Lie::TooMany, Lie::Backward][seed as usize % 4];
        let mut stage = Stage::with_lower(seed, 1024);
        let guest = stage.on_lower(GUEST);
        {
            let mut front = guest.front.borrow_mut();
            (front.options.errors, front.options.credulous) = (true, true);
        }
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload::mixed(400));
        let (back, front) = (stage.back(), guest.front.clone());
        back.borrow_mut().options.lie = Some(lie);
        let told = stage.run.until(Duration::from_secs(5), |_| back.borrow().options.lie.is_none());
        assert!(told, "{lie:?} found no occasion");
        let dom0 = stage.run.store.client(DOM0);
        let state = format!("/local/domain/{}/device/vbd/{XVDA}/state", DRIVER.0);
        let left = stage.run.until(Duration::from_secs(5), |_| dom0.read(&state).as_deref() == Ok("6"));
        assert!(left, "after {lie:?}: {:?}\n{}", dom0.read(&state), stage.run.scene());
        stage.run.at_rest(&front);
        assert!(front.borrow().tally.errors > 0);
    });
}

#[test]
fn a_read_only_lower_disk_is_never_written() {
    let disk = Disk::random(1024, &mut sim::random::Random::new(1));
    let before = disk.borrow().bytes().to_vec();
    let manners = sim::blkback::Options { read_only: true, ..Default::default() };
    let mut stage = Stage::over(1, XVDA, &disk, manners);
    let guest = stage.on_lower(GUEST);
    guest.front.borrow_mut().options.errors = true;
    stage.attach(&guest);
    let offer = guest.front.borrow().offer;
    assert_eq!((offer.info & 4, offer.discard), (4, false), "the guest is not told that it may not write");
    guest.front.borrow_mut().ask(Io::Write { sector: 8, data: vec![1; 8 * SECTOR] });
    stage.run.at_rest(&guest.front);
    assert_eq!(guest.front.borrow().tally.errors, 1);
    assert!(disk.borrow().bytes() == before);
    stage.detach(&guest);
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

/// Every way in which Xen refuses a copy; the seed draws among them.
#[test]
fn no_way_to_refuse_a_copy_is_worse_than_another() {
    for way in Fault::Copy.ways() {
        let mut stage = Stage::bare(7);
        let guest = stage.on_ram(GUEST, 1024);
        guest.front.borrow_mut().options.errors = true;
        guest.front.borrow_mut().options.persistent = false;
        stage.attach(&guest);
        stage.run.world.faults().allow_as(Fault::Copy, way.row, 1, 1);
        guest.front.borrow_mut().ask(Io::Write { sector: 8, data: vec![1; 8 * SECTOR] });
        stage.run.at_rest(&guest.front);
        guest.front.borrow_mut().ask(Io::Read { sector: 8, sectors: 8 });
        stage.run.at_rest(&guest.front);
        let tally = guest.front.borrow().tally;
        assert_eq!((tally.errors, tally.writes, tally.reads), (1, 0, 1), "{}", way.row);
        stage.detach(&guest);
        stage.assert_clean();
    }
}

#[test]
fn pages_that_stay_away_fail_their_requests_and_hold_up_nobody() {
    seeds(0..20, |seed| {
        let mut stage = Stage::bare(seed);
        let (away, other) = (stage.on_ram(GUEST, 1024), stage.on_ram(DomId(6), 1024));
        away.front.borrow_mut().options.errors = true;
        away.front.borrow_mut().options.persistent = false;
        stage.attach(&away);
        stage.attach(&other);
        stage.run.world.faults().allow(Fault::CopyAgain, u32::MAX, 1);
        away.front.borrow_mut().work(Workload { flushes: 0, discards: 0, ..Workload::mixed(40) });
        stage.run.at_rest(&away.front);
        let tally = away.front.borrow().tally;
        assert_eq!((tally.reads, tally.writes, tally.errors), (0, 0, 40), "{tally:?}");
        stage.run.world.faults().end();
        other.front.borrow_mut().work(Workload::mixed(40));
        stage.run.at_rest(&other.front);
        stage.verify(&away);
        stage.detach(&away);
        stage.detach(&other);
        stage.assert_clean();
    });
}

#[test]
fn a_ring_whose_pages_stay_away_is_refused() {
    seeds(0..10, |seed| {
        let mut stage = Stage::bare(seed);
        let guest = stage.on_ram(GUEST, 1024);
        stage.run.world.faults().allow(Fault::MapAgain, u32::MAX, 1);
        let _late = stage.run.attach(&guest.vbd);
        stage.run.rest(Duration::from_secs(2));
        assert_ne!(guest.front.borrow().phase(), Phase::Connected);
        stage.run.world.faults().end();
        assert_eq!(stage.run.destroy(GUEST), Ok(()), "{}", stage.run.scene());
        let next = stage.on_ram(GUEST, 1024);
        stage.attach(&next);
        stage.detach(&next);
        assert_eq!(stage.run.world.holdings(DRIVER).mappings, 0);
    });
}

/// Everything that a lower disk's ring and pages need is refused once, at any place among some hundred calls: the disk
/// is not there, which is told to who wants it, and the rest of the domain works.
#[test]
fn a_lower_disk_that_gets_no_ring_is_missed_and_the_next_one_is_found() {
    seeds(0..40, |seed| {
        let mut run = Run::new(seed);
        let disk = Disk::random(2048, &mut run.random);
        run.lower(XVDA, &disk);
        let fault = [Fault::AllocUnbound, Fault::Lend, Fault::Memory][seed as usize % 3];
        let one_in = match fault {
            // The first that strikes is early or late among the thousand pages.
            Fault::Lend => run.random.pick(&[1, 100, 500]),
            _ => 1,
        };
        // A pool is tried three times, with fewer pages each time.
        let times = if fault == Fault::Memory { 3 } else { 1 };
        run.world.faults().allow(fault, times, one_in);
        let mut stage = Stage::boot(run);
        let injected = stage.run.world.faults().injected(fault);
        let guest = stage.guest(Vbd::new(DRIVER, GUEST, "aio:/dev/xvda"), &Model::of(disk.borrow().bytes()));
        if injected == 0 {
            // It got by: the disk is as good as any.
            stage.attach(&guest);
            return stage.detach(&guest);
        }
        assert!(stage.run.attach(&guest.vbd).is_err(), "{fault:?}\n{}", stage.run.scene());
        assert_eq!(stage.run.destroy(GUEST), Ok(()));
        let other = stage.on_ram(DomId(6), 1024);
        stage.attach(&other);
        other.front.borrow_mut().work(Workload::mixed(30));
        stage.run.at_rest(&other.front);
        stage.detach(&other);

        let lower = Vbd { devid: XVDA, ..Vbd::new(DOM0, DRIVER, "phy:/dev/lower") };
        assert_eq!(stage.run.detach(&lower), Ok(()), "{}", stage.run.scene());
        stage.run.toolstack.borrow_mut().place(&lower);
        stage.run.rest(Duration::from_secs(2));
        let next = stage.guest(Vbd::new(DRIVER, GUEST, "aio:/dev/xvda"), &Model::of(disk.borrow().bytes()));
        stage.attach(&next);
        stage.verify(&next);
        stage.detach(&next);
    });
}

#[test]
fn a_lower_disk_makes_do_with_fewer_pages() {
    for refused in [1, 2] {
        let mut run = Run::new(refused.into());
        let disk = Disk::random(8192, &mut run.random);
        run.lower(XVDA, &disk);
        run.world.faults().allow(Fault::Memory, refused, 1);
        let mut stage = Stage::boot(run);
        let guest = stage.guest(Vbd::new(DRIVER, GUEST, "aio:/dev/xvda"), &Model::of(disk.borrow().bytes()));
        guest.front.borrow_mut().options = Options { order: 4, indirect: 256, ..Options::default() };
        stage.attach(&guest);
        assert!(stage.run.world.holdings(DRIVER).grants < 700, "{:?}", stage.run.world.holdings(DRIVER));
        guest.front.borrow_mut().work(Workload { sectors_max: 2048, ..Workload::mixed(200) });
        stage.run.at_rest(&guest.front);
        stage.verify(&guest);
        stage.detach(&guest);
        stage.assert_clean();
    }
}

/// A backend that keeps pages mapped after it said Closed: page and grant are kept until it lets go, and not one is lost.
#[test]
fn pages_that_a_backend_still_holds_are_kept_until_it_lets_go() {
    seeds(0..10, |seed| {
        let mut stage = Stage::with_lower(seed, 1024);
        let full = stage.run.world.holdings(DRIVER).grants;
        let lower = Vbd { devid: XVDA, ..Vbd::new(DOM0, DRIVER, "phy:/dev/lower") };
        let (times, one_in) = (stage.run.random.between(1, 200) as u32, stage.run.random.pick(&[1, 4]));
        stage.run.world.faults().allow(Fault::Reclaim, times, one_in);
        assert_eq!(stage.run.detach(&lower), Ok(()), "{}", stage.run.scene());
        stage.run.rest(Duration::from_secs(1));
        let kept = stage.run.world.holdings(DRIVER).grants;
        assert_eq!(kept, stage.run.world.faults().injected(Fault::Reclaim) as usize, "what was refused is kept");
        stage.run.world.faults().end();
        stage.run.toolstack.borrow_mut().place(&lower);
        stage.run.rest(Duration::from_secs(2));
        assert_eq!(stage.run.world.holdings(DRIVER).grants, full, "what was kept is taken back by and by");
        let model = Model::of(stage.disk().borrow().bytes());
        let guest = stage.guest(Vbd::new(DRIVER, GUEST, "aio:/dev/xvda"), &model);
        stage.attach(&guest);
        stage.verify(&guest);
        stage.detach(&guest);
        stage.assert_clean();
    });
}

#[test]
fn memory_that_is_short_refuses_a_disk_or_one_request() {
    seeds(0..10, |seed| {
        let mut stage = Stage::bare(seed);
        let good = stage.on_ram(DomId(6), 4096);
        good.front.borrow_mut().options =
            Options { indirect: 256, errors: true, persistent: false, ..Options::default() };
        stage.attach(&good);
        // The disk itself, or what must be free beside it.
        stage.run.world.faults().allow(Fault::Memory, 1, 1 + seed % 2);
        let bad = stage.on_ram(GUEST, 1024);
        let attached = stage.run.attach(&bad.vbd);
        if stage.run.world.faults().injected(Fault::Memory) == 1 {
            let told = stage.run.store.list(&format!("/local/domain/{}/error", DRIVER.0));
            assert!(told.iter().any(|line| line.contains("more than this domain can spare")), "{told:#?}");
        } else {
            assert_eq!(attached, Ok(()));
        }
        assert_eq!(stage.run.destroy(GUEST), Ok(()), "{}", stage.run.scene());
        // The page of descriptors of the first indirect request.
        stage.run.world.faults().allow(Fault::Memory, 1, 1);
        for sector in [0, 1000] {
            good.front.borrow_mut().ask(Io::Read { sector, sectors: 512 });
            stage.run.at_rest(&good.front);
        }
        let tally = good.front.borrow().tally;
        assert_eq!((tally.errors, tally.reads), (1, 1), "{tally:?}");
        stage.detach(&good);
        assert_eq!(stage.run.world.holdings(DRIVER).mappings, 0);
    });
}

/// A heap that is nearly full, and one that is nearly empty: bytes in use.
const SHORT: usize = 31 << 20;
const ROOM: usize = 3 << 10;
const ALL: usize = 32 << 20;

#[test]
fn the_pages_of_a_lower_disk_leave_room_for_rings() {
    let full = ALL - MEMORY_SPARE - MEMORY_FOR_RINGS;
    for (used, pages) in [(full, PAGES_PER_LOWER), (full + 1, usize::from(SEGMENTS_INDIRECT))] {
        use_memory(used, ALL);
        let stage = Stage::with_lower(1, 1024);
        // Eight rings, each of which is promised its share and uses as much.
        let memory = &stage.run.tapdom().unwrap().shared().domain.memory;
        let rings: Vec<_> = (0..16).map(|_| memory.promise(MEMORY_PER_RING)).collect();
        assert_eq!(rings.iter().all(Option::is_some), used == full);
        drop(rings);
        use_memory(ROOM, ALL);
        let grants = stage.run.world.holdings(DRIVER).grants;
        assert!((pages..pages + 2 * PAGES_RESERVED_PER_LOWER).contains(&grants), "{grants} grants, not {pages}");
    }
}

#[test]
fn a_ring_has_one_request_at_a_time_while_memory_is_short() {
    seeds(0..10, |seed| {
        let mut stage = Stage::with_lower(seed, 4096);
        let guest = stage.on_lower(GUEST);
        stage.attach(&guest);
        stage.back().borrow_mut().options.latency = Duration::from_millis(5);
        guest.front.borrow_mut().work(Workload { depth: 32, ..Workload::mixed(100) });
        use_memory(SHORT, ALL);
        let minor = stage.run.tapdom().unwrap().shared().minors.get(0).unwrap();
        let mut most = 0;
        stage.run.until(Duration::from_secs(60), |_| {
            most = most.max(minor.in_flight());
            guest.front.borrow().at_rest()
        });
        use_memory(ROOM, ALL);
        assert_eq!(most, 1);
        stage.verify(&guest);
        stage.detach(&guest);
        stage.assert_clean();
    });
}

#[test]
fn a_ring_that_memory_is_too_short_for_is_refused_and_told() {
    seeds(0..10, |seed| {
        let mut stage = Stage::bare(seed);
        let good = stage.on_ram(DomId(6), 1024);
        stage.attach(&good);
        let late = stage.on_ram(GUEST, 1024);
        // Enough to open the disk, too little for one more ring.
        use_memory(SHORT, ALL);
        // Whether the toolstack sees the disk offered before it is refused is a matter of time.
        let _attached = stage.run.attach(&late.vbd);
        stage.run.rest(Duration::from_secs(1));
        use_memory(ROOM, ALL);
        assert_ne!(late.front.borrow().phase(), Phase::Connected);
        let told = stage.run.store.list(&format!("/local/domain/{}/error", DRIVER.0));
        assert!(told.iter().any(|line| line.contains("not enough memory: of 32768 KiB 31744 are in use")), "{told:#?}");
        stage.verify(&good);
        assert_eq!(stage.run.destroy(GUEST), Ok(()), "{}", stage.run.scene());
        // What was refused then has room now.
        let again = stage.on_ram(GUEST, 1024);
        stage.attach(&again);
        stage.detach(&again);
        stage.detach(&good);
        assert_eq!(stage.run.world.holdings(DRIVER).mappings, 0);
    });
}

#[test]
fn rings_that_are_full_delay_and_lose_nothing() {
    seeds(0..10, |seed| {
        marks::take();
        let mut stage = Stage::with_lower(seed, 4096);
        let guest = stage.on_lower(GUEST);
        guest.front.borrow_mut().options = Options { order: 0, indirect: 0, ..Options::default() };
        stage.attach(&guest);
        stage.back().borrow_mut().options.latency = Duration::from_millis(5);
        guest.front.borrow_mut().work(Workload { depth: 200, sectors_max: 8, ..Workload::mixed(600) });
        stage.run.at_rest(&guest.front);
        assert!(marks::take().contains_key("frontend ring full"));
        stage.verify(&guest);
        stage.detach(&guest);
        stage.assert_clean();
    });
}

#[test]
fn a_lower_ring_that_is_full_makes_requests_wait() {
    seeds(0..10, |seed| {
        let mut run = Run::new(seed);
        let disk = Disk::random(4096, &mut run.random);
        let back = run.lower(XVDA, &disk);
        back.borrow_mut().options = sim::blkback::Options { order: 0, ..Default::default() };
        let mut stage = Stage::boot(run);
        let guest = stage.guest(Vbd::new(DRIVER, GUEST, "aio:/dev/xvda"), &Model::of(disk.borrow().bytes()));
        guest.front.borrow_mut().options = Options { order: 4, ..Options::default() };
        stage.attach(&guest);
        back.borrow_mut().options.latency = Duration::from_millis(5);
        marks::take();
        guest.front.borrow_mut().work(Workload { depth: 400, sectors_max: 8, ..Workload::mixed(800) });
        stage.run.at_rest(&guest.front);
        assert!(marks::take().contains_key("lower ring full"));
        stage.verify(&guest);
        stage.detach(&guest);
        stage.assert_clean();
    });
}

#[test]
fn a_lower_disk_that_fails_tears_and_is_slow() {
    for fault in [Fault::Disk, Fault::DiskTorn, Fault::DiskSlow] {
        seeds(0..10, |seed| {
            let mut stage = Stage::with_lower(seed, 4096);
            let guest = stage.on_lower(GUEST);
            guest.front.borrow_mut().options.errors = true;
            stage.attach(&guest);
            stage.run.world.faults().allow(fault, 10, 5);
            guest.front.borrow_mut().work(Workload::mixed(200));
            stage.run.at_rest(&guest.front);
            assert!(stage.run.world.faults().injected(fault) > 0);
            let tally = guest.front.borrow().tally;
            let told = tally.errors + tally.unsupported;
            assert!(
                if fault == Fault::DiskSlow { told == 0 } else { (1..=10).contains(&told) },
                "{fault:?}: {tally:?}"
            );
            stage.verify(&guest);
            stage.detach(&guest);
            stage.assert_clean();
        });
    }
}

/// What xenstored may do at any time without doing anything wrong is not seen by anybody.
#[test]
fn a_slow_xenstored_and_events_that_come_twice() {
    for fault in [Fault::StoreSlow, Fault::EventTwice] {
        seeds(0..10, |seed| {
            let mut stage = Stage::with_lower(seed, 1024);
            let guest = stage.on_lower(GUEST);
            for round in 1..4 {
                stage.run.world.faults().allow(fault, 40, 3);
                stage.attach(&guest);
                guest.front.borrow_mut().work(Workload::mixed(20));
                stage.run.at_rest(&guest.front);
                stage.detach(&guest);
                assert!(stage.run.world.faults().injected(fault) >= round, "{fault:?}");
            }
            stage.run.world.faults().end();
            stage.assert_clean();
        });
    }
}
