//! VHD chains under anything that guests ask in any order, against a flat array; and after a power cut at every write and
//! every flush.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Waker};

use drivers::disk::{Device, Error, Op};
use drivers::format::Format;
use drivers::format::joined::Joined;
use drivers::format::vhd::Vhd;
use drivers::format::vhd::make::{Form, New, Parent, make};
use sim::disk::Disk;
use sim::image::{Shelf, Slab, finish, read, together, used, write};
use sim::random::Random;
use sim::run::seeds;
use sim::vhd;

const SECTOR: usize = 512;

/// A sector's content is a number, 64 times; zero is zeroes.
fn fill(number: u64) -> Vec<u8> {
    number.to_be_bytes().repeat(SECTOR / 8)
}

/// The number of a sector's content; none if it is something else's.
fn number(bytes: &[u8]) -> Option<u64> {
    let number = u64::from_be_bytes(bytes[..8].try_into().unwrap());
    let ours = number < 1 << 40;
    (ours && bytes == fill(number)).then_some(number)
}

/// A value that a sector had: how much had reached the disk before it could be there, and when it was answered.
#[derive(Clone, Copy, Debug)]
struct Value {
    number: u64,
    begun: usize,
    done: u64,
}

/// What happened.
#[derive(Default)]
struct History {
    /// By sector: its values, oldest first.
    values: BTreeMap<u64, Vec<Value>>,
    /// Flushes: when they began, and how much had reached the disk when they were answered.
    flushes: Vec<(u64, usize)>,
}

impl History {
    /// Which numbers a sector may have if the power failed when `at` entries had reached the disk.
    fn allowed(&self, sector: u64, first: u64, at: usize) -> Vec<u64> {
        let flushed = self.flushes.iter().filter(|(_, done)| *done <= at).map(|(begun, _)| *begun).max();
        let mut allowed = vec![first];
        for value in self.values.get(&sector).into_iter().flatten().filter(|value| value.begun <= at) {
            if flushed.is_some_and(|flushed| value.done <= flushed) {
                allowed.clear();
            }
            allowed.push(value.number);
        }
        allowed
    }
}

/// What a reader makes of a sector, and one that does not look at bitmaps.
type Seen = (Option<u64>, Option<u64>);

/// A chain, and what it holds.
struct Chain {
    random: Random,
    /// Sectors of its images' blocks, one of these.
    blocks: &'static [u64],
    shelf: Shelf,
    names: Vec<String>,
    /// What is below the leaf.
    below: Vec<u64>,
    now: RefCell<Vec<u64>>,
    next: Cell<u64>,
    /// What was begun and answered, counted.
    clock: Cell<u64>,
    /// Sectors that were discarded and are there, and are not.
    kept: Cell<u64>,
    gone: Cell<u64>,
    history: RefCell<History>,
}

impl Chain {
    fn new(seed: u64, depth: usize, sectors: u64) -> Chain {
        Chain::of(seed, depth, sectors, &[8, 8, 16, 64])
    }

    fn of(seed: u64, depth: usize, sectors: u64, blocks: &'static [u64]) -> Chain {
        let mut chain = Chain {
            random: Random::new(seed),
            blocks,
            shelf: Shelf::default(),
            names: Vec::new(),
            below: Vec::new(),
            now: RefCell::default(),
            next: Cell::new(1),
            clock: Cell::new(0),
            kept: Cell::new(0),
            gone: Cell::new(0),
            history: RefCell::default(),
        };
        for layer in 0..depth {
            chain.snapshot(sectors + layer as u64 * 13);
            if layer + 1 < depth {
                let image = chain.open();
                chain.play(&image, 3, 10);
                finish(image.submit(Op::Flush, 0)).unwrap();
            }
        }
        chain
    }

