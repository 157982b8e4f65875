//! Disks: what a toolstack's name opens, and how its sectors are read and written.
//!
//! # Layout
//! - [`disk`]: the words: what a disk is, what may be asked of it, how it says no
//! - [`target`]: the names of disks, and the errors of opening one
//! - [`stack`]: a name becomes an opened disk; the only place that knows which devices there are
//! - [`partition`]: GPT partitions as runs of sectors; [`volume`]: runs of sectors as a device
//! - [`payload`]: a payload cut where what it is for is cut
//! - [`format`]: images: where on a store the sectors of a disk are
//! - [`claims`]: which images are open
//! - [`device`]: a disk in our memory; a lower disk behind a ring of our own
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod claims;
pub mod device;
pub mod disk;
pub mod format;
pub mod partition;
pub mod payload;
pub mod stack;
pub mod target;
pub mod volume;
