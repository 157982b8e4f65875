//! The control plane: tapdisk's messages over vchan channels.
//!
//! A channel is a path in xenstore that one domain may open, and a dialect. Several clients may be connected to one
//! channel; each has a task of its own, so that none waits for another but at a minor that both speak of
//! ([`protocol::session`]). A client may ask as often as it likes; requests are answered one after the other.
//!
//! # Layout
//! - [`commands`]: one request to its answer
//! - [`rings`]: rings that messages connect
//! - [`channel`]: which channels there are, and the bytes on one connection
//! - [`figures`]: what STATS tells
//! - [`events`]: failures of stores, told unasked

pub mod channel;
pub mod commands;
pub mod events;
pub mod figures;
pub mod rings;

pub use channel::{Channel, Speaks, run};
