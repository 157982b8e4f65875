//! Calling Xen. The instruction is in line: the hypercall page is discouraged since XSA-466 and not needed.

use core::arch::asm;
use core::arch::x86_64::__cpuid;
use core::sync::atomic::{AtomicBool, Ordering};

use xen::port::Refused;
use xen_sys::cpuid::{
    XEN_CPUID_FIRST_LEAF, XEN_CPUID_SIGNATURE_EBX, XEN_CPUID_SIGNATURE_ECX, XEN_CPUID_SIGNATURE_EDX,
    XEN_HVM_CPUID_DOMID_PRESENT,
};
use xen_sys::hvm::{HVMOP_get_param, HVMOP_set_param, xen_hvm_param};
use xen_sys::xen::{
    __HYPERVISOR_event_channel_op, __HYPERVISOR_grant_table_op, __HYPERVISOR_hvm_op, __HYPERVISOR_memory_op,
    __HYPERVISOR_sched_op, __HYPERVISOR_vcpu_op, DOMID_SELF,
};

/// Whether the processor has AMD's instruction (`vmmcall`) and not Intel's (`vmcall`).
static AMD: AtomicBool = AtomicBool::new(false);

/// What the processor says of Xen.
pub struct Found {
    /// Version, major and minor.
    pub version: (u32, u32),
    /// Our own number, if this Xen tells it.
    pub domain: Option<u16>,
}

/// Finds Xen and the way to call it. To be called before all other functions here.
pub fn find() -> Found {
    let vendor = __cpuid(0);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    AMD.store(matches!(name.as_flattened(), b"AuthenticAMD" | b"HygonGenuine"), Ordering::Relaxed);

    let signature = (XEN_CPUID_SIGNATURE_EBX, XEN_CPUID_SIGNATURE_ECX, XEN_CPUID_SIGNATURE_EDX);
    let base = (XEN_CPUID_FIRST_LEAF..XEN_CPUID_FIRST_LEAF + 0x1_0000).step_by(0x100).find(|&leaf| {
        let found = __cpuid(leaf);
        (found.ebx, found.ecx, found.edx) == signature
    });
    let base = base.expect("this is not Xen: the image runs only as a PVH domain of the Xen hypervisor");
    let version = __cpuid(base + 1).eax;
    let features = __cpuid(base + 4);
    let known = __cpuid(base).eax >= base + 4 && features.eax & XEN_HVM_CPUID_DOMID_PRESENT != 0;
    Found { version: (version >> 16, version & 0xffff), domain: known.then_some(features.ecx as u16) }
}

/// # Safety
/// The arguments are what hypercall `number` takes, and what it does to memory is what the caller wants.
unsafe fn call(number: u64, arguments: [u64; 3]) -> Result<u64, Refused> {
    let [first, second, third] = arguments;
    let result: i64;
    if AMD.load(Ordering::Relaxed) {
        // SAFETY: the caller's. Xen may change the argument registers, and memory by what the arguments point to.
        unsafe {
            asm!("vmmcall", inout("rax") number => result, inout("rdi") first => _, inout("rsi") second => _,
                 inout("rdx") third => _, options(nostack));
        }
    } else {
        // SAFETY: as above.
        unsafe {
            asm!("vmcall", inout("rax") number => result, inout("rdi") first => _, inout("rsi") second => _,
                 inout("rdx") third => _, options(nostack));
        }
    }
    if result < 0 { Err(Refused(result as i16)) } else { Ok(result as u64) }
}

/// `memory_op`
///
/// # Safety
/// `operation` takes a `T`, and what it does to our memory is sound.
pub unsafe fn memory<T>(operation: u64, argument: &mut T) -> Result<u64, Refused> {
    // SAFETY: the caller's.
    unsafe { call(__HYPERVISOR_memory_op, [operation, argument as *mut T as u64, 0]) }
}

/// `grant_table_op`. Xen takes the whole array, or refuses the call as such.
///
/// # Safety
/// `operation` takes an array of `T`, and what it does to our memory is sound.
pub unsafe fn grant_table<T>(operation: u64, arguments: &mut [T]) -> Result<u64, Refused> {
    let (array, count) = (arguments.as_mut_ptr() as u64, arguments.len() as u64);
    // SAFETY: the caller's.
    unsafe { call(__HYPERVISOR_grant_table_op, [operation, array, count]) }
}

/// `event_channel_op`
///
/// # Safety
/// `operation` takes a `T`.
pub unsafe fn event_channel<T>(operation: u64, argument: &mut T) -> Result<u64, Refused> {
    // SAFETY: the caller's.
    unsafe { call(__HYPERVISOR_event_channel_op, [operation, argument as *mut T as u64, 0]) }
}

/// `vcpu_op` for the vCPU of this number.
///
/// # Safety
/// `operation` takes a `T`, or nothing, and what it does to our memory is sound.
pub unsafe fn vcpu<T>(operation: u64, vcpu: usize, argument: &mut T) -> Result<u64, Refused> {
    // SAFETY: the caller's.
    unsafe { call(__HYPERVISOR_vcpu_op, [operation, vcpu as u64, argument as *mut T as u64]) }
}

/// `sched_op`
///
/// # Safety
/// `operation` takes a `T`.
pub unsafe fn sched<T>(operation: u64, argument: &mut T) -> Result<u64, Refused> {
    // SAFETY: the caller's.
    unsafe { call(__HYPERVISOR_sched_op, [operation, argument as *mut T as u64, 0]) }
}

/// Reads one of our HVM parameters.
pub fn parameter(index: u32) -> Result<u64, Refused> {
    let mut parameter = xen_hvm_param { domid: DOMID_SELF, pad: 0, index, value: 0 };
    // SAFETY: the operation takes this structure, and writes `value`.
    unsafe { call(__HYPERVISOR_hvm_op, [HVMOP_get_param, &raw mut parameter as u64, 0]) }?;
    Ok(parameter.value)
}

/// Sets one of our HVM parameters.
pub fn set_parameter(index: u32, value: u64) -> Result<(), Refused> {
    let mut parameter = xen_hvm_param { domid: DOMID_SELF, pad: 0, index, value };
    // SAFETY: the operation takes this structure; no parameter we set has to do with memory.
    unsafe { call(__HYPERVISOR_hvm_op, [HVMOP_set_param, &raw mut parameter as u64, 0]) }.map(|_| ())
}
