//! What every disk must do, whatever it is made of: the contract of `drivers::disk::Device` as checks. A device, a format
//! or a whole stack runs them in one line: [`alone`] for what needs no world, [`opened`] for a name over a lower disk,
//! [`lower`] for the lower disk itself.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use drivers::device::lowers::Lowers;
use drivers::disk::{Device, Error, Op, Piece, Store};
use drivers::stack::Stack;
use drivers::target::{Source, Target};
use protocol::mem::Memory;
use xen::domain::Domain;
use xen::memory::Budget;

use crate::blkback::Options;
use crate::blkif::SECTOR;
use crate::disk::{Disk, SharedDisk};
use crate::handle::SimXen;
use crate::random::Random;
use crate::run::{DRIVER, Run, Turn, heap};
use crate::stage::XVDA;

/// Polls of a future that needs nobody else.
const POLLS_MAX: usize = 100_000;
/// The most pieces of one request.
const PIECES_MAX: usize = 200;

/// Runs futures to their end, with the world around them if they need one.
struct Host(Option<Run>);

impl Host {
    fn finish<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        for _ in 0..POLLS_MAX {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return output;
            }
            let goes_on = self.0.as_mut().is_none_or(Run::step);
            assert!(goes_on, "it waits, and nothing will ever happen");
        }
        panic!("no end after {POLLS_MAX} polls");
    }
}

/// Runs the suite on a disk that needs no world.
pub fn alone(seed: u64, disk: &impl Device) {
    let mut random = Random::new(seed);
    Suite::new(disk, Host(None), &mut random, None).run();
}

/// Runs the suite on what `name` opens over a lower disk, /dev/xvda, that `prepare` has made and that behaves so.
pub fn opened(seed: u64, name: &str, options: Options, prepare: impl FnOnce(&mut Disk)) {
    // On a disk without a cache there is nothing to be seen of a flush.
    let flush = options.flush;
    let (mut run, lowers, disk) = below(seed, options, prepare);
    let mut random = run.random.fork();
    let mut host = Host(Some(run));
    let stack = host.finish(Stack::open(&lowers, name, false)).expect("it can be opened");
    let below = (flush && !name.starts_with("ram:")).then_some(disk);
    Suite::new(&stack, host, &mut random, below).run();
}

/// Runs the suite on a lower disk itself.
pub fn lower(seed: u64, options: Options) {
    let (mut run, lowers, disk) = below(seed, options, |_| {});
    let mut random = run.random.fork();
    let mut host = Host(Some(run));
    let Ok(Target::Raw(Source::Lower(name))) = Target::parse("aio:/dev/xvda") else { unreachable!("a raw name") };
    let front = host.finish(lowers.find(&name)).expect("it is there");
    Suite::new(&*front, host, &mut random, Some(disk)).run();
}

/// Zeroes and bytes of metadata on a lower disk, more of them than go into one request.
pub fn metadata(seed: u64, options: Options) {
    let (run, lowers, disk) = below(seed, options, |disk| disk.resize(4096));
    let mut host = Host(Some(run));
    let Ok(Target::Raw(Source::Lower(name))) = Target::parse("aio:/dev/xvda") else { unreachable!("a raw name") };
    let front = host.finish(lowers.find(&name)).expect("it is there");
    let bytes: Vec<u8> = (0..300 * SECTOR).map(|at| (at / 7) as u8 | 1).collect();
    assert_eq!(host.finish(front.save(90, &bytes)), Ok(()));
    let mut back = vec![0; bytes.len()];
    assert_eq!(host.finish(front.load(90, &mut back)), Ok(()));
    assert!(back == bytes, "what was saved comes back");
    let before = disk.borrow().bytes().to_vec();
    assert_eq!(host.finish(front.zero(203, 3001)), Ok(()));
    let (disk, zeroed) = (disk.borrow(), 203 * SECTOR..3204 * SECTOR);
    assert!(disk.bytes()[zeroed.clone()].iter().all(|byte| *byte == 0), "zeroes");
    assert_eq!(disk.bytes()[..zeroed.start], before[..zeroed.start]);
    assert_eq!(disk.bytes()[zeroed.end..], before[zeroed.end..]);
    assert_eq!(host.finish(front.zero(4000, 97)), Err(Error::OutOfRange));
}

