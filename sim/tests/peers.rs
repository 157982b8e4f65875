//! The simulation's own peers against each other: a guest on dom0's backend, without the product between them.
//!
//! What fails here is a fault of the simulation; what fails only with the product is the product's.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use sim::blkback::Options as BackOptions;
use sim::disk::{Disk, Model};
use sim::frontend::{Options, Phase, Style, Workload};
use sim::run::{Run, seeds};
use sim::toolstack::Vbd;
use sim::world::DOM0;
use xen::port::DomId;

const GUEST: DomId = DomId(5);
const XVDA: u32 = 51712;

#[test]
fn a_guest_reads_what_it_wrote() {
    seeds(0..20, |seed| {
        let mut run = Run::new(seed);
        let disk = Disk::random(4096, &mut run.random);
        let model = Model::of(disk.borrow().bytes());
        let front = run.frontend(GUEST, XVDA, &model);
        // The backend here would keep its pages, and has one ring.
        front.borrow_mut().options = Options { persistent: false, queues: 1, ..Options::any(&mut run.random) };
        let clean = run.baseline(GUEST);
        let back = run.serve(GUEST, XVDA, &disk);
        back.borrow_mut().options = BackOptions::any(&mut run.random);
        run.connected(&front);
        front.borrow_mut().work(Workload::mixed(300));
        run.at_rest(&front);
        model.borrow().compare(disk.borrow().bytes()).expect("the disk is what the guest wrote");
        let vbd = Vbd::new(DOM0, GUEST, "");
        assert_eq!(run.detach(&vbd), Ok(()));
        assert!(run.until(Duration::from_secs(5), |_| front.borrow().phase() == Phase::Absent));
        run.rest(Duration::from_millis(1));
        assert_eq!(run.baseline(GUEST).holdings, clean.holdings);
        let tally = front.borrow().tally;
        assert!(tally.reads > 0 && tally.writes > 0 && tally.lost == 0, "{tally:?}");
    });
}

#[test]
fn every_handshake_ends_connected_and_comes_back() {
    seeds(0..20, |seed| {
        let mut run = Run::new(seed);
        let disk = Rc::new(RefCell::new(Disk::new(512)));
        let model = Model::zeroes(512);
        let front = run.frontend(GUEST, XVDA, &model);
        let style = run.random.pick(&[Style::Linux, Style::Ovmf, Style::Resumed]);
        front.borrow_mut().options = Options { style, persistent: false, ..Options::default() };
        run.serve(GUEST, XVDA, &disk);
        run.connected(&front);
        front.borrow_mut().work(Workload { sectors_max: 88, ..Workload::writing(50) });
        run.at_rest(&front);
        front.borrow_mut().close(Some(Style::Linux));
        run.until(Duration::from_secs(5), |_| front.borrow().tally.connects == 2);
        run.connected(&front);
        front.borrow_mut().read_all();
        run.at_rest(&front);
    });
}

#[test]
fn the_same_seed_is_the_same_run() {
    let story = |seed| {
        let mut run = Run::new(seed);
        let disk = Disk::random(512, &mut run.random);
        let model = Model::of(disk.borrow().bytes());
        let front = run.frontend(GUEST, XVDA, &model);
        front.borrow_mut().options.persistent = false;
        let back = run.serve(GUEST, XVDA, &disk);
        back.borrow_mut().options.latency = Duration::from_micros(300);
        run.connected(&front);
        front.borrow_mut().work(Workload::mixed(100));
        run.at_rest(&front);
        let tally = front.borrow().tally;
        (run.world.activity(), run.world.now(), tally, disk.borrow().bytes().to_vec())
    };
    assert!(story(4) == story(4));
    assert!(story(4) != story(5));
}
