//! A toolstack and guests that do anything at any moment, and wait for nothing. At the end nothing may be left.

use std::time::Duration;

use sim::frontend::{Phase, Style, Workload};
use sim::run::{DRIVER, SharedFrontend, seeds};
use sim::stage::Stage;
use sim::toolstack::{Kind, Vbd};
use sim::world::{DOM0, Life};
use xen::port::DomId;

struct Actor {
    id: DomId,
    front: Option<SharedFrontend>,
    vbd: Option<Vbd>,
}

#[test]
fn anything_at_any_moment() {
    seeds(0..40, |seed| {
        let mut stage = Stage::with_lower(seed, 2048);
        let mut actors: Vec<Actor> = (5..8).map(|id| Actor { id: DomId(id), front: None, vbd: None }).collect();
        for _ in 0..40 {
            let at = stage.run.random.index(actors.len());
            act(&mut stage, &mut actors[at]);
            let pause = stage.run.random.pick(&[0, 0, 1, 100, 10_000, 600_000]);
            let steps = stage.run.random.below(200);
            for _ in 0..steps {
                stage.run.step();
            }
            stage.run.rest(Duration::from_micros(pause));
        }
        for actor in &actors {
            let _late = stage.run.destroy(actor.id);
        }
        // Errors stay readable in xenstore and are charged to the product; all else is to be as it was.
        stage.run.rest(Duration::from_secs(2));
        for actor in &actors {
            assert_eq!(stage.run.world.life(actor.id), None, "{:?} is a zombie\n{}", actor.id, stage.run.scene());
        }
        let held = stage.run.tapdom().expect("it runs").held();
        assert_eq!((held.pages.get(), held.mappings.get(), held.nodes.get()), (0, 0, 0), "{}", stage.run.scene());
        let left = stage.run.store.list(&format!("/local/domain/{}/backend", DRIVER.0));
        assert!(left.iter().all(|node| !node.contains("/state")), "{left:#?}");
        // And it still works.
        let guest = stage.on_ram(DomId(9), 1024);
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload::mixed(20));
        stage.run.at_rest(&guest.front);
        stage.detach(&guest);
    });
}

fn act(stage: &mut Stage, actor: &mut Actor) {
    match (&actor.front, &actor.vbd) {
        // Its number is taken as long as its pages are mapped; that may be a moment.
        (None, _) if stage.run.world.life(actor.id) == Some(Life::Dying) => {}
        (None, _) => {
            // Two guests on one disk see each other's writes, which no model of one of them can tell.
            let shared = if actor.id == DomId(5) { "aio:/dev/xvda" } else { "ram:1M" };
            let target = stage.run.random.pick(&["ram:512K", shared, shared, "aio:/dev/xvdq", "junk"]);
            let kind = stage.run.random.pick(&[Kind::Vbd, Kind::Qdisk, Kind::Vbd3]);
            let vbd = Vbd { kind, ..Vbd::new(DRIVER, actor.id, target) };
            let model = sim::disk::Model::unknown();
            let guest = stage.guest(vbd.clone(), &model);
            {
                let mut front = guest.front.borrow_mut();
                front.options.style = stage.run.random.pick(&[Style::Linux, Style::Linux, Style::Resumed]);
                front.options.abrupt = stage.run.random.one_in(2);
                front.options.errors = true;
            }
            stage.run.toolstack.borrow_mut().attach(&vbd);
            (actor.front, actor.vbd) = (Some(guest.front), Some(vbd));
        }
        (Some(front), Some(vbd)) => match stage.run.random.below(8) {
            0 | 1 => front.borrow_mut().work(Workload { sectors_max: 88, ..Workload::mixed(200) }),
            2 if front.borrow().phase() == Phase::Connected => front.borrow_mut().close(Some(Style::Linux)),
            3 => {
                stage.run.toolstack.borrow_mut().detach(vbd);
            }
            4 => {
                let _gone = stage.run.store.client(DOM0).remove(&vbd.backend_dir());
            }
            5 => {
                // The kernel of dom0 kills it first, xenstore hears of it afterwards.
                stage.run.world.destroy(actor.id);
            }
            6 => {
                let _late = stage.run.destroy(actor.id);
                (actor.front, actor.vbd) = (None, None);
            }
            _ => front.borrow_mut().silent ^= true,
        },
        _ => {}
    }
}