    fn snapshot(&mut self, sectors: u64) {
        let name = format!("layer-{}.vhd", self.names.len());
        let block = self.random.pick(self.blocks);
        let room = 40 + (sectors.div_ceil(block) + 6) * (block + 8);
        let slab = Slab::new(&used(room, &mut self.random), &mut self.random);
        let mut id = [7; 16];
        id[0] = self.names.len() as u8;
        let parent = self.names.last().map(|name| Parent {
            id: [id[0] - 1, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7],
            timestamp: 5,
            name,
        });
        let form = parent.map_or(Form::Dynamic(block as u32), |parent| Form::Differencing(block as u32, parent));
        finish(make(&slab, &name, &New { id, sectors, timestamp: 9, form })).unwrap();
        self.shelf.put(&name, &slab);
        self.names.push(name);
        self.now.borrow_mut().resize(sectors as usize, 0);
        self.below = match parent_is(&self.names) {
            true => self.now.borrow().clone(),
            false => vec![0; sectors as usize],
        };
    }

    fn leaf(&self) -> Slab {
        self.shelf.0.borrow()[self.names.last().unwrap()].clone()
    }

    fn open(&self) -> Joined<Vhd<Slab>> {
        self.shelf.open(self.names.last().unwrap(), false).unwrap()
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    fn recorded(&self) -> usize {
        self.leaf().disk.borrow().recorded()
    }

    /// So many rounds of requests at once. Within a round no two touch the same sector; often the same block.
    fn play(&mut self, image: &Joined<Vhd<Slab>>, rounds: usize, at_once: usize) {
        let mut random = self.random.fork();
        for _ in 0..rounds {
            let sectors = image.info().sectors;
            let (mut taken, mut requests) = (vec![false; sectors as usize], Vec::new());
            for _ in 0..at_once {
                let first = match sectors {
                    0..1000 => random.below(sectors),
                    // Here is where parts of large blocks meet.
                    _ => (random.below(sectors / 4096 + 1) * 4096 + random.below(80)).saturating_sub(40),
                };
                let most = if random.one_in(5) { 80 } else { 12 };
                let count = random.between(1, most).min(sectors - first);
                let range = first as usize..(first + count) as usize;
                if taken[range.clone()].iter().any(|taken| *taken) {
                    continue;
                }
                taken[range].fill(true);
                requests.push(self.request(image, random.below(10), first, count));
            }
            if random.one_in(2) {
                requests.push(Box::pin(self.flush(image)));
            }
            together(&mut random, requests);
        }
    }

    fn request<'a>(
        &'a self,
        image: &'a Joined<Vhd<Slab>>,
        what: u64,
        first: u64,
        count: u64,
    ) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
        match what {
            0..6 => Box::pin(self.write(image, first, count)),
            6..8 => Box::pin(self.discard(image, first, count)),
            _ => Box::pin(self.look(image, first, count)),
        }
    }

    fn note(&self, first: u64, numbers: &[u64], begun: usize) {
        let (mut history, mut now, done) = (self.history.borrow_mut(), self.now.borrow_mut(), self.tick());
        for (sector, number) in (first..).zip(numbers) {
            let value = Value { number: *number, begun, done };
            history.values.entry(sector).or_default().push(value);
            now[sector as usize] = *number;
        }
    }

    async fn write(&self, image: &Joined<Vhd<Slab>>, first: u64, count: u64) {
        let from = self.next.replace(self.next.get() + count);
        let numbers: Vec<u64> = (from..from + count).collect();
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| fill(*number)).collect();
        let begun = self.recorded();
        write(image, first, &bytes).await.unwrap();
        self.note(first, &numbers, begun);
    }

    async fn discard(&self, image: &Joined<Vhd<Slab>>, first: u64, count: u64) {
        let begun = self.recorded();
        image.submit(Op::Discard { sectors: count }, first).await.unwrap();
        let bytes = read(image, first, count).await.unwrap();
        let numbers: Vec<u64> = bytes.chunks(SECTOR).map(|bytes| number(bytes).expect("nobody else's")).collect();
        for (sector, number) in (first as usize..).zip(&numbers) {
            // It may be gone, or not; what is below must not come up.
            let (now, below) = (self.now.borrow()[sector], self.below[sector]);
            assert!(*number == now || *number == 0 && below == 0, "sector {sector}: {number}, {now} over {below}");
            self.kept.set(self.kept.get() + u64::from(*number != 0));
            self.gone.set(self.gone.get() + u64::from(*number == 0 && now != 0));
        }
        self.note(first, &numbers, begun);
    }

    async fn look(&self, image: &Joined<Vhd<Slab>>, first: u64, count: u64) {
        let bytes = read(image, first, count).await.unwrap();
        for (sector, bytes) in (first..).zip(bytes.chunks(SECTOR)) {
            assert_eq!(number(bytes), Some(self.now.borrow()[sector as usize]), "sector {sector}");
        }
    }

    async fn flush(&self, image: &Joined<Vhd<Slab>>) {
        let begun = self.tick();
        image.submit(Op::Flush, 0).await.unwrap();
        self.history.borrow_mut().flushes.push((begun, self.recorded()));
    }

    fn verify(&self, image: &Joined<Vhd<Slab>>) {
        let sectors = image.info().sectors;
        assert_eq!(sectors, self.now.borrow().len() as u64);
        for first in (0..sectors).step_by(50) {
            finish(self.look(image, first, 50.min(sectors - first)));
        }
    }

    /// What another reader makes of all layers, with the leaf's bytes as they are here.
    fn read_apart(&self, leaf: &[u8]) -> Result<Vec<Seen>, String> {
        let disks: Vec<_> = self.names.iter().map(|name| self.shelf.0.borrow()[name].disk.clone()).collect();
        let borrowed: Vec<_> = disks[..disks.len() - 1].iter().map(|disk| disk.borrow()).collect();
        let bytes: Vec<&[u8]> = borrowed.iter().map(|disk| disk.bytes()).chain([leaf]).collect();
        let images = bytes.iter().map(|bytes| vhd::check(bytes)).collect::<Result<Vec<_>, _>>()?;
        let layers: Vec<(&[u8], &vhd::Image)> = bytes.into_iter().zip(&images).rev().collect();
        let value = |sector, whole| vhd::sector(&layers, sector, whole).map_or(Some(0), number);
        Ok((0..images.last().unwrap().sectors).map(|sector| (value(sector, false), value(sector, true))).collect())
    }
}

