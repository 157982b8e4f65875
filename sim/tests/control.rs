//! tapdisk's messages over vchan: what each does, and what it answers, byte by byte.

use std::time::Duration;

use drivers::format::vhd::make::{Form, New};
use sim::control::{Control, Dialect, Message, events, id};
use sim::frontend::Workload;
use sim::image::lay;
use sim::run::{DRIVER, Run, seeds};
use sim::stage::{GUEST, Stage};
use sim::toolstack::Vbd;
use sim::world::DOM0;
use xen::port::DomId;

const BOTH: [Dialect; 2] = [Dialect::Rfc, Dialect::Blktap];
const SECTORS: u64 = 2048;

fn join(stage: &mut Stage, dialect: Dialect) -> Control {
    Control::join(&mut stage.run, dialect)
}

/// What LIST says: minor, state, path.
fn list(run: &mut Run, control: &Control) -> Vec<(i32, u32, String)> {
    let mut answer = control.plain(run, id::LIST, 0xffff);
    let mut all = Vec::new();
    while answer.word(0) > 0 {
        assert_eq!(answer.id(), id::LIST + 1);
        all.push((answer.word(0) as i32, answer.word(4) as i32, answer.word(8), answer.text(12)));
        answer = control.answer(run);
    }
    assert_eq!((answer.word(4) as i32, answer.word(8), answer.text(12)), (-1, 0, String::new()));
    let remaining: Vec<_> = all.iter().map(|vbd| vbd.0).collect();
    assert_eq!(remaining, (1..=all.len() as i32).rev().collect::<Vec<_>>());
    all.into_iter().map(|(_, minor, state, path)| (minor, state, path)).collect()
}

fn stats(run: &mut Run, control: &Control, cookie: u16) -> String {
    let answer = control.plain(run, id::STATS, cookie);
    assert_eq!(answer.id(), id::STATS + 1);
    let bytes = control.receive(run, answer.long(8) as usize);
    String::from_utf8(bytes).expect("JSON is text")
}

/// The refusal, in the form of the dialect.
fn refused(control: &Control, run: &mut Run, message: &Message, errno: i32, says: &str) {
    let answer = control.ask(run, message);
    let own = control.dialect == Dialect::Rfc
        && [id::ATTACH, id::DETACH, id::CLOSE, id::PAUSE, id::RESUME, 26, 28].contains(&message.id());
    let form = if own { message.id() + 1 } else { id::ERROR };
    let (number, text) = answer.response();
    assert_eq!((answer.id(), number), (form, errno), "{text}");
    assert_eq!(answer.cookie(), message.cookie());
    assert!(text.contains(says), "{text:?} does not say {says:?}");
}

