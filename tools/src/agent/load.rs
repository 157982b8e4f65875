//! Load with many requests in flight, each verified, that notes when each was done: what a guest sees of a pause is a
//! gap between these moments.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
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
const PIECE: u64 = 1 << 20;

/// A request of an emulated machine whose processors have other work takes a second at most.
const MOVES: Duration = Duration::from_secs(60);

/// The load, until it is ended or dropped.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<Mutex<Vec<Instant>>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// Begins on the first 32 MiB of a disk.
    pub fn begin(disk: &str, seed: u64) -> Result<Load> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(disk);
        let file = Arc::new(file.with_context(|| format!("opening {disk}"))?);
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let begin = |index: usize| {
            let (file, stop, done) = (file.clone(), stop.clone(), done.clone());
            thread::spawn(move || work(&file, index as u64 * PIECE, seed, &stop, &done))
        };
        Ok(Load { threads: (0..DEPTH).map(begin).collect(), stop, done })
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

    fn has_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Ends it: how many requests were done. An error if a byte or an answer was wrong.
    pub fn end(mut self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(result) => result?,
                Err(_) => bail!("a thread of the load panicked"),
            }
        }
        Ok(self.moments().len())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Writes blocks of a piece one after the other and reads each back; every round has another content.
fn work(file: &File, start: u64, seed: u64, stop: &AtomicBool, done: &Mutex<Vec<Instant>>) -> Result<()> {
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
        let offset = start + round * BYTES as u64 % PIECE;
        pattern::fill(seed + round, offset, buffer.get());
        file.write_all_at(buffer.get(), offset).with_context(|| format!("writing at {offset}"))?;
        note();
        buffer.get().fill(0);
        file.read_exact_at(buffer.get(), offset).with_context(|| format!("reading at {offset}"))?;
        note();
        let difference = pattern::difference(seed + round, offset, buffer.get());
        ensure!(difference.is_none(), "not what was written at byte {difference:?}");
    }
    Ok(())
}
