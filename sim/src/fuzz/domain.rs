//! The whole product against a guest, a toolstack and a lower backend whose deeds are bytes: an honest connection
//! first, then anything. A neighbour on a disk of its own notices none of it, and nothing is left in the end.

use std::time::Duration;

use protocol::mem::Memory;
use xen::page::{PAGE_BYTES, PageRef};
use xen::port::{Access, DomId, GrantRef, Port};

use crate::blkif::{Body, FrontRing, Layout, Request, Segment, op};
use crate::frontend::Workload;
use crate::random::Random;
use crate::run::DRIVER;
use crate::stage::{Guest, Stage};
use crate::store::Client;
use crate::toolstack::Vbd;
use crate::world::DOM0;

const NEIGHBOUR: DomId = DomId(5);
const PUPPET: DomId = DomId(6);
/// What is in the pages that the puppet lets nobody write.
const READ_ONLY: [u8; PAGE_BYTES] = [0x5a; PAGE_BYTES];
/// Deeds of one input: a longer one is cut.
const DEEDS_MAX: u32 = 200;

/// Deeds.
pub fn domain(bytes: &[u8]) {
    let mut tape = Random::of(bytes);
    let mut stage = Stage::with_lower(tape.below(256), 1024);
    let neighbour = stage.on_ram(NEIGHBOUR, 512);
    stage.attach(&neighbour);
    neighbour.front.borrow_mut().work(Workload::mixed(40));
    let mut puppet = Puppet::new(&mut stage);
    for step in [Puppet::attach, Puppet::offer, Puppet::ask] {
        step(&mut puppet, &mut stage, &mut tape);
        stage.run.rest(Duration::from_millis(700));
    }
    for _ in 0..DEEDS_MAX {
        if tape.is_spent() {
            break;
        }
        deed(&mut puppet, &mut stage, &neighbour, &mut tape);
    }
    end(puppet, stage, &neighbour);
}

fn deed(puppet: &mut Puppet, stage: &mut Stage, neighbour: &Guest, tape: &mut Random) {
    let dom0 = stage.run.store.client(DOM0);
    match tape.below(20) {
        0..3 => puppet.ask(stage, tape),
        3..5 => puppet.scribble(tape),
        5..7 => puppet.node(tape),
        7 => puppet.offer(stage, tape),
        8 => puppet.grants(stage, tape),
        9 => {
            let state = tape.pick(&["1", "3", "4", "5", "6", "9"]);
            let _gone = puppet.client.write(&format!("{}/state", puppet.vbd.frontend_dir()), state);
        }
        10 => {
            let (key, value) = tape.pick(&[("state", "5"), ("state", "6"), ("state", "1"), ("online", "0")]);
            if dom0.exists(&format!("{}/state", puppet.vbd.backend_dir())) {
                dom0.write(&format!("{}/{key}", puppet.vbd.backend_dir()), value).expect("dom0 may");
            }
        }
        11 => {
            let _none = dom0.remove(&puppet.vbd.backend_dir());
        }
        12 => puppet.attach(stage, tape),
        13 => {
            stage.run.toolstack.borrow_mut().detach(&puppet.vbd);
        }
        14 => {
            let back = stage.back();
            let mut back = back.borrow_mut();
            match tape.below(3) {
                0 => back.options.stuck ^= true,
                1 => back.options.failures = 3,
                _ => back.options.latency = Duration::from_millis(tape.below(50)),
            }
        }
        15 => neighbour.front.borrow_mut().work(Workload::mixed(20)),
        16 => stage.run.rest(Duration::from_millis(tape.pick(&[1, 20, 600, 3000]))),
        _ => (0..tape.below(256)).for_each(|_| {
            stage.run.step();
        }),
    }
}