fn parent_is(names: &[String]) -> bool {
    names.len() > 1
}

fn model(seed: u64) {
    let depth = 1 + seed as usize % 4;
    let chain = hold(seed, Chain::new(seed, depth, 200));
    assert!(chain.gone.get() > 0 && (depth > 1 || chain.kept.get() == 0), "seed {seed}: what is discarded goes");
}

fn hold(seed: u64, mut chain: Chain) -> Chain {
    for _ in 0..3 {
        let image = chain.open();
        chain.play(&image, 12, 12);
        chain.verify(&image);
        finish(image.submit(Op::Flush, 0)).unwrap();
        let leaf = chain.leaf().disk.borrow().bytes().to_vec();
        let apart = chain.read_apart(&leaf).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        for (sector, (value, _)) in apart.iter().enumerate() {
            assert_eq!(*value, Some(chain.now.borrow()[sector]), "seed {seed}: sector {sector} to another reader");
        }
    }
    chain.verify(&chain.open());
    chain
}

#[test]
fn chains_hold_what_was_written() {
    seeds(0..120, model);
}

/// Of such a block the map knows a part at a time.
#[test]
fn chains_of_large_blocks_do_too() {
    seeds(0..3, |seed| {
        let depth = 1 + seed as usize % 3;
        hold(seed, Chain::of(seed, depth, 10_000, &[8192, 16_384]));
    });
}

