//! What is wrong with an image is found and named, and mended where it can be.

use std::fs;
use std::path::{Path, PathBuf};

use protocol::vhd::{Footer, Header, Kind};
use vhd::check::{NAMES, Who};

use crate::judges::{Folder, Load, Numbers, assert_clean, assert_same, by_engine, by_qemu, checked, open, play, vhd};

/// Of the disk, and as far as it is written.
const BYTES: usize = 20 << 20;
const WRITTEN: usize = 9 << 20;

/// An image with blocks, what it holds, and its bytes.
fn image(folder: &Folder) -> (PathBuf, Vec<u8>, Vec<u8>) {
    let path = folder.file("image.vhd");
    vhd(&["create", path.to_str().unwrap(), &BYTES.to_string()]).unwrap();
    let mut model = vec![0; BYTES];
    play(&open(&path), &mut model[..WRITTEN], &mut Numbers::new(61), Load::Writes, 60);
    let bytes = fs::read(&path).unwrap();
    (path, model, bytes)
}

/// Changes both footers and makes their checksums right.
fn with_footer(bytes: &[u8], change: impl Fn(&mut [u8])) -> Vec<u8> {
    let (mut bytes, end) = (bytes.to_vec(), bytes.len() - 512);
    for at in [0, end] {
        change(&mut bytes[at..at + 512]);
        sum(&mut bytes[at..at + 512], 64);
    }
    bytes
}

fn with_header(bytes: &[u8], change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    change(&mut bytes[512..1536]);
    sum(&mut bytes[512..1536], 36);
    bytes
}

