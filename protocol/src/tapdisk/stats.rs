//! What STATS answers: tapdisk's JSON, field for field, and behind it what it does not tell.
//!
//! Everything of ours is in one object, `tapdom`, so that whoever reads tapdisk's fields finds no others among them. All
//! numbers are integers. The text goes into any [`Write`]; nothing is allocated.
//!
//! Two of tapdisk's fields are told otherwise. With several rings it repeats `xenbus` in one object, where a reader keeps
//! one of them at best; here it is the first ring's, and all are in `tapdom.rings`. Its `name` is not escaped; here it is
//! a JSON string whatever is in it.

use core::fmt::{self, Display, Write};

use crate::session::Bits;

/// A pair of counts: read and written, in and out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pair(pub u64, pub u64);

/// All there is to tell of one VBD.
#[derive(Clone, Copy, Debug)]
pub struct Vbd<'a> {
    /// Its image, `TYPE:SOURCE`; empty if it has none.
    pub name: &'a str,
    /// Its number.
    pub minor: u16,
    /// Where it stands.
    pub state: Bits,
    /// Sectors of 512 bytes that guests read and wrote.
    pub secs: Pair,
    /// The layers, the leaf first; none while it is paused.
    pub images: &'a [Image<'a>],
    /// The rings that are served.
    pub rings: &'a [Ring<'a>],
    /// Sectors that went to the second image when the first was full.
    pub redirected_secs: u64,
    /// The second image was given up.
    pub mirror_failed: bool,
    /// Requests in flight.
    pub in_flight: u64,
    /// A layer caches what is read.
    pub read_caching: bool,
    /// How long requests took.
    pub operations: Operations<'a>,
    /// Requests that failed, by cause.
    pub errors: &'a [(&'a str, u64)],
    /// What became of guests' pages.
    pub grants: Grants,
    /// Bytes of memory that its image is: of a disk in memory.
    pub memory_bytes: u64,
    /// Bytes of the domain's memory that are in use, by all VBDs and what they share, and that there are.
    pub domain_memory_bytes: Pair,
}

/// One layer.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// What it is on: a name's part behind the type.
    pub name: &'a str,
    /// Sectors that it read and wrote.
    pub hits: Pair,
    /// Of those, sectors that failed.
    pub fail: Pair,
    /// What serves it.
    pub driver: Driver<'a>,
}

/// A driver by tapdisk's number and name, and its queue if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Driver<'a> {
    /// `DISK_TYPE_*`.
    pub number: u32,
    /// As in `TYPE:SOURCE`.
    pub name: &'a str,
    /// Requests that it may have under way, and those it has.
    pub queue: Option<Queue>,
}

impl Driver<'static> {
    /// A raw disk.
    pub const AIO: Driver<'static> = Driver { number: 0, name: "aio", queue: None };
    /// A VHD.
    pub const VHD: Driver<'static> = Driver { number: 4, name: "vhd", queue: None };
    /// A disk in memory.
    pub const RAM: Driver<'static> = Driver { number: 5, name: "ram", queue: None };
    /// A read cache.
    pub const BLOCK_CACHE: Driver<'static> = Driver { number: 7, name: "bc", queue: None };
    /// A log of changed blocks.
    pub const LOG: Driver<'static> = Driver { number: 9, name: "log", queue: None };
    /// A leaf that keeps what is read from its parent.
    pub const LCACHE: Driver<'static> = Driver { number: 11, name: "lc", queue: None };
    /// A network block device.
    pub const NBD: Driver<'static> = Driver { number: 15, name: "nbd", queue: None };
}

/// A driver's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Requests that fit.
    pub max: u64,
    /// Requests that are in it.
    pub pending: u64,
}

