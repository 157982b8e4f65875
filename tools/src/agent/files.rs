//! A disk in ordinary use: ext4 with files of every size, written, checked by ext4's own fsck, read back, trimmed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::mount::MountFlags;

use super::load;
use super::process::run;
use super::system::{mount_at, unmount_at};
use records::pattern::{self, mix};

/// Formatting or checking a disk of some hundred megabytes.
const LIMIT: Duration = Duration::from_secs(120);

/// Where the disk is mounted.
const AT: &str = "/mnt";

/// The whole life of a file system. Answers what was found at the end.
pub fn cycle(disk: &str, seed: u64, mebibytes: u64) -> Result<String> {
    run(&["mke2fs", "-q", "-F", "-t", "ext4", disk], LIMIT)?;
    mount_disk(disk, MountFlags::empty())?;
    write_files(Path::new(AT), seed, mebibytes)?;
    rustix::fs::sync();
    unmount_at(AT)?;
    check(disk)?;
    mount_disk(disk, MountFlags::empty())?;
    let found = verify_files(Path::new(AT), seed, mebibytes)?;
    let trimmed = run(&["fstrim", "-v", AT], LIMIT)?;
    unmount_at(AT)?;
    check(disk)?;
    Ok(format!("{found}; {}", trimmed.trim()))
}

/// The file that a load has, on a guest's root.
pub const LOADED: &str = "load";

/// Makes a disk the root of a guest: what its initramfs has, a file for a load, and files of a seed. Blocks are of 4 KiB,
/// because libvhdi reads a child right only if that was written in whole ones.
pub fn furnish(disk: &str, seed: u64, mebibytes: u64) -> Result<String> {
    run(&["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", disk], LIMIT)?;
    mount_disk(disk, MountFlags::empty())?;
    run(&["busybox", "sh", "-c", &format!("cd {AT} && busybox cpio -idm < /boot/guest.img")], LIMIT)?;
    // Written, so that the load changes no more than what is in it.
    fs::write(Path::new(AT).join(LOADED), vec![0; load::WHOLE as usize])?;
    write_files(&folder(AT, seed), seed, mebibytes)?;
    rustix::fs::sync();
    unmount_at(AT)?;
    check(disk)?;
    Ok("done".to_owned())
}

/// The folder of a seed, below a root.
fn folder(root: &str, seed: u64) -> PathBuf {
    Path::new(root).join(format!("kept-{seed}"))
}

/// Keeps files of a seed on a disk that has a file system, or in the own root (`/`).
pub fn keep(disk: &str, seed: u64, mebibytes: u64) -> Result<()> {
    mounted(disk, MountFlags::empty(), |root| {
        write_files(&folder(root, seed), seed, mebibytes)?;
        rustix::fs::sync();
        Ok(())
    })
}

/// What was kept is there.
pub fn kept(disk: &str, seed: u64, mebibytes: u64) -> Result<String> {
    mounted(disk, MountFlags::RDONLY, |root| verify_files(&folder(root, seed), seed, mebibytes))
}

/// How many writes of each thread of a load are on a disk.
pub fn loaded(disk: &str, seed: u64, most: u64) -> Result<Vec<u64>> {
    mounted(disk, MountFlags::RDONLY, |root| {
        let path = Path::new(root).join(LOADED);
        load::found(&File::open(&path).with_context(|| format!("opening {}", path.display()))?, seed, most)
    })
}

/// Has the kernel put right what was under way when a disk was left, then ext4's own judge look at it.
pub fn replay(disk: &str) -> Result<()> {
    mounted(disk, MountFlags::empty(), |_| Ok(()))?;
    check(disk)
}

/// Does something below a disk's root, or the own one.
fn mounted<T>(disk: &str, flags: MountFlags, work: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    if disk == "/" {
        return work(disk);
    }
    mount_disk(disk, flags)?;
    let done = work(AT);
    unmount_at(AT)?;
    done
}