#[test]
fn a_disk_lives_by_messages_in_both_dialects() {
    seeds(0..6, |seed| {
        let mut stage = Stage::with_control(seed, SECTORS);
        let dialect = BOTH[seed as usize % 2];
        let control = join(&mut stage, dialect);
        let run = &mut stage.run;
        let answer = control.plain(run, id::PID, 77);
        assert_eq!((answer.id(), answer.cookie(), answer.word(0)), (id::PID + 1, 77, u32::from(DRIVER.0)));
        assert_eq!(list(run, &control), []);
        refused(&control, run, &Message::new(dialect, id::PAUSE, 3), 19, "minor 3: no such minor");
        control.done(run, &Message::new(dialect, id::ATTACH, 3));
        refused(&control, run, &Message::new(dialect, id::ATTACH, 3), 17, "attached already");
        refused(&control, run, &Message::new(dialect, dialect.info(), 3), 19, "no image");
        let open = Message::params(dialect, id::OPEN, 3, 0, "aio:/dev/xvda");
        let opened = control.done(run, &open);
        assert_eq!((opened.long(0), opened.word(8), opened.word(12)), (SECTORS, 512, 0));
        refused(&control, run, &open, 114, "open already");
        assert_eq!(list(run, &control), [(3, 0, "aio:/dev/xvda".into())]);
        control.done(run, &Message::new(dialect, id::PAUSE, 3));
        assert_eq!(list(run, &control), [(3, 0x2a, "aio:/dev/xvda".into())]);
        let info = control.plain(run, dialect.info(), 3);
        assert_eq!((info.id(), info.long(0)), (dialect.info() + 1, SECTORS), "told while paused too");
        let wrong = Message::params(dialect, id::RESUME, 3, 0, "ram:512K");
        refused(&control, run, &wrong, 124, "1024 sectors, but minor 3 has 2048");
        assert_eq!(list(run, &control), [(3, 0x22a, "ram:512K".into())]);
        control.done(run, &Message::params(dialect, id::RESUME, 3, 0, "aio:/dev/xvda"));
        assert_eq!(list(run, &control), [(3, 0, "aio:/dev/xvda".into())]);
        refused(&control, run, &Message::new(dialect, id::DETACH, 3), 16, "still open");
        control.done(run, &Message::new(dialect, id::CLOSE, 3));
        assert_eq!(list(run, &control), [(3, 0x2, String::new())]);
        control.done(run, &Message::new(dialect, id::DETACH, 3));
        assert_eq!(list(run, &control), []);
        refused(&control, run, &Message::new(dialect, id::LIST + 1, 0), 22, "not a request");
        control.close();
        stage.assert_clean();
    });
}

#[test]
fn every_flag_works_or_is_refused_by_name() {
    let mut stage = Stage::with_control(1, SECTORS);
    for dialect in BOTH {
        let control = join(&mut stage, dialect);
        let run = &mut stage.run;
        control.done(run, &Message::new(dialect, id::ATTACH, 1));
        let mut names = vec![
            (0x004, "ADD_CACHE"),
            (0x008, "VHD_INDEX"),
            (0x020, "ADD_LCACHE"),
            (0x040, "REUSE_PRT"),
            (0x080, "SECONDARY"),
            (0x100, "STANDBY"),
        ];
        match dialect {
            Dialect::Rfc => names.push((0x010, "LOG_DIRTY")),
            Dialect::Blktap => names.push((0x200, "NO_O_DIRECT")),
        }
        for (flag, name) in names {
            let open = Message::params(dialect, id::OPEN, 1, flag, "ram:1M");
            refused(&control, run, &open, 95, name);
        }
        if dialect == Dialect::Blktap {
            // The path of the log and the key come after the message.
            let mut open = Message::params(dialect, id::OPEN, 1, 0x410, "ram:1M");
            open.0.extend([b'/'; 255].iter().chain(&[0, 32]).chain(&[7; 32]));
            refused(&control, run, &open, 95, "ADD_LOG");
        }
        let unknown = Message::params(dialect, id::OPEN, 1, 0x8000_0000, "ram:1M");
        refused(&control, run, &unknown, 22, "0x80000000");
        let parent = Message::params(dialect, id::OPEN, 1, 0, "ram:1M").put(268, &[0; 4]);
        refused(&control, run, &parent, 95, "REUSE_PRT");
        refused(&control, run, &Message::params(dialect, id::OPEN, 1, 1, "ram:1M"), 95, "SHARED");
        let opened = control.done(run, &Message::params(dialect, id::OPEN, 1, 3, "aio:/dev/xvda"));
        assert_eq!(opened.word(12), 4, "read-only");
        control.done(run, &Message::new(dialect, id::CLOSE, 1));
        control.done(run, &Message::new(dialect, id::DETACH, 1));
        control.close();
    }
    stage.assert_clean();
}

