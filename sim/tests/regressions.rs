//! What was once wrong, each with the case that showed it.

use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use drivers::disk::{Device, Op};

use sim::disk::{Disk, Model, SharedDisk};
use sim::fault::Fault;
use sim::frontend::{Options, Workload};
use sim::run::{DRIVER, Run, seeds};
use sim::stage::{GUEST, Stage, XVDA};
use sim::toolstack::Vbd;
use xen::port::DomId;

/// A frontend path that xenstored refuses to watch made the disk's task begin again at once, for ever: the run panics
/// as a livelock if it does. The error is told, and others are served.
#[test]
fn a_permanent_store_error_is_no_reason_to_try_again_at_once() {
    let mut stage = Stage::bare(1);
    let guest = stage.on_ram(GUEST, 4096);
    stage.run.toolstack.borrow_mut().place(&guest.vbd);
    let dom0 = stage.run.store.client(DomId(0));
    dom0.write(&format!("{}/frontend", guest.vbd.backend_dir()), "/x").unwrap();
    stage.run.rest(Duration::from_secs(5));
    let error = format!(
        "/local/domain/{}/error/{}/error",
        DRIVER.0,
        guest.vbd.backend_dir().split_once("/backend/").map(|(_, rest)| format!("backend/{rest}")).unwrap()
    );
    assert!(dom0.read(&error).is_ok(), "no error text at {error}");
    let other = stage.on_ram(DomId(6), 4096);
    stage.attach(&other);
}

/// A lower backend that forgets us answers nothing more; both sides once waited for the other to say Closed first.
#[test]
fn a_lower_backend_that_begins_anew_is_told_that_we_go() {
    let mut stage = Stage::with_lower(2, 4096);
    let guest = stage.on_lower(GUEST);
    stage.attach(&guest);
    guest.front.borrow_mut().options.errors = true;
    stage.back().borrow_mut().options.stuck = true;
    guest.front.borrow_mut().work(Workload::writing(1000));
    stage.run.rest(Duration::from_millis(200));
    let dom0 = stage.run.store.client(DomId(0));
    let path = format!("/local/domain/0/backend/vbd/{}/51712/state", DRIVER.0);
    dom0.write(&path, "2").unwrap();
    stage.run.rest(Duration::from_secs(40));
    let ours = dom0.read(&format!("/local/domain/{}/device/vbd/51712/state", DRIVER.0));
    assert_eq!(ours.unwrap(), "6", "the frontend's state after the backend forgot it");
}

/// While a disk leaves, its directory stands in Closed for libxl to see; a toolstack that clears it away itself and makes
/// it anew in that time made another disk, which was once removed with the old one.
#[test]
fn a_directory_made_anew_while_the_old_one_leaves_is_another_disk() {
    seeds(0..20, |seed| {
        let mut stage = Stage::bare(seed);
        let guest = stage.on_ram(GUEST, 1024);
        stage.attach(&guest);
        let dom0 = stage.run.store.client(DomId(0));
        let (home, front) = (guest.vbd.backend_dir(), guest.vbd.frontend_dir());
        let state = format!("{home}/state");
        guest.front.borrow_mut().kill();
        dom0.remove(&front).unwrap();
        dom0.write(&format!("{home}/online"), "0").unwrap();
        dom0.write(&state, "5").unwrap();
        assert!(stage.run.until(Duration::from_secs(5), |_| dom0.read(&state).is_ok_and(|state| state == "6")));
        dom0.remove(&home).unwrap();
        stage.run.toolstack.borrow_mut().place(&guest.vbd);
        stage.run.rest(Duration::from_secs(3));
        assert_eq!(dom0.read(&state).as_deref(), Ok("2"), "{}", stage.run.scene());
    });
}

/// A discard of a whole RAM disk is made in pieces: others' requests are answered meanwhile.
#[test]
fn a_long_discard_takes_turns() {
    let ram = drivers::device::ram::Ram::new(4096).unwrap();
    let mut discard = std::pin::pin!(ram.submit(Op::Discard { sectors: 4096 * 8 }, 0));
    let mut turns = 1;
    while discard.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        turns += 1;
    }
    assert_eq!(turns, 32, "16 MiB, 512 KiB at once");
}

/// A guest that had us say Closing and then began anew was never let in again: InitWait was not said over the Closing in
/// our node, which was taken for the toolstack's, and the disk was opened again at once, for ever.
#[test]
fn a_guest_that_begins_anew_after_our_closing_is_let_in() {
    for back_to in ["1", "3", "4"] {
        let mut stage = Stage::bare(3);
        let guest = stage.on_ram(GUEST, 1024);
        stage.attach(&guest);
        guest.front.borrow_mut().silent = true;
        let (client, own) = (stage.run.store.client(GUEST), format!("{}/state", guest.vbd.frontend_dir()));
        let theirs = format!("{}/state", guest.vbd.backend_dir());
        client.write(&own, "5").unwrap();
        assert!(stage.run.until(Duration::from_secs(1), |_| client.read(&theirs).as_deref() == Ok("5")));
        client.write(&own, back_to).unwrap();
        let turns = stage.run.turns;
        stage.run.rest(Duration::from_secs(1));
        let let_in = if back_to == "1" { "2" } else { "4" };
        assert_eq!(client.read(&theirs).as_deref(), Ok(let_in), "after {back_to}\n{}", stage.run.scene());
        assert!(stage.run.turns - turns < 1000, "{} turns", stage.run.turns - turns);
    }
}

