//! What the product logged, kept for the text of a failure. Tests run in threads of one process and the `log` facade
//! has one logger for all, so each thread keeps its own lines.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Once;

use xen::port::Instant;

use crate::memory::of_world;

const LINES_MAX: usize = 200;

type Clock = Box<dyn Fn() -> Instant>;

thread_local! {
    static LINES: RefCell<VecDeque<String>> = const { RefCell::new(VecDeque::new()) };
    static CLOCK: RefCell<Option<Clock>> = const { RefCell::new(None) };
    static SAID: Cell<u64> = const { Cell::new(0) };
    static TRACING: Cell<bool> = const { Cell::new(false) };
    static SCENES: Cell<bool> = const { Cell::new(true) };
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

struct Journal;

impl log::Log for Journal {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.level() <= log::Level::Info {
            SAID.set(SAID.get() + 1);
        }
        of_world(|| note(|| format!("{:>9} us {} {}", micros(), record.level(), record.args())));
    }

    fn flush(&self) {}
}

/// Keeps a line, of the world itself.
pub(crate) fn note(line: impl FnOnce() -> String) {
    let line = line();
    if TRACING.get() {
        println!("{line}");
    }
    LINES.with_borrow_mut(|lines| {
        lines.push_back(line);
        if lines.len() > LINES_MAX {
            lines.pop_front();
        }
    });
}

fn micros() -> u64 {
    CLOCK.with_borrow(|clock| clock.as_ref().map_or(Instant(0), |clock| clock())).0 / 1000
}

/// From now on every step of a run on this thread is printed as it is made, and every line with it.
pub fn trace_on() {
    TRACING.set(true);
}

/// From now on no run on this thread prints its scene when it fails: a campaign only counts.
pub fn scenes_off() {
    SCENES.set(false);
}

/// Prints how a run ended, if it failed or is traced.
pub(crate) fn scene(text: impl FnOnce() -> String) {
    if TRACING.get() || SCENES.get() && std::thread::panicking() {
        eprintln!("{}", text());
    }
}

/// Prints who makes a step, if steps are printed.
pub(crate) fn trace(who: impl FnOnce() -> String) {
    if TRACING.get() {
        println!("{:>9} us {:indent$}{}", micros(), "", who(), indent = 4 * DEPTH.get());
    }
}

/// Steps made meanwhile are within another's.
pub(crate) fn deeper<T>(steps: impl FnOnce() -> T) -> T {
    DEPTH.set(DEPTH.get() + 1);
    let done = steps();
    DEPTH.set(DEPTH.get() - 1);
    done
}

/// Forgets the lines of the last run.
pub(crate) fn begin() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if log::set_logger(&Journal).is_ok() {
            log::set_max_level(log::LevelFilter::Debug);
        }
    });
    LINES.with_borrow_mut(VecDeque::clear);
    SAID.set(0);
    DEPTH.set(0);
}

/// How many lines there were that the image would have put on its console: all but those for debugging.
pub fn said() -> u64 {
    SAID.get()
}

/// By which clock lines are dated.
pub(crate) fn clock(clock: impl Fn() -> Instant + 'static) {
    CLOCK.set(Some(Box::new(clock)));
}

/// The last lines.
pub fn tail() -> String {
    LINES.with_borrow(|lines| lines.iter().cloned().collect::<Vec<_>>().join("\n"))
}

/// Whether some line holds this text.
pub fn tells(text: &str) -> bool {
    LINES.with_borrow(|lines| lines.iter().any(|line| line.contains(text)))
}
