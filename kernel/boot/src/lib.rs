//! The bootable image: the domain from its first instruction to `kernel::run`, and the trait `Xen` on real Xen.
//!
//! This library holds what needs no hardware to be right, without `unsafe`, and its tests; the binary (`main.rs`)
//! holds the instructions, hypercalls and raw memory around it.
//!
//! # Layout
//! - [`map`]: the memory map, and what of it is free
//! - [`tables`]: page tables
//! - [`shared`]: the page shared with Xen: pending events
//! - [`pvclock`]: the clock in it
//! - [`grant`]: one entry of the grant table
//! - [`free`]: numbers to give out and take back
//! - [`ring`]: the console ring
//! - [`options`]: the image's own words on the command line
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod free;
pub mod grant;
pub mod map;
pub mod options;
pub mod pvclock;
pub mod ring;
pub mod shared;
pub mod tables;
