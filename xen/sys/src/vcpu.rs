//! `vcpu.h`

/// Asks for one `VIRQ_TIMER`; a [`vcpu_set_singleshot_timer`]. A time in the past fires at once.
pub const VCPUOP_set_singleshot_timer: u64 = 8;

/// Argument of `VCPUOP_set_singleshot_timer`.
#[repr(C)]
pub struct vcpu_set_singleshot_timer {
    /// Nanoseconds of system time.
    pub timeout_abs_ns: u64,
    /// `VCPU_SSHOTTMR_*`
    pub flags: u32,
}
