//! The last moments: a short ring of what happened, for an epitaph.

use core::fmt;

use heapless::HistoryBuf;

use crate::limits::TRACE_ENTRIES;
use crate::port::{DomId, Instant};

/// One thing that happened to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Its directory was found.
    Found,
    /// Its image was opened; 512-byte sectors.
    Opened(u64),
    /// Its image could not be opened.
    Refused,
    /// Features published, InitWait said.
    Published,
    /// Ring mapped: pages.
    Connected(u32),
    /// A request was rejected.
    Rejected(&'static str),
    /// The ring was given up: the peer's index made no sense.
    Overrun,
    /// The store failed a request.
    Failed(&'static str),
    /// Ring unmapped; requests still in flight.
    Disconnected(u32),
    /// Its directory is gone.
    Gone,
}

/// When, which disk (frontend's domain and device number), what.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// When.
    pub at: Instant,
    /// The frontend's domain.
    pub domain: DomId,
    /// The device number.
    pub device: u64,
    /// What.
    pub event: Event,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} us vbd {}/{}: {:?}", self.at.0 / 1000, self.domain.0, self.device, self.event)
    }
}

static RING: spin::Mutex<HistoryBuf<Entry, TRACE_ENTRIES>> = spin::Mutex::new(HistoryBuf::new());

/// Adds an entry; the oldest goes.
pub fn note(entry: Entry) {
    RING.lock().write(entry);
}

/// Writes the entries, oldest first, and is safe to call from a panic: if the ring is locked it says so.
pub fn epitaph(into: &mut dyn fmt::Write) {
    match RING.try_lock() {
        Some(ring) => ring.oldest_ordered().for_each(|entry| {
            // A console that takes no more has nothing to be told.
            let _ = writeln!(into, "  {entry}");
        }),
        None => {
            let _ = writeln!(into, "  the trace is locked");
        }
    }
}
