//! The developer's side of a test boot: parts, images, the machine, the verdict.

pub mod bench;
pub mod boot;
pub mod cpio;
pub mod elf;
pub mod footprint;
pub mod image;
pub mod judge;
pub mod kernel;
pub mod machine;
pub mod parts;
