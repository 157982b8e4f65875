//! xenstored says no, to any request and in any of its words: what passes is borne, what stays is told, and a guest that
//! is connected is served all the while.

use std::time::Duration;

use protocol::mem::Memory;
use sim::disk::{Disk, Model};
use sim::fault::Fault;
use sim::frontend::{Phase, Workload};
use sim::run::{DRIVER, Run, seeds};
use sim::stage::{GUEST, Stage, XVDA};
use sim::toolstack::Vbd;
use sim::world::DOM0;
use xen::port::{DomId, GrantRef, Port, Stop};

/// Words for trouble of xenstored's own, which passes.
const PASSING: [&str; 5] =
    ["xenstore: EIO", "xenstore: ENOMEM", "xenstore: EAGAIN", "xenstore: EBUSY", "xenstore: ENOBODYKNOWS"];

fn word(seed: u64) -> &'static str {
    PASSING[seed as usize % PASSING.len()]
}

/// One error once ended the task that looks for disks, for lower disks or for the word to end, and with it all that it was
/// to do in the life of the domain.
#[test]
fn errors_while_it_boots_delay_it() {
    seeds(0..40, |seed| {
        let mut run = Run::new(seed);
        let disk = Disk::random(1024, &mut run.random);
        run.lower(XVDA, &disk);
        let (times, one_in) = (run.random.between(1, 6) as u32, run.random.pick(&[1, 2, 5]));
        run.world.faults().allow_as(Fault::Store, word(seed), times, one_in);
        let mut stage = Stage::boot(run);
        stage.run.world.faults().end();
        stage.run.rest(Duration::from_secs(60));
        let model = Model::of(disk.borrow().bytes());
        let guest = stage.guest(Vbd::new(DRIVER, GUEST, "aio:/dev/xvda"), &model);
        stage.attach(&guest);
        stage.verify(&guest);
        stage.detach(&guest);
        stage.run.toolstack.borrow_mut().shutdown(DRIVER, "poweroff");
        stage.run.until(Duration::from_secs(5), |run| run.stopped().is_some());
        assert_eq!(stage.run.stopped(), Some(Stop::Poweroff), "{}", stage.run.scene());
    });
}

/// One error once let go of the ring of a connected guest, whose requests then waited for ever, or ended a lower disk.
#[test]
fn errors_while_a_guest_is_served_are_not_its_business() {
    seeds(0..60, |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let guest = stage.on_lower(GUEST);
        stage.attach(&guest);
        let client = stage.run.store.client(DOM0);
        for round in 0..4u64 {
            let (times, one_in) = (stage.run.random.between(1, 5) as u32, stage.run.random.pick(&[1, 2, 3]));
            stage.run.world.faults().allow_as(Fault::Store, word(seed), times, one_in);
            // Something for it to look at: both ends' nodes, written with what they hold.
            let lower = format!("/local/domain/0/backend/vbd/{}/{XVDA}/state", DRIVER.0);
            let nodes =
                [format!("{}/state", guest.vbd.backend_dir()), format!("{}/state", guest.vbd.frontend_dir()), lower];
            let node = &nodes[stage.run.random.index(3)];
            let value = client.read(node).unwrap();
            client.write(node, &value).unwrap();
            guest.front.borrow_mut().work(Workload::mixed(30));
            stage.run.at_rest(&guest.front);
            assert_eq!(guest.front.borrow().phase(), Phase::Connected, "round {round}");
            let pause = stage.run.random.pick(&[0, 1, 40]);
            stage.run.rest(Duration::from_secs(pause));
        }
        stage.run.world.faults().end();
        stage.run.rest(Duration::from_secs(40));
        stage.verify(&guest);
        stage.detach(&guest);
        let _none = client.remove(&format!("/local/domain/{}/error/backend", DRIVER.0));
        stage.assert_clean();
    });
}

#[test]
fn errors_while_a_disk_comes_and_goes_delay_it() {
    seeds(0..40, |seed| {
        let mut stage = Stage::with_lower(seed, 1024);
        let guest = stage.on_lower(GUEST);
        let (times, one_in) = (stage.run.random.between(1, 3) as u32, stage.run.random.pick(&[1, 3, 10]));
        stage.run.world.faults().allow_as(Fault::Store, word(seed), times, one_in);
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload::mixed(20));
        stage.run.at_rest(&guest.front);
        stage.run.world.faults().allow_as(Fault::Store, word(seed), times, one_in);
        stage.detach(&guest);
        stage.run.world.faults().end();
        stage.run.rest(Duration::from_secs(2));
        let _none = stage.run.store.client(DOM0).remove(&format!("/local/domain/{}/error/backend", DRIVER.0));
        stage.assert_clean();
    });
}

