//! A toolstack and guests that do anything at any moment, and wait for nothing. At the end nothing may be left, and a
//! guest that comes then is served.

use std::time::Duration;

use xen::port::DomId;

use crate::blkback;
use crate::disk::{Disk, Model};
use crate::fault::{self, Fault};
use crate::frontend::slips::Slip;
use crate::frontend::{Phase, Style, Workload};
use crate::run::{DRIVER, Run, SharedFrontend};
use crate::stage::{Stage, XVDA};
use crate::toolstack::{Kind, Vbd};
use crate::world::{DOM0, Life};
use crate::worlds::Report;
use kernel::control::Channel;

struct Guest {
    id: DomId,
    front: Option<SharedFrontend>,
    vbd: Option<Vbd>,
}

/// Plays it.
pub fn play(seed: u64) -> Report {
    let mut stage = stage(seed);
    let mut report = Report::default();
    let (faulty, all) = (stage.run.random.one_in(3), Fault::all().collect::<Vec<_>>());
    let mut guests: Vec<Guest> = (5..8).map(|id| Guest { id: DomId(id), front: None, vbd: None }).collect();
    for _ in 0..40 {
        if faulty && stage.run.random.one_in(4) {
            fault::some(&stage.run.world, &mut stage.run.random, &all);
        }
        let at = stage.run.random.index(guests.len());
        act(&mut stage, &mut guests[at], &mut report);
        let pause = stage.run.random.pick(&[0, 0, 1, 100, 10_000, 600_000]);
        let steps = stage.run.random.below(200);
        for _ in 0..steps {
            stage.run.step();
        }
        stage.run.rest(Duration::from_micros(pause));
    }
    stage.run.world.faults().end();
    if faulty {
        // What xenstored refused is asked for again within 32 s; before that nothing is late.
        stage.run.rest(Duration::from_secs(40));
    }
    for guest in &guests {
        let _late = stage.run.destroy(guest.id);
        guest.front.iter().for_each(|front| report.guest(&front.borrow().tally));
    }
    // Errors stay readable in xenstore and are charged to the product; all else is to be as it was.
    stage.run.rest(Duration::from_secs(2));
    for guest in &guests {
        assert_eq!(stage.run.world.life(guest.id), None, "{:?} is a zombie", guest.id);
    }
    stage.assert_few_notes();
    let held = stage.run.tapdom().expect("it runs").held();
    assert_eq!((held.pages, held.mappings, held.nodes), (0, 0, 0), "still held");
    let left = stage.run.store.list(&format!("/local/domain/{}/backend", DRIVER.0));
    assert!(left.iter().all(|node| !node.contains("/state")), "{left:#?}");
    // And it still works.
    let guest = stage.on_ram(DomId(9), 1024);
    stage.attach(&guest);
    guest.front.borrow_mut().work(Workload::mixed(20));
    stage.run.at_rest(&guest.front);
    stage.detach(&guest);
    report.guest(&guest.front.borrow().tally);
    report.add(&Report::of(&stage.run));
    report
}

/// The product booted, with what may go wrong at that, and with control channels or without.
fn stage(seed: u64) -> Stage {
    let mut run = Run::new(seed);
    let disk = Disk::random(2048, &mut run.random);
    let back = run.lower(XVDA, &disk);
    back.borrow_mut().options = blkback::Options::any(&mut run.random);
    if run.random.one_in(2) {
        run.channels = Channel::defaults();
    }
    if run.random.one_in(4) {
        fault::some(&run.world, &mut run.random, &Fault::AT_BOOT);
    }
    let stage = Stage::boot_over(run, disk, back);
    stage.run.world.faults().end();
    stage
}

fn act(stage: &mut Stage, guest: &mut Guest, report: &mut Report) {
    match (&guest.front, &guest.vbd) {
        // Its number is taken as long as its pages are mapped; that may be a moment.
        (None, _) if stage.run.world.life(guest.id) == Some(Life::Dying) => {}
        (None, _) => appear(stage, guest),
        (Some(front), Some(vbd)) => match stage.run.random.below(8) {
            0 | 1 => front.borrow_mut().work(Workload { sectors_max: 88, ..Workload::mixed(200) }),
            2 if front.borrow().phase() == Phase::Connected => front.borrow_mut().close(Some(Style::Linux)),
            3 => drop(stage.run.toolstack.borrow_mut().detach(vbd)),
            4 => {
                let _gone = stage.run.store.client(DOM0).remove(&vbd.backend_dir());
            }
            // The kernel of dom0 kills it first, xenstore hears of it afterwards.
            5 => stage.run.world.destroy(guest.id),
            6 => {
                let _late = stage.run.destroy(guest.id);
                report.guest(&front.borrow().tally);
                (guest.front, guest.vbd) = (None, None);
            }
            _ => front.borrow_mut().silent ^= true,
        },
        _ => {}
    }
}

fn appear(stage: &mut Stage, guest: &mut Guest) {
    // Two guests on one disk see each other's writes, which no model of one of them can tell.
    let shared = if guest.id == DomId(5) { "aio:/dev/xvda" } else { "ram:1M" };
    let target = stage.run.random.pick(&["ram:512K", shared, shared, "aio:/dev/xvdq", "junk"]);
    let kind = stage.run.random.pick(&[Kind::Vbd, Kind::Qdisk, Kind::Vbd3]);
    let vbd = Vbd { kind, ..Vbd::new(DRIVER, guest.id, target) };
    let model = Model::unknown();
    if target == "aio:/dev/xvda" {
        stage.share_lower(&model);
    }
    let new = stage.guest(vbd.clone(), &model);
    {
        let mut front = new.front.borrow_mut();
        front.options.style = stage.run.random.pick(&[Style::Linux, Style::Linux, Style::Resumed]);
        front.options.abrupt = stage.run.random.one_in(2);
        front.options.errors = true;
        front.options.shares_ids = stage.run.random.one_in(3);
        front.options.slip = Some(Slip::any(&mut stage.run.random)).filter(|_| stage.run.random.one_in(3));
    }
    stage.run.toolstack.borrow_mut().attach(&vbd);
    (guest.front, guest.vbd) = (Some(new.front), Some(vbd));
}
