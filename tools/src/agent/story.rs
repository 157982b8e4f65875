//! The first thing a newcomer sees: one disk, three domains, step by step, with the commands that a user would type.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::backend::Source;
use super::domain;
use super::exercise::Exercise::{Checksum, Cycle, Files};
use super::process::run;
use super::reporter::{PORT, Reporter};
use super::world::World;
use crate::report::{Backend, Line};

/// What the guest keeps on its disk.
const SEED: u64 = 2026;
const MEBIBYTES: u64 = 64;

/// Tells the story; at its end a shell in dom0, if asked.
pub fn tell(reporter: &Reporter, shell: bool) -> Result<()> {
    let say = |text: &str| reporter.step(text);
    say("");
    say("dom0 has four disks (files in memory behind /dev/loop0 to /dev/loop3). It hands them to tapdom:");
    say("    xl create tapdom.cfg");
    let mut world = World::new(reporter, Backend::Tapdom)?;
    let id = world.server.id;
    say(&format!("tapdom is domain {id}, a machine with 32 MiB of memory and no operating system. Its console says:"));
    for line in domain::console("tapdom").lines().filter(|line| !line.trim().is_empty()) {
        say(&format!("    {line}"));
    }
    say("");
    say("Now a Linux guest. Its disk is not dom0's business; its configuration names tapdom:");
    say(&format!("    disk = ['{}']", world.server.disk("xvda", "rw", Source::Disk(0))));
    say("    xl create guest.cfg");
    let guest = world.guest("guest", "pv", &[("xvda", Source::Disk(0))])?;
    say("The guest is up and has found /dev/xvda. Every domain on this machine:");
    listing(reporter)?;
    say("");
    say(&format!(
        "The guest now formats /dev/xvda with ext4, writes {MEBIBYTES} MiB of files, syncs, unmounts, runs fsck, mounts"
    ));
    say("again, compares every byte, and gives the unused space back with fstrim ...");
    let found = world.ask(guest, &Cycle { disk: "/dev/xvda".to_owned(), seed: SEED, mebibytes: MEBIBYTES })?;
    say(&format!("    the guest: {found}"));
    if shell {
        return open_shell(reporter);
    }
    let through = world.ask(guest, &Checksum { disk: "/dev/xvda".to_owned(), offset: 0, length: 64 << 20 })?;
    say("");
    say("The disk is taken from the running guest, and dom0 looks at what lies on its own disk:");
    say("    xl block-detach guest xvda");
    world.detach(guest, "xvda")?;
    let below = world.look_below(0, |disk| Checksum { disk, offset: 0, length: 64 << 20 })?;
    ensure!(through == below, "the guest read {through}, dom0 reads {below}");
    let files = world.look_below(0, |disk| Files { disk, seed: SEED, mebibytes: MEBIBYTES })?;
    say(&format!("    dom0: {files}"));
    say(&format!("The first 64 MiB have the CRC-32 {through} for the guest and {below} for dom0: the same bytes."));
    say("");
    say("    xl destroy guest");
    world.destroy("guest")?;
    world.demand_nothing_left()?;
    say(&format!("tapdom has given everything back; its counters are as before: {}", world.server.baseline()?));
    say("    xl shutdown tapdom");
    domain::shutdown("tapdom", Duration::from_secs(30))?;
    listing(reporter)
}

fn listing(reporter: &Reporter) -> Result<()> {
    for line in run(&["xl", "list"], domain::XL)?.lines() {
        reporter.step(format!("    {line}"));
    }
    Ok(())
}

/// A shell on the port that carried the report: the host has it on the terminal.
fn open_shell(reporter: &Reporter) -> Result<()> {
    reporter.step("");
    reporter.step("This is a shell in dom0. tapdom and a guest with a disk of it are running. Try:");
    reporter.step("    xl list");
    reporter.step("    xl block-attach 0 format=raw,vdev=xvda,access=rw,backend=tapdom,target=aio:/dev/xvdb");
    reporter.step("    xenstore-ls -f /local/domain/0/device/vbd");
    reporter.step("    cat /var/log/xen/console/guest-tapdom.log");
    reporter.step("`exit` ends the machine, and so does Ctrl-A x.");
    reporter.say(&Line::Shell);
    let port = std::fs::OpenOptions::new().read(true).write(true).open(PORT)?;
    // setsid -c gives the shell a controlling terminal, so that Ctrl-C ends a command and not nothing.
    Command::new("busybox")
        .args(["setsid", "-c", "busybox", "sh", "-c"])
        .arg("busybox stty sane; busybox --install -s /bin; exec busybox sh -i")
        .env("PS1", "dom0# ")
        .stdin(Stdio::from(port.try_clone()?))
        .stdout(Stdio::from(port.try_clone()?))
        .stderr(Stdio::from(port))
        .status()
        .context("the shell")
        .map(drop)
}