/// One ring.
#[derive(Clone, Copy, Debug)]
pub struct Ring<'a> {
    /// The name for memory that came with XENBLKIF_CONNECT, or tapdisk's default.
    pub pool: &'a str,
    /// Whose it is.
    pub domid: u16,
    /// The guest's virtual device.
    pub devid: u32,
    /// Which of the device's queues.
    pub queue: u16,
    /// Its pages.
    pub pages: u32,
    /// Requests taken, responses put.
    pub reqs: Pair,
    /// Events heard, events sent.
    pub kicks: Pair,
    /// What went wrong, by tapdisk's causes.
    pub errors: RingErrors,
}

/// tapdisk's causes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingErrors {
    /// Requests that broke a rule.
    pub msg: u64,
    /// Pages that could not be copied or mapped.
    pub map: u64,
    /// Requests that the VBD did not take.
    pub vbd: u64,
    /// Requests that an image failed.
    pub img: u64,
}

/// What became of guests' pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Copied from or to.
    pub copied: u64,
    /// That Xen refused.
    pub refused: u64,
    /// Mapped now.
    pub mapped: u64,
}

/// How long the requests of each operation took.
#[derive(Clone, Copy, Debug)]
pub struct Operations<'a> {
    /// Reads.
    pub read: &'a Latency,
    /// Writes.
    pub write: &'a Latency,
    /// Flushes, and barriers.
    pub flush: &'a Latency,
    /// Discards.
    pub discard: &'a Latency,
}

/// Buckets of a histogram: the last one has all from 4.2 s on.
pub const BUCKETS: usize = 24;

/// How long requests took, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    total_us: u64,
    max_us: u64,
    /// Bucket 0 counts requests of less than 1 us, bucket N those of 2^(N-1) up to, not including, 2^N us.
    buckets: [u64; BUCKETS],
}

impl Latency {
    /// No request yet.
    pub const fn new() -> Latency {
        Latency { total_us: 0, max_us: 0, buckets: [0; BUCKETS] }
    }

    /// Counts one request.
    pub fn note(&mut self, us: u64) {
        let bucket = (u64::BITS - us.leading_zeros()) as usize;
        let bucket = &mut self.buckets[bucket.min(BUCKETS - 1)];
        *bucket = bucket.saturating_add(1);
        self.total_us = self.total_us.saturating_add(us);
        self.max_us = self.max_us.max(us);
    }

    /// Counts all that another counted.
    pub fn add(&mut self, other: &Latency) {
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(here, there)| *here = here.saturating_add(*there));
        self.total_us = self.total_us.saturating_add(other.total_us);
        self.max_us = self.max_us.max(other.max_us);
    }

    /// Requests counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, bucket| sum.saturating_add(*bucket))
    }

    fn write(&self, name: &str, json: &mut Json<'_>) -> fmt::Result {
        json.open(name, '{')?;
        json.number("count", self.count())?;
        json.number("total_us", self.total_us)?;
        json.number("max_us", self.max_us)?;
        json.numbers("log2_us", &self.buckets)?;
        json.close('}')
    }
}

impl Display for Vbd<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut json = Json { to: f, comma: false };
        json.begin('{')?;
        json.text("name", self.name)?;
        json.pair("secs", self.secs)?;
        json.open("images", '[')?;
        for image in self.images {
            image.write(&mut json)?;
        }
        json.close(']')?;
        if let Some(ring) = self.rings.first() {
            json.open("xenbus", '{')?;
            ring.write(&mut json)?;
            json.close('}')?;
        }
        json.number("FIXME_enospc_redirect_count", self.redirected_secs)?;
        json.number("nbd_mirror_failed", self.mirror_failed.into())?;
        json.number("reqs_outstanding", self.in_flight)?;
        json.text("read_caching", if self.read_caching { "true" } else { "false" })?;
        json.open("tapdom", '{')?;
        self.write_ours(&mut json)?;
        json.close('}')?;
        json.close('}')
    }
}

