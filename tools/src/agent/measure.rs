//! dom0's part of the benchmark: one guest, one disk at a time, each served by another backend, and the same loads on each.
//! What is counted, QEMU counts; dom0 only says what ran when, and sleeps meanwhile.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::backend::{Server, devid, letter};
use super::domain::{self, XL};
use super::exercise::Exercise;
use super::pinned::{Pinned, Shape, device, devices};
use super::process::run;
use super::reporter::Reporter;
use super::{lower, raw, store};
use crate::report::Line;
use crate::workload::{self, DISKS, Peer, Plan, Workload};

/// The processor of the guest; dom0 has the first.
pub const GUEST: usize = 1;
/// Those of a guest that has more than one.
const GUESTS: [usize; 4] = [GUEST, 3, 4, 5];
/// tapdom's.
pub const TAPDOM: usize = 2;
/// Those of a tapdom that has more than one.
const TAPDOMS: [usize; 4] = [TAPDOM, 6, 7, 8];

/// dom0's RAM disk: what the peers serve, and tapdom's lower disk.
pub const BRD: &str = "/dev/ram0";

/// tapdom's RAM disk has the size of dom0's.
pub const MEBIBYTES: u64 = 64;

/// Another, with a VHD on it: tapdom's second lower disk.
const VHD: &str = "/dev/ram1";

/// The disk that the VHD is: one that fits with its tables.
const VHD_MEBIBYTES: u64 = MEBIBYTES - 2;

/// How many queues blkback offers.
const QUEUES: &str = "/sys/module/xen_blkback/parameters/max_queues";

/// Whether blkback offers persistent grants.
pub const PERSISTENT: &str = "/sys/module/xen_blkback/parameters/feature_persistent";

/// The symbols that Xen tells dom0.
const SYMBOLS: &str = "/proc/xen/xensyms";

/// Does what the plan says.
pub fn measure(reporter: &Reporter, plan: &Plan) -> Result<()> {
    symbols(reporter, plan)?;
    prepare()?;
    for peer in plan.peers.iter().filter(|peer| peer.has_queues()) {
        if let Some((name, vcpus)) = several(*peer) {
            start_several(name, &TAPDOMS[..vcpus])?;
        }
    }
    reporter.step("tapdom is ready");
    let (attached, created): (Vec<Peer>, Vec<Peer>) = plan.peers.iter().partition(|peer| **peer != Peer::Qdisk);
    let processors = &GUESTS[..plan.processors];
    if !attached.is_empty() {
        let mut guest = create(processors, &[])?;
        for peer in attached {
            for disks in [1, DISKS] {
                let workloads = workloads(plan, peer, disks)?;
                if !workloads.is_empty() {
                    attach(&mut guest, peer, disks)?;
                    loads(&mut guest, reporter, peer, &workloads, plan.processors)?;
                    for disk in names(disks) {
                        guest.detach(&disk)?;
                    }
                }
            }
        }
        guest.destroy()?;
    }
    for peer in created {
        for disks in [1, DISKS] {
            let workloads = workloads(plan, peer, disks)?;
            if !workloads.is_empty() {
                // libxl starts QEMU with the guest.
                let specs: Vec<String> = (0..disks).map(|at| spec(peer, at, disks)).collect();
                let mut guest = create(processors, &specs)?;
                loads(&mut guest, reporter, peer, &workloads, plan.processors)?;
                guest.destroy()?;
            }
        }
    }
    Ok(())
}

/// Fills dom0's RAM disks and starts tapdom.
pub fn prepare() -> Result<()> {
    lower::mount_tools()?;
    ensure!(raw::size(BRD)? == MEBIBYTES << 20, "{BRD} has {} bytes", raw::size(BRD)?);
    // A page of it that was never written costs less to read.
    raw::write(BRD, 0, MEBIBYTES << 20, 7)?;
    run(&["vhd", "create", VHD, &format!("{VHD_MEBIBYTES}M")], XL)?;
    fs::write(PERSISTENT, "1").context(PERSISTENT)?;
    start_tapdom()
}

fn create(processors: &[usize], disks: &[String]) -> Result<Pinned> {
    Pinned::create(&Shape { name: "guest", processors, mebibytes: None, disks })
}

/// The plan's loads on so many disks, with their numbers.
fn workloads(plan: &Plan, peer: Peer, disks: usize) -> Result<Vec<(usize, Workload)>> {
    let all = Workload::all();
    let known = |&index: &usize| Ok((index, *all.get(index).with_context(|| format!("no workload {index}"))?));
    let wanted: Vec<(usize, Workload)> = plan.workloads.iter().map(known).collect::<Result<_>>()?;
    let fits = |workload: &Workload| workload.disks == disks && (disks == 1 || peer.has_many_disks());
    Ok(wanted.into_iter().filter(|(_, workload)| fits(workload)).collect())
}

/// Addresses and names of functions of Xen, for whoever looks at the counts: those that the table has, or all. The port to
/// the host takes its time.
fn symbols(reporter: &Reporter, plan: &Plan) -> Result<()> {
    for line in fs::read_to_string(SYMBOLS).context(SYMBOLS)?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [address, "t" | "T", name, ..] = words[..]
            && (plan.names || workload::COUNTED.iter().any(|functions| functions.contains(&name)))
        {
            reporter.say(&Line::Record("symbol".to_owned(), format!("{address} {name}")));
        }
    }
    Ok(())
}

