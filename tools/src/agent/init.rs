//! Process 1: starts the role's work as a child, buries what dies, and powers off when the work is done.
//!
//! The work is a child because the death of process 1 is a kernel panic, and a failed test is not one.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount_move};
use rustix::process::{Pid, WaitOptions, chroot, wait};

use super::system::{self, mount_at, wait_for_path};
use crate::report::JOB_PATH;

/// Tells the program that it is on its own root already.
const ENTERED: &str = "entered";

/// From the module of a disk's driver to the disk.
const ROOT_APPEARS: Duration = Duration::from_secs(60);

/// Prepares the machine and sees the work through.
pub fn main() -> Result<()> {
    system::mount_kernel_file_systems()?;
    system::load_modules()?;
    if std::env::args().nth(1).as_deref() != Some(ENTERED)
        && let Some(root) = root_disk(&fs::read_to_string("/proc/cmdline")?)
    {
        return enter(root);
    }
    let role = if Path::new(JOB_PATH).exists() { "dom0" } else { "guest" };
    let worker = Command::new("/init")
        .arg(role)
        .env("PATH", "/usr/bin:/bin:/tools/bin")
        .env("LD_LIBRARY_PATH", "/tools/lib")
        .spawn()
        .with_context(|| format!("starting the {role} agent"))?;
    let worker = Pid::from_raw(worker.id() as i32);
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if Some(pid) == worker => {
                println!("agent: {role} ended with {status:?}");
                return system::power_off();
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for the agent"),
        }
    }
}

/// The disk that the kernel was told to have its root on.
fn root_disk(cmdline: &str) -> Option<&str> {
    cmdline.split_whitespace().find_map(|word| word.strip_prefix("root="))
}

/// Leaves the initramfs for a root on a disk, and begins anew there. Returns only if that fails.
fn enter(root: &str) -> Result<()> {
    const AT: &str = "/root";
    wait_for_path(root, ROOT_APPEARS)?;
    mount_at(root, "ext4", AT, MountFlags::empty(), c"")?;
    std::env::set_current_dir(AT)?;
    // The kernel's own helpers (poweroff) share process 1's root, so they are found there too.
    mount_move(".", "/").and_then(|()| chroot(".")).with_context(|| format!("making {root} the root"))?;
    std::env::set_current_dir("/")?;
    Err(Command::new("/init").arg(ENTERED).exec()).with_context(|| format!("starting /init of {root}"))
}

#[cfg(test)]
mod tests {
    use super::root_disk;

    #[test]
    fn the_kernel_is_told_of_a_root_by_its_own_word() {
        assert_eq!(root_disk("console=hvc0 quiet root=/dev/xvda panic=1\n"), Some("/dev/xvda"));
        assert_eq!(root_disk("console=hvc0 noroot=1"), None);
    }
}