impl Vbd<'_> {
    fn write_ours(&self, json: &mut Json<'_>) -> fmt::Result {
        json.number("minor", self.minor.into())?;
        json.number("state", self.state.bits().into())?;
        json.open("latency", '{')?;
        self.operations.read.write("read", json)?;
        self.operations.write.write("write", json)?;
        self.operations.flush.write("flush", json)?;
        self.operations.discard.write("discard", json)?;
        json.close('}')?;
        json.open("errors", '{')?;
        for (cause, count) in self.errors {
            json.number(cause, *count)?;
        }
        json.close('}')?;
        json.open("rings", '[')?;
        for ring in self.rings {
            json.begin('{')?;
            ring.write(json)?;
            json.number("queue", ring.queue.into())?;
            json.number("pages", ring.pages.into())?;
            json.close('}')?;
        }
        json.close(']')?;
        json.open("grants", '{')?;
        json.number("copied", self.grants.copied)?;
        json.number("refused", self.grants.refused)?;
        json.number("mapped", self.grants.mapped)?;
        json.close('}')?;
        json.number("memory_bytes", self.memory_bytes)?;
        json.pair("domain_memory_bytes", self.domain_memory_bytes)
    }
}

impl Image<'_> {
    fn write(&self, json: &mut Json<'_>) -> fmt::Result {
        json.begin('{')?;
        json.text("name", self.name)?;
        json.pair("hits", self.hits)?;
        json.pair("fail", self.fail)?;
        json.open("driver", '{')?;
        json.number("type", self.driver.number.into())?;
        json.text("name", self.driver.name)?;
        match self.driver.queue {
            None => json.null("status")?,
            Some(queue) => {
                json.open("status", '{')?;
                json.open("reqs", '{')?;
                json.number("max", queue.max)?;
                json.number("pending", queue.pending)?;
                json.close('}')?;
                json.close('}')?;
            }
        }
        json.close('}')?;
        json.close('}')
    }
}

impl Ring<'_> {
    /// tapdisk's fields of it.
    fn write(&self, json: &mut Json<'_>) -> fmt::Result {
        json.text("pool", self.pool)?;
        json.number("domid", self.domid.into())?;
        json.number("devid", self.devid.into())?;
        json.pair("reqs", self.reqs)?;
        json.pair("kicks", self.kicks)?;
        json.open("errors", '{')?;
        json.number("msg", self.errors.msg)?;
        json.number("map", self.errors.map)?;
        json.number("vbd", self.errors.vbd)?;
        json.number("img", self.errors.img)?;
        json.close('}')
    }
}

/// Writes JSON as tapdisk spaces it.
struct Json<'w> {
    to: &'w mut dyn Write,
    /// A value was written before, on this level.
    comma: bool,
}

