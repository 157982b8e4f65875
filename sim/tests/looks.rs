//! Rings that are looked at for a while instead of sleeping: fewer events, and an end.

use std::time::Duration;

use sim::blkback;
use sim::frontend::Workload;
use sim::run::seeds;
use sim::schedule::Rate;
use sim::stage::{GUEST, Guest, Stage};

const REQUESTS: u32 = 200;

/// A guest asks one thing after the other, at once. The events that we got from it.
fn one_after_the_other(stage: &mut Stage, guest: &Guest) -> u64 {
    stage.attach(guest);
    guest.front.borrow_mut().work(Workload { depth: 1, sectors_max: 8, ..Workload::mixed(REQUESTS) });
    stage.run.at_rest(&guest.front);
    let shared = stage.run.tapdom().expect("it runs").shared();
    let rings: Vec<_> = shared.minors.all().into_iter().flat_map(|minor| minor.rings.borrow().clone()).collect();
    rings.iter().map(|ring| ring.stats.kicks_in.get()).sum()
}

/// Nothing is done any more once the last look has ended.
fn sleeps(stage: &mut Stage) {
    stage.run.rest(Duration::from_secs(2));
    let turns = stage.run.turns;
    stage.run.rest(Duration::from_millis(50));
    assert_eq!(stage.run.turns, turns, "it is awake for nothing");
}

#[test]
fn who_asks_at_once_needs_few_events() {
    seeds(0..10, |seed| {
        let mut stage = Stage::bare(seed);
        stage.run.interleave(Rate::Off);
        let guest = stage.on_ram(GUEST, 1024);
        let events = one_after_the_other(&mut stage, &guest);
        assert!(events < u64::from(REQUESTS) * 2 / 3, "{events} events for {REQUESTS} requests");
        sleeps(&mut stage);
    });
}

#[test]
fn who_waits_for_a_slow_disk_sleeps() {
    seeds(0..10, |seed| {
        let mut stage = Stage::with_lower(seed, 1024);
        let options = blkback::Options { latency: Duration::from_millis(10), ..stage.back().borrow().options.clone() };
        stage.back().borrow_mut().options = options;
        let guest = stage.on_lower(GUEST);
        let before = stage.run.turns;
        one_after_the_other(&mut stage, &guest);
        let turns = stage.run.turns - before;
        assert!(turns < u64::from(REQUESTS) * 20, "{turns} turns for {REQUESTS} requests");
        sleeps(&mut stage);
    });
}

/// As a request that is put while we fall asleep (`io`), from below: an answer between the last look and the wish to be told.
#[test]
fn an_answer_that_comes_while_the_product_falls_asleep_is_seen() {
    seeds(0..24, |seed| {
        let mut stage = Stage::with_lower(seed, 1024);
        stage.run.interleave(Rate::Often);
        let options = blkback::Options { latency: Duration::ZERO, ..stage.back().borrow().options.clone() };
        stage.back().borrow_mut().options = options;
        let guest = stage.on_lower(GUEST);
        one_after_the_other(&mut stage, &guest);
        stage.verify(&guest);
    });
}
