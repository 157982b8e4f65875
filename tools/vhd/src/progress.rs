//! How far long work is: a line on standard error, if that is a terminal.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

const OFTEN: Duration = Duration::from_millis(200);
const WIDTH: usize = 30;

/// A bar.
pub struct Progress {
    what: String,
    all: u64,
    begun: Instant,
    shown: Option<Instant>,
    terminal: bool,
}

impl Progress {
    /// Of work of `all` parts; of nothing it is always done.
    pub fn new(what: impl Into<String>, all: u64) -> Progress {
        Progress { what: what.into(), all, begun: Instant::now(), shown: None, terminal: stderr().is_terminal() }
    }

    /// So many parts are done.
    pub fn done(&mut self, parts: u64) {
        if self.terminal && self.shown.is_none_or(|shown| shown.elapsed() >= OFTEN) {
            self.shown = Some(Instant::now());
            self.print(&self.line(parts, self.begun.elapsed()));
        }
    }

    fn line(&self, parts: u64, elapsed: Duration) -> String {
        let share = if self.all == 0 { 1.0 } else { parts.min(self.all) as f64 / self.all as f64 };
        let full = (share * WIDTH as f64) as usize;
        let left = match share {
            share if share > 0.0 => format!("{:.0} s left", elapsed.as_secs_f64() * (1.0 - share) / share),
            _ => String::new(),
        };
        let bar = format!("{}{}", "#".repeat(full), ".".repeat(WIDTH - full));
        format!("{} [{bar}] {:3.0}% {left}", self.what, share * 100.0)
    }

    fn print(&self, line: &str) {
        // Who cannot be told how far it is need not stop the work.
        let _ = write!(stderr(), "\r\x1b[K{line}");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            self.print("");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line() {
        let progress = Progress::new("check", 8);
        let line = |parts| progress.line(parts, Duration::from_secs(6));
        assert_eq!(line(0), "check [..............................]   0% ");
        assert_eq!(line(2), "check [#######.......................]  25% 18 s left");
        assert_eq!(line(9), "check [##############################] 100% 0 s left");
        assert!(Progress::new("check", 0).line(0, Duration::ZERO).ends_with("100% 0 s left"));
    }
}
