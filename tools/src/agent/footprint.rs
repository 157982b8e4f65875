//! dom0's part of `make footprint`: how long tapdom takes to be of use, how long a disk takes to be attached, and in what
//! memory it serves how many.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use records::bench::Node;
use serde_json::Value;

use super::backend::{Server, devid, letter};
use super::domain::{self, XL};
use super::exercise::Exercise;
use super::measure::{BRD, GUEST, MEBIBYTES, PERSISTENT, TAPDOM};
use super::pinned::{Pinned, Shape, device, devices};
use super::process::run;
use super::reporter::Reporter;
use super::tap_ctl::done;
use super::wire::Wire;
use super::{lower, raw, store};
use crate::footprint::{PLUGS, SERVED};
use crate::report::Line;

/// From one step of one of very many disks to the next.
const LIMIT: Duration = Duration::from_secs(30);

/// Times how long a node takes to have a value (boots/footprint/until.c).
pub const UNTIL: &str = "/usr/bin/until";

/// Linux's frontend keeps 4 MiB of pages for each disk.
const GUEST_MEBIBYTES: u32 = 1600;

/// A domain with room for very many disks, and the least that is tried.
const MEMORY: u32 = 64;
const LITTLE_MEMORY: u32 = 8;

/// What is put on each disk to load it: a ring full of small requests, then one full of the largest.
const LOADS: [&str; 2] = ["read random 4096 32 20000 1", "write sequential 1048576 4 600 1"];

/// A disk by any number is known to Linux and libxl so (xen-vbd-interface, the extended form); the first of them is
/// behind the classic sixteen.
const EXTENDED: u32 = 1 << 28;
const EXTENDED_FIRST: u32 = 16;

/// Does it all; so many disks are attached at once.
pub fn measure(reporter: &Reporter, many: u32) -> Result<()> {
    lower::mount_tools()?;
    raw::write(BRD, 0, MEBIBYTES << 20, 7)?;
    fs::write(PERSISTENT, "1").context(PERSISTENT)?;
    let footprint = Footprint { reporter, many };
    footprint.begin("ram:1M", false)?;
    footprint.begin("aio:/dev/xvda", true)?;
    let shape = Shape { name: "guest", processors: &[GUEST], mebibytes: Some(GUEST_MEBIBYTES), disks: &[] };
    let mut guest = Pinned::create(&shape)?;
    footprint.little(&mut guest)?;
    footprint.plugs(&mut guest, "blkback", &format!("backendtype=phy,target={BRD}"), 0)?;
    footprint.serve(&mut guest)?;
    guest.destroy()
}

struct Footprint<'a> {
    reporter: &'a Reporter,
    many: u32,
}

