//! The tapdisk message protocol: what a toolstack says to drive disks, and what it hears.
//!
//! Every message is one C structure of a fixed size, in the byte order of x86-64, without a length, a magic number or
//! a version. Two dialects of it live: the RFC's, as blktap3 was proposed to xen-devel in 2012, and that of blktap
//! itself today. They differ in size and in six ids, and nothing in the bytes tells them apart: the channel decides
//! ([`Dialect`]). One enum speaks both: a [`Message`] is decoded from bytes, borrows its texts from them, and encodes
//! into bytes whose padding is zero.
//!
//! - `tapdisk/kind.rs`: the ids and names of messages
//! - `tapdisk/flags.rs`: the bits of OPEN and RESUME
//! - `tapdisk/text.rs`: texts that fit their fields
//! - `tapdisk/body.rs`: what messages carry
//! - `tapdisk/codec.rs`: bytes to messages and back
//! - `tapdisk/assembler.rs`: a stream's bytes to whole requests
//! - `tapdisk/malformed.rs`: what can be wrong with bytes
//! - [`stats`]: the text that STATS answers

mod assembler;
mod body;
mod codec;
mod flags;
mod kind;
mod malformed;
pub mod stats;
mod text;

pub use assembler::{Arrived, Assembler, KEY_BYTES_MAX, REQUEST_BYTES_MAX, Request};
pub use body::{Blkif, Body, Grefs, Image, Listed, Message, Minors, Params, Poll, Protocol, Response, Vdev, XcpNg};
pub use flags::Flags;
pub use kind::Kind;
pub use malformed::{Fault, Field, Malformed, Rejected};
pub use text::{Reason, TEXT_BYTES, Text};

/// Bytes of the larger dialect's message.
pub const MESSAGE_BYTES_MAX: usize = 544;
/// Minors in one LIST_MINORS_RSP: `TAPDISK_MESSAGE_MAX_MINORS`.
pub const MINORS_MAX: usize = 63;
/// The cookie that asks LIST and STATS for all VBDs.
pub const EVERY_MINOR: u16 = 0xffff;

/// Which of the two layouts a channel speaks. It is the channel's property: the bytes do not say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// The RFC of 2012: 536 bytes; DISK_INFO is 24, XENBLKIF_CONNECT 26, XENBLKIF_DISCONNECT 28.
    Rfc,
    /// blktap since its version 3: 544 bytes; XENBLKIF_CONNECT is 24, XENBLKIF_DISCONNECT 26, DISK_INFO 28. OPEN and
    /// RESUME may be followed by more bytes.
    Blktap,
}

impl Dialect {
    /// Both.
    pub const ALL: [Dialect; 2] = [Dialect::Rfc, Dialect::Blktap];

    /// `sizeof(tapdisk_message_t)` on x86-64.
    pub const fn message_bytes(self) -> usize {
        match self {
            Dialect::Rfc => 536,
            Dialect::Blktap => MESSAGE_BYTES_MAX,
        }
    }

    /// For texts.
    pub const fn name(self) -> &'static str {
        match self {
            Dialect::Rfc => "RFC",
            Dialect::Blktap => "blktap",
        }
    }
}
