//! VHD images under real guests, judged by readers that we did not write.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::agent::backend::Source;
use crate::agent::exercise::Exercise::{Checksum, Cycle, Expect, Files, Fio, FioCheck, Size, Write};
use crate::agent::load::{DEPTH, Load};
use crate::agent::lower::convert_vhd;
use crate::agent::process::run;
use crate::agent::tap_ctl::done;
use crate::agent::world::{Side, World};

/// The lower disk that the image lies on.
const MAIN: usize = 0;
/// The disk that the image is.
const MEBIBYTES: u64 = 160;

fn xvda() -> String {
    "/dev/xvda".to_owned()
}

/// QEMU makes the image; a guest lives on it; QEMU reads it.
pub fn qemu(world: &mut World<'_>) -> Result<()> {
    world.lower[MAIN].make_vhd(MEBIBYTES)?;
    let pv = world.guest("pv", "pv", &[])?;
    world.attach(pv, "xvda", "rw", Source::Vhd(MAIN))?;
    let size = world.ask(pv, &Size { disk: xvda() })?;
    ensure!(size == (MEBIBYTES << 20).to_string(), "the guest sees {size} bytes");
    let (seed, mebibytes) = (61, 48);
    let through = world.ask(pv, &Cycle { disk: xvda(), seed, mebibytes })?;
    world.detach(pv, "xvda")?;
    let read = world.look_into_vhd(MAIN, |disk| Files { disk, seed, mebibytes })?;
    ensure!(through.starts_with(&read), "the guest found {through}, dom0 found {read}");
    // And once more by another frontend, at random.
    let seed = 62;
    world.attach(Side::Dom0, "xvda", "rw", Source::Vhd(MAIN))?;
    world.ask(Side::Dom0, &Fio { disk: xvda(), seed })?;
    let whole = |disk| Checksum { disk, offset: 0, length: MEBIBYTES << 20 };
    let through = world.ask(Side::Dom0, &whole(xvda()))?;
    world.detach(Side::Dom0, "xvda")?;
    let read = world.look_into_vhd(MAIN, whole)?;
    ensure!(through == read, "the frontend reads {through}, QEMU {read}");
    world.look_into_vhd(MAIN, |disk| FioCheck { disk, seed }).map(drop)
}

/// What LVM2 takes for a handful of commands under emulation.
const LVM: Duration = Duration::from_secs(60);

/// Storage managers name groups so.
const GROUP: &str = "VG_XenStorage-4f1c6d2e-9a53-7b08-e1d4-0c5a8b7f3e21";
const BASE: &str = "/dev/VG_XenStorage-4f1c6d2e-9a53-7b08-e1d4-0c5a8b7f3e21/VHD-base";
const MIDDLE: &str = "/dev/VG_XenStorage-4f1c6d2e-9a53-7b08-e1d4-0c5a8b7f3e21/VHD-middle";
const LEAF: &str = "/dev/VG_XenStorage-4f1c6d2e-9a53-7b08-e1d4-0c5a8b7f3e21/VHD-leaf";

/// LVM2 in a dom0 without udev.
fn lvm(words: &[&str]) -> Result<String> {
    let settings = "activation{udev_sync=0 udev_rules=0 monitoring=0} devices{use_devicesfile=0 scan=[\"/dev\"] \
                    filter=[\"a|/dev/loop0|\",\"r|.*|\"]} global{use_lvmpolld=0} backup{backup=0 archive=0}";
    run(&[&["lvm"], words, &["--config", settings]].concat(), LVM)
}

/// Does something with the volumes as devices of dom0; tapdom must not be at them.
fn active<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    lvm(&["vgchange", "-q", "-ay", GROUP])?;
    let done = work();
    lvm(&["vgchange", "-q", "-an", GROUP])?;
    done
}

/// A storage manager's life with a disk: a base, a snapshot, another one under load, all read back.
pub fn volumes(world: &mut World<'_>) -> Result<()> {
    let device = world.lower[MAIN].device.clone();
    run(&["busybox", "dd", "if=/dev/zero", &format!("of={device}"), "bs=1M", "count=2", "conv=notrunc,fsync"], LVM)?;
    lvm(&["pvcreate", "-q", "-ff", "-y", &device])?;
    lvm(&["vgcreate", "-q", GROUP, &device])?;
    for (name, size) in [("VHD-base", "68M"), ("VHD-middle", "52M"), ("VHD-leaf", "52M")] {
        lvm(&["lvcreate", "-q", "-an", "-Zn", "-Wn", "-y", "-n", name, "-L", size, GROUP])?;
    }
    active(|| run(&["vhd", "create", BASE, "64M"], LVM))?;
    // The base gets a file system by a guest, whose toolstack names the format.
    let (seed, mebibytes) = (71, 20);
    let pv = world.guest("pv", "pv", &[])?;
    world.attach(pv, "xvda", "rw", Source::Qdisk(BASE))?;
    world.ask(pv, &Cycle { disk: xvda(), seed, mebibytes })?;
    world.detach(pv, "xvda")?;
    active(|| run(&["vhd", "snapshot", MIDDLE, BASE], LVM))?;
    // The snapshot under load, paused, snapshotted, and on.
    done(&["create", "-a", &format!("vhd:{MIDDLE}")])?;
    world.attach(Side::Dom0, "xvda", "rw", Source::Minor(0))?;
    let at = |mebibyte: u64, seed| (mebibyte << 20, 1 << 20, seed);
    let write = |world: &mut World<'_>, (offset, length, seed)| {
        world.ask(Side::Dom0, &Write { disk: xvda(), offset, length, seed })
    };
    write(world, at(50, 72))?;
    let load = Load::begin("/dev/xvda", 73)?;
    load.await_more(10 * DEPTH)?;
    done(&["pause", "-m", "0"])?;
    active(|| run(&["vhd", "snapshot", LEAF, MIDDLE], LVM))?;
    done(&["unpause", "-m", "0", "-a", &format!("vhd:{LEAF}")])?;
    load.await_more(10 * DEPTH)?;
    let requests = load.end()?;
    write(world, at(52, 74))?;
    let whole = |disk| Checksum { disk, offset: 0, length: 64 << 20 };
    let through = world.ask(Side::Dom0, &whole(xvda()))?;
    world.reporter.detail(&format!("{requests} requests on both sides of the snapshot; the disk is then {through}"));
    world.detach(Side::Dom0, "xvda")?;
    done(&["destroy", "-m", "0"])?;
    // Each layer by the tool's own eyes, the base by QEMU's; then all of it in one image, by QEMU's again.
    active(|| {
        run(&["vhd", "check", "--chain", "--sound", LEAF], LVM)?;
        convert_vhd(BASE)
    })?;
    world.look_at_converted(|disk| Files { disk, seed, mebibytes })?;
    active(|| {
        run(&["vhd", "coalesce", LEAF], LVM)?;
        run(&["vhd", "coalesce", MIDDLE], LVM)?;
        convert_vhd(BASE)
    })?;
    let read = world.look_at_converted(whole)?;
    ensure!(read == through, "QEMU reads {read} of the coalesced base, the frontend read {through}");
    for (offset, length, seed) in [at(50, 72), at(52, 74)] {
        world.look_at_converted(|disk| Expect { disk, offset, length, seed })?;
    }
    lvm(&["vgremove", "-q", "-f", "-y", GROUP]).map(drop)
}
