//! The tool's commands that change images, with the power failing at every write and every flush that they make: whatever
//! is left opens and holds what it held, is clean or mended, and the work can be done again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};

use drivers::disk::{Device, Discard, Error, Info, Op, Piece, SECTOR_BYTES, Store, within};
use drivers::format::joined::Joined;
use drivers::format::vhd::make::{Form, New, Parent, make};
use drivers::format::vhd::open;
use drivers::target::OpenError;
use embassy_futures::block_on;
use protocol::errno::Errno;
use protocol::mem::Memory;
use protocol::vhd::{Footer, file_name};
use sim::crash::Cut;
use sim::disk::{Disk, SharedDisk};
use sim::random::Random;
use sim::run::seeds;
use sim::vhd as second;
use vhd::check::{NAMES, Options, check};
use vhd::commands::{coalesce, fields, repair, resize};
use vhd::disk::{flush, read, write};
use vhd::failure::Failure;
use vhd::medium::Medium;
use vhd::structures::save_footer;
use xen::page::PageRef;

/// What a sector of a file's disk holds where the file is not: behind its end, or in a hole.
const NOTHING: [u8; SECTOR_BYTES] = [0xee; SECTOR_BYTES];

/// A file or a device of the host, on a disk that loses what was not flushed. Any sector of a file that was not flushed may
/// be a hole, and the file ends behind the last that is none.
#[derive(Clone)]
struct Paper {
    path: PathBuf,
    disk: SharedDisk,
    is_file: bool,
    /// How many sectors it has now.
    end: Rc<Cell<u64>>,
    folder: Weak<Papers>,
}

type Papers = RefCell<BTreeMap<String, Paper>>;

/// What there is, by name.
#[derive(Clone, Default)]
struct Folder(Rc<Papers>);

impl Folder {
    /// A new one. A device holds what others left on it.
    fn add(&self, name: &str, is_file: bool, sectors: u64, random: &mut Random) -> Paper {
        let disk = Disk::random(sectors, random);
        if is_file {
            disk.borrow_mut().write(0, &NOTHING.repeat(sectors as usize));
            disk.borrow_mut().flush();
        }
        self.put(name, is_file, &disk)
    }

    fn put(&self, name: &str, is_file: bool, disk: &SharedDisk) -> Paper {
        let all = disk.borrow();
        let end = match is_file {
            true => all.bytes().chunks(SECTOR_BYTES).rposition(|sector| sector != NOTHING).map_or(0, |last| last + 1),
            false => all.sectors() as usize,
        };
        let end = Rc::new(Cell::new(end as u64));
        let paper = Paper { path: name.into(), disk: disk.clone(), is_file, end, folder: Rc::downgrade(&self.0) };
        self.0.borrow_mut().insert(name.into(), paper.clone());
        paper
    }

    /// The same, with other bytes in the place of one.
    fn with(&self, name: &str, bytes: &[u8]) -> (Folder, Paper) {
        let folder = Folder::default();
        for (other, paper) in &*self.0.borrow() {
            folder.put(other, paper.is_file, &paper.disk);
        }
        let mut disk = Disk::new((bytes.len() / SECTOR_BYTES) as u64);
        disk.write(0, bytes);
        let paper = folder.put(name, self.0.borrow()[name].is_file, &Rc::new(RefCell::new(disk)));
        (folder, paper)
    }

    fn open(&self, name: &str, read_only: bool) -> vhd::disk::Disk<Paper> {
        let paper = self.0.borrow()[name].clone();
        let format = block_on(open::open(self, paper, name, read_only)).unwrap_or_else(|why| panic!("{}", why.text));
        Joined { format }
    }

    /// All that a disk holds.
    fn held(&self, name: &str) -> Vec<u8> {
        let disk = self.open(name, true);
        let mut bytes = vec![0; disk.info().sectors as usize * SECTOR_BYTES];
        read(&disk, 0, &mut bytes).unwrap();
        bytes
    }
}

impl Paper {
    fn sectors(&self) -> u64 {
        self.end.get()
    }

