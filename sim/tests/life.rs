//! A disk's life: attached, detached, destroyed under load, come back to, over and over; nothing is left.

use std::time::Duration;

use sim::frontend::{Phase, Style, Workload};
use sim::journal;
use sim::run::{DRIVER, Run, seeds};
use sim::stage::{GUEST, Stage, XVDA};
use sim::toolstack::{Failure, Kind, Vbd};
use sim::world::DOM0;
use xen::port::{DomId, Stop};

#[test]
fn it_boots_and_is_shut_down() {
    seeds(0..20, |seed| {
        let mut stage = Stage::bare(seed);
        let (how, stop) = stage.run.random.pick(&[("poweroff", Stop::Poweroff), ("reboot", Stop::Reboot)]);
        stage.run.toolstack.borrow_mut().shutdown(DRIVER, how);
        let gone = |run: &Run| run.stopped().is_some();
        assert!(stage.run.until(Duration::from_secs(20), gone), "{}", stage.run.scene());
        assert_eq!(stage.run.stopped(), Some(stop));
    });
}

/// Who looks at xenstore or at the console sees what the domain holds.
#[test]
fn it_tells_what_it_holds() {
    let mut stage = Stage::bare(1);
    assert!(journal::tells("3 of 32768 KiB of memory in use"), "{}", stage.run.scene());
    let client = stage.run.store.client(DRIVER);
    let told = |vbds: usize| client.read("data/counters").is_ok_and(|line| line.starts_with(&format!("vbds={vbds} ")));
    assert!(told(0), "{}", stage.run.scene());
    for (vbds, id) in [(1, GUEST), (2, DomId(6))] {
        let guest = stage.on_ram(id, 1024);
        stage.attach(&guest);
        stage.run.rest(Duration::from_secs(2));
        assert!(told(vbds), "{}", stage.run.scene());
    }
}

#[test]
fn attached_used_and_detached() {
    seeds(0..20, |seed| {
        let mut stage = Stage::bare(seed);
        let guest = stage.on_ram(GUEST, 4096);
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload::mixed(60));
        stage.run.at_rest(&guest.front);
        stage.detach(&guest);
        stage.assert_clean();
    });
}

#[test]
fn detached_in_the_middle_of_its_work() {
    seeds(0..20, |seed| {
        let mut stage = Stage::with_lower(seed, 4096);
        let guest = stage.on_lower(GUEST);
        guest.front.borrow_mut().options.abrupt = seed % 2 == 0;
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload::writing(10_000));
        let some = stage.run.random.between(1, 60) as u32;
        let front = guest.front.clone();
        assert!(stage.run.until(Duration::from_secs(20), |_| front.borrow().tally.writes >= some));
        stage.detach(&guest);
        stage.assert_clean();
    });
}

#[test]
fn detached_at_any_moment_of_being_attached() {
    seeds(0..100, |seed| {
        let mut stage = Stage::bare(seed);
        let guest = stage.on_ram(GUEST, 1024);
        stage.run.toolstack.borrow_mut().attach(&guest.vbd);
        for _ in 0..stage.run.random.below(200) {
            stage.run.step();
        }
        let detached = stage.run.toolstack.borrow_mut().detach(&guest.vbd);
        let (dom0, state) = (stage.run.store.client(DOM0), format!("{}/state", guest.vbd.backend_dir()));
        stage.run.until(Duration::from_secs(60), |run| {
            // What the toolstack asked for stands until it is done.
            let state = dom0.read(&state).ok();
            assert!(matches!(state.as_deref(), None | Some("5" | "6")), "{state:?}\n{}", run.scene());
            run.toolstack.borrow().result(detached).is_some()
        });
        assert_eq!(stage.run.toolstack.borrow().result(detached), Some(Ok(())));
        stage.assert_clean();
    });
}

#[test]
fn destroyed_in_the_middle_of_writes_and_its_number_used_again() {
    seeds(0..20, |seed| {
        let mut stage = Stage::with_lower(seed, 4096);
        let guest = stage.on_lower(GUEST);
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload::writing(10_000));
        let some = stage.run.random.between(1, 60) as u32;
        let front = guest.front.clone();
        assert!(stage.run.until(Duration::from_secs(20), |_| front.borrow().tally.writes >= some));
        assert_eq!(stage.run.destroy(GUEST), Ok(()), "{}", stage.run.scene());
        assert_eq!(stage.run.world.life(GUEST), None, "a zombie is left");
        stage.assert_clean();

        let model = guest.model.clone();
        let next = stage.guest(Vbd::new(DRIVER, GUEST, "aio:/dev/xvda"), &model);
        stage.attach(&next);
        stage.verify(&next);
        stage.detach(&next);
        stage.assert_clean();
    });
}

