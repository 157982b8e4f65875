//! The hypervisor as one domain sees it, and safe words over it.
//!
//! # Layout
//! - [`port`]: the trait [`port::Xen`], the one cut between product code and a hypervisor
//! - [`page`]: pages that peers may write, and runs of our own
#![no_std]

extern crate alloc;

pub mod page;
pub mod port;