/// A domain with nothing in it but a lower disk.
fn below(seed: u64, options: Options, prepare: impl FnOnce(&mut Disk)) -> (Run, Rc<Lowers<SimXen>>, SharedDisk) {
    let mut run = Run::new(seed);
    let disk = Disk::random(512, &mut run.random);
    prepare(&mut disk.borrow_mut());
    let back = run.lower(XVDA, &disk);
    back.borrow_mut().options = options;
    let domain = Domain::new(SimXen::new(&run.world, DRIVER), Budget::new(heap), Arc::default());
    let lowers = Lowers::new(&domain, &xen::store::Store::connect(&domain));
    domain.exec.spawn(lowers.clone().run());
    run.drive_by(Box::new(move || {
        domain.look();
        match domain.exec.turn(&mut |_| 0) {
            true => Turn::Busy,
            false => Turn::Idle(domain.timers.next()),
        }
    }));
    (run, lowers, disk)
}

struct Suite<'a, D> {
    disk: &'a D,
    host: Host,
    random: &'a mut Random,
    /// What must be on the disk.
    model: Vec<u8>,
    /// The lower disk, if what is durable can be seen there.
    below: Option<SharedDisk>,
}

impl<'a, D: Device> Suite<'a, D> {
    fn new(disk: &'a D, host: Host, random: &'a mut Random, below: Option<SharedDisk>) -> Self {
        let mut suite = Suite { disk, host, random, model: Vec::new(), below };
        let sectors = disk.info().sectors;
        for at in (0..sectors).step_by(64) {
            let some = suite.read(at, (sectors - at).min(64));
            suite.model.extend(some);
        }
        suite
    }

    fn run(mut self) {
        self.info();
        self.ends();
        if self.disk.info().read_only {
            self.refuses();
        } else {
            self.cuts();
            self.discards();
            self.operations();
            self.flushes();
        }
        self.reads_at_once();
        self.balance();
        self.verify();
    }

    fn info(&self) {
        let info = self.disk.info();
        assert!(info.sectors > 16, "too small a disk for the suite");
        assert!(info.physical_bytes >= 512 && info.physical_bytes.is_power_of_two(), "{info}");
        if let Some(discard) = info.discard {
            assert!(discard.granularity_bytes >= 512 && discard.granularity_bytes.is_power_of_two(), "{info}");
            assert!(discard.alignment_bytes < discard.granularity_bytes, "{info}");
        }
    }

    /// Pieces for that many sectors: beginning anywhere in a page, as long as fits, cut anywhere.
    fn shape(&mut self, sectors: u64) -> Vec<(u8, u8)> {
        let (mut shape, mut left) = (Vec::new(), sectors);
        while left > 0 {
            let whole = sectors > PIECES_MAX as u64 || self.random.one_in(3);
            let first = if whole { 0 } else { self.random.below(8) as u8 };
            let most = u64::from(8 - first).min(left);
            let n = if whole { most } else { self.random.between(1, most) };
            shape.push((first, n as u8));
            left -= n;
        }
        shape
    }

    fn take(&mut self, sector: u64, shape: &[(u8, u8)]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        self.host.finish(self.disk.take(sector, shape.iter().copied(), &mut pieces));
        let sum = |pieces: &[Piece]| pieces.iter().map(|piece| u64::from(piece.sectors)).sum::<u64>();
        assert_eq!(sum(&pieces), shape.iter().map(|(_, n)| u64::from(*n)).sum::<u64>());
        assert!(pieces.iter().all(|piece| piece.sectors > 0 && piece.first + piece.sectors <= 8));
        pieces
    }

    fn give(&self, mut pieces: Vec<Piece>) {
        self.disk.give(&mut pieces);
        assert!(pieces.is_empty());
    }

    fn read(&mut self, sector: u64, sectors: u64) -> Vec<u8> {
        let shape = self.shape(sectors);
        let pieces = self.take(sector, &shape);
        let done = self.host.finish(self.disk.submit(Op::Read(&pieces), sector));
        assert_eq!(done, Ok(()), "read {sector}+{sectors}");
        let bytes = bytes(&pieces);
        self.give(pieces);
        bytes
    }

    fn write(&mut self, sector: u64, shape: &[(u8, u8)]) {
        let pieces = self.take(sector, shape);
        let mut data = vec![0; sum(shape) as usize * SECTOR];
        self.random.fill_sectors(&mut data);
        fill(&pieces, &data);
        let done = self.host.finish(self.disk.submit(Op::Write(&pieces), sector));
        assert_eq!(done, Ok(()), "write {sector}, {shape:?}");
        self.give(pieces);
        self.model[sector as usize * SECTOR..][..data.len()].copy_from_slice(&data);
    }

