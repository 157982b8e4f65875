//! libxenvchan, read a second time (`io/libxenvchan.h` and what version 4.17 of the library does with it).
//!
//! The product reads the page in `protocol::vchan`; nothing here comes from there. As the library does, this side
//! trusts the page: its own indices live there and nowhere else.
//!
//! - [`page`]: the page's fields, rings in it and beside it
//! - [`client`]: the client's side, as a program in dom0 has it
//! - [`caller`]: such a program: honest, clumsy or hostile, connection after connection

pub mod caller;
pub mod client;
pub mod page;
