//! VHD images under real guests, judged by readers that we did not write.

use anyhow::{Result, ensure};

use crate::agent::backend::Source;
use crate::agent::exercise::Exercise::{Checksum, Cycle, Files, Fio, FioCheck, Size};
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
