//! What a guest may count on after a power cut: its side of the bargain that a flush is.
//!
//! The rules are those of `io/blkif.h` as Linux keeps them on both sides. A write is durable when a flush was answered that
//! was asked for after the write was answered. FLUSH_DISKCACHE with data does that before its own data is written.
//! WRITE_BARRIER parts the ring: whatever stands before it is durable before its data is, its data before anything after
//! it, and all that once it is answered. Every sector that nobody vouches for holds some value that it once had or was to
//! have since, and never another.

use std::cell::RefCell;
use std::rc::Rc;

use crate::blkif::SECTOR;
use crate::crash::{Cut, Recording};
use crate::disk::SharedDisk;
use crate::frontend::Io;
use crate::random::Random;

struct Line {
    io: Io,
    /// When it was put on the ring and when it was answered, in the order of all that the guest did and saw.
    asked: u64,
    answered: Option<u64>,
    /// How much had reached the disk by then.
    asked_at: usize,
    answered_at: usize,
    done: bool,
}

/// One guest's requests, in the order of its ring, beside what reached the disk.
pub struct Ledger {
    disk: SharedDisk,
    /// Where on the disk the guest's own begins.
    start: u64,
    lines: Vec<Line>,
    clock: u64,
}

/// A ledger that a frontend and a test share.
pub type SharedLedger = Rc<RefCell<Ledger>>;

impl Ledger {
    /// Of a guest whose sectors begin at `start` of this disk, which records from now on.
    pub fn on(disk: &SharedDisk, start: u64) -> SharedLedger {
        disk.borrow_mut().record();
        Rc::new(RefCell::new(Ledger { disk: disk.clone(), start, lines: Vec::new(), clock: 0 }))
    }

    fn tick(&mut self) -> (u64, usize) {
        self.clock += 1;
        (self.clock, self.disk.borrow().recorded())
    }

    /// The guest put a request on its ring; returns the line.
    pub(crate) fn asked(&mut self, io: &Io) -> usize {
        let (asked, asked_at) = self.tick();
        let line = Line { io: io.clone(), asked, answered: None, asked_at, answered_at: usize::MAX, done: false };
        self.lines.push(line);
        self.lines.len() - 1
    }

    /// It was answered, and whether it was done.
    pub(crate) fn answered(&mut self, line: usize, done: bool) {
        let (answered, at) = self.tick();
        let line = &mut self.lines[line];
        (line.answered, line.answered_at, line.done) = (Some(answered), at, done);
    }

    /// Checks every cut of what the disk recorded: each sector exactly, and `draws` whole images for what ties sectors
    /// together. Returns the cuts, or the first that breaks a rule.
    pub fn check(&self, random: &mut Random, draws: usize) -> Result<usize, String> {
        let recording = self.disk.borrow().recording().clone();
        let (mut cuts, mut wrong) = (0, None);
        recording.cuts(|cut| {
            cuts += 1;
            if wrong.is_none() {
                wrong = self.check_cut(&recording, cut, random, draws).err();
            }
        });
        wrong.map_or(Ok(cuts), Err)
    }

