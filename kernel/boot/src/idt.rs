//! Exceptions and the one interrupt. An exception is our own fault and ends in an epitaph, on a stack of its own; the
//! interrupt is Xen's upcall and does nothing but end a `hlt`.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;

use crate::mates::VCPUS_MAX;
use crate::{epitaph, paging};

/// The vector of Xen's upcall; any that is not the processor's own.
pub const UPCALL: u8 = 0x20;

const CODE: u16 = 8;
const DATA: u16 = 16;
const TASK: u16 = 24;

/// Which stack of the task state segment an exception takes: the second for what may come while another is told
/// (NMI, double fault, machine check).
const fn stack(vector: usize) -> u64 {
    match vector {
        2 | 8 | 18 => 2,
        _ => 1,
    }
}

/// What was in the registers; the lower part pushed by `exception_entry`, the upper by the processor.
#[repr(C)]
#[allow(missing_docs)]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

// A stub of 16 bytes per vector. The processor pushes an error code for those in the mask; for the others the stub
// pushes a zero, so that there is one frame. The pushes come to 176 bytes: the call finds the stack aligned.
global_asm!(
    r#"
    .section .text.exceptions, "ax"
    .balign 16
exceptions:
    .set vector, 0
    .rept 32
    .balign 16
    .if ((0x60227d00 >> vector) & 1) == 0
    pushq $0
    .endif
    pushq $vector
    jmp exception_entry
    .set vector, vector + 1
    .endr
exception_entry:
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, %rdi
    cld
    call {fault}
    ud2
    "#,
    fault = sym fault,
    options(att_syntax)
);

unsafe extern "C" {
    static exceptions: u8;
}

extern "C" fn fault(frame: &Frame) -> ! {
    let address: u64;
    // SAFETY: reading CR2 has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack, preserves_flags)) };
    epitaph::fault(frame, address)
}

// Sleeping, and the upcall that ends it.
//
// The shadow of `sti` is to keep interrupts off until `hlt` has begun, but an exit to Xen between the two can lose it
// (seen under emulation). The upcall would then come before the `hlt` and nothing would end the sleep; with interrupts
// off, as the stub leaves them, Xen even takes the `hlt` for the end of the domain. So the stub steps over a `hlt` that
// has not begun.
//
// Xen raises the upcall as long as its flag in the shared page is set and interrupts are on: the stub returns with
// interrupts off, and the flag is for `take_events`.
global_asm!(
    "sleep_until_upcall:",
    "sti",
    "sleep_asleep:",
    "hlt",
    "sleep_awake:",
    "cli",
    "ret",
    "upcall:",
    "and qword ptr [rsp + 16], {no_interrupts}",
    "push rax",
    "lea rax, [rip + sleep_asleep]",
    "cmp qword ptr [rsp + 8], rax",
    "jne 2f",
    "lea rax, [rip + sleep_awake]",
    "mov qword ptr [rsp + 8], rax",
    "2:",
    "pop rax",
    "iretq",
    no_interrupts = const !0x200i32,
);

unsafe extern "C" {
    fn sleep_until_upcall();
    fn upcall();
}

/// Tables of the processor: written once at the start, then only read by it.
struct Fixed<T>(UnsafeCell<T>);

// SAFETY: written only in `load`: those of a vCPU by itself, the common one by the first, before there are others.
unsafe impl<T> Sync for Fixed<T> {}

/// Segments, and the task state.
#[repr(C)]
struct Own {
    gdt: [u64; 5],
    tss: [u32; 26],
}

static OWN: [Fixed<Own>; VCPUS_MAX] = [const {
    let gdt = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0, 0];
    Fixed(UnsafeCell::new(Own { gdt, tss: [0; 26] }))
}; VCPUS_MAX];
static IDT: Fixed<[[u64; 2]; 256]> = Fixed(UnsafeCell::new([[0; 2]; 256]));

/// A gate to `handler`, with interrupts off.
fn gate(handler: u64, stack: u64) -> [u64; 2] {
    let present_interrupt_gate = 0x8e << 40;
    let low = handler & 0xffff | u64::from(CODE) << 16 | stack << 32 | present_interrupt_gate;
    [low | (handler >> 16 & 0xffff) << 48, handler >> 32]
}

/// The operand of `lgdt` and `lidt`.
#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Loads segments, the task state with the stacks, and the handlers. Once on each vCPU, on the first before there are
/// others.
pub fn load(vcpu: usize) {
    let [_, fault_stack, double_stack] = paging::stacks(vcpu);
    let (own, idt) = (OWN[vcpu].0.get(), IDT.0.get());
    // SAFETY: nothing else refers to this vCPU's tables before they are loaded, below, and nothing writes to the common
    // one but the first vCPU, here.
    unsafe {
        let (gdt, tss) = (&raw mut (*own).gdt, &raw mut (*own).tss);
        let task = tss as u64;
        for (slot, top) in [(9, fault_stack.end), (11, double_stack.end)] {
            (*tss)[slot] = top as u32;
            (*tss)[slot + 1] = (top >> 32) as u32;
        }
        // No I/O permission map: its offset is the end of the segment.
        (*tss)[25] = 104 << 16;
        (*gdt)[3] = 103 | (task & 0xff_ffff) << 16 | 0x89 << 40 | (task >> 24 & 0xff) << 56;
        (*gdt)[4] = task >> 32;
        if vcpu == 0 {
            for (vector, entry) in (*idt).iter_mut().take(32).enumerate() {
                *entry = gate(&raw const exceptions as u64 + 16 * vector as u64, stack(vector));
            }
            (*idt)[UPCALL as usize] = gate(upcall as *const () as u64, 0);
        }
    }
    let gdt = Pointer { limit: size_of::<[u64; 5]>() as u16 - 1, base: own as u64 };
    let idt = Pointer { limit: size_of::<[[u64; 2]; 256]>() as u16 - 1, base: idt as u64 };
    // SAFETY: the tables are complete and live for ever; code and data segment are what they were at the start.
    unsafe {
        asm!(
            "lgdt [{gdt}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ss, {data:e}",
            "mov ds, {data:e}",
            "mov es, {data:e}",
            "ltr {task:x}",
            "lidt [{idt}]",
            gdt = in(reg) &raw const gdt,
            idt = in(reg) &raw const idt,
            code = const CODE,
            data = in(reg) u32::from(DATA),
            task = in(reg) TASK,
            scratch = out(reg) _,
        );
    }
}

/// Sleeps until the upcall, or not at all if it is due.
pub fn sleep() {
    // SAFETY: the only interrupt that can come is the upcall, which changes nothing but flag and place of its return.
    unsafe { sleep_until_upcall() }
}
