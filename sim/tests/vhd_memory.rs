//! What an image costs in memory, whatever it is and whatever is asked of it: counted by the allocator, not by the image.

use std::cell::RefCell;
use std::collections::HashMap;
use std::pin::Pin;
use std::rc::Rc;

use drivers::disk::{Device, Discard, Error, Info, Op, Piece, SECTOR_BYTES, Store};
use drivers::format::joined::Joined;
use drivers::format::vhd::Vhd;
use drivers::format::vhd::make::{Form, New, Parent, make};
use drivers::format::vhd::open::{self, Place};
use drivers::target::OpenError;
use protocol::errno::Errno;
use sim::image::{finish, together};
use sim::memory::{self, of_product, of_world};
use sim::random::Random;
use xen::exec::yield_now;
use xen::limits::MEMORY_PER_IMAGE;
use xen::page::PageRef;

/// Requests at once.
const AT_ONCE: usize = 32;

type Sector = [u8; SECTOR_BYTES];

/// A device that holds an image of which all blocks are there, each in its place and half of it written, though
/// nothing of that is kept but what was saved.
#[derive(Clone)]
struct Hollow {
    layer: u64,
    sectors: u64,
    saved: Rc<RefCell<HashMap<u64, Sector>>>,
    full: Option<Full>,
}

/// Where a full image has what.
#[derive(Clone, Copy)]
struct Full {
    table_at: u64,
    entries: u64,
    first: u64,
    stride: u64,
    bitmap: u64,
}

impl Hollow {
    fn sector(&self, at: u64) -> Sector {
        if let Some(saved) = self.saved.borrow().get(&at) {
            return *saved;
        }
        let mut sector = [0; SECTOR_BYTES];
        let Some(full) = self.full else { return sector };
        if (full.table_at..full.table_at + full.entries.div_ceil(128)).contains(&at) {
            for (block, word) in ((at - full.table_at) * 128..).zip(sector.as_chunks_mut().0) {
                let place = if block < full.entries { full.first + block * full.stride } else { u32::MAX.into() };
                *word = (place as u32).to_be_bytes();
            }
        } else if at >= full.first && (at - full.first) % full.stride < full.bitmap {
            // By whole pages, another pattern for each layer and block.
            let mut random = Random::new(at ^ self.layer << 40);
            sector.fill_with(|| if random.one_in(2) { 0xff } else { 0 });
        }
        sector
    }
}

impl Device for Hollow {
    fn info(&self) -> Info {
        let discard = Some(Discard { granularity_bytes: 512, alignment_bytes: 0 });
        Info { sectors: self.sectors, physical_bytes: 512, read_only: false, flush: true, discard, grows: false }
    }

    async fn take(&self, _: u64, shape: impl ExactSizeIterator<Item = (u8, u8)>, into: &mut Vec<Piece>) {
        let page = of_world(|| PageRef::alone().expect("a page"));
        into.extend(shape.map(|(first, sectors)| Piece { page: page.clone(), first, sectors }));
    }

    fn give(&self, pieces: &mut Vec<Piece>) {
        pieces.clear();
    }

    async fn submit(&self, _: Op<'_>, _: u64) -> Result<(), Error> {
        yield_now().await;
        Ok(())
    }
}

impl Store for Hollow {
    async fn load(&self, sector: u64, bytes: &mut [u8]) -> Result<(), Error> {
        yield_now().await;
        of_world(|| {
            (sector..).zip(bytes.as_chunks_mut().0).for_each(|(at, bytes)| *bytes = self.sector(at));
        });
        Ok(())
    }

    async fn save(&self, sector: u64, bytes: &[u8]) -> Result<(), Error> {
        yield_now().await;
        of_world(|| self.saved.borrow_mut().extend((sector..).zip(bytes.as_chunks().0.iter().copied())));
        Ok(())
    }

    async fn zero(&self, _: u64, _: u64) -> Result<(), Error> {
        Ok(())
    }
}

/// Layers by number: the parent of `layer-7` is `layer-6`.
struct Row(Vec<Hollow>);

impl Place for Row {
    type Store = Hollow;

    async fn parent(&self, name: &str) -> Result<(Hollow, String), OpenError> {
        let number = name.rsplit('-').next().and_then(|number| number.parse::<usize>().ok());
        let layer = number.and_then(|number| self.0.get(number));
        let none = || OpenError::new(Errno::ENOENT, format!("{name}: there is none"));
        Ok((layer.ok_or_else(none)?.clone(), name.into()))
    }
}

/// A chain to be measured.
struct Shape {
    depth: usize,
    /// Sectors of what each image lies on.
    device: u64,
    sectors: u64,
    /// Sectors of a block.
    block: u32,
    /// Whether all blocks of all images are there.
    full: bool,
}

