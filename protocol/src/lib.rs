//! Xen's block, store and bus protocols as pure code: bytes in, verdicts out.
#![no_std]
#![forbid(unsafe_code)]

pub mod mem;
