//! Several vCPUs of the product, and guests with as many rings.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use kernel::minor::Minor;
use protocol::errno::Errno;
use protocol::mem::Memory;
use sim::frontend::{Options, Phase, Workload};
use sim::handle::SimXen;
use sim::run::{DRIVER, Run, seeds};
use sim::stage::{GUEST, Guest, Stage, XVDA};
use xen::port::DomId;

const SECTORS: u64 = 2048;

/// The product with so many vCPUs.
fn stage(seed: u64, crew: usize) -> Stage {
    let mut run = Run::new(seed);
    run.crew = crew;
    let disk = sim::disk::Disk::random(SECTORS, &mut run.random);
    let back = run.lower(XVDA, &disk);
    Stage::boot_over(run, disk, back)
}

/// A guest on memory that would like so many rings, connected.
fn with_rings(stage: &mut Stage, queues: u32) -> Guest {
    let guest = stage.on_ram(GUEST, SECTORS);
    guest.front.borrow_mut().options = Options { queues, ..Options::any(&mut stage.run.random) };
    stage.attach(&guest);
    guest
}

fn offered(stage: &Stage, guest: &Guest) -> Option<u64> {
    stage.run.store.client(DRIVER).number(&format!("{}/multi-queue-max-queues", guest.vbd.backend_dir()))
}

#[test]
fn each_vcpu_serves_a_ring() {
    seeds(0..20, |seed| {
        let mut stage = stage(seed, 3);
        let guest = with_rings(&mut stage, 4);
        assert_eq!((offered(&stage, &guest), guest.front.borrow().queues()), (Some(3), 3));
        guest.front.borrow_mut().work(Workload { depth: 32, ..Workload::mixed(600) });
        stage.run.at_rest(&guest.front);
        stage.verify(&guest);
        let total = stage.inside(async |shared| {
            let minor = shared.minors.all().pop().expect("attached");
            let total = minor.total().await;
            let rings: Vec<_> = minor.rings.borrow().iter().map(|ring| ring.stats.requests.get()).collect();
            (total.reads.done.get() + total.writes.done.get(), rings)
        });
        let tally = guest.front.borrow().tally;
        assert_eq!(total.0, u64::from(tally.reads + tally.writes), "of all rings");
        assert!(total.1.len() == 3 && total.1.iter().all(|requests| *requests > 0), "{:?} by ring", total.1);
        stage.detach(&guest);
        stage.assert_clean();
    });
}

/// All bytes of a disk in memory.
fn content(minor: &Minor<SimXen>) -> Vec<u8> {
    let disk = minor.disk().expect("it is in memory");
    let mut bytes = vec![0; SECTORS as usize * 512];
    for (at, bytes) in bytes.chunks_mut(4096).enumerate() {
        disk.at(at as u64 * 8).0.read(0, bytes);
    }
    bytes
}

/// A ring that is served elsewhere than the others waits as they do.
#[test]
fn a_pause_holds_all_rings() {
    seeds(0..20, |seed| {
        let mut stage = stage(seed, 3);
        let guest = with_rings(&mut stage, 3);
        guest.front.borrow_mut().work(Workload { depth: 32, ..Workload::mixed(3_000) });
        let answered = |guest: &Guest| {
            let tally = guest.front.borrow().tally;
            tally.reads + tally.writes + tally.flushes + tally.discards
        };
        let front = guest.front.clone();
        assert!(stage.run.until(Duration::from_secs(20), |_| front.borrow().tally.writes > 20));
        let number = stage.minor();
        for _ in 0..3 {
            let held = stage.inside(async move |shared| {
                let minor = shared.minors.get(number).expect("attached");
                let paused = minor.pause(&shared.domain).await;
                // From this moment on nothing is written, and nothing answered but what was.
                (paused, content(&minor))
            });
            assert_eq!(held.0, Ok(true));
            stage.run.rest(Duration::from_secs(1));
            let before = answered(&guest);
            stage.run.rest(Duration::from_secs(1));
            assert_eq!(answered(&guest), before, "a held disk answered");
            let minor = stage.run.tapdom().expect("it runs").shared().minors.get(number).expect("attached");
            assert!(content(&minor) == held.1, "a held disk was written to");
            assert_eq!(stage.resume(number, None), Ok(()));
            stage.run.rest(Duration::from_millis(5));
        }
        stage.run.at_rest_within(&guest.front, Duration::from_secs(2000));
        stage.verify(&guest);
        stage.detach(&guest);
        stage.assert_clean();
    });
}