#[test]
fn a_disk_opened_by_message_is_attached_by_xl_and_one_attached_by_xl_is_listed() {
    seeds(0..6, |seed| {
        let mut stage = Stage::with_control(seed, SECTORS);
        let control = join(&mut stage, Dialect::Blktap);
        control.create(&mut stage.run, 9, "ram:1M");
        let model = sim::disk::Model::zeroes(SECTORS);
        let by_minor = stage.guest(Vbd::new(DRIVER, GUEST, "minor:9"), &model);
        let by_xl = stage.on_lower(DomId(6));
        stage.attach(&by_minor);
        stage.attach(&by_xl);
        for guest in [&by_minor, &by_xl] {
            guest.front.borrow_mut().work(Workload::mixed(100));
            stage.run.at_rest(&guest.front);
        }
        let run = &mut stage.run;
        assert_eq!(list(run, &control), [(0, 0, "aio:/dev/xvda".into()), (9, 0, "ram:1M".into())]);
        let json = stats(run, &control, 9);
        let tally = by_minor.front.borrow().tally;
        assert!(json.starts_with("{ \"name\": \"ram:1M\", \"secs\": [ "), "{json}");
        assert!(json.contains(&format!("\"write\": {{ \"count\": {}, ", tally.writes)), "{json}");
        assert!(
            json.contains("\"xenbus\": { \"pool\": \"td-xenio-default\", \"domid\": 5, \"devid\": 51712"),
            "{json}"
        );
        let all = stats(run, &control, 0xffff);
        assert!(all.starts_with("[ { \"name\": \"aio:/dev/xvda\"") && all.ends_with(" ]"), "{all}");
        assert!(all.contains("\"domid\": 6") && all.contains("\"domid\": 5"), "{all}");
        refused(&control, run, &Message::new(Dialect::Blktap, id::DETACH, 9), 16, "still open");
        refused(&control, run, &Message::new(Dialect::Blktap, id::EXIT, 0), 16, "disks are attached");
        stage.detach(&by_minor);
        stage.detach(&by_xl);
        let run = &mut stage.run;
        assert_eq!(list(run, &control).len(), 1, "a minor of a message stays");
        control.done(run, &Message::new(Dialect::Blktap, id::CLOSE, 9));
        control.done(run, &Message::new(Dialect::Blktap, id::DETACH, 9));
        control.close();
        stage.assert_clean();
    });
}

