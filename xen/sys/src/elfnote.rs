//! `elfnote.h`

/// The note (owner `Xen`) that holds the physical address of the 32-bit entry point of a PVH kernel.
pub const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
