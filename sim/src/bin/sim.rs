//! `make sim`: worlds by the thousand, and one again step by step.
//!
//! A campaign is one process per processor, each with every so-manieth seed, so that what a world leaks or breaks is its
//! own. A process tells on its output which seed it is at: if it dies or hangs, that seed is to blame.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::panic;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use sim::journal;
use sim::marks;
use sim::worlds::{Kind, Report, play};

/// Seeds of a campaign, unless `SEEDS` says otherwise.
const SEEDS: u64 = 20_000;
/// A campaign ends after so many failures.
const FAILURES_MAX: usize = 20;
/// A world takes milliseconds: one that takes this long never ends.
const HANG: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse().ok());
    let arguments: Vec<u64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    match (&arguments[..], number("SEED")) {
        ([first, step, end], _) => shard(*first, *step, *end),
        (_, Some(seed)) => replay(seed),
        _ => campaign(number("SEEDS").unwrap_or(SEEDS)),
    }
}

/// Plays one world and tells every step, the log in between, xenstore and the console at the end.
fn replay(seed: u64) -> ExitCode {
    let kind = Kind::of(seed);
    println!("seed {seed}: a world of {kind:?} guests; steps within another's are further in");
    journal::trace_on();
    let report = play(kind, seed);
    println!("seed {seed} holds: {report}");
    for (mark, times) in &report.marks {
        println!("{times:>9} {mark}");
    }
    ExitCode::SUCCESS
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Plays its share of the seeds and tells the numbers.
fn shard(first: u64, step: u64, end: u64) -> ExitCode {
    journal::scenes_off();
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(|at| format!("{}:{}: ", at.file(), at.line())).unwrap_or_default();
        let text = info.payload_as_str().unwrap_or("a panic without a text");
        PANIC.set(format!("{place}{}", text.lines().next().unwrap_or_default()));
    }));
    let mut all = Report::default();
    let mut out = std::io::stdout().lock();
    for seed in (first..end).step_by(step as usize) {
        // Who reads this may be gone; then nobody wants the rest either.
        if writeln!(out, "at {seed}").is_err() {
            return ExitCode::FAILURE;
        }
        match panic::catch_unwind(|| play(Kind::of(seed), seed)) {
            Ok(report) => all.add(&report),
            Err(_) => {
                let _gone = writeln!(out, "failed {seed} {}", PANIC.take());
            }
        }
    }
    let _gone = writeln!(out, "{}", all.lines());
    ExitCode::SUCCESS
}

/// What the shards tell.
enum News {
    Line(usize, String),
    End(usize),
}

struct Shard {
    process: Child,
    at: u64,
    since: Instant,
    over: bool,
}

fn start(index: usize, shards: usize, end: u64, news: Sender<News>) -> Shard {
    let program = std::env::current_exe().expect("a running program has a path");
    let arguments = [index as u64, shards as u64, end].map(|number| number.to_string());
    let mut process = Command::new(program)
        .args(arguments)
        // A world's pools come and go by megabytes: the allocator is to keep them, not to give them back each time.
        .envs(["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"].map(|name| (name, "268435456")))
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process of our own");
    let output = BufReader::new(process.stdout.take().expect("it is piped"));
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if news.send(News::Line(index, line)).is_err() {
                return;
            }
        }
        let _over = news.send(News::End(index));
    });
    Shard { process, at: 0, since: Instant::now(), over: false }
}

/// Plays that many seeds and says what was covered.
fn campaign(seeds: u64) -> ExitCode {
    let began = Instant::now();
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let (sender, receiver) = mpsc::channel();
    let mut shards: Vec<Shard> = (0..count).map(|index| start(index, count, seeds, sender.clone())).collect();
    let mut report = Report::default();
    let mut failures: Vec<(u64, String)> = Vec::new();
    while shards.iter().any(|shard| !shard.over) && failures.len() < FAILURES_MAX {
        match receiver.recv_timeout(Duration::from_secs(1)) {
            Ok(News::Line(index, line)) => {
                let shard = &mut shards[index];
                shard.since = Instant::now();
                match line.split_once(' ') {
                    Some(("at", seed)) => shard.at = seed.parse().unwrap_or(shard.at),
                    Some(("failed", text)) => {
                        failures.push((shard.at, text.split_once(' ').map_or("", |t| t.1).into()))
                    }
                    _ => assert!(report.read(&line), "a shard says {line:?}"),
                }
            }
            Ok(News::End(index)) => {
                let shard = &mut shards[index];
                shard.over = true;
                let status = shard.process.wait().expect("it has ended");
                if !status.success() {
                    failures.push((shard.at, format!("the process died: {status}")));
                }
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        for shard in shards.iter_mut().filter(|shard| !shard.over && shard.since.elapsed() > HANG) {
            shard.over = true;
            failures.push((shard.at, format!("no end after {HANG:?}")));
        }
    }
    for shard in &mut shards {
        let _ended = shard.process.kill();
        let _reaped = shard.process.wait();
    }
    judge(&report, seeds, failures, began.elapsed())
}

fn judge(report: &Report, seeds: u64, mut failures: Vec<(u64, String)>, time: Duration) -> ExitCode {
    for (group, rows) in marks::ROWS {
        println!("{group}");
        for row in *rows {
            println!("{:>9} {row}", report.marks.get(*row).copied().unwrap_or(0));
        }
    }
    println!("{report} in {:.1} s", time.as_secs_f32());
    failures.sort();
    for (seed, text) in &failures {
        println!("seed {seed} ({:?}) FAILED: {text}\n    make sim SEED={seed}", Kind::of(*seed));
    }
    // A handful of seeds cannot come by everything.
    let missing = if seeds >= SEEDS && failures.is_empty() { report.missing() } else { Vec::new() };
    for row in &missing {
        println!("never hit: {row}");
    }
    if failures.is_empty() && missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
