//! Hostile guests, one group of docs/hostile.md after the other: what is answered, and that nobody else is hurt.
//!
//! What is right stands here in full, read from `io/blkif.h` and `io/ring.h`; it is the product's code that is asked, not
//! the judge that random guests carry.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use sim::blkif::{op, status};
use sim::frontend::Workload;
use sim::hostile::guest::{Hostile, Phase};
use sim::hostile::rows::{Abi, Ask};
use sim::run::DRIVER;
use sim::stage::{Guest, Stage, XVDA};
use sim::toolstack::Vbd;
use xen::port::DomId;

const HOSTILE: DomId = DomId(7);

/// A stage with an honest guest that works, and a hostile one that does what the test says.
struct Scene {
    stage: Stage,
    honest: Guest,
    hostile: Rc<RefCell<Hostile>>,
    vbd: Vbd,
}

impl Scene {
    fn new(seed: u64, abi: Abi, writable: bool, keeps: bool) -> Self {
        let mut stage = Stage::bare(seed);
        let honest = stage.on_ram(DomId(6), 2048);
        stage.attach(&honest);
        stage.run.toolstack.borrow_mut().create(HOSTILE);
        let random = stage.run.random.fork();
        let mut hostile = Hostile::new(&stage.run.store, &stage.run.world, random, HOSTILE, XVDA, DRIVER);
        (hostile.options.abi, hostile.options.keeps) = (abi, keeps);
        let hostile = Rc::new(RefCell::new(hostile));
        stage.run.add(hostile.clone());
        let vbd = Vbd { writable, ..Vbd::new(DRIVER, HOSTILE, "ram:1M") };
        Scene { stage, honest, hostile, vbd }
    }

    /// The hostile guest is connected, the honest one at work.
    fn connected(seed: u64, abi: Abi, writable: bool) -> Self {
        Scene::keeping(seed, abi, writable, false)
    }

    /// The same, with a hostile guest whose pages may stay mapped or not.
    fn keeping(seed: u64, abi: Abi, writable: bool, keeps: bool) -> Self {
        let mut scene = Scene::new(seed, abi, writable, keeps);
        assert_eq!(scene.stage.run.attach(&scene.vbd), Ok(()));
        let hostile = scene.hostile.clone();
        let there = scene.stage.run.until(Duration::from_secs(20), |_| hostile.borrow().is_connected());
        assert!(there, "{}", scene.stage.run.scene());
        scene.honest.front.borrow_mut().work(Workload { sectors_max: 16, ..Workload::mixed(30) });
        scene
    }

    /// Sends one request of this kind and says what was answered: operation and status.
    fn ask(&mut self, ask: Ask) -> (u8, i16, Vec<u8>) {
        let (entry, id) = {
            let mut hostile = self.hostile.borrow_mut();
            let (made, entry) = hostile.with_kit(|kit| {
                let made = kit.make(ask);
                let entry = made.entry.clone();
                (made, entry)
            });
            let (_, id) = hostile.put(made, None);
            hostile.publish();
            (entry, id)
        };
        let hostile = self.hostile.clone();
        let heard = self.stage.run.until(Duration::from_secs(5), |_| hostile.borrow().in_flight() == 0);
        assert!(heard, "{ask:?} is not answered");
        let answer = hostile.borrow_mut().heard.pop().expect("just heard");
        assert_eq!(answer.id, id);
        (answer.op, answer.status, entry)
    }

    /// The honest guest has its answers, and what it reads is right; nothing is left of the hostile one.
    fn end(mut self) {
        self.stage.run.at_rest(&self.honest.front);
        self.stage.verify(&self.honest);
        let _late = self.stage.run.destroy(HOSTILE);
        assert_eq!(self.stage.run.world.life(HOSTILE), None, "{}", self.stage.run.scene());
        self.stage.detach(&self.honest);
        let held = self.stage.run.tapdom().expect("it runs").held();
        assert_eq!((held.pages, held.mappings, held.nodes), (0, 0, 0));
    }
}

