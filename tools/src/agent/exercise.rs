//! What a frontend is asked to do with a disk, as words: the same words go to a guest through xenstore and to dom0
//! itself, so every exercise can be done on either side.

use std::fmt;
use std::path::Path;
use std::process::{Child, Command};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::process::run;
use super::system::wait_until;
use super::{files, load, raw};

/// The kernel announces a disk a moment after the backend says Connected.
const APPEARS: Duration = Duration::from_secs(20);

/// fio with a few hundred requests of up to 1 MiB, twice (write, verify), under emulation.
const FIO: Duration = Duration::from_secs(180);

/// The load program of the benchmark, in the guest.
pub const LOAD: &str = "/usr/bin/load";

/// One exercise. Offsets and lengths are bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "`disk` is a device's path, the other fields say what they are")]
pub enum Exercise {
    /// The disk is there; answers its size.
    Appear { disk: String },
    /// The disk goes away.
    Vanish { disk: String },
    /// Its size in bytes.
    Size { disk: String },
    /// The disk gets this size.
    Grow { disk: String, bytes: u64 },
    /// The whole life of a file system.
    Cycle { disk: String, seed: u64, mebibytes: u64 },
    /// The files of an earlier cycle are there.
    Files { disk: String, seed: u64, mebibytes: u64 },
    /// The files of an earlier cycle are deleted and their space given back.
    Trim { disk: String },
    /// The disk becomes the root of a guest, with files of a seed.
    Furnish { disk: String, seed: u64, mebibytes: u64 },
    /// More files come to a disk with a root, or to the own one (`/`).
    Keep { disk: String, seed: u64, mebibytes: u64 },
    /// Those files are there.
    Kept { disk: String, seed: u64, mebibytes: u64 },
    /// A disk that was left with its root in use is whole.
    Replay { disk: String },
    /// fio writes at random and verifies.
    Fio { disk: String, seed: u64 },
    /// fio verifies what an earlier fio wrote, perhaps elsewhere.
    FioCheck { disk: String, seed: u64 },
    /// Writes the content of a seed.
    Write { disk: String, offset: u64, length: u64, seed: u64 },
    /// Demands the content of a seed.
    Expect { disk: String, offset: u64, length: u64, seed: u64 },
    /// Answers the CRC-32 of a range.
    Checksum { disk: String, offset: u64, length: u64 },
    /// Demands that writes are refused.
    Refused { disk: String },
    /// The load of the benchmark, with these words; answers its nanoseconds.
    Measure { disk: String, words: String },
    /// Begins the load of the benchmark, with these words, which are of one without an end.
    Noise { disk: String, words: String },
    /// Ends it; an error if it has ended by itself.
    Silence,
    /// Writes and reads back without end, in the background.
    Load { disk: String, seed: u64 },
    /// How many rounds the load has done; an error if it met one.
    Progress,
    /// Ends the load after its round; answers the rounds.
    Stop,
    /// Writes and reads back with many requests in flight, in the background.
    LoadMany { disk: String, seed: u64 },
    /// How many writes of each of them were answered; an error if it met one.
    Written,
    /// Ends it; answers the same.
    StopMany,
    /// How many of each there are on a disk that is a guest's root; each at most so many.
    Found { disk: String, seed: u64, most: u64 },
}

use Exercise::*;

