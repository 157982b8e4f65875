//! The simulator as a bench for the records: what is seen here must be what was seen on real Xen, for every seed.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use records::bench::{Bench, Change, DEVID, FIRST_BYTES, Ids, LOWER_BYTES, Node, Outcome, PLAIN_BYTES, Wish};
use records::{Record, text};
use sim::blkback;
use sim::disk::{Disk, Model, SharedDisk};
use sim::frontend::{Io, Options, Phase, Workload};
use sim::run::{DRIVER, Run, seeds};
use sim::stage::{GUEST, Guest, Stage};
use sim::toolstack::{Failure, Kind, Vbd};
use sim::world::DOM0;
use xen::port::DomId;

const SECTOR: u64 = 512;
const SOON: Duration = Duration::from_secs(30);
/// Bytes of one request: what every Linux takes, with indirect segments or without.
const CHUNK: usize = 88 * SECTOR as usize;

struct SimBench {
    stage: Stage,
    frontend: DomId,
    guest: Option<Guest>,
    /// The product's own counters before anybody was served.
    counters: Option<String>,
}

impl SimBench {
    fn new(seed: u64, record: &str) -> Self {
        // The scenario with a guest has a lower disk of its own, the fourth.
        let (frontend, devid, disk) = match record {
            "destroy" => (GUEST, DEVID + 3 * 16, Rc::new(RefCell::new(Disk::new(PLAIN_BYTES / SECTOR)))),
            _ => (DOM0, DEVID, partitioned()),
        };
        let mut run = Run::new(seed);
        // As the domain of the boots that were recorded.
        run.crew = 1;
        let back = run.lower(devid, &disk);
        back.borrow_mut().options = blkback::Options::default();
        let stage = Stage::boot_over(run, disk, back);
        let mut bench = SimBench { stage, frontend, guest: None, counters: None };
        bench.counters = bench.count();
        bench
    }

    fn count(&self) -> Option<String> {
        self.stage.run.store.client(DOM0).read(&format!("/local/domain/{}/data/counters", DRIVER.0)).ok()
    }

    fn guest(&self) -> Result<&Guest> {
        self.guest.as_ref().context("a disk was attached")
    }

    fn until(&mut self, what: &str, done: impl FnMut(&Run) -> bool) -> Result<()> {
        ensure!(self.stage.run.until(SOON, done), "{what}: not so:\n{}", self.stage.run.scene());
        Ok(())
    }

    fn await_node(&mut self, node: String, wanted: &str) -> Result<()> {
        let client = self.stage.run.store.client(DOM0);
        self.until(&format!("{node} is {wanted}"), |_| client.read(&node).is_ok_and(|value| value == wanted))
    }

    /// Has the guest do these, and tells whether one failed.
    fn perform(&mut self, ios: Vec<Io>) -> Result<Outcome> {
        let front = self.guest()?.front.clone();
        let errors = |tally: sim::frontend::Tally| tally.errors + tally.unsupported;
        let before = errors(front.borrow().tally);
        ios.into_iter().for_each(|io| front.borrow_mut().ask(io));
        self.stage.run.at_rest(&front);
        let after = errors(front.borrow().tally);
        Ok(if after == before { Outcome::Done } else { Outcome::Failed })
    }
}

fn said(result: Result<(), Failure>) -> bool {
    result.is_ok()
}

impl Bench for SimBench {
    fn ids(&self) -> Ids {
        Ids { backend: DRIVER.0.into(), frontend: self.frontend.0.into() }
    }

    fn attach(&mut self, wish: &Wish) -> Result<bool> {
        let (kind, params) = match wish.format {
            "raw" => (Kind::Vbd, wish.target.to_owned()),
            format => (Kind::Qdisk, format!("{format}:{}", wish.target)),
        };
        let vbd = Vbd::new(DRIVER, self.frontend, &params);
        // dom0 is a PV guest too.
        let vbd = Vbd { kind, writable: wish.access == "rw", pv: true, ..vbd };
        let guest = self.stage.guest(vbd, &Model::unknown());
        // As Linux has them where nobody gives its module other parameters.
        guest.front.borrow_mut().options = Options { errors: true, ..Options::default() };
        self.stage.run.store.begin_witness(text::watched(self.ids()));
        let attached = self.stage.run.attach(&guest.vbd);
        self.guest = Some(guest);
        Ok(said(attached))
    }