/// The puppet goes, and all is as it was; the neighbour has its answers and its data.
fn end(puppet: Puppet, mut stage: Stage, neighbour: &Guest) {
    stage.back().borrow_mut().options.stuck = false;
    stage.run.at_rest(&neighbour.front);
    stage.verify(neighbour);
    stage.detach(neighbour);
    let _late = stage.run.destroy(PUPPET);
    stage.run.rest(Duration::from_secs(3));
    assert_eq!(stage.run.world.life(PUPPET), None, "a zombie is left\n{}", stage.run.scene());
    puppet.untouched();
    let held = stage.run.tapdom().expect("it runs").held();
    assert_eq!((held.pages, held.mappings, held.nodes), (0, 0, 0), "{}", stage.run.scene());
    let left = stage.run.store.list(&format!("/local/domain/{}/backend", DRIVER.0));
    assert!(left.iter().all(|node| !node.contains("/state")), "{left:#?}");
}

/// A guest without a driver: pages, grants, a port, and its directory in xenstore.
struct Puppet {
    vbd: Vbd,
    client: Client,
    rings: Vec<PageRef>,
    data: Vec<PageRef>,
    closed: Vec<PageRef>,
    /// Of the rings, the data pages and the closed ones.
    granted: Vec<GrantRef>,
    ports: Vec<Port>,
    front: FrontRing,
}

impl Puppet {
    fn new(stage: &mut Stage) -> Self {
        stage.run.toolstack.borrow_mut().create(PUPPET);
        let page = |_| PageRef::alone().expect("memory for a test");
        let rings: Vec<PageRef> = (0..2).map(page).collect();
        let (data, closed): (Vec<PageRef>, Vec<PageRef>) = ((0..3).map(page).collect(), (0..2).map(page).collect());
        closed.iter().for_each(|page| page.write(0, &READ_ONLY));
        let front = FrontRing::new(rings[..1].to_vec(), Layout::X86_64, 0);
        let client = stage.run.store.client(PUPPET);
        let vbd = Vbd::new(DRIVER, PUPPET, "aio:/dev/xvda");
        let mut puppet = Puppet { vbd, client, rings, data, closed, granted: Vec::new(), ports: Vec::new(), front };
        puppet.lend(stage);
        puppet
    }

    fn lend(&mut self, stage: &Stage) {
        let world = &stage.run.world;
        let lend = |page: &PageRef, access| world.lend(PUPPET, page, DRIVER, access).expect("a guest's table is large");
        let open = self.rings.iter().chain(&self.data).map(|page| lend(page, Access::ReadWrite));
        self.granted = open.chain(self.closed.iter().map(|page| lend(page, Access::ReadOnly))).collect();
    }

    /// The toolstack gives it the disk, or another; what it was given before is not taken away.
    fn attach(&mut self, stage: &mut Stage, tape: &mut Random) {
        let target = tape.pick(&["aio:/dev/xvda", "ram:64K", "aio:/dev/xvda1", "aio:/dev/xvdc", "junk", ""]);
        self.vbd.params = target.into();
        self.vbd.writable = !tape.one_in(4);
        if !stage.run.store.client(DOM0).exists(&self.vbd.backend_dir()) {
            stage.run.toolstack.borrow_mut().place(&self.vbd);
        }
    }

    /// A fresh ring, its keys, and Initialised, as a driver does it.
    fn offer(&mut self, stage: &mut Stage, tape: &mut Random) {
        let order = tape.below(2);
        let layout = tape.pick(&[Layout::X86_64, Layout::X86_32]);
        self.front = FrontRing::new(self.rings[..1 << order].to_vec(), layout, 0);
        self.ports.extend(stage.run.world.alloc_unbound(PUPPET, DRIVER));
        let port = self.ports.last().expect("a guest has ports").0;
        let dir = self.vbd.frontend_dir();
        let put = |key: &str, value: &str| {
            // Its directory is the toolstack's to take.
            let _gone = self.client.write(&format!("{dir}/{key}"), value);
        };
        put("ring-ref", &self.granted[0].0.to_string());
        if order > 0 {
            put("ring-page-order", "1");
            put("ring-ref0", &self.granted[0].0.to_string());
            put("ring-ref1", &self.granted[1].0.to_string());
        }
        put("event-channel", &port.to_string());
        put("protocol", layout.protocol());
        put("state", "3");
    }