impl fmt::Display for Exercise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Appear { disk } => write!(f, "appear {disk}"),
            Vanish { disk } => write!(f, "vanish {disk}"),
            Size { disk } => write!(f, "size {disk}"),
            Grow { disk, bytes } => write!(f, "grow {disk} {bytes}"),
            Cycle { disk, seed, mebibytes } => write!(f, "cycle {disk} {seed} {mebibytes}"),
            Files { disk, seed, mebibytes } => write!(f, "files {disk} {seed} {mebibytes}"),
            Trim { disk } => write!(f, "trim {disk}"),
            Furnish { disk, seed, mebibytes } => write!(f, "furnish {disk} {seed} {mebibytes}"),
            Keep { disk, seed, mebibytes } => write!(f, "keep {disk} {seed} {mebibytes}"),
            Kept { disk, seed, mebibytes } => write!(f, "kept {disk} {seed} {mebibytes}"),
            Replay { disk } => write!(f, "replay {disk}"),
            Fio { disk, seed } => write!(f, "fio {disk} {seed}"),
            FioCheck { disk, seed } => write!(f, "fio-check {disk} {seed}"),
            Write { disk, offset, length, seed } => write!(f, "write {disk} {offset} {length} {seed}"),
            Expect { disk, offset, length, seed } => write!(f, "expect {disk} {offset} {length} {seed}"),
            Checksum { disk, offset, length } => write!(f, "checksum {disk} {offset} {length}"),
            Refused { disk } => write!(f, "refused {disk}"),
            Measure { disk, words } => write!(f, "measure {disk} {words}"),
            Noise { disk, words } => write!(f, "noise {disk} {words}"),
            Silence => write!(f, "silence"),
            Load { disk, seed } => write!(f, "load {disk} {seed}"),
            Progress => write!(f, "progress"),
            Stop => write!(f, "stop"),
            LoadMany { disk, seed } => write!(f, "load-many {disk} {seed}"),
            Written => write!(f, "written"),
            StopMany => write!(f, "stop-many"),
            Found { disk, seed, most } => write!(f, "found {disk} {seed} {most}"),
        }
    }
}

impl FromStr for Exercise {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Exercise> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let disk = || words.get(1).map(|&word| word.to_owned()).context("which disk?");
        let number = |at: usize| -> Result<u64> { Ok(words.get(at).context("a number is missing")?.parse()?) };
        Ok(match *words.first().context("no exercise")? {
            "appear" => Appear { disk: disk()? },
            "vanish" => Vanish { disk: disk()? },
            "size" => Size { disk: disk()? },
            "grow" => Grow { disk: disk()?, bytes: number(2)? },
            "cycle" => Cycle { disk: disk()?, seed: number(2)?, mebibytes: number(3)? },
            "files" => Files { disk: disk()?, seed: number(2)?, mebibytes: number(3)? },
            "trim" => Trim { disk: disk()? },
            "furnish" => Furnish { disk: disk()?, seed: number(2)?, mebibytes: number(3)? },
            "keep" => Keep { disk: disk()?, seed: number(2)?, mebibytes: number(3)? },
            "kept" => Kept { disk: disk()?, seed: number(2)?, mebibytes: number(3)? },
            "replay" => Replay { disk: disk()? },
            "fio" => Fio { disk: disk()?, seed: number(2)? },
            "fio-check" => FioCheck { disk: disk()?, seed: number(2)? },
            "write" => Write { disk: disk()?, offset: number(2)?, length: number(3)?, seed: number(4)? },
            "expect" => Expect { disk: disk()?, offset: number(2)?, length: number(3)?, seed: number(4)? },
            "checksum" => Checksum { disk: disk()?, offset: number(2)?, length: number(3)? },
            "refused" => Refused { disk: disk()? },
            "measure" => Measure { disk: disk()?, words: words.get(2..).unwrap_or_default().join(" ") },
            "noise" => Noise { disk: disk()?, words: words.get(2..).unwrap_or_default().join(" ") },
            "silence" => Silence,
            "load" => Load { disk: disk()?, seed: number(2)? },
            "progress" => Progress,
            "stop" => Stop,
            "load-many" => LoadMany { disk: disk()?, seed: number(2)? },
            "written" => Written,
            "stop-many" => StopMany,
            "found" => Found { disk: disk()?, seed: number(2)?, most: number(3)? },
            other => bail!("no exercise is called {other:?}"),
        })
    }
}

/// Whoever does exercises: dom0 or a guest. It keeps the loads in the background.
#[derive(Default)]
pub struct Gymnast {
    load: Option<BackgroundLoad>,
    many: Option<load::Load>,
    noise: Option<Child>,
}

struct BackgroundLoad {
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicU64>,
    thread: thread::JoinHandle<Result<()>>,
}

