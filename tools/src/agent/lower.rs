//! Lower disks: what stands in dom0 for hardware. Each is a sparse file in memory behind a loop device, so dom0 can look
//! at it past everybody, see how much of it is in use, and let it grow.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::mount::MountFlags;

use super::process::run;
use super::system::mount_at;

/// Setting up a loop device.
const PROMPT: Duration = Duration::from_secs(30);

/// The loop device with the disk of tools.
pub const TOOLS_LOOP: &str = "/dev/loop7";

/// The loop device through which dom0 looks at a lower disk: a fresh one has no old pages in its cache.
const LOOKING_LOOP: &str = "/dev/loop6";

/// An image that QEMU makes or reads.
const MADE: &str = "/disks/image";

/// QEMU or libvhdi reading an image of 160 MiB under emulation.
const CONVERT: Duration = Duration::from_secs(120);

/// One lower disk.
pub struct Lower {
    file: String,
    /// The block device that a backend is given.
    pub device: String,
}

impl Lower {
    /// Makes disk number `index` with so many mebibytes, all holes.
    pub fn new(index: usize, mebibytes: u64) -> Result<Lower> {
        let lower = Lower { file: format!("/disks/{index}"), device: format!("/dev/loop{index}") };
        File::create(&lower.file)?.set_len(mebibytes << 20)?;
        attach(&lower.device, &lower.file)?;
        Ok(lower)
    }

    /// Cuts the disk in two with a GPT: a first partition of so many mebibytes, and the rest.
    pub fn partition(&self, first_mebibytes: u64) -> Result<()> {
        fs::write("/tmp/layout", format!("label: gpt\n,{first_mebibytes}M\n,\n"))?;
        run(&["busybox", "sh", "-c", &format!("sfdisk {} < /tmp/layout", self.device)], PROMPT).map(drop)
    }

    /// Where a partition begins, in bytes, as Linux reads the table.
    pub fn partition_start(&self, number: u32) -> Result<u64> {
        let name = self.device.trim_start_matches("/dev/");
        let path = format!("/sys/class/block/{name}p{number}/start");
        let sectors = fs::read_to_string(&path).with_context(|| format!("dom0's kernel knows no {name}p{number}"))?;
        Ok(sectors.trim().parse::<u64>()? * 512)
    }

    /// Makes the disk larger under whoever uses it.
    pub fn grow(&self, mebibytes: u64) -> Result<()> {
        OpenOptions::new().write(true).open(&self.file)?.set_len(mebibytes << 20)?;
        run(&["busybox", "losetup", "-c", &self.device], PROMPT).map(drop)
    }

    /// Gives another disk of this size the same content, past everybody.
    pub fn copy_to(&self, other: &Lower) -> Result<()> {
        let mut to = OpenOptions::new().write(true).open(&other.file)?;
        io::copy(&mut File::open(&self.file)?, &mut to).with_context(|| format!("copying to {}", other.file))?;
        Ok(())
    }

    /// Takes the disk away; nobody may use it any more.
    pub fn remove(self) -> Result<()> {
        run(&["busybox", "losetup", "-d", &self.device], PROMPT)?;
        fs::remove_file(&self.file).with_context(|| format!("removing {}", self.file))
    }

    /// Puts a new VHD on it, as QEMU makes one: dynamic, a disk of so many mebibytes.
    pub fn make_vhd(&self, mebibytes: u64) -> Result<()> {
        let size = format!("{mebibytes}M");
        let options = "subformat=dynamic,force_size=on";
        run(&["qemu-img", "create", "-q", "-f", "vpc", "-o", options, MADE, &size], PROMPT)?;
        run(
            &["busybox", "dd", &format!("if={MADE}"), &format!("of={}", self.device), "bs=1M", "conv=notrunc,fsync"],
            PROMPT,
        )?;
        fs::remove_file(MADE).context("removing the image that was copied")
    }

    /// Has QEMU read the VHD on it.
    pub fn convert_vhd(&self) -> Result<()> {
        self.look(convert_vhd)
    }

    /// How many bytes of the disk are in use, holes not counted.
    pub fn used(&self) -> Result<u64> {
        Ok(fs::metadata(&self.file)?.blocks() * 512)
    }

    /// Looks at the disk from dom0 itself, through a device nobody used before.
    pub fn look<T>(&self, look: impl FnOnce(&str) -> Result<T>) -> Result<T> {
        attach(LOOKING_LOOP, &self.file)?;
        let seen = look(LOOKING_LOOP);
        run(&["busybox", "losetup", "-d", LOOKING_LOOP], PROMPT)?;
        seen
    }
}

/// Has QEMU read the VHD on a device, for [`look_at_converted`].
pub fn convert_vhd(device: &str) -> Result<()> {
    run(&["qemu-img", "convert", "-f", "vpc", "-O", "raw", device, MADE], CONVERT).map(drop)
}

/// Has libvhdi read a chain of VHDs on devices, leaf first, for [`look_at_converted`].
pub fn read_chain(devices: &[&str]) -> Result<()> {
    run(&[&["read-chain", MADE], devices].concat(), CONVERT).map(drop)
}

/// Looks at the disk that QEMU or libvhdi read last.
pub fn look_at_converted<T>(look: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    attach(LOOKING_LOOP, MADE)?;
    let seen = look(LOOKING_LOOP);
    run(&["busybox", "losetup", "-d", LOOKING_LOOP], PROMPT)?;
    seen
}

fn attach(device: &str, file: &str) -> Result<()> {
    run(&["busybox", "losetup", "-P", device, file], PROMPT).map(drop)
}

/// Makes the place where the lower disks' files are. Holes take no memory.
pub fn mount_place() -> Result<()> {
    mount_at("disks", "tmpfs", "/disks", MountFlags::empty(), c"size=900m")
}

/// Mounts the disk of tools, which guests get as well.
pub fn mount_tools() -> Result<()> {
    run(&["busybox", "losetup", "-r", TOOLS_LOOP, "/boot/tools.img"], PROMPT)?;
    mount_at(TOOLS_LOOP, "ext4", "/tools", MountFlags::RDONLY, c"")
}
