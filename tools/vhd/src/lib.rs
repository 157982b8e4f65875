//! VHD images on a host: made, checked and mended by the engine that the storage domain serves them with.
//!
//! # Layout
//! - [`arguments`]: the command line; [`commands`]: what each command does
//! - [`check`](mod@check): whether an image keeps the rules, read a second time and not by the engine
//! - [`disk`]: images and chains as disks; [`family`]: an image's parent; [`folder`]: where a chain lies
//! - [`layout`]: where blocks are, for commands that move them; [`structures`]: footers and headers written
//! - [`medium`]: what commands work on; [`store`]: a file or a block device; [`users`]: who else writes it
//! - [`domains`]: what storage domains have open, and a snapshot under one
//! - [`progress`]: how far long work is; [`failure`]: why something could not be done
#![forbid(unsafe_code)]

pub mod arguments;
pub mod check;
pub mod commands;
pub mod disk;
pub mod domains;
pub mod failure;
pub mod family;
pub mod folder;
pub mod layout;
pub mod medium;
pub mod progress;
pub mod store;
pub mod structures;
pub mod users;
