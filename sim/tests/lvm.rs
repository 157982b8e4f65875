//! Logical volumes: what is found on disks that lvm2 made is what lvm2 itself says of them, and a guest's bytes land there.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use drivers::target::Lower;
use drivers::volume::Run;
use drivers::volume::group::Group;
use protocol::errno::Errno;
use protocol::lvm::Name;
use sim::blkback::Options;
use sim::disk::{Disk, Model};
use sim::frontend::Workload;
use sim::image::{Slab, finish};
use sim::lvm::{self, segment, text, volume};
use sim::random::Random;
use sim::run::{DRIVER, Run as World, seeds};
use sim::stage::{GUEST, Stage, XVDA};
use sim::toolstack::Vbd;

const SECTOR: usize = 512;
const MANAGER: &str = "VG_XenStorage-e4a9ac4c-5ab8-4d3c-9d8f-0c2b4f4a7a11";
const VHD: &str = "VHD-0f8f2a2c-1c5e-4b1f-9a3d-6a0c3f0b8a55";

type Disks = Vec<(Lower, Rc<Slab>)>;

/// These disks, as /dev/xvda and so on.
fn disks(all: Vec<Disk>) -> Disks {
    let slab = |disk| Rc::new(Slab::new(&Rc::new(RefCell::new(disk)), &mut Random::new(1)));
    let lower = |index: u32| Lower { device: XVDA + 16 * index, partition: None };
    all.into_iter().zip(0u32..).map(|(disk, index)| (lower(index), slab(disk))).collect()
}

fn fixtures(names: &[&str]) -> Disks {
    disks(names.iter().map(|name| lvm::fixture(name)).collect())
}

fn open(disks: &Disks, group: &str, volume: &str) -> Result<Group<Slab>, String> {
    finish(Group::read(disks, &Name::new(group, volume).unwrap())).map_err(|error| error.to_string())
}

fn find(disks: &Disks, group: &str, volume: &str) -> Result<Vec<(usize, u64)>, String> {
    let group = open(disks, group, volume)?;
    let found = group.find(volume).map_err(|error| error.to_string())?;
    let number = |disk: usize| disks.iter().position(|(_, one)| Rc::ptr_eq(one, &group.disks()[disk])).unwrap();
    Ok(found.runs.iter().flat_map(sectors).map(|(disk, sector)| (number(disk), sector)).collect())
}

/// Each sector of a run, in order.
fn sectors(run: &Run) -> impl Iterator<Item = (usize, u64)> {
    (0..run.sectors).map(|at| {
        let (row, legs) = (at / run.stripe, run.legs.len() as u64);
        let (disk, start) = run.legs[(row % legs) as usize];
        (disk, start + row / legs * run.stripe + at % run.stripe)
    })
}

/// Each sector of each volume, as `lvs` and `pvs` say: extents of the disks, one after the other or in stripes.
fn said(folder: &str, names: &[&str]) -> BTreeMap<String, Vec<(usize, u64)>> {
    let starts: BTreeMap<_, _> =
        lvm::said(&format!("{folder}/pvs")).into_iter().map(|line| (line[0].clone(), number(&line[5]))).collect();
    let mut volumes = BTreeMap::<String, Vec<_>>::new();
    for line in lvm::said(&format!("{folder}/lvs")) {
        let extent = number(&line[9]);
        let volume = volumes.entry(line[0].clone()).or_default();
        if !matches!(&*line[1], "linear" | "striped") {
            continue;
        }
        assert_eq!(volume.len() as u64, number(&line[2]) * extent, "{line:?}");
        let legs: Vec<_> = line[4]
            .split(',')
            .map(|leg| {
                let (disk, range) = leg.split_once(':').unwrap();
                let (first, last) = range.split_once('-').unwrap();
                let number_of = names.iter().position(|name| *name == disk).unwrap();
                assert_eq!(number(&line[3]) % number(&line[6]), 0);
                (number_of, starts[disk] + number(first) * extent, (number(last) - number(first) + 1) * extent)
            })
            .collect();
        let stripe = if legs.len() == 1 { legs[0].2 } else { number(&line[7]) };
        for row in 0..legs[0].2 / stripe {
            for (disk, start, _) in &legs {
                volume.extend((0..stripe).map(|at| (*disk, start + row * stripe + at)));
            }
        }
    }
    volumes
}

