//! Minors that are set apart: a file each, as blktap has them.
//!
//! A minor is a domain's own, but storage managers take it for the host's: `allocate` gives one that no marker and no
//! storage domain has, and its file keeps the next `allocate` from giving it again.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, flock};
use rustix::io::Errno;

use crate::failure::Failure;

/// Where blktap keeps its sockets and, one folder further, its markers.
pub const CONTROL: &str = "/run/blktap-control";

/// Minors are below; blktap's limit.
const MINORS_MAX: u16 = 16384;

/// A folder of markers.
#[derive(Clone, Debug)]
pub struct Markers {
    folder: PathBuf,
}

impl Markers {
    /// Below this control folder.
    pub fn below(control: &Path) -> Markers {
        Markers { folder: control.join("tapdisk") }
    }

    /// The marker of a minor: what `allocate` and `create` print.
    pub fn path(&self, minor: u16) -> PathBuf {
        self.folder.join(format!("tapdisk-{minor}"))
    }

    /// Sets the lowest minor apart that has no marker and is not `used`.
    pub fn allocate(&self, used: impl Fn(u16) -> bool) -> Result<u16, Failure> {
        let _lock = self.lock()?;
        for minor in (0..MINORS_MAX).filter(|minor| !used(*minor)) {
            let path = self.path(minor);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(_) => return Ok(minor),
                Err(why) if why.kind() == ErrorKind::AlreadyExists => {}
                Err(why) => return Err(Failure::from(why).while_doing(format!("making {}", path.display()))),
            }
        }
        Err(Failure::new(Errno::NOSPC, format!("all {MINORS_MAX} minors are in use")))
    }

    /// Gives a minor back.
    pub fn free(&self, minor: u16) -> Result<(), Failure> {
        let path = self.path(minor);
        fs::remove_file(&path).map_err(|why| Failure::from(why).while_doing(format!("removing {}", path.display())))
    }

    /// The minors that are set apart, in order.
    pub fn list(&self) -> Vec<u16> {
        // Nobody ever set one apart: no folder.
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut minors: Vec<u16> =
            names.filter_map(|name| protocol::number::u16(name.strip_prefix("tapdisk-")?)).collect();
        minors.sort_unstable();
        minors
    }

    /// One at a time, as blktap's own programs do.
    fn lock(&self) -> Result<File, Failure> {
        make_folder(&self.folder)?;
        let doing = || format!("locking {}", self.folder.display());
        let folder = File::open(&self.folder).map_err(|why| Failure::from(why).while_doing(doing()))?;
        flock(&folder, FlockOperation::LockExclusive).map_err(|why| Failure::from(why).while_doing(doing()))?;
        Ok(folder)
    }
}

/// Makes a folder, and those above it, that only root can look into.
pub fn make_folder(path: &Path) -> Result<(), Failure> {
    let made = fs::create_dir_all(path).map_err(Failure::from);
    let made = made.and_then(|()| rustix::fs::chmod(path, Mode::RWXU).map_err(Failure::from));
    made.map_err(|why| why.while_doing(format!("making {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn the_lowest_that_nobody_has() {
        let scratch = Scratch::new();
        let markers = Markers::below(scratch.path());
        assert_eq!(markers.list(), [] as [u16; 0]);
        let used = |minor| minor == 1;
        assert_eq!([0, 1, 2].map(|_| markers.allocate(used).unwrap()), [0, 2, 3]);
        assert_eq!(markers.path(2), scratch.path().join("tapdisk/tapdisk-2"));
        fs::write(scratch.path().join("tapdisk/tapdisk-x"), "").unwrap();
        assert_eq!(markers.list(), [0, 2, 3]);
        markers.free(2).unwrap();
        assert_eq!(markers.allocate(used).unwrap(), 2);
        assert_eq!(markers.free(77).unwrap_err().status(), 2);
        assert_eq!(markers.allocate(|_| true).unwrap_err().status(), 28);
    }
}
