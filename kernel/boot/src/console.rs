//! What we say: into the console ring, and as long as there is none (and for an epitaph, for which the ring may be too
//! full) out of Xen's debug port.

use core::arch::asm;
use core::fmt::{self, Write};

use boot::ring::Ring;
use log::{LevelFilter, Log, Metadata, Record};
use xen::page::Page;
use xen::port::Port;

use crate::{clock, events};

struct Console {
    ring: Ring<&'static Page>,
    port: Port,
}

static CONSOLE: spin::Mutex<Option<Console>> = spin::Mutex::new(None);

/// From here on there is a console.
pub fn open(page: &'static Page, port: Port) {
    *CONSOLE.lock() = Some(Console { ring: Ring::new(page), port });
}

/// Says bytes, without waiting: what does not fit in the ring is dropped.
pub fn say(bytes: &[u8]) {
    match &mut *CONSOLE.lock() {
        Some(console) => {
            console.ring.put(bytes);
            events::notify(console.port);
        }
        None => debug_port(bytes),
    }
}

/// Xen shows these bytes in its own log (`xl dmesg`) if it was started with `guest_loglvl=all`.
fn debug_port(bytes: &[u8]) {
    for &byte in bytes {
        // SAFETY: no device is at this port but Xen's.
        unsafe { asm!("out 0xe9, al", in("al") byte, options(nomem, nostack, preserves_flags)) };
    }
}

/// A line of the log under construction. What is too long is cut; what is not printable becomes a question mark, since
/// peers have a say in many lines.
struct Line {
    text: heapless::Vec<u8, 512>,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.text.capacity() - 2 - self.text.len();
        let printable = |byte: u8| if matches!(byte, b' '..=b'~') { byte } else { b'?' };
        self.text.extend(text.bytes().map(printable).take(room));
        Ok(())
    }
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            log::Level::Error => "error",
            log::Level::Warn => "warn",
            log::Level::Info => "info",
            log::Level::Debug => "debug",
            log::Level::Trace => "trace",
        };
        let time = clock::uptime_us();
        let mut line = Line { text: heapless::Vec::new() };
        let _ = write!(line, "[{:5}.{:06}] {level} {}", time / 1_000_000, time % 1_000_000, record.args());
        line.text.extend(*b"\r\n");
        say(&line.text);
    }

    fn flush(&self) {}
}

/// The `log` macros speak from here on.
pub fn log(level: LevelFilter) {
    static LOGGER: Logger = Logger;
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level);
    }
}

/// A writer for the last words: both ways, and whoever held the console does not any more.
pub struct LastWords;

impl LastWords {
    /// To be made only when nothing else will run.
    pub fn new() -> Self {
        // Another vCPU says a line in much less than this.
        const PATIENCE_NS: u64 = 10_000_000;
        let start = clock::now().0;
        while CONSOLE.is_locked() && clock::now().0 - start < PATIENCE_NS {
            core::hint::spin_loop();
        }
        if CONSOLE.is_locked() {
            // SAFETY: the holder is below us on this stack and will never run again.
            unsafe { CONSOLE.force_unlock() };
        }
        LastWords
    }

    /// Waits a moment for the daemon, which does not read any more once the domain has ended.
    pub fn wait_until_read(&self) {
        const PATIENCE_NS: u64 = 200_000_000;
        let start = clock::now().0;
        let unread = || CONSOLE.lock().as_ref().is_some_and(|console| !console.ring.is_read());
        while unread() && clock::now().0 - start < PATIENCE_NS {
            core::hint::spin_loop();
        }
    }
}

impl Write for LastWords {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (i, line) in text.split('\n').enumerate() {
            if i > 0 {
                debug_port(b"\n");
                say(b"\r\n");
            }
            debug_port(line.as_bytes());
            say(line.as_bytes());
        }
        Ok(())
    }
}
