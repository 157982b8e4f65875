//! The inside of a test boot: init of dom0 and of every Linux guest, one program with a role.
//!
//! In dom0 it brings up Xen's daemons and does the job that the host put beside it; in a guest it does what dom0 asks
//! through the guest's own `data/` directory in xenstore. libxl also calls it as dom0's hotplug script.

pub mod backend;
pub mod bench;
pub mod dom0;
pub mod domain;
pub mod evidence;
pub mod exercise;
pub mod files;
pub mod footprint;
pub mod guest;
pub mod hotplug;
pub mod init;
pub mod load;
pub mod lower;
pub mod measure;
pub mod neighbours;
pub mod pinned;
pub mod probe;
pub mod process;
pub mod raw;
pub mod reporter;
pub mod scenarios;
pub mod store;
pub mod story;
pub mod system;
pub mod tap_ctl;
pub mod wall;
pub mod wire;
pub mod world;
