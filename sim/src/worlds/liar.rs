//! A lower backend that lies. The guest on its disk gets errors, or what the liar says; the guests on memory and on
//! another lower disk must not notice, and when the liar's disk is taken away nothing of it is left.

use std::time::Duration;

use xen::port::DomId;

use crate::disk::{Disk, Model};
use crate::frontend::Workload;
use crate::lie::Lie;
use crate::run::DRIVER;
use crate::stage::{Guest, Stage, XVDA};
use crate::toolstack::Vbd;
use crate::world::DOM0;
use crate::worlds::Report;

/// The device number of xvdb.
const XVDB: u32 = XVDA + 16;

/// Plays it.
pub fn play(seed: u64) -> Report {
    let mut stage = Stage::with_lower(seed, 1024);
    let victim = stage.on_lower(DomId(5));
    {
        let mut front = victim.front.borrow_mut();
        (front.options.errors, front.options.credulous) = (true, true);
    }
    let others = [stage.on_ram(DomId(6), 1024), on_other_disk(&mut stage)];
    stage.attach(&victim);
    for guest in &others {
        stage.attach(guest);
        guest.front.borrow_mut().work(Workload { depth: 8, ..Workload::mixed(60) });
    }
    for _ in 0..stage.run.random.between(1, 2) {
        lie(&mut stage, &victim);
    }
    for guest in &others {
        stage.run.at_rest(&guest.front);
        stage.verify(guest);
    }
    let mut report = Report::default();
    take_away(&mut stage, &victim);
    for guest in others.iter() {
        guest.front.borrow_mut().work(Workload::mixed(10));
        stage.run.at_rest(&guest.front);
        stage.verify(guest);
        stage.detach(guest);
        report.guest(&guest.front.borrow().tally);
    }
    report.guest(&victim.front.borrow().tally);
    stage.run.rest(Duration::from_secs(2));
    let held = stage.run.tapdom().expect("it runs").held();
    assert_eq!((held.pages, held.mappings, held.nodes), (0, 0, 0), "{}", stage.run.scene());
    report.add(&Report::of(&stage.run));
    report
}

fn on_other_disk(stage: &mut Stage) -> Guest {
    let disk = Disk::random(1024, &mut stage.run.random);
    stage.run.lower(XVDB, &disk);
    let model = Model::of(disk.borrow().bytes());
    stage.guest(Vbd::new(DRIVER, DomId(7), "aio:/dev/xvdb"), &model)
}

/// The guest on the liar's disk works until the lie was told, and for a while after.
fn lie(stage: &mut Stage, victim: &Guest) {
    let depth = stage.run.random.pick(&[1, 4, 32]);
    victim.front.borrow_mut().work(Workload { depth, sectors_max: 88, ..Workload::mixed(400) });
    let some = Duration::from_micros(stage.run.random.pick(&[0, 100, 5000]));
    stage.run.rest(some);
    let (back, front) = (stage.back(), victim.front.clone());
    back.borrow_mut().options.lie = Some(Lie::any(&mut stage.run.random));
    stage.run.world.stir();
    // A lie needs its occasion, which may not come: two requests at once, or a page that is kept.
    stage.run.until(Duration::from_secs(2), |_| back.borrow().options.lie.is_none() || front.borrow().at_rest());
    stage.run.rest(Duration::from_millis(300));
}

/// The guest is destroyed, then the disk under it is taken away by force.
fn take_away(stage: &mut Stage, victim: &Guest) {
    let _late = stage.run.destroy(victim.vbd.guest);
    assert_eq!(stage.run.world.life(victim.vbd.guest), None, "a zombie is left\n{}", stage.run.scene());
    let dom0 = stage.run.store.client(DOM0);
    let lower = Vbd { devid: XVDA, ..Vbd::new(DOM0, DRIVER, "") };
    for dir in [lower.backend_dir(), lower.frontend_dir()] {
        let _gone = dom0.remove(&dir);
    }
    stage.run.rest(Duration::from_secs(40));
}