/// Without its bit a sector would be the parent's, and trimmed below it would be the store's: there is nothing to give back.
#[test]
fn where_a_parent_has_data_a_discard_leaves_the_leafs() {
    let mut random = Random::new(11);
    let shelf = Shelf::default();
    let mut add = |name: &str, number: u8, form: Form<'_>| {
        let slab = Slab::new(&used(200, &mut random), &mut random);
        let new = New { id: [number; 16], sectors: 64, timestamp: 0, form };
        finish(make(&slab, name, &new)).unwrap();
        shelf.put(name, &slab);
        slab
    };
    let base = add("base", 1, Form::Dynamic(8));
    let leaf = add("leaf", 2, Form::Differencing(16, Parent { id: [1; 16], timestamp: 0, name: "base" }));
    let below = shelf.open("base", false).unwrap();
    finish(write(&below, 16, &fill(5).repeat(8))).unwrap();
    finish(below.submit(Op::Flush, 0)).unwrap();
    drop(below);
    let parent = base.disk.borrow().bytes().to_vec();
    let image = shelf.open("leaf", false).unwrap();
    // Sectors 16 to 23 lie over the parent's, 24 to 31 over nothing; they are one block of the leaf.
    finish(write(&image, 16, &fill(7).repeat(16))).unwrap();
    finish(image.submit(Op::Flush, 0)).unwrap();
    let discards = leaf.counts.borrow()[3];
    for _ in 0..3 {
        finish(image.submit(Op::Discard { sectors: 16 }, 16)).unwrap();
        assert_eq!(finish(read(&image, 16, 8)).unwrap(), fill(7).repeat(8), "neither the parent's nor the store's");
        assert_eq!(finish(read(&image, 24, 8)).unwrap(), fill(0).repeat(8));
        finish(image.submit(Op::Flush, 0)).unwrap();
    }
    drop(image);
    let image = shelf.open("leaf", true).unwrap();
    assert_eq!(finish(read(&image, 16, 8)).unwrap(), fill(7).repeat(8), "and so it stays");
    assert_eq!(finish(read(&image, 24, 8)).unwrap(), fill(0).repeat(8));
    assert_eq!(leaf.counts.borrow()[3], discards, "the store is told of whole blocks alone");
    assert_eq!(base.disk.borrow().bytes(), parent);
}

/// Opens what a power cut left, and looks at every sector.
fn after(chain: &Chain, seed: u64, at: usize, first: &[u64], leaf: &[u8]) {
    let apart = chain.read_apart(leaf).unwrap_or_else(|why| panic!("seed {seed}, cut {at}: {why}"));
    let history = chain.history.borrow();
    for (sector, (value, whole)) in apart.into_iter().enumerate() {
        let allowed = history.allowed(sector as u64, first[sector], at);
        let fits = value.is_some_and(|value| allowed.contains(&value));
        assert!(fits, "seed {seed}, cut {at}: sector {sector} is {value:?}, not of {allowed:?}");
        // A reader that does not look at bitmaps may see what was discarded, and never what the store held before.
        assert!(whole.is_some(), "seed {seed}, cut {at}: sector {sector} is another tenant's to QEMU");
    }
}

fn cut(seed: u64, draws: usize, rounds: usize) -> usize {
    let depth = 1 + seed as usize % 3;
    let mut chain = Chain::new(seed, depth, 100);
    let first = chain.now.borrow().clone();
    *chain.history.borrow_mut() = History::default();
    let disk = chain.leaf().disk;
    disk.borrow_mut().record();
    let image = chain.open();
    chain.play(&image, rounds, 6);
    finish(chain.flush(&image));
    let recording = disk.borrow().recording().clone();
    let (mut random, mut states) = (chain.random.fork(), 0);
    recording.cuts(|cut| {
        let mut look = |leaf: Vec<u8>| {
            after(&chain, seed, cut.at, &first, &leaf);
            states += 1;
            // The product opens it too, and goes on.
            if random.one_in(16) {
                let mut disk = Disk::new((leaf.len() / SECTOR) as u64);
                disk.write(0, &leaf);
                let slab = Slab::new(&std::rc::Rc::new(RefCell::new(disk)), &mut random);
                let shelf = Shelf(std::rc::Rc::new(RefCell::new(chain.shelf.0.borrow().clone())));
                shelf.put(chain.names.last().unwrap(), &slab);
                let image = shelf.open(chain.names.last().unwrap(), false).unwrap();
                for sector in 0..image.info().sectors {
                    let value = number(&finish(read(&image, sector, 1)).unwrap());
                    let allowed = chain.history.borrow().allowed(sector, first[sector as usize], cut.at);
                    assert!(value.is_some_and(|value| allowed.contains(&value)), "seed {seed}, cut {}", cut.at);
                }
                finish(write(&image, 3, &fill(1 << 30).repeat(40))).unwrap();
                finish(image.submit(Op::Flush, 0)).unwrap();
                vhd::check(slab.disk.borrow().bytes()).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            }
        };
        look(cut.lost());
        look(cut.kept());
        let mut random = Random::new(seed ^ cut.at as u64);
        (0..draws).for_each(|_| look(cut.torn(&mut random)));
    });
    states
}

