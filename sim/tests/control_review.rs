//! Messages that overtake one another, clients that go, and what an image that was closed leaves behind: cases that were
//! once wrong.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use kernel::Shared;
use kernel::control::Channel;
use kernel::minor::By;
use protocol::errno::Errno;
use protocol::mem::Memory;
use protocol::session::State;
use sim::control::{Control, Dialect, Message, id};
use sim::disk::{Disk, Model};
use sim::frontend::{Phase, Workload};
use sim::handle::SimXen;
use sim::run::{DRIVER, Run, seeds, use_memory};
use sim::stage::{GUEST, Guest, Stage, XVDA};
use sim::toolstack::Vbd;
use sim::world::DOM0;
use xen::page::PageRef;
use xen::port::{Access, DomId, GrantRef, Port};

type Domain = Rc<Shared<SimXen>>;

/// A task of the domain under test, and what it came to.
fn begin<T: 'static>(stage: &mut Stage, body: impl AsyncFnOnce(Domain) -> T + 'static) -> Rc<RefCell<Option<T>>> {
    let (domain, result) = (stage.run.tapdom().expect("it runs").shared().clone(), Rc::new(RefCell::new(None)));
    let (shared, put) = (domain.clone(), result.clone());
    domain.domain.exec.spawn(async move {
        let came = body(shared).await;
        *put.borrow_mut() = Some(came);
    });
    stage.run.nudge();
    result
}

fn end<T>(stage: &mut Stage, result: &RefCell<Option<T>>) -> T {
    let done = stage.run.until(Duration::from_secs(60), |_| result.borrow().is_some());
    assert!(done, "it does not end:\n{}", stage.run.scene());
    result.take().expect("just seen")
}

fn inside<T: 'static>(stage: &mut Stage, body: impl AsyncFnOnce(Domain) -> T + 'static) -> T {
    let result = begin(stage, body);
    end(stage, &result)
}

/// A guest that tolerates errors on a minor that a message made, under load.
fn loaded_on_minor(stage: &mut Stage, number: u16, target: &'static str, model: &sim::disk::SharedModel) -> Guest {
    let opened = inside(stage, async move |shared| {
        let minor = shared.minors.attach(Some(number), By::Message).unwrap();
        minor.open(&shared.lowers, target, false).await
    });
    assert_eq!(opened, Ok(()));
    let guest = stage.guest(Vbd::new(DRIVER, GUEST, &format!("minor:{number}")), model);
    guest.front.borrow_mut().options.errors = true;
    stage.attach(&guest);
    guest.front.borrow_mut().work(Workload::mixed(1_500));
    let front = guest.front.clone();
    assert!(stage.run.until(Duration::from_secs(20), |_| front.borrow().tally.writes > 20));
    guest
}

/// CLOSE and OPEN at once, before the disk's task looked: the guest wrote on, into the new image, also if that was
/// opened read-only.
#[test]
fn a_ring_of_a_closed_image_never_reaches_the_next_one() {
    seeds(0..8, |seed| {
        let mut stage = Stage::bare(seed);
        let (force, read_only) = (seed % 2 == 0, seed % 4 < 2);
        let model = Model::zeroes(2048);
        let guest = loaded_on_minor(&mut stage, 3, "ram:1M", &model);
        inside(&mut stage, async move |shared| {
            let minor = shared.minors.get(3).expect("attached");
            minor.close(force).await;
            minor.open(&shared.lowers, "ram:1M", read_only).await.expect("memory");
        });
        let front = guest.front.clone();
        let away = stage.run.until(Duration::from_secs(20), |_| front.borrow().phase() != Phase::Connected);
        assert!(away, "the guest is told that its image was closed\n{}", stage.run.scene());
        stage.detach(&guest);
        let zeroes = Model::zeroes(2048);
        let next = stage.guest(Vbd::new(DRIVER, DomId(6), "minor:3"), &zeroes);
        stage.attach(&next);
        stage.verify(&next);
        stage.detach(&next);
    });
}

