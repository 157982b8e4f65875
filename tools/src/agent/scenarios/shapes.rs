//! Disks of other shapes: read-only, a partition, one that grows, one that gives space back.

use anyhow::{Result, ensure};

use crate::agent::backend::Source;
use crate::agent::exercise::Exercise::{Checksum, Cycle, Expect, Grow, Refused, Size, Trim, Write};
use crate::agent::world::World;

const MEBIBYTE: u64 = 1 << 20;

fn xvda() -> String {
    "/dev/xvda".to_owned()
}

/// What was written in mode w is read in mode r, and stays as it is.
pub fn read_only(world: &mut World<'_>) -> Result<()> {
    let content = |disk: String| Expect { disk, offset: 0, length: 8 * MEBIBYTE, seed: 71 };
    world.look_below(3, |disk| Write { disk, offset: 0, length: 8 * MEBIBYTE, seed: 71 })?;
    let pv = world.guest("pv", "pv", &[])?;
    world.attach(pv, "xvda", "r", Source::Disk(3))?;
    world.ask(pv, &content(xvda()))?;
    world.ask(pv, &Refused { disk: xvda() })?;
    world.ask(pv, &content(xvda()))?;
    world.detach(pv, "xvda")?;
    world.look_below(3, content).map(drop)
}

/// The second partition of a lower disk, as sfdisk made it.
pub fn partition(world: &mut World<'_>) -> Result<()> {
    const LENGTH: u64 = 8 * MEBIBYTE;
    let pv = world.guest("pv", "pv", &[])?;
    let start = world.lower[1].partition_start(2)?;
    let outside = world.look_below(1, |disk| Checksum { disk, offset: 0, length: start })?;
    world.attach(pv, "xvda", "rw", Source::Partition(1, 2))?;
    let size: u64 = world.ask(pv, &Size { disk: xvda() })?.parse()?;
    ensure!(
        size > 64 * MEBIBYTE && start + size <= 128 * MEBIBYTE,
        "a partition of {size} bytes that begins at {start}"
    );
    world.ask(pv, &Write { disk: xvda(), offset: 0, length: LENGTH, seed: 81 })?;
    let last = size - MEBIBYTE;
    world.ask(pv, &Write { disk: xvda(), offset: last, length: MEBIBYTE, seed: 82 })?;
    let first_sum = world.ask(pv, &Checksum { disk: xvda(), offset: 0, length: LENGTH })?;
    let last_sum = world.ask(pv, &Checksum { disk: xvda(), offset: last, length: MEBIBYTE })?;
    world.detach(pv, "xvda")?;
    let below = world.look_below(1, |disk| Checksum { disk, offset: start, length: LENGTH })?;
    ensure!(below == first_sum, "the partition's first bytes are {first_sum} in the guest and {below} below");
    let below = world.look_below(1, |disk| Checksum { disk, offset: start + last, length: MEBIBYTE })?;
    ensure!(below == last_sum, "the partition's last bytes are {last_sum} in the guest and {below} below");
    let after = world.look_below(1, |disk| Checksum { disk, offset: 0, length: start })?;
    ensure!(after == outside, "something before the partition has changed");
    Ok(())
}

/// The lower disk grows under a guest, which then uses what is new.
pub fn resize(world: &mut World<'_>) -> Result<()> {
    let pv = world.guest("pv", "pv", &[])?;
    world.attach(pv, "xvda", "rw", Source::Disk(2))?;
    let before: u64 = world.ask(pv, &Size { disk: xvda() })?.parse()?;
    let more = before / MEBIBYTE + 16;
    world.lower[2].grow(more)?;
    world.ask(pv, &Grow { disk: xvda(), bytes: more * MEBIBYTE })?;
    world.ask(pv, &Write { disk: xvda(), offset: before, length: 16 * MEBIBYTE, seed: 91 })?;
    world.ask(pv, &Expect { disk: xvda(), offset: before, length: 16 * MEBIBYTE, seed: 91 })?;
    world.detach(pv, "xvda")?;
    world.look_below(2, |disk| Expect { disk, offset: before, length: 16 * MEBIBYTE, seed: 91 }).map(drop)
}

/// Files are deleted and trimmed in the guest, and the lower disk's file gets its holes back.
pub fn discard(world: &mut World<'_>) -> Result<()> {
    let pv = world.guest("pv", "pv", &[])?;
    world.attach(pv, "xvda", "rw", Source::Disk(0))?;
    world.ask(pv, &Cycle { disk: xvda(), seed: 95, mebibytes: 32 })?;
    let full = world.lower[0].used()?;
    world.ask(pv, &Trim { disk: xvda() })?;
    let trimmed = world.lower[0].used()?;
    world.detach(pv, "xvda")?;
    ensure!(
        trimmed + 24 * MEBIBYTE < full,
        "the lower disk used {full} bytes with 32 MiB of files, and {trimmed} after they were trimmed"
    );
    Ok(())
}