impl Json<'_> {
    fn comma(&mut self) -> fmt::Result {
        if core::mem::replace(&mut self.comma, true) { self.to.write_str(", ") } else { Ok(()) }
    }

    /// A bracket where a value is due.
    fn begin(&mut self, bracket: char) -> fmt::Result {
        self.comma()?;
        self.comma = false;
        write!(self.to, "{bracket} ")
    }

    fn close(&mut self, bracket: char) -> fmt::Result {
        self.comma = true;
        write!(self.to, " {bracket}")
    }

    fn key(&mut self, key: &str) -> fmt::Result {
        self.comma()?;
        self.string(key)?;
        self.to.write_str(": ")
    }

    /// A bracket with a key before it.
    fn open(&mut self, key: &str, bracket: char) -> fmt::Result {
        self.key(key)?;
        self.comma = false;
        write!(self.to, "{bracket} ")
    }

    fn number(&mut self, key: &str, number: u64) -> fmt::Result {
        self.key(key)?;
        write!(self.to, "{number}")
    }

    fn numbers(&mut self, key: &str, numbers: &[u64]) -> fmt::Result {
        self.open(key, '[')?;
        for number in numbers {
            self.comma()?;
            write!(self.to, "{number}")?;
        }
        self.close(']')
    }

    fn pair(&mut self, key: &str, pair: Pair) -> fmt::Result {
        self.numbers(key, &[pair.0, pair.1])
    }

    fn null(&mut self, key: &str) -> fmt::Result {
        self.key(key)?;
        self.to.write_str("null")
    }

    fn text(&mut self, key: &str, text: &str) -> fmt::Result {
        self.key(key)?;
        self.string(text)
    }

    fn string(&mut self, text: &str) -> fmt::Result {
        self.to.write_char('"')?;
        for letter in text.chars() {
            match letter {
                '"' | '\\' => write!(self.to, "\\{letter}")?,
                '\0'..='\x1f' => write!(self.to, "\\u{:04x}", u32::from(letter))?,
                _ => self.to.write_char(letter)?,
            }
        }
        self.to.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use std::string::{String, ToString};

    use serde_json::{Value, json};

    use super::*;

    const LATENCY: Latency = Latency::new();
    const OPERATIONS: Operations<'static> =
        Operations { read: &LATENCY, write: &LATENCY, flush: &LATENCY, discard: &LATENCY };

    fn vbd() -> Vbd<'static> {
        Vbd {
            name: "vhd:/dev/vg/lv",
            minor: 3,
            state: Bits::NONE,
            secs: Pair(1088, 16),
            images: &[],
            rings: &[],
            redirected_secs: 0,
            mirror_failed: false,
            in_flight: 0,
            read_caching: false,
            operations: OPERATIONS,
            errors: &[],
            grants: Grants { copied: 0, refused: 0, mapped: 0 },
            memory_bytes: 0,
            domain_memory_bytes: Pair(0, 0),
        }
    }

    fn ring(devid: u32, queue: u16) -> Ring<'static> {
        let errors = RingErrors { msg: 1, map: 2, vbd: 3, img: 4 };
        let (reqs, kicks) = (Pair(65, 64), Pair(66, 60));
        Ring { pool: "td-xenio-default", domid: 4, devid, queue, pages: 8, reqs, kicks, errors }
    }

    fn images() -> [Image<'static>; 2] {
        let queue = Some(Queue { max: 352, pending: 2 });
        [
            Image { name: "/dev/vg/lv", hits: Pair(1088, 7), fail: Pair(5, 6), driver: Driver::VHD },
            Image { name: "/dev/xvda", hits: Pair(8, 0), fail: Pair(0, 0), driver: Driver { queue, ..Driver::AIO } },
        ]
    }

    #[test]
    fn tapdisks_own_text() {
        // Fields, their order and the spacing as tapdisk 4.0.8 prints them, up to what is only ours.
        let theirs = "{ \"name\": \"vhd:/dev/vg/lv\", \"secs\": [ 1088, 16 ], \"images\": [ { \"name\": \"/dev/vg/lv\", \
            \"hits\": [ 1088, 7 ], \"fail\": [ 5, 6 ], \"driver\": { \"type\": 4, \"name\": \"vhd\", \"status\": null } }, \
            { \"name\": \"/dev/xvda\", \"hits\": [ 8, 0 ], \"fail\": [ 0, 0 ], \"driver\": { \"type\": 0, \"name\": \"aio\", \
            \"status\": { \"reqs\": { \"max\": 352, \"pending\": 2 } } } } ], \"xenbus\": { \"pool\": \"td-xenio-default\", \
            \"domid\": 4, \"devid\": 51728, \"reqs\": [ 65, 64 ], \"kicks\": [ 66, 60 ], \"errors\": { \"msg\": 1, \"map\": 2, \
            \"vbd\": 3, \"img\": 4 } }, \"FIXME_enospc_redirect_count\": 0, \"nbd_mirror_failed\": 0, \"reqs_outstanding\": 0, \
            \"read_caching\": \"false\", \"tapdom\": { ";
        let (images, rings) = (images(), [ring(51728, 0)]);
        let text = Vbd { images: &images, rings: &rings, ..vbd() }.to_string();
        assert_eq!(text.get(..theirs.len()), Some(theirs));
    }

    #[test]
    fn every_field_of_ours() {
        let mut latency = [const { Latency::new() }; 4];
        for (number, latency) in latency.iter_mut().enumerate() {
            latency.note(1 << number);
        }
        latency[0].note(100);
        let [read, write, flush, discard] = &latency;
        let rings = [ring(768, 0), ring(768, 1)];
        let vbd = Vbd {
            state: Bits::PAUSED | Bits::CLOSED,
            rings: &rings,
            redirected_secs: 5,
            mirror_failed: true,
            in_flight: 6,
            read_caching: true,
            operations: Operations { read, write, flush, discard },
            errors: &[("no space", 7), ("medium", 8)],
            grants: Grants { copied: 9, refused: 10, mapped: 11 },
            memory_bytes: u64::MAX,
            domain_memory_bytes: Pair(12, 13),
            ..vbd()
        };
        let value: Value = serde_json::from_str(&vbd.to_string()).unwrap();
        assert_eq!(value["FIXME_enospc_redirect_count"], 5);
        assert_eq!(value["nbd_mirror_failed"], 1);
        assert_eq!(value["reqs_outstanding"], 6);
        assert_eq!(value["read_caching"], "true");
        assert_eq!(value["images"], json!([]));
        let histogram = |bucket: &[usize]| {
            let mut all = [0; BUCKETS];
            bucket.iter().for_each(|bucket| all[*bucket] += 1);
            all
        };
        let one = |us: u64, bucket: usize| json!({ "count": 1, "total_us": us, "max_us": us, "log2_us": histogram(&[bucket]) });
        let errors = json!({ "msg": 1, "map": 2, "vbd": 3, "img": 4 });
        let ring = |queue| {
            json!({
                "pool": "td-xenio-default", "domid": 4, "devid": 768, "reqs": [65, 64], "kicks": [66, 60],
                "errors": errors, "queue": queue, "pages": 8,
            })
        };
        let ours = json!({
            "minor": 3,
            "state": 0x22,
            "latency": {
                "read": { "count": 2, "total_us": 101, "max_us": 100, "log2_us": histogram(&[1, 7]) },
                "write": one(2, 2), "flush": one(4, 3), "discard": one(8, 4),
            },
            "errors": { "no space": 7, "medium": 8 },
            "rings": [ring(0), ring(1)],
            "grants": { "copied": 9, "refused": 10, "mapped": 11 },
            "memory_bytes": u64::MAX,
            "domain_memory_bytes": [12, 13],
        });
        assert_eq!(value["tapdom"], ours);
        assert!(value["xenbus"]["queue"].is_null(), "a reader of tapdisk's fields finds no others");
    }

    #[test]
    fn buckets() {
        let mut expected = [0; BUCKETS];
        let mut latency = Latency::default();
        for (us, bucket) in [
            (0, 0),
            (1, 1),
            (2, 2),
            (3, 2),
            (4, 3),
            (1023, 10),
            (1024, 11),
            (4_194_303, 22),
            (4_194_304, 23),
            (1 << 40, 23),
            (u64::MAX, 23),
        ] {
            latency.note(us);
            expected[bucket] += 1;
            assert_eq!(latency.buckets, expected, "{us}");
        }
        assert_eq!((latency.count(), latency.max_us, latency.total_us), (11, u64::MAX, u64::MAX));
        latency.note(1);
        assert_eq!((latency.max_us, latency.total_us), (u64::MAX, u64::MAX));
    }

    #[test]
    fn any_name_is_a_string() {
        let name: String = (0..0x300).filter_map(char::from_u32).collect();
        let text = Vbd { name: &name, ..vbd() }.to_string();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["name"], name);
        assert!(!text.contains('\n'), "one line");
    }

    #[test]
    fn drivers_have_tapdisks_numbers() {
        // disktypes.h
        let drivers = [
            (Driver::AIO, 0, "aio"),
            (Driver::VHD, 4, "vhd"),
            (Driver::RAM, 5, "ram"),
            (Driver::BLOCK_CACHE, 7, "bc"),
            (Driver::LOG, 9, "log"),
            (Driver::LCACHE, 11, "lc"),
            (Driver::NBD, 15, "nbd"),
        ];
        for (driver, number, name) in drivers {
            assert_eq!(driver, Driver { number, name, queue: None });
        }
    }
}
