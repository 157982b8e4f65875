//! A whole Xen in memory, in which the product runs unchanged and every choice comes from one seed.
//!
//! The fake is stricter than the real thing: what Xen would forgive or punish much later (a mapping that is dropped, a
//! notification through a closed port, a copy over a page's end) is a panic of the test here, with the reason.
//!
//! # Layout
//! - [`random`]: the only source of choice
//! - [`world`], [`event`], [`grant`], [`fault`]: the hypervisor: domains, ports, grant tables, refusals
//! - [`handle`]: [`handle::SimXen`], the world as one domain sees it: the trait `xen::port::Xen`
//! - [`promise`]: what a backend may do with the pages of guests that keep the rules
//! - [`store`]: xenstored: tree, watches, transactions, quotas, and its ring
//! - [`toolstack`]: dom0's libxl: attaches, detaches, destroys
//! - [`blkif`]: the block protocol's layouts, read from `io/blkif.h` a second time, apart from the product's reading
//! - [`frontend`]: guests; [`blkback`]: the backend below the product, [`lie`]: how it lies; [`disk`]: what both believe about bytes
//! - [`gpt`]: partition tables, [`lvm`]: physical volumes, to be found by the product
//! - [`hostile`]: guests that break every rule
//! - [`control`]: a client of tapdisk's messages
//! - [`vchan`]: libxenvchan's client, read a second time too
//! - [`conformance`]: what every disk must do
//! - [`image`]: images without a world around them; [`vhd`]: VHD read a second time
//! - [`crash`]: power cuts at every write and flush; [`ledger`]: what a guest may count on after one
//! - [`journal`]: what the product logged, for the text of a failure
//! - [`run`]: the scheduler that plays them against each other; [`schedule`]: peers within the product's turns
//! - [`memory`]: what the product holds of its heap; [`delay`]: how long guests wait
//! - [`stage`]: a run with the product booted in it
//! - [`worlds`]: whole worlds of a seed: honest, clumsy, hostile
//! - [`fuzz`]: targets of a fuzzer: peers that are bytes
//! - [`marks`]: what a run has met, to be told apart from what it only might have
#![forbid(unsafe_code)]

pub mod blkback;
pub mod blkif;
pub mod conformance;
pub mod control;
pub mod crash;
pub mod delay;
pub mod disk;
pub mod event;
pub mod fault;
pub mod frontend;
pub mod fuzz;
pub mod gpt;
pub mod grant;
pub mod handle;
pub mod hostile;
pub mod image;
pub mod journal;
pub mod ledger;
pub mod lie;
pub mod lvm;
pub mod marks;
pub mod memory;
pub mod promise;
pub mod random;
pub mod run;
pub mod schedule;
pub mod stage;
pub mod store;
pub mod toolstack;
pub mod vchan;
pub mod vhd;
pub mod world;
pub mod worlds;
