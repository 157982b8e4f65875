//! A file or a block device of the host as the store of an image.

use std::cell::{Cell, RefCell};
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use drivers::disk::{Device, Discard, Error, Info, Op, Piece, SECTOR_BYTES, SECTORS_MAX, Store, sectors, within};
use protocol::mem::Memory;
use rustix::fs::{
    Advice, FallocateFlags, FlockOperation, OFlags, SeekFrom, fadvise, fallocate, fcntl_lock, fdatasync, flock, seek,
};
use rustix::io::Errno;
use xen::page::{PAGE_BYTES, PageRef};

use crate::failure::Failure;
use crate::folder::Folder;
use crate::medium::Medium;
use crate::users::{Identity, writer};

/// Bytes written at once where a hole cannot be made.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
/// How often a lock is tried that udev may be holding for a moment, and how long after each time.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// What one wants of a store, and what others may do meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it while nobody writes it.
    Read,
    /// Read it whatever others do.
    Share,
    /// Read and write it while nobody else uses it.
    Write,
}

/// An open file or block device.
pub struct FileStore {
    file: File,
    path: PathBuf,
    is_device: bool,
    writable: bool,
    physical_bytes: u32,
    sectors: Cell<u64>,
    pages: RefCell<Vec<PageRef>>,
    /// Between pages and the file. It keeps its length, for new bytes would be cleared.
    bytes: RefCell<Vec<u8>>,
    /// So many changes are done and then none any more, as if the power had failed.
    #[cfg(test)]
    pub(crate) changes_left: Cell<Option<u64>>,
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl FileStore {
    /// Opens what is there.
    ///
    /// # Errors
    /// What the system says; EBUSY with a name if others use it; EINVAL if it is neither a file of whole sectors nor a
    /// block device.
    pub fn open(path: &Path, access: Access) -> Result<FileStore, Failure> {
        let failed = |error: std::io::Error| Failure::of_file(path, "open", errno(&error));
        let metadata = std::fs::metadata(path).map_err(failed)?;
        let is_device = metadata.file_type().is_block_device();
        if !is_device && !metadata.is_file() {
            return Err(Failure::invalid(format_args!("{}: neither a file nor a block device", path.display())));
        }
        // Of a block device the kernel lets nobody else have it like that: no mount, no backend, no other of us.
        let flags = if is_device && access != Access::Share { OFlags::EXCL } else { OFlags::empty() };
        let file = File::options()
            .read(true)
            .write(access == Access::Write)
            .custom_flags((flags | OFlags::CLOEXEC).bits().cast_signed())
            .open(path)
            .map_err(failed)?;
        FileStore::of(file, path, &metadata, access)
    }

    /// Makes a file, which must not be there yet.
    ///
    /// # Errors
    /// What the system says.
    pub fn create(path: &Path) -> Result<FileStore, Failure> {
        let failed = |error: std::io::Error| Failure::of_file(path, "create", errno(&error));
        let file = File::options().read(true).write(true).create_new(true).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        FileStore::of(file, path, &metadata, Access::Write)
    }

    fn of(file: File, path: &Path, metadata: &Metadata, access: Access) -> Result<FileStore, Failure> {
        let is_device = metadata.file_type().is_block_device();
        lock(&file, path, access)?;
        if access != Access::Share
            && let Some(other) = writer(Identity::of(metadata))
        {
            return Err(Failure::new(Errno::BUSY, format_args!("{}: {other} writes it", path.display())));
        }
        if is_device {
            // Others may write what is below it past this host's cache of it: a storage domain does. That it is not emptied
            // matters only where something is in it, which the last to close the device took along.
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
        let bytes = seek(&file, SeekFrom::End(0)).map_err(|errno| Failure::of_file(path, "size", errno))?;
        let sector_bytes = SECTOR_BYTES as u64;
        if !bytes.is_multiple_of(sector_bytes) {
            let old = if bytes % sector_bytes == sector_bytes - 1 { ", as with footers from before 2004" } else { "" };
            let text = format_args!("{}: {bytes} bytes are no whole sectors{old}", path.display());
            return Err(Failure::invalid(text));
        }
        let physical_bytes = match is_device {
            true => rustix::fs::ioctl_blkpbszget(&file).unwrap_or(4096).max(512),
            false => 4096,
        };
        let sectors = Cell::new(bytes / sector_bytes);
        let writable = access == Access::Write;
        let pages = RefCell::default();
        Ok(FileStore {
            file,
            path: path.into(),
            is_device,
            writable,
            physical_bytes,
            sectors,
            pages,
            bytes: RefCell::default(),
            #[cfg(test)]
            changes_left: Cell::new(None),
        })
    }

    /// Bytes that the file takes on its file system; of a device, all.
    pub fn allocated_bytes(&self) -> u64 {
        match self.file.metadata() {
            Ok(metadata) if !self.is_device => metadata.blocks() * 512,
            _ => self.sectors.get() * SECTOR_BYTES as u64,
        }
    }

    fn read_at(&self, sector: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let (count, end) = ((bytes.len() / SECTOR_BYTES) as u64, self.sectors.get());
        // What a file that grows has not got yet is zeroes.
        within(sector, count, if self.info().grows { SECTORS_MAX } else { end })?;
        let (bytes, beyond) = bytes.split_at_mut(end.saturating_sub(sector).min(count) as usize * SECTOR_BYTES);
        beyond.fill(0);
        if bytes.is_empty() {
            return Ok(());
        }
        self.file.read_exact_at(bytes, sector * SECTOR_BYTES as u64).map_err(|error| translate(&error))
    }

    fn write_at(&self, sector: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = self.may_write(sector, (bytes.len() / SECTOR_BYTES) as u64)?;
        self.change()?;
        self.file.write_all_at(bytes, sector * SECTOR_BYTES as u64).map_err(|error| translate(&error))?;
        self.sectors.set(self.sectors.get().max(end));
        Ok(())
    }

    /// Counts a change.
    fn change(&self) -> Result<(), Error> {
        #[cfg(test)]
        if let Some(left) = self.changes_left.get() {
            self.changes_left.set(Some(left.checked_sub(1).ok_or(Error::Gone)?));
        }
        Ok(())
    }

    /// Where a write of so many sectors ends, if there may be one.
    fn may_write(&self, sector: u64, sectors: u64) -> Result<u64, Error> {
        let limit = if self.is_device { self.sectors.get() } else { SECTORS_MAX };
        within(sector, sectors, limit)?;
        if self.writable { Ok(sector + sectors) } else { Err(Error::ReadOnly) }
    }

    fn punch(&self, sector: u64, sectors: u64) -> Result<(), Errno> {
        let (at, bytes) = (sector * SECTOR_BYTES as u64, sectors * SECTOR_BYTES as u64);
        fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, bytes)
    }

    fn zero_at(&self, sector: u64, count: u64) -> Result<(), Error> {
        let end = self.may_write(sector, count)?;
        // Beyond the end of a file there are zeroes when it grows.
        let inside = end.min(self.sectors.get()).saturating_sub(sector);
        self.change()?;
        if inside > 0 && self.punch(sector, inside).is_err() {
            let (mut at, end) = (sector, sector + inside);
            while at < end {
                let here = (end - at).min((ZEROES.len() / SECTOR_BYTES) as u64);
                self.write_at(at, &ZEROES[..here as usize * SECTOR_BYTES])?;
                at += here;
            }
        }
        if end > self.sectors.get() { self.set_sectors(end) } else { Ok(()) }
    }
}

/// Locks it against others who lock: ourselves and, while we write, QEMU.
fn lock(file: &File, path: &Path, access: Access) -> Result<(), Failure> {
    let operation = match access {
        Access::Share => return Ok(()),
        Access::Read => FlockOperation::NonBlockingLockShared,
        Access::Write => FlockOperation::NonBlockingLockExclusive,
    };
    let mut tries = 0;
    let busy = |error| match error {
        Errno::WOULDBLOCK | Errno::ACCESS => {
            Failure::new(Errno::BUSY, format_args!("{}: it is locked by another program", path.display()))
        }
        errno => Failure::of_file(path, "lock", errno),
    };
    while let Err(error) = flock(file, operation) {
        tries += 1;
        if error != Errno::WOULDBLOCK || tries == TRIES {
            return Err(busy(error));
        }
        thread::sleep(PAUSE);
    }
    match access {
        Access::Write => fcntl_lock(file, operation).map_err(busy),
        Access::Read | Access::Share => Ok(()),
    }
}

fn translate(error: &std::io::Error) -> Error {
    match errno(error) {
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => Error::NoSpace,
        Errno::ROFS | Errno::PERM | Errno::ACCESS | Errno::BADF => Error::ReadOnly,
        Errno::NODEV | Errno::NXIO => Error::Gone,
        _ => Error::Medium,
    }
}

impl Device for FileStore {
    fn info(&self) -> Info {
        Info {
            sectors: self.sectors.get(),
            physical_bytes: self.physical_bytes,
            read_only: !self.writable,
            flush: true,
            discard: self.writable.then_some(Discard { granularity_bytes: 4096, alignment_bytes: 0 }),
            grows: !self.is_device && self.writable,
        }
    }