fn number(text: &str) -> u64 {
    text.parse().unwrap()
}

#[test]
fn every_sector_is_where_lvm2_says() {
    for (folder, group, names) in [
        ("manager", MANAGER, ["one", "two"]),
        ("ring-before", "ring", ["left", "right"]),
        ("ring", "ring", ["left", "right"]),
    ] {
        let disks = fixtures(&names.map(|name| format!("{folder}/{name}")).each_ref().map(String::as_str));
        let volumes = said(folder, &names);
        assert!(!volumes.is_empty());
        for (volume, sectors) in volumes {
            match &*volume {
                "zeroes" => {
                    let error = find(&disks, group, &volume).unwrap_err();
                    assert!(error.contains("segment type \"zero\" is not supported"), "{error}");
                }
                _ => assert!(find(&disks, group, &volume).unwrap() == sectors, "{folder}: {volume}"),
            }
        }
    }
    let manager = fixtures(&["manager/one", "manager/two"]);
    for gone in ["MGT", "before", "lin", ""] {
        let Some(name) = Name::new(MANAGER, gone) else { continue };
        let group = finish(Group::read(&manager, &name)).unwrap();
        let error = group.find(gone).unwrap_err();
        assert_eq!(error.errno, Errno::ENOENT, "{error}");
    }
    let group = open(&manager, MANAGER, "linear").unwrap();
    let read_only = |volume| group.find(volume).unwrap().read_only;
    assert_eq!((read_only("after"), read_only("linear")), (true, false));
}

#[test]
fn the_home_is_the_disk_with_most_of_the_volume() {
    let disks = fixtures(&["manager/one", "manager/two"]);
    for (volume, home) in [("linear", 0), ("x-y--z", 1), (VHD, 0)] {
        let group = open(&disks, MANAGER, volume).unwrap();
        assert!(Rc::ptr_eq(&group.disks()[0], &disks[home].1), "{volume}");
        let runs = group.find(volume).unwrap().runs;
        assert_eq!(runs[0].legs.len(), 1);
    }
}

#[test]
fn an_image_names_volumes_of_its_own_group_alone() {
    let group = open(&fixtures(&["manager/one", "manager/two"]), MANAGER, VHD).unwrap();
    for (name, expected) in [
        ("after".to_string(), Some("after")),
        ("./after".to_string(), Some("after")),
        (format!("/dev/{MANAGER}/after"), Some("after")),
        (format!("/dev/mapper/{}-after", MANAGER.replace('-', "--")), Some("after")),
        ("/dev/other/after".to_string(), None),
        ("../after".to_string(), None),
        ("./a/after".to_string(), None),
        ("/dev/xvda".to_string(), None),
        ("".to_string(), None),
        ("..".to_string(), None),
    ] {
        assert_eq!(group.inside(&name).as_deref(), expected, "{name}");
    }
}

/// The sectors of a fixture's areas: their headers.
const AREAS: [(usize, [u64; 2]); 2] = [(0, [8, 129024]), (1, [8, 194560])];

