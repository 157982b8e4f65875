//! VHD images under real guests, judged by readers that we did not write.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::agent::backend::Source;
use crate::agent::exercise::Exercise::{
    self, Checksum, Cycle, Files, Fio, FioCheck, Found, Furnish, Grow, Keep, Kept, LoadMany, Replay, Size, StopMany,
    Written,
};
use crate::agent::load::DEPTH;
use crate::agent::lower::{convert_vhd, read_chain};
use crate::agent::process::run;
use crate::agent::system::wait_until;
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

/// The lower disks that the group lies on.
const GROUP_DISKS: [usize; 2] = [0, 2];

/// Storage managers name groups so.
const GROUP: &str = "VG_XenStorage-4f1c6d2e-9a53-7b08-e1d4-0c5a8b7f3e21";
const BASE: &str = "/dev/VG_XenStorage-4f1c6d2e-9a53-7b08-e1d4-0c5a8b7f3e21/VHD-base";
const ONE: &str = "/dev/VG_XenStorage-4f1c6d2e-9a53-7b08-e1d4-0c5a8b7f3e21/VHD-one";
const TWO: &str = "/dev/VG_XenStorage-4f1c6d2e-9a53-7b08-e1d4-0c5a8b7f3e21/VHD-two";
const THREE: &str = "/dev/VG_XenStorage-4f1c6d2e-9a53-7b08-e1d4-0c5a8b7f3e21/VHD-three";

/// The disk that the chain is.
const WHOLE: u64 = 80 << 20;

/// Each layer has files of its own, so that none can be taken for another: seed and mebibytes.
const LAYERS: [(u64, u64); 4] = [(71, 8), (72, 6), (73, 4), (74, 3)];

/// The seed of the load.
const LOAD: u64 = 75;

/// Some hundred requests of a guest, on a host whose processors have other work.
const LOAD_MOVES: Duration = Duration::from_secs(60);

/// The guest that has its root on the chain.
const ROOTED: Side = Side::Guest("rooted");
/// That root.
const OWN: &str = "/";

/// LVM2 in a dom0 without udev.
fn lvm(words: &[&str]) -> Result<String> {
    let settings = "activation{udev_sync=0 udev_rules=0 monitoring=0} devices{use_devicesfile=0 issue_discards=1 \
                    scan=[\"/dev\"] filter=[\"a|/dev/loop[02]$|\",\"r|.*|\"]} global{use_lvmpolld=0} \
                    backup{backup=0 archive=0}";
    run(&[&["lvm"], words, &["--config", settings]].concat(), LVM)
}

/// Does something with the volumes as devices of dom0; what is written there must not be tapdom's at the time.
fn active<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    lvm(&["vgchange", "-q", "-ay", GROUP])?;
    let done = work();
    lvm(&["vgchange", "-q", "-an", GROUP])?;
    done
}

/// A group over two disks with a volume for each image of the chain: one in stripes, one in pieces.
fn make_group(devices: &[String; 2]) -> Result<()> {
    for device in devices {
        run(
            &["busybox", "dd", "if=/dev/zero", &format!("of={device}"), "bs=1M", "count=2", "conv=notrunc,fsync"],
            LVM,
        )?;
    }
    let [first, second] = devices;
    lvm(&["pvcreate", "-q", "-ff", "-y", first, second])?;
    lvm(&["vgcreate", "-q", GROUP, first, second])?;
    let volumes: [(&str, &str, &[&str]); 4] = [
        ("VHD-base", "84M", &[]),
        ("VHD-one", "40M", &["-i", "2", "-I", "64k"]),
        ("VHD-two", "44M", &[]),
        ("VHD-three", "44M", &[]),
    ];
    for (name, size, more) in volumes {
        let words = ["lvcreate", "-q", "-an", "-Zn", "-Wn", "-y", "-n", name, "-L", size];
        lvm(&[&words[..], more, &[GROUP]].concat())?;
    }
    Ok(())
}