#[test]
fn chains_after_every_power_cut() {
    // `make crash` draws more of them.
    let draws = std::env::var("DRAWS").ok().and_then(|draws| draws.parse().ok()).unwrap_or(4);
    let states = Cell::new(0);
    seeds(0..30, |seed| states.set(states.get() + cut(seed, draws, 12)));
    println!("{} states of images after a power cut", states.get());
}

/// What a power cut leaves of an image that is being made where another was: none, or all of it.
#[test]
fn an_image_is_made_whole_or_not_at_all() {
    seeds(0..12, |seed| {
        let mut random = Random::new(seed);
        let slab = Slab::new(&used(200, &mut random), &mut random);
        let old = New { id: [1; 16], sectors: 90, timestamp: 0, form: Form::Dynamic(8) };
        finish(make(&slab, "disk", &old)).unwrap();
        slab.disk.borrow_mut().record();
        let parent = Parent { id: [3; 16], timestamp: 5, name: "parent" };
        let form = if seed % 2 == 0 { Form::Dynamic(16) } else { Form::Differencing(16, parent) };
        finish(make(&slab, "disk", &New { id: [2; 16], sectors: 70, timestamp: 0, form })).unwrap();
        let recording = slab.disk.borrow().recording().clone();
        let (mut whole, mut none, mut before) = (0, 0, 0);
        recording.cuts(|cut| {
            let mut look = |bytes: Vec<u8>| match vhd::check(&bytes) {
                Ok(image) if image.sectors == 70 => whole += 1,
                Ok(image) => {
                    assert!(image.sectors == 90 && whole == 0, "seed {seed}, cut {}: the old one comes back", cut.at);
                    before += 1;
                }
                Err(why) => {
                    let mut disk = Disk::new(200);
                    disk.write(0, &bytes);
                    let slab = Slab::new(&std::rc::Rc::new(RefCell::new(disk)), &mut random);
                    let shelf = Shelf::default();
                    shelf.put("disk", &slab);
                    match shelf.open("disk", true) {
                        Err(_) => none += 1,
                        // The copy went first, and the footer at the end is the old one's; or it is the new one's already.
                        Ok(image) if image.info().sectors == 70 => whole += 1,
                        Ok(_) => {
                            assert!(whole == 0, "seed {seed}, cut {}: the old one comes back: {why}", cut.at);
                            before += 1;
                        }
                    }
                }
            };
            look(cut.lost());
            look(cut.kept());
            let mut random = Random::new(seed ^ cut.at as u64);
            (0..20).for_each(|_| look(cut.torn(&mut random)));
        });
        assert!(whole > 0 && none > 0 && before > 0);
    });
}

#[test]
fn a_store_that_fails_fails_requests_and_nothing_else() {
    seeds(0..60, |seed| {
        let mut chain = Chain::new(seed, 1 + seed as usize % 2, 120);
        let image = chain.open();
        chain.play(&image, 4, 8);
        let leaf = chain.leaf();
        for round in 0..20 {
            let (first, count) = (chain.random.below(100), chain.random.between(1, 20));
            *leaf.failing.borrow_mut() = Some((chain.random.below(6), chain.random.between(1, 3)));
            let mut bytes = Vec::new();
            let from = chain.next.replace(chain.next.get() + count);
            (from..from + count).for_each(|number| bytes.extend(fill(number)));
            let result = finish(write(&image, first, &bytes));
            let flushed = finish(image.submit(Op::Flush, 0));
            *leaf.failing.borrow_mut() = None;
            match result {
                Ok(()) => chain.note(first, &(from..from + count).collect::<Vec<_>>(), 0),
                Err(error) => {
                    assert_eq!(error, Error::Medium);
                    // What is there now is old or new, and stays.
                    for sector in first..first + count {
                        let value = number(&finish(read(&image, sector, 1)).unwrap()).expect("old or new");
                        assert!(value == chain.now.borrow()[sector as usize] || (from..from + count).contains(&value));
                        chain.now.borrow_mut()[sector as usize] = value;
                    }
                }
            }
            assert!(flushed.is_ok() || flushed == Err(Error::Medium));
            if round % 5 == 0 {
                chain.verify(&image);
            }
        }
        finish(image.submit(Op::Flush, 0)).unwrap();
        chain.verify(&chain.open());
        vhd::check(leaf.disk.borrow().bytes()).unwrap();
    });
}