    fn check_cut(&self, base: &Recording, cut: &Cut<'_>, random: &mut Random, draws: usize) -> Result<(), String> {
        // All that the guest did or saw while the disk stood at this entry was before the cut.
        let lines: Vec<&Line> = self.lines.iter().take_while(|line| line.asked_at <= cut.at).collect();
        let vouched = vouched(&lines, |line| line.done && line.answered_at <= cut.at);
        let floors = floors(&lines, &vouched);
        let sectors = base.base().len() as u64 / SECTOR as u64;
        for sector in 0..self.start {
            let old = &base.base()[sector as usize * SECTOR..][..SECTOR];
            if cut.values(sector).any(|value| value != old) {
                return Err(format!("cut {}: sector {sector} of the disk is not the guest's, and changed", cut.at));
            }
        }
        for sector in self.start..sectors {
            for value in cut.values(sector) {
                self.allows(base, &lines, &floors, sector, value).map_err(|why| format!("cut {}: {why}", cut.at))?;
            }
        }
        for image in [cut.lost(), cut.kept()].into_iter().chain((0..draws).map(|_| cut.torn(random))) {
            // What is seen of a request with an order says that all before it was there first.
            let seen = |line: &Line| line.io.orders() && self.shows(&image, line);
            let mut vouched = self::vouched(&lines, |line| line.done && line.answered_at <= cut.at);
            for (i, line) in lines.iter().enumerate() {
                if seen(line) {
                    before(&lines, i, &mut vouched);
                }
                let behind = lines[..i].iter().rposition(|other| matches!(other.io, Io::Barrier { .. }));
                if let Some(barrier) = behind.filter(|_| line.io.changes() && self.shows(&image, line)) {
                    before(&lines, barrier, &mut vouched);
                    vouched[barrier] = true;
                }
            }
            let floors = self::floors(&lines, &vouched);
            for sector in self.start..sectors {
                let value = &image[sector as usize * SECTOR..][..SECTOR];
                self.allows(base, &lines, &floors, sector, value)
                    .map_err(|why| format!("cut {}, an order broken: {why}", cut.at))?;
            }
        }
        Ok(())
    }

    /// Whether some sector of the image can only come from this request.
    fn shows(&self, image: &[u8], line: &Line) -> bool {
        let (first, _) = line.io.range();
        line.io.data().is_some_and(|data| {
            (self.start + first..)
                .zip(data.chunks(SECTOR))
                .any(|(at, data)| &image[at as usize * SECTOR..][..SECTOR] == data)
        })
    }

    fn allows(
        &self,
        base: &Recording,
        lines: &[&Line],
        floors: &[Option<usize>],
        sector: u64,
        value: &[u8],
    ) -> Result<(), String> {
        let own = sector - self.start;
        let floor = floors.get(own as usize).copied().flatten();
        if floor.is_none() && &base.base()[sector as usize * SECTOR..][..SECTOR] == value {
            return Ok(());
        }
        let touches = |line: &&&Line| {
            let (first, sectors) = line.io.range();
            line.io.changes() && (first..first + sectors).contains(&own)
        };
        let possible = |line: &&Line| match line.io.data() {
            Some(data) => &data[(own - line.io.range().0) as usize * SECTOR..][..SECTOR] == value,
            // A discarded sector may hold anything.
            None => true,
        };
        if lines[floor.unwrap_or(0)..].iter().filter(touches).any(possible) {
            return Ok(());
        }
        Err(match floor {
            Some(floor) => format!("sector {own} lost request {floor}, which was durable"),
            None => format!("sector {own} holds what nobody wrote there"),
        })
    }
}

/// Which lines are durable because one that is `over` vouches for them.
fn vouched(lines: &[&Line], over: impl Fn(&Line) -> bool) -> Vec<bool> {
    let mut vouched = vec![false; lines.len()];
    for (i, line) in lines.iter().enumerate().filter(|(_, line)| over(line)) {
        match line.io {
            Io::Flush | Io::FlushWrite { .. } => before(lines, i, &mut vouched),
            Io::Barrier { .. } => {
                before(lines, i, &mut vouched);
                vouched[i] = true;
            }
            _ => {}
        }
    }
    vouched
}

/// Marks what must be durable before the data of this line is.
fn before(lines: &[&Line], of: usize, vouched: &mut [bool]) {
    let barrier = matches!(lines[of].io, Io::Barrier { .. });
    for (i, line) in lines.iter().enumerate().filter(|(_, line)| line.done) {
        let earlier = if barrier { i < of } else { line.answered.is_some_and(|at| at < lines[of].asked) };
        vouched[i] |= earlier && line.io.changes();
    }
}

/// For every sector the last line that must be there.
fn floors(lines: &[&Line], vouched: &[bool]) -> Vec<Option<usize>> {
    let mut floors = Vec::new();
    for (i, line) in lines.iter().enumerate().filter(|(i, _)| vouched[*i]) {
        let (first, sectors) = line.io.range();
        let end = (first + sectors) as usize;
        if floors.len() < end {
            floors.resize(end, None);
        }
        floors[first as usize..end].fill(Some(i));
    }
    floors
}
