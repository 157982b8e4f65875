//! dom0's hotplug script for disks that dom0 itself serves (`/etc/xen/scripts/block add`): says which device it is, or
//! why there is none. Xen's own script does more (it makes loop devices), and needs programs that a small dom0 lacks.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use anyhow::{Context, Result};
use rustix::fs::{major, minor};

use super::store;

/// Answers libxl. `action` is "add" or "remove".
pub fn main(action: &str) -> Result<()> {
    if action != "add" {
        return Ok(());
    }
    let node = std::env::var("XENBUS_PATH").context("libxl names the backend's directory")?;
    let target = store::read(&format!("{node}/params"))?;
    match device_number(&target) {
        Ok(number) => {
            store::write(&format!("{node}/physical-device-path"), &target)?;
            store::write(&format!("{node}/physical-device"), &number)?;
            store::write(&format!("{node}/hotplug-status"), "connected")
        }
        Err(error) => {
            store::write(&format!("{node}/hotplug-error"), &format!("{error:#}"))?;
            store::write(&format!("{node}/hotplug-status"), "error")
        }
    }
}

fn device_number(target: &str) -> Result<String> {
    let about = std::fs::metadata(target).with_context(|| format!("the disk {target}"))?;
    anyhow::ensure!(about.file_type().is_block_device(), "{target} is no block device");
    Ok(format!("{:x}:{:x}", major(about.rdev()), minor(about.rdev())))
}
