//! The hypervisor as one domain sees it, and safe words over it.
//!
//! # Layout
//! - [`port`]: the trait [`port::Xen`], the one cut between product code and a hypervisor
//! - [`page`]: pages that peers may write, and runs of our own
//! - [`memory`]: our own, and who may count on some of it
//! - [`kept`]: a peer's pages that stay mapped
//! - [`look`]: when to look at a ring instead of sleeping
//! - [`across`]: what one vCPU tells another
//! - [`schedule`]: where a simulator lets peers run
//! - [`vchan`]: byte streams that other domains open
#![no_std]

extern crate alloc;

pub mod across;
mod atomic;
pub mod domain;
pub mod event;
pub mod exec;
pub mod grant;
pub mod kept;
pub mod limits;
pub mod look;
pub mod memory;
pub mod page;
pub mod patience;
pub mod pool;
pub mod port;
pub mod schedule;
pub mod store;
pub mod sync;
pub mod trace;
pub mod vchan;