/// Requests in flight below outlive their ring; what they read was once copied to pages that the guest, or the next one of
/// its number, had other uses for by then.
#[test]
fn nothing_is_copied_once_the_ring_is_gone() {
    seeds(0..20, |seed| {
        let mut stage = Stage::with_lower(seed, 4096);
        let guest = stage.on_lower(GUEST);
        stage.attach(&guest);
        stage.back().borrow_mut().options.latency = Duration::from_millis(200);
        let options = Options { abrupt: true, persistent: seed % 2 == 0, ..guest.front.borrow().options };
        guest.front.borrow_mut().options = options;
        guest.front.borrow_mut().work(Workload::reading(1000));
        stage.run.rest(Duration::from_millis(20));
        guest.front.borrow_mut().close(None);
        let gone = stage.run.until(Duration::from_secs(5), |run| run.world.mapped_by(DRIVER, GUEST) == 0);
        assert!(gone && stage.run.tapdom().expect("it runs").held().pages > 0, "nothing is in flight any more");
        // Any copy would be counted.
        stage.run.world.faults().allow(Fault::Copy, u32::MAX, 1);
        stage.run.rest(Duration::from_secs(1));
        assert_eq!(stage.run.world.faults().injected(Fault::Copy), 0);
        assert_eq!(stage.run.tapdom().expect("it runs").held().pages, 0);
    });
}

/// What a disk's requests hold is bounded, whatever its guest asks for: others find pages of the same lower disk.
#[test]
fn a_disk_holds_512_segments_in_flight() {
    for persistent in [false, true] {
        let mut stage = Stage::with_lower(4, 8192);
        let guest = stage.on_lower(GUEST);
        guest.front.borrow_mut().options = Options { order: 4, indirect: 256, persistent, ..Options::default() };
        stage.attach(&guest);
        stage.back().borrow_mut().options.stuck = true;
        guest.front.borrow_mut().work(Workload { depth: 100, sectors_max: 2048, ..Workload::reading(1000) });
        stage.run.rest(Duration::from_secs(1));
        let pages = stage.run.tapdom().expect("it runs").held().pages;
        assert!((256..=512).contains(&pages), "{pages} pages");
    }
}

/// Two lower disks of one backend domain once shared their pages: a disk that hung took the other's with it.
#[test]
fn a_lower_disk_that_hangs_leaves_the_other_its_pages() {
    let mut run = Run::new(5);
    let (stuck, good) = (Disk::random(8192, &mut run.random), Disk::random(8192, &mut run.random));
    let back = run.lower(XVDA, &stuck);
    run.lower(XVDA + 16, &good);
    let mut stage = Stage::boot(run);
    let on = |stage: &mut Stage, id: u16, target: &str, disk: &SharedDisk| {
        let guest = stage.guest(Vbd::new(DRIVER, DomId(id), target), &Model::of(disk.borrow().bytes()));
        guest.front.borrow_mut().options = Options { order: 4, indirect: 256, ..Options::default() };
        stage.attach(&guest);
        guest
    };
    let hanging: Vec<_> = (5..8).map(|id| on(&mut stage, id, "aio:/dev/xvda", &stuck)).collect();
    back.borrow_mut().options.stuck = true;
    for guest in &hanging {
        guest.front.borrow_mut().work(Workload { depth: 100, sectors_max: 2048, ..Workload::reading(1000) });
    }
    stage.run.rest(Duration::from_secs(1));
    assert!(stage.run.tapdom().expect("it runs").held().pages >= 768, "the disk that hangs has its pages");
    let other = on(&mut stage, 9, "aio:/dev/xvdb", &good);
    other.front.borrow_mut().work(Workload { sectors_max: 2048, ..Workload::mixed(100) });
    stage.run.at_rest(&other.front);
    stage.verify(&other);
}

/// A backend that closes and answers nothing: we wait for what is in flight half a minute, and say Closed all the same.
#[test]
fn a_lower_backend_that_closes_and_hangs_is_not_waited_for_for_ever() {
    let mut stage = Stage::with_lower(6, 4096);
    let guest = stage.on_lower(GUEST);
    guest.front.borrow_mut().options.errors = true;
    stage.attach(&guest);
    stage.back().borrow_mut().options.stuck = true;
    guest.front.borrow_mut().work(Workload::writing(1000));
    stage.run.rest(Duration::from_millis(200));
    stage.back().borrow_mut().close();
    let dom0 = stage.run.store.client(DomId(0));
    let node = format!("/local/domain/{}/device/vbd/{XVDA}/state", DRIVER.0);
    stage.run.rest(Duration::from_secs(20));
    assert_eq!(dom0.read(&node).as_deref(), Ok("5"), "what is in flight may still be answered");
    stage.run.rest(Duration::from_secs(20));
    assert_eq!(dom0.read(&node).as_deref(), Ok("6"));
}

