//! `vcpu.h` and `hvm/hvm_vcpu.h`

/// Prepares a vCPU that was never up; a [`vcpu_hvm_context`].
pub const VCPUOP_initialise: u64 = 0;
/// Lets a vCPU run; no argument.
pub const VCPUOP_up: u64 = 1;
/// Whether a vCPU runs, as the result; no argument. An error if there is no such vCPU.
pub const VCPUOP_is_up: u64 = 3;

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

/// The vCPU starts in 64-bit mode.
pub const VCPU_HVM_MODE_64B: u32 = 1;

/// Registers of a vCPU that starts in 64-bit mode. Its segments are flat.
#[repr(C)]
#[derive(Clone, Copy, Default)]
#[allow(missing_docs)]
pub struct vcpu_hvm_x86_64 {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rip: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

/// How a vCPU starts. The header has a union of two sets of registers here, the other a word larger.
#[repr(C)]
pub struct vcpu_hvm_context {
    /// `VCPU_HVM_MODE_*`
    pub mode: u32,
    /// 0
    pub pad: u32,
    /// For 64-bit mode.
    pub cpu_regs: vcpu_hvm_x86_64,
    /// What is left of the union.
    pub rest: u64,
}
