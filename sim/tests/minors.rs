//! Images held, exchanged and closed under the rings that are served from them.

use protocol::errno::Errno;
use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use drivers::format::vhd::make::{Form, New};
use kernel::Shared;
use kernel::minor::{By, MINORS_MAX};
use protocol::session::State;
use sim::disk::{Disk, Model};
use sim::frontend::{Phase, Workload};
use sim::handle::SimXen;
use sim::image::lay;
use sim::run::{DRIVER, Run, seeds};
use sim::stage::{GUEST, Guest, Stage, XVDA};
use sim::toolstack::Vbd;
use xen::port::DomId;

type Domain = Rc<Shared<SimXen>>;

fn loaded(stage: &mut Stage, guest: &Guest) {
    stage.attach(guest);
    guest.front.borrow_mut().work(Workload::mixed(1_500));
    let front = guest.front.clone();
    assert!(stage.run.until(Duration::from_secs(20), |_| front.borrow().tally.writes > 20));
}

fn answered(guest: &Guest) -> u32 {
    let tally = guest.front.borrow().tally;
    tally.reads + tally.writes + tally.flushes + tally.discards
}

#[test]
fn a_paused_disk_answers_nothing_and_touches_no_store_and_goes_on() {
    seeds(0..8, |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let guest = if seed % 2 == 0 { stage.on_lower(GUEST) } else { stage.on_ram(GUEST, 2048) };
        loaded(&mut stage, &guest);
        let number = stage.minor();
        assert!(stage.pause(number));
        let (before, served) = (answered(&guest), stage.back().borrow().served);
        stage.run.rest(Duration::from_secs(3));
        let in_flight = guest.front.borrow().in_flight();
        // What was answered before the pause may be noticed after it.
        let late = answered(&guest) - before;
        stage.run.rest(Duration::from_secs(3));
        assert_eq!(answered(&guest), before + late, "a held disk answered");
        assert_eq!(stage.back().borrow().served, served, "the store was touched");
        assert!(in_flight > 0, "the guest goes on asking");
        // Pausing what is paused changes nothing.
        assert!(stage.pause(number));
        assert_eq!(stage.resume(number, None), Ok(()));
        stage.run.at_rest_within(&guest.front, Duration::from_secs(2000));
        stage.verify(&guest);
        stage.detach(&guest);
        stage.assert_clean();
        assert!(stage.run.tapdom().unwrap().shared().minors.all().is_empty());
    });
}

/// Whichever way a request goes, it is in flight until the lower disk has answered it.
#[test]
fn a_pause_waits_for_what_a_lower_disk_was_asked() {
    seeds(0..8, |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let guest = stage.on_lower(GUEST);
        guest.front.borrow_mut().options.persistent = seed % 2 == 0;
        stage.attach(&guest);
        stage.back().borrow_mut().options.stuck = true;
        guest.front.borrow_mut().work(Workload { sectors_max: 8, ..Workload::reading(20) });
        stage.run.rest(Duration::from_millis(100));
        let number = stage.minor();
        let (shared, paused) = (stage.run.tapdom().unwrap().shared().clone(), Rc::new(Cell::new(false)));
        let done = paused.clone();
        shared.clone().domain.exec.spawn(async move {
            let minor = shared.minors.get(number).expect("attached");
            done.set(minor.pause(&shared.domain).await.expect("a store that works"));
        });
        stage.run.nudge();
        stage.run.rest(Duration::from_secs(1));
        assert!(!paused.get(), "paused, and the lower disk still has requests");
        stage.back().borrow_mut().options.stuck = false;
        stage.run.world.stir();
        assert!(stage.run.until(Duration::from_secs(5), |_| paused.get()), "{}", stage.run.scene());
        assert_eq!(stage.resume(number, None), Ok(()));
        stage.run.at_rest(&guest.front);
        stage.detach(&guest);
        stage.assert_clean();
    });
}

