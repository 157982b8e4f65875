//! VHD images that somebody made to harm: a chain of two, changed in any of its structures, most often so that checksums
//! are right; then requests on whatever of it opens.

use drivers::disk::{Device, Op};
use drivers::format::vhd::make::{Form, New, Parent, make};

use crate::disk::Disk;
use crate::image::{Shelf, Slab, finish, read, write};
use crate::random::Random;

const SECTOR: usize = 512;
/// Sectors of the store of each image.
const STORE: u64 = 300;
/// Sectors of the disk.
const SECTORS: u64 = 120;
/// Requests to the stores that a request on the image may cost: the table's sector and the bitmap of both layers, for each
/// block that it touches, both steps of making all of it durable, and as much again for what is done anew.
const COST_MAX: u64 = 2000;
/// Bytes on the heap that so small an image may take.
const MEMORY_MAX: usize = 1 << 20;

/// What the images are, at sector: the footer's copy, the header, and the table after it.
const HEADER: usize = SECTOR;
const TABLE: usize = 3 * SECTOR;

fn sum(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum = !bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
}

/// Changes a structure, and mends its checksum most times.
fn harm(random: &mut Random, bytes: &mut [u8]) {
    let end = bytes.len() - SECTOR;
    let (place, size, checksum) = match random.below(6) {
        0 => (0, SECTOR, Some(64)),
        1 => (end, SECTOR, Some(64)),
        2 => (HEADER, 2 * SECTOR, Some(36)),
        3 => (TABLE, SECTOR, None),
        // The batmap, the names of the parent, bitmaps.
        4 => (TABLE + SECTOR, 6 * SECTOR, None),
        _ => (TABLE, bytes.len() - TABLE, None),
    };
    let part = &mut bytes[place..place + size];
    for _ in 0..random.between(1, 4) {
        let at = random.index(size / 4) * 4;
        let word = match random.below(6) {
            0 => 0,
            1 => u32::MAX,
            2 => random.below(STORE + 2) as u32,
            3 => 1 << random.below(32),
            4 => u32::from_be_bytes(part[at..at + 4].try_into().expect("four bytes"))
                .wrapping_add(random.below(3) as u32)
                .wrapping_sub(1),
            _ => random.next() as u32,
        };
        part[at..at + 4].copy_from_slice(&word.to_be_bytes());
    }
    if let Some(at) = checksum.filter(|_| !random.one_in(8)) {
        sum(part, at);
    }
    // Both copies of a footer, or one of them.
    if place == 0 && random.one_in(2) {
        let copy = bytes[..SECTOR].to_vec();
        bytes[end..].copy_from_slice(&copy);
    }
}

/// A chain of two images of some block size, with something in both.
fn chain(random: &mut Random) -> (Shelf, [Slab; 2]) {
    let (shelf, mut slabs) = (Shelf::default(), Vec::new());
    for (number, name) in ["base", "leaf"].into_iter().enumerate() {
        let disk = std::rc::Rc::new(std::cell::RefCell::new(Disk::new(STORE)));
        let mut slab = Slab::new(&disk, random);
        slab.latency = 0;
        let parent = Parent { id: [0; 16], timestamp: 0, name: "base" };
        let block = random.pick(&[8, 8, 16, 32]);
        let form = if number == 0 {
            Form::Dynamic(block)
        } else {
            Form::Differencing(block, Parent { id: [10; 16], ..parent })
        };
        let new = New { id: [10 + number as u8; 16], sectors: SECTORS, timestamp: 0, form };
        finish(make(&slab, name, &new)).expect("room for it");
        shelf.put(name, &slab);
        let image = shelf.open(name, false).expect("what was just made");
        let bytes = vec![1 + number as u8; 20 * SECTOR];
        finish(write(&image, 7 + 20 * number as u64, &bytes)).expect("a store that works");
        finish(image.submit(Op::Flush, 0)).expect("a store that works");
        slabs.push(slab);
    }
    (shelf, slabs.try_into().map_err(drop).expect("two of them"))
}

/// An image made of these bytes, and what is asked of it.
pub fn image(bytes: &[u8]) {
    let mut random = Random::of(bytes);
    let (shelf, [base, leaf]) = chain(&mut random);
    for _ in 0..random.between(0, 4) {
        let slab = if random.one_in(3) { &base } else { &leaf };
        let mut image = slab.disk.borrow().bytes().to_vec();
        harm(&mut random, &mut image);
        slab.disk.borrow_mut().write(0, &image);
    }
    let below = base.disk.borrow().bytes().to_vec();
    let head = leaf.disk.borrow().bytes()[..TABLE].to_vec();
    let requests = || base.requests() + leaf.requests();
    let before = requests();
    let opened = shelf.open("leaf", random.one_in(4));
    assert!(requests() - before <= COST_MAX, "{} requests to open it", requests() - before);
    let disk = match opened {
        Ok(disk) => disk,
        Err(error) => {
            assert!(error.errno.number() > 0 && error.text.contains(':') && error.text.len() < 512, "{error}");
            return;
        }
    };
    let sectors = disk.info().sectors;
    assert!(sectors > 0);
    for _ in 0..random.between(1, 12) {
        let (what, count) = (random.below(5), random.between(1, 40).min(sectors));
        let first = random.below((sectors - count + 1).min(2 * SECTORS));
        let before = requests();
        // What it comes to is the image's affair.
        let _any = finish(async {
            match what {
                0 => read(&disk, first, count).await.map(drop),
                1 | 2 => write(&disk, first, &vec![7; count as usize * SECTOR]).await,
                3 => disk.submit(Op::Discard { sectors: count }, first).await,
                _ => disk.submit(Op::Flush, 0).await,
            }
        });
        assert!(requests() - before <= COST_MAX, "{} requests for one", requests() - before);
        assert!(disk.format.memory_bytes() <= MEMORY_MAX, "{} bytes", disk.format.memory_bytes());
    }
    // Whoever can write to the disk can do nothing to its parent, nor to what the image says of its parent.
    assert!(*base.disk.borrow().bytes() == below, "the parent was written");
    assert!(leaf.disk.borrow().bytes()[SECTOR..TABLE] == head[SECTOR..], "the header was written");
}
