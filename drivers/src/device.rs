//! Devices: the only movers of bytes.

pub mod blkfront;
mod link;
pub mod lowers;
pub mod ram;