#[test]
fn pause_and_close_under_load_answer_and_a_frontend_that_messages_connect_is_served() {
    seeds(0..10, |seed| {
        let mut stage = Stage::with_control(seed, SECTORS);
        let dialect = BOTH[seed as usize % 2];
        let control = join(&mut stage, dialect);
        control.create(&mut stage.run, 4, "aio:/dev/xvda");
        let model = sim::disk::Model::of(stage.disk().borrow().bytes());
        // Somebody else does the handshake: xenio, in the seed's words. Here it is played by the test.
        let front = stage.run.frontend(GUEST, 51712, &model);
        let dom0 = stage.run.store.client(DOM0);
        let (home, back) = ("/local/domain/5/device/vbd/51712", "/local/domain/0/backend/vbd3/5/51712");
        let put = |node: &str, value: &str| dom0.write(node, value).unwrap();
        dom0.mkdir(back).unwrap();
        dom0.permit(back, &["n0", "r5"]).unwrap();
        dom0.mkdir(home).unwrap();
        dom0.permit(home, &["n5", "r1"]).unwrap();
        put(&format!("{back}/state"), "2");
        put(&format!("{home}/backend"), back);
        put(&format!("{home}/backend-id"), "1");
        put(&format!("{home}/state"), "1");
        let number = |key: &str| dom0.number(&format!("{home}/{key}")).map(|number| number as u32);
        assert!(stage.run.until(Duration::from_secs(5), |_| number("state") == Some(3)), "{}", stage.run.scene());
        let proto = match dom0.read(&format!("{home}/protocol")).as_deref() {
            Ok("x86_32-abi") => 2,
            _ => 3,
        };
        let (gref, port) = (number("ring-ref").unwrap(), number("event-channel").unwrap());
        let run = &mut stage.run;
        let connect = Message::blkif(dialect, 4, GUEST, 51712, &[gref], proto, port);
        refused(
            &control,
            run,
            &Message::gone(dialect, GUEST, 51712),
            if seed % 2 == 0 { 3 } else { 19 },
            "no such ring",
        );
        control.done(run, &connect);
        refused(&control, run, &connect, if seed % 2 == 0 { 17 } else { 114 }, "connected already");
        let info = control.plain(run, dialect.info(), 4);
        for (key, value) in [("sectors", info.long(0)), ("sector-size", info.word(8).into()), ("info", 0)] {
            put(&format!("{back}/{key}"), &value.to_string());
        }
        put(&format!("{back}/state"), "4");
        run.connected(&front);
        front.borrow_mut().work(Workload { sectors_max: 88, ..Workload::mixed(2000) });
        let loaded = run.until(Duration::from_secs(20), |_| front.borrow().tally.writes > 20);
        assert!(loaded, "{}", run.scene());
        control.done(run, &Message::new(dialect, id::PAUSE, 4));
        assert!(run.until(Duration::from_secs(5), |_| front.borrow().in_flight() > 0));
        control.done(run, &Message::params(dialect, id::RESUME, 4, 0, ""));
        let answered = front.borrow().tally.writes;
        assert!(run.until(Duration::from_secs(20), |_| front.borrow().tally.writes > answered + 10));
        if seed % 3 == 0 {
            // Closed under load: the ring goes, and what was in flight with it.
            front.borrow_mut().silent = true;
            control.done(run, &Message::new(dialect, id::CLOSE, 4));
            assert_eq!(run.world.mapped_by(DRIVER, GUEST), 0, "the ring is let go of");
        } else {
            front.borrow_mut().stop();
            run.at_rest(&front);
            control.done(run, &Message::gone(dialect, GUEST, 51712));
            assert_eq!(run.world.mapped_by(DRIVER, GUEST), 0, "the ring is let go of");
            control.done(run, &Message::new(dialect, id::CLOSE, 4));
            model.borrow().compare(stage.disk().borrow().bytes()).expect("the disk is what the guest wrote");
        }
        control.done(&mut stage.run, &Message::new(dialect, id::DETACH, 4));
        control.close();
        stage.assert_clean();
    });
}

#[test]
fn a_guest_that_dies_leaves_no_ring_that_a_message_connected() {
    let mut stage = Stage::with_control(3, SECTORS);
    let control = join(&mut stage, Dialect::Blktap);
    control.create(&mut stage.run, 0, "ram:1M");
    let model = sim::disk::Model::zeroes(SECTORS);
    let _front = stage.run.frontend(GUEST, 51712, &model);
    let page = xen::page::PageRef::alone().unwrap();
    let world = stage.run.world.clone();
    let gref = world.lend(GUEST, &page, DRIVER, xen::port::Access::ReadWrite).unwrap();
    let port = world.alloc_unbound(GUEST, DRIVER).unwrap();
    let run = &mut stage.run;
    control.done(run, &Message::blkif(Dialect::Blktap, 0, GUEST, 51712, &[gref.0], 3, port.0));
    assert_eq!(world.mapped_by(DRIVER, GUEST), 1);
    world.destroy(GUEST);
    run.rest(Duration::from_secs(5));
    assert_eq!(world.life(GUEST), None, "it is a zombie");
    refused(&control, run, &Message::gone(Dialect::Blktap, GUEST, 51712), 19, "no such ring");
    control.done(run, &Message::new(Dialect::Blktap, id::CLOSE, 0));
    control.done(run, &Message::new(Dialect::Blktap, id::DETACH, 0));
    control.close();
    stage.assert_clean();
}

#[test]
fn requests_in_pieces_and_several_at_once_are_answered_in_order() {
    seeds(0..10, |seed| {
        let mut stage = Stage::with_control(seed, SECTORS);
        let control = join(&mut stage, Dialect::Blktap);
        let run = &mut stage.run;
        let all: Vec<u8> = (0..7).flat_map(|cookie| Message::new(Dialect::Blktap, id::PID, cookie).0).collect();
        let mut rest = &all[..];
        while !rest.is_empty() {
            let some = run.random.between(1, rest.len().min(900) as u64) as usize;
            control.send(run, &rest[..some]);
            rest = &rest[some..];
            let pause = run.random.pick(&[0, 0, 1, 500]);
            run.rest(Duration::from_millis(pause));
        }
        for cookie in 0..7 {
            assert_eq!(control.answer(run).cookie(), cookie);
        }
        control.close();
        stage.assert_clean();
    });
}