    fn detach(&mut self) -> Result<bool> {
        let vbd = self.guest()?.vbd.clone();
        Ok(said(self.stage.run.detach(&vbd)))
    }

    fn connected(&mut self) -> Result<()> {
        let front = self.guest()?.front.clone();
        self.until("the frontend is connected", |_| front.borrow().phase() == Phase::Connected)
    }

    fn refused(&mut self) -> Result<()> {
        let vbd = self.guest()?.vbd.clone();
        self.await_node(format!("{}/state", vbd.backend_dir()), "6")?;
        self.await_node(format!("{}/state", vbd.frontend_dir()), "6")
    }

    fn nodes(&mut self, directory: &str) -> Result<Vec<Node>> {
        let nodes = self.stage.run.store.nodes(directory).into_iter();
        Ok(nodes.map(|(path, value, permissions)| Node { path, value, permissions }).collect())
    }

    fn limits(&mut self) -> Result<Vec<(&'static str, String)>> {
        Ok(self.guest()?.front.borrow().limits())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<Outcome> {
        let offer = self.guest()?.front.borrow().offer;
        // Linux asks for no write on a disk that it was told is read-only.
        if offer.info & 4 != 0 {
            return Ok(Outcome::Forbidden);
        }
        let sector = |at: usize| offset / SECTOR + (at * CHUNK) as u64 / SECTOR;
        let writes = bytes.chunks(CHUNK).enumerate();
        let mut ios: Vec<Io> = writes.map(|(at, data)| Io::Write { sector: sector(at), data: data.to_vec() }).collect();
        ios.extend(offer.flush.then_some(Io::Flush));
        self.perform(ios)
    }

    fn read(&mut self, offset: u64, length: usize) -> Result<(Outcome, Vec<u8>)> {
        let (first, end) = (offset / SECTOR, (offset + length as u64) / SECTOR);
        let model = self.guest()?.model.clone();
        // Only what is in doubt is learnt from the answer.
        model.borrow_mut().doubt(first, end - first);
        let step = CHUNK as u64 / SECTOR;
        let read = |sector| Io::Read { sector, sectors: step.min(end - sector) };
        let outcome = self.perform((first..end).step_by(step as usize).map(read).collect())?;
        let bytes = model.borrow().bytes()[offset as usize..][..length].to_vec();
        Ok(if outcome == Outcome::Done { (outcome, bytes) } else { (outcome, Vec::new()) })
    }

    fn below(&mut self, offset: u64, length: usize) -> Result<Vec<u8>> {
        Ok(self.stage.disk().borrow().bytes()[offset as usize..][..length].to_vec())
    }

    fn grow(&mut self, bytes: u64) -> Result<()> {
        self.stage.back().borrow_mut().resize(bytes / SECTOR);
        let front = self.guest()?.front.clone();
        self.until("the guest sees the new size", |_| front.borrow().offer.sectors == bytes / SECTOR)
    }

    fn reconnect(&mut self) -> Result<()> {
        let (front, vbd) = (self.guest()?.front.clone(), self.guest()?.vbd.clone());
        front.borrow_mut().unbind();
        self.await_node(format!("{}/state", vbd.frontend_dir()), "6")?;
        self.await_node(format!("{}/state", vbd.backend_dir()), "6")?;
        self.until("the guest has let go", |_| front.borrow().phase() == Phase::Off)?;
        self.stage.run.toolstack.borrow_mut().remove_frontend(&vbd);
        self.until("the guest forgets the device", |_| front.borrow().phase() == Phase::Absent)?;
        // As Linux does after a kexec, the driver looks when the backend is ready for it.
        front.borrow_mut().silent = true;
        self.stage.run.toolstack.borrow_mut().place_frontend(&vbd);
        self.await_node(format!("{}/state", vbd.backend_dir()), "2")?;
        front.borrow_mut().silent = false;
        self.stage.run.world.stir();
        self.connected()
    }

    fn load(&mut self) -> Result<()> {
        let front = self.guest()?.front.clone();
        front.borrow_mut().work(Workload::writing(10_000));
        self.until("some writes are answered", |_| front.borrow().tally.writes >= 20)
    }

    fn destroy(&mut self) -> Result<bool> {
        Ok(said(self.stage.run.destroy(self.frontend)))
    }

    fn held(&mut self) -> Result<bool> {
        self.stage.run.rest(Duration::from_secs(2));
        Ok(self.counters.is_none() || self.count() != self.counters)
    }

    fn history(&mut self) -> Result<Vec<Change>> {
        let witness = self.stage.run.store.witness().into_iter();
        Ok(witness.map(|(path, value)| Change { path, value }).collect())
    }
}

/// A disk with the two partitions that sfdisk makes of it: at 1 MiB, and all the rest.
fn partitioned() -> SharedDisk {
    let sectors = LOWER_BYTES / SECTOR;
    let mut disk = Disk::new(sectors);
    let (first, second) = (2048, 2048 + FIRST_BYTES / SECTOR);
    // The rest, down to a whole MiB.
    let last = sectors - 2048 - 1;
    let mut entries = vec![0; 128 * 128];
    for (at, (begin, end)) in [(first, second - 1), (second, last)].into_iter().enumerate() {
        let entry = &mut entries[at * 128..][..128];
        // Linux's own type, in the mixed byte order of the table.
        entry[..16].copy_from_slice(&0x0fc6_3daf_8483_4772_8e79_3d69_d847_7de4_u128.to_be_bytes());
        entry[..4].reverse();
        entry[4..6].reverse();
        entry[6..8].reverse();
        entry[16..32].fill(at as u8 + 1);
        entry[32..40].copy_from_slice(&u64::to_le_bytes(begin));
        entry[40..48].copy_from_slice(&u64::to_le_bytes(end));
    }
    let mut protective = [0; 512];
    protective[446..462].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0]);
    protective[458..462].copy_from_slice(&(sectors as u32 - 1).to_le_bytes());
    protective[510..].copy_from_slice(&[0x55, 0xaa]);
    disk.write(0, &protective);
    for (own, other, table) in [(1, sectors - 1, 2), (sectors - 1, 1, sectors - 33)] {
        let mut header = [0; 512];
        header[..8].copy_from_slice(b"EFI PART");
        header[8..16].copy_from_slice(&[0, 0, 1, 0, 92, 0, 0, 0]);
        for (at, number) in [(24, own), (32, other), (40, 34), (48, sectors - 34), (72, table)] {
            header[at..at + 8].copy_from_slice(&u64::to_le_bytes(number));
        }
        header[56..72].fill(7);
        header[80..84].copy_from_slice(&128_u32.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        header[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
        let check = crc32fast::hash(&header[..92]);
        header[16..20].copy_from_slice(&check.to_le_bytes());
        disk.write(own, &header);
        disk.write(table, &entries);
    }
    disk.flush();
    Rc::new(RefCell::new(disk))
}

fn agrees(name: &str) {
    let record = Record::named(name).expect("there is such a record");
    seeds(0..6, |seed| {
        let seen = record.play(&mut SimBench::new(seed, name));
        let seen = seen.unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
        if let Some(difference) = record.difference(&seen) {
            panic!("seed {seed}: the simulator is not like Xen (- real Xen, + here):\n{difference}");
        }
    });
}

macro_rules! agree {
    ($($test:ident: $name:literal),* $(,)?) => {
        $(#[test]
        fn $test() {
            agrees($name);
        })*

        /// A record without a test would be compared with one world only.
        #[test]
        fn every_record_is_played_here() {
            let names: Vec<&str> = records::ALL.iter().map(|record| record.name).collect();
            assert_eq!(names, [$($name),*]);
        }
    };
}

agree! {
    ram: "ram",
    partition: "partition",
    read_only: "read-only",
    wrong_target: "wrong-target",
    wrong_format: "wrong-format",
    reconnect: "reconnect",
    resize: "resize",
    destroy: "destroy",
}