#[test]
fn one_whole_area_is_enough() {
    let volume = said("manager", &["one", "two"]).remove("linear").unwrap();
    let all: Vec<_> = AREAS.iter().flat_map(|(disk, areas)| areas.iter().map(|area| (*disk, *area))).collect();
    let area_of = |disk: &Slab, area: u64| {
        let mut header = [0; SECTOR];
        disk.disk.borrow().read(area, &mut header);
        assert_eq!(&header[4..20], b" LVM2 x[5A%r0N*>", "sector {area}");
        let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
        (area, area + word(40) / 512)
    };
    for kept in 0..=all.len() {
        for at_text in [false, true] {
            let disks = fixtures(&["manager/one", "manager/two"]);
            for (disk, area) in all.iter().enumerate().filter(|(index, _)| *index != kept).map(|(_, area)| area) {
                let slab = &disks[*disk].1;
                let (header, text) = area_of(slab, *area);
                // In a text it is a digit of some number.
                let sector = if at_text { text } else { header };
                let mut bytes = [0; SECTOR];
                slab.disk.borrow().read(sector, &mut bytes);
                let at = if at_text { bytes.iter().rposition(u8::is_ascii_digit).unwrap() } else { 45 };
                bytes[at] ^= 1;
                slab.disk.borrow_mut().write(sector, &bytes);
            }
            let found = find(&disks, MANAGER, "linear");
            match kept == all.len() {
                true => {
                    let error = found.unwrap_err();
                    assert!(error.starts_with("5 ") && error.contains("wrong checksum"), "{error}");
                    assert!(error.contains("/dev/xvda: sector 8"), "{error}");
                }
                false => assert!(found.unwrap() == volume, "area {kept}"),
            }
        }
    }
}

#[test]
fn the_newest_text_is_the_one() {
    let volume = said("ring", &["left", "right"]).remove("a").unwrap();
    for names in [["ring-before/left", "ring/right"], ["ring/left", "ring-before/right"]] {
        assert!(find(&fixtures(&names), "ring", "a").unwrap() == volume);
    }
    let mut header = [0; SECTOR];
    lvm::fixture("ring/left").read(8, &mut header);
    let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
    assert!(word(40) + word(48) > word(32), "the text ends where the ring does");
}

#[test]
fn a_missing_disk_is_named_by_its_uuid() {
    let uuid = lvm::said("manager/pvs")[1][1].clone();
    let disks = fixtures(&["manager/one"]);
    assert!(find(&disks, MANAGER, "after").is_ok(), "all of it is on the other disk");
    let error = find(&disks, MANAGER, "linear").unwrap_err();
    assert!(error.starts_with("19 ") && error.contains(&uuid) && error.contains("missing"), "{error}");
    let twice = fixtures(&["manager/one", "manager/two", "manager/two"]);
    let error = find(&twice, MANAGER, "linear").unwrap_err();
    assert!(error.contains(&uuid) && error.contains("on both /dev/xvdb and /dev/xvdc"), "{error}");
    assert!(find(&disks, "other", "linear").unwrap_err().starts_with("2 /dev/other: no lower disk"));
}

