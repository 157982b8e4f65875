//! Disks in ordinary use, judged by ext4, fio, and by dom0 reading what lies below.

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::agent::backend::{Server, Source};
use crate::agent::domain;
use crate::agent::exercise::Exercise::{Checksum, Cycle, Files, Fio, FioCheck};
use crate::agent::process::run;
use crate::agent::world::{Side, World};
use crate::report::Backend;

/// The disk that most scenarios use, and where the frontend sees it.
const MAIN: usize = 0;

fn xvda() -> String {
    "/dev/xvda".to_owned()
}

/// fio in dom0 through the backend, then fio in dom0 past it.
pub fn dom0_frontend(world: &mut World<'_>) -> Result<()> {
    world.attach(Side::Dom0, "xvda", "rw", Source::Disk(MAIN))?;
    fio_through_and_below(world, Side::Dom0, 11)
}

/// The whole life of a file system in a PV guest whose disk was there from the start.
pub fn pv_files(world: &mut World<'_>) -> Result<()> {
    let pv = world.guest("pv", "pv", &[("xvda", Source::Disk(MAIN))])?;
    files_through_and_below(world, pv, 21, 64)
}

/// The same in a PVH guest.
pub fn pvh_files(world: &mut World<'_>) -> Result<()> {
    let pvh = world.guest("pvh", "pvh", &[("xvda", Source::Disk(MAIN))])?;
    files_through_and_below(world, pvh, 31, 16)
}

/// fio in a PV guest.
pub fn pv_fio(world: &mut World<'_>) -> Result<()> {
    let pv = world.guest("pv", "pv", &[])?;
    world.attach(pv, "xvda", "rw", Source::Disk(MAIN))?;
    fio_through_and_below(world, pv, 41)
}

fn files_through_and_below(world: &mut World<'_>, side: Side, seed: u64, mebibytes: u64) -> Result<()> {
    let through = world.ask(side, &Cycle { disk: xvda(), seed, mebibytes })?;
    world.detach(side, "xvda")?;
    let below = world.look_below(MAIN, |disk| Files { disk, seed, mebibytes })?;
    ensure!(through.starts_with(&below), "the guest found {through}, dom0 found {below}");
    Ok(())
}

fn fio_through_and_below(world: &mut World<'_>, side: Side, seed: u64) -> Result<()> {
    const LENGTH: u64 = 44 << 20;
    world.ask(side, &Fio { disk: xvda(), seed })?;
    let through = world.ask(side, &Checksum { disk: xvda(), offset: 0, length: LENGTH })?;
    world.detach(side, "xvda")?;
    let below = world.look_below(MAIN, |disk| Checksum { disk, offset: 0, length: LENGTH })?;
    ensure!(through == below, "the frontend reads {through}, the lower disk holds {below}");
    world.look_below(MAIN, |disk| FioCheck { disk, seed }).map(drop)
}

/// A second tapdom with more memory serves a disk that is nothing but memory.
pub fn ram(world: &mut World<'_>) -> Result<()> {
    let pv = world.guest("pv", "pv", &[])?;
    ensure!(world.server.kind == Backend::Tapdom, "only tapdom has RAM disks");
    let server = Server::start_tapdom("tapdom-ram", Some(128), &[])?;
    let first = std::mem::replace(&mut world.server, server);
    let done = ram_disk(world, pv);
    let second = std::mem::replace(&mut world.server, first);
    if let Err(error) = done {
        // The second tapdom goes the way of the failed; its words first.
        world.reporter.detail(&domain::console(&second.name));
        domain::destroy(&second.name)?;
        return Err(error);
    }
    second.demand_nothing_left("none")?;
    domain::shutdown(&reboot(&second)?.name, super::life::SHUTDOWN)
}

/// A backend that nobody uses is rebooted by xl: a new domain of the same name.
fn reboot(old: &Server) -> Result<Server> {
    run(&["xl", "reboot", &old.name], domain::XL)?;
    let deadline = Instant::now() + domain::XL;
    // xl domid takes a quarter of a second under emulation, so this is no busy loop; between the two it knows no such name.
    while !domain::id(&old.name).is_ok_and(|id| id != old.id) {
        ensure!(Instant::now() < deadline, "{} was not rebooted:\n{}", old.name, domain::xl_log(&old.name));
    }
    Server::await_tapdom(&old.name)
}

fn ram_disk(world: &mut World<'_>, side: Side) -> Result<()> {
    world.attach(side, "xvda", "rw", Source::Ram(64))?;
    world.ask(side, &Cycle { disk: xvda(), seed: 51, mebibytes: 24 })?;
    world.ask(side, &Fio { disk: xvda(), seed: 52 })?;
    world.detach(side, "xvda")
}
