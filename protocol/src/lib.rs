//! Xen's block, store and bus protocols as pure code: bytes in, verdicts out.
//!
//! No I/O, no clock, no allocation, no unsafe. What a peer writes is an allegation until one of these modules has
//! parsed it into a type that cannot hold a wrong value.
//!
//! # Layout
//! - [`mem`]: memory that a peer writes while we look at it
//! - [`ring`]: the two halves of a Xen ring, with private indices
//! - [`blkif`]: block requests and responses, and the names of the feature keys
//! - [`xenbus`]: the backend's and the frontend's handshake as step functions
//! - [`xenstore`]: the store's wire format and its ring page
//! - [`vchan`]: byte streams between two domains
//! - [`gpt`]: GUID partition tables
//! - [`vhd`]: VHD images
//! - [`lvm`]: LVM2's labels, metadata areas and their text
//! - [`number`]: decimal numbers of store nodes
//! - [`tapdisk`]: the toolstack's messages in both dialects, and a stream's bytes to whole requests
//! - [`session`]: which of these messages is legal in which state of a VBD
//! - [`errno`]: the error numbers in them
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod blkif;
mod bytes;
pub mod errno;
pub mod gpt;
pub mod lvm;
pub mod mem;
pub mod number;
pub mod ring;
pub mod session;
pub mod tapdisk;
pub mod vchan;
pub mod vhd;
pub mod xenbus;
pub mod xenstore;