#[test]
fn another_image_of_the_same_size_takes_its_place_under_load() {
    seeds(0..6, |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let guest = stage.on_lower(GUEST);
        loaded(&mut stage, &guest);
        let number = stage.minor();
        assert!(stage.pause(number));
        let refused = stage.resume(number, Some("ram:512K")).unwrap_err();
        assert_eq!(refused.errno, Errno::EMEDIUMTYPE, "{refused}");
        let state = |stage: &Stage| stage.run.tapdom().unwrap().shared().minors.get(number).unwrap().state();
        assert_eq!(state(&stage), State::ResumeFailed);
        // From here on it is another disk.
        stage.run.rest(Duration::from_millis(10));
        guest.model.borrow_mut().doubt(0, 2048);
        assert_eq!(stage.resume(number, Some("ram:1M")), Ok(()));
        guest.front.borrow_mut().stop();
        stage.run.at_rest(&guest.front);
        guest.front.borrow_mut().work(Workload::mixed(200));
        stage.run.at_rest(&guest.front);
        stage.verify(&guest);
        stage.detach(&guest);
        stage.assert_clean();
    });
}

#[test]
fn a_disk_closed_under_load_drains_and_its_guest_is_told() {
    seeds(0..8, |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let guest = stage.on_lower(GUEST);
        guest.front.borrow_mut().options.errors = true;
        loaded(&mut stage, &guest);
        let number = stage.minor();
        stage.inside(async move |shared| shared.minors.get(number).expect("attached").close(false).await);
        let front = guest.front.clone();
        let away = |front: &sim::run::SharedFrontend| front.borrow().phase() != Phase::Connected;
        assert!(stage.run.until(Duration::from_secs(5), |_| away(&front)), "{}", stage.run.scene());
        stage.detach(&guest);
        stage.attach(&guest);
        stage.verify(&guest);
        stage.detach(&guest);
        // The text of the error stays in xenstore, all else is gone.
        let tapdom = stage.run.tapdom().unwrap();
        assert!(tapdom.shared().minors.all().is_empty());
        let held = tapdom.held();
        assert_eq!((held.pages, held.mappings, held.nodes), (0, 0, 0));
    });
}

#[test]
fn minors_have_the_numbers_that_blktap_has() {
    let mut stage = Stage::bare(1);
    let number = |stage: &mut Stage, wanted| {
        let attached =
            async move |shared: Domain| shared.minors.attach(wanted, By::Message).map(|minor| minor.number());
        stage.inside(attached)
    };
    assert_eq!(number(&mut stage, Some(MINORS_MAX - 1)), Ok(MINORS_MAX - 1));
    let beyond = number(&mut stage, Some(MINORS_MAX)).unwrap_err();
    assert_eq!((beyond.errno, &*beyond.text), (Errno::EINVAL, "minor 16384: the last is 16383"));
    assert_eq!(number(&mut stage, Some(MINORS_MAX - 1)).unwrap_err().errno, Errno::EEXIST);
    assert_eq!(number(&mut stage, None), Ok(0));
}

#[test]
fn a_minor_that_a_message_made_is_attached_by_its_number() {
    seeds(0..6, |seed| {
        let mut stage = Stage::bare(seed);
        let opened = stage.inside(async move |shared| {
            let minor = shared.minors.attach(Some(7), By::Message).unwrap();
            minor.open(&shared.lowers, "ram:1M", false).await
        });
        assert_eq!(opened, Ok(()));
        let model = sim::disk::Model::zeroes(2048);
        let guest = stage.guest(Vbd::new(sim::run::DRIVER, GUEST, "minor:7"), &model);
        for _ in 0..2 {
            stage.attach(&guest);
            guest.front.borrow_mut().work(Workload::mixed(50));
            stage.run.at_rest(&guest.front);
            stage.detach(&guest);
        }
        stage.assert_clean();
        let wrong = stage.guest(Vbd::new(sim::run::DRIVER, DomId(6), "minor:8"), &model);
        assert!(stage.run.attach(&wrong.vbd).is_err());
    });
}

