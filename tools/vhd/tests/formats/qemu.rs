//! QEMU's images read and written by us, ours read by QEMU.

use std::fs;

use drivers::disk::{Device, Op, SECTOR_BYTES};
use embassy_futures::block_on;
use vhd::check::{Options, check};
use vhd::disk;
use vhd::store::{Access, FileStore};

use crate::judges::{
    Folder, Load, Numbers, assert_clean, assert_same, by_engine, by_libvhdi, by_qemu, checked, open, play, qemu_finds,
    qemu_img, size_by_qemu, vhd,
};

/// Whole sectors, but neither whole blocks nor whole cylinders.
const BYTES: usize = (21 << 20) + 1536;

/// A raw disk with gaps.
fn raw(numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = vec![0; BYTES];
    for _ in 0..40 {
        let at = numbers.below((BYTES / SECTOR_BYTES) as u64) as usize * SECTOR_BYTES;
        let count = (numbers.below(1 << 18) as usize).min(BYTES - at);
        bytes[at..at + count].copy_from_slice(&numbers.bytes(count));
    }
    bytes
}

#[test]
fn images_of_qemu_are_read_and_written() {
    let folder = Folder::new("qemu");
    let from = folder.file("from.raw");
    for (seed, options) in
        ["subformat=fixed", "subformat=dynamic", "subformat=fixed,force_size=on", "subformat=dynamic,force_size=on"]
            .into_iter()
            .enumerate()
    {
        let mut numbers = Numbers::new(seed as u64 + 1);
        let mut model = raw(&mut numbers);
        fs::write(&from, &model).unwrap();
        let image = folder.file("image.vhd");
        let names = [from.to_str().unwrap(), image.to_str().unwrap()];
        qemu_img(&["convert", "-f", "raw", "-O", "vpc", "-o", options, names[0], names[1]]);
        // Without force_size QEMU makes whole cylinders.
        model.resize(size_by_qemu(&image) as usize, 0);
        assert_eq!(model.len() == BYTES, options.contains("force_size"), "{options}");
        assert_same(options, &by_engine(&image), &model);
        let report = checked(&image);
        assert!(report.is_sound(), "{options}: {:#?}", report.findings);
        // vhd-util refuses the geometry that force_size makes, and nothing else of these.
        assert_eq!(report.findings.len(), usize::from(options.contains("force_size")), "{options}: {report:#?}");

        play(&open(&image), &mut model, &mut numbers, Load::Writes, 150);
        assert_same(options, &by_engine(&image), &model);
        assert_same(options, &by_qemu(&image), &model);
        assert!(checked(&image).is_sound(), "{options}: {:#?}", checked(&image).findings);
        fs::remove_file(image).unwrap();
    }
}

#[test]
fn our_images_are_read_by_qemu_and_libvhdi() {
    let folder = Folder::new("ours");
    for (seed, options) in
        [&["--fixed"][..], &[], &["--block", "512K"], &["--block", "4K"], &["--block", "64M"]].iter().enumerate()
    {
        let mut numbers = Numbers::new(seed as u64 + 10);
        let image = folder.file("image.vhd");
        let (path, size) = (image.to_str().unwrap(), BYTES.to_string());
        vhd(&[&["create", path, &size], *options].concat()).unwrap();
        assert_eq!(size_by_qemu(&image), BYTES as u64);
        let mut model = vec![0; BYTES];
        for _ in 0..3 {
            play(&open(&image), &mut model, &mut numbers, Load::Writes, 60);
        }
        assert_same(&format!("{options:?}, QEMU"), &by_qemu(&image), &model);
        assert_same(&format!("{options:?}, libvhdi"), &by_libvhdi(std::slice::from_ref(&image)), &model);
        assert_same(&format!("{options:?}, engine"), &by_engine(&image), &model);
        let report = checked(&image);
        let large = options.contains(&"64M");
        assert_eq!(report.is_clean(), !large, "{options:?}: {:#?}", report.findings);
        assert!(report.is_sound());
        fs::remove_file(image).unwrap();
    }
}

