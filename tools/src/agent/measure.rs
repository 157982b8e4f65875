//! dom0's part of the benchmark: one guest, one disk at a time, each served by another backend, and the same loads on each.
//! What is counted, QEMU counts; dom0 only says what ran when, and sleeps meanwhile.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::backend::{Server, devid};
use super::domain::{self, XL};
use super::exercise::Exercise;
use super::guest::{COMMAND, READY, RESULT, TOOLS_DISK};
use super::lower::{self, TOOLS_LOOP};
use super::process::run;
use super::reporter::Reporter;
use super::{raw, store};
use crate::report::Line;
use crate::workload::{self, Peer, Plan, Workload};

/// In virtual time, which an idle machine skips: a guest takes some seconds to start, a load less than one.
const LIMIT: Duration = Duration::from_secs(120);

/// The disk that is measured, in the guest.
const DISK: &str = "xvda";

/// dom0's RAM disk: what the peers serve, and tapdom's lower disk.
const BRD: &str = "/dev/ram0";

/// tapdom's RAM disk has the size of dom0's.
const MEBIBYTES: u64 = 64;

const PERSISTENT: &str = "/sys/module/xen_blkback/parameters/feature_persistent";

/// The symbols that Xen tells dom0.
const SYMBOLS: &str = "/proc/xen/xensyms";

/// Does what the plan says.
pub fn measure(reporter: &Reporter, plan: &Plan) -> Result<()> {
    lower::mount_tools()?;
    symbols(reporter, plan)?;
    ensure!(raw::size(BRD)? == MEBIBYTES << 20, "{BRD} has {} bytes", raw::size(BRD)?);
    // A page of it that was never written costs less to read.
    raw::write(BRD, 0, MEBIBYTES << 20, 7)?;
    fs::write(PERSISTENT, "1").context(PERSISTENT)?;
    start_tapdom()?;
    reporter.step("tapdom is ready");
    let (attached, created): (Vec<Peer>, Vec<Peer>) = plan.peers.iter().partition(|peer| **peer != Peer::Qdisk);
    if !attached.is_empty() {
        let mut guest = Guest::create(None)?;
        for peer in attached {
            guest.attach(peer)?;
            guest.loads(reporter, peer, &plan.workloads)?;
            guest.detach()?;
        }
        domain::destroy(Guest::NAME)?;
    }
    for peer in created {
        // libxl starts QEMU with the guest.
        Guest::create(Some(&spec(peer)))?.loads(reporter, peer, &plan.workloads)?;
        domain::destroy(Guest::NAME)?;
    }
    Ok(())
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

fn start_tapdom() -> Result<()> {
    let settings = [
        "name=\"tapdom\"".to_owned(),
        "kernel=\"/boot/domain.elf\"".to_owned(),
        format!("disk=[\"format=raw,vdev=xvda,access=rw,backendtype=phy,target={BRD}\"]"),
        format!("memory={}", 2 * MEBIBYTES),
        "cpus=\"2\"".to_owned(),
    ];
    domain::create("tapdom.cfg", &settings)?;
    Server::await_tapdom("tapdom").map(drop)
}

/// The disk's configuration.
fn spec(peer: Peer) -> String {
    let backend = match peer {
        Peer::Blkback | Peer::BlkbackPlain => format!("backendtype=phy,target={BRD}"),
        Peer::TapdomRam => format!("backend=tapdom,target=ram:{MEBIBYTES}M"),
        Peer::TapdomAio => "backend=tapdom,target=aio:/dev/xvda".to_owned(),
        Peer::Qdisk => format!("backendtype=qdisk,target={BRD}"),
    };
    format!("format=raw,vdev={DISK},access=rw,{backend}")
}

struct Guest {
    id: u32,
    commands: u32,
}

impl Guest {
    const NAME: &str = "guest";

    /// Starts it, with this disk from the start if there is one.
    fn create(disk: Option<&str>) -> Result<Guest> {
        let tools = format!("format=raw,vdev={TOOLS_DISK},access=r,backendtype=phy,target={TOOLS_LOOP}");
        let disks: Vec<String> =
            [Some(tools.as_str()), disk].into_iter().flatten().map(|d| format!("\"{d}\"")).collect();
        let settings = [
            format!("name=\"{}\"", Guest::NAME),
            format!("disk=[{}]", disks.join(",")),
            "cpus=\"1\"".to_owned(),
            // Else each of the guest's looks at its clock is an exit to Xen.
            "tsc_mode=\"native\"".to_owned(),
        ];
        domain::create("guest.cfg", &settings)?;
        let id = domain::id(Guest::NAME)?;
        let ready = format!("/local/domain/{id}/{READY}");
        store::wait_for(&ready, "the guest is up", LIMIT, |value| value == Some("ready"))?;
        Ok(Guest { id, commands: 0 })
    }

    fn attach(&mut self, peer: Peer) -> Result<()> {
        fs::write(PERSISTENT, if peer == Peer::BlkbackPlain { "0" } else { "1" }).context(PERSISTENT)?;
        run(&["xl", "block-attach", Guest::NAME, &spec(peer)], XL)?;
        self.ask(&Exercise::Appear { disk: format!("/dev/{DISK}") })?;
        let offered =
            store::look(&format!("/local/domain/0/backend/vbd/{}/{}/feature-persistent", self.id, devid(DISK)))?;
        match peer {
            Peer::Blkback => ensure!(offered.as_deref() == Some("1"), "blkback offers no persistent grants"),
            Peer::BlkbackPlain => ensure!(offered.as_deref() != Some("1"), "blkback offers persistent grants"),
            _ => {}
        }
        Ok(())
    }

    fn detach(&mut self) -> Result<()> {
        run(&["xl", "block-detach", Guest::NAME, DISK], XL)?;
        self.ask(&Exercise::Vanish { disk: format!("/dev/{DISK}") }).map(drop)
    }

    fn loads(&mut self, reporter: &Reporter, peer: Peer, workloads: &[usize]) -> Result<()> {
        let all = Workload::all();
        for &index in workloads {
            let workload = all.get(index).with_context(|| format!("no workload {index}"))?;
            let took = self.ask(&Exercise::Measure { disk: format!("/dev/{DISK}"), words: workload.words() })?;
            reporter.say(&Line::Record("measured".to_owned(), format!("{} {index} {took}", peer.word())));
            reporter.step(format!("{}: {workload}: {took} ns", peer.word()));
        }
        Ok(())
    }

    fn ask(&mut self, exercise: &Exercise) -> Result<String> {
        self.commands += 1;
        let prefix = format!("{} ", self.commands);
        let home = format!("/local/domain/{}", self.id);
        store::write(&format!("{home}/{COMMAND}"), &format!("{prefix}{exercise}"))?;
        let answer = store::wait_for(
            &format!("{home}/{RESULT}"),
            &format!("the guest's answer to {exercise}"),
            LIMIT,
            |value| value.is_some_and(|value| value.starts_with(&prefix)),
        )?;
        let answer = answer.context("an answer")?;
        let said = answer.strip_prefix(&prefix).and_then(|answer| answer.strip_prefix("ok "));
        said.map(str::to_owned).with_context(|| format!("{exercise}: {answer}"))
    }
}
