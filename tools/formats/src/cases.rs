//! The cases: an image as it is at first, and requests of 4 KiB on it.

use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use drivers::disk::{Device, Op, Piece};
use drivers::format::joined::Joined;
use drivers::format::vhd::make::{BLOCK_SECTORS, Form, New, Parent, make};
use drivers::format::vhd::{Vhd, open};
use xen::page::PageRef;

use crate::store::{Hollow, Row};

/// Sectors of a request.
const REQUEST: u64 = 8;
/// Sectors of the part of the disk that hot cases use: 1 GiB.
const HOT: u64 = 2 << 20;
/// Sectors of 2040 GiB, the largest disk that storage managers make of a VHD.
const LARGEST: u64 = 2040 << 21;
/// Requests between two flushes where there are any.
const FLUSH: u64 = 256;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// The store alone, read.
    StoreRead,
    /// The store alone, written.
    StoreWrite,
    /// Reads at random in 1 GiB that is all there.
    Read,
    /// Writes at random there.
    Write,
    /// Writes one after the other there, flushed now and then.
    WriteInOrder,
    /// The same where nothing is, on top of a parent.
    FirstOnParent,
    /// The same in a file without a parent.
    FirstInFile,
    /// The same on a device without a parent.
    FirstOnDevice,
    /// Reads at random of what the lowest image has: depths 1, 30, 1000.
    Depth1,
    Depth30,
    Depth1000,
    /// Nothing, on a chain of 30 images of 2040 GiB.
    Idle,
    /// Reads at random anywhere in it.
    Anywhere,
}

/// What a run came to.
pub struct Done {
    /// Writes and flushes of the store of the image that is written.
    pub writes: u64,
    /// Reads of it.
    pub reads: u64,
    /// Bytes on the heap.
    pub memory: u64,
}

impl Case {
    /// All of them, in the order of the table: what others are compared with comes first.
    pub const ALL: [Case; 13] = [
        Case::StoreRead,
        Case::StoreWrite,
        Case::Read,
        Case::Write,
        Case::WriteInOrder,
        Case::FirstOnParent,
        Case::FirstInFile,
        Case::FirstOnDevice,
        Case::Depth1,
        Case::Depth30,
        Case::Depth1000,
        Case::Idle,
        Case::Anywhere,
    ];

    /// Its name as an argument.
    pub fn name(self) -> &'static str {
        match self {
            Case::StoreRead => "store-read",
            Case::StoreWrite => "store-write",
            Case::Read => "read",
            Case::Write => "write",
            Case::WriteInOrder => "write-in-order",
            Case::FirstOnParent => "first-on-parent",
            Case::FirstInFile => "first-in-file",
            Case::FirstOnDevice => "first-on-device",
            Case::Depth1 => "depth-1",
            Case::Depth30 => "depth-30",
            Case::Depth1000 => "depth-1000",
            Case::Idle => "idle",
            Case::Anywhere => "anywhere",
        }
    }

    /// What it shows.
    pub fn shows(self) -> &'static str {
        match self {
            Case::StoreRead => "(the store alone, read)",
            Case::StoreWrite => "(the store alone, written)",
            Case::Read => "read at random, mapped, hot",
            Case::Write => "write at random, mapped, hot",
            Case::WriteInOrder => "overwrite in order, a flush in 256",
            Case::FirstOnParent => "first write in order, on a parent",
            Case::FirstInFile => "first write in order, in a file",
            Case::FirstOnDevice => "first write in order, on a device",
            Case::Depth1 => "read at random of the lowest, depth 1",
            Case::Depth30 => "read at random of the lowest, depth 30",
            Case::Depth1000 => "read at random of the lowest, depth 1000",
            Case::Idle => "2040 GiB, depth 30, opened",
            Case::Anywhere => "2040 GiB, depth 30, read anywhere",
        }
    }

    /// The case whose cost is a part of this one's.
    pub fn below(self) -> Option<Case> {
        match self {
            Case::StoreRead | Case::StoreWrite | Case::Idle => None,
            Case::Write | Case::WriteInOrder | Case::FirstOnParent | Case::FirstInFile | Case::FirstOnDevice => {
                Some(Case::StoreWrite)
            }
            _ => Some(Case::StoreRead),
        }
    }

    /// The case that this one is compared with.
    pub fn beside(self) -> Option<Case> {
        match self {
            Case::Write => Some(Case::Read),
            Case::FirstOnParent | Case::FirstInFile | Case::FirstOnDevice => Some(Case::WriteInOrder),
            Case::Depth30 | Case::Depth1000 => Some(Case::Depth1),
            _ => None,
        }
    }

    /// Does so many requests.
    pub fn run(self, requests: u64) -> Done {
        let mut random = 1u64;
        let mut at_random = |sectors: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 16) % (sectors / REQUEST) * REQUEST
        };
        let page = PageRef::alone().expect("a page");
        let pieces = [Piece { page, first: 0, sectors: REQUEST as u8 }];
        let (read, write) = (Op::Read(&pieces), Op::Write(&pieces));
        match self {
            Case::StoreRead | Case::StoreWrite => {
                let store = Hollow::new(false);
                let op = if self == Case::StoreRead { read } else { write };
                for _ in 0..requests {
                    let (op, sector) = black_box((op, at_random(HOT)));
                    now(store.submit(op, sector)).expect("it works");
                }
                Done { writes: store.writes.get(), reads: store.reads.get(), memory: 0 }
            }
            Case::Read | Case::Write => {
                let image = Image::filled(1, HOT, HOT);
                let op = if self == Case::Read { read } else { write };
                image.run(requests, |_| (op, at_random(HOT)))
            }
            Case::WriteInOrder => {
                let image = Image::filled(1, LARGEST, 40_000 * 2 * REQUEST);
                image.run(requests, |n| in_order(n, write))
            }
            Case::FirstOnParent => Image::new(2, LARGEST, false).run(requests, |n| in_order(n, write)),
            Case::FirstInFile => Image::new(1, LARGEST, true).run(requests, |n| in_order(n, write)),
            Case::FirstOnDevice => Image::new(1, LARGEST, false).run(requests, |n| in_order(n, write)),
            Case::Depth1 => Image::filled(1, HOT, HOT).run(requests, |_| (read, at_random(HOT))),
            Case::Depth30 => Image::filled(30, HOT, HOT).run(requests, |_| (read, at_random(HOT))),
            Case::Depth1000 => Image::filled(1000, HOT, HOT).run(requests, |_| (read, at_random(HOT))),
            Case::Idle => Image::new(30, LARGEST, false).run(0, |_| (read, 0)),
            Case::Anywhere => Image::new(30, LARGEST, false).run(requests, |_| (read, at_random(LARGEST))),
        }
    }
}