    /// What another program reads.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.disk.borrow().bytes()[..self.sectors() as usize * SECTOR_BYTES].to_vec();
        if self.is_file {
            bytes.chunks_mut(SECTOR_BYTES).filter(|sector| **sector == NOTHING).for_each(|sector| sector.fill(0));
        }
        bytes
    }

    fn limit(&self) -> u64 {
        self.disk.borrow().sectors()
    }

    fn put(&self, sector: u64, bytes: &[u8]) -> Result<(), Error> {
        let count = (bytes.len() / SECTOR_BYTES) as u64;
        within(sector, count, self.limit())?;
        self.disk.borrow_mut().write(sector, bytes);
        self.end.set(self.end.get().max(sector + count));
        Ok(())
    }

    fn get(&self, sector: u64, bytes: &mut [u8]) -> Result<(), Error> {
        within(sector, (bytes.len() / SECTOR_BYTES) as u64, self.limit())?;
        self.disk.borrow().read(sector, bytes);
        if self.is_file {
            bytes.chunks_mut(SECTOR_BYTES).filter(|sector| **sector == NOTHING).for_each(|sector| sector.fill(0));
        }
        Ok(())
    }
}

impl Device for Paper {
    fn info(&self) -> Info {
        Info {
            sectors: self.sectors(),
            physical_bytes: 512,
            read_only: false,
            flush: true,
            discard: Some(Discard { granularity_bytes: 512, alignment_bytes: 0 }),
            grows: self.is_file,
        }
    }

    async fn take(&self, _: u64, shape: impl ExactSizeIterator<Item = (u8, u8)>, into: &mut Vec<Piece>) {
        into.extend(shape.map(|(first, sectors)| Piece { page: PageRef::alone().expect("a page"), first, sectors }));
    }

    fn give(&self, pieces: &mut Vec<Piece>) {
        pieces.clear();
    }

    async fn submit(&self, op: Op<'_>, mut sector: u64) -> Result<(), Error> {
        match op {
            Op::Read(pieces) => pieces.iter().try_for_each(|piece| {
                let mut bytes = vec![0; usize::from(piece.sectors) * SECTOR_BYTES];
                self.get(sector, &mut bytes)?;
                piece.page.write(usize::from(piece.first) * SECTOR_BYTES, &bytes);
                sector += u64::from(piece.sectors);
                Ok(())
            }),
            Op::Write(pieces) => {
                let mut all = Vec::new();
                for piece in pieces {
                    let mut bytes = vec![0; usize::from(piece.sectors) * SECTOR_BYTES];
                    piece.page.read(usize::from(piece.first) * SECTOR_BYTES, &mut bytes);
                    all.extend(bytes);
                }
                self.put(sector, &all)
            }
            Op::Flush => {
                self.disk.borrow_mut().flush();
                Ok(())
            }
            Op::Discard { sectors } => self.put(sector, &[0xdc; SECTOR_BYTES].repeat(sectors as usize)),
        }
    }
}

impl Store for Paper {
    async fn load(&self, sector: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.get(sector, bytes)
    }

    async fn save(&self, sector: u64, bytes: &[u8]) -> Result<(), Error> {
        self.put(sector, bytes)
    }

    async fn zero(&self, sector: u64, sectors: u64) -> Result<(), Error> {
        self.put(sector, &vec![0; sectors as usize * SECTOR_BYTES])
    }
}

impl Medium for Paper {
    type Place = Folder;

    fn path(&self) -> &Path {
        &self.path
    }

    fn is_device(&self) -> bool {
        !self.is_file
    }

    fn set_sectors(&self, sectors: u64) -> Result<(), Error> {
        let end = self.sectors();
        assert!(self.is_file && sectors <= end, "files are made smaller here");
        self.put(sectors, &NOTHING.repeat((end - sectors) as usize))?;
        self.end.set(sectors);
        Ok(())
    }

    fn place(&self) -> Result<Folder, Failure> {
        Ok(Folder(self.folder.upgrade().expect("where it lies")))
    }
}

impl open::Place for Folder {
    type Store = Paper;