/// One refusal of xenstored, for whatever reason, was once the end of all attaching, of lower disks that come later, or of
/// `xl shutdown`, until the domain was started anew.
#[test]
fn a_refusal_of_xenstored_is_not_for_ever() {
    seeds(0..40, |seed| {
        let mut stage = Stage::with_lower(seed, 1024);
        let faults = stage.run.random.between(1, 12) as u32;
        stage.run.world.faults().allow(Fault::Store, faults, 1 + seed % 3);
        let first = stage.on_ram(GUEST, 1024);
        let _refused = stage.run.attach(&first.vbd);
        let dom0 = stage.run.store.client(DomId(0));
        let shutdown = format!("/local/domain/{}/control/shutdown", DRIVER.0);
        dom0.write(&shutdown, "suspend").unwrap();
        stage.run.rest(Duration::from_secs(1));
        stage.run.world.faults().end();
        let _late = stage.run.destroy(GUEST);
        stage.run.rest(Duration::from_secs(5));
        let other = stage.on_ram(DomId(6), 1024);
        stage.attach(&other);
        stage.detach(&other);
        assert_eq!(dom0.read(&shutdown).as_deref(), Ok(""), "a word that is refused is heard\n{}", stage.run.scene());
        dom0.write(&shutdown, "poweroff").unwrap();
        assert!(stage.run.until(Duration::from_secs(5), |run| run.stopped().is_some()), "{}", stage.run.scene());
    });
}

/// A backend that claims 2^64-1 sectors had them promised to the guest: more bytes than any number here holds.
#[test]
fn a_size_that_no_disk_can_have_is_no_size() {
    for (claimed, shown) in
        [("18446744073709551615", 0), ("18014398509481984", 0), ("18014398509481983", (1 << 54) - 1)]
    {
        let mut stage = Stage::with_lower(1, 1024);
        let guest = stage.on_lower(GUEST);
        stage.attach(&guest);
        guest.front.borrow_mut().silent = true;
        let dom0 = stage.run.store.client(DomId(0));
        let lower = format!("/local/domain/0/backend/vbd/{}/51712", DRIVER.0);
        dom0.write(&format!("{lower}/sectors"), claimed).unwrap();
        dom0.write(&format!("{lower}/state"), "4").unwrap();
        stage.run.rest(Duration::from_secs(2));
        assert_eq!(dom0.number(&format!("{}/sectors", guest.vbd.backend_dir())), Some(shown), "{}", stage.run.scene());
    }
}

/// Every task of the product holds the domain that holds it: each world once stayed in memory for ever.
#[test]
fn nothing_of_the_product_stays_after_its_world() {
    for seed in 0..6 {
        let mut stage = Stage::with_control(seed, 1024);
        let guest = stage.on_lower(GUEST);
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload::mixed(100));
        stage.run.rest(Duration::from_micros(50));
        let shared = Rc::downgrade(stage.run.tapdom().unwrap().shared());
        let domain = Rc::downgrade(&shared.upgrade().unwrap().domain);
        drop((stage, guest));
        assert!(shared.upgrade().is_none() && domain.upgrade().is_none());
    }
}

/// A backend's directory that is gone cannot be told from one that is hidden, for the directories above it are dom0's own:
/// xenstored refuses. The disk once stayed for a minute, with the pages of all that was in flight, and asked again and again.
#[test]
fn a_lower_disk_whose_backend_may_not_be_seen_any_more_is_over_soon() {
    let mut stage = Stage::with_lower(6, 4096);
    let guest = stage.on_lower(GUEST);
    guest.front.borrow_mut().options.errors = true;
    stage.attach(&guest);
    stage.back().borrow_mut().options.stuck = true;
    guest.front.borrow_mut().work(Workload::writing(1000));
    stage.run.rest(Duration::from_millis(200));
    let told = || sim::journal::tells("the disk below is gone");
    assert!(!told(), "{}", stage.run.scene());
    // Each request that fails is a line of the log, which does not keep all.
    guest.front.borrow_mut().stop();
    let lower = Vbd { devid: XVDA, ..Vbd::new(DomId(0), DRIVER, "") };
    stage.run.store.client(DomId(0)).remove(&lower.backend_dir()).unwrap();
    stage.run.rest(Duration::from_secs(3));
    assert_eq!(stage.run.tapdom().unwrap().held().pages, 0, "{}", stage.run.scene());
    assert!(told(), "{}", stage.run.scene());
}