impl Gymnast {
    /// Does one exercise; the answer is a line for the report.
    pub fn perform(&mut self, exercise: &Exercise) -> Result<String> {
        let done = || String::from("done");
        match exercise {
            Appear { disk } => {
                wait_until(&format!("{disk} is there"), APPEARS, || {
                    raw::size(disk).is_ok_and(|size| size > 0) && Path::new(disk).exists()
                })?;
                Ok(raw::size(disk)?.to_string())
            }
            Vanish { disk } => {
                wait_until(&format!("{disk} is gone"), APPEARS, || raw::size(disk).is_err()).map(|()| done())
            }
            Size { disk } => Ok(raw::size(disk)?.to_string()),
            Grow { disk, bytes } => grow(disk, *bytes).map(|()| done()),
            Cycle { disk, seed, mebibytes } => files::cycle(disk, *seed, *mebibytes),
            Files { disk, seed, mebibytes } => files::verify(disk, *seed, *mebibytes),
            Trim { disk } => files::delete_and_trim(disk),
            Furnish { disk, seed, mebibytes } => files::furnish(disk, *seed, *mebibytes),
            Keep { disk, seed, mebibytes } => files::keep(disk, *seed, *mebibytes).map(|()| done()),
            Kept { disk, seed, mebibytes } => files::kept(disk, *seed, *mebibytes),
            Replay { disk } => files::replay(disk).map(|()| done()),
            Fio { disk, seed } => fio(disk, *seed, &["--do_verify=1"]),
            FioCheck { disk, seed } => fio(disk, *seed, &["--verify_only"]),
            Write { disk, offset, length, seed } => raw::write(disk, *offset, *length, *seed).map(|()| done()),
            Expect { disk, offset, length, seed } => raw::expect(disk, *offset, *length, *seed).map(|()| done()),
            Checksum { disk, offset, length } => Ok(format!("{:08x}", raw::checksum(disk, *offset, *length)?)),
            Refused { disk } => raw::refused(disk),
            Measure { disk, words } => measure(disk, words),
            Noise { disk, words } => self.begin_noise(disk, words).map(|()| done()),
            Silence => self.end_noise().map(|()| done()),
            Load { disk, seed } => self.begin_load(disk, *seed).map(|()| done()),
            Progress => self.progress(),
            Stop => self.end_load(),
            LoadMany { disk, seed } => {
                self.many = Some(load::Load::begin(disk, *seed)?);
                Ok(done())
            }
            Written => self.written(),
            StopMany => self.stop_many(),
            Found { disk, seed, most } => files::loaded(disk, *seed, *most).map(|counts| in_words(&counts)),
        }
    }

    fn written(&mut self) -> Result<String> {
        let many = self.many.as_ref().context("no load is running")?;
        if many.has_ended() {
            return self.stop_many().and_then(|counts| bail!("the load ended by itself after {counts}"));
        }
        Ok(in_words(&many.written()))
    }

    fn stop_many(&mut self) -> Result<String> {
        let mut many = self.many.take().context("no load is running")?;
        many.stop()?;
        Ok(in_words(&many.written()))
    }

    fn begin_noise(&mut self, disk: &str, words: &str) -> Result<()> {
        let noise = Command::new(LOAD).arg(disk).args(words.split(' ')).spawn().context("starting the load")?;
        self.noise = Some(noise);
        Ok(())
    }

    fn end_noise(&mut self) -> Result<()> {
        let mut noise = self.noise.take().context("there is no noise")?;
        if let Some(status) = noise.try_wait()? {
            bail!("the noise ended by itself with {status}");
        }
        noise.kill().context("ending the noise")?;
        noise.wait().map(drop).context("ending the noise")
    }