#[test]
fn a_vhd_is_open_for_one_writer_and_serves_a_guest_through_pauses() {
    seeds(0..8, |seed| {
        let mut run = Run::new(seed);
        let disk = Disk::random(2048, &mut run.random);
        let new = New { id: [5; 16], sectors: 1200, timestamp: 0, form: Form::Dynamic(64) };
        lay(&mut disk.borrow_mut(), &new);
        run.lower(XVDA, &disk);
        let mut stage = Stage::boot(run);
        let guest = stage.guest(Vbd::new(DRIVER, GUEST, "vhd:/dev/xvda"), &Model::zeroes(1200));
        loaded(&mut stage, &guest);
        let number = stage.minor();
        let other = |stage: &mut Stage, read_only| {
            stage.inside(async move |shared| {
                let minor = shared.minors.attach(Some(900), By::Message).expect("a free number");
                let opened = minor.open(&shared.lowers, "vhd:/dev/xvda", read_only).await;
                if opened.is_ok() {
                    minor.close(false).await;
                }
                shared.minors.detach(900);
                opened
            })
        };
        for read_only in [false, true] {
            let refused = other(&mut stage, read_only).expect_err("the guest writes it");
            assert!(refused.errno == Errno::EBUSY && refused.text.contains("/dev/xvda"), "{refused}");
        }
        for _ in 0..2 {
            assert!(stage.pause(number));
            // While it is paused the image is nobody's: a tool may be at it.
            assert_eq!(other(&mut stage, false), Ok(()));
            stage.resume(number, None).expect("the same image");
            stage.run.rest(Duration::from_secs(1));
        }
        stage.run.at_rest(&guest.front);
        stage.detach(&guest);
        assert_eq!(other(&mut stage, false), Ok(()));
        sim::vhd::check(disk.borrow().bytes()).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    });
}

/// A client that goes while its PAUSE makes an image durable leaves nothing taken: the image goes on, and is paused next time.
#[test]
fn a_pause_that_is_called_off_while_an_image_settles_holds_nothing() {
    seeds(0..8, |seed| {
        let mut run = Run::new(seed);
        let disk = Disk::random(2048, &mut run.random);
        lay(&mut disk.borrow_mut(), &New { id: [5; 16], sectors: 1200, timestamp: 0, form: Form::Dynamic(64) });
        let back = run.lower(XVDA, &disk);
        let mut stage = Stage::boot_over(run, disk.clone(), back);
        let guest = stage.guest(Vbd::new(DRIVER, GUEST, "vhd:/dev/xvda"), &Model::zeroes(1200));
        stage.attach(&guest);
        // Writes and no flushes: there is something to settle.
        guest.front.borrow_mut().work(Workload {
            flushes: 0,
            ordered: 0,
            discards: 0,
            writes: 100,
            ..Workload::mixed(40)
        });
        stage.run.at_rest(&guest.front);
        let number = stage.minor();
        stage.back().borrow_mut().options.stuck = true;
        let called_off = stage.inside(async move |shared| {
            let minor = shared.minors.get(number).expect("attached");
            let mut pause = Box::pin(minor.pause(&shared.domain));
            let waits = pause.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending();
            shared.domain.sleep(Duration::from_millis(50)).await;
            drop(pause);
            waits && minor.state() == State::Open
        });
        assert!(called_off, "a store that is stuck settles nothing");
        stage.back().borrow_mut().options.stuck = false;
        stage.run.world.stir();
        guest.front.borrow_mut().work(Workload { flushes: 20, ..Workload::mixed(60) });
        stage.run.at_rest(&guest.front);
        assert!(stage.pause(number));
        stage.resume(number, None).expect("the same image");
        stage.detach(&guest);
        sim::vhd::check(disk.borrow().bytes()).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    });
}

/// A PAUSE that was overtaken has nothing to say any more, also if it is dropped late: the PAUSE of now is another one.
#[test]
fn a_pause_that_was_overtaken_does_not_end_the_next_one() {
    let mut stage = Stage::with_lower(3, 2048);
    let guest = stage.on_lower(GUEST);
    guest.front.borrow_mut().options.errors = true;
    stage.attach(&guest);
    stage.back().borrow_mut().options.stuck = true;
    guest.front.borrow_mut().work(Workload::reading(20));
    stage.run.rest(Duration::from_millis(100));
    let number = stage.minor();
    let states = stage.inside(async move |shared| {
        let minor = shared.minors.get(number).expect("attached");
        let begun = || {
            let mut pause = Box::pin(minor.pause(&shared.domain));
            assert!(
                pause.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending(),
                "requests are in flight"
            );
            pause
        };
        let first = begun();
        minor.close(true).await;
        minor.open(&shared.lowers, "ram:1M", false).await.expect("there is memory");
        let second = begun();
        drop(first);
        let between = minor.state();
        drop(second);
        [between, minor.state()]
    });
    assert_eq!(states, [State::Pausing, State::Open]);
}
