//! Load with many requests in flight, each verified, that notes when each was done: what a guest sees of a pause is a
//! gap between these moments. What it left somewhere can be told from any other state that it went through.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use records::pattern;
use rustix::fs::OFlags;

use super::raw::Aligned;
use super::system::wait_until;

/// Requests in flight: a thread has one.
pub const DEPTH: usize = 32;

/// Each request's bytes.
const BYTES: usize = 4096;

/// What each thread has of the disk, so that no two write one place.
const PIECE: u64 = 512 << 10;

/// What all of them have.
pub const WHOLE: u64 = DEPTH as u64 * PIECE;

/// A request of an emulated machine whose processors have other work takes a second at most.
const MOVES: Duration = Duration::from_secs(60);

/// The load, until it is ended or dropped.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<Mutex<Vec<Instant>>>,
    written: Arc<[AtomicU64; DEPTH]>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// Begins on the first 16 MiB of a disk or file.
    pub fn begin(disk: &str, seed: u64) -> Result<Load> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(disk);
        let file = Arc::new(file.with_context(|| format!("opening {disk}"))?);
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let written = Arc::new([const { AtomicU64::new(0) }; DEPTH]);
        let begin = |index: usize| {
            let (file, stop, done, written) = (file.clone(), stop.clone(), done.clone(), written.clone());
            thread::spawn(move || work(&file, index as u64 * PIECE, seed, &stop, &done, &written[index]))
        };
        Ok(Load { threads: (0..DEPTH).map(begin).collect(), stop, done, written })
    }

    /// How many writes of each thread were answered so far. One more may be under way.
    pub fn written(&self) -> Vec<u64> {
        self.written.iter().map(|written| written.load(Ordering::Relaxed)).collect()
    }

    /// The moments at which requests were done so far.
    pub fn moments(&self) -> Vec<Instant> {
        self.done.lock().map(|done| done.clone()).unwrap_or_default()
    }

    /// Waits until so many more are done.
    pub fn await_more(&self, more: usize) -> Result<()> {
        let wanted = self.moments().len() + more;
        wait_until("the load moves on", MOVES, || self.moments().len() >= wanted || self.has_ended())?;
        ensure!(self.moments().len() >= wanted, "the load ended by itself: {:?}", self.moments().len());
        Ok(())
    }

    /// Whether a thread of it is at its end, which only an error brings about.
    pub fn has_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Ends it: how many requests were done. An error if a byte or an answer was wrong.
    pub fn end(mut self) -> Result<usize> {
        self.stop()?;
        Ok(self.moments().len())
    }

    /// The same, and it can still be asked.
    pub fn stop(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(result) => result?,
                Err(_) => bail!("a thread of the load panicked"),
            }
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Writes blocks of a piece one after the other and reads each back; every round has another content.
fn work(
    file: &File,
    start: u64,
    seed: u64,
    stop: &AtomicBool,
    done: &Mutex<Vec<Instant>>,
    written: &AtomicU64,
) -> Result<()> {
    let mut buffer = Aligned::new(BYTES);
    let note = || {
        if let Ok(mut done) = done.lock() {
            done.push(Instant::now());
        }
    };
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let offset = start + place(round);
        pattern::fill(seed + round, offset, buffer.get());
        file.write_all_at(buffer.get(), offset).with_context(|| format!("writing at {offset}"))?;
        written.store(round + 1, Ordering::Relaxed);
        note();
        buffer.get().fill(0);
        file.read_exact_at(buffer.get(), offset).with_context(|| format!("reading at {offset}"))?;
        note();
        let difference = pattern::difference(seed + round, offset, buffer.get());
        ensure!(difference.is_none(), "not what was written at byte {difference:?}");
    }
    Ok(())
}

/// Where in its piece a round writes.
fn place(round: u64) -> u64 {
    round * BYTES as u64 % PIECE
}

/// How many writes of each thread are in what a load left of so many zeroes, at most `most`. An error if it is not what
/// that many writes come to: a thread writes one block after the other, so one that is older than it ought to be, or newer
/// than others, is noticed.
pub fn found(file: &File, seed: u64, most: u64) -> Result<Vec<u64>> {
    let mut piece = vec![0; PIECE as usize];
    (0..DEPTH as u64)
        .map(|thread| {
            let start = thread * PIECE;
            file.read_exact_at(&mut piece, start).with_context(|| format!("reading at {start}"))?;
            writes_in(&piece, start, seed, most).with_context(|| format!("thread {thread} of the load"))
        })
        .collect()
}

fn writes_in(piece: &[u8], start: u64, seed: u64, most: u64) -> Result<u64> {
    let blocks = PIECE / BYTES as u64;
    // The last round that wrote each block.
    let mut rounds = Vec::new();
    for (number, block) in piece.chunks_exact(BYTES).enumerate() {
        let offset = start + (number * BYTES) as u64;
        let is_of = |round: &u64| {
            let says = |bytes: &[u8]| pattern::difference(seed + round, offset, bytes).is_none();
            says(&block[..8]) && says(block)
        };
        let round = (number as u64..most).step_by(blocks as usize).find(is_of);
        ensure!(round.is_some() || block.iter().all(|byte| *byte == 0), "nothing that was written, at byte {offset}");
        rounds.push(round);
    }
    let count = rounds.iter().flatten().max().map_or(0, |last| last + 1);
    for (number, found) in rounds.iter().enumerate() {
        let number = number as u64;
        let expected = (count > number).then(|| count - 1 - (count - 1 - number) % blocks);
        let offset = start + number * BYTES as u64;
        ensure!(*found == expected, "of {count} writes {found:?} is the last at byte {offset}, not {expected:?}");
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: u64 = PIECE / BYTES as u64;

    fn after(writes: std::ops::Range<u64>, piece: &mut [u8], start: u64, seed: u64) {
        for round in writes {
            let at = place(round) as usize;
            pattern::fill(seed + round, start + at as u64, &mut piece[at..at + BYTES]);
        }
    }

    #[test]
    fn what_so_many_writes_left_is_told_by_their_number() {
        for count in [0, 1, 5, BLOCKS - 1, BLOCKS, BLOCKS + 1, 3 * BLOCKS + 7] {
            let mut piece = vec![0; PIECE as usize];
            after(0..count, &mut piece, PIECE, 9);
            assert_eq!(writes_in(&piece, PIECE, 9, count).unwrap(), count);
            assert_eq!(writes_in(&piece, PIECE, 9, 9 * BLOCKS).unwrap(), count);
        }
    }

    #[test]
    fn what_no_number_of_writes_leaves_is_refused() {
        let refused = |change: &dyn Fn(&mut [u8])| {
            let mut piece = vec![0; PIECE as usize];
            after(0..BLOCKS + 5, &mut piece, 0, 9);
            change(&mut piece);
            assert!(writes_in(&piece, 0, 9, 4 * BLOCKS).is_err());
        };
        refused(&|piece| piece[3 * BYTES + 17] ^= 1);
        // A write that was lost, one that came too early, one that is gone altogether.
        refused(&|piece| after(2..3, piece, 0, 9));
        refused(&|piece| after(BLOCKS + 9..BLOCKS + 10, piece, 0, 9));
        refused(&|piece| piece[8 * BYTES..9 * BYTES].fill(0));
        let mut piece = vec![0; PIECE as usize];
        after(0..5, &mut piece, 0, 9);
        assert!(writes_in(&piece, 0, 9, 4).is_err(), "more than were asked for");
    }
}