#[test]
fn a_guest_that_vanishes_without_a_toolstack_harms_nobody() {
    seeds(0..20, |seed| {
        let mut stage = Stage::bare(seed);
        let guest = stage.on_ram(GUEST, 4096);
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload::mixed(10_000));
        let front = guest.front.clone();
        assert!(stage.run.until(Duration::from_secs(20), |_| front.borrow().tally.writes > 20));
        // The hypervisor kills it at once; xenstore hears of it later.
        stage.run.world.destroy(GUEST);
        stage.run.rest(Duration::from_millis(50));
        assert_eq!(stage.run.destroy(GUEST), Ok(()), "{}", stage.run.scene());
        assert_eq!(stage.run.world.life(GUEST), None, "a zombie is left");
        stage.assert_clean();
    });
}

#[test]
fn a_guest_comes_back_after_its_firmware_or_a_crash() {
    seeds(0..20, |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let guest = stage.on_lower(GUEST);
        let firmware = seed % 2 == 0;
        {
            let mut front = guest.front.borrow_mut();
            front.options.style = if firmware { Style::Ovmf } else { Style::Linux };
            front.options.abrupt = !firmware;
        }
        stage.attach(&guest);
        for round in 2..5 {
            guest.front.borrow_mut().work(Workload { sectors_max: 88, ..Workload::mixed(200) });
            let front = guest.front.clone();
            if firmware {
                stage.run.at_rest(&front);
            } else {
                stage.run.until(Duration::from_millis(20), |_| front.borrow().tally.writes > 20 * round);
            }
            front.borrow_mut().close(Some(Style::Linux));
            stage.run.until(Duration::from_secs(10), |_| front.borrow().tally.connects == round);
            stage.run.connected(&front);
        }
        stage.verify(&guest);
        guest.front.borrow_mut().options.abrupt = false;
        stage.detach(&guest);
        stage.assert_clean();
    });
}

#[test]
fn a_resumed_guest_does_not_wait_to_be_asked() {
    seeds(0..20, |seed| {
        let mut stage = Stage::bare(seed);
        let guest = stage.on_ram(GUEST, 1024);
        guest.front.borrow_mut().options.style = Style::Resumed;
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload::mixed(50));
        stage.run.at_rest(&guest.front);
        stage.detach(&guest);
        stage.assert_clean();
    });
}

#[test]
fn disks_that_were_there_before_it_booted() {
    seeds(0..20, |seed| {
        let mut run = Run::new(seed);
        let model = sim::disk::Model::zeroes(1024);
        let front = run.frontend(GUEST, XVDA, &model);
        let vbd = Vbd::new(DRIVER, GUEST, "ram:512K");
        run.toolstack.borrow_mut().place(&vbd);
        run.boot();
        run.connected(&front);
        front.borrow_mut().work(Workload::mixed(50));
        run.at_rest(&front);
        assert_eq!(run.detach(&vbd), Ok(()), "{}", run.scene());
    });
}

#[test]
fn fifty_times_over() {
    seeds(0..2, |seed| {
        let mut stage = Stage::with_lower(seed, 1024);
        let guest = stage.on_lower(GUEST);
        for _ in 0..50 {
            stage.attach(&guest);
            guest.front.borrow_mut().work(Workload { sectors_max: 16, ..Workload::mixed(10) });
            stage.run.at_rest(&guest.front);
            stage.detach(&guest);
        }
        stage.assert_clean();
    });
}

#[test]
fn a_target_that_cannot_be_opened_fails_clearly_and_alone() {
    let long = format!("ram:{}", "9".repeat(1900));
    let targets =
        ["", "ram:", "nonsense", "vhd:/dev/xvda", "aio:/dev/xvdz", "ram:1", "ram:99999999999G", "aio:\u{1b}[2J", &long];
    seeds(0..targets.len() as u64 * 2, |seed| {
        let mut stage = Stage::bare(seed);
        let good = stage.on_ram(DomId(6), 1024);
        stage.attach(&good);
        let model = sim::disk::Model::zeroes(8);
        let target = targets[seed as usize % targets.len()];
        let vbd = Vbd { kind: Kind::Vbd, ..Vbd::new(DRIVER, GUEST, target) };
        let bad = stage.guest(vbd, &model);
        let attached = stage.run.attach(&bad.vbd);
        assert_eq!(attached, Err(Failure::NoState(2)), "{target:?} was attached");
        assert_ne!(bad.front.borrow().phase(), Phase::Connected);
        let told = stage.run.store.client(DRIVER).read(&format!("error/backend/vbd/5/{XVDA}/error"));
        assert!(told.as_ref().is_ok_and(|text| text.bytes().all(|byte| (0x20..0x7f).contains(&byte))), "{told:?}");
        good.front.borrow_mut().work(Workload::mixed(30));
        stage.run.at_rest(&good.front);
        assert_eq!(stage.run.destroy(GUEST), Ok(()), "{}", stage.run.scene());
        stage.detach(&good);
        assert_eq!(stage.run.baseline(DRIVER).holdings.mappings, 0);
    });
}