    fn check(&mut self, sector: u64, sectors: u64) {
        let read = self.read(sector, sectors);
        let model = self.model[sector as usize * SECTOR..][..read.len()].chunks(SECTOR);
        let wrong = read.chunks(SECTOR).zip(model).position(|(read, model)| read != model);
        assert_eq!(wrong, None, "the sector of {sector}+{sectors} that is not what was written");
    }

    fn verify(&mut self) {
        let sectors = self.disk.info().sectors;
        (0..sectors).step_by(50).for_each(|at| self.check(at, (sectors - at).min(50)));
    }

    /// A place for that many sectors, often at an end.
    fn place(&mut self, sectors: u64) -> u64 {
        let last = self.disk.info().sectors - sectors;
        let anywhere = self.random.between(0, last);
        self.random.pick(&[0, last, anywhere, anywhere])
    }

    /// Ranges that end at the end are served, those that go past it by one or wrap are not, and change nothing.
    fn ends(&mut self) {
        let info = self.disk.info();
        self.check(0, 1);
        self.check(info.sectors - 1, 1);
        self.check(info.sectors - 9, 9);
        let places = [
            (info.sectors, 1),
            (info.sectors - 1, 2),
            (info.sectors - 8, 9),
            (info.sectors + 1, 1),
            (u64::MAX, 1),
            (u64::MAX, 2),
            (u64::MAX - 7, 8),
            (1 << 63, 8),
            (u64::MAX / 512, 8),
        ];
        for (sector, sectors) in places {
            let shape = self.shape(sectors);
            let pieces = self.take(0, &shape);
            let mut refused = |op: Op<'_>| {
                let done = self.host.finish(self.disk.submit(op, sector));
                assert_eq!(done, Err(Error::OutOfRange), "{sector}+{sectors} of {}", info.sectors);
            };
            refused(Op::Read(&pieces));
            refused(Op::Write(&pieces));
            refused(Op::Discard { sectors });
            self.give(pieces);
        }
        for (sector, sectors) in [(0, info.sectors + 1), (0, u64::MAX), (1, u64::MAX), (info.sectors, u64::MAX)] {
            let done = self.host.finish(self.disk.submit(Op::Discard { sectors }, sector));
            assert_eq!(done, Err(Error::OutOfRange), "discard {sector}+{sectors}");
        }
        // Nothing, at a place that is there or is the end, is nothing.
        for sector in [0, info.sectors] {
            assert_eq!(self.host.finish(self.disk.submit(Op::Read(&[]), sector)), Ok(()));
        }
        let past = self.host.finish(self.disk.submit(Op::Read(&[]), info.sectors + 1));
        assert_eq!(past, Err(Error::OutOfRange));
    }

    fn refuses(&mut self) {
        let pieces = self.take(8, &[(0, 8)]);
        for op in [Op::Write(&pieces), Op::Discard { sectors: 8 }] {
            assert_eq!(self.host.finish(self.disk.submit(op, 8)), Err(Error::ReadOnly));
        }
        self.give(pieces);
        assert_eq!(self.host.finish(self.disk.submit(Op::Flush, 0)), Ok(()));
    }

    /// Every first sector in a page and every length, written in one cut and read in another.
    fn cuts(&mut self) {
        for first in 0..8 {
            for sectors in 1..=8 - first {
                let at = self.place(u64::from(sectors) + 3);
                self.write(at, &[(first, sectors)]);
                self.write(at, &[(7, 1), (first, sectors), (0, 2)]);
                self.check(at, u64::from(sectors) + 3);
            }
        }
        // As many pieces as there are sectors, and the whole disk in pages.
        let many: Vec<(u8, u8)> =
            (0..PIECES_MAX.min(self.disk.info().sectors as usize)).map(|i| (i as u8 % 8, 1)).collect();
        self.write(0, &many);
        self.check(0, many.len() as u64);
    }

    /// A discarded range may hold anything, but holds it; what is beside it stays.
    fn discards(&mut self) {
        let info = self.disk.info();
        if info.discard.is_none() {
            let done = self.host.finish(self.disk.submit(Op::Discard { sectors: 8 }, 8));
            return assert_eq!(done, Err(Error::Unsupported));
        }
        for sectors in [1, 7, 8, 9, 64, info.sectors] {
            let at = self.place(sectors);
            assert_eq!(
                self.host.finish(self.disk.submit(Op::Discard { sectors }, at)),
                Ok(()),
                "discard {at}+{sectors}"
            );
            let (start, end) = (at as usize * SECTOR, (at + sectors) as usize * SECTOR);
            for (from, some) in (at..at + sectors).step_by(64).map(|from| (from, (at + sectors - from).min(64))) {
                let now = self.read(from, some);
                self.model[from as usize * SECTOR..][..now.len()].copy_from_slice(&now);
            }
            assert!(end <= self.model.len() && start < end);
            self.verify();
        }
    }

    /// Anything in any order against a flat array.
    fn operations(&mut self) {
        for _ in 0..60 {
            let longest = self.disk.info().sectors.min(120);
            let sectors = self.random.between(1, longest);
            let at = self.place(sectors);
            match self.random.below(8) {
                0..4 => {
                    let shape = self.shape(sectors);
                    self.write(at, &shape);
                }
                4 => assert_eq!(self.host.finish(self.disk.submit(Op::Flush, 0)), Ok(())),
                _ => self.check(at, sectors),
            }
        }
        self.verify();
    }

    /// What was written before a flush is durable below once the flush is answered.
    fn flushes(&mut self) {
        for _ in 0..5 {
            let sectors = self.random.between(1, 16);
            let (at, shape) = (self.place(sectors), self.shape(sectors));
            self.write(at, &shape);
            assert_eq!(self.host.finish(self.disk.submit(Op::Flush, 0)), Ok(()));
            if let Some(below) = self.below.as_ref().filter(|_| self.disk.info().flush) {
                let data = &self.model[at as usize * SECTOR..][..sectors as usize * SECTOR];
                let below = below.borrow();
                // An image may have it anywhere.
                let is_there = |sector| below.durable().chunks(SECTOR).any(|some| some == sector);
                assert!(data.chunks(SECTOR).all(is_there), "not durable");
            }
        }
    }

    /// Reads that overlap, many at once.
    fn reads_at_once(&mut self) {
        let mut all = Vec::new();
        for _ in 0..12 {
            let sectors = self.random.between(1, 60);
            let (at, shape) = (self.place(sectors), self.shape(sectors));
            let pieces = self.take(at, &shape);
            all.push((at, pieces));
        }
        let reads = all.iter().map(|(at, pieces)| Box::pin(self.disk.submit(Op::Read(pieces), *at)) as Pin<Box<_>>);
        let done = self.host.finish(join(reads.collect()));
        assert!(done.iter().all(Result::is_ok), "{done:?}");
        for (at, pieces) in all {
            let read = bytes(&pieces);
            assert!(read == self.model[at as usize * SECTOR..][..read.len()], "a read at {at} beside others");
            self.give(pieces);
        }
    }

    /// What is given back can be taken again, without end.
    fn balance(&mut self) {
        for _ in 0..100 {
            let shape = self.shape(150);
            let at = self.place(150);
            let pieces = self.take(at, &shape);
            self.give(pieces);
        }
    }
}

fn sum(shape: &[(u8, u8)]) -> u64 {
    shape.iter().map(|(_, sectors)| u64::from(*sectors)).sum()
}

fn bytes(pieces: &[Piece]) -> Vec<u8> {
    let mut all = Vec::new();
    for piece in pieces {
        let mut some = vec![0; usize::from(piece.sectors) * SECTOR];
        piece.page.read(usize::from(piece.first) * SECTOR, &mut some);
        all.extend(some);
    }
    all
}

fn fill(pieces: &[Piece], data: &[u8]) {
    let mut done = 0;
    for piece in pieces {
        let n = usize::from(piece.sectors) * SECTOR;
        piece.page.write(usize::from(piece.first) * SECTOR, &data[done..done + n]);
        done += n;
    }
}

/// All of them at once; their results in order.
async fn join<T>(mut futures: Vec<Pin<Box<dyn Future<Output = T> + '_>>>) -> Vec<T> {
    let mut done: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, done) in futures.iter_mut().zip(&mut done).filter(|(_, done)| done.is_none()) {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                *done = Some(output);
            }
        }
        if done.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}