    /// A request, nearly right, at its place in the ring; and an event.
    fn ask(&mut self, stage: &mut Stage, tape: &mut Random) {
        if self.front.free() > 0 {
            let request = self.request(tape);
            self.front.put(&request);
            let _wanted = self.front.publish();
        }
        // Our own count of answers is of no use once the words were scribbled over.
        let _nonsense = self.front.take();
        self.notify(stage);
    }

    fn request(&mut self, tape: &mut Random) -> Request {
        let op = tape.pick(&[op::READ, op::WRITE, op::FLUSH, op::DISCARD, op::BARRIER, 9]);
        let segment = |granted: &[GrantRef], tape: &mut Random| {
            let any = tape.index(granted.len() + 1);
            let grant = granted.get(any).copied().unwrap_or(GrantRef(tape.next() as u32));
            let first = tape.below(8);
            Segment { grant, first: first as u8, last: tape.pick(&[first as u8, 7, tape.clone().below(9) as u8]) }
        };
        let body = match tape.below(8) {
            0 => Body::Discard { sectors: tape.below(2048) },
            1 | 2 => {
                let count: u16 = tape.pick(&[1, 12, 256, 257, 513, 0]);
                let table = &self.data[2];
                for i in 0..usize::from(count.min(512)) {
                    table.write(8 * i, &segment(&self.granted, tape).encode());
                }
                Body::Indirect { count, pages: (0..count.div_ceil(512)).map(|_| self.granted[4]).collect() }
            }
            _ => Body::Segments((0..tape.pick(&[1, 1, 2, 11, 0])).map(|_| segment(&self.granted, tape)).collect()),
        };
        let sector = if tape.one_in(8) { tape.next() } else { tape.below(1100) };
        Request { op, id: tape.below(256), sector, body }
    }

    fn notify(&self, stage: &Stage) {
        for port in &self.ports {
            stage.run.world.notify(PUPPET, *port);
        }
    }

    /// A word of a ring's head, or a byte of a slot, at any time.
    fn scribble(&self, tape: &mut Random) {
        let page = &self.rings[tape.index(2)];
        match tape.below(4) {
            0 => page.store(tape.index(4) * 4, tape.next() as u32),
            1 => page.store(0, page.load(0).wrapping_add(tape.below(64) as u32)),
            _ => page.write(64 + tape.index(1024), &[tape.below(256) as u8]),
        }
    }

    /// A key of its own, with a value that may even be right.
    fn node(&self, tape: &mut Random) {
        let key = tape.pick(&[
            "ring-ref",
            "ring-ref0",
            "ring-ref1",
            "ring-page-order",
            "event-channel",
            "protocol",
            "feature-persistent",
            "multi-queue-num-queues",
            "queue-0/ring-ref",
        ]);
        let any = tape.index(self.granted.len());
        let value = match tape.below(6) {
            0 => self.granted[any].0.to_string(),
            1 => self.ports.last().map_or(0, |port| port.0).to_string(),
            2 => tape.below(10).to_string(),
            3 => "x86_64-abi".into(),
            4 => tape.pick(&["", "-1", "4294967296", "0x8", "1 ", "\u{e9}"]).into(),
            _ => "9".repeat(tape.index(600)),
        };
        let path = format!("{}/{key}", self.vbd.frontend_dir());
        let _gone = if tape.one_in(4) { self.client.remove(&path) } else { self.client.write(&path, &value) };
    }

    /// Takes back what it can of what it granted, and grants it anew, or closes a port.
    fn grants(&mut self, stage: &Stage, tape: &mut Random) {
        if tape.one_in(2) {
            if let Some(port) = self.ports.pop() {
                stage.run.world.close(PUPPET, port);
            }
            return;
        }
        let world = &stage.run.world;
        for grant in &self.granted {
            // One that is mapped stays, beside the new one.
            let _stands = world.reclaim(PUPPET, *grant);
        }
        self.lend(stage);
    }

    /// What nobody may write is as it was.
    fn untouched(&self) {
        for page in &self.closed {
            let mut bytes = [0; PAGE_BYTES];
            page.read(0, &mut bytes);
            assert!(bytes == READ_ONLY, "a page granted for reading was written");
        }
    }
}
