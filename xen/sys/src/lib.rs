//! Xen's binary interface, as far as this domain uses it: numbers and structures, no code.
//!
//! Names are those of Xen's public headers (MIT); each module names its header. `tests/layout.rs` compares every
//! number, size and offset with the headers of Debian's `libxen-dev`.
//!
//! # Layout
//! - [`xen`]: hypercall numbers, domain ids, the shared page (`xen.h`)
//! - [`memory`], [`grant_table`], [`event_channel`], [`sched`], [`vcpu`]: one module per hypercall
//! - [`hvm`]: parameters of a domain with hardware-assisted memory (`hvm/hvm_op.h`, `hvm/params.h`)
//! - [`start_info`], [`elfnote`], [`cpuid`]: how we are started, and how we find out by whom
//! - [`console`]: the console ring (`io/console.h`)
#![no_std]
#![forbid(unsafe_code)]
#![allow(non_camel_case_types, non_upper_case_globals)]

pub mod console;
pub mod cpuid;
pub mod elfnote;
pub mod event_channel;
pub mod grant_table;
pub mod hvm;
pub mod memory;
pub mod sched;
pub mod start_info;
pub mod vcpu;
pub mod xen;