impl Footprint<'_> {
    fn figure(&self, name: &str, value: impl std::fmt::Display) {
        self.reporter.say(&Line::Record("figure".to_owned(), format!("{name} {value}")));
        self.reporter.step(format!("{name}: {value}"));
    }

    /// From tapdom's first instruction to the offer of a disk that was attached before.
    fn begin(&self, target: &str, lower: bool) -> Result<()> {
        let (name, disk) = ("tapdom-early", "xvdo");
        create(name, MEMORY, lower, &["-p"])?;
        let state = format!("/local/domain/{}/backend/vbd/0/{}/state", domain::id(name)?, devid(disk));
        let spec = format!("format=raw,vdev={disk},access=rw,backend={name},target={target}");
        // xl waits for InitWait, which cannot come before the domain runs.
        let xl = std::thread::spawn(move || run(&["xl", "block-attach", "0", &spec], XL));
        store::wait_for(&state, "the disk's directory is there", XL, |value| value == Some("1"))?;
        let took = run(&[UNTIL, &state, "2", "start", "xl", "unpause", name], XL)?;
        self.figure("offered_ns", took.trim());
        xl.join().map_err(|_| anyhow::anyhow!("the thread of xl block-attach panicked"))??;
        Server::await_tapdom(name)?;
        run(&["xl", "block-detach", "0", disk], XL)?;
        domain::destroy(name).map(drop)
    }

    /// The disks that shall be served, all loaded, by a domain of little memory.
    fn little(&self, guest: &mut Pinned) -> Result<()> {
        let name = "tapdom-little";
        create(name, LITTLE_MEMORY, true, &[])?;
        Server::await_tapdom(name)?;
        self.figure("little_mib", LITTLE_MEMORY);
        for disk in disks() {
            guest.attach(&spec(&disk, name), &disk)?;
        }
        for words in LOADS {
            let took = guest.ask(&Exercise::Measure { disk: devices(&disks()), words: words.to_owned() })?;
            self.reporter.step(format!("{words}: {took} ns"));
        }
        for disk in disks() {
            guest.detach(&disk)?;
        }
        domain::destroy(name).map(drop)
    }

    /// One disk, some times.
    fn plugs(&self, guest: &mut Pinned, who: &str, backend: &str, domain: u32) -> Result<()> {
        let disk = letter(0);
        let state = format!("/local/domain/{domain}/backend/vbd/{}/{}/state", guest.id, devid(&disk));
        let spec = format!("format=raw,vdev={disk},access=rw,{backend}");
        for _ in 0..PLUGS {
            let took = run(&[UNTIL, &state, "4", "appears", "xl", "block-attach", guest.name(), &spec], XL)?;
            self.figure(&format!("plug_{who}_ns"), took.trim());
            guest.ask(&Exercise::Appear { disk: device(&disk) })?;
            guest.detach(&disk)?;
        }
        Ok(())
    }

    /// With room for all: nothing, one disk, those that shall be served, very many.
    fn serve(&self, guest: &mut Pinned) -> Result<()> {
        let name = "tapdom";
        create(name, MEMORY, true, &[])?;
        let server = Server::await_tapdom(name)?;
        // Its statistics tell of the memory.
        done(&["create", "-a", "ram:16K"])?;
        self.figure("memory_mib", MEMORY);
        self.figure("heap_bytes", memory()?.1);
        self.figure("idle_0", memory()?.0);
        self.plugs(guest, "tapdom", &format!("backend={name},target=aio:/dev/xvda"), server.id)?;
        for (count, idle, loaded) in [(1, "idle_1", "loaded_1"), (SERVED, "idle_8", "loaded_8")] {
            let disks = &disks()[..count];
            for disk in disks {
                guest.attach(&spec(disk, name), disk)?;
            }
            self.figure(idle, memory()?.0);
            self.figure(loaded, self.loaded(guest, &devices(disks))?);
            for disk in disks {
                guest.detach(disk)?;
            }
        }
        self.many(guest, &server)
    }

    /// The most memory in use while some disks are loaded.
    fn loaded(&self, guest: &mut Pinned, disks: &str) -> Result<u64> {
        let mut most = 0;
        for words in LOADS {
            guest.begin(&Exercise::Measure { disk: disks.to_owned(), words: words.to_owned() })?;
            let mut looks = 0;
            while !guest.has_ended()? {
                most = most.max(memory()?.0);
                looks += 1;
            }
            let took = guest.end()?;
            ensure!(looks > 2, "{words} on {disks} was over after {looks} looks");
            self.reporter.step(format!("{words} on {disks}: {took} ns, {looks} looks, {most} bytes at most"));
        }
        Ok(most)
    }

    /// Very many disks, at once: xl takes longer to attach one than the disk takes, so its nodes are copied.
    fn many(&self, guest: &mut Pinned, server: &Server) -> Result<()> {
        let disk = letter(0);
        guest.attach(&spec(&disk, &server.name), &disk)?;
        let backend = format!("/local/domain/{}/backend/vbd/{}", server.id, guest.id);
        let frontend = format!("/local/domain/{}/device/vbd", guest.id);
        let model = devid(&disk).to_string();
        let mut wire = Wire::open()?;
        let mut copied = Vec::new();
        // A backend looks at once whether there is a frontend, which comes first.
        for directory in [&frontend, &backend] {
            copied.push((directory.clone(), wire.tree(&format!("{directory}/{model}"))?));
        }
        guest.detach(&disk)?;
        let idle = memory()?.0;
        let mut watcher = Wire::open()?;
        watcher.limit(LIMIT)?;
        watcher.watch(&backend)?;
        let began = Instant::now();
        let many = self.many;
        for at in 0..many {
            let number = (EXTENDED | (EXTENDED_FIRST + at) << 8).to_string();
            for (directory, nodes) in &copied {
                copy(&mut wire, directory, nodes, &model, &number)?;
            }
        }
        let written = began.elapsed();
        let mut connected = std::collections::BTreeSet::new();
        while connected.len() < many as usize {
            let path = watcher.event().with_context(|| format!("{} of {many} disks are connected", connected.len()))?;
            if path.ends_with("/state") && watcher.look(&path)?.as_deref() == Some("4") {
                connected.insert(path);
            }
        }
        let took = began.elapsed();
        self.reporter.step(format!("{many} disks: their nodes took {written:?}, all of it {took:?}"));
        self.figure("plug_many_ns", took.as_nanos());
        self.figure("idle_many", memory()?.0 - idle);
        Ok(())
    }
}