    fn begin_load(&mut self, disk: &str, seed: u64) -> Result<()> {
        let (rounds, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (disk, counted, asked) = (disk.to_owned(), rounds.clone(), stop.clone());
        let thread = thread::spawn(move || {
            const LENGTH: u64 = 2 << 20;
            let places = (raw::size(&disk)? / LENGTH).max(1);
            while asked.load(Ordering::Relaxed) == 0 {
                let round = counted.load(Ordering::Relaxed);
                let offset = round % places * LENGTH;
                raw::write(&disk, offset, LENGTH, seed + round)?;
                raw::expect(&disk, offset, LENGTH, seed + round)?;
                counted.fetch_add(1, Ordering::Relaxed);
                // Four loads share two emulated processors with dom0, whose answers took 15 s without a rest here.
                thread::sleep(Duration::from_millis(200));
            }
            Ok(())
        });
        self.load = Some(BackgroundLoad { rounds, stop, thread });
        Ok(())
    }

    fn progress(&mut self) -> Result<String> {
        let load = self.load.as_ref().context("no load is running")?;
        if load.thread.is_finished() {
            return self.end_load().and_then(|rounds| bail!("the load ended by itself after {rounds} rounds"));
        }
        Ok(load.rounds.load(Ordering::Relaxed).to_string())
    }

    fn end_load(&mut self) -> Result<String> {
        let load = self.load.take().context("no load is running")?;
        load.stop.store(1, Ordering::Relaxed);
        match load.thread.join() {
            Ok(result) => result?,
            Err(_) => bail!("the load panicked"),
        }
        Ok(load.rounds.load(Ordering::Relaxed).to_string())
    }
}

fn in_words(counts: &[u64]) -> String {
    counts.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

/// blkback looks at its disk's size only when a request wakes it, so something must be read.
fn grow(disk: &str, bytes: u64) -> Result<()> {
    wait_until(&format!("{disk} has {bytes} bytes"), APPEARS, || {
        raw::checksum(disk, 0, 4096).is_ok() && raw::size(disk).is_ok_and(|size| size == bytes)
    })
}

/// The program is there in the boots of the benchmark only.
fn measure(disk: &str, words: &str) -> Result<String> {
    let words: Vec<&str> = [LOAD, disk].into_iter().chain(words.split(' ')).collect();
    Ok(run(&words, FIO)?.trim().to_owned())
}

/// Two runs, one after the other: sizes over the whole range, and many small ones that share pages and segments.
fn fio(disk: &str, seed: u64, mode: &[&str]) -> Result<String> {
    let (filename, seed) = (format!("--filename={disk}"), format!("--randseed={seed}"));
    let mut words = vec![
        "fio",
        "--thread",
        "--direct=1",
        "--ioengine=libaio",
        "--iodepth=32",
        "--rw=randwrite",
        "--verify=crc32",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--randrepeat=1",
        &filename,
        &seed,
    ];
    words.extend_from_slice(mode);
    words.extend_from_slice(&["--name=large", "--bsrange=512-1M", "--offset=0", "--size=40M"]);
    words.extend_from_slice(&["--name=small", "--stonewall", "--bsrange=512-16k", "--offset=40M", "--size=4M"]);
    let out = run(&words, FIO)?;
    let totals = out.lines().filter(|line| line.contains("issued rwts")).map(str::trim).collect::<Vec<_>>().join("; ");
    Ok(totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_exercises_are_the_same() {
        let disk = || "/dev/xvda".to_owned();
        for exercise in [
            Appear { disk: disk() },
            Vanish { disk: disk() },
            Size { disk: disk() },
            Grow { disk: disk(), bytes: 1 },
            Cycle { disk: disk(), seed: 1, mebibytes: 2 },
            Files { disk: disk(), seed: 1, mebibytes: 2 },
            Trim { disk: disk() },
            Fio { disk: disk(), seed: 3 },
            FioCheck { disk: disk(), seed: 3 },
            Write { disk: disk(), offset: 1, length: 2, seed: 3 },
            Expect { disk: disk(), offset: 1, length: 2, seed: 3 },
            Checksum { disk: disk(), offset: 1, length: 2 },
            Refused { disk: disk() },
            Measure { disk: disk(), words: "read random 4096 1 10".to_owned() },
            Noise { disk: disk(), words: "read random 4096 32 4294967295 1".to_owned() },
            Silence,
            Load { disk: disk(), seed: 9 },
            Progress,
            Stop,
            Furnish { disk: disk(), seed: 1, mebibytes: 2 },
            Keep { disk: "/".to_owned(), seed: 1, mebibytes: 2 },
            Kept { disk: disk(), seed: 1, mebibytes: 2 },
            Replay { disk: disk() },
            LoadMany { disk: "/load".to_owned(), seed: 9 },
            Written,
            StopMany,
            Found { disk: disk(), seed: 9, most: 1 },
        ] {
            assert_eq!(exercise.to_string().parse::<Exercise>().unwrap(), exercise);
        }
        assert!("jump /dev/xvda".parse::<Exercise>().is_err());
        assert!("write /dev/xvda 1".parse::<Exercise>().is_err());
    }
}
