//! What STATS tells: the counts of a minor, in the words of [`protocol::tapdisk::stats`].

use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt::{self, Write};

use protocol::session::State;
use protocol::tapdisk::stats::{Driver, Grants, Image, Operations, Pair, Queue, Ring, RingErrors, Vbd};
use xen::exec::yield_now;
use xen::limits::REQUESTS_PER_LOWER;
use xen::page::NoMemory;
use xen::port::Xen;

use crate::Shared;
use crate::minor::Minor;
use crate::queue::Handle;
use crate::stats::Stats;

/// The figures of one minor.
pub async fn one<X: Xen>(shared: &Shared<X>, minor: &Minor<X>) -> Result<String, NoMemory> {
    let stats = minor.total().await;
    text(|json| vbd(json, shared, minor, &stats))
}

/// An array of those of all: made whole before its first byte is sent, for the answer tells its length first. Guests'
/// requests get their turns in between: hundreds of disks are a long text.
pub async fn all<X: Xen>(shared: &Shared<X>) -> Result<String, NoMemory> {
    let mut json = text(|json| json.write_str("[ "))?;
    for (at, minor) in shared.minors.all().iter().enumerate() {
        if shared.domain.memory.is_short() {
            return Err(NoMemory);
        }
        let stats = minor.total().await;
        json = more(json, |json| {
            json.write_str(if at > 0 { ", " } else { "" })?;
            vbd(json, shared, minor, &stats)
        })?;
        yield_now().await;
    }
    more(json, |json| json.write_str(" ]"))
}

/// A text that says so when memory is short; nothing else of us fails.
struct Fallible(String, Result<(), NoMemory>);

impl Write for Fallible {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.1 = self.0.try_reserve(text.len()).map_err(|_| NoMemory);
        if self.1.is_err() {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

fn text(write: impl FnOnce(&mut Fallible) -> fmt::Result) -> Result<String, NoMemory> {
    more(String::new(), write)
}

fn more(text: String, write: impl FnOnce(&mut Fallible) -> fmt::Result) -> Result<String, NoMemory> {
    let mut json = Fallible(text, Ok(()));
    // Only memory fails here, and that is kept.
    let _ = write(&mut json);
    json.1.map(|()| json.0)
}

fn vbd<X: Xen>(json: &mut Fallible, shared: &Shared<X>, minor: &Minor<X>, stats: &Stats) -> fmt::Result {
    let name = minor.name();
    let secs = Pair(stats.reads.sectors.get(), stats.writes.sectors.get());
    let (kind, source) = name.split_once(':').unwrap_or(("aio", &name));
    let failed = Pair(stats.reads.failed_sectors.get(), stats.writes.failed_sectors.get());
    let queue = Queue { max: REQUESTS_PER_LOWER as u64, pending: minor.in_flight() as u64 };
    let driver = match kind {
        "ram" => Driver::RAM,
        "vhd" => Driver::VHD,
        _ => Driver { queue: Some(queue), ..Driver::AIO },
    };
    let image = [Image { name: source, hits: secs, fail: failed, driver }];
    let open = matches!(minor.state(), State::Open | State::Pausing);
    let rings: Vec<Ring<'_>> = minor.rings.borrow().iter().map(|handle| ring(handle)).collect();
    let latency = [&stats.reads, &stats.writes, &stats.flushes, &stats.discards].map(|op| op.latency.borrow());
    let [read, write, flush, discard] = &latency;
    let (used, all) = shared.domain.memory.figures();
    let vbd = Vbd {
        name: &name,
        minor: minor.number(),
        state: minor.state().bits(),
        secs,
        images: if open { &image } else { &[] },
        rings: &rings,
        redirected_secs: 0,
        mirror_failed: false,
        in_flight: minor.in_flight() as u64,
        read_caching: false,
        operations: Operations { read, write, flush, discard },
        errors: &[
            ("rejected", stats.rejected.get()),
            ("grant", stats.grants_refused.get()),
            ("no_memory", stats.no_memory.get()),
            ("medium", stats.store.medium.get()),
            ("gone", stats.store.gone.get()),
            ("full", stats.store.full.get()),
            ("corrupt", stats.store.corrupt.get()),
            ("other", stats.store.other.get()),
        ],
        grants: Grants {
            copied: stats.copied.get(),
            refused: stats.grants_refused.get(),
            mapped: rings.iter().map(|ring| u64::from(ring.pages)).sum(),
        },
        memory_bytes: minor.memory_bytes(),
        domain_memory_bytes: Pair(used as u64, all as u64),
    };
    write!(json, "{vbd}")
}

fn ring(handle: &Handle) -> Ring<'static> {
    let figures = &handle.stats;
    let pair = |a: &Cell<u64>, b: &Cell<u64>| Pair(a.get(), b.get());
    Ring {
        pool: "td-xenio-default",
        domid: handle.guest.0,
        devid: handle.device,
        queue: handle.queue,
        pages: handle.pages,
        reqs: pair(&figures.requests, &figures.answers),
        kicks: pair(&figures.kicks_in, &figures.kicks_out),
        errors: RingErrors {
            msg: figures.rejected.get(),
            map: figures.grants_refused.get(),
            vbd: figures.no_memory.get(),
            img: figures.failed.get(),
        },
    }
}