#[test]
fn a_block_that_tapdisk_noted_as_full_is_not_when_it_lacks_sectors() {
    let mut failed = 0;
    // The store fails at the first request of the first flush, at the second, and so on; then it works.
    for well in 0..12 {
        let mut random = Random::new(well);
        let mut slab = Slab::new(&used(200, &mut random), &mut random);
        slab.latency = 0;
        let new = New { id: [1; 16], sectors: 64, timestamp: 0, form: Form::Dynamic(8) };
        finish(make(&slab, "disk", &new)).unwrap();
        let shelf = Shelf::default();
        shelf.put("disk", &slab);
        let image = shelf.open("disk", false).unwrap();
        (0..3).for_each(|block| finish(write(&image, block * 8, &fill(1 + block).repeat(8))).unwrap());
        finish(image.submit(Op::Flush, 0)).unwrap();
        drop(image);
        let mut bytes = slab.disk.borrow().bytes().to_vec();
        (0..3).for_each(|block| vhd::note_full(&mut bytes, block));
        vhd::check(&bytes).unwrap();
        slab.disk.borrow_mut().write(0, &bytes);
        let image = shelf.open("disk", false).unwrap();
        // Some of one block, all of another.
        finish(image.submit(Op::Discard { sectors: 3 }, 2)).unwrap();
        finish(image.submit(Op::Discard { sectors: 8 }, 8)).unwrap();
        *slab.failing.borrow_mut() = Some((well, 1));
        failed += u32::from(finish(image.submit(Op::Flush, 0)).is_err());
        *slab.failing.borrow_mut() = None;
        // Once more, and with something to write again.
        finish(image.submit(Op::Discard { sectors: 1 }, 0)).unwrap();
        finish(image.submit(Op::Flush, 0)).unwrap();
        vhd::check(slab.disk.borrow().bytes()).unwrap_or_else(|why| panic!("a failure after {well}: {why}"));
        let full = [0, 1, 2].map(|block| vhd::is_full(slab.disk.borrow().bytes(), block));
        assert_eq!(full, [false, false, true], "a failure after {well}");
    }
    assert!(failed > 5, "{failed} of the flushes failed");
}

#[test]
fn a_block_whose_sectors_have_no_number_is_an_error() {
    let mut random = Random::new(5);
    let mut slab = Slab::new(&used(200, &mut random), &mut random);
    slab.latency = 0;
    let new = New { id: [1; 16], sectors: 64, timestamp: 0, form: Form::Dynamic(8) };
    finish(make(&slab, "disk", &new)).unwrap();
    // The table of eight entries, and a store on which these are places like others. In blocks of eight sectors and one of
    // bits, the last that fits begins nine sectors before the end of 32 bits.
    let (table, last) = (1536, u32::MAX - 9);
    slab.claims = Some(1 << 33);
    for (block, at) in [last, last + 1, u32::MAX - 1].into_iter().enumerate() {
        let mut bytes = slab.disk.borrow().bytes().to_vec();
        bytes[table + 4 * block..][..4].copy_from_slice(&at.to_be_bytes());
        slab.disk.borrow_mut().write(0, &bytes);
    }
    let shelf = Shelf::default();
    shelf.put("disk", &slab);
    let image = shelf.open("disk", true).unwrap();
    assert_eq!(finish(read(&image, 0, 8)).unwrap(), vec![0; 8 * SECTOR]);
    for block in 1..3 {
        let result = finish(read(&image, block * 8, 8));
        assert_eq!(result.err(), Some(Error::Corrupt("a block of the table is not where blocks may be")));
    }
}

