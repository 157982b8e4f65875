//! Chains read by libvhdi, which knows differencing disks.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use drivers::disk::{Device, Op, SECTOR_BYTES};
use embassy_futures::block_on;
use vhd::check::{Options, check};
use vhd::disk;
use vhd::store::{Access, FileStore};

use crate::judges::{
    Folder, Load, Numbers, assert_clean, assert_same, by_engine, by_libvhdi, by_qemu, first_by_engine, open, play,
    qemu_finds, vhd,
};

const BYTES: usize = (13 << 20) + 512;

/// A chain of so many images, leaf first, with what its leaf holds.
fn chain(folder: &Folder, depth: usize, numbers: &mut Numbers) -> (Vec<PathBuf>, Vec<u8>) {
    let (mut images, mut model) = (Vec::<PathBuf>::new(), vec![0; BYTES]);
    for layer in 0..depth {
        let image = folder.file(&format!("layer {layer}.vhd"));
        let path = image.to_str().unwrap();
        match images.first() {
            None => vhd(&["create", path, &BYTES.to_string()]).unwrap(),
            Some(parent) => vhd(&["snapshot", path, parent.to_str().unwrap()]).unwrap(),
        };
        let load = if images.is_empty() { Load::Writes } else { Load::Pages };
        images.insert(0, image);
        play(&open(&images[0]), &mut model, numbers, load, 25);
    }
    (images, model)
}

#[test]
fn chains_are_read() {
    let folder = Folder::new("chains");
    for depth in [2, 5] {
        let mut numbers = Numbers::new(depth as u64);
        let (images, model) = chain(&folder, depth, &mut numbers);
        assert_same("engine", &by_engine(&images[0]), &model);
        assert_same("libvhdi", &by_libvhdi(&images), &model);
        images.iter().for_each(|image| assert_clean(image));
        let checked = vhd(&["check", "--chain", images[0].to_str().unwrap()]).unwrap();
        assert_eq!(checked.lines().filter(|line| line.ends_with(": valid")).count(), depth);
        images.iter().for_each(|image| fs::remove_file(image).unwrap());
    }
}

#[test]
fn a_child_coalesced_into_its_parent_is_the_parent() {
    let folder = Folder::new("coalesce");
    let (images, model) = chain(&folder, 3, &mut Numbers::new(31));
    vhd(&["coalesce", images[0].to_str().unwrap()]).unwrap();
    assert_same("the child stays", &by_libvhdi(&images), &model);
    assert_same("libvhdi", &by_libvhdi(&images[1..]), &model);
    vhd(&["coalesce", images[1].to_str().unwrap()]).unwrap();
    assert_same("QEMU", &by_qemu(&images[2]), &model);
    images.iter().for_each(|image| assert_clean(image));
    // A child of the middle goes on the base.
    let (leaf, base) = (images[0].to_str().unwrap(), images[2].file_name().unwrap().to_str().unwrap());
    vhd(&["set", leaf, "parent", base]).unwrap();
    fs::remove_file(&images[1]).unwrap();
    let short = [images[0].clone(), images[2].clone()];
    assert_same("libvhdi, without the middle", &by_libvhdi(&short), &model);
    assert_same("engine, without the middle", &by_engine(&images[0]), &model);
    assert_clean(&images[0]);
}

/// tapdisk notes at close which blocks are full, and does not read their bitmaps then. It must not believe that of blocks
/// that are not full any more.
#[test]
fn blocks_that_are_not_full_any_more_are_not_said_to_be() {
    let folder = Folder::new("full");
    let mut numbers = Numbers::new(91);
    let (images, mut model) = chain(&folder, 2, &mut numbers);
    let blocks = BYTES.div_ceil(2 << 20);
    for image in &images {
        let disk = open(image);
        for block in 0..blocks {
            let (at, end) = (block << 21, ((block + 1) << 21).min(BYTES));
            model[at..end].copy_from_slice(&numbers.bytes(end - at));
            disk::write(&disk, (at / SECTOR_BYTES) as u64, &model[at..end]).unwrap();
        }
        disk::flush(&disk).unwrap();
        drop(disk);
        // The batmap's bits, after a table of one sector; the last block is not full.
        let bits = 0xffu8 << (9 - blocks);
        let file = fs::File::options().write(true).open(image).unwrap();
        file.write_all_at(&(!u32::from(bits)).to_be_bytes(), 2048 + 24).unwrap();
        file.write_all_at(&[bits], 2560).unwrap();
        assert_clean(image);
    }
    // The leaf was opened before its base was written, which a base never is; what it holds is what counts.
    let mut model = by_engine(&images[0]);
    for _ in 0..4 {
        let disk = open(&images[0]);
        for _ in 0..3 {
            let at = numbers.below((BYTES / SECTOR_BYTES) as u64 - 6000);
            let sectors = 1 + numbers.below(6000);
            block_on(disk.submit(Op::Discard { sectors }, at)).unwrap();
        }
        disk::flush(&disk).unwrap();
        drop(disk);
        assert_clean(&images[0]);
    }
    let disk = open(&images[1]);
    block_on(disk.submit(Op::Discard { sectors: 5000 }, 0)).unwrap();
    disk::flush(&disk).unwrap();
    drop(disk);
    let report = check(&FileStore::open(&images[1], Access::Read).unwrap(), Options::default()).unwrap();
    assert!(report.is_clean(), "{:#?}", report.findings);
    assert!(report.blocks < blocks as u64, "a whole block went");
    play(&open(&images[0]), &mut model, &mut numbers, Load::Discards, 40);
    assert_clean(&images[0]);
}

#[test]
fn a_raw_parent() {
    let folder = Folder::new("raw");
    let mut numbers = Numbers::new(41);
    let (raw, child) = (folder.file("base.raw"), folder.file("child.vhd"));
    let mut model = numbers.bytes(BYTES);
    fs::write(&raw, &model).unwrap();
    let path = child.to_str().unwrap();
    vhd(&["snapshot", path, raw.to_str().unwrap(), "--raw"]).unwrap();
    play(&open(&child), &mut model, &mut numbers, Load::Discards, 40);
    assert_same("engine", &by_engine(&child), &model);
    assert_clean(&child);
    vhd(&["coalesce", path]).unwrap();
    assert_same("the raw image", &fs::read(&raw).unwrap(), &model);
}

#[test]
fn a_larger_child_reads_zeroes_past_its_parent() {
    let folder = Folder::new("larger");
    let (images, mut model) = chain(&folder, 2, &mut Numbers::new(51));
    let leaf = images[0].to_str().unwrap();
    // Far enough that the table, and with it all blocks and the parent's names, have to move.
    vhd(&["resize", leaf, "3G"]).unwrap();
    let shown = vhd(&["read", leaf, "size"]).unwrap();
    assert_eq!(shown.trim(), (3u64 << 30).to_string());
    assert_clean(&images[0]);
    model.resize(BYTES + (2 << 20), 0);
    assert_same("what was there, and more", &first_by_engine(&images[0], model.len()), &model);
    assert_eq!(vhd(&["coalesce", leaf]).unwrap_err().0, 22, "its parent is smaller");
    vhd(&["resize", images[1].to_str().unwrap(), "3G"]).unwrap();
    vhd(&["coalesce", leaf]).unwrap();
    assert_clean(&images[1]);
    assert_same("the parent", &first_by_engine(&images[1], model.len()), &model);
    assert!(qemu_finds(&images[1], (3 << 30) - (1 << 20), 1 << 20, 0));
}
