//! The programs that judge, and a disk's content to judge by.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use drivers::disk::{Device, Op, SECTOR_BYTES};
use embassy_futures::block_on;
use vhd::check::{Options, Report, check};
use vhd::disk::{self, Disk};
use vhd::store::{Access, FileStore};

/// Debian's own interpreter, for which libvhdi is packaged.
const PYTHON: &str = "/usr/bin/python3";
/// Opens a chain, leaf first, and writes what it reads to a file.
const READER: &str = "
import sys, pyvhdi
out, names = sys.argv[1], sys.argv[2:]
files = []
for name in names:
    file = pyvhdi.file()
    file.open(name)
    files.append(file)
for child, parent in zip(files, files[1:]):
    assert child.parent_identifier == parent.identifier, (child.parent_identifier, parent.identifier)
    child.set_parent(parent)
leaf = files[0]
size, at = leaf.get_media_size(), 0
with open(out, 'wb') as raw:
    while at < size:
        part = leaf.read_buffer_at_offset(min(1 << 20, size - at), at)
        assert part
        raw.write(part)
        at += len(part)
";

/// A folder that goes when the test is done well.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let path = env::temp_dir().join(format!("vhd-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }
}

/// Runs a program.
pub fn run<S: AsRef<OsStr>>(program: &str, package: &str, arguments: impl IntoIterator<Item = S>) -> Output {
    let output = Command::new(program).args(arguments).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}; Debian's package {package} has to be installed"))
}

/// Runs a program that has to succeed and returns what it printed.
fn done<S: AsRef<OsStr>>(program: &str, package: &str, arguments: impl IntoIterator<Item = S>) -> String {
    let output = run(program, package, arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{program}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs qemu-img.
pub fn qemu_img(arguments: &[&str]) -> String {
    done("qemu-img", "qemu-utils", arguments)
}

/// What QEMU reads from an image.
pub fn by_qemu(image: &Path) -> Vec<u8> {
    let raw = image.with_extension("qemu");
    qemu_img(&["convert", "-f", "vpc", "-O", "raw", text(image), text(&raw)]);
    fs::read(raw).unwrap()
}

/// Bytes of the disk as QEMU has it.
pub fn size_by_qemu(image: &Path) -> u64 {
    let info = qemu_img(&["info", "-f", "vpc", "--output=json", text(image)]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    info["virtual-size"].as_u64().unwrap()
}

/// Whether QEMU finds bytes of this value, or zeroes.
pub fn qemu_finds(image: &Path, at: u64, bytes: u64, value: u8) -> bool {
    let read = format!("read -P {value} {at} {bytes}");
    let output = run("qemu-io", "qemu-utils", ["-r", "-f", "vpc", "-c", &read, text(image)]);
    output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("failed")
}

/// What libvhdi reads from a chain, leaf first.
pub fn by_libvhdi(chain: &[PathBuf]) -> Vec<u8> {
    let raw = chain[0].with_extension("libvhdi");
    let probe = run(PYTHON, "python3", ["-c", "import pyvhdi"]);
    assert!(probe.status.success(), "pyvhdi: Debian's package python3-libvhdi has to be installed");
    let arguments = ["-c", READER, text(&raw)].into_iter().chain(chain.iter().map(|path| text(path)));
    done(PYTHON, "python3", arguments);
    fs::read(raw).unwrap()
}

/// Runs our program; what it printed, or its words and status.
pub fn vhd(arguments: &[&str]) -> Result<String, (i32, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_vhd")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.code() {
        Some(0) => Ok(text(&output.stdout)),
        code => Err((code.expect("an exit"), text(&output.stdout) + &text(&output.stderr))),
    }
}

/// Our check, whatever the clocks.
pub fn checked(image: &Path) -> Report {
    check(&FileStore::open(image, Access::Read).unwrap(), Options { data: true, now: None }).unwrap()
}

/// An image has to be clean for everyone.
pub fn assert_clean(image: &Path) {
    let report = checked(image);
    assert!(report.is_clean(), "{}: {:#?}", image.display(), report.findings);
}

/// Numbers from a seed.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(count).collect()
    }
}

