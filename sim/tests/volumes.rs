//! A chain of VHDs on logical volumes, in the whole product: its parents found in the group, snapshotted and grown under a
//! guest's load.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use drivers::format::vhd::make::{Form, New, Parent, make};
use protocol::errno::Errno;
use sim::disk::{Disk, Model, SharedDisk, SharedModel};
use sim::frontend::Workload;
use sim::image::{Slab, finish};
use sim::lvm::{self, segment, text, volume};
use sim::random::Random;
use sim::run::{DRIVER, Run, seeds};
use sim::stage::{GUEST, Guest, Stage, XVDA};
use sim::toolstack::Vbd;
use sim::vhd;
use xen::port::DomId;

const SECTOR: usize = 512;
/// As [`lvm::text`] has them.
const START: u64 = 2048;
const EXTENT: u64 = 64;
const DISK: u64 = START + 100 * EXTENT;
const IDS: [&[u8; 32]; 2] = [&[b'p'; 32], &[b'q'; 32]];
const GROUP: &[u8; 32] = &[b'g'; 32];

/// Extents of a volume: disk, first, how many.
type Pieces = &'static [(u32, u64, u64)];

const BASE: Pieces = &[(0, 0, 12)];
const ONE: Pieces = &[(0, 20, 5), (1, 3, 7)];
/// Room for 7 of the image's 25 blocks, and for all of them.
const LEAF: Pieces = &[(1, 40, 3)];
const GROWN: Pieces = &[(1, 40, 3), (0, 60, 9)];

/// Sectors of the chain's disk, and of the base's.
const SECTORS: u64 = 400;
const BASE_SECTORS: u64 = 360;

/// Sectors of a volume, in order.
fn places(pieces: Pieces) -> impl Iterator<Item = (usize, u64)> {
    let extent = |(disk, first, count): &(u32, u64, u64)| {
        let disk = *disk as usize;
        (START + first * EXTENT..START + (first + count) * EXTENT).map(move |sector| (disk, sector))
    };
    pieces.iter().flat_map(extent)
}

/// dom0's side: two disks with a group, and what its tools do there.
struct Host {
    disks: [SharedDisk; 2],
    changes: Cell<u32>,
}

impl Host {
    fn new(random: &mut Random) -> Host {
        Host { disks: [(); 2].map(|()| Disk::random(DISK, random)), changes: Cell::new(0) }
    }

    /// lvcreate or lvextend: the group has these volumes.
    fn volumes(&self, all: &[(&str, Pieces)]) {
        self.changes.set(self.changes.get() + 1);
        let mut volumes = String::new();
        for (name, pieces) in all {
            let (mut segments, mut start) = (String::new(), 0);
            for (number, (disk, first, count)) in (1..).zip(*pieces) {
                let rest = format!("type = \"striped\"\nstripe_count = 1\nstripes = [\"pv{disk}\", {first}]");
                segments.push_str(&segment(number, start, *count as u32, &rest));
                start += *count as u32;
            }
            volumes.push_str(&volume(name, pieces.len() as u32, &segments));
        }
        let ids = IDS.map(lvm::id);
        let text = text("vg", &lvm::id(GROUP), self.changes.get(), &ids.each_ref().map(String::as_str), &volumes);
        for (disk, id) in self.disks.iter().zip(IDS) {
            lvm::write(&mut disk.borrow_mut(), id, &text);
        }
    }