/// The lower disk's own steps: its handshake, its growth, its end.
#[test]
fn errors_while_a_lower_disk_comes_grows_and_goes_delay_it() {
    seeds(0..40, |seed| {
        let mut stage = Stage::with_lower(seed, 1024);
        let lower = Vbd { devid: XVDA, ..Vbd::new(DOM0, DRIVER, "phy:/dev/lower") };
        for _ in 0..2 {
            let (times, one_in) = (stage.run.random.between(1, 4) as u32, stage.run.random.pick(&[1, 3, 10]));
            stage.run.world.faults().allow_as(Fault::Store, word(seed), times, one_in);
            assert_eq!(stage.run.detach(&lower), Ok(()), "{}", stage.run.scene());
            stage.run.world.faults().allow_as(Fault::Store, word(seed), times, one_in);
            stage.run.toolstack.borrow_mut().place(&lower);
            stage.run.rest(Duration::from_secs(10));
        }
        let model = Model::of(stage.disk().borrow().bytes());
        let guest = stage.guest(Vbd::new(DRIVER, GUEST, "aio:/dev/xvda"), &model);
        stage.run.world.faults().end();
        stage.attach(&guest);
        stage.run.world.faults().allow_as(Fault::Store, word(seed), 3, 1);
        stage.back().borrow_mut().resize(2048);
        let front = guest.front.clone();
        let seen = stage.run.until(Duration::from_secs(40), |_| front.borrow().offer.sectors == 2048);
        assert!(seen, "{}", stage.run.scene());
        stage.verify(&guest);
        stage.detach(&guest);
    });
}

/// xenstored does not say which lower disks there are, for as long as anybody would wait: the disk is refused, and says why.
#[test]
fn a_list_of_lower_disks_that_is_never_told_refuses_a_disk() {
    let mut stage = Stage::with_lower(1, 1024);
    let (dom0, lowers) = (stage.run.store.client(DOM0), format!("/local/domain/{}/device/vbd", DRIVER.0));
    dom0.permit(&lowers, &["n0"]).unwrap();
    let guest = stage.on_lower(GUEST);
    stage.run.toolstack.borrow_mut().attach(&guest.vbd);
    let error = format!("{}/hotplug-error", guest.vbd.backend_dir());
    let told = stage.run.until(Duration::from_secs(30), |_| dom0.exists(&error));
    assert!(told, "{}", stage.run.scene());
    assert_eq!(dom0.read(&error).as_deref(), Ok("/dev/xvda: xenstore: Access"));
}

/// Any word at any request, also those that blame us. A disk may be refused for them; nothing else may come of it.
#[test]
fn no_word_at_any_request_does_lasting_harm() {
    seeds(0..90, |seed| {
        let mut stage = Stage::with_lower(seed, 1024);
        let guest = stage.on_lower(GUEST);
        guest.front.borrow_mut().options.errors = true;
        let ways = Fault::Store.ways();
        let row = ways[seed as usize % ways.len()].row;
        let (times, one_in) = (stage.run.random.between(1, 5) as u32, stage.run.random.pick(&[1, 3, 8]));
        stage.run.world.faults().allow_as(Fault::Store, row, times, one_in);
        let _refused = stage.run.attach(&guest.vbd);
        guest.front.borrow_mut().work(Workload::mixed(30));
        stage.run.rest(Duration::from_secs(1));
        stage.run.world.faults().end();
        let _late = stage.run.destroy(GUEST);
        stage.run.rest(Duration::from_secs(40));
        assert_eq!(stage.run.world.life(GUEST), None, "a zombie is left\n{}", stage.run.scene());
        let held = stage.run.tapdom().expect("it runs").held();
        assert_eq!((held.pages, held.nodes), (0, 0), "{}", stage.run.scene());
        let next = stage.on_ram(DomId(6), 1024);
        stage.attach(&next);
        next.front.borrow_mut().work(Workload::mixed(20));
        stage.run.at_rest(&next.front);
        stage.detach(&next);
        assert_eq!(stage.run.world.holdings(DRIVER).mappings, 0);
    });
}

/// That a ring makes no sense is seen once; when xenstored did not take what was to be said of it, it was never said again.
#[test]
fn what_xenstored_did_not_take_is_said_again() {
    seeds(0..20, |seed| {
        let mut stage = Stage::bare(seed);
        let guest = stage.on_ram(GUEST, 1024);
        (guest.front.borrow_mut().options.order, guest.front.borrow_mut().options.queues) = (0, 1);
        stage.attach(&guest);
        let client = stage.run.store.client(DOM0);
        let front = |key: &str| client.number(&format!("{}/{key}", guest.vbd.frontend_dir())).unwrap() as u32;
        let ring = stage.run.world.granted(GUEST, GrantRef(front("ring-ref"))).unwrap();
        guest.front.borrow_mut().silent = true;
        ring.store(0, 1000);
        stage.run.world.notify(GUEST, Port(front("event-channel")));
        stage.run.world.faults().allow_as(Fault::Store, word(seed), 1 + seed as u32 % 6, 1);
        let state = format!("{}/state", guest.vbd.backend_dir());
        let said = stage.run.until(Duration::from_secs(30), |_| client.read(&state).is_ok_and(|state| state == "5"));
        assert!(said, "{}", stage.run.scene());
        assert_eq!(stage.run.destroy(GUEST), Ok(()), "{}", stage.run.scene());
    });
}