/// Gives a disk that is to be the directory of another, with the nodes that a toolstack writes. Who may see a directory
/// looks at it as soon as it has a state, which comes last.
fn copy(wire: &mut Wire, directory: &str, nodes: &[Node], model: &str, number: &str) -> Result<()> {
    let [top, nodes @ ..] = nodes else { bail!("{directory}/{model} is empty") };
    let home = format!("{directory}/{number}");
    wire.make(&home, &top.permissions)?;
    for node in nodes {
        let key = node.path.rsplit_once('/').map_or("", |(_, key)| key);
        if TOOLSTACK.contains(&key) {
            wire.write(&format!("{home}/{key}"), &node.value.replace(model, number))?;
        }
    }
    wire.write(&format!("{home}/state"), "1")
}

/// What libxl writes of a disk in either directory, but for the state.
const TOOLSTACK: [&str; 17] = [
    "frontend",
    "frontend-id",
    "online",
    "removable",
    "bootable",
    "dev",
    "type",
    "mode",
    "device-type",
    "discard-enable",
    "script",
    "specification",
    "params",
    "backend",
    "backend-id",
    "virtual-device",
    "trusted",
];

fn create(name: &str, mebibytes: u32, lower: bool, more: &[&str]) -> Result<()> {
    let disk = format!("\"format=raw,vdev=xvda,access=rw,backendtype=phy,target={BRD}\"");
    let mut settings = vec![
        format!("name=\"{name}\""),
        "kernel=\"/boot/domain.elf\"".to_owned(),
        format!("disk=[{}]", if lower { &disk } else { "" }),
        format!("memory={mebibytes}"),
        format!("cpus=\"{TAPDOM}\""),
    ];
    settings.extend(more.iter().map(|word| (*word).to_owned()));
    domain::create("tapdom.cfg", &settings)
}

fn spec(disk: &str, name: &str) -> String {
    format!("format=raw,vdev={disk},access=rw,backend={name},target=aio:/dev/xvda")
}

/// The disks that shall be served.
fn disks() -> Vec<String> {
    (0..SERVED).map(letter).collect()
}

/// Bytes of tapdom's memory in use, and of what it can use.
fn memory() -> Result<(u64, u64)> {
    let text = done(&["stats", "-m", "0"])?;
    let stats: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
    let number = |at: usize| stats.pointer(&format!("/tapdom/domain_memory_bytes/{at}")).and_then(Value::as_u64);
    number(0).zip(number(1)).with_context(|| format!("no domain_memory_bytes: {text}"))
}
