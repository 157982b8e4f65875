//! One who asks for as much as its ring holds, again and again, keeps nobody else waiting.

use std::cell::Cell;
use std::time::Duration;

use sim::frontend::{Options, Workload};
use sim::run::seeds;
use sim::schedule::{Rate, TOUCHES_PER_POLL};
use sim::stage::{GUEST, Stage, TURNS_MAX};
use xen::port::DomId;

const GREEDY: DomId = DomId(7);

/// A ring that is filled while it is served gets its turn as any other, and no more than that: the scheduler ends a run in
/// which a task goes on and on.
#[test]
fn a_ring_that_is_always_full_keeps_nobody_waiting() {
    let longest = Cell::new(0);
    seeds(0..6, |seed| {
        let mut stage = Stage::bare(seed);
        stage.run.interleave(if seed % 2 == 0 { Rate::Often } else { Rate::Sometimes });
        let (quiet, greedy) = (stage.on_ram(GUEST, 1024), stage.on_ram(GREEDY, 2048));
        greedy.front.borrow_mut().options = Options { persistent: true, indirect: 256, order: 4, ..Options::default() };
        stage.attach(&quiet);
        stage.attach(&greedy);
        greedy.front.borrow_mut().work(Workload { depth: 200, sectors_max: 256, ..Workload::reading(1500) });
        for _ in 0..20 {
            quiet.front.borrow_mut().work(Workload { depth: 1, sectors_max: 8, ..Workload::mixed(1) });
            stage.run.at_rest_within(&quiet.front, Duration::from_secs(1));
        }
        stage.run.at_rest(&greedy.front);
        let delay = quiet.front.borrow().tally.delay_max;
        assert!(delay.all.turns <= TURNS_MAX && delay.nanos < 1_000_000, "an answer took {delay}");
        longest.set(longest.get().max(stage.run.longest().0));
        stage.run.detach(&quiet.vbd).expect("it is attached");
    });
    println!("the longest that others waited for one task: {} touches of {TOUCHES_PER_POLL}", longest.get());
}

/// A turn ends when it has copied half a mebibyte, for a guest whose pages stay mapped and for one whose pages Xen copies; what was
/// in flight by then is still done.
#[test]
fn a_turn_is_bounded_by_what_it_copies() {
    for persistent in [true, false] {
        seeds(0..4, |seed| {
            let mut stage = Stage::with_lower(seed, 4096);
            stage.run.interleave(Rate::Sometimes);
            let guest = if seed % 2 == 0 { stage.on_ram(GREEDY, 4096) } else { stage.on_lower(GREEDY) };
            guest.front.borrow_mut().options = Options { persistent, indirect: 256, order: 4, ..Options::default() };
            stage.attach(&guest);
            guest.front.borrow_mut().work(Workload { depth: 100, sectors_max: 2048, ..Workload::reading(200) });
            stage.run.at_rest(&guest.front);
            let longest = stage.run.longest();
            assert!(longest.0 <= 3000, "{longest:?}, {persistent}");
        });
    }
}