/// A storage manager's life with a disk: a base and two snapshots, a guest that lives on the last of them, another
/// snapshot under its load, every layer read back.
pub fn volumes(world: &mut World<'_>) -> Result<()> {
    let devices = GROUP_DISKS.map(|disk| world.lower[disk].device.clone());
    make_group(&devices)?;
    let [base, one] = make_layers(world)?;
    let last = live(world)?;
    // What the snapshot froze, as libvhdi reads it: what the guest had been told is written, and what it was at.
    let two = read_frozen(world, &last)?;
    world.ask(ROOTED, &keep(3, OWN))?;
    for layer in 0..4 {
        world.ask(ROOTED, &kept(layer, OWN))?;
    }
    world.shut_down("rooted")?;
    let three = through(world, Source::Image(THREE), |_| Ok(()))?;
    // Each layer by libvhdi, which knows nothing of us; the base, which is no differencing disk, by QEMU too.
    let layers: [(&[&str], &str); 4] =
        [(&[BASE], &base), (&[ONE, BASE], &one), (&[TWO, ONE, BASE], &two), (&[THREE, TWO, ONE, BASE], &three)];
    for (images, expected) in layers {
        active(|| read_chain(images))?;
        let read = world.look_at_converted(whole)?;
        ensure!(read == expected, "libvhdi reads {read} of {}, not {expected}", images[0]);
    }
    for layer in 0..4 {
        world.look_at_converted(|disk| kept(layer, &disk))?;
    }
    let found = world.look_at_converted(|disk| found(disk, &last.end))?;
    ensure!(counts(&found)? == last.end, "the guest wrote {:?}, the new leaf has {found}", last.end);
    let read = active(|| {
        run(&["vhd", "check", "--chain", "--sound", THREE], LVM)?;
        convert_vhd(BASE)
    })
    .and_then(|()| world.look_at_converted(whole))?;
    ensure!(read == base, "QEMU reads {read} of the base, the frontend read {base}");
    coalesce(world, &three)?;
    lvm(&["vgremove", "-q", "-f", "-y", GROUP])?;
    lvm(&["pvremove", "-q", &devices[0], &devices[1]]).map(drop)
}

/// All of it goes into one image, the leaf's under a disk that is in use, and that becomes larger under one.
fn coalesce(world: &mut World<'_>, held: &str) -> Result<()> {
    let read = through(world, Source::Image(THREE), |_| {
        active(|| run(&["vhd", "coalesce", THREE, "--minor", &minor_of(THREE)?], LVM))?;
        minor_of(TWO).map(drop)
    })?;
    ensure!(read == held, "the frontend reads {read} of the image that the leaf went into, it read {held} before");
    // What is written into has to have room for that.
    lvm(&["lvextend", "-q", "-i", "1", "-L", "+32M", ONE])?;
    active(|| {
        run(&["vhd", "coalesce", TWO], LVM)?;
        run(&["vhd", "coalesce", ONE], LVM)
    })?;
    through(world, Source::Image(BASE), |world| {
        let bytes = WHOLE + (8 << 20);
        active(|| run(&["vhd", "resize", BASE, &bytes.to_string(), "--minor", &minor_of(BASE)?], LVM))?;
        world.ask(Side::Dom0, &Grow { disk: xvda(), bytes }).map(drop)
    })?;
    active(|| convert_vhd(BASE))?;
    let read = world.look_at_converted(whole)?;
    ensure!(read == held, "QEMU reads {read} of the coalesced base, the frontend read {held}");
    Ok(())
}

/// The base is a guest's root, the first snapshot has a little more, the second one nothing yet. The toolstack names the
/// format, or the type. What dom0's frontend reads of both.
fn make_layers(world: &mut World<'_>) -> Result<[String; 2]> {
    active(|| run(&["vhd", "create", BASE, &format!("{}M", WHOLE >> 20)], LVM))?;
    let (seed, mebibytes) = LAYERS[0];
    let base = through(world, Source::Qdisk(BASE), |world| {
        world.ask(Side::Dom0, &Furnish { disk: xvda(), seed, mebibytes }).map(drop)
    })?;
    active(|| run(&["vhd", "snapshot", ONE, BASE], LVM))?;
    let one = through(world, Source::Image(ONE), |world| world.ask(Side::Dom0, &keep(1, "/dev/xvda")).map(drop))?;
    active(|| run(&["vhd", "snapshot", TWO, ONE], LVM))?;
    Ok([base, one])
}

/// How many writes each thread of the guest's load had done.
struct Writes {
    /// Before `vhd snapshot` began.
    before: Vec<u64>,
    /// After it was done.
    after: Vec<u64>,
    /// When the load ended.
    end: Vec<u64>,
}