    async fn parent(&self, name: &str) -> Result<(Paper, String), OpenError> {
        let name = file_name(name).unwrap_or(name);
        let none = || OpenError::new(Errno::ENOENT, format!("{name:?}: there is none"));
        Ok((self.0.borrow().get(name).cloned().ok_or_else(none)?, name.into()))
    }
}

/// A chain of images, some on files and some on devices; the first may be raw or fixed.
struct Chain {
    folder: Folder,
    names: Vec<String>,
    random: Random,
}

fn id(layer: usize) -> [u8; 16] {
    [layer as u8 + 1; 16]
}

impl Chain {
    fn new(seed: u64, depth: usize) -> Chain {
        let mut chain = Chain { folder: Folder::default(), names: Vec::new(), random: Random::new(seed) };
        let sectors = chain.random.between(60, 110);
        for layer in 0..depth {
            let name = format!("{}-{layer}", "n".repeat(chain.random.between(1, 40) as usize));
            let (is_file, block) = (chain.random.one_in(2), chain.random.pick(&[8, 16, 64]));
            let room = 40 + (sectors.div_ceil(block) + 6) * (block + 8);
            let kind = if layer == 0 { chain.random.below(4) } else { 3 };
            let paper = chain.folder.add(&name, is_file, room, &mut chain.random);
            let parent = chain.names.last().map(|name| Parent {
                id: if layer == 1 && raw(&chain) { [0; 16] } else { id(layer - 1) },
                timestamp: 5,
                name,
            });
            let form = match (kind, parent) {
                (_, Some(parent)) => Form::Differencing(block as u32, parent),
                (0, None) => Form::Fixed,
                _ => Form::Dynamic(block as u32),
            };
            if kind == 1 {
                // A raw parent is a disk of its own size.
                paper.disk.borrow_mut().resize(sectors);
                paper.disk.borrow_mut().write(0, &vec![7; sectors as usize * SECTOR_BYTES]);
                chain.folder.put(&name, is_file, &paper.disk);
            } else {
                block_on(make(&paper, &name, &New { id: id(layer), sectors, timestamp: 9, form })).unwrap();
            }
            chain.names.push(name);
            chain.fill(layer, sectors);
        }
        chain
    }

    /// Some writes into an image.
    fn fill(&mut self, layer: usize, sectors: u64) {
        if layer == 0 && raw(self) {
            return;
        }
        let disk = self.folder.open(&self.names[layer], false);
        for _ in 0..self.random.between(2, 8) {
            let first = self.random.below(sectors);
            let count = self.random.between(1, 20).min(sectors - first);
            let bytes: Vec<u8> = (0..count).flat_map(|_| [self.random.between(1, 200) as u8; SECTOR_BYTES]).collect();
            write(&disk, first, &bytes).unwrap();
        }
        flush(&disk).unwrap();
    }

    fn leaf(&self) -> &str {
        self.names.last().unwrap()
    }

    /// What another reader makes of the leaf.
    fn apart(&self, folder: &Folder) -> Result<Vec<u8>, String> {
        let papers: Vec<_> = self.names.iter().map(|name| folder.0.borrow()[name].clone()).collect();
        let bytes: Vec<_> = papers.iter().map(Paper::bytes).collect();
        let flat = second::check(&bytes[0]).is_err() && !is_dynamic(&bytes[0]);
        let images = bytes.iter().skip(usize::from(flat)).map(|bytes| second::check(bytes));
        let images = images.collect::<Result<Vec<_>, _>>()?;
        let layers: Vec<_> = bytes.iter().skip(usize::from(flat)).map(Vec::as_slice).zip(&images).rev().collect();
        let below = |sector| flat.then(|| bytes[0].get(sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES)).flatten();
        let sector =
            |at| second::sector(&layers, at, false).or_else(|| below(at)).unwrap_or(&[0; SECTOR_BYTES]).to_vec();
        Ok((0..images.last().ok_or("no image")?.sectors).flat_map(sector).collect())
    }
}

