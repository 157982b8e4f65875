//! Every disk there is, held to the same contract: one line each.

use drivers::device::ram::Ram;
use drivers::format::vhd::make::{Form, New};
use sim::blkback::Options;
use sim::conformance::{alone, lower, metadata, opened};
use sim::gpt;
use sim::image::lay;
use sim::lvm;
use sim::random::Random;
use sim::run::seeds;

/// Every way a backend of dom0 may offer a disk, by a number below this.
const WAYS: u64 = 5 * 3 * 2 * 2 * 2;

fn way(number: u64) -> Options {
    let mut left = number;
    let mut pick = |of: u64| {
        let picked = left % of;
        left /= of;
        picked
    };
    Options {
        order: pick(5) as u32,
        indirect: [0, 16, 256][pick(3) as usize],
        persistent: pick(2) == 0,
        flush: pick(2) == 0,
        discard: pick(2) == 0,
        ..Options::any(&mut Random::new(number))
    }
}

fn read_only() -> Options {
    Options { read_only: true, ..Options::default() }
}

#[test]
fn ram() {
    seeds(0..10, |seed| alone(seed, &Ram::new(40).unwrap()));
}

#[test]
fn a_lower_disk_in_every_way_it_is_offered() {
    seeds(0..WAYS, |seed| lower(seed, Options { latency: Default::default(), ..way(seed) }));
}

#[test]
fn metadata_of_images_on_a_lower_disk() {
    seeds(0..20, |seed| metadata(seed, way(seed * 7)));
}

#[test]
fn a_lower_disk_that_is_read_only() {
    seeds(0..3, |seed| lower(seed, read_only()));
}

#[test]
fn a_stack_on_ram() {
    seeds(0..3, |seed| opened(seed, "ram:256K", Options::default(), |_| {}));
}

#[test]
fn a_stack_on_a_whole_disk() {
    seeds(0..6, |seed| opened(seed, "aio:/dev/xvda", way(seed * 7), |_| {}));
}

#[test]
fn a_stack_on_a_partition() {
    seeds(0..6, |seed| opened(seed, "aio:/dev/xvda1", way(seed * 7), |disk| gpt::write(disk, &[(63, 401)])));
}

#[test]
fn a_stack_on_a_partition_that_is_read_only() {
    seeds(0..3, |seed| opened(seed, "aio:/dev/xvda1", read_only(), |disk| gpt::write(disk, &[(63, 401)])));
}

/// A volume of LVM2 that is read-only on a disk that is not.
#[test]
fn a_stack_on_a_volume_that_is_read_only() {
    let [disk_id, group_id] = [&[b'p'; 32], &[b'g'; 32]];
    let segment = lvm::segment(1, 0, 3, "type = \"striped\"\nstripe_count = 1\nstripes = [\"pv0\", 2]");
    let volume = lvm::volume("lv", 1, &segment).replace(", \"WRITE\"", "");
    let text = lvm::text("vg", &lvm::id(group_id), 1, &[&lvm::id(disk_id)], &volume);
    seeds(0..3, |seed| {
        opened(seed, "aio:/dev/vg/lv", Options::default(), |disk| {
            disk.resize(2048 + 100 * 64);
            lvm::write(disk, disk_id, &text);
        });
    });
}

fn a_vhd(form: Form<'_>) -> New<'_> {
    New { id: [9; 16], sectors: 300, timestamp: 0, form }
}

#[test]
fn a_stack_of_a_dynamic_vhd() {
    seeds(0..12, |seed| {
        let block = [8, 16, 64][seed as usize % 3];
        // Blocks of 4 KiB have as much around them as in them.
        let new = New { sectors: if block == 64 { 300 } else { 200 }, ..a_vhd(Form::Dynamic(block)) };
        opened(seed, "vhd:/dev/xvda", way(seed * 7), |disk| lay(disk, &new));
    });
}

#[test]
fn a_stack_of_a_fixed_vhd() {
    seeds(0..6, |seed| opened(seed, "vhd:/dev/xvda", way(seed * 11), |disk| lay(disk, &a_vhd(Form::Fixed))));
}

#[test]
fn a_stack_of_a_vhd_that_is_read_only() {
    seeds(0..3, |seed| opened(seed, "vhd:/dev/xvda", read_only(), |disk| lay(disk, &a_vhd(Form::Dynamic(64)))));
}