/// A guest boots from the second snapshot, and while its load runs there is a third one.
fn live(world: &mut World<'_>) -> Result<Writes> {
    const MORE: u64 = 10 * DEPTH as u64;
    world.rooted_guest("rooted", Source::Qdisk(TWO))?;
    for layer in 0..2 {
        world.ask(ROOTED, &kept(layer, OWN))?;
    }
    world.ask(ROOTED, &keep(2, OWN))?;
    world.ask(ROOTED, &LoadMany { disk: "/load".to_owned(), seed: LOAD })?;
    let before = await_writes(world, MORE)?;
    active(|| run(&["vhd", "snapshot", THREE, TWO, "--minor", &minor_of(TWO)?], LVM))?;
    minor_of(THREE)?;
    let after = counts(&world.ask(ROOTED, &Written)?)?;
    await_writes(world, MORE)?;
    let end = counts(&world.ask(ROOTED, &StopMany)?)?;
    Ok(Writes { before, after, end })
}

/// The image that the snapshot froze, under the new leaf: its checksum.
fn read_frozen(world: &mut World<'_>, writes: &Writes) -> Result<String> {
    active(|| read_chain(&[TWO, ONE, BASE]))?;
    let seen = world.look_at_converted(whole)?;
    // Its file system is as a power cut would have left it.
    world.look_at_converted(|disk| Replay { disk })?;
    for layer in 0..3 {
        world.look_at_converted(|disk| kept(layer, &disk))?;
    }
    let frozen = counts(&world.look_at_converted(|disk| found(disk, &writes.end))?)?;
    for ((before, frozen), after) in writes.before.iter().zip(&frozen).zip(&writes.after) {
        ensure!(
            before <= frozen && *frozen <= after + 1,
            "a thread had {before} writes answered before the snapshot and {after} after it, and {frozen} are in it"
        );
    }
    let sum = |counts: &[u64]| counts.iter().sum::<u64>();
    world.reporter.step(format!(
        "writes of the guest's load: {} before `vhd snapshot`, {} in what it froze, {} after it, {} in the end",
        sum(&writes.before),
        sum(&frozen),
        sum(&writes.after),
        sum(&writes.end)
    ));
    Ok(seen)
}

/// Waits until the guest's load has written so much more.
fn await_writes(world: &mut World<'_>, more: u64) -> Result<Vec<u64>> {
    let first: u64 = counts(&world.ask(ROOTED, &Written)?)?.iter().sum();
    let mut seen = Ok(Vec::new());
    wait_until("the load moves on", LOAD_MOVES, || {
        seen = world.ask(ROOTED, &Written).and_then(|text| counts(&text));
        seen.as_ref().map_or(true, |counts| counts.iter().sum::<u64>() >= first + more)
    })?;
    seen
}

fn counts(text: &str) -> Result<Vec<u64>> {
    let counts = text.split(' ').map(str::parse).collect::<Result<Vec<u64>, _>>();
    counts.with_context(|| format!("not the numbers of a load: {text}"))
}

/// The VBD that has an image open.
fn minor_of(path: &str) -> Result<String> {
    let list = done(&["list"])?;
    let line = list.lines().find(|line| line.ends_with(&format!(" args=vhd:{path}")));
    let minor = line.and_then(|line| line.split(' ').find_map(|word| word.strip_prefix("minor=")));
    minor.map(str::to_owned).with_context(|| format!("nothing has {path} open:\n{list}"))
}

/// What dom0's frontend reads of an image when something was done with it.
fn through(world: &mut World<'_>, source: Source, work: impl FnOnce(&mut World<'_>) -> Result<()>) -> Result<String> {
    world.attach(Side::Dom0, "xvda", "rw", source)?;
    work(world)?;
    let seen = world.ask(Side::Dom0, &whole(xvda()))?;
    world.detach(Side::Dom0, "xvda")?;
    Ok(seen)
}

fn whole(disk: String) -> Exercise {
    Checksum { disk, offset: 0, length: WHOLE }
}

fn keep(layer: usize, disk: &str) -> Exercise {
    let (seed, mebibytes) = LAYERS[layer];
    Keep { disk: disk.to_owned(), seed, mebibytes }
}

fn kept(layer: usize, disk: &str) -> Exercise {
    let (seed, mebibytes) = LAYERS[layer];
    Kept { disk: disk.to_owned(), seed, mebibytes }
}

/// What of a load that ended so is on a disk.
fn found(disk: String, end: &[u64]) -> Exercise {
    Found { disk, seed: LOAD, most: end.iter().max().map_or(0, |most| *most) }
}
