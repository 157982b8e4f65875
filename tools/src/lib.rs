//! The host side of tapdom: today the test boots, which start real Xen under QEMU and judge what the guests report.
//!
//! # Layout
//!
//! - `workload`: what the benchmark measures
//! - `footprint`: how long things take to be ready and in what memory: what is measured, and the goals
//! - `neighbours`: two guests on one backend: what is measured
//! - `wall`: backends beside each other by the clock on the wall: what is measured
//! - `mutants`: bugs in a copy of the tree, which the tests have to notice
//! - `report`: the lines that dom0 says to the host, and the job that the host gives to dom0
//! - `boots`: runs on the developer's machine: fetches Debian's parts, builds images, runs QEMU, judges
//! - `agent`: runs inside the boot, as init of dom0 and of every Linux guest
//!
//! The programs are in `src/bin`: `boots`, `agent`, and `mutants`, which puts bugs into copies of the tree.
#![forbid(unsafe_code)]

pub mod agent;
pub mod boots;
pub mod footprint;
pub mod mutants;
pub mod neighbours;
pub mod report;
pub mod wall;
pub mod workload;
