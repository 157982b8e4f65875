//! Images on a disk of this host's memory, without a world around them: for tests that play thousands of them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use drivers::disk::{Device, Discard, Error, Info, Op, Piece, SECTOR_BYTES, Store, within};
use drivers::format::joined::Joined;
use drivers::format::vhd::make::{self, New};
use drivers::format::vhd::{Vhd, open};
use drivers::target::OpenError;
use protocol::errno::Errno;
use protocol::mem::Memory;
use xen::exec::yield_now;
use xen::page::{PAGE_BYTES, PageRef};

use crate::disk::{Disk, SharedDisk};
use crate::random::Random;

/// Polls before a future that nobody else moves is taken for one that never ends.
const POLLS_MAX: usize = 1_000_000;

/// A store on a disk of the host's memory: answers come late and out of order, as the seed says.
#[derive(Clone)]
pub struct Slab {
    /// What is on it.
    pub disk: SharedDisk,
    /// Requests so far: reads, writes, flushes, discards.
    pub counts: Rc<RefCell<[u64; 4]>>,
    random: Rc<RefCell<Random>>,
    /// The next answers fail, so many of them after so many that do not.
    pub failing: Rc<RefCell<Option<(u64, u64)>>>,
    /// Longest wait for an answer, in polls.
    pub latency: u64,
    /// While it is, nothing more that is written reaches the disk: what is asked then is answered only afterwards.
    pub stuck: Rc<Cell<bool>>,
    /// Whether it discards; what is read afterwards is old bytes of who knows whom.
    pub discards: bool,
    /// It is so large, if not as large as the disk: zeroes behind that, which are only read.
    pub claims: Option<u64>,
}

impl Slab {
    /// On that disk.
    pub fn new(disk: &SharedDisk, random: &mut Random) -> Self {
        Slab {
            disk: disk.clone(),
            counts: Rc::default(),
            random: Rc::new(RefCell::new(random.fork())),
            failing: Rc::default(),
            latency: 4,
            stuck: Rc::default(),
            discards: true,
            claims: None,
        }
    }

    async fn wait(&self) -> Result<(), Error> {
        let polls = match self.latency {
            0 => 0,
            latency => self.random.borrow_mut().below(latency),
        };
        for _ in 0..polls {
            yield_now().await;
        }
        if self.stuck.get() {
            // Until the next time that somebody asks.
            yield_now().await;
        }
        match &mut *self.failing.borrow_mut() {
            Some((0, 0)) | None => Ok(()),
            Some((0, failures)) => {
                *failures -= 1;
                Err(Error::Medium)
            }
            Some((well, _)) => {
                *well -= 1;
                Ok(())
            }
        }
    }

    fn count(&self, what: usize) {
        self.counts.borrow_mut()[what] += 1;
    }

    /// All requests so far.
    pub fn requests(&self) -> u64 {
        self.counts.borrow().iter().sum()
    }
}

impl Device for Slab {
    fn info(&self) -> Info {
        Info {
            sectors: self.claims.unwrap_or_else(|| self.disk.borrow().sectors()),
            physical_bytes: 512,
            read_only: false,
            flush: true,
            discard: self.discards.then_some(Discard { granularity_bytes: 512, alignment_bytes: 0 }),
            grows: false,
        }
    }

    async fn take(&self, _: u64, shape: impl ExactSizeIterator<Item = (u8, u8)>, into: &mut Vec<Piece>) {
        let page = || {
            let page = PageRef::alone().expect("memory for a test");
            // What is in a page is old.
            page.write(0, &[0xdb; PAGE_BYTES]);
            page
        };
        into.extend(shape.map(|(first, sectors)| Piece { page: page(), first, sectors }));
    }

    fn give(&self, pieces: &mut Vec<Piece>) {
        pieces.clear();
    }

    async fn submit(&self, op: Op<'_>, mut sector: u64) -> Result<(), Error> {
        within(sector, op.sectors(), self.disk.borrow().sectors())?;
        match op {
            Op::Read(pieces) => {
                self.count(0);
                self.wait().await?;
                for piece in pieces {
                    let mut bytes = vec![0; usize::from(piece.sectors) * SECTOR_BYTES];
                    self.disk.borrow().read(sector, &mut bytes);
                    piece.page.write(usize::from(piece.first) * SECTOR_BYTES, &bytes);
                    sector += u64::from(piece.sectors);
                }
                Ok(())
            }
            Op::Write(pieces) => {
                self.count(1);
                self.wait().await?;
                let mut all = Vec::new();
                for piece in pieces {
                    let mut bytes = vec![0; usize::from(piece.sectors) * SECTOR_BYTES];
                    piece.page.read(usize::from(piece.first) * SECTOR_BYTES, &mut bytes);
                    all.extend(bytes);
                }
                self.disk.borrow_mut().write(sector, &all);
                Ok(())
            }
            Op::Flush => {
                self.count(2);
                let covers = self.disk.borrow().recorded();
                self.wait().await?;
                self.disk.borrow_mut().flush_to(covers);
                Ok(())
            }
            Op::Discard { sectors } => {
                self.count(3);
                self.wait().await?;
                let junk = vec![0xdc; sectors as usize * SECTOR_BYTES];
                self.disk.borrow_mut().write(sector, &junk);
                Ok(())
            }
        }
    }
}