/// One request after the other, and a flush now and then.
fn in_order<'a>(n: u64, write: Op<'a>) -> (Op<'a>, u64) {
    match n % (FLUSH + 1) {
        FLUSH => (Op::Flush, 0),
        inside => (write, (n / (FLUSH + 1) * FLUSH + inside) * REQUEST),
    }
}

/// An opened chain, and the store of the image that is written.
struct Image {
    leaf: Hollow,
    disk: Joined<Vhd<Hollow>>,
}

impl Image {
    /// So many images, all empty.
    fn new(depth: usize, sectors: u64, grows: bool) -> Image {
        let mut row = Row(Vec::new());
        for number in 0..depth {
            row.push(number, sectors, grows);
        }
        Image::open(row)
    }

    /// So many images; the lowest has the first `filled` sectors.
    fn filled(depth: usize, sectors: u64, filled: u64) -> Image {
        let mut row = Row(Vec::new());
        row.push(0, sectors, true);
        let lowest = Image::open(Row(row.0.clone()));
        let page = PageRef::alone().expect("a page");
        let pieces = [Piece { page, first: 0, sectors: REQUEST as u8 }];
        for sector in (0..filled).step_by(BLOCK_SECTORS as usize) {
            now(lowest.disk.submit(Op::Write(&pieces), sector)).expect("it works");
        }
        now(lowest.disk.submit(Op::Flush, 0)).expect("it works");
        for number in 1..depth {
            row.push(number, sectors, true);
        }
        let image = Image::open(row);
        // All of it is known before anything is counted.
        for sector in (0..filled).step_by(BLOCK_SECTORS as usize) {
            now(image.disk.submit(Op::Read(&pieces), sector)).expect("it works");
        }
        image
    }

    fn open(row: Row) -> Image {
        let number = row.0.len() - 1;
        let leaf = row.0[number].clone();
        let opened = now(open::open(&row, leaf.clone(), &format!("image-{number}"), false));
        Image { disk: Joined { format: opened.unwrap_or_else(|error| panic!("{error}")) }, leaf }
    }

    fn run<'a>(&self, requests: u64, mut next: impl FnMut(u64) -> (Op<'a>, u64)) -> Done {
        let (writes, reads) = (self.leaf.writes.get(), self.leaf.reads.get());
        for n in 0..requests {
            let (op, sector) = black_box(next(n));
            now(self.disk.submit(op, sector)).expect("it works");
        }
        Done {
            writes: self.leaf.writes.get() - writes,
            reads: self.leaf.reads.get() - reads,
            memory: self.disk.format.memory_bytes() as u64,
        }
    }
}

impl Row {
    fn push(&mut self, number: usize, sectors: u64, grows: bool) {
        let id = |number: usize| {
            let mut id = [1; 16];
            id[..8].copy_from_slice(&(number as u64).to_be_bytes());
            id
        };
        let parent = format!("image-{}", number.wrapping_sub(1));
        let form = match number {
            0 => Form::Dynamic(BLOCK_SECTORS),
            _ => Form::Differencing(BLOCK_SECTORS, Parent { id: id(number - 1), timestamp: 0, name: &parent }),
        };
        let store = Hollow::new(grows);
        let new = New { id: id(number), sectors, timestamp: 0, form };
        now(make(&store, "image", &new)).unwrap_or_else(|error| panic!("{error}"));
        self.0.push(store);
    }
}

/// A future that never waits. A caller does not know what it is polling, with or without a format in it.
#[inline(never)]
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("nothing here waits"),
    }
}
