//! How an image finds the one below it: by each of its names, by its unique id, to a depth, and nothing else.

use drivers::disk::{Device, Op};
use drivers::format::joined::Joined;
use drivers::format::vhd::Vhd;
use drivers::format::vhd::make::{Form, New, Parent, make};
use drivers::format::vhd::open::DEPTH_MAX;
use drivers::target::OpenError;
use protocol::errno::Errno;
use sim::image::{Shelf, Slab, finish, read, used, write};
use sim::random::Random;

const SECTOR: usize = 512;
/// Sectors of a disk.
const SECTORS: u64 = 64;
/// Where an image that was made here has its header; within it a checksum, the parent's name and eight locators.
const HEADER: usize = SECTOR;
const CHECKSUM: usize = HEADER + 36;
const NAME: std::ops::Range<usize> = HEADER + 64..HEADER + 576;
const LOCATORS: usize = HEADER + 576;
const LOCATOR_BYTES: usize = 24;

fn store(sectors: u64, seed: u16) -> Slab {
    let mut random = Random::new(seed.into());
    let mut slab = Slab::new(&used(sectors, &mut random), &mut random);
    slab.latency = 0;
    slab
}

fn add(shelf: &Shelf, name: &str, id: u16, form: Form<'_>) -> Slab {
    let slab = store(200, id);
    finish(make(&slab, name, &New { id: number(id), sectors: SECTORS, timestamp: 0, form })).unwrap();
    shelf.put(name, &slab);
    slab
}

/// A unique id.
fn number(id: u16) -> [u8; 16] {
    let mut number = [7; 16];
    number[..2].copy_from_slice(&id.to_be_bytes());
    number
}

fn on(id: u16, name: &str) -> Form<'_> {
    Form::Differencing(8, Parent { id: number(id), timestamp: 0, name })
}

/// Writes that byte to a sector of an image.
fn mark(shelf: &Shelf, name: &str, sector: u64, byte: u8) {
    let image = shelf.open(name, false).unwrap();
    finish(write(&image, sector, &[byte; SECTOR])).unwrap();
    finish(image.submit(Op::Flush, 0)).unwrap();
}

fn marks(image: &Joined<Vhd<Slab>>, sector: u64) -> u8 {
    let bytes = finish(read(image, sector, 1)).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    bytes[0]
}

/// Changes bytes of an image's header.
fn change(slab: &Slab, change: impl FnOnce(&mut [u8])) {
    let mut bytes = slab.disk.borrow().bytes().to_vec();
    change(&mut bytes);
    bytes[CHECKSUM..CHECKSUM + 4].fill(0);
    let sum = !bytes[HEADER..HEADER + 2 * SECTOR].iter().map(|byte| u32::from(*byte)).sum::<u32>();
    bytes[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum.to_be_bytes());
    slab.disk.borrow_mut().write(0, &bytes);
}

fn refused(opened: Result<Joined<Vhd<Slab>>, OpenError>) -> OpenError {
    opened.err().expect("no such chain is opened")
}

/// All names but one kind are taken away; of that one the text is replaced, as another program would have written it.
fn left_with(slab: &Slab, kind: &str, text: &[u8]) {
    change(slab, |bytes| {
        if kind != "header" {
            bytes[NAME].fill(0);
        }
        for number in 0..8 {
            let at = LOCATORS + number * LOCATOR_BYTES;
            if &bytes[at..at + 4] != kind.as_bytes() {
                bytes[at..at + LOCATOR_BYTES].fill(0);
                continue;
            }
            // Space, length, reserved, place.
            bytes[at + 8..at + 12].copy_from_slice(&(text.len() as u32).to_be_bytes());
            let place = u64::from_be_bytes(bytes[at + 16..at + 24].try_into().unwrap()) as usize;
            bytes[place..place + text.len()].copy_from_slice(text);
        }
    });
}

#[test]
fn each_of_its_names_alone_leads_to_the_parent() {
    let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    for (kind, text) in [
        ("W2ru", wide(".\\base")),
        ("W2ru", wide("base")),
        ("W2ku", wide("C:\\images\\base")),
        ("W2ku", wide(".\\base")),
        ("MacX", b"file://./base".to_vec()),
        ("MacX", b"file://localhost/images/base".to_vec()),
        ("header", Vec::new()),
    ] {
        let shelf = Shelf::default();
        add(&shelf, "base", 1, Form::Dynamic(8));
        mark(&shelf, "base", 9, 5);
        let leaf = add(&shelf, "leaf", 2, on(1, "base"));
        left_with(&leaf, kind, &text);
        let image = shelf.open("leaf", false).unwrap_or_else(|why| panic!("{kind}: {why}"));
        assert_eq!((marks(&image, 9), marks(&image, 10)), (5, 0), "{kind}");
        finish(write(&image, 10, &[6; SECTOR])).unwrap();
        finish(image.submit(Op::Flush, 0)).unwrap();
        drop(image);
        let image = shelf.open("leaf", true).unwrap();
        assert_eq!((marks(&image, 9), marks(&image, 10)), (5, 6), "{kind}");
    }
    let shelf = Shelf::default();
    add(&shelf, "base", 1, Form::Dynamic(8));
    let leaf = add(&shelf, "leaf", 2, on(1, "base"));
    left_with(&leaf, "none", b"");
    let error = refused(shelf.open("leaf", false));
    assert_eq!(error.text, "leaf: it has no name of its parent that can be read");
}

