//! Where a chain lies: the folder or the volume group of the image that was named, and nowhere else.

use std::path::{Path, PathBuf};

use drivers::format::vhd::open::Place;
use drivers::target::OpenError;
use protocol::errno::Errno;
use protocol::vhd::file_name;

use crate::failure::Failure;
use crate::store::{Access, FileStore};

/// Where the device mapper has its names.
const MAPPER: &str = "/dev/mapper";

/// The place of an image and its parents.
pub struct Folder {
    folder: PathBuf,
    /// In the device mapper's folder: what comes before the volume's name.
    prefix: Option<String>,
    access: Access,
}

impl Folder {
    /// The place of that image; its parents are opened with this access.
    ///
    /// # Errors
    /// A path without a file's name.
    pub fn of(image: &Path, access: Access) -> Result<Folder, Failure> {
        let name = image.file_name().and_then(|name| name.to_str());
        let Some(name) = name else {
            return Err(Failure::invalid(format_args!("{}: not the name of a file", image.display())));
        };
        let folder = image.parent().unwrap_or(Path::new(""));
        let prefix = (folder == Path::new(MAPPER)).then(|| group(name).unwrap_or_default().to_owned());
        Ok(Folder { folder: folder.into(), prefix, access })
    }

    /// What an image of this place is called in a child's locator: its volume's name in the device mapper's folder.
    pub fn volume(&self, name: &str) -> String {
        match self.prefix.as_ref().and_then(|group| name.strip_prefix(group.as_str())) {
            Some(volume) => volume.replace("--", "-"),
            None => name.to_owned(),
        }
    }

    /// The path of an image in this place. What it is called comes from an image.
    ///
    /// # Errors
    /// Why it cannot be one.
    pub fn path(&self, name: &str) -> Result<PathBuf, Failure> {
        let last = file_name(name).ok_or_else(|| Failure::invalid(format_args!("{name:?}: not a name")))?;
        let path = match &self.prefix {
            None => self.folder.join(last),
            Some(group) => self.folder.join(format!("{group}{}", last.replace('-', "--"))),
        };
        // Volumes are links by their nature, and dom0's. A file that is a link is in another folder.
        let is_link = std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_symlink());
        if is_link && !path.starts_with("/dev") {
            return Err(Failure::invalid(format_args!("{}: a link out of the folder", path.display())));
        }
        Ok(path)
    }
}

/// What a device mapper's name begins with that is the volume group's: up to the first hyphen that is not doubled.
fn group(name: &str) -> Option<&str> {
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1)) {
            (b'-', Some(b'-')) => at += 2,
            (b'-', _) => return Some(&name[..=at]),
            _ => at += 1,
        }
    }
    None
}

impl Place for Folder {
    type Store = FileStore;

    async fn parent(&self, name: &str) -> Result<(FileStore, String), OpenError> {
        let open = || {
            let path = self.path(name)?;
            FileStore::open(&path, self.access).map(|store| (store, path.display().to_string()))
        };
        open().map_err(|failure| {
            let errno = match i32::from(failure.status()) {
                number if number == Errno::ENOENT.number() => Errno::ENOENT,
                number if number == Errno::EBUSY.number() => Errno::EBUSY,
                number if number == Errno::EACCES.number() => Errno::EACCES,
                _ => Errno::EINVAL,
            };
            OpenError::new(errno, failure.to_string())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(image: &str, name: &str) -> String {
        let folder = Folder::of(Path::new(image), Access::Share).unwrap();
        folder.path(name).map(|path| path.display().to_string()).unwrap_or_else(|failure| failure.to_string())
    }

    #[test]
    fn parents_are_beside_their_children() {
        assert_eq!(path("leaf.vhd", "C:/elsewhere/base.vhd"), "base.vhd");
        assert_eq!(path("/images/leaf.vhd", "./base.vhd"), "/images/base.vhd");
        assert_eq!(path("/images/leaf.vhd", "/etc/passwd"), "/images/passwd");
        assert_eq!(path("/dev/VG-1/VHD-2", "/dev/VG-1/VHD-3"), "/dev/VG-1/VHD-3");
        assert_eq!(path("/images/leaf.vhd", "a/.."), "\"a/..\": not a name");
    }

    #[test]
    fn the_device_mapper_doubles_hyphens() {
        assert_eq!(path("/dev/mapper/VG_XenStorage--1-VHD--2", "./VHD-3-4"), "/dev/mapper/VG_XenStorage--1-VHD--3--4");
        assert_eq!(path("/dev/mapper/vg-lv", "lv2"), "/dev/mapper/vg-lv2");
        let folder = Folder::of(Path::new("/dev/mapper/a--b-c"), Access::Share).unwrap();
        assert_eq!(folder.volume("a--b-d--e"), "d-e");
        assert_eq!(Folder::of(Path::new("/images/a"), Access::Share).unwrap().volume("b--c"), "b--c");
    }
}