#[test]
fn nonsense_is_answered_and_the_next_request_is_understood() {
    let mut stage = Stage::with_control(1, SECTORS);
    for dialect in BOTH {
        let control = join(&mut stage, dialect);
        let run = &mut stage.run;
        for unknown in [0, 37, 99, 0xffff] {
            refused(&control, run, &Message::new(dialect, unknown, 5), 22, "unknown");
        }
        control.done(run, &Message::new(dialect, id::ATTACH, 1));
        let unterminated = Message::new(dialect, id::OPEN, 1).put(12, &[b'a'; 256]);
        refused(&control, run, &unterminated, 22, "path: not terminated");
        let no_text = Message::params(dialect, id::OPEN, 1, 0, "").put(12, &[0xff, 0xfe]);
        refused(&control, run, &no_text, 22, "path: not UTF-8");
        let order = Message::blkif(dialect, 1, GUEST, 51712, &[8], 3, 1).put(40, &[9]);
        refused(&control, run, &order, 22, "order");
        control.done(run, &Message::new(dialect, id::DETACH, 1));
        control.close();
    }
    // A key's length that is none: nobody knows where the next request begins.
    let control = join(&mut stage, Dialect::Blktap);
    let mut open = Message::params(Dialect::Blktap, id::OPEN, 1, 0x400, "ram:1M");
    open.0.push(200);
    let run = &mut stage.run;
    let answer = control.ask(run, &open);
    assert_eq!((answer.id(), answer.response().0), (id::ERROR, 22));
    assert!(run.until(Duration::from_secs(5), |_| !control.is_open()), "the channel ends");
    control.close();
    stage.run.rest(Duration::from_secs(20));
    stage.assert_clean();
}

#[test]
fn a_client_that_does_nothing_or_half_holds_up_nobody() {
    let mut stage = Stage::with_control(2, SECTORS);
    let idle = join(&mut stage, Dialect::Blktap);
    let half = join(&mut stage, Dialect::Blktap);
    half.send(&mut stage.run, &Message::new(Dialect::Blktap, id::PID, 1).0[..200]);
    let deaf = join(&mut stage, Dialect::Blktap);
    for _ in 0..12 {
        // Twelve answers do not fit the ring that it does not read.
        deaf.send(&mut stage.run, &Message::new(Dialect::Blktap, id::PID, 1).0[..]);
    }
    let control = join(&mut stage, Dialect::Blktap);
    let run = &mut stage.run;
    control.create(run, 0, "ram:1M");
    // The silent one is left alone, those that are in the middle of something are not.
    run.rest(Duration::from_secs(15));
    assert!(idle.is_open() && !half.is_open() && !deaf.is_open());
    assert_eq!(idle.plain(run, id::PID, 3).cookie(), 3);
    control.done(run, &Message::new(Dialect::Blktap, id::CLOSE, 0));
    control.done(run, &Message::new(Dialect::Blktap, id::DETACH, 0));
    for client in [idle, half, deaf, control] {
        client.close();
    }
    // Pages that a client still had when we let go of it are taken back in time.
    stage.run.rest(Duration::from_secs(20));
    stage.assert_clean();
}

/// blktap's tap-ctl sends a RESUME that is all zeroes but for its type and its minor: no -1 in `prt_devnum`.
#[test]
fn a_resume_of_zeroes_is_one() {
    for dialect in BOTH {
        let mut stage = Stage::with_control(7, SECTORS);
        let control = join(&mut stage, dialect);
        let run = &mut stage.run;
        control.create(run, 3, "ram:1M");
        for request in [id::PAUSE, id::RESUME, id::CLOSE, id::DETACH] {
            let answer = control.done(run, &Message::new(dialect, request, 3));
            assert_eq!(answer.response(), (0, String::new()));
        }
        control.close();
        stage.run.rest(Duration::from_secs(20));
        stage.assert_clean();
    }
}