#[test]
fn the_parent_is_the_one_with_the_unique_id() {
    let shelf = Shelf::default();
    for (name, id, byte) in [("base", 1, 5), ("other", 3, 6)] {
        add(&shelf, name, id, Form::Dynamic(8));
        mark(&shelf, name, 9, byte);
    }
    let leaf = add(&shelf, "leaf", 2, on(1, "other"));
    let error = refused(shelf.open("leaf", false));
    assert_eq!(error.errno, Errno::EINVAL);
    assert!(error.text.contains("other is not the parent it was made on: another unique id"), "{error}");
    // One of its names leads there, though it is not the best one.
    let name: Vec<u8> = "base".encode_utf16().flat_map(u16::to_be_bytes).collect();
    change(&leaf, |bytes| {
        bytes[NAME].fill(0);
        bytes[NAME.start..NAME.start + name.len()].copy_from_slice(&name);
    });
    assert_eq!(marks(&shelf.open("leaf", false).unwrap(), 9), 5);
    // It comes back under the old name, as a restored backup would: it is the same image.
    let restored = shelf.0.borrow()["base"].clone();
    shelf.put("other", &restored);
    shelf.0.borrow_mut().remove("base");
    assert_eq!(marks(&shelf.open("leaf", false).unwrap(), 9), 5);
    shelf.0.borrow_mut().remove("other");
    assert_eq!(refused(shelf.open("leaf", false)).errno, Errno::ENOENT);
}

#[test]
fn a_raw_parent_may_be_smaller_and_is_zeroes_past_its_end() {
    let shelf = Shelf::default();
    let raw = store(20, 4);
    raw.disk.borrow_mut().write(0, &[9; 20 * SECTOR]);
    shelf.put("raw", &raw);
    add(&shelf, "leaf", 2, Form::Differencing(8, Parent { id: [0; 16], timestamp: 0, name: "raw" }));
    let image = shelf.open("leaf", false).unwrap();
    assert_eq!([0, 19, 20, 63].map(|sector| marks(&image, sector)), [9, 9, 0, 0]);
    finish(write(&image, 18, &[3; 4 * SECTOR])).unwrap();
    assert_eq!([17, 18, 21, 22].map(|sector| marks(&image, sector)), [9, 3, 3, 0]);
    assert_eq!(raw.counts.borrow()[1], 0, "a parent is never written");
}

#[test]
fn a_chain_is_as_deep_as_the_limit_and_no_deeper() {
    let shelf = Shelf::default();
    let name = |layer: usize| format!("layer-{layer}");
    add(&shelf, &name(0), 0, Form::Dynamic(8));
    mark(&shelf, &name(0), 1, 1);
    for layer in 1..=DEPTH_MAX {
        add(&shelf, &name(layer), layer as u16, on(layer as u16 - 1, &name(layer - 1)));
        if layer == 500 {
            mark(&shelf, &name(layer), 2, 2);
        }
    }
    let image = shelf.open(&name(DEPTH_MAX - 1), false).unwrap();
    assert_eq!(image.format.depth(), DEPTH_MAX);
    assert_eq!([1, 2, 3].map(|sector| marks(&image, sector)), [1, 2, 0]);
    finish(write(&image, 3, &[3; SECTOR])).unwrap();
    assert_eq!([1, 2, 3].map(|sector| marks(&image, sector)), [1, 2, 3]);
    let error = refused(shelf.open(&name(DEPTH_MAX), false));
    assert!(error.text.ends_with(&format!("its chain is deeper than {DEPTH_MAX} images")), "{error}");
}

#[test]
fn a_chain_that_comes_back_to_itself_is_refused() {
    for length in [1, 2, 5] {
        let shelf = Shelf::default();
        for layer in 0..length {
            let parent = (layer + 1) % length;
            add(&shelf, &format!("layer-{layer}"), layer, on(parent, &format!("layer-{parent}")));
        }
        let error = refused(shelf.open("layer-0", false));
        assert_eq!((error.errno, error.text.as_str()), (Errno::EINVAL, "layer-0: its chain comes back to it"));
    }
}
