//! What commands say and refuse.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use drivers::disk::SECTOR_BYTES;
use serde_json::Value;
use vhd::store::{Access, FileStore};

use crate::judges::{
    Folder, Load, Numbers, assert_clean, assert_same, by_engine, by_libvhdi, by_qemu, first_by_engine, open, play,
    qemu_img, size_by_qemu, vhd,
};

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&vhd(&[&["--json"], arguments].concat()).unwrap()).unwrap()
}

#[test]
fn queries_and_fields() {
    let folder = Folder::new("fields");
    let (base, leaf) = (folder.file("base.vhd"), folder.file("leaf.vhd"));
    let (base, leaf) = (base.to_str().unwrap(), leaf.to_str().unwrap());
    let made = json(&["create", base, "5M"]);
    json(&["snapshot", leaf, base, "--size", "7M"]);
    let chain = json(&["query", leaf, "--chain"]);
    let [top, bottom] = &chain.as_array().unwrap()[..] else { panic!("{chain}") };
    assert_eq!((&top["kind"], &top["size"], &top["parent"]), (&"differencing".into(), &(7 << 20).into(), &base.into()));
    assert_eq!((&bottom["kind"], &bottom["size"]), (&"dynamic".into(), &(5 << 20).into()));
    assert_eq!(made["id"], bottom["id"]);
    assert_eq!(json(&["read", leaf, "parent-id"])["parent-id"], bottom["id"]);
    assert_eq!(vhd(&["read", leaf, "creator-version"]).unwrap(), "1.3\n");

    for (field, value) in [("hidden", "1"), ("saved", "1"), ("marker", "200"), ("timestamp", "12345")] {
        vhd(&["set", base, field, value]).unwrap();
        assert_eq!(vhd(&["read", base, field]).unwrap().trim(), value);
        assert!(vhd(&["set", base, field, "4294967296"]).is_err());
    }
    assert_clean(Path::new(base));
    assert_eq!(json(&["query", base])["hidden"], true);
    assert_eq!(vhd(&["set", base, "parent", "leaf.vhd"]).unwrap_err().0, 22, "it has no parent");
    assert_eq!(vhd(&["set", leaf, "parent", "leaf.vhd"]).unwrap_err().0, 22, "it would be its own");
    assert_eq!(vhd(&["set", leaf, "parent", "../base.vhd"]).map(|_| ()), Ok(()), "only the name counts");
}

#[test]
fn what_is_there_is_not_written_over() {
    let folder = Folder::new("there");
    let path = folder.file("a.vhd");
    let name = path.to_str().unwrap();
    vhd(&["create", name, "1M"]).unwrap();
    assert_eq!(vhd(&["create", name, "1M"]).unwrap_err().0, 17);
    assert_eq!(vhd(&["create", name, "1M", "--force"]).unwrap_err().0, 17, "a file can be removed");
    assert_eq!(vhd(&["query", folder.file("b.vhd").to_str().unwrap()]).unwrap_err().0, 2);
    assert_eq!(vhd(&["create", folder.file("b.vhd").to_str().unwrap(), "2T"]).unwrap_err().0, 22);
    assert!(!folder.file("b.vhd").exists(), "what cannot be made is not begun");
    assert_eq!(vhd(&["snapshot", name, name]).unwrap_err().0, 17);
    let (status, text) = vhd(&["snapshot", "/tmp/elsewhere.vhd", name]).unwrap_err();
    assert_eq!(status, 22);
    assert!(text.contains("where its child is"), "{text}");
    fs::write(&path, vec![0; 1000]).unwrap();
    assert!(vhd(&["query", name]).unwrap_err().1.contains("no whole sectors"));
    fs::write(&path, vec![0; 1023]).unwrap();
    assert!(vhd(&["query", name]).unwrap_err().1.contains("2004"));
    fs::write(&path, vec![0; 4096]).unwrap();
    let (status, text) = vhd(&["query", name]).unwrap_err();
    assert!(status == 22 && text.contains("cookie"), "{text}");
}