/// Deletes every file and gives the space back to the disk.
pub fn delete_and_trim(disk: &str) -> Result<String> {
    mount_disk(disk, MountFlags::empty())?;
    for entry in fs::read_dir(AT)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("folder") {
            fs::remove_dir_all(entry.path())?;
        }
    }
    rustix::fs::sync();
    let trimmed = run(&["fstrim", "-v", AT], LIMIT)?;
    unmount_at(AT)?;
    Ok(trimmed.trim().to_owned())
}

/// Reads everything back, changing nothing.
pub fn verify(disk: &str, seed: u64, mebibytes: u64) -> Result<String> {
    check(disk)?;
    mount_disk(disk, MountFlags::RDONLY)?;
    let found = verify_files(Path::new(AT), seed, mebibytes);
    unmount_at(AT)?;
    found
}

/// ext4's own judge, read-only, on an unmounted disk.
fn check(disk: &str) -> Result<()> {
    run(&["e2fsck", "-f", "-n", disk], LIMIT).map(drop)
}

fn mount_disk(disk: &str, flags: MountFlags) -> Result<()> {
    mount_at(disk, "ext4", AT, flags, c"")
}

/// The files of a seed: from one byte to four mebibytes, half of them small, together as many as asked.
fn plan(seed: u64, mebibytes: u64) -> Vec<(PathBuf, u64, u64)> {
    let mut left = mebibytes << 20;
    let mut files = Vec::new();
    for index in 0.. {
        let dice = mix(seed.wrapping_add(index));
        let most = if dice & 1 == 0 { 64 << 10 } else { 4 << 20 };
        let size = ((dice >> 8) % most + 1).min(left);
        files.push((PathBuf::from(format!("folder{}/file{index}", index % 7)), mix(dice), size));
        left -= size;
        if left == 0 {
            break;
        }
    }
    files
}

fn write_files(at: &Path, seed: u64, mebibytes: u64) -> Result<()> {
    let mut bytes = Vec::new();
    for (path, seed, size) in plan(seed, mebibytes) {
        let path = at.join(path);
        fs::create_dir_all(path.parent().context("a file in a folder")?)?;
        bytes.resize(size as usize, 0);
        pattern::fill(seed, 0, &mut bytes);
        File::create(&path)?.write_all(&bytes).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn verify_files(at: &Path, seed: u64, mebibytes: u64) -> Result<String> {
    let mut hasher = crc32fast::Hasher::new();
    let (mut count, mut sum) = (0, 0);
    let mut bytes = Vec::new();
    for (path, seed, size) in plan(seed, mebibytes) {
        let path = at.join(path);
        bytes.clear();
        File::open(&path)?.read_to_end(&mut bytes).with_context(|| format!("reading {}", path.display()))?;
        ensure!(bytes.len() as u64 == size, "{} has {} bytes instead of {size}", path.display(), bytes.len());
        let wrong = pattern::difference(seed, 0, &bytes);
        ensure!(wrong.is_none(), "{} is not what was written, from byte {wrong:?}", path.display());
        hasher.update(&bytes);
        count += 1;
        sum += size;
    }
    Ok(format!("{count} files, {sum} bytes, crc32 {:08x}", hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_is_as_large_as_asked_and_always_the_same() {
        let files = plan(5, 16);
        assert_eq!(files.iter().map(|(_, _, size)| size).sum::<u64>(), 16 << 20);
        assert_eq!(files, plan(5, 16));
        assert_ne!(files, plan(6, 16));
    }

    #[test]
    fn a_changed_file_is_found() {
        let at = std::env::temp_dir().join(format!("agent-files-{}", std::process::id()));
        fs::create_dir_all(&at).unwrap();
        write_files(&at, 3, 2).unwrap();
        assert!(verify_files(&at, 3, 2).unwrap().contains("2097152 bytes"));
        let victim = at.join(&plan(3, 2)[0].0);
        let mut bytes = fs::read(&victim).unwrap();
        bytes[0] ^= 1;
        fs::write(&victim, bytes).unwrap();
        assert!(verify_files(&at, 3, 2).unwrap_err().to_string().contains("from byte Some(0)"));
        fs::remove_dir_all(&at).unwrap();
    }
}
