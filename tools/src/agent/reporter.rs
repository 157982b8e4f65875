//! Says lines to the host through the second serial port.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::Mutex;

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::report::Line;

/// The second serial port: Xen keeps the first for its own console.
pub const PORT: &str = "/dev/ttyS1";

/// The way out to the host.
pub struct Reporter {
    port: Mutex<File>,
}

impl Reporter {
    /// Opens the port in raw mode, so that what is written is what arrives.
    pub fn open() -> Result<Reporter> {
        let port = OpenOptions::new().read(true).write(true).open(PORT).with_context(|| format!("opening {PORT}"))?;
        let mut settings = tcgetattr(&port)?;
        settings.make_raw();
        tcsetattr(&port, OptionalActions::Now, &settings)?;
        Ok(Reporter { port: Mutex::new(port) })
    }

    /// Says one line.
    pub fn say(&self, line: &Line) {
        let Ok(mut port) = self.port.lock() else { return };
        // With the port gone there is nobody to tell; the host's time-out notices.
        let _ = port.write_all(format!("{line}\n").as_bytes());
    }

    /// Something for a person who watches.
    pub fn step(&self, text: impl Into<String>) {
        self.say(&Line::Step(text.into()));
    }

    /// Something for the report file, line by line.
    pub fn detail(&self, text: &str) {
        for line in text.lines() {
            self.say(&Line::Detail(line.to_owned()));
        }
    }
}