/// What the straight way may hand on.
#[test]
fn only_what_the_leaf_has_is_overwritten_by_who_does_not_tell() {
    let shelf = Shelf::default();
    let add = |name: &str, n: u8, form| {
        let mut random = Random::new(n.into());
        let slab = Slab::new(&used(200, &mut random), &mut random);
        finish(make(&slab, name, &New { id: [n; 16], sectors: 64, timestamp: 0, form })).unwrap();
        shelf.put(name, &slab);
    };
    add("base", 1, Form::Dynamic(8));
    add("leaf", 2, Form::Differencing(8, Parent { id: [1; 16], timestamp: 0, name: "base" }));
    let below = shelf.open("base", false).unwrap();
    finish(write(&below, 0, &fill(5).repeat(16))).unwrap();
    finish(below.submit(Op::Flush, 0)).unwrap();
    drop(below);
    let image = shelf.open("leaf", false).unwrap();
    assert_eq!(image.together(false, 0, 8), None, "nobody has looked yet");
    finish(write(&image, 8, &fill(6).repeat(4))).unwrap();
    assert_eq!(finish(read(&image, 0, 24)).unwrap().len(), 24 * 512);
    let layer = |write, sector, count| image.together(write, sector, count).map(|(layer, _)| layer);
    assert_eq!((layer(false, 0, 8), layer(true, 0, 8)), (Some(1), None), "it is the parent's");
    assert_eq!((layer(false, 8, 4), layer(true, 8, 4)), (Some(0), Some(0)));
    assert_eq!((layer(false, 8, 5), layer(true, 8, 5)), (None, None), "the fifth is the parent's");
    assert_eq!((layer(false, 16, 1), layer(true, 16, 1)), (None, None), "nobody has it");
    assert_eq!((layer(false, 63, 2), layer(false, u64::MAX, 2)), (None, None), "there is no such sector");
    finish(image.submit(Op::Flush, 0)).unwrap();
    drop(image);
    let image = shelf.open("leaf", true).unwrap();
    assert_eq!(finish(read(&image, 8, 4)).unwrap(), fill(6).repeat(4));
    assert!(image.together(false, 8, 4).is_some());
    assert_eq!(image.together(true, 8, 4), None, "it is not written");
}

#[test]
fn room_is_not_used_again_while_somebody_is_at_it() {
    [false, true].into_iter().for_each(somebody_is_at_it);
}

fn somebody_is_at_it(by_number: bool) {
    let mut random = Random::new(3);
    let mut slab = Slab::new(&used(200, &mut random), &mut random);
    slab.latency = 0;
    let new = New { id: [1; 16], sectors: 64, timestamp: 0, form: Form::Dynamic(8) };
    finish(make(&slab, "disk", &new)).unwrap();
    let shelf = Shelf::default();
    shelf.put("disk", &slab);
    let image = shelf.open("disk", false).unwrap();
    finish(write(&image, 0, &fill(1).repeat(8))).unwrap();
    finish(image.submit(Op::Flush, 0)).unwrap();
    let before = vhd::check(slab.disk.borrow().bytes()).unwrap().table[0];
    // A write that is slow to reach the store, or one that was handed on to it, and meanwhile its block is given up.
    slab.stuck.set(true);
    let bytes = fill(2);
    let mut slow = Box::pin(write(&image, 3, &bytes));
    let mut stay = None;
    match by_number {
        true => {
            let at = before.expect("it was written") as u64 + 1 + 3;
            assert_eq!(image.together(true, 3, 1), Some((0, at)));
            stay = Some(image.format.stay());
        }
        false => assert!(slow.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()),
    }
    slab.stuck.set(false);
    finish(image.submit(Op::Discard { sectors: 8 }, 0)).unwrap();
    let settle_and_fill = |block: u64| {
        (0..3).for_each(|_| finish(image.submit(Op::Flush, 0)).unwrap());
        finish(write(&image, block * 8, &fill(10 + block).repeat(8))).unwrap();
        finish(image.submit(Op::Flush, 0)).unwrap();
        vhd::check(slab.disk.borrow().bytes()).unwrap().table[block as usize]
    };
    assert_ne!(settle_and_fill(1), before, "the slow write would end in this block");
    match stay {
        Some(stay) => image.format.leave(stay),
        None => finish(slow).unwrap(),
    }
    assert_eq!(settle_and_fill(2), before, "now nobody is there any more");
    for block in 1..3 {
        assert_eq!(finish(read(&image, block * 8, 8)).unwrap(), fill(10 + block).repeat(8));
    }
}