    fn read(&self, pieces: Pieces) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (disk, sector) in places(pieces) {
            bytes.extend_from_slice(&self.disks[disk].borrow().bytes()[sector as usize * SECTOR..][..SECTOR]);
        }
        bytes
    }

    /// `vhd create` or `vhd snapshot`, over what the volume held before.
    fn make(&self, pieces: Pieces, new: &New<'_>) {
        self.make_named(pieces, new, None);
    }

    /// The same, by somebody who calls its parent by another name.
    fn make_named(&self, pieces: Pieces, new: &New<'_>, parent: Option<&str>) {
        let before = self.read(pieces);
        let mut disk = Disk::new((before.len() / SECTOR) as u64);
        disk.write(0, &before);
        let slab = Slab::new(&Rc::new(RefCell::new(disk)), &mut Random::new(1));
        finish(make(&slab, "an image", new)).expect("room for it");
        let mut made = slab.disk.borrow().bytes().to_vec();
        if let Some(name) = parent {
            vhd::rename_parent(&mut made, name);
        }
        for ((disk, sector), bytes) in places(pieces).zip(made.chunks(SECTOR)) {
            self.disks[disk].borrow_mut().write(sector, bytes);
        }
        self.disks.iter().for_each(|disk| disk.borrow_mut().flush());
    }

    fn boot(&self, mut run: Run) -> Stage {
        for (number, disk) in (0..).zip(&self.disks) {
            run.lower(XVDA + 16 * number, disk);
        }
        Stage::boot(run)
    }
}

fn number(id: u8) -> [u8; 16] {
    [id; 16]
}

fn new(id: u8, parent: Option<(u8, &str)>) -> New<'_> {
    let form = match parent {
        None => Form::Dynamic(16),
        Some((id, name)) => Form::Differencing(16, Parent { id: number(id), timestamp: 0, name }),
    };
    New { id: number(id), sectors: if id == 1 { BASE_SECTORS } else { SECTORS }, timestamp: 0, form }
}

/// What a reader of our own, by the specification alone, makes of a chain's volumes, leaf first.
fn read_apart(layers: &[Vec<u8>]) -> Vec<u8> {
    let images: Vec<vhd::Image> =
        layers.iter().map(|bytes| vhd::check(bytes).unwrap_or_else(|why| panic!("{why}"))).collect();
    let both: Vec<(&[u8], &vhd::Image)> = layers.iter().map(Vec::as_slice).zip(&images).collect();
    (0..images[0].sectors).flat_map(|at| vhd::sector(&both, at, false).unwrap_or(&[0; SECTOR]).to_vec()).collect()
}

fn compare(model: &SharedModel, layers: &[Vec<u8>]) {
    model.borrow().compare(&read_apart(layers)).expect("each sector is what the guest wrote");
}

/// On so small a disk large requests would wait for each other.
fn mixed(requests: u32) -> Workload {
    Workload { writes: 55, sectors_max: 16, depth: 12, ..Workload::mixed(requests) }
}

/// A guest works with an image of the group until it has asked enough, and leaves.
fn use_image(stage: &mut Stage, guest: &Guest, requests: u32) {
    stage.attach(guest);
    guest.front.borrow_mut().work(mixed(requests));
    stage.run.at_rest(&guest.front);
    stage.verify(guest);
    stage.detach(guest);
}

