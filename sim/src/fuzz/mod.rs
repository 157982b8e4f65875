//! Targets of a fuzzer: each takes bytes and plays a peer with them; what no peer may ever bring about is a panic.
//!
//! `fuzz/` gives them to cargo-fuzz, one line each; `tests/fuzz_replay.rs` runs the committed corpus and what a fixed
//! seed makes of it, so that they never rot. The bytes are choices ([`Random::of`](crate::random::Random::of)) or the
//! wire's own bytes, and an input that keeps the rules is checked for what it means, not only for doing no harm.
//!
//! - `fuzz/ring.rs`: a frontend's ring and requests; a lower backend's answers
//! - `fuzz/blkif.rs`: one slot, read by the product and by the simulator
//! - `fuzz/handshake.rs`: states of the other side of a device, and of the toolstack
//! - `fuzz/store.rs`: a xenstored
//! - `fuzz/tables.rs`: a disk with a partition table
//! - `fuzz/image.rs`: a chain of VHDs
//! - `fuzz/volumes.rs`: disks with a volume group
//! - `fuzz/names.rs`: a toolstack's texts
//! - `fuzz/control.rs`: a control channel's bytes
//! - `fuzz/vchan.rs`: the other side of a vchan's page
//! - `fuzz/domain.rs`: a guest and a toolstack against the whole product

mod blkif;
mod control;
mod domain;
mod handshake;
mod image;
mod names;
mod ring;
mod store;
mod tables;
mod vchan;
mod volumes;

pub use blkif::blkif;
pub use control::control;
pub use domain::domain;
pub use handshake::{handshake, handshake_lower};
pub use image::image;
pub use names::names;
pub use ring::{answers, requests};
pub use store::store;
pub use tables::tables;
pub use vchan::vchan;
pub use volumes::volumes;

/// One target.
pub struct Target {
    /// Its name, in `fuzz/` and as a directory of the corpus.
    pub name: &'static str,
    /// What runs.
    pub run: fn(&[u8]),
    /// Inputs of the fixed-seed replay beside the corpus, and the longest of them in bytes.
    pub replay: (u32, usize),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "requests", run: requests, replay: (4000, 512) },
    Target { name: "answers", run: answers, replay: (4000, 512) },
    Target { name: "blkif", run: blkif, replay: (20000, 160) },
    Target { name: "handshake", run: handshake, replay: (20000, 64) },
    Target { name: "handshake_lower", run: handshake_lower, replay: (20000, 64) },
    Target { name: "store", run: store, replay: (2000, 512) },
    Target { name: "tables", run: tables, replay: (2000, 1024) },
    Target { name: "image", run: image, replay: (4000, 256) },
    Target { name: "names", run: names, replay: (20000, 96) },
    Target { name: "control", run: control, replay: (1500, 256) },
    Target { name: "vchan", run: vchan, replay: (4000, 256) },
    Target { name: "volumes", run: volumes, replay: (4000, 256) },
    Target { name: "domain", run: domain, replay: (60, 256) },
];
