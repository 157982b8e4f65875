//! The power fails at every write and every flush of a run, with real frontends through the product: what a guest was
//! told is durable is there, every other sector is old or new, and what orders requests orders them on the disk too.

use std::time::Duration;

use sim::blkback::Options as BackOptions;
use sim::disk::{Disk, Model};
use sim::frontend::Workload;
use sim::ledger::Ledger;
use sim::run::{DRIVER, Run, seeds};
use sim::stage::{GUEST, Stage, XVDA};
use sim::toolstack::Vbd;

/// Images drawn at every cut; `make crash` draws more, of more seeds.
fn draws() -> usize {
    std::env::var("DRAWS").ok().and_then(|draws| draws.parse().ok()).unwrap_or(3)
}

/// Flushes and requests with an order, much more than any guest sends.
fn workload(requests: u32) -> Workload {
    Workload { sectors_max: 24, flushes: 8, discards: 2, ordered: 8, writes: 70, ..Workload::mixed(requests) }
}

fn play(seed: u64, target: &str, prepare: impl Fn(&mut Disk) -> u64) {
    let mut run = Run::new(seed);
    let disk = Disk::random(512, &mut run.random);
    let start = prepare(&mut disk.borrow_mut());
    let back = run.lower(XVDA, &disk);
    back.borrow_mut().options = BackOptions::any(&mut run.random);
    back.borrow_mut().options.latency = Duration::from_micros(run.random.pick(&[0, 100, 2000]));
    let mut stage = Stage::boot(run);
    let guest = stage.guest(Vbd::new(DRIVER, GUEST, target), &Model::unknown());
    stage.attach(&guest);
    let ledger = Ledger::on(&disk, start);
    guest.front.borrow_mut().ledger = Some(ledger.clone());
    let depth = stage.run.random.pick(&[2, 8, 32]);
    guest.front.borrow_mut().work(Workload { depth, ..workload(120) });
    stage.run.at_rest(&guest.front);
    let mut random = stage.run.random.fork();
    let checked = ledger.borrow().check(&mut random, draws());
    match checked {
        Ok(cuts) => assert!(cuts > 50 && disk.borrow().recording().flushes() > 0, "only {cuts} cuts"),
        Err(why) => panic!("{why}"),
    }
    stage.detach(&guest);
}

#[test]
fn a_whole_disk_after_every_cut() {
    seeds(0..10, |seed| play(seed, "aio:/dev/xvda", |_| 0));
}

#[test]
fn a_partition_after_every_cut() {
    seeds(0..10, |seed| {
        play(seed, "aio:/dev/xvda1", |disk| {
            sim::gpt::write(disk, &[(64, 400)]);
            64
        });
    });
}
