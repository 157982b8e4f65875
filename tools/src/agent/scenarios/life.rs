//! Domains that begin and end: the backend itself, and guests under its hands.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::plugging::await_rounds;
use crate::agent::backend::{Server, Source, devid};
use crate::agent::domain::{self, XL};
use crate::agent::exercise::Exercise::{Expect, Load, Write};
use crate::agent::process::run;
use crate::agent::store;
use crate::agent::world::World;

/// tapdom has nothing to do at its end but to say so.
pub const SHUTDOWN: Duration = Duration::from_secs(30);

/// libxl waits 10 s for each of two things when it takes a disk from a dead guest; a backend that does its part makes
/// it wait for neither.
const DESTROYED: Duration = Duration::from_secs(15);

/// Three control channels are offered, each a page and a ring each way.
const OFFERED: u32 = 9;

fn xvda() -> String {
    "/dev/xvda".to_owned()
}

/// It said so in `data/ready` before this began; the rest is on its console and in its counters.
pub fn ready(world: &mut World<'_>) -> Result<()> {
    let home = format!("/local/domain/{}", world.server.id);
    let version = store::read(&format!("{home}/data/ready"))?;
    let console = domain::console(&world.server.name);
    let line = console.lines().find(|line| line.contains("tapdom") && line.contains("is ready"));
    let line = line.with_context(|| format!("no line of its console says that tapdom is ready:\n{console}"))?;
    world.reporter.step(format!("with four lower disks: {line}"));
    let counters = world.server.baseline()?;
    for name in ["vbds", "mappings", "grants", "ports", "pages", "nodes"] {
        let value = counters.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let value: u64 = value.with_context(|| format!("no {name} in {counters:?}"))?.parse()?;
        ensure!(value == 0 || matches!(name, "grants" | "ports"), "{name} is {value} before anybody was served");
    }
    world.reporter.detail(&format!("{version}; {counters}"));
    Ok(())
}

/// A disk is attached while the backend is still paused, so its directory is there before the first instruction.
pub fn early(world: &mut World<'_>) -> Result<()> {
    const NAME: &str = "tapdom-early";
    const DISK: &str = "xvdp";
    Server::create_tapdom(NAME, None, &[], &["-p"])?;
    let home = format!("/local/domain/{}", domain::id(NAME)?);
    let state = format!("{home}/backend/vbd/0/{}/state", devid(DISK));
    let disk = format!("format=raw,vdev={DISK},access=rw,backend={NAME},target=ram:1M");
    // xl waits for InitWait, which cannot come before the domain runs.
    let xl = std::thread::spawn(move || run(&["xl", "block-attach", "0", &disk], XL));
    store::wait_for(&state, "the disk's directory is there", XL, |value| value == Some("1"))?;
    run(&["xl", "unpause", NAME], XL)?;
    xl.join().map_err(|_| anyhow::anyhow!("the thread of xl block-attach panicked"))??;
    Server::await_tapdom(NAME)?;
    store::wait_for(&state, "the disk is connected", SHUTDOWN, |value| value == Some("4"))?;
    let console = domain::console(NAME);
    for says in ["offered to its guest", "is ready"] {
        let line = console.lines().find(|line| line.contains(says));
        let line = line.with_context(|| format!("no line of its console says {says:?}:\n{console}"))?;
        world.reporter.step(format!("{NAME}, seconds since its first instruction: {line}"));
    }
    run(&["xl", "block-detach", "0", DISK], XL)?;
    let idle = format!("vbds=0 mappings=0 grants={OFFERED} ");
    store::wait_for(&format!("{home}/data/counters"), "nothing is held", SHUTDOWN, |value| {
        value.is_some_and(|line| line.starts_with(&idle) && line.ends_with(" pages=0 nodes=0"))
    })?;
    domain::shutdown(NAME, SHUTDOWN)
}

/// A guest with a disk reboots; the new domain finds what the old one wrote.
pub fn reboot(world: &mut World<'_>) -> Result<()> {
    let length = 4 << 20;
    // Its disk must be in its configuration, or the reboot would rightly forget it.
    world.destroy_if_up("pv2")?;
    let pv2 = world.guest("pv2", "pv", &[("xvda", Source::Disk(0))])?;
    world.ask(pv2, &Write { disk: xvda(), offset: 0, length, seed: 111 })?;
    run(&["xl", "reboot", "pv2"], XL)?;
    world.await_reboot("pv2")?;
    world.ask(pv2, &Expect { disk: xvda(), offset: 0, length, seed: 111 })?;
    world.detach(pv2, "xvda")
}

/// A guest dies with writes under way.
pub fn destroy(world: &mut World<'_>) -> Result<()> {
    let pv2 = world.guest("pv2", "pv", &[("xvda", Source::Disk(0))])?;
    world.ask(pv2, &Load { disk: xvda(), seed: 121 })?;
    await_rounds(world, pv2, 2)?;
    let took = world.destroy("pv2")?;
    ensure!(took < DESTROYED, "xl destroy took {} ms: libxl waited in vain for the backend", took.as_millis());
    Ok(())
}

/// The backend ends when it is asked to, and says that it wanted to.
pub fn shutdown(world: &mut World<'_>) -> Result<()> {
    let name = world.server.name.clone();
    domain::shutdown(&name, SHUTDOWN)?;
    let log = domain::xl_log(&name);
    // Reason 0 is SHUTDOWN_poweroff (public/sched.h); a crash would be 3.
    ensure!(log.contains("reason code 0"), "xl saw no clean end:\n{log}");
    world.server_is_gone();
    Ok(())
}