    async fn take(&self, _: u64, shape: impl ExactSizeIterator<Item = (u8, u8)>, into: &mut Vec<Piece>) {
        let mut pages = self.pages.borrow_mut();
        into.extend(shape.map(|(first, sectors)| {
            let page = pages.pop().unwrap_or_else(|| PageRef::alone().expect("a page of the host's memory"));
            Piece { page, first, sectors }
        }));
    }

    fn give(&self, pieces: &mut Vec<Piece>) {
        self.pages.borrow_mut().extend(pieces.drain(..).map(|piece| piece.page));
    }

    async fn submit(&self, op: Op<'_>, sector: u64) -> Result<(), Error> {
        match op {
            Op::Read(pieces) => {
                let mut bytes = self.bytes.borrow_mut();
                let bytes = room(&mut bytes, pieces);
                self.read_at(sector, bytes)?;
                each(pieces, |piece, at, range| piece.page.write(at, &bytes[range]));
                Ok(())
            }
            Op::Write(pieces) => {
                let mut bytes = self.bytes.borrow_mut();
                let bytes = room(&mut bytes, pieces);
                each(pieces, |piece, at, range| piece.page.read(at, &mut bytes[range]));
                self.write_at(sector, bytes)
            }
            Op::Flush => fdatasync(&self.file).map_err(|errno| translate(&errno.into())),
            Op::Discard { sectors } => {
                within(sector, sectors, self.sectors.get())?;
                self.may_write(sector, sectors)?;
                match self.punch(sector, sectors) {
                    // What cannot be given back is kept.
                    Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
                    Err(errno) => Err(translate(&errno.into())),
                }
            }
        }
    }
}

impl Medium for FileStore {
    type Place = Folder;

