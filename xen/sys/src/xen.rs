//! `xen.h`, `arch-x86/xen.h` and `arch-x86/xen-x86_64.h`.

/// `memory.h`
pub const __HYPERVISOR_memory_op: u64 = 12;
/// `grant_table.h`
pub const __HYPERVISOR_grant_table_op: u64 = 20;
/// `vcpu.h`
pub const __HYPERVISOR_vcpu_op: u64 = 24;
/// `sched.h`
pub const __HYPERVISOR_sched_op: u64 = 29;
/// `event_channel.h`
pub const __HYPERVISOR_event_channel_op: u64 = 32;
/// `hvm/hvm_op.h`
pub const __HYPERVISOR_hvm_op: u64 = 34;

/// A domain's number.
pub type domid_t = u16;
/// The calling domain.
pub const DOMID_SELF: domid_t = 0x7ff0;

/// The timer set by `VCPUOP_set_singleshot_timer` has expired. Bound per vCPU.
pub const VIRQ_TIMER: u32 = 0;

/// How many vCPUs have their information in the shared page itself.
pub const XEN_LEGACY_MAX_VCPUS: usize = 32;

/// The clock of one vCPU. Xen adds one to `version` before and after a change.
#[repr(C)]
pub struct vcpu_time_info {
    /// Odd while Xen writes.
    pub version: u32,
    /// Unused.
    pub pad0: u32,
    /// Time-stamp counter at the last update.
    pub tsc_timestamp: u64,
    /// Nanoseconds of system time at the last update.
    pub system_time: u64,
    /// Nanoseconds per shifted tick, in units of 2^-32.
    pub tsc_to_system_mul: u32,
    /// Shift of the ticks to the left, or if negative to the right.
    pub tsc_shift: i8,
    /// `XEN_PVCLOCK_*`
    pub flags: u8,
    /// Unused.
    pub pad1: [u8; 2],
}

/// The part of [`vcpu_info`] that differs between architectures.
#[repr(C)]
pub struct arch_vcpu_info {
    /// For PV domains.
    pub cr2: u64,
    /// Unused.
    pub pad: u64,
}

/// What Xen tells one vCPU.
#[repr(C)]
pub struct vcpu_info {
    /// Set by Xen when a bit of `evtchn_pending_sel` becomes set; cleared by us before looking.
    pub evtchn_upcall_pending: u8,
    /// For PV domains.
    pub evtchn_upcall_mask: u8,
    /// Which words of `evtchn_pending` have news.
    pub evtchn_pending_sel: u64,
    /// Architecture's part.
    pub arch: arch_vcpu_info,
    /// The clock.
    pub time: vcpu_time_info,
}

/// The part of [`shared_info`] that differs between architectures; for PV domains and dom0's tools.
#[repr(C)]
pub struct arch_shared_info {
    /// PV
    pub max_pfn: u64,
    /// PV
    pub pfn_to_mfn_frame_list_list: u64,
    /// PV
    pub nmi_reason: u64,
    /// PV
    pub p2m_cr3: u64,
    /// PV
    pub p2m_vaddr: u64,
    /// PV
    pub p2m_generation: u64,
}

/// The page every domain shares with Xen.
#[repr(C)]
pub struct shared_info {
    /// One per vCPU.
    pub vcpu_info: [vcpu_info; XEN_LEGACY_MAX_VCPUS],
    /// A bit per event channel port: there is news.
    pub evtchn_pending: [u64; 64],
    /// A bit per event channel port: news raises no upcall.
    pub evtchn_mask: [u64; 64],
    /// Odd while the wall clock is written.
    pub wc_version: u32,
    /// Wall clock at system time 0: seconds since 1970.
    pub wc_sec: u32,
    /// Wall clock at system time 0: nanoseconds.
    pub wc_nsec: u32,
    /// Upper half of `wc_sec`.
    pub wc_sec_hi: u32,
    /// Architecture's part.
    pub arch: arch_shared_info,
}
