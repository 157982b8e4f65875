//! The vCPUs beside the first (`vcpu.h`): Xen starts each in 64-bit mode, in our address space, on a stack of its own.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::arch::asm;

use kernel::crew::{Crew, Mate};
use xen::limits::QUEUES;
use xen::port::Refused;
use xen_sys::vcpu::{VCPU_HVM_MODE_64B, VCPUOP_initialise, VCPUOP_is_up, VCPUOP_up, vcpu_hvm_context, vcpu_hvm_x86_64};

use crate::machine::Machine;
use crate::{hypercall, idt, paging};

/// The most that are of use: each of a disk's rings is served by one.
pub const VCPUS_MAX: usize = QUEUES;

/// How many vCPUs this domain has, up to the most that are of use.
pub fn count() -> usize {
    // SAFETY: the operation takes nothing.
    (1..VCPUS_MAX).find(|vcpu| unsafe { hypercall::vcpu(VCPUOP_is_up, *vcpu, &mut ()) }.is_err()).unwrap_or(VCPUS_MAX)
}

/// What a vCPU is given on its way.
struct Way {
    machine: Machine,
    crew: Arc<Crew>,
    vcpu: usize,
}

const _: () = {
    const fn goes_to_another<T: Send>() {}
    const fn is_of_all<T: Send + Sync>() {}
    goes_to_another::<Way>();
    is_of_all::<Crew>();
};

/// Starts the vCPU of this number, from 1 on.
pub fn start(vcpu: usize, machine: Machine, crew: Arc<Crew>) -> Result<(), Refused> {
    let way = Box::into_raw(Box::new(Way { machine, crew, vcpu }));
    let (cr0, cr3, cr4, low, high): (u64, u64, u64, u32, u32);
    // SAFETY: reads registers.
    unsafe {
        asm!("mov {}, cr0", "mov {}, cr3", "mov {}, cr4", out(reg) cr0, out(reg) cr3, out(reg) cr4,
             options(nomem, nostack, preserves_flags));
        asm!("rdmsr", in("ecx") 0xc000_0080_u32, out("eax") low, out("edx") high,
             options(nomem, nostack, preserves_flags));
    }
    let [stack, ..] = paging::stacks(vcpu);
    let mut context = vcpu_hvm_context {
        mode: VCPU_HVM_MODE_64B,
        pad: 0,
        cpu_regs: vcpu_hvm_x86_64 {
            rdi: way as u64,
            rip: begin as *const () as u64,
            // As after a call that returns nowhere.
            rsp: stack.end - 8,
            rflags: 2,
            cr0,
            cr3,
            cr4,
            efer: u64::from(high) << 32 | u64::from(low),
            ..Default::default()
        },
        rest: 0,
    };
    // SAFETY: the operations take this structure, and nothing. The stack is that vCPU's alone, `begin` takes what is in
    // rdi, and nobody else has it.
    unsafe {
        hypercall::vcpu(VCPUOP_initialise, vcpu, &mut context)?;
        hypercall::vcpu(VCPUOP_up, vcpu, &mut ())?;
    }
    Ok(())
}

/// Where it begins.
extern "C" fn begin(way: *mut Way) -> ! {
    // SAFETY: `start` made it a box, and gave it to this vCPU alone.
    let Way { machine, crew, vcpu } = *unsafe { Box::from_raw(way) };
    idt::load(vcpu);
    log::debug!("boot: vCPU {vcpu} runs");
    Mate::new(machine, &crew, vcpu).run()
}