#[test]
fn a_chain_on_volumes_is_snapshotted_and_grows_under_load() {
    seeds(0..6, |seed| {
        let mut run = Run::new(seed);
        let host = Host::new(&mut run.random);
        host.volumes(&[("base", BASE), ("one", ONE), ("leaf", LEAF)]);
        host.make(BASE, &new(1, None));
        host.make(ONE, &new(2, Some((1, "base"))));
        let mut stage = host.boot(run);
        let mut model = Model::zeroes(BASE_SECTORS);
        let guest = stage.guest(Vbd::new(DRIVER, DomId(6), "vhd:/dev/vg/base"), &model);
        use_image(&mut stage, &guest, 100);
        let base = host.read(BASE);
        compare(&model, std::slice::from_ref(&base));
        // A child that is larger than its parent.
        let mut held = read_apart(std::slice::from_ref(&base));
        held.resize(SECTORS as usize * SECTOR, 0);
        let first = std::mem::replace(&mut model, Model::of(&held));
        model.borrow_mut().shares(&first);
        let guest = stage.guest(Vbd::new(DRIVER, GUEST, "vhd:/dev/mapper/vg-one"), &model);
        stage.attach(&guest);
        guest.front.borrow_mut().work(mixed(3_000));
        let front = guest.front.clone();
        assert!(stage.run.until(Duration::from_secs(20), |_| front.borrow().tally.writes > 40));
        let minor = stage.minor();
        // The snapshot: from here on nothing changes in the image that was the leaf.
        assert!(stage.pause(minor));
        let one = host.read(ONE);
        host.make(LEAF, &new(3, Some((2, "one"))));
        guest.front.borrow_mut().options.errors = true;
        stage.resume(minor, Some("vhd:/dev/vg/leaf")).expect("a child of the image that was open");
        // Its volume is too small for what the guest writes.
        let full = stage.run.until(Duration::from_secs(200), |_| front.borrow().tally.errors > 3);
        assert!(full, "seed {seed}: {:?}", front.borrow().tally);
        assert!(stage.pause(minor));
        stage.run.rest(Duration::from_secs(1));
        let errors = front.borrow().tally.errors;
        let metadata_end = |disk: &SharedDisk| disk.borrow().bytes()[START as usize * SECTOR..].to_vec();
        let before = host.disks.each_ref().map(metadata_end);
        // lvextend; what it held before is some other tenant's, and at its end there is no footer.
        host.volumes(&[("base", BASE), ("one", ONE), ("leaf", GROWN)]);
        stage.resume(minor, None).expect("the same image");
        stage.run.at_rest_within(&guest.front, Duration::from_secs(4_000));
        assert_eq!(front.borrow().tally.errors, errors, "seed {seed}: there is room now");
        stage.verify(&guest);
        stage.detach(&guest);
        let layers = [host.read(GROWN), host.read(ONE), host.read(BASE)];
        assert!(vhd::check(&layers[0]).unwrap().footer, "the footer is at the volume's new end");
        compare(&model, &layers);
        assert!(layers[1..] == [one, base], "seed {seed}: an image below was written");
        for (number, (disk, before)) in host.disks.iter().zip(&before).enumerate() {
            for (at, (now, old)) in (START..).zip(metadata_end(disk).chunks(SECTOR).zip(before.chunks(SECTOR))) {
                let ours = places(GROWN).any(|place| place == (number, at));
                assert!(ours || now == old, "seed {seed}: sector {at} of disk {number} is not the leaf's");
            }
        }
        stage.assert_clean();
    });
}

/// A name in an image leads to its own group alone, and what a parent is decides its unique id.
#[test]
fn a_parent_is_a_volume_of_the_same_group() {
    let mut run = Run::new(1);
    let host = Host::new(&mut run.random);
    host.volumes(&[("base", BASE), ("one", ONE), ("leaf", LEAF)]);
    host.make(BASE, &new(1, None));
    let mut stage = host.boot(run);
    let open = |stage: &mut Stage, name: &'static str| {
        stage.inside(async move |shared| {
            let minor = shared.minors.attach(Some(900), kernel::minor::By::Message).expect("a free number");
            let opened = minor.open(&shared.lowers, name, false).await;
            if opened.is_ok() {
                minor.close(false).await;
            }
            shared.minors.detach(900);
            opened
        })
    };
    for (parent, errno, says) in [
        ("base", None, ""),
        ("/dev/vg/base", None, ""),
        ("/dev/other/base", Some(Errno::ENOENT), "\"/dev/other/base\" is not in /dev/vg"),
        ("../base", Some(Errno::EINVAL), "it has no name of its parent that can be read"),
        ("/dev/xvda", Some(Errno::ENOENT), "\"/dev/xvda\" is not in /dev/vg"),
        ("gone", Some(Errno::ENOENT), "/dev/vg/gone: the volume group has no such logical volume"),
        // Of another image's bytes, and of none.
        ("one", Some(Errno::EINVAL), "/dev/vg/one is not the parent it was made on: another unique id"),
        ("leaf", Some(Errno::EINVAL), "/dev/vg/leaf: "),
    ] {
        host.make_named(ONE, &new(2, Some((1, "base"))), Some(parent));
        let opened = open(&mut stage, "vhd:/dev/vg/one");
        match errno {
            None => assert_eq!(opened, Ok(()), "{parent}"),
            Some(errno) => {
                let error = opened.expect_err(parent);
                assert!(error.errno == errno && error.text.contains(says), "{parent}: {error}");
            }
        }
    }
    stage.assert_clean();
}
