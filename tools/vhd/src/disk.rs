//! Images and chains of the host, opened by the engine that the storage domain has, and their sectors as bytes.

use std::path::Path;

use drivers::disk::{Device, Error, Op, Piece, SECTOR_BYTES};
use drivers::format::joined::Joined;
use drivers::format::vhd::Vhd;
use drivers::format::vhd::open::{self, Image};
use embassy_futures::block_on;
use protocol::mem::Memory;

use crate::failure::Failure;
use crate::folder::Folder;
use crate::medium::Medium;
use crate::store::{Access, FileStore};

/// Sectors moved at once by long work: 1 MiB.
pub const CHUNK_SECTORS: u64 = 2048;

/// A chain as one disk.
pub type Disk<M = FileStore> = Joined<Vhd<M>>;

/// Opens the chain of that image. Its parents are opened to be read, with `below`.
///
/// # Errors
/// What is wrong with an image of it, or who uses it.
pub fn open(path: &Path, access: Access, below: Access) -> Result<Disk, Failure> {
    let store = FileStore::open(path, access)?;
    let folder = Folder::of(path, below)?;
    let name = path.display().to_string();
    let format = block_on(open::open(&folder, store, &name, access != Access::Write))?;
    Ok(Joined { format })
}

/// Reads the structures of one image.
///
/// # Errors
/// What is wrong with them.
pub fn image(store: &impl Medium) -> Result<Image, Failure> {
    Ok(block_on(Image::read(store, &store.path().display().to_string()))?)
}

/// Reads whole sectors of a disk.
///
/// # Errors
/// What the disk says.
pub fn read(disk: &impl Device, sector: u64, bytes: &mut [u8]) -> Result<(), Error> {
    let mut pieces = take(disk, sector, bytes.len());
    let result = block_on(disk.submit(Op::Read(&pieces), sector));
    let mut rest = bytes;
    for piece in &pieces {
        let (here, left) = rest.split_at_mut(usize::from(piece.sectors) * SECTOR_BYTES);
        piece.page.read(usize::from(piece.first) * SECTOR_BYTES, here);
        rest = left;
    }
    disk.give(&mut pieces);
    result
}

/// Writes whole sectors of a disk.
///
/// # Errors
/// What the disk says.
pub fn write(disk: &impl Device, sector: u64, bytes: &[u8]) -> Result<(), Error> {
    let mut pieces = take(disk, sector, bytes.len());
    let mut rest = bytes;
    for piece in &pieces {
        let (here, left) = rest.split_at(usize::from(piece.sectors) * SECTOR_BYTES);
        piece.page.write(usize::from(piece.first) * SECTOR_BYTES, here);
        rest = left;
    }
    let result = block_on(disk.submit(Op::Write(&pieces), sector));
    disk.give(&mut pieces);
    result
}

/// Makes all that was written durable, and an image whole.
///
/// # Errors
/// What the disk says.
pub fn flush(disk: &impl Device) -> Result<(), Error> {
    block_on(disk.submit(Op::Flush, 0))
}

fn take(disk: &impl Device, sector: u64, bytes: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    // A page holds 8 sectors.
    let shape: Vec<(u8, u8)> =
        (0..bytes / SECTOR_BYTES).step_by(8).map(|at| (0, (bytes / SECTOR_BYTES - at).min(8) as u8)).collect();
    block_on(disk.take(sector, shape.into_iter(), &mut pieces));
    pieces
}

/// Sectors of a store.
///
/// # Errors
/// What the store says.
pub fn load(store: &impl Medium, sector: u64, sectors: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; sectors as usize * SECTOR_BYTES];
    block_on(store.load(sector, &mut bytes)).map_err(|error| on(store, error))?;
    Ok(bytes)
}

/// Writes sectors of a store.
///
/// # Errors
/// What the store says.
pub fn save(store: &impl Medium, sector: u64, bytes: &[u8]) -> Result<(), Failure> {
    block_on(store.save(sector, bytes)).map_err(|error| on(store, error))
}

/// Makes a store durable.
///
/// # Errors
/// What the store says.
pub fn sync(store: &impl Medium) -> Result<(), Failure> {
    flush(store).map_err(|error| on(store, error))
}

/// An error of that store's.
pub fn on(store: &impl Medium, error: Error) -> Failure {
    Failure::of_disk(&store.path().display().to_string(), error)
}