/// A RESUME that waits for its store, the minor closed, opened, paused and resumed again meanwhile: the first one took
/// the second one's state for its own and put its image under the minor.
#[test]
fn a_resume_that_was_overtaken_changes_nothing_when_it_ends() {
    let mut stage = Stage::with_lower(1, 2048);
    sim::gpt::write(&mut stage.disk().borrow_mut(), &[(40, 1024)]);
    inside(&mut stage, async |shared| {
        let minor = shared.minors.attach(Some(0), By::Message).unwrap();
        minor.open(&shared.lowers, "aio:/dev/xvda1", false).await.expect("there");
        assert!(minor.pause(&shared.domain).await.unwrap());
    });
    stage.back().borrow_mut().options.stuck = true;
    let resume = async |shared: Domain| shared.minors.get(0).unwrap().resume(&shared.lowers, None).await;
    let first = begin(&mut stage, resume);
    stage.run.rest(Duration::from_secs(1));
    inside(&mut stage, async |shared| {
        let minor = shared.minors.get(0).unwrap();
        assert_eq!(minor.state(), State::Resuming);
        minor.close(false).await;
        minor.open(&shared.lowers, "ram:512K", false).await.expect("memory");
        assert!(minor.pause(&shared.domain).await.unwrap());
    });
    let second = begin(&mut stage, async |shared| {
        shared.minors.get(0).unwrap().resume(&shared.lowers, Some("aio:/dev/xvda1")).await
    });
    stage.run.rest(Duration::from_secs(1));
    inside(&mut stage, async |shared| {
        let minor = shared.minors.get(0).unwrap();
        minor.close(false).await;
        minor.open(&shared.lowers, "ram:4K", false).await.expect("memory");
        assert!(minor.pause(&shared.domain).await.unwrap());
    });
    let third = begin(&mut stage, async |shared| {
        shared.minors.get(0).unwrap().resume(&shared.lowers, Some("aio:/dev/xvda1")).await
    });
    stage.run.rest(Duration::from_secs(1));
    stage.back().borrow_mut().options.stuck = false;
    stage.run.world.stir();
    assert_eq!(end(&mut stage, &first).unwrap_err().errno, Errno::EBUSY);
    assert_eq!(end(&mut stage, &second).unwrap_err().errno, Errno::EBUSY);
    assert_eq!(end(&mut stage, &third).unwrap_err().errno, Errno::EMEDIUMTYPE, "the third speaks for itself");
    let minor = stage.run.tapdom().unwrap().shared().minors.get(0).unwrap();
    assert_eq!((minor.state(), minor.name().as_str()), (State::ResumeFailed, "ram:4K"));
}

/// A RESUME onto what could not be opened threw away a disk that was in our memory, and the next one made an empty disk
/// of the same size in its place.
#[test]
fn a_resume_that_fails_loses_no_disk_in_memory() {
    seeds(0..4, |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let model = Model::zeroes(1024);
        let guest = loaded_on_minor(&mut stage, 0, "ram:512K", &model);
        for wrong in ["aio:/dev/xvda", "aio:/dev/xvdz", "nonsense", "ram:4K"] {
            inside(&mut stage, async move |shared| {
                let minor = shared.minors.get(0).unwrap();
                if minor.state() == State::Open {
                    assert!(minor.pause(&shared.domain).await.unwrap());
                }
                assert!(minor.resume(&shared.lowers, Some(wrong)).await.is_err());
                assert_eq!((minor.state(), minor.name().as_str()), (State::ResumeFailed, "ram:512K"));
            });
        }
        inside(&mut stage, async move |shared| {
            let minor = shared.minors.get(0).unwrap();
            assert_eq!(minor.resume(&shared.lowers, (seed % 2 == 0).then_some("ram:512K")).await, Ok(()));
        });
        stage.run.at_rest(&guest.front);
        stage.verify(&guest);
        stage.detach(&guest);
    });
}

