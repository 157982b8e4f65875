//! `arch-x86/hvm/start_info.h`

/// Value of `magic`.
pub const XEN_HVM_START_MAGIC_VALUE: u32 = 0x336e_c578;

/// Memory to use as one likes.
pub const XEN_HVM_MEMMAP_TYPE_RAM: u32 = 1;

/// What the domain builder leaves for a PVH domain; its address is in `ebx` at the start.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hvm_start_info {
    /// `XEN_HVM_START_MAGIC_VALUE`
    pub magic: u32,
    /// Fields from `memmap_paddr` on exist from version 1.
    pub version: u32,
    /// `SIF_*`
    pub flags: u32,
    /// Modules (`ramdisk=` is the first).
    pub nr_modules: u32,
    /// Array of descriptions of them.
    pub modlist_paddr: u64,
    /// The command line, with a zero at its end.
    pub cmdline_paddr: u64,
    /// ACPI's root pointer.
    pub rsdp_paddr: u64,
    /// Array of [`hvm_memmap_table_entry`].
    pub memmap_paddr: u64,
    /// Its length; 0 if there is no map.
    pub memmap_entries: u32,
    /// Zero.
    pub reserved: u32,
}

/// One region of the memory map.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hvm_memmap_table_entry {
    /// Where it starts.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// `XEN_HVM_MEMMAP_TYPE_*`
    pub r#type: u32,
    /// Zero.
    pub reserved: u32,
}