/// What a request gets that is answered as `io/blkif.h` says: its status, and the operation where it is not the outer one.
fn right(ask: Ask, entry: &[u8], writable: bool) -> (u8, i16) {
    let (outer, inner) = (entry[0], entry[1]);
    match ask {
        Ask::Operation4 => (4, status::EOPNOTSUPP),
        Ask::Operation7 => (7, status::EOPNOTSUPP),
        Ask::Operation255 => (255, status::EOPNOTSUPP),
        Ask::ReadNone => (op::READ, status::ERROR),
        Ask::WriteNone => (op::WRITE, status::ERROR),
        Ask::Segments12 | Ask::Segments255 | Ask::FirstPastLast | Ask::Last8 | Ask::LastMore => (outer, status::ERROR),
        Ask::Indirect0 | Ask::IndirectMore | Ask::Indirect65535 | Ask::IndirectLast8 => (inner, status::ERROR),
        Ask::Inner2 => (2, status::ERROR),
        Ask::Inner3 => (3, status::ERROR),
        Ask::Inner5 => (5, status::ERROR),
        Ask::Inner6 => (6, status::ERROR),
        Ask::Inner255 => (255, status::ERROR),
        Ask::SectorOverflows | Ask::BytesOverflow | Ask::PastEnd | Ask::ShrunkAway => (outer, status::ERROR),
        Ask::BarrierReadOnly => (op::BARRIER, if writable { status::OKAY } else { status::ERROR }),
        Ask::BarrierData => (op::BARRIER, if writable { status::OKAY } else { status::ERROR }),
        Ask::FlushReadOnly => (op::FLUSH, if writable { status::OKAY } else { status::ERROR }),
        Ask::WriteReadOnly | Ask::IndirectReadOnly => (op::WRITE, if writable { status::OKAY } else { status::ERROR }),
        Ask::BarrierBare => (op::BARRIER, status::OKAY),
        Ask::Discard0 => (op::DISCARD, status::ERROR),
        // A disk that is not to be written offers no discard.
        Ask::DiscardMost | Ask::DiscardWraps | Ask::DiscardPastEnd => {
            (op::DISCARD, if writable { status::ERROR } else { status::EOPNOTSUPP })
        }
        Ask::DiscardReadOnly | Ask::DiscardMisaligned | Ask::DiscardSecure => {
            (op::DISCARD, if writable { status::OKAY } else { status::EOPNOTSUPP })
        }
        Ask::Handle | Ask::AtEnd | Ask::Misaligned => {
            (outer, if writable || outer == op::READ { status::OKAY } else { status::ERROR })
        }
        Ask::Indirect1 | Ask::Indirect12 | Ask::IndirectMost => {
            (inner, if writable || inner == op::READ { status::OKAY } else { status::ERROR })
        }
    }
}

#[test]
fn every_wrong_request_is_answered_as_the_header_says() {
    for (seed, abi) in [Abi::Wide, Abi::Narrow, Abi::Unsaid].into_iter().enumerate() {
        for (writable, keeps) in [(true, false), (false, false), (true, true), (false, true)] {
            let mut scene = Scene::keeping(seed as u64, abi, writable, keeps);
            for ask in Ask::ALL.repeat(3) {
                let (op, status, entry) = scene.ask(ask);
                assert_eq!(
                    (op, status),
                    right(ask, &entry, writable),
                    "{ask:?} {abi:?} writable {writable} keeps {keeps}"
                );
            }
            scene.end();
        }
    }
}

#[test]
fn an_overrun_ring_is_let_go_of_and_nothing_else_happens() {
    for (seed, jump) in [33u32, 1 << 31, u32::MAX].into_iter().enumerate() {
        let mut scene = Scene::connected(seed as u64, Abi::Wide, true);
        scene.hostile.borrow_mut().doom(jump);
        let (answered, hostile) = (scene.hostile.borrow().answered, scene.hostile.clone());
        let closed = |_: &sim::run::Run| matches!(hostile.borrow().phase(), Phase::Leaving(_));
        assert!(scene.stage.run.until(Duration::from_secs(1), closed), "{}", scene.stage.run.scene());
        assert_eq!(scene.stage.run.world.mapped_by(DRIVER, HOSTILE), 0, "an overrun ring is still mapped");
        assert!(sim::journal::tells("more than a ring ahead"));
        // It may come back, in order.
        scene.stage.run.rest(Duration::from_secs(2));
        assert_eq!((scene.hostile.borrow().connects, scene.hostile.borrow().answered), (2, answered));
        scene.end();
    }
}