/// A guest that connects again and again left a waiter at its disk each time: memory, and time at every turn, without end.
#[test]
fn guests_that_come_and_go_leave_nobody_waiting_at_a_disk() {
    let mut stage = Stage::bare(1);
    let model = Model::zeroes(2048);
    let guest = loaded_on_minor(&mut stage, 0, "ram:1M", &model);
    stage.run.at_rest(&guest.front);
    let minor = stage.run.tapdom().unwrap().shared().minors.get(0).unwrap();
    let waiting = minor.changed.waiting();
    assert!(waiting > 0);
    for _ in 0..20 {
        stage.detach(&guest);
        stage.attach(&guest);
    }
    stage.run.rest(Duration::from_secs(1));
    assert_eq!(minor.changed.waiting(), waiting);
    stage.detach(&guest);
    assert_eq!(minor.changed.waiting(), 0);
}

/// A place on a channel was its client's for as long as it liked, and eight that were left connected locked everybody out.
#[test]
fn clients_that_are_silent_make_room_for_others_the_longest_silent_first() {
    let mut stage = Stage::with_control(1, 2048);
    let run = &mut stage.run;
    let mut silent: Vec<_> = (0..8).map(|_| Control::join(run, Dialect::Blktap)).collect();
    run.rest(Duration::from_millis(10));
    silent[0].plain(run, id::PID, 0);
    let ninth = Control::join(run, Dialect::Blktap);
    assert_eq!(ninth.plain(run, id::PID, 9).cookie(), 9);
    run.rest(Duration::from_millis(10));
    let open: Vec<_> = silent.iter().map(Control::is_open).collect();
    assert_eq!(open.iter().filter(|open| **open).count(), 7, "one had to go");
    assert!(open[0], "the one that spoke last stays");
    assert_eq!(silent[0].plain(run, id::PID, 1).cookie(), 1);
    silent.push(ninth);
    silent.into_iter().for_each(Control::close);
    stage.run.rest(Duration::from_secs(20));
    stage.assert_clean();
}

/// What a message began held its client's place though the client was gone: eight OPENs of partitions on a store that is
/// stuck locked everybody out, FORCE_SHUTDOWN with them.
#[test]
fn requests_whose_clients_are_gone_keep_nobody_out() {
    let mut stage = Stage::with_control(2, 2048);
    stage.back().borrow_mut().options.stuck = true;
    let run = &mut stage.run;
    for minor in 0..9 {
        let client = Control::join(run, Dialect::Blktap);
        client.done(run, &Message::new(Dialect::Blktap, id::ATTACH, minor));
        client.send(run, &Message::params(Dialect::Blktap, id::OPEN, minor, 0, "aio:/dev/xvda1").0);
        run.rest(Duration::from_millis(100));
        client.kill();
        run.rest(Duration::from_secs(4));
    }
    let control = Control::join(run, Dialect::Blktap);
    assert_eq!(control.plain(run, id::PID, 1).cookie(), 1);
    stage.back().borrow_mut().options.stuck = false;
    stage.run.world.stir();
    let run = &mut stage.run;
    for minor in 0..9 {
        // There is no partition: what was begun ends, whoever waits for it.
        control.done(run, &Message::new(Dialect::Blktap, id::DETACH, minor));
    }
    control.close();
    stage.run.rest(Duration::from_secs(20));
    stage.assert_clean();
}

