//! blktap's own vhd-util, which Debian does not package: `VHD_UTIL=PATH cargo test -p vhd --test formats -- --ignored blktap`.

use std::fs;
use std::path::Path;

use crate::judges::{
    Folder, Load, Numbers, assert_clean, assert_same, by_engine, by_qemu, first_by_engine, open, play, run, vhd,
};

const BYTES: usize = 20 << 20;

/// Runs vhd-util, which has to succeed.
fn vhd_util(arguments: &[&str]) -> String {
    let program = std::env::var("VHD_UTIL").expect("VHD_UTIL has to name a vhd-util");
    let output = run(&program, "none; blktap's sources have it", arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "vhd-util {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// An image has to be clean for vhd-util and for us.
fn is_clean(image: &Path) {
    let checked = vhd_util(&["check", "-b", "-n", text(image)]);
    // It has no words for a fixed disk that is.
    let fixed = vhd(&["read", text(image), "kind"]).unwrap() == "fixed\n";
    assert!(checked.ends_with("is valid\n") || fixed && checked.is_empty(), "{checked}");
    assert_clean_of_structure(image);
}

/// Without a look at data, which may be there after discards.
fn assert_clean_of_structure(image: &Path) {
    let checked = vhd(&["check", text(image)]).unwrap();
    assert!(checked.ends_with("valid\n"), "{checked}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
#[ignore = "Debian has no vhd-util"]
fn blktap_takes_our_images() {
    let folder = Folder::new("blktap-ours");
    let (base, middle, leaf) = (folder.file("base.vhd"), folder.file("middle.vhd"), folder.file("leaf.vhd"));
    let mut numbers = Numbers::new(101);
    let mut model = vec![0; BYTES];
    vhd(&["create", text(&base), &BYTES.to_string()]).unwrap();
    play(&open(&base), &mut model, &mut numbers, Load::Writes, 60);
    for (image, parent) in [(&middle, &base), (&leaf, &middle)] {
        vhd(&["snapshot", text(image), text(parent)]).unwrap();
        play(&open(image), &mut model, &mut numbers, Load::Discards, 60);
    }
    [&base, &middle, &leaf].into_iter().for_each(|image| is_clean(image));
    // What vhd-util reads of our images it writes into them.
    for (image, parent) in [(&leaf, &middle), (&middle, &base)] {
        vhd_util(&["coalesce", "-n", text(image)]);
        is_clean(parent);
        assert_same("coalesced", &by_engine(parent), &model);
    }
    assert_same("QEMU", &by_qemu(&base), &model);
    vhd_util(&["resize", "-n", text(&base), "-s", "5000", "-j", text(&folder.file("journal"))]);
    is_clean(&base);
    assert_same("resized", &first_by_engine(&base, BYTES), &model);
    vhd(&["resize", text(&base), "9000M"]).unwrap();
    is_clean(&base);
    for (name, options) in [("fixed", &["--fixed"][..]), ("large", &[]), ("small", &["--block", "512K"])] {
        let image = folder.file(name);
        let size = if name == "large" { "2040G" } else { "70000001" };
        vhd(&[&["create", text(&image), size], options].concat()).unwrap();
        is_clean(&image);
    }
}

#[test]
#[ignore = "Debian has no vhd-util"]
fn blktaps_images_are_taken() {
    let folder = Folder::new("blktap-theirs");
    let (base, leaf) = (folder.file("base.vhd"), folder.file("leaf.vhd"));
    let mut numbers = Numbers::new(111);
    let mut model = vec![0; BYTES];
    vhd_util(&["create", "-n", text(&base), "-s", "20"]);
    assert_clean(&base);
    play(&open(&base), &mut model, &mut numbers, Load::Writes, 60);
    is_clean(&base);
    vhd_util(&["snapshot", "-n", text(&leaf), "-p", text(&base), "-e"]);
    play(&open(&leaf), &mut model, &mut numbers, Load::Discards, 60);
    is_clean(&leaf);
    vhd(&["coalesce", text(&leaf)]).unwrap();
    is_clean(&base);
    assert_same("coalesced", &by_engine(&base), &model);
    vhd(&["resize", text(&base), "5G"]).unwrap();
    is_clean(&base);
    assert_eq!(vhd_util(&["query", "-n", text(&base), "-v"]).trim(), "5120");
    // The footer as tapdisk leaves it.
    let mut bytes = fs::read(&leaf).unwrap();
    let end = bytes.len() - 512;
    bytes[end..].fill(0xc7);
    fs::write(&leaf, bytes).unwrap();
    assert!(vhd(&["check", text(&leaf)]).is_err());
    vhd(&["repair", text(&leaf)]).unwrap();
    is_clean(&leaf);
    vhd(&["set", text(&leaf), "hidden", "1"]).unwrap();
    assert_eq!(vhd_util(&["query", "-n", text(&leaf), "-f"]).trim(), "hidden: 1");
    let fixed = folder.file("fixed.vhd");
    vhd_util(&["create", "-n", text(&fixed), "-s", "8", "-r"]);
    assert_clean(&fixed);
}
