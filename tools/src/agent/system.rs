//! What every init does first: file systems, kernel modules, and at the end the power switch.

use std::ffi::CStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::sync;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use rustix::system::{RebootCommand, finit_module, reboot};

/// Mounts what the kernel offers. Where something is mounted already, that is fine.
pub fn mount_kernel_file_systems() -> Result<()> {
    let none = c"";
    for (kind, at, data) in [
        ("proc", "/proc", none),
        ("sysfs", "/sys", none),
        ("devtmpfs", "/dev", none),
        ("devpts", "/dev/pts", none),
        ("tmpfs", "/dev/shm", none),
        ("tmpfs", "/run", none),
        ("tmpfs", "/tmp", none),
    ] {
        mount_at(kind, kind, at, MountFlags::empty(), data)?;
    }
    Ok(())
}

/// Mounts one file system, making the folder.
pub fn mount_at(source: &str, kind: &str, at: &str, flags: MountFlags, data: &CStr) -> Result<()> {
    fs::create_dir_all(at).with_context(|| format!("making {at}"))?;
    match mount(source, at, kind, flags, data) {
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("mounting {source} ({kind}) at {at}")),
    }
}

/// Unmounts; a file system in use is an error.
pub fn unmount_at(at: &str) -> Result<()> {
    unmount(at, UnmountFlags::empty()).with_context(|| format!("unmounting {at}"))
}

/// Loads every module of the image, in the order of their file names.
pub fn load_modules() -> Result<()> {
    let mut files: Vec<PathBuf> = fs::read_dir("/modules")?.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for path in files {
        let file = File::open(&path)?;
        // The benchmark's disk; the kernel's own choice is 16 MiB.
        let arguments = if path.to_string_lossy().ends_with("-brd.ko") { c"rd_size=65536" } else { c"" };
        match finit_module(&file, arguments, 0) {
            // A kernel that found the device first may have loaded it already.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("loading {}", path.display())),
        }
    }
    Ok(())
}

/// Waits until a condition holds that nothing announces, looking at it ten times a second.
pub fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !holds() {
        if Instant::now() > deadline {
            bail!("{what}: not so after {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Waits for a device or socket to be there.
pub fn wait_for_path(path: &str, limit: Duration) -> Result<()> {
    wait_until(&format!("{path} exists"), limit, || Path::new(path).exists())
}

/// Starts the machine, or the guest, anew.
pub fn restart() -> Result<()> {
    sync();
    reboot(RebootCommand::Restart).context("rebooting")
}

/// Ends the machine, or the guest.
pub fn power_off() -> Result<()> {
    sync();
    // A root on a disk is whole then, without its journal. Where it cannot be, the journal is there for that.
    let _ = mount_remount("/", MountFlags::RDONLY, c"");
    reboot(RebootCommand::PowerOff).context("powering off")
}
