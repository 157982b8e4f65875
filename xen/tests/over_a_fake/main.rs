//! The safe words over the trait, on a hypervisor of a few lines that keeps a record and says no when told to.

mod events;
mod executor;
mod fake;
mod grants;
mod kept;
mod pools;
mod store;
mod waiting;