/// EXIT whose answer is not read at once: disks could be attached meanwhile, and the domain ended under their guests.
#[test]
fn nothing_is_attached_once_the_domain_is_about_to_end() {
    let mut stage = Stage::with_control(3, 2048);
    let run = &mut stage.run;
    let (slow, other) = (Control::join(run, Dialect::Blktap), Control::join(run, Dialect::Blktap));
    // Seven answers fit the ring.
    for cookie in 0..7 {
        slow.send(run, &Message::new(Dialect::Blktap, id::PID, cookie).0);
    }
    slow.send(run, &Message::new(Dialect::Blktap, id::EXIT, 7).0);
    run.rest(Duration::from_secs(1));
    assert_eq!(run.stopped(), None);
    let refused = other.plain(run, id::ATTACH, 0);
    assert_eq!(refused.response().0, Errno::ESHUTDOWN.number(), "{}", refused.response().1);
    for cookie in 0..8 {
        assert_eq!(slow.answer(run).cookie(), cookie);
    }
    assert!(run.until(Duration::from_secs(5), |run| run.stopped().is_some()));
}

/// PID was answered with 0 until all lower disks had connected, which may take six seconds.
#[test]
fn pid_is_told_right_from_the_start() {
    let mut run = Run::new(4);
    run.channels = Channel::defaults();
    // A lower disk that nobody serves.
    run.toolstack.borrow_mut().place(&Vbd { devid: XVDA, ..Vbd::new(DOM0, DRIVER, "phy:/dev/lower") });
    run.boot();
    let control = Control::join(&mut run, Dialect::Blktap);
    assert!(!run.store.client(DRIVER).exists("data/ready"));
    assert_eq!(control.plain(&mut run, id::PID, 0).word(0), u32::from(DRIVER.0));
    control.close();
}

/// A ring as a frontend's: one page of its guest, and a port.
fn ring(stage: &Stage) -> (PageRef, GrantRef, Port) {
    let (page, world) = (PageRef::alone().unwrap(), &stage.run.world);
    let grant = world.lend(GUEST, &page, DRIVER, Access::ReadWrite).unwrap();
    let port = world.alloc_unbound(GUEST, DRIVER).unwrap();
    // req_event and rsp_event.
    page.store(4, 1);
    page.store(12, 1);
    (page, grant, port)
}

fn connect(minor: u16, devid: u32, (_, grant, port): &(PageRef, GrantRef, Port)) -> Message {
    Message::blkif(Dialect::Blktap, minor, GUEST, devid, &[grant.0], 3, port.0)
}

/// After DISCONNECT, with a request in flight, CONNECT was answered that the ring is served, which clients take for a
/// success, and nobody served it. It waits now: what the old ring wrote must not come after what the new one writes.
#[test]
fn a_ring_is_connected_again_once_what_it_left_in_flight_has_ended() {
    let mut stage = Stage::with_control(5, 2048);
    let control = Control::join(&mut stage.run, Dialect::Blktap);
    control.create(&mut stage.run, 0, "aio:/dev/xvda");
    let model = Model::of(stage.disk().borrow().bytes());
    let _front = stage.run.frontend(GUEST, 51728, &model);
    let (first, second, third) = (ring(&stage), ring(&stage), ring(&stage));
    stage.back().borrow_mut().options.stuck = true;
    // READ of a sector, which the store does not answer.
    let data = PageRef::alone().unwrap();
    let grant = stage.run.world.lend(GUEST, &data, DRIVER, Access::ReadWrite).unwrap();
    let mut read = [0; 32];
    read[1] = 1;
    read[24..28].copy_from_slice(&grant.0.to_le_bytes());
    first.0.write(64, &read);
    first.0.store(0, 1);
    let run = &mut stage.run;
    control.done(run, &connect(0, XVDA, &first));
    run.rest(Duration::from_millis(100));
    let in_flight = |run: &Run| run.tapdom().unwrap().shared().minors.get(0).unwrap().in_flight();
    assert_eq!(in_flight(run), 1);
    control.done(run, &Message::gone(Dialect::Blktap, GUEST, XVDA));
    let gone = control.ask(run, &Message::gone(Dialect::Blktap, GUEST, XVDA));
    assert_eq!((gone.id(), gone.response().0), (id::ERROR, Errno::ENODEV.number()), "it is served no more");
    control.send(run, &connect(0, XVDA, &second).0);
    run.rest(Duration::from_secs(5));
    assert_eq!((in_flight(run), run.world.mapped_by(DRIVER, GUEST)), (1, 0), "not yet");
    stage.back().borrow_mut().options.stuck = false;
    stage.run.world.stir();
    let run = &mut stage.run;
    let connected = control.answer(run);
    assert_eq!(connected.id(), Dialect::Blktap.connect() + 1, "{:?}", connected.response());
    assert_eq!((in_flight(run), run.world.mapped_by(DRIVER, GUEST)), (0, 1));
    // Another image under the minor need not wait for a store that is dead.
    stage.back().borrow_mut().options.stuck = true;
    second.0.write(64, &read);
    second.0.store(0, 1);
    stage.run.world.notify(GUEST, second.2);
    let run = &mut stage.run;
    run.rest(Duration::from_millis(100));
    assert_eq!(in_flight(run), 1);
    control.plain(run, id::FORCE_SHUTDOWN, 0);
    control.done(run, &Message::params(Dialect::Blktap, id::OPEN, 0, 0, "ram:1M"));
    control.done(run, &connect(0, XVDA, &third));
}