/// Whether the first of a chain is no VHD.
fn raw(chain: &Chain) -> bool {
    let first = chain.folder.0.borrow()[&chain.names[0]].clone();
    vhd::disk::image(&first).is_err()
}

fn is_dynamic(bytes: &[u8]) -> bool {
    Footer::parse(bytes.first_chunk().unwrap()).is_ok()
}

/// Goes through what the power leaves of `name` when it fails during `work`, and calls `each` with it. Returns how many
/// states there were.
fn cuts(
    chain: &Chain,
    name: &str,
    seed: u64,
    work: impl FnOnce(&Paper),
    mut each: impl FnMut(Folder, Paper, bool),
) -> usize {
    let paper = chain.folder.0.borrow()[name].clone();
    paper.disk.borrow_mut().record();
    work(&paper);
    let recording = paper.disk.borrow().recording().clone();
    let draws = std::env::var("DRAWS").ok().and_then(|draws| draws.parse().ok()).unwrap_or(4);
    let states = Cell::new(0);
    let mut last = false;
    recording.cuts(|cut: &Cut<'_>| {
        last = cut.at == recording.len();
        let mut look = |bytes: Vec<u8>| {
            let (folder, paper) = chain.folder.with(name, &bytes);
            each(folder, paper, last);
            states.set(states.get() + 1);
        };
        look(cut.lost());
        look(cut.kept());
        let mut random = Random::new(seed ^ cut.at as u64);
        (0..draws).for_each(|_| look(cut.torn(&mut random)));
    });
    // What was changed stays as it was, for who comes next.
    let mut disk = Disk::new(recording.base().len() as u64 / SECTOR_BYTES as u64);
    disk.write(0, recording.base());
    chain.folder.put(name, paper.is_file, &Rc::new(RefCell::new(disk)));
    states.get()
}

/// Mends an image that is not clean, and says that it was none of `parts` alone that was wrong.
fn mended(paper: &Paper, parts: &[&str], context: &str) {
    let report = check(paper, Options::default()).unwrap();
    for finding in &report.findings {
        assert!(parts.contains(&finding.part), "{context}: {finding}");
    }
    if !report.is_clean() {
        let (done, left) = repair::mend(paper).unwrap_or_else(|failure| panic!("{context}: {failure}"));
        assert!(!done.is_empty() && left.is_clean(), "{context}: {done:?} leaves {:?}", left.findings);
    }
}

fn coalesced(seed: u64) -> usize {
    let depth = 2 + seed as usize % 3;
    let chain = Chain::new(seed, depth);
    let (child, parent) = (chain.leaf().to_owned(), chain.names[depth - 2].clone());
    let is_raw = depth == 2 && raw(&chain);
    let is_flat = depth == 2 && (is_raw || !is_dynamic(&chain.folder.0.borrow()[&parent].bytes()));
    let below = |folder: &Folder| match is_raw {
        true => folder.0.borrow()[&parent].bytes(),
        false => folder.held(&parent),
    };
    let merge = |folder: &Folder| {
        let upper = folder.open(&child, true);
        match is_raw {
            true => coalesce::merge(&upper, &child, &folder.0.borrow()[&parent].clone()),
            false => coalesce::merge(&upper, &child, &folder.open(&parent, false)),
        }
        .unwrap_or_else(|failure| panic!("seed {seed}: {failure}"))
    };
    let (all, old) = (chain.folder.held(&child), below(&chain.folder));
    assert_eq!(chain.apart(&chain.folder), Ok(all.clone()), "seed {seed}");
    let (own, count) = (Cell::new(0), Cell::new(0));
    let states = cuts(
        &chain,
        &parent,
        seed,
        |_| own.set(merge(&chain.folder)),
        |folder, paper, last| {
            let context = format!("seed {seed}");
            assert!(folder.held(&child) == all, "{context}: a guest sees it");
            // In the parent each sector is its own still, or the child's.
            let now = below(&folder);
            let sectors = now.chunks(SECTOR_BYTES).zip(old.chunks(SECTOR_BYTES).zip(all.chunks(SECTOR_BYTES)));
            for (at, (now, (old, new))) in sectors.enumerate() {
                assert!(now == old || now == new, "{context}: sector {at} of the parent is neither");
            }
            if !is_flat {
                // A file that ends with a block has no footer for a while.
                mended(&paper, if paper.is_file { &["footer"] } else { &[] }, &context);
            }
            assert!(chain.apart(&folder).as_deref() == Ok(&all), "{context}: another reader");
            let done = below(&folder)[..all.len()] == all;
            assert!(done || !last, "{context}: it was not durable in the end");
            // The work can be done again; a part of the states is enough for that.
            count.set(count.get() + 1);
            if !done && count.get() % 4 == 0 {
                merge(&folder);
                assert!(below(&folder)[..all.len()] == all && folder.held(&child) == all, "{context}: once more");
            }
        },
    );
    assert!(own.get() > 0, "seed {seed}: there was something to write");
    states
}

