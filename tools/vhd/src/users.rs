//! Who else has a file or device open for writing: neither tapdisk nor most others lock what they write, but root sees
//! what every process has open.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// What names a file or a device, whatever the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A file: its file system and its number there.
    File(u64, u64),
    /// A block device's number.
    Device(u64),
}

impl Identity {
    /// Of what metadata describe.
    pub fn of(metadata: &fs::Metadata) -> Identity {
        match metadata.file_type().is_block_device() {
            true => Identity::Device(metadata.rdev()),
            false => Identity::File(metadata.dev(), metadata.ino()),
        }
    }
}

/// A process other than this one that has it open for writing, as `NAME (PID)`; none if there is none that can be seen.
pub fn writer(wanted: Identity) -> Option<String> {
    let own = std::process::id();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter(|pid| *pid != own).find_map(|pid| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        if !writes(&process, wanted) {
            return None;
        }
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        Some(format!("{} ({pid})", name.trim()))
    })
}

/// Whether a process has it open for writing. What cannot be seen, it has not.
fn writes(process: &Path, wanted: Identity) -> bool {
    let Ok(files) = fs::read_dir(process.join("fd")) else { return false };
    files.flatten().any(|file| {
        let same = fs::metadata(file.path()).is_ok_and(|metadata| Identity::of(&metadata) == wanted);
        same && is_writable(&process.join("fdinfo").join(file.file_name()))
    })
}

/// Reads the flags in the kernel's description of an open file, which are octal.
fn is_writable(description: &Path) -> bool {
    let text = fs::read_to_string(description).unwrap_or_default();
    let flags = text.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    flags.is_some_and(|flags| flags & OFlags::RWMODE.bits() != OFlags::RDONLY.bits())
}