/// A client lets go of its pages after we have let go of the client, as every one that runs on another processor may.
#[test]
fn the_counters_tell_of_pages_that_come_back_late() {
    let mut stage = Stage::with_control(6, SECTORS);
    let counters = |run: &mut Run| run.store.client(DOM0).read("/local/domain/1/data/counters");
    stage.run.rest(Duration::from_secs(5));
    let before = counters(&mut stage.run);
    let control = join(&mut stage, Dialect::Blktap);
    control.plain(&mut stage.run, id::PID, 1);
    let kept = control.close_mapped();
    stage.run.rest(Duration::from_secs(5));
    assert_ne!(counters(&mut stage.run), before, "its pages are not ours yet");
    kept.into_iter().for_each(|handle| stage.run.world.unmap(DOM0, handle));
    stage.run.rest(Duration::from_secs(20));
    assert_eq!(counters(&mut stage.run), before);
    stage.assert_clean();
}

#[test]
fn a_pause_on_a_stuck_store_waits_without_blocking_others_and_ends_with_its_client() {
    let mut stage = Stage::with_control(4, SECTORS);
    let control = join(&mut stage, Dialect::Blktap);
    control.create(&mut stage.run, 0, "aio:/dev/xvda");
    control.create(&mut stage.run, 1, "ram:1M");
    let model = sim::disk::Model::of(stage.disk().borrow().bytes());
    let guest = stage.guest(Vbd::new(DRIVER, GUEST, "minor:0"), &model);
    stage.attach(&guest);
    stage.back().borrow_mut().options.stuck = true;
    guest.front.borrow_mut().work(Workload::writing(200));
    stage.run.rest(Duration::from_millis(100));
    let waiting = join(&mut stage, Dialect::Blktap);
    let run = &mut stage.run;
    waiting.send(run, &Message::new(Dialect::Blktap, id::PAUSE, 0).0);
    run.rest(Duration::from_secs(1));
    let pausing = list(run, &control)[0].1;
    assert_eq!(pausing, 0x14, "PAUSE_REQUESTED and QUIESCE_REQUESTED");
    control.done(run, &Message::new(Dialect::Blktap, id::PAUSE, 1));
    waiting.kill();
    run.rest(Duration::from_secs(10));
    assert_eq!(list(run, &control)[0].1, 0, "called off");
    stage.back().borrow_mut().options.stuck = false;
    stage.run.world.stir();
    stage.run.at_rest(&guest.front);
    let run = &mut stage.run;
    control.done(run, &Message::new(Dialect::Blktap, id::PAUSE, 0));
    control.done(run, &Message::params(Dialect::Blktap, id::RESUME, 0, 0, ""));
    stage.detach(&guest);
    let run = &mut stage.run;
    for minor in [0, 1] {
        control.done(run, &Message::new(Dialect::Blktap, id::CLOSE, minor));
        control.done(run, &Message::new(Dialect::Blktap, id::DETACH, minor));
    }
    control.close();
    stage.assert_clean();
}

#[test]
fn a_forced_shutdown_does_not_wait_for_a_stuck_store() {
    let mut stage = Stage::with_control(5, SECTORS);
    let control = join(&mut stage, Dialect::Blktap);
    let guest = stage.on_lower(GUEST);
    stage.attach(&guest);
    guest.front.borrow_mut().options.errors = true;
    stage.back().borrow_mut().options.stuck = true;
    guest.front.borrow_mut().work(Workload::writing(200));
    stage.run.rest(Duration::from_millis(100));
    let run = &mut stage.run;
    let answer = control.plain(run, id::FORCE_SHUTDOWN, 0);
    assert_eq!(answer.id(), id::CLOSE + 1);
    assert_eq!(list(run, &control), [(0, 2, String::new())]);
    stage.back().borrow_mut().options.stuck = false;
    stage.run.world.stir();
    stage.detach(&guest);
    control.close();
}