/// Where several vCPUs serve a disk it stays in memory: no other device has a way to them.
#[test]
fn no_other_disk_takes_the_place_of_one_that_several_serve() {
    seeds(0..6, |seed| {
        let mut stage = stage(seed, 2);
        let guest = with_rings(&mut stage, 2);
        let number = stage.minor();
        assert!(stage.pause(number));
        let refused = stage.resume(number, Some("aio:/dev/xvda")).expect_err("it is no disk in memory");
        assert_eq!(refused.errno, Errno::EMEDIUMTYPE, "{refused}");
        // Another in memory does.
        guest.model.borrow_mut().doubt(0, SECTORS);
        assert_eq!(stage.resume(number, Some("ram:1024K")), Ok(()));
        guest.front.borrow_mut().work(Workload::mixed(200));
        stage.run.at_rest(&guest.front);
        stage.verify(&guest);
        stage.detach(&guest);
        stage.assert_clean();
    });
}

#[test]
fn disks_with_one_ring_are_shared_out_and_one_on_a_lower_disk_has_one() {
    seeds(0..6, |seed| {
        let mut stage = stage(seed, 2);
        let mut guests: Vec<_> = (0..3).map(|at| stage.on_ram(DomId(GUEST.0 + at), SECTORS)).collect();
        guests.push(stage.on_lower(DomId(GUEST.0 + 3)));
        for guest in &guests {
            let queues = if guest.vbd.params.starts_with("ram") { 1 } else { 4 };
            guest.front.borrow_mut().options = Options { queues, ..Options::default() };
            stage.attach(guest);
            guest.front.borrow_mut().work(Workload::mixed(100));
        }
        guests.iter().for_each(|guest| stage.run.at_rest(&guest.front));
        assert_eq!((offered(&stage, &guests[3]), guests[3].front.borrow().queues()), (Some(1), 1));
        let seated = stage.inside(async |shared| {
            let minors = shared.minors.all();
            minors.iter().map(|minor| minor.seated()).collect::<Vec<_>>()
        });
        assert_eq!(seated, [0, 1, 0, 0], "rings that the second vCPU serves");
        for guest in &guests {
            stage.verify(guest);
            stage.detach(guest);
        }
        stage.assert_clean();
    });
}

/// The guest dies, with requests on every ring.
#[test]
fn a_guest_that_is_destroyed_leaves_no_ring() {
    seeds(0..20, |seed| {
        let mut stage = stage(seed, 3);
        let guest = with_rings(&mut stage, 3);
        guest.front.borrow_mut().work(Workload { depth: 64, ..Workload::mixed(100_000) });
        let front = guest.front.clone();
        assert!(stage.run.until(Duration::from_secs(20), |_| front.borrow().tally.writes > 50));
        assert_eq!(stage.run.destroy(GUEST), Ok(()), "{}", stage.run.scene());
        assert_eq!(stage.run.world.life(GUEST), None, "a zombie\n{}", stage.run.scene());
        stage.run.rest(Duration::from_secs(1));
        stage.assert_clean();
    });
}

