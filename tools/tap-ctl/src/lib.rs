//! tap-ctl for storage domains: blktap's commands, over a vchan instead of a socket.
//!
//! What is said and what is printed does not depend on how a server is reached, so all of it runs against a script in
//! tests. Only [`dom0`] needs Xen.
//!
//! # Layout
//! - [`arguments`]: the command line
//! - [`commands`]: what each command does; [`trace`] is the one that goes on
//! - [`conversation`]: requests and answers as typed calls, and what is not believed of an answer
//! - [`line`](mod@line): ways to a server; [`host`]: who there is to be reached; [`place`]: which one is meant
//! - [`show`]: what is printed; [`failure`]: what went wrong, as a number and words
//! - [`markers`]: minors that are set apart
//! - [`serve`]: tapdisk's sockets for storage domains
//! - [`xenio`]: the handshake of guests' disks
//! - [`dom0`]: xenstore, grants, events, vchan

pub mod arguments;
pub mod commands;
pub mod conversation;
pub mod dom0;
pub mod failure;
pub mod host;
pub mod line;
pub mod markers;
pub mod place;
#[cfg(test)]
mod scratch;
#[cfg(test)]
mod scripted;
pub mod serve;
pub mod show;
pub mod trace;
pub mod xenio;