#[test]
fn a_store_that_fails_is_told_on_the_events_channel() {
    let mut stage = Stage::with_control(6, SECTORS);
    let listener = events(&mut stage.run);
    stage.run.rest(Duration::from_millis(10));
    let guest = stage.on_lower(GUEST);
    guest.front.borrow_mut().options.errors = true;
    stage.attach(&guest);
    stage.back().borrow_mut().options.failures = 3;
    guest.front.borrow_mut().work(Workload::writing(50));
    stage.run.at_rest(&guest.front);
    let event = listener.answer(&mut stage.run);
    assert_eq!((event.id(), event.cookie()), (id::RUNTIME_ERROR, 0));
    let (errno, text) = event.response();
    assert_eq!((errno, text.as_str()), (5, "the store failed: medium"));
    stage.detach(&guest);
    listener.close();
    stage.assert_clean();
}

/// A VHD was once said to be a raw disk.
#[test]
fn what_serves_a_disk_is_told() {
    let mut stage = Stage::with_control(5, 4096);
    let image = New { id: [5; 16], sectors: 1200, timestamp: 0, form: Form::Dynamic(64) };
    let control = join(&mut stage, Dialect::Blktap);
    for (target, driver) in [
        ("ram:1M", "{ \"type\": 5, \"name\": \"ram\", "),
        ("aio:/dev/xvda", "{ \"type\": 0, \"name\": \"aio\", "),
        ("vhd:/dev/xvda", "{ \"type\": 4, \"name\": \"vhd\", "),
    ] {
        if target.starts_with("vhd") {
            lay(&mut stage.disk().borrow_mut(), &image);
        }
        let run = &mut stage.run;
        control.create(run, 9, target);
        let json = stats(run, &control, 9);
        assert!(json.contains(&format!("\"driver\": {driver}")), "{json}");
        control.done(run, &Message::new(Dialect::Blktap, id::CLOSE, 9));
        control.done(run, &Message::new(Dialect::Blktap, id::DETACH, 9));
    }
    control.close();
    stage.assert_clean();
}

#[test]
fn exit_ends_the_domain_when_nothing_is_attached() {
    let mut stage = Stage::with_control(7, SECTORS);
    let control = join(&mut stage, Dialect::Rfc);
    let run = &mut stage.run;
    let answer = control.plain(run, id::EXIT, 2);
    assert_eq!((answer.id(), answer.cookie()), (id::EXIT, 2));
    assert!(run.until(Duration::from_secs(5), |run| run.stopped().is_some()));
    assert_eq!(run.stopped(), Some(xen::port::Stop::Poweroff));
}

#[test]
fn three_hundred_disks_are_listed_and_told_of_whole() {
    let mut stage = Stage::with_control(8, SECTORS);
    let control = join(&mut stage, Dialect::Blktap);
    let run = &mut stage.run;
    for minor in 0..300 {
        control.create(run, minor, "ram:4K");
    }
    let all = list(run, &control);
    assert_eq!(all.len(), 300);
    assert!((0..300).zip(&all).all(|(minor, vbd)| *vbd == (minor, 0, "ram:4K".into())));
    let json = stats(run, &control, 0xffff);
    assert_eq!(json.matches("\"name\": \"ram:4K\"").count(), 300);
    let minors = control.plain(run, id::LIST_MINORS, 0);
    assert_eq!((minors.word(0), minors.word(4), minors.word(4 * 63)), (63, 0, 62));
    for minor in 0..300 {
        control.done(run, &Message::new(Dialect::Blktap, id::CLOSE, minor));
        control.done(run, &Message::new(Dialect::Blktap, id::DETACH, minor));
    }
    control.close();
    stage.assert_clean();
}