/// One ring that cannot be taken is the end of all of them.
#[test]
fn rings_are_taken_all_or_none() {
    seeds(0..20, |seed| {
        let mut stage = stage(seed, 3);
        let guest = stage.on_ram(GUEST, SECTORS);
        guest.front.borrow_mut().options = Options { queues: 3, ..Options::default() };
        let before = stage.run.world.holdings(DRIVER);
        stage.run.world.faults().allow_as(sim::fault::Fault::Bind, "bind: ENOSPC", 1, 1 + seed % 3);
        // libxl fails it, or waits for nothing, by its kind.
        let _whatever = stage.run.attach(&guest.vbd);
        stage.run.rest(Duration::from_secs(20));
        let (phase, failed) =
            (guest.front.borrow().phase(), stage.run.world.faults().injected(sim::fault::Fault::Bind));
        assert_eq!(phase == Phase::Connected, failed == 0, "{phase:?}\n{}", stage.run.scene());
        if failed > 0 {
            assert_eq!(stage.run.world.mapped_by(DRIVER, GUEST), 0, "{}", stage.run.scene());
        }
        let _gone = stage.run.detach(&guest.vbd);
        stage.run.rest(Duration::from_secs(2));
        assert_eq!(stage.run.world.holdings(DRIVER), before, "{}", stage.run.scene());
    });
}

/// Who asks how a minor stands is answered also when a ring ends, or never begins, after it was asked.
#[test]
fn nobody_waits_for_a_ring_that_is_no_more() {
    seeds(0..600, |seed| {
        let mut stage = stage(seed, 3);
        let guest = with_rings(&mut stage, 3);
        let number = stage.minor();
        let detaching = stage.run.toolstack.borrow_mut().detach(&guest.vbd);
        for _ in 0..stage.run.random.below(400) {
            stage.run.step();
        }
        let shared = stage.run.tapdom().expect("it runs").shared().clone();
        let answers = Rc::new(Cell::new(0));
        if let Some(minor) = shared.minors.get(number) {
            let (told, held, domain) = (answers.clone(), answers.clone(), shared.domain.clone());
            let other = minor.clone();
            domain.exec.spawn(async move {
                other.total().await;
                told.set(told.get() + 1);
            });
            shared.domain.exec.spawn(async move {
                let _held_or_gone = minor.pause(&domain).await;
                held.set(held.get() + 1);
            });
            stage.run.nudge();
            let all = stage.run.until(Duration::from_secs(30), |_| answers.get() == 2);
            assert!(all, "{} of 2 answers\n{}", answers.get(), stage.run.scene());
        }
        assert_eq!(stage.run.finish(detaching), Ok(()), "{}", stage.run.scene());
    });
}

#[test]
fn statistics_wait_for_no_ring_that_was_never_taken() {
    let all = Cell::new(0);
    seeds(0..20, |seed| {
        let mut stage = stage(seed, 3);
        let guest = stage.on_ram(GUEST, SECTORS);
        guest.front.borrow_mut().options = Options { queues: 3, ..Options::default() };
        stage.run.world.faults().allow_as(sim::fault::Fault::Bind, "bind: ENOSPC", 1, 1 + seed % 3);
        let shared = stage.run.tapdom().expect("it runs").shared().clone();
        let (mut asked, answered) = (0, Rc::new(Cell::new(0)));
        let attaching = stage.run.toolstack.borrow_mut().attach(&guest.vbd);
        stage.run.until(Duration::from_secs(20), |_| {
            // While a ring is to be taken, and while the disk is offered, somebody asks now and then.
            if let Some(minor) = shared.minors.all().pop().filter(|minor| asked < 20 && minor.seated() > 0) {
                let answers = answered.clone();
                shared.domain.exec.spawn(async move {
                    minor.total().await;
                    answers.set(answers.get() + 1);
                });
                asked += 1;
            }
            false
        });
        let _whatever = stage.run.finish(attaching);
        assert!(answered.get() == asked, "{} of {asked}\n{}", answered.get(), stage.run.scene());
        all.set(all.get() + asked);
    });
    assert!(all.get() > 0, "nobody ever asked");
}