/// QEMU does not look at bitmaps and may see what was discarded, never what was never written.
#[test]
fn what_was_discarded_is_what_it_was_or_zeroes() {
    let folder = Folder::new("discards");
    let image = folder.file("image.vhd");
    vhd(&["create", image.to_str().unwrap(), &BYTES.to_string()]).unwrap();
    let mut model = vec![0; BYTES];
    let mut numbers = Numbers::new(21);
    play(&open(&image), &mut model, &mut numbers, Load::Writes, 100);
    let before = model.clone();
    let mut gone = 0;
    let disk = open(&image);
    for _ in 0..30 {
        let at = numbers.below((BYTES / SECTOR_BYTES) as u64 - 6000);
        block_on(disk.submit(Op::Discard { sectors: 1 + numbers.below(6000) }, at)).unwrap();
    }
    disk::flush(&disk).unwrap();
    drop(disk);
    let (ours, theirs) = (by_engine(&image), by_qemu(&image));
    for (at, before) in before.chunks(SECTOR_BYTES).enumerate() {
        let range = at * SECTOR_BYTES..(at + 1) * SECTOR_BYTES;
        for (who, now) in [("engine", &ours[range.clone()]), ("QEMU", &theirs[range])] {
            let zero = now.iter().all(|byte| *byte == 0);
            assert!(zero || now == before, "{who}: sector {at}");
            gone += u32::from(now != before);
        }
    }
    assert!(gone > 10_000, "{gone}");
    let report = check(&FileStore::open(&image, Access::Read).unwrap(), Options::default()).unwrap();
    assert!(report.is_clean(), "{:#?}", report.findings);
}

#[test]
fn the_largest_disk_is_read_by_qemu() {
    let folder = Folder::new("large");
    let image = folder.file("image.vhd");
    let bytes = 2040u64 << 30;
    vhd(&["create", image.to_str().unwrap(), "2040G"]).unwrap();
    assert_eq!(size_by_qemu(&image), bytes);
    let disk = open(&image);
    let places = [0, 1 << 32, 1 << 40, bytes - 4096];
    for (index, at) in places.iter().enumerate() {
        disk::write(&disk, at / 512, &[index as u8 + 1; 4096]).unwrap();
    }
    disk::flush(&disk).unwrap();
    drop(disk);
    for (index, at) in places.iter().enumerate() {
        assert!(qemu_finds(&image, *at, 4096, index as u8 + 1), "{at}");
        assert!(!qemu_finds(&image, *at, 4096, 77), "it looks");
    }
    assert_clean(&image);
}

#[test]
fn an_image_beyond_4_gib_is_read_by_qemu() {
    let folder = Folder::new("beyond");
    let image = folder.file("image.vhd");
    vhd(&["create", image.to_str().unwrap(), "8G"]).unwrap();
    let disk = open(&image);
    let blocks = 2200u64;
    for block in 0..blocks {
        disk::write(&disk, block * 4096 + 17, &[(block % 251) as u8 + 1; 512]).unwrap();
    }
    disk::flush(&disk).unwrap();
    drop(disk);
    assert!(fs::metadata(&image).unwrap().len() > 1 << 32);
    for block in [0, 1000, 2040, 2047, 2048, blocks - 1] {
        let at = (block * 4096 + 17) * 512;
        assert!(qemu_finds(&image, at, 512, (block % 251) as u8 + 1), "{block}");
        assert!(qemu_finds(&image, at - 512, 512, 0) && qemu_finds(&image, at + 512, 512, 0), "{block}");
    }
    let again = open(&image);
    assert_eq!(again.info().sectors, (8 << 30) / 512);
    drop(again);
    // All blocks are full, as far as bitmaps go; their data are holes of the file.
    let report = vhd(&["check", image.to_str().unwrap(), "--json"]).unwrap();
    assert!(report.contains("\"blocks\": 2200"), "{report}");
}
