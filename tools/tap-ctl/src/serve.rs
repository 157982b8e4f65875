//! tapdisk's sockets for storage domains: `ctlN` in blktap's folder leads to the channel of domain N.
//!
//! # Layout
//! - `relay`: one client's request and its answer
//! - `daemon`: which sockets there are

pub mod daemon;
pub mod relay;
