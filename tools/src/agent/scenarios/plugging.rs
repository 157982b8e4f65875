//! Disks that come and go, alone and together.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::agent::backend::Source;
use crate::agent::domain::XL;
use crate::agent::exercise::Exercise::{Expect, Load, Progress, Stop, Write};
use crate::agent::process::run;
use crate::agent::world::{Side, World};

const MEBIBYTE: u64 = 1 << 20;

/// Four frontends share two emulated processors; a round of 2 MiB written and read takes a second at most.
const ROUNDS: Duration = Duration::from_secs(60);

/// Two disks at once in a running guest, one of them twice.
pub fn hotplug(world: &mut World<'_>) -> Result<()> {
    let pv = world.guest("pv", "pv", &[])?;
    world.attach(pv, "xvdb", "rw", Source::Disk(2))?;
    world.attach(pv, "xvdc", "rw", Source::Disk(3))?;
    for (disk, seed) in [("/dev/xvdb", 61), ("/dev/xvdc", 62)] {
        world.ask(pv, &Write { disk: disk.to_owned(), offset: MEBIBYTE, length: 4 * MEBIBYTE, seed })?;
    }
    world.detach(pv, "xvdb")?;
    world.ask(pv, &Expect { disk: "/dev/xvdc".to_owned(), offset: MEBIBYTE, length: 4 * MEBIBYTE, seed: 62 })?;
    world.attach(pv, "xvdb", "rw", Source::Disk(2))?;
    world.ask(pv, &Expect { disk: "/dev/xvdb".to_owned(), offset: MEBIBYTE, length: 4 * MEBIBYTE, seed: 61 })?;
    world.detach(pv, "xvdb")?;
    world.detach(pv, "xvdc")?;
    for (disk, seed) in [(2, 61), (3, 62)] {
        world.look_below(disk, |disk| Expect { disk, offset: MEBIBYTE, length: 4 * MEBIBYTE, seed })?;
    }
    Ok(())
}

/// dom0 attaches and detaches fifty times, and every time the disk really works.
pub fn cycles(world: &mut World<'_>) -> Result<()> {
    for seed in 0..50 {
        world.attach(Side::Dom0, "xvda", "rw", Source::Disk(3))?;
        let disk = || "/dev/xvda".to_owned();
        world.ask(Side::Dom0, &Write { disk: disk(), offset: seed * 65536, length: 65536, seed })?;
        world.ask(Side::Dom0, &Expect { disk: disk(), offset: seed * 65536, length: 65536, seed })?;
        world.detach(Side::Dom0, "xvda")?;
    }
    Ok(())
}

/// Two PV guests, a PVH guest and dom0 load a disk each. The first guest is paused with requests under way.
pub fn four_disks(world: &mut World<'_>) -> Result<()> {
    let sides =
        [world.guest("pv", "pv", &[])?, world.guest("pv2", "pv", &[])?, world.guest("pvh", "pvh", &[])?, Side::Dom0];
    for (at, side) in sides.into_iter().enumerate() {
        world.attach(side, "xvda", "rw", Source::Disk(at))?;
    }
    for (at, side) in sides.into_iter().enumerate() {
        world.ask(side, &Load { disk: "/dev/xvda".to_owned(), seed: 100 * at as u64 })?;
    }
    for side in sides {
        await_rounds(world, side, 2)?;
    }
    run(&["xl", "pause", "pv"], XL)?;
    for side in &sides[1..] {
        let before: u64 = world.ask(*side, &Progress)?.parse()?;
        await_rounds(world, *side, before + 3)?;
    }
    run(&["xl", "unpause", "pv"], XL)?;
    let before: u64 = world.ask(sides[0], &Progress)?.parse()?;
    await_rounds(world, sides[0], before + 2)?;
    for side in sides {
        world.ask(side, &Stop)?;
        world.detach(side, "xvda")?;
    }
    Ok(())
}

/// Waits until a load has done so many rounds.
pub fn await_rounds(world: &mut World<'_>, side: Side, rounds: u64) -> Result<()> {
    let deadline = Instant::now() + ROUNDS;
    loop {
        let done: u64 = world.ask(side, &Progress)?.parse()?;
        if done >= rounds {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{side:?} stands still: {done} rounds of its load after {} s", ROUNDS.as_secs());
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}