#[test]
fn what_is_in_use_is_left_alone() {
    let folder = Folder::new("use");
    let path = folder.file("a.vhd");
    let name = path.to_str().unwrap();
    vhd(&["create", name, "1M"]).unwrap();
    let held = FileStore::open(&path, Access::Write).unwrap();
    for command in [&["repair", name][..], &["resize", name, "2M"], &["set", name, "hidden", "1"], &["check", name]] {
        assert_eq!(vhd(command).unwrap_err().0, 16, "{command:?}");
    }
    vhd(&["query", name]).unwrap();
    vhd(&["check", "--share", name]).unwrap();
    // QEMU asks for locks of its own kind.
    let output = Command::new("qemu-io").args(["-f", "vpc", "-c", "write 0 512", name]).output();
    let output = output.expect("Debian's package qemu-utils has to be installed");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("lock"), "{text}");
    drop(held);
    // One that locks nothing, as tapdisk, and is seen all the same.
    let mut writer = Command::new("sh")
        .args(["-c", "exec 3<>\"$0\"; echo; read line", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0];
    std::io::Read::read_exact(writer.stdout.as_mut().unwrap(), &mut line).unwrap();
    let (status, text) = vhd(&["set", name, "hidden", "1"]).unwrap_err();
    assert!(status == 16 && text.contains(&format!("({}) writes it", writer.id())), "{text}");
    drop(writer.stdin.take());
    writer.wait().unwrap();
    vhd(&["set", name, "hidden", "1"]).unwrap();
}

#[test]
fn disks_grow() {
    let folder = Folder::new("grow");
    for (fixed, sizes) in [(false, &["33M", "40M", "150M", "151M"][..]), (true, &["33M", "34M"])] {
        let path = folder.file("a.vhd");
        let name = path.to_str().unwrap();
        let mut model = vec![0; 32 << 20];
        let mut numbers = Numbers::new(71);
        vhd(&[&["create", name, "32M"][..], if fixed { &["--fixed"] } else { &[] }].concat()).unwrap();
        for size in sizes {
            play(&open(&path), &mut model, &mut numbers, Load::Writes, 30);
            vhd(&["resize", name, size]).unwrap();
            model.resize(size.trim_end_matches('M').parse::<usize>().unwrap() << 20, 0);
            assert_clean(&path);
            assert_eq!(size_by_qemu(&path), model.len() as u64);
            assert_same("engine", &by_engine(&path), &model);
        }
        play(&open(&path), &mut model, &mut numbers, Load::Writes, 30);
        assert_same("QEMU", &by_qemu(&path), &model);
        // libvhdi 20210425 takes the size that the disk was made with.
        assert_same("libvhdi", &by_libvhdi(std::slice::from_ref(&path)), &model[..32 << 20]);
        assert_eq!(vhd(&["resize", name, "1M"]).unwrap_err().0, 22);
        assert_clean(&path);
        fs::remove_file(path).unwrap();
    }
}

/// A table of images from elsewhere grows too, and their sizes stay what their creator's readers take them for.
#[test]
fn disks_of_qemu_grow() {
    let folder = Folder::new("grow-qemu");
    let path = folder.file("a.vhd");
    let name = path.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "vpc", "-o", "force_size=on", name, "16M"]);
    let mut model = vec![0; 16 << 20];
    play(&open(&path), &mut model, &mut Numbers::new(81), Load::Writes, 60);
    vhd(&["resize", name, "2G"]).unwrap();
    assert_eq!(size_by_qemu(&path), 2 << 30);
    assert_same("engine", &first_by_engine(&path, model.len()), &model);
    assert_clean(&path);
    fs::remove_file(&path).unwrap();

    qemu_img(&["create", "-q", "-f", "vpc", name, "16M"]);
    let (status, text) = vhd(&["resize", name, "2G"]).unwrap_err();
    assert!(status == 22 && text.contains("whole cylinders"), "{text}");
    let bytes = 1023 * 16 * 17 * SECTOR_BYTES;
    vhd(&["resize", name, &bytes.to_string()]).unwrap();
    assert_eq!(size_by_qemu(&path), bytes as u64);
    assert_clean(&path);
}

/// What was in a file beyond its image is not what the disk holds once it is larger.
#[test]
fn a_fixed_disk_grows_into_zeroes() {
    let folder = Folder::new("grow-zeroes");
    let path = folder.file("a.vhd");
    let name = path.to_str().unwrap();
    vhd(&["create", name, "1M", "--fixed"]).unwrap();
    let footer = fs::read(&path).unwrap().split_off(1 << 20);
    // As an image in a volume that grew: old bytes between disk and footer.
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0xdb; 1 << 20], 1 << 20).unwrap();
    file.write_all_at(&footer, 2 << 20).unwrap();
    drop(file);
    vhd(&["resize", name, "1536K"]).unwrap();
    assert_same("zeroes", &by_engine(&path), &vec![0; 3 << 19]);
    vhd(&["resize", name, "4M"]).unwrap();
    assert_same("zeroes", &by_engine(&path), &vec![0; 4 << 20]);
    assert_clean(&path);
}