/// What FLUSH_DISKCACHE and WRITE_BARRIER promise when they carry data: what was answered before is durable first, and a
/// barrier's own data when it is answered; nothing goes beside a barrier.
#[test]
fn flushes_and_barriers_with_data_keep_their_order() {
    let mut stage = Stage::with_lower(3, 1024);
    let (disk, back) = stage.lower.clone().expect("a stage with a lower disk");
    back.borrow_mut().options = sim::blkback::Options { latency: Duration::from_millis(5), ..Default::default() };
    stage.run.toolstack.borrow_mut().create(HOSTILE);
    let random = stage.run.random.fork();
    let hostile = Hostile::new(&stage.run.store, &stage.run.world, random, HOSTILE, XVDA, DRIVER);
    let hostile = Rc::new(RefCell::new(hostile));
    stage.run.add(hostile.clone());
    assert_eq!(stage.run.attach(&Vbd::new(DRIVER, HOSTILE, "aio:/dev/xvda")), Ok(()));
    assert!(stage.run.until(Duration::from_secs(20), |_| hostile.borrow().is_connected()));
    let mut play = |operations: &[u8]| {
        for operation in operations {
            let mut hostile = hostile.borrow_mut();
            let made = hostile.with_kit(|kit| {
                let segments = kit.segments(2);
                kit.transfer(*operation, segments)
            });
            hostile.put(made, None);
        }
        hostile.borrow_mut().publish();
        assert!(stage.run.until(Duration::from_secs(5), |_| hostile.borrow().in_flight() == 0));
        let heard = std::mem::take(&mut hostile.borrow_mut().heard);
        assert!(heard.iter().all(|answer| answer.status == status::OKAY), "{heard:?}");
        heard.iter().map(|answer| answer.op).collect::<Vec<_>>()
    };
    play(&[op::WRITE]);
    let written = disk.borrow().bytes().to_vec();
    assert!(disk.borrow().durable() != written, "a disk whose cache keeps nothing proves nothing");
    play(&[op::FLUSH]);
    assert!(disk.borrow().durable() == written, "a flush with data left what was answered before it");
    play(&[op::BARRIER]);
    assert!(disk.borrow().durable() == disk.borrow().bytes(), "a barrier's own data is not durable");
    let (before, all) = (back.borrow().flushes, [op::WRITE, op::BARRIER, op::WRITE]);
    assert_eq!(play(&all), all, "something went beside a barrier");
    assert_eq!(back.borrow().flushes, before + 2);
}

/// The descriptors of an indirect request are copied to a page that the request before has used: what Xen refuses to
/// copy is no licence to take those for this one's.
#[test]
fn descriptors_that_cannot_be_copied_are_not_those_of_the_request_before() {
    for operation in [op::READ, op::WRITE] {
        let mut scene = Scene::connected(1, Abi::Wide, true);
        let mut play = |grant: Option<u32>| {
            let hostile = scene.hostile.clone();
            {
                let mut hostile = hostile.borrow_mut();
                let made = hostile.with_kit(|kit| {
                    let segments = kit.segments(2);
                    let mut made = kit.indirect(operation, &segments);
                    if let Some(grant) = grant {
                        made.entry[28..32].copy_from_slice(&grant.to_le_bytes());
                    }
                    made
                });
                hostile.put(made, None);
                hostile.publish();
            }
            assert!(scene.stage.run.until(Duration::from_secs(5), |_| hostile.borrow().in_flight() == 0));
            let answer = hostile.borrow_mut().heard.pop().expect("just heard");
            (answer.op, answer.status)
        };
        assert_eq!(play(None), (operation, status::OKAY));
        assert_eq!(play(Some(30_000)), (operation, status::ERROR));
        assert_eq!(play(None), (operation, status::OKAY));
        scene.end();
    }
}

/// Attaches a disk whose frontend is written by hand, after `write` has had its way with both directories; what the guest is
/// refused with.
fn refused(write: impl Fn(&sim::store::client::Client, &sim::store::client::Client, &Vbd)) -> String {
    let mut stage = Stage::bare(1);
    stage.run.toolstack.borrow_mut().create(HOSTILE);
    let vbd = Vbd::new(DRIVER, HOSTILE, "ram:1M");
    stage.run.toolstack.borrow_mut().place(&vbd);
    let (dom0, guest) = (stage.run.store.client(DomId(0)), stage.run.store.client(HOSTILE));
    write(&dom0, &guest, &vbd);
    let state = format!("{}/state", vbd.backend_dir());
    let closed = stage.run.until(Duration::from_secs(5), |_| dom0.read(&state).as_deref() == Ok("6"));
    assert!(closed, "{}", stage.run.scene());
    assert_eq!(stage.run.world.mapped_by(DRIVER, HOSTILE), 0);
    dom0.read(&format!("{}/hotplug-error", vbd.backend_dir())).expect("a refusal says why")
}

#[test]
fn more_ring_pages_than_were_offered_are_refused() {
    for order in [5u32, 6] {
        let text = refused(|_, guest, vbd| {
            let write = |key: &str, value: &str| guest.write(&format!("{}/{key}", vbd.frontend_dir()), value).unwrap();
            for page in 0..1 << order {
                write(&format!("ring-ref{page}"), &(page + 8).to_string());
            }
            write("ring-page-order", &order.to_string());
            write("event-channel", "1");
            write("state", "3");
        });
        assert_eq!(text, "the frontend's ring-page-order is more than was offered");
    }
}

#[test]
fn a_frontend_id_of_another_domain_is_refused() {
    let text = refused(|dom0, _, vbd| dom0.write(&format!("{}/frontend-id", vbd.backend_dir()), "9").unwrap());
    assert_eq!(text, "frontend-id is not the domain of the directory's name");
}
