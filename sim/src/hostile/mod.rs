//! A guest that breaks every rule it can: in its requests, in its ring, in its grants, in its keys and states.
//!
//! It is nearly valid most of the time, so that it gets deep; it knows what must come of everything it does, and is the
//! judge of that. What it does is listed in docs/hostile.md, after the history of Xen's own advisories.
//!
//! # Layout
//! - [`rows`]: what it does, by name
//! - [`pages`]: its memory and grants, and whoever writes where nobody asked to
//! - [`ring`]: a ring with raw access to it
//! - [`judge`]: which answers a slot's bytes may have
//! - [`book`]: requests in flight, each to be answered once
//! - [`asks`]: its requests
//! - [`keys`]: its offers
//! - [`keeps`]: pages that stay mapped
//! - [`guest`]: the guest itself; `deeds` and `steps`: what it does of its own

pub mod asks;
pub mod book;
mod deeds;
pub mod guest;
pub mod judge;
pub mod keeps;
pub mod keys;
pub mod pages;
pub mod ring;
pub mod rows;
mod steps;
