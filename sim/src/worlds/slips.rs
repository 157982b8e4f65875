//! A frontend that means well and writes its keys half, late, twice, or changes them while the backend looks; and that gives
//! its requests numbers that are under way. It is served where its keys stood in time, else served or refused with a text;
//! when it begins anew in order it is served, and its neighbour never notices.

use std::time::Duration;

use xen::port::DomId;

use crate::frontend::slips::Slip;
use crate::frontend::{Style, Workload};
use crate::marks;
use crate::run::{Baseline, DRIVER};
use crate::stage::{Guest, Stage};
use crate::toolstack::Failure;
use crate::worlds::Report;

/// How long it may take from an offer to the connection that comes of it, or of the next.
const PATIENCE: Duration = Duration::from_secs(60);

/// Plays it.
pub fn play(seed: u64) -> Report {
    let mut stage = Stage::with_lower(seed, 1024);
    let clean = stage.run.baseline(DRIVER);
    let neighbour = stage.on_ram(DomId(6), 1024);
    stage.attach(&neighbour);
    neighbour.front.borrow_mut().work(Workload { depth: 4, ..Workload::mixed(120) });
    let guest = if stage.run.random.one_in(2) { stage.on_ram(DomId(5), 1024) } else { stage.on_lower(DomId(5)) };
    let rounds = stage.run.random.between(2, 5);
    for round in 0..rounds {
        offer(&mut stage, &guest, round == 0);
    }
    let mut report = Report::default();
    for guest in [&guest, &neighbour] {
        stage.run.at_rest(&guest.front);
        stage.verify(guest);
        stage.detach(guest);
        report.guest(&guest.front.borrow().tally);
    }
    stage.run.rest(Duration::from_secs(2));
    let errors = stage.run.store.list(&format!("/local/domain/{}/error", DRIVER.0));
    let now = stage.run.baseline(DRIVER);
    let left = Baseline { nodes: now.nodes - errors.len().saturating_sub(1), ..now };
    assert_eq!(left, clean, "something is left\n{}", stage.run.scene());
    stage.assert_few_notes();
    assert_eq!(stage.run.tapdom().expect("it runs").held().pages, 0, "pages of requests are still out");
    report.add(&Report::of(&stage.run));
    report
}

/// One offer with a slip, the first of a new disk or of a driver that comes back, and what it does once it is served.
fn offer(stage: &mut Stage, guest: &Guest, first: bool) {
    let slip = Slip::any(&mut stage.run.random);
    let before = {
        let mut front = guest.front.borrow_mut();
        front.options.slip = Some(slip);
        front.options.shares_ids = stage.run.random.one_in(2);
        front.refusal = None;
        front.tally
    };
    if first {
        let attached = stage.run.attach(&guest.vbd);
        // A disk whose first offer is refused may have left InitWait before libxl has looked; it is there all the same.
        let fair = attached == Ok(()) || !slip.is_harmless() && attached == Err(Failure::NoState(2));
        assert!(fair, "{slip:?}: {attached:?}\n{}", stage.run.scene());
    } else {
        guest.front.borrow_mut().close(Some(Style::Linux));
    }
    let front = guest.front.clone();
    let served =
        stage.run.until(PATIENCE, |_| front.borrow().tally.connects > before.connects && front.borrow().at_rest());
    assert!(served, "{slip:?}: it stays in {:?}\n{}", front.borrow().phase(), stage.run.scene());
    let after = front.borrow().tally;
    let refusal = front.borrow_mut().refusal.take();
    if after.refused > before.refused {
        assert!(!slip.is_harmless(), "{slip:?} is refused: {refusal:?}\n{}", stage.run.scene());
        let text = refusal.unwrap_or_default();
        let sound = !text.is_empty() && text.len() <= 300 && text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        assert!(sound, "{slip:?} is refused with the text {text:?}");
        marks::hit(slip.mark());
    }
    let tries = after.refused - before.refused + after.connects - before.connects;
    assert!(tries <= 2, "{slip:?}: {tries} offers until one was served\n{}", stage.run.scene());
    let depth = stage.run.random.pick(&[2, 8, 32]);
    front.borrow_mut().work(Workload { depth, sectors_max: 88, ..Workload::mixed(40) });
    stage.run.at_rest(&front);
}