/// Something that a crash, or another program's, leaves behind; returns the parts that are wrong then.
fn damage(paper: &Paper, random: &mut Random) -> Vec<&'static str> {
    let its = vhd::disk::image(paper).unwrap();
    let header = its.header.as_ref().expect("an image with blocks");
    let end = paper.sectors() - 1;
    let junk = [0x5a; SECTOR_BYTES];
    let mut parts = Vec::new();
    if random.one_in(2) {
        match (random.below(3), paper.is_file) {
            (0, true) => {
                paper.set_sectors(end).unwrap();
                // It ends where it was cut, hole or not.
                let mut last = [0; SECTOR_BYTES];
                paper.get(end - 1, &mut last).unwrap();
                paper.put(end - 1, &last).unwrap();
            }
            (1, _) => paper.put(0, &junk).unwrap(),
            _ => paper.put(end, &junk).unwrap(),
        }
        parts.extend(["footer", "footer's copy"]);
    }
    if random.one_in(2) {
        paper.put(header.batmap_at() + random.below(2), &junk).unwrap();
        parts.push("batmap");
    }
    if its.footer.kind == protocol::vhd::Kind::Differencing && random.one_in(2) || parts.is_empty() {
        let named = header.locators.iter().filter_map(|locator| locator.place().ok()).next();
        match named {
            Some((at, _)) => paper.put(at, &b"file://./other".repeat(40)[..SECTOR_BYTES]).unwrap(),
            None => paper.put(0, &junk).unwrap(),
        }
        parts.extend([NAMES, "footer's copy"]);
    }
    flush(paper).unwrap();
    parts
}

fn repaired(seed: u64) -> usize {
    let mut chain = Chain::new(seed, 2 + seed as usize % 2);
    let leaf = chain.leaf().to_owned();
    let all = chain.folder.held(&leaf);
    let paper = chain.folder.0.borrow()[&leaf].clone();
    let parts = damage(&paper, &mut chain.random);
    assert!(!check(&paper, Options::default()).unwrap().is_clean(), "seed {seed}: it is damaged");
    let mend = |paper: &Paper| {
        let (done, left) = repair::mend(paper).unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
        assert!(!done.is_empty() && left.is_clean(), "seed {seed}: {:?}", left.findings);
    };
    cuts(&chain, &leaf, seed, mend, |folder, paper, last| {
        let context = format!("seed {seed}");
        assert!(folder.held(&leaf) == all, "{context}");
        mended(&paper, if last { &[] } else { &parts }, &context);
        assert!(chain.apart(&folder).as_deref() == Ok(&all), "{context}: another reader");
    })
}

