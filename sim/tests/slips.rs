//! Frontends that mean well and slip: in how they offer their ring, and in how they number their requests.

use sim::frontend::slips::Slip;
use sim::frontend::{Style, Workload};
use sim::marks;
use sim::run::seeds;
use sim::stage::{GUEST, Stage};
use sim::worlds::slips;

#[test]
fn every_slip_is_served_or_refused_and_served_when_it_begins_anew() {
    marks::take();
    seeds(0..60, |seed| drop(slips::play(seed)));
    let hits = marks::take();
    if std::env::var("SEED").is_err() {
        let missed: Vec<_> = Slip::MARKS.iter().filter(|mark| !hits.contains_key(*mark)).collect();
        assert!(missed.is_empty(), "{missed:?}");
    }
}

/// A driver of Linux writes its keys in one transaction; those of other systems write one after the other.
#[test]
fn keys_that_stand_before_the_state_are_served_at_the_first_try() {
    for slip in Slip::ALL.iter().filter(|slip| slip.is_harmless()) {
        seeds(0..10, |seed| {
            let mut stage = Stage::bare(seed);
            let guest = stage.on_ram(GUEST, 1024);
            guest.front.borrow_mut().options.slip = Some(*slip);
            stage.attach(&guest);
            guest.front.borrow_mut().work(Workload::mixed(10));
            stage.run.at_rest(&guest.front);
            let tally = guest.front.borrow().tally;
            assert_eq!((tally.connects, tally.refused), (1, 0), "{slip:?}\n{}", stage.run.scene());
            stage.detach(&guest);
            stage.assert_clean();
        });
    }
}

#[test]
fn requests_of_one_number_are_answered_once_each() {
    seeds(0..20, |seed| {
        let mut stage = Stage::with_lower(seed, 1024);
        let guest = if seed % 2 == 0 { stage.on_ram(GUEST, 1024) } else { stage.on_lower(GUEST) };
        guest.front.borrow_mut().options.shares_ids = true;
        stage.attach(&guest);
        marks::take();
        guest.front.borrow_mut().work(Workload { sectors_max: 88, ..Workload::mixed(200) });
        stage.run.at_rest(&guest.front);
        assert!(marks::take().contains_key(Slip::SameId.mark()));
        // And after another connection, where nobody waits for the last one's answers any more.
        guest.front.borrow_mut().close(Some(Style::Linux));
        stage.run.connected(&guest.front);
        stage.verify(&guest);
        stage.detach(&guest);
        stage.assert_clean();
    });
}
