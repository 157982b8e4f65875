//! `grant_table.h`, version 1 of the table.

use crate::xen::domid_t;

/// A grant's number.
pub type grant_ref_t = u32;
/// A mapped grant's handle.
pub type grant_handle_t = u32;

/// The first entries belong to the tool stack (console, xenstore).
pub const GNTTAB_NR_RESERVED_ENTRIES: u32 = 8;

/// Entry not in use.
pub const GTF_invalid: u16 = 0;
/// Entry lets `domid` map and copy `frame`.
pub const GTF_permit_access: u16 = 1;
/// Entry lets it only be read.
pub const GTF_readonly: u16 = 1 << 2;
/// Set by Xen: the page is mapped for reading, or copied from.
pub const GTF_reading: u16 = 1 << 3;
/// Set by Xen: the page is mapped for writing, or copied to.
pub const GTF_writing: u16 = 1 << 4;

/// Maps grants; an array of [`gnttab_map_grant_ref`].
pub const GNTTABOP_map_grant_ref: u64 = 0;
/// Ends mappings; an array of [`gnttab_unmap_grant_ref`].
pub const GNTTABOP_unmap_grant_ref: u64 = 1;
/// Copies bytes; an array of [`gnttab_copy`].
pub const GNTTABOP_copy: u64 = 5;
/// Size of our table; one [`gnttab_query_size`].
pub const GNTTABOP_query_size: u64 = 6;

/// Map for the processor's own access.
pub const GNTMAP_host_map: u32 = 1 << 1;
/// Map for reading only.
pub const GNTMAP_readonly: u32 = 1 << 2;

/// The source of a copy is a grant.
pub const GNTCOPY_source_gref: u16 = 1 << 0;
/// The destination of a copy is a grant.
pub const GNTCOPY_dest_gref: u16 = 1 << 1;

/// Done.
pub const GNTST_okay: i16 = 0;
/// Not done; try again.
pub const GNTST_eagain: i16 = -12;
/// Out of space (handles etc).
pub const GNTST_no_space: i16 = -13;

/// One entry of our table.
#[repr(C)]
pub struct grant_entry_v1 {
    /// `GTF_*`
    pub flags: u16,
    /// The domain that may use the page.
    pub domid: domid_t,
    /// The page.
    pub frame: u32,
}

/// Argument of `GNTTABOP_map_grant_ref`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct gnttab_map_grant_ref {
    /// Guest-physical address where the page shall appear.
    pub host_addr: u64,
    /// `GNTMAP_*`
    pub flags: u32,
    /// The grant.
    pub r#ref: grant_ref_t,
    /// Whose.
    pub dom: domid_t,
    /// Out: `GNTST_*`
    pub status: i16,
    /// Out.
    pub handle: grant_handle_t,
    /// Out, for device mappings.
    pub dev_bus_addr: u64,
}

/// Argument of `GNTTABOP_unmap_grant_ref`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct gnttab_unmap_grant_ref {
    /// As it was mapped.
    pub host_addr: u64,
    /// For device mappings; else 0.
    pub dev_bus_addr: u64,
    /// As it was returned.
    pub handle: grant_handle_t,
    /// Out: `GNTST_*`
    pub status: i16,
}

/// One end of a copy. In the header this type is inside `gnttab_copy`, and `u` is a union: a grant takes
/// the low half, the high half is not looked at.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct gnttab_copy_ptr {
    /// A grant, or a frame of `domid` itself.
    pub u: u64,
    /// Whose.
    pub domid: domid_t,
    /// Byte in the page.
    pub offset: u16,
}

/// Argument of `GNTTABOP_copy`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct gnttab_copy {
    /// From.
    pub source: gnttab_copy_ptr,
    /// To.
    pub dest: gnttab_copy_ptr,
    /// Bytes.
    pub len: u16,
    /// `GNTCOPY_*`
    pub flags: u16,
    /// Out: `GNTST_*`
    pub status: i16,
}

/// Argument of `GNTTABOP_query_size`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct gnttab_query_size {
    /// Whose table.
    pub dom: domid_t,
    /// Out: pages it has.
    pub nr_frames: u32,
    /// Out: pages it may grow to.
    pub max_nr_frames: u32,
    /// Out: `GNTST_*`
    pub status: i16,
}