impl Shape {
    fn row(&self) -> Row {
        let mut row = Row(Vec::new());
        for layer in 0..self.depth {
            let id = |layer: usize| [layer as u8, 1 + (layer >> 8) as u8, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3];
            let name = format!("layer-{}", layer.wrapping_sub(1));
            let form = match layer {
                0 => Form::Dynamic(self.block),
                _ => Form::Differencing(self.block, Parent { id: id(layer - 1), timestamp: 0, name: &name }),
            };
            let mut store = Hollow { layer: layer as u64, sectors: self.device, saved: Rc::default(), full: None };
            let new = New { id: id(layer), sectors: self.sectors, timestamp: 0, form };
            finish(make(&store, "an image", &new)).expect("room for it");
            let bitmap = u64::from(self.block).div_ceil(8 * SECTOR_BYTES as u64);
            // Behind whatever metadata there is, its data aligned.
            let behind = store.saved.borrow().keys().copied().filter(|at| *at + 1 < self.device).max().unwrap_or(0) + 1;
            let full = Full {
                table_at: 3,
                entries: self.sectors.div_ceil(self.block.into()),
                first: (behind + bitmap).next_multiple_of(8) - bitmap,
                stride: (bitmap + u64::from(self.block)).next_multiple_of(8),
                bitmap,
            };
            if self.full {
                let table = full.table_at..full.table_at + full.entries.div_ceil(128);
                store.saved.borrow_mut().retain(|at, _| !table.contains(at));
                store.full = Some(full);
            }
            row.0.push(store);
        }
        row
    }

    fn open(&self, row: &Row) -> Joined<Vhd<Hollow>> {
        let leaf = row.0[self.depth - 1].clone();
        let opened = finish(open::open(row, leaf, &format!("layer-{}", self.depth - 1), false));
        Joined { format: opened.unwrap_or_else(|why| panic!("{why}")) }
    }

    /// The heap that it takes, opened, and at most while anything is asked of it, so many requests at once.
    fn measure(&self, rounds: u32) -> (usize, usize) {
        memory::begin();
        let row = self.row();
        let before = memory::held();
        let image = of_product(|| self.open(&row));
        let idle = (memory::held() - before).notes;
        let mut random = Random::new(5);
        let page = PageRef::alone().expect("a page");
        memory::peak();
        for _ in 0..rounds {
            let requests: Vec<_> = (0..AT_ONCE)
                .map(|_| {
                    let count = random.pick(&[1, 8, 8, 3]);
                    let sector = random.below(self.sectors - count);
                    let pieces = [Piece { page: page.clone(), first: 0, sectors: count as u8 }];
                    let (image, what, far) =
                        (&image, random.below(400), random.below(self.sectors - sector).min(1 << 16));
                    Box::pin(async move {
                        let (op, sector) = match what {
                            0..180 => (Op::Read(&pieces), sector),
                            180..360 => (Op::Write(&pieces), sector),
                            360..390 => (Op::Discard { sectors: count }, sector),
                            390..398 => (Op::Discard { sectors: far }, sector),
                            _ => (Op::Flush, 0),
                        };
                        image.submit(op, sector).await.expect("a store that works");
                    }) as Pin<Box<dyn Future<Output = ()>>>
                })
                .collect();
            of_product(|| together(&mut random, requests));
        }
        (idle, (memory::peak() - before).notes)
    }
}

/// What is promised for an image, and for what those hold that are at it: each of them some, and the bitmaps that are on
/// their way to the store.
const LOADED_MAX: usize = MEMORY_PER_IMAGE + (AT_ONCE << 10) + (256 << 10);

fn bounded(shape: &Shape, rounds: u32, idle_max: usize) {
    let (idle, peak) = shape.measure(rounds);
    println!("opened {} KiB, at most {} KiB", idle >> 10, peak >> 10);
    assert!(idle <= idle_max, "{idle} bytes opened");
    assert!(peak <= LOADED_MAX, "{peak} bytes under load");
}

#[test]
fn a_chain_of_30_images_of_2040_gib_costs_little() {
    let shape = Shape { depth: 30, device: 1 << 32, sectors: 2040 << 21, block: 4096, full: false };
    bounded(&shape, 100, 64 << 10);
    // A bit for each place of a block.
    bounded(&Shape { full: true, ..shape }, 100, 256 << 10);
}

#[test]
fn blocks_of_any_size_cost_no_more() {
    for full in [false, true] {
        bounded(&Shape { depth: 2, device: 1 << 32, sectors: 1000 << 21, block: 131_072, full }, 100, 256 << 10);
        bounded(&Shape { depth: 2, device: 1 << 26, sectors: 8 << 21, block: 8, full }, 100, 768 << 10);
    }
}

#[test]
fn a_chain_of_a_thousand_images_costs_little() {
    bounded(&Shape { depth: 1000, device: 1 << 32, sectors: 2 << 21, block: 4096, full: true }, 40, 512 << 10);
}