/// Who opened a disk read-only is not written to by the guest that a message connects, though the memory below could be.
#[test]
fn a_ring_that_a_message_connects_to_a_read_only_disk_writes_nothing() {
    let mut stage = Stage::with_control(5, 2048);
    let control = Control::join(&mut stage.run, Dialect::Blktap);
    control.done(&mut stage.run, &Message::new(Dialect::Blktap, id::ATTACH, 0));
    control.done(&mut stage.run, &Message::params(Dialect::Blktap, id::OPEN, 0, 2, "ram:1M"));
    let _front = stage.run.frontend(GUEST, XVDA, &Model::zeroes(2048));
    let (ring, data) = (ring(&stage), PageRef::alone().unwrap());
    let grant = stage.run.world.lend(GUEST, &data, DRIVER, Access::ReadWrite).unwrap();
    // WRITE of a sector.
    let mut write = [0; 32];
    (write[0], write[1]) = (1, 1);
    write[24..28].copy_from_slice(&grant.0.to_le_bytes());
    ring.0.write(64, &write);
    ring.0.store(0, 1);
    control.done(&mut stage.run, &connect(0, XVDA, &ring));
    stage.run.rest(Duration::from_millis(100));
    let mut status = [0; 2];
    ring.0.read(64 + 10, &mut status);
    assert_eq!((ring.0.load(8), i16::from_le_bytes(status)), (1, -1));
}

/// A guest's device was connected to two minors at once, and DISCONNECT, which names no minor, took either.
#[test]
fn a_guests_device_has_one_ring_whatever_the_minor() {
    let mut stage = Stage::with_control(6, 2048);
    let control = Control::join(&mut stage.run, Dialect::Blktap);
    let model = Model::zeroes(2048);
    let _front = stage.run.frontend(GUEST, 51728, &model);
    let (first, second) = (ring(&stage), ring(&stage));
    let run = &mut stage.run;
    control.create(run, 0, "ram:1M");
    control.create(run, 1, "ram:1M");
    control.done(run, &connect(1, XVDA, &first));
    let refused = control.ask(run, &connect(0, XVDA, &second));
    assert_eq!((refused.id(), refused.response().0), (id::ERROR, Errno::EALREADY.number()));
    control.done(run, &connect(0, 51744, &second));
}