/// On two of dom0's RAM disks, with room for some of its own.
fn start_tapdom() -> Result<()> {
    let lower =
        |vdev: &str, target: &str| format!("\"format=raw,vdev={vdev},access=rw,backendtype=phy,target={target}\"");
    let settings = [
        "name=\"tapdom\"".to_owned(),
        "kernel=\"/boot/domain.elf\"".to_owned(),
        format!("disk=[{},{}]", lower("xvda", BRD), lower("xvdb", VHD)),
        format!("memory={}", 2 * MEBIBYTES),
        format!("cpus=\"{TAPDOM}\""),
    ];
    domain::create("tapdom.cfg", &settings)?;
    Server::await_tapdom("tapdom").map(drop)
}

/// The tapdom of several vCPUs that this is served by, and how many.
fn several(peer: Peer) -> Option<(&'static str, usize)> {
    match peer {
        Peer::TapdomTwo => Some(("tapdom-two", 2)),
        Peer::TapdomFour => Some(("tapdom-four", 4)),
        _ => None,
    }
}

fn start_several(name: &str, processors: &[usize]) -> Result<()> {
    let list: Vec<String> = processors.iter().map(|at| format!("\"{at}\"")).collect();
    let pinned = [format!("vcpus={}", processors.len()), format!("cpus=[{}]", list.join(","))];
    let words: Vec<&str> = pinned.iter().map(String::as_str).collect();
    Server::create_tapdom(name, Some(2 * MEBIBYTES as u32), &[], &words)?;
    Server::await_tapdom(name).map(drop)
}

/// The configuration of a disk of the guest's: where it is among all, and of how many of this backend.
pub fn spec(peer: Peer, at: usize, of: usize) -> String {
    let backend = match peer {
        Peer::Blkback | Peer::BlkbackPlain | Peer::BlkbackQueues => format!("backendtype=phy,target={BRD}"),
        Peer::TapdomRam => format!("backend=tapdom,target=ram:{}M", MEBIBYTES as usize / of),
        Peer::TapdomTwo | Peer::TapdomFour => format!("backend={},target=ram:{MEBIBYTES}M", peer.word()),
        Peer::TapdomAio => "backend=tapdom,target=aio:/dev/xvda".to_owned(),
        Peer::TapdomVhd => "backend=tapdom,target=vhd:/dev/xvdb".to_owned(),
        Peer::Qdisk => format!("backendtype=qdisk,target={BRD}"),
    };
    format!("format=raw,vdev={},access=rw,{backend}", letter(at))
}

/// The names of so many disks in the guest.
fn names(disks: usize) -> Vec<String> {
    (0..disks).map(letter).collect()
}

fn attach(guest: &mut Pinned, peer: Peer, disks: usize) -> Result<()> {
    let persistent = peer != Peer::BlkbackPlain;
    fs::write(PERSISTENT, if persistent { "1" } else { "0" }).context(PERSISTENT)?;
    let queues = if peer == Peer::BlkbackQueues { GUESTS.len() } else { 1 };
    fs::write(QUEUES, queues.to_string()).context(QUEUES)?;
    for (at, disk) in names(disks).iter().enumerate() {
        guest.attach(&spec(peer, at, disks), disk)?;
        let node = |key| format!("/local/domain/0/backend/vbd/{}/{}/{key}", guest.id, devid(disk));
        if matches!(peer, Peer::Blkback | Peer::BlkbackPlain | Peer::BlkbackQueues) {
            let offered = store::look(&node("feature-persistent"))?.as_deref() == Some("1");
            ensure!(offered == persistent, "blkback offers persistent grants: {offered}");
            let offered = store::look(&node("multi-queue-max-queues"))?;
            ensure!(offered == Some(queues.to_string()), "blkback offers {offered:?} queues");
        }
        if let Some((_, vcpus)) = several(peer) {
            let used =
                store::look(&format!("/local/domain/{}/device/vbd/{}/multi-queue-num-queues", guest.id, devid(disk)))?;
            ensure!(used == Some(vcpus.to_string()), "the guest uses {used:?} queues of {}", peer.word());
        }
        if peer == Peer::TapdomVhd {
            // No block is new to a load.
            guest.ask(&Exercise::Write { disk: device(disk), offset: 0, length: VHD_MEBIBYTES << 20, seed: 8 })?;
        }
    }
    Ok(())
}

fn loads(
    guest: &mut Pinned,
    reporter: &Reporter,
    peer: Peer,
    workloads: &[(usize, Workload)],
    processors: usize,
) -> Result<()> {
    for (index, workload) in workloads {
        let disk = devices(&names(workload.disks));
        let took = guest.ask(&Exercise::Measure { disk, words: workload.words(processors) })?;
        reporter.say(&Line::Record("measured".to_owned(), format!("{} {index} {took}", peer.word())));
        reporter.step(format!("{}: {workload}: {took} ns", peer.word()));
    }
    Ok(())
}
