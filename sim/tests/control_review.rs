//! Messages that overtake one another, clients that go, and what an image that was closed leaves behind: cases that were
//! once wrong.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use kernel::Shared;
use kernel::minor::By;
use protocol::errno::Errno;
use protocol::session::State;
use sim::disk::Model;
use sim::frontend::{Phase, Workload};
use sim::handle::SimXen;
use sim::run::{DRIVER, seeds};
use sim::stage::{GUEST, Guest, Stage};
use sim::toolstack::Vbd;
use xen::port::DomId;

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
        assert!(minor.pause().await);
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
        assert!(minor.pause().await);
    });
    let second = begin(&mut stage, async |shared| {
        shared.minors.get(0).unwrap().resume(&shared.lowers, Some("aio:/dev/xvda1")).await
    });
    stage.run.rest(Duration::from_secs(1));
    inside(&mut stage, async |shared| {
        let minor = shared.minors.get(0).unwrap();
        minor.close(false).await;
        minor.open(&shared.lowers, "ram:4K", false).await.expect("memory");
        assert!(minor.pause().await);
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
                    assert!(minor.pause().await);
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