const ID: &[u8; 32] = b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const OTHER: &[u8; 32] = b"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// What a volume of one disk of 10,000 sectors comes to.
fn one(volumes: &str) -> Result<Vec<(usize, u64)>, String> {
    let mut disk = Disk::new(10_000);
    lvm::write(&mut disk, ID, &text("vg", &lvm::id(OTHER), 1, &[&lvm::id(ID)], volumes));
    find(&disks(vec![disk]), "vg", "lv")
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    let linear = |extent: u32| format!("type = \"striped\"\nstripe_count = 1\nstripes = [\"pv0\", {extent}]");
    let of = |segments: &str| one(&volume("lv", 1, segments));
    let place = |sector: u64, sectors: u64| (sector..sector + sectors).map(|at| (0, at)).collect::<Vec<_>>();
    assert_eq!(of(&segment(1, 0, 2, &linear(3))).unwrap(), place(2048 + 3 * 64, 128));
    let two = [segment(1, 0, 2, &linear(3)), segment(2, 2, 1, &linear(5))].concat();
    assert_eq!(one(&volume("lv", 2, &two)).unwrap(), place(2048 + 3 * 64, 192), "one run");
    for kind in
        ["thin", "thin-pool", "raid1", "raid10", "mirror", "cache", "snapshot", "vdo", "zero", "error", "writecache"]
    {
        let error = of(&segment(1, 0, 2, &format!("type = \"{kind}\"\nstripe_count = 1\n"))).unwrap_err();
        let says = format!("95 /dev/vg/lv: segment 1: the segment type \"{kind}\" is not supported");
        assert_eq!(error, says);
    }
    let two_legs = "type = \"striped\"\nstripe_count = 2\nstripe_size = 16\nstripes = [\"pv0\", 0, \"pv0\", 4]";
    assert_eq!(of(&segment(1, 0, 2, two_legs)).unwrap()[..17].iter().map(|at| at.1 - 2048).max(), Some(4 * 64));
    for (segments, says) in [
        (String::new(), "segment_count is 1, and there are 0"),
        (two.clone(), "segment_count is 1, and there are 2"),
        (segment(1, 1, 2, &linear(0)), "start_extent is not 0"),
        (segment(1, 0, 0, &linear(0)), "extent_count 0 for 1 stripes"),
        (segment(1, 0, 1, &linear(100)), "1 extents from 100 on of 100 on physical volume aaaaaa-"),
        (segment(1, 0, u32::MAX, &linear(0)), "4294967295 extents from 0 on of 100"),
        (segment(1, 0, 2, &linear(u32::MAX)), "2 extents from 4294967295 on"),
        (segment(1, 0, 3, two_legs), "extent_count 3 for 2 stripes"),
        (segment(1, 0, 2, &two_legs.replace("16", "0")), "stripe_size 0"),
        (segment(1, 0, 2, &two_legs.replace("16", "48")), "stripe_size 48 for stripes of 64 sectors"),
        (segment(1, 0, 2, &two_legs.replace("count = 2", "count = 3")), "stripe_count is 3, and there are 2 stripes"),
        (segment(1, 0, 2, &linear(0).replace("pv0", "pvmove0")), "it lies on \"pvmove0\""),
        (segment(1, 0, 2, "type = \"striped\"\nstripe_count = 1\n"), "and there are 0 stripes"),
    ] {
        let error = of(&segments).expect_err(says);
        assert!(error.starts_with("22 /dev/vg/lv: ") || error.starts_with("95 "), "{error}");
        assert!(error.contains(says), "{error}: {says}");
    }
    // 100 extents of 64 sectors from 2048 on need 8,448 sectors.
    let mut disk = Disk::new(8_447);
    let volumes = volume("lv", 1, &segment(1, 0, 100, &linear(0)));
    lvm::write(&mut disk, ID, &text("vg", &lvm::id(OTHER), 1, &[&lvm::id(ID)], &volumes));
    let error = find(&disks(vec![disk]), "vg", "lv").unwrap_err();
    assert!(error.contains("ends behind the end of /dev/xvda (8447 sectors)"), "{error}");
    for (was, is, says) in [
        ("seqno = 1", "", "seqno is not there"),
        ("extent_size = 64", "extent_size = 0", "extent_size is not there, or cannot be"),
        ("pe_start = 2048", "pe_start = 2047", "overlap its metadata"),
        ("pe_start = 2048", "flags = [\"MISSING\"] pe_start = 2048", "is marked as missing"),
        ("pe_count = 100", "", "pe_count is not there"),
        ("\"READ\", \"WRITE\"", "\"EXPORTED\"", "the volume group is exported"),
        ("\"VISIBLE\"", "\"X\"", "hidden part of another"),
        ("vg {", "vg {{", "'{' out of place"),
        ("# end", "end", "'\\x00' out of place"),
        ("}\n# end", "# end", "'\\x00' out of place"),
    ] {
        let mut disk = Disk::new(10_000);
        let whole = text("vg", &lvm::id(OTHER), 1, &[&lvm::id(ID)], &volumes).replacen(was, is, 1);
        lvm::write(&mut disk, ID, &whole);
        let error = find(&disks(vec![disk]), "vg", "lv").expect_err(says);
        assert!(error.contains(says), "{error}: {says}");
    }
}