    fn path(&self) -> &Path {
        &self.path
    }

    fn is_device(&self) -> bool {
        self.is_device
    }

    fn set_sectors(&self, sectors: u64) -> Result<(), Error> {
        if self.is_device || !self.writable || sectors > SECTORS_MAX {
            return Err(Error::Unsupported);
        }
        self.change()?;
        self.file.set_len(sectors * SECTOR_BYTES as u64).map_err(|error| translate(&error))?;
        self.sectors.set(sectors);
        Ok(())
    }

    fn place(&self) -> Result<Folder, Failure> {
        Folder::of(&self.path, Access::Share)
    }
}

impl Store for FileStore {
    async fn load(&self, sector: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.read_at(sector, bytes)
    }

    async fn save(&self, sector: u64, bytes: &[u8]) -> Result<(), Error> {
        self.write_at(sector, bytes)
    }

    async fn zero(&self, sector: u64, sectors: u64) -> Result<(), Error> {
        self.zero_at(sector, sectors)
    }
}

/// Room for a payload.
fn room<'a>(bytes: &'a mut Vec<u8>, pieces: &[Piece]) -> &'a mut [u8] {
    let length = sectors(pieces) as usize * SECTOR_BYTES;
    if bytes.len() < length {
        bytes.resize(length, 0);
    }
    &mut bytes[..length]
}

/// Calls with each piece, its first byte in its page, and where its bytes are in the payload.
fn each(pieces: &[Piece], mut with: impl FnMut(&Piece, usize, core::ops::Range<usize>)) {
    let mut at = 0;
    for piece in pieces {
        let first = usize::from(piece.first) * SECTOR_BYTES;
        let bytes = (usize::from(piece.sectors) * SECTOR_BYTES).min(PAGE_BYTES - first);
        with(piece, first, at..at + bytes);
        at += bytes;
    }
}