/// Opens a chain to be written.
pub fn open(image: &Path) -> Disk {
    disk::open(image, Access::Write, Access::Read).unwrap_or_else(|failure| panic!("{failure}"))
}

/// All of a disk by our engine.
pub fn by_engine(image: &Path) -> Vec<u8> {
    let disk = disk::open(image, Access::Read, Access::Read).unwrap_or_else(|failure| panic!("{failure}"));
    let bytes = disk.info().sectors as usize * SECTOR_BYTES;
    drop(disk);
    first_by_engine(image, bytes)
}

/// So many bytes from the beginning.
pub fn first_by_engine(image: &Path, bytes: usize) -> Vec<u8> {
    let disk = disk::open(image, Access::Read, Access::Read).unwrap_or_else(|failure| panic!("{failure}"));
    let mut bytes = vec![0; bytes];
    for (index, part) in bytes.chunks_mut(1 << 20).enumerate() {
        disk::read(&disk, index as u64 * 2048, part).unwrap();
    }
    bytes
}

/// What a guest may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Writes, reads and flushes.
    Writes,
    /// Discards too. Without an image below, QEMU and libvhdi do not look at bitmaps and may see what was discarded.
    Discards,
    /// The same in whole 4 KiB. libvhdi 20210425 takes all bits of a bitmap's byte after the first that is set for set,
    /// so it reads no child that has a sector and not the next one of the same eight.
    Pages,
}

/// Writes, flushes and reads back at random places; `model` is what the disk holds. Sectors that were discarded hold from
/// then on what is read there first.
pub fn play(disk: &Disk, model: &mut [u8], numbers: &mut Numbers, load: Load, steps: usize) {
    let sectors = (model.len() / SECTOR_BYTES) as u64;
    for _ in 0..steps {
        let unit = if load == Load::Pages { 8 } else { 1 };
        let at = numbers.below(sectors) / unit * unit;
        let most = (sectors - at).min([1, 8, 64, 6000][numbers.below(4) as usize]);
        let count = (1 + numbers.below(most)).next_multiple_of(unit).min(sectors - at);
        let range = at as usize * SECTOR_BYTES..(at + count) as usize * SECTOR_BYTES;
        match numbers.below(10) {
            0 => disk::flush(disk).unwrap(),
            1 | 2 if load != Load::Writes => {
                block_on(disk.submit(Op::Discard { sectors: count }, at)).unwrap();
                let before = model[range.clone()].to_vec();
                disk::read(disk, at, &mut model[range.clone()]).unwrap();
                let sectors = model[range].chunks(SECTOR_BYTES).zip(before.chunks(SECTOR_BYTES));
                let fine = |now: &[u8], before| now == before || now.iter().all(|byte| *byte == 0);
                assert!(sectors.into_iter().all(|(now, before)| fine(now, before)), "discarded: {at}, {count}");
            }
            3 => {
                let mut bytes = vec![0xdb; range.len()];
                disk::read(disk, at, &mut bytes).unwrap();
                assert!(bytes == model[range], "sectors {at} to {}", at + count);
            }
            _ => {
                let bytes = numbers.bytes(range.len());
                disk::write(disk, at, &bytes).unwrap();
                model[range].copy_from_slice(&bytes);
            }
        }
    }
    disk::flush(disk).unwrap();
}

/// Says where two disks differ, and not how: they are long.
pub fn assert_same(what: &str, one: &[u8], other: &[u8]) {
    assert_eq!(one.len(), other.len(), "{what}: sizes");
    let differ = one.chunks(SECTOR_BYTES).zip(other.chunks(SECTOR_BYTES)).position(|(one, other)| one != other);
    assert_eq!(differ, None, "{what}: the first sector that differs");
}