/// The same content under another name and number, then the leaf's parent is that.
fn moved(seed: u64) -> usize {
    let mut chain = Chain::new(seed, 3);
    let leaf = chain.leaf().to_owned();
    let all = chain.folder.held(&leaf);
    let old = chain.folder.0.borrow()[&chain.names[1]].clone();
    // As long as the old name, or of any length.
    let length = if chain.random.one_in(3) { old.path.as_os_str().len() as u64 } else { chain.random.between(1, 250) };
    let name = "m".repeat(length as usize);
    let mut disk = Disk::new(old.limit());
    disk.write(0, old.disk.borrow().bytes());
    let other = chain.folder.put(&name, old.is_file, &Rc::new(RefCell::new(disk)));
    let mut footer = vhd::disk::image(&other).unwrap().footer;
    footer.id = [99; 16];
    save_footer(&other, &footer).unwrap();
    let set = |paper: &Paper| {
        let its = vhd::disk::image(paper).unwrap();
        fields::set_parent(paper, &its, &name).unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
    };
    let parent = |paper: &Paper| vhd::disk::image(paper).unwrap().header.unwrap().parent;
    cuts(&chain, &leaf, seed, set, |folder, paper, last| {
        let context = format!("seed {seed}, {length} of {}", old.path.as_os_str().len());
        assert!(folder.held(&leaf) == all, "{context}");
        assert!(!last || parent(&paper) == [99; 16], "{context}: it is not durable in the end");
        let (again, twice) = folder.with(&leaf, paper.disk.borrow().bytes());
        mended(&paper, if last { &[] } else { &[NAMES, "header", "footer", "footer's copy"] }, &context);
        assert!(chain.apart(&folder).as_deref() == Ok(&all), "{context}: another reader");
        // Without being mended first.
        set(&twice);
        assert!(parent(&twice) == [99; 16] && again.held(&leaf) == all, "{context}: once more");
        mended(&twice, &["header", "footer", "footer's copy"], &context);
    })
}

fn resized(seed: u64) -> usize {
    let chain = Chain::new(seed, 2 + seed as usize % 2);
    let leaf = chain.leaf().to_owned();
    let all = chain.folder.held(&leaf);
    let mut paper = chain.folder.0.borrow()[&leaf].clone();
    // A table that needs a sector more moves what is behind it.
    let block = u64::from(vhd::disk::image(&paper).unwrap().header.unwrap().block_sectors);
    let size = (block * 129 + 40) * SECTOR_BYTES as u64;
    let limit = paper.limit();
    paper.disk.borrow_mut().resize(limit + 3 * (block + 16));
    if !paper.is_file {
        // The volume grew; its last sector is to have the footer.
        paper = chain.folder.put(&leaf, false, &paper.disk);
        let footer = vhd::disk::image(&paper).unwrap().footer;
        save_footer(&paper, &footer).unwrap();
    } else {
        let more = NOTHING.repeat((paper.limit() - limit) as usize);
        paper.disk.borrow_mut().write(limit, &more);
    }
    let grow = |paper: &Paper| {
        resize::to_size(paper, size).unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
    };
    cuts(&chain, &leaf, seed, grow, |folder, paper, last| {
        let context = format!("seed {seed}");
        let held = folder.held(&leaf);
        assert!(held[..all.len()] == all && held[all.len()..].iter().all(|byte| *byte == 0), "{context}");
        assert!(!last || held.len() as u64 == size, "{context}: it is not durable in the end");
        mended(&paper, if last { &[] } else { &["header", "footer", "footer's copy", "batmap"] }, &context);
        assert!(chain.apart(&folder).is_ok_and(|apart| apart[..all.len()] == all), "{context}: another reader");
        grow(&paper);
        assert!(folder.held(&leaf)[..all.len()] == all, "{context}: once more");
    })
}

/// Plays seeds and says how many states there were.
fn count(what: &str, seed: u64, play: fn(u64) -> usize) {
    let states = Cell::new(0);
    seeds(0..seed, |seed| states.set(states.get() + play(seed)));
    println!("{} states of images after a power cut of {what}", states.get());
}

#[test]
fn a_coalesce_that_is_cut_off_shows_to_nobody_and_can_be_done_again() {
    count("coalesce", 24, coalesced);
}

#[test]
fn a_repair_that_is_cut_off_is_a_repair_less() {
    count("repair", 40, repaired);
}

#[test]
fn a_child_whose_parent_is_being_set_has_one_or_the_other() {
    count("set parent", 30, moved);
}

#[test]
fn a_resize_that_is_cut_off_leaves_the_old_size_or_the_new() {
    count("resize", 12, resized);
}
