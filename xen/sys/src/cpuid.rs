//! `arch-x86/cpuid.h`

/// First leaf a hypervisor may use; the next candidates follow in steps of 0x100.
pub const XEN_CPUID_FIRST_LEAF: u32 = 0x4000_0000;
/// "XenV"
pub const XEN_CPUID_SIGNATURE_EBX: u32 = 0x566e_6558;
/// "MMXe"
pub const XEN_CPUID_SIGNATURE_ECX: u32 = 0x6558_4d4d;
/// "nVMM"
pub const XEN_CPUID_SIGNATURE_EDX: u32 = 0x4d4d_566e;

/// Leaf 4, EAX: the domain's number is in ECX.
pub const XEN_HVM_CPUID_DOMID_PRESENT: u32 = 1 << 4;