#[test]
fn groups_that_cannot_be_told_apart() {
    let linear = "type = \"striped\"\nstripe_count = 1\nstripes = [\"pv0\", 0]";
    let lv = volume("lv", 1, &segment(1, 0, 2, linear));
    let pair = |ids: [&[u8; 32]; 2], seqno: [u32; 2], volumes: [&str; 2]| {
        let both = [0, 1].map(|n| {
            let mut disk = Disk::new(10_000);
            let physical = [ID, OTHER].map(lvm::id);
            let physical: Vec<_> = physical.iter().map(String::as_str).collect();
            lvm::write(&mut disk, [ID, OTHER][n], &text("vg", &lvm::id(ids[n]), seqno[n], &physical, volumes[n]));
            disk
        });
        find(&disks(both.into()), "vg", "lv")
    };
    assert!(pair([ID, ID], [1, 1], [&lv, &lv]).is_ok());
    assert!(pair([ID, ID], [2, 1], [&lv, ""]).is_ok());
    assert!(pair([ID, ID], [1, 2], [&lv, ""]).unwrap_err().contains("no such logical volume"));
    let error = pair([ID, OTHER], [1, 2], [&lv, &lv]).unwrap_err();
    assert!(error.contains("two volume groups have this name"), "{error}");
    assert!(error.contains(&lvm::id(ID)) && error.contains(&lvm::id(OTHER)), "{error}");
    let error = pair([ID, ID], [1, 1], [&lv, ""]).unwrap_err();
    assert!(error.contains("disagree"), "{error}");
}

#[test]
fn a_guest_writes_where_lvm2_says() {
    seeds(0..6, |seed| {
        let name = ["linear", "striped", "x-y--z"][seed as usize % 3];
        let mut run = World::new(seed);
        let lower = ["manager/one", "manager/two"].map(|name| Rc::new(RefCell::new(lvm::fixture(name))));
        let backs = [0, 1].map(|n| {
            let back = run.lower(XVDA + 16 * n, &lower[n as usize]);
            back.borrow_mut().options = Options::any(&mut run.random);
            back
        });
        let before = lower.each_ref().map(|disk| disk.borrow().bytes().to_vec());
        let mut stage = Stage::boot_over(run, lower[0].clone(), backs[0].clone());
        let places = said("manager", &["one", "two"]).remove(name).unwrap();
        let content: Vec<u8> =
            places.iter().flat_map(|(disk, at)| before[*disk][*at as usize * SECTOR..][..SECTOR].to_vec()).collect();
        let model = Model::of(&content);
        let target = match seed % 2 {
            0 => format!("aio:/dev/{MANAGER}/{name}"),
            _ => format!("aio:/dev/mapper/{}-{}", MANAGER.replace('-', "--"), name.replace('-', "--")),
        };
        let guest = stage.guest(Vbd::new(DRIVER, GUEST, &target), &model);
        stage.attach(&guest);
        guest.front.borrow_mut().work(Workload::mixed(200));
        stage.run.at_rest(&guest.front);
        stage.verify(&guest);
        let (mut expected, mut now) = (before, Vec::new());
        for (disk, at) in &places {
            let (disk, at) = (*disk, *at as usize * SECTOR);
            let sector = lower[disk].borrow().bytes()[at..at + SECTOR].to_vec();
            expected[disk][at..at + SECTOR].copy_from_slice(&sector);
            now.extend(sector);
        }
        model.borrow().compare(&now).expect("dom0 finds what the guest wrote where lvm2 says");
        for (disk, expected) in lower.iter().zip(&expected) {
            assert!(disk.borrow().bytes() == &expected[..], "{name}: something was written that is not the guest's");
        }
        stage.detach(&guest);
        stage.assert_clean();
    });
}
