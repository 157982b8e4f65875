//! `memory.h`

use crate::xen::domid_t;

/// Puts a page at a guest frame number; the argument is a [`xen_add_to_physmap`].
pub const XENMEM_add_to_physmap: u64 = 7;

/// The page is the shared page.
pub const XENMAPSPACE_shared_info: u32 = 0;
/// The page is the grant table's page number `idx`.
pub const XENMAPSPACE_grant_table: u32 = 1;

/// Argument of `XENMEM_add_to_physmap`.
#[repr(C)]
pub struct xen_add_to_physmap {
    /// Whose address space.
    pub domid: domid_t,
    /// Number of pages, for ranges only.
    pub size: u16,
    /// `XENMAPSPACE_*`
    pub space: u32,
    /// Which page of that space.
    pub idx: u64,
    /// Where it shall appear.
    pub gpfn: u64,
}