/// Rings that messages connect were without number.
#[test]
fn there_are_as_many_rings_as_disks_at_most() {
    let mut stage = Stage::with_control(7, 2048);
    use_memory(3 << 10, 64 << 20);
    let control = Control::join(&mut stage.run, Dialect::Blktap);
    control.create(&mut stage.run, 0, "ram:1M");
    let model = Model::zeroes(2048);
    let _front = stage.run.frontend(GUEST, 51728, &model);
    for devid in 0..512 {
        let ring = ring(&stage);
        control.done(&mut stage.run, &connect(0, devid, &ring));
    }
    let one_more = connect(0, 512, &ring(&stage));
    let refused = control.ask(&mut stage.run, &one_more);
    assert_eq!((refused.id(), refused.response().0), (id::ERROR, Errno::ENOMEM.number()));
    control.done(&mut stage.run, &Message::gone(Dialect::Blktap, GUEST, 7));
    control.done(&mut stage.run, &one_more);
}

/// Every refusal was a line on the console, and what a client asks is often a guest's wish (XSA-43).
#[test]
fn refusals_are_logged_within_limits() {
    let mut stage = Stage::with_control(8, 2048);
    let control = Control::join(&mut stage.run, Dialect::Blktap);
    let said = sim::journal::said();
    for cookie in 0..200 {
        assert_eq!(control.plain(&mut stage.run, id::PAUSE, cookie).id(), id::ERROR);
    }
    let lines = sim::journal::said() - said;
    assert!((1..=40).contains(&lines), "{lines} lines of 200 refusals");
    control.close();
}

/// A client that sent a byte now and then kept its place for hours.
#[test]
fn half_a_request_has_ten_seconds_in_all() {
    let mut stage = Stage::with_control(9, 2048);
    let (slow, steady) = {
        let run = &mut stage.run;
        (Control::join(run, Dialect::Blktap), Control::join(run, Dialect::Blktap))
    };
    let run = &mut stage.run;
    let request = Message::new(Dialect::Blktap, id::PID, 1).0;
    for byte in 0..3 {
        slow.send(run, &request[byte..=byte]);
        assert!(slow.is_open());
        // Whole requests, if seldom, are no reason to go.
        assert_eq!(steady.plain(run, id::PID, 2).cookie(), 2);
        run.rest(Duration::from_secs(4));
    }
    assert!(!slow.is_open() && steady.is_open());
}

/// A RESUME onto an image that is read-only was well, and all that the guest wrote from then on failed.
#[test]
fn an_image_that_is_read_only_takes_no_writable_ones_place() {
    let mut run = Run::new(10);
    let disk = Disk::random(2048, &mut run.random);
    let back = run.lower(XVDA, &disk);
    back.borrow_mut().options.read_only = true;
    let mut stage = Stage::boot(run);
    for (number, read_only) in [(0, false), (1, true)] {
        let resumed = inside(&mut stage, async move |shared| {
            let minor = shared.minors.attach(Some(number), By::Message).unwrap();
            minor.open(&shared.lowers, "ram:1M", read_only).await.expect("memory");
            assert!(minor.pause(&shared.domain).await.unwrap());
            minor.resume(&shared.lowers, Some("aio:/dev/xvda")).await
        });
        let expected = if read_only { Ok(()) } else { Err(Errno::EMEDIUMTYPE) };
        assert_eq!(resumed.map_err(|error| error.errno), expected);
    }
}

/// A guest that began anew without an end opened an image again that a message had closed; one that ends in order does not.
#[test]
fn no_guest_opens_again_what_a_message_closed() {
    seeds(0..4, |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let guest = stage.on_lower(GUEST);
        guest.front.borrow_mut().options.errors = true;
        stage.attach(&guest);
        let number = stage.run.tapdom().unwrap().shared().minors.all()[0].number();
        inside(&mut stage, async move |shared| shared.minors.get(number).expect("attached").close(false).await);
        guest.front.borrow_mut().silent = true;
        let client = stage.run.store.client(GUEST);
        client.write("device/vbd/51712/state", "1").unwrap();
        stage.run.rest(Duration::from_secs(2));
        let minors = stage.run.tapdom().unwrap().shared().minors.all();
        let states: Vec<_> = minors.iter().map(|minor| minor.state()).collect();
        assert_eq!(states, [State::Closed], "{}", stage.run.scene());
    });
}