impl Store for Slab {
    async fn load(&self, sector: u64, bytes: &mut [u8]) -> Result<(), Error> {
        if self.claims.is_some() && sector >= self.disk.borrow().sectors() {
            bytes.fill(0);
            return Ok(());
        }
        within(sector, (bytes.len() / SECTOR_BYTES) as u64, self.disk.borrow().sectors())?;
        self.count(0);
        self.wait().await?;
        self.disk.borrow().read(sector, bytes);
        Ok(())
    }

    async fn save(&self, sector: u64, bytes: &[u8]) -> Result<(), Error> {
        within(sector, (bytes.len() / SECTOR_BYTES) as u64, self.disk.borrow().sectors())?;
        self.count(1);
        self.wait().await?;
        self.disk.borrow_mut().write(sector, bytes);
        Ok(())
    }

    async fn zero(&self, sector: u64, sectors: u64) -> Result<(), Error> {
        self.save(sector, &vec![0; sectors as usize * SECTOR_BYTES]).await
    }
}

/// Lays an image on a disk, with the product's own hand.
pub fn lay(disk: &mut Disk, new: &New<'_>) {
    let shared = Rc::new(RefCell::new(std::mem::replace(disk, Disk::new(1))));
    finish(make::make(&Slab::new(&shared, &mut Random::new(1)), "an image", new)).expect("room for it");
    std::mem::swap(disk, &mut shared.borrow_mut());
}

/// Images by name, as a folder or a volume group has them.
#[derive(Clone, Default)]
pub struct Shelf(pub Rc<RefCell<BTreeMap<String, Slab>>>);

impl Shelf {
    /// Puts a disk on it.
    pub fn put(&self, name: &str, slab: &Slab) {
        self.0.borrow_mut().insert(name.into(), slab.clone());
    }

    /// Opens the chain of the image of that name.
    pub fn open(&self, name: &str, read_only: bool) -> Result<Joined<Vhd<Slab>>, OpenError> {
        let slab = self.0.borrow().get(name).cloned().expect("an image of that name");
        finish(open::open(self, slab, name, read_only)).map(|format| Joined { format })
    }
}

impl open::Place for Shelf {
    type Store = Slab;

    async fn parent(&self, name: &str) -> Result<(Slab, String), OpenError> {
        let name = protocol::vhd::file_name(name).unwrap_or(name);
        let none = || OpenError::new(Errno::ENOENT, format!("{name:?}: there is none"));
        let slab = self.0.borrow().get(name).cloned().ok_or_else(none)?;
        Ok((slab, name.into()))
    }
}

/// Polls a future that needs nobody else to its end.
pub fn finish<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..POLLS_MAX {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
    }
    panic!("no end after {POLLS_MAX} polls");
}

/// Polls futures in the order that the seed says, each as often as it likes, until all have ended.
pub fn together(random: &mut Random, mut futures: Vec<Pin<Box<dyn Future<Output = ()> + '_>>>) {
    for _ in 0..POLLS_MAX {
        if futures.is_empty() {
            return;
        }
        let at = random.index(futures.len());
        if futures[at].as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            drop(futures.swap_remove(at));
        }
    }
    panic!("no end after {POLLS_MAX} polls of {} that remain", futures.len());
}

/// A disk of bytes that are not zeroes: what some other tenant left behind.
pub fn used(sectors: u64, random: &mut Random) -> SharedDisk {
    Disk::random(sectors, random)
}

/// Reads sectors.
pub async fn read(device: &impl Device, sector: u64, sectors: u64) -> Result<Vec<u8>, Error> {
    let mut pieces = take(device, sector, sectors).await;
    let result = device.submit(Op::Read(&pieces), sector).await;
    let mut bytes = Vec::new();
    for piece in &pieces {
        let mut some = vec![0; usize::from(piece.sectors) * SECTOR_BYTES];
        piece.page.read(usize::from(piece.first) * SECTOR_BYTES, &mut some);
        bytes.extend(some);
    }
    device.give(&mut pieces);
    result.map(|()| bytes)
}

/// Writes whole sectors.
pub async fn write(device: &impl Device, sector: u64, bytes: &[u8]) -> Result<(), Error> {
    let mut pieces = take(device, sector, (bytes.len() / SECTOR_BYTES) as u64).await;
    let mut at = 0;
    for piece in &pieces {
        let some = usize::from(piece.sectors) * SECTOR_BYTES;
        piece.page.write(usize::from(piece.first) * SECTOR_BYTES, &bytes[at..at + some]);
        at += some;
    }
    let result = device.submit(Op::Write(&pieces), sector).await;
    device.give(&mut pieces);
    result
}

async fn take(device: &impl Device, sector: u64, sectors: u64) -> Vec<Piece> {
    let shape: Vec<_> = (0..sectors.div_ceil(8)).map(|i| (0, (sectors - i * 8).min(8) as u8)).collect();
    let mut pieces = Vec::new();
    device.take(sector, shape.into_iter(), &mut pieces).await;
    pieces
}