fn sum(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum = !bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// What is found: for whom, in which part, and words of it.
fn found(path: &Path, bytes: &[u8], who: Who, part: &str, words: &str) {
    fs::write(path, bytes).unwrap();
    let findings = checked(path).findings;
    let named = findings.iter().any(|found| found.who == who && found.part == part && found.text.contains(words));
    assert!(named, "{who:?} {part} {words:?} in {findings:#?}");
}

#[test]
fn what_is_wrong_is_named() {
    let folder = Folder::new("damage");
    let (path, _, good) = image(&folder);
    assert_clean(&path);
    let end = good.len() - 512;
    let footer = |at: usize, with: &[u8]| with_footer(&good, |bytes| bytes[at..at + with.len()].copy_from_slice(with));
    let header = |at: usize, with: &[u8]| with_header(&good, |bytes| bytes[at..at + with.len()].copy_from_slice(with));
    let changed = |at: usize, with: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    use Who::{Blktap, Everyone, Qemu};
    found(&path, &changed(end, b"C"), Everyone, "footer", "cookie");
    found(&path, &changed(end + 500, &[1]), Everyone, "footer", "checksum");
    found(&path, &changed(0, b"C"), Everyone, "footer's copy", "cookie");
    found(
        &path,
        &[&good[..end], &Footer::new(Kind::Dynamic, (BYTES / 512) as u64, [9; 16], 0).encode()[..]].concat(),
        Everyone,
        "footer",
        "another",
    );
    found(&path, &footer(60, &[0, 0, 0, 5]), Everyone, "footer", "disk type 5");
    found(&path, &footer(8, &[0, 0, 0, 0]), Blktap, "footer", "features");
    found(&path, &footer(32, &[0, 1, 0, 4]), Blktap, "footer", "newer than 1.3");
    found(&path, &footer(56, &[0xff, 0xff]), Blktap, "footer", "geometry");
    found(&path, &footer(84, &[2]), Blktap, "footer", "saved");
    found(&path, &footer(85, &[2]), Blktap, "footer", "hidden");
    found(&path, &footer(300, &[1]), Blktap, "footer", "reserved");
    found(&path, &footer(68, &[0; 16]), Blktap, "footer", "unique id");
    found(&path, &footer(28, b"vbox"), Qemu, "footer", "QEMU takes");
    found(&path, &changed(512, b"C"), Everyone, "header", "cookie");
    found(&path, &changed(900, b"C"), Everyone, "header", "checksum");
    found(&path, &header(28, &[0, 0, 0, 4]), Everyone, "header", "table of 4 entries");
    found(&path, &header(32, &[0, 0x30, 0, 0]), Everyone, "header", "block size");
    found(&path, &header(800, &[1]), Blktap, "header", "reserved");
    found(&path, &header(40, &[1]), Blktap, "header", "parent");
    found(&path, &header(16, &(1u64 << 30).to_be_bytes()), Everyone, "table", "ends");
    found(&path, &header(16, &512u64.to_be_bytes()), Everyone, "header", "lie on each other");
    // The batmap: after a table of one sector.
    found(&path, &changed(2048, b"T"), Blktap, "batmap", "cookie");
    found(&path, &changed(2560, &[1]), Blktap, "batmap", "checksum");
    let full = |bits: u8| {
        let mut bytes = changed(2560, &[bits]);
        bytes[2048 + 24..][..4].copy_from_slice(&(!u32::from(bits)).to_be_bytes());
        bytes
    };
    let there: Vec<usize> = (0..5).filter(|block| word(&good, 1536 + block * 4) != u32::MAX).collect();
    let first = word(&good, 1536 + there[0] * 4) as usize;
    found(&path, &full(0x01), Blktap, "batmap", "block 7 is full and not there");
    let mut lacking = full(0x80 >> there[0]);
    lacking[first * 512 + 3] = 0x7f;
    found(&path, &lacking, Everyone, "batmap", "lacks 1 sectors");
    // The table.
    let entry = |at: u32| changed(1536 + there[0] * 4, &at.to_be_bytes());
    found(&path, &entry(2), Everyone, "table", "lies on metadata");
    found(&path, &entry(u32::MAX - 1), Everyone, "table", "ends at");
    let other = word(&good, 1536 + there[1] * 4);
    found(&path, &entry(other), Everyone, "table", "lies on block");
    found(&path, &entry(other + 4096), Everyone, "table", "");
    // A sector that has data and no bit: some readers would see it.
    let mut hidden = good.clone();
    hidden[first * 512] &= 0x7f;
    hidden[(first + 1) * 512] = 1;
    found(&path, &hidden, Everyone, "bitmap", "no bit");
    fs::write(&path, &good).unwrap();
    assert_clean(&path);
}

#[test]
fn what_is_wrong_with_a_parent_is_named() {
    let folder = Folder::new("orphans");
    let (base, _, _) = image(&folder);
    let child = folder.file("child.vhd");
    vhd(&["snapshot", child.to_str().unwrap(), base.to_str().unwrap()]).unwrap();
    assert_clean(&child);
    let good = fs::read(&child).unwrap();
    let parse = |bytes: &[u8]| Header::parse(bytes[512..1536].try_into().unwrap(), 1).unwrap();
    let header = |change: &dyn Fn(&mut Header)| {
        let mut new = parse(&good);
        change(&mut new);
        [&good[..512], &new.encode()[..], &good[1536..]].concat()
    };
    use Who::{Blktap, Everyone};
    found(&child, &header(&|header| header.parent[0] ^= 1), Everyone, "parent", "another unique id");
    let named = |name: &'static str| header(&move |header| header.set_parent_name(name).unwrap());
    found(&child, &named("other.vhd"), Blktap, NAMES, "the header \"other.vhd\"");
    found(&child, &named("b\u{e4}se"), Blktap, "parent", "not ASCII");
    found(&child, &header(&|header| header.locators[1] = header.locators[0]), Blktap, "parent", "the kind of another");
    found(&child, &header(&|header| header.locators[0].length = 0), Everyone, "parent", "length of 0");
    found(&child, &header(&|header| header.locators[0].offset = 1 << 30), Everyone, "parent", "beyond the end");
    found(&child, &header(&|header| header.locators = Default::default()), Blktap, "parent", "no locator");
    fs::write(&child, &good).unwrap();
    fs::rename(&base, folder.file("gone")).unwrap();
    found(&child, &good, Everyone, "parent", "No such file");
    // What is elsewhere is not looked at, however it is named: a link would lead out.
    std::os::unix::fs::symlink(folder.file("gone"), &base).unwrap();
    found(&child, &good, Everyone, "parent", "a link out of the folder");
}

#[test]
fn footers_are_mended() {
    let folder = Folder::new("mend");
    let (path, model, good) = image(&folder);
    let (name, end) = (path.to_str().unwrap(), good.len() - 512);
    // As tapdisk leaves it while it writes; cut off; the copy gone; the batmap gone.
    let mut poisoned = good.clone();
    poisoned[end..].fill(0xc7);
    let mut copy = good.clone();
    copy[..512].fill(0);
    let mut batmap = good.clone();
    batmap[2048..2560].fill(0);
    for (what, bytes) in [("poisoned", &poisoned[..]), ("cut", &good[..end]), ("copy", &copy), ("batmap", &batmap)] {
        fs::write(&path, bytes).unwrap();
        assert!(vhd(&["check", name]).is_err(), "{what}");
        if what != "copy" {
            assert_same(what, &by_engine(&path), &model);
        }
        let told = vhd(&["repair", name]).unwrap();
        assert!(!told.contains("nothing"), "{what}: {told}");
        assert_clean(&path);
        assert_same(what, &by_engine(&path), &model);
        assert_same(what, &by_qemu(&path), &model);
        assert_eq!(fs::read(&path).unwrap(), good, "{what}");
    }
    assert!(vhd(&["repair", name]).unwrap().contains("nothing to mend"));
    fs::write(&path, &good[..end - 4096]).unwrap();
    let (status, text) = vhd(&["repair", name]).unwrap_err();
    assert_eq!(status, 22);
    assert!(text.contains("bytes are missing"), "{text}");
}
