//! The end by our own fault: what happened, where, and the last moments, on the console; then the domain is reported
//! as crashed.

use core::arch::asm;
use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicUsize, Ordering};

use xen_sys::sched::{SCHEDOP_shutdown, SHUTDOWN_crash, sched_shutdown};

use crate::console::LastWords;
use crate::idt::Frame;
use crate::{hypercall, paging};

/// One more than the number of the vCPU that tells why; 0 while all is well.
static DYING: AtomicUsize = AtomicUsize::new(0);

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    begin();
    let mut words = LastWords::new();
    let _ = write!(words, "\n*** tapdom is dead: {}\n", info.message());
    if let Some(place) = info.location() {
        let _ = writeln!(words, "at {place}");
    }
    let frame: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack, preserves_flags)) };
    end(words, frame)
}

/// The same for an exception; `address` is what CR2 held.
pub fn fault(frame: &Frame, address: u64) -> ! {
    begin();
    let mut words = LastWords::new();
    let name = match frame.vector {
        0 => "division",
        2 => "NMI",
        6 => "invalid instruction",
        8 => "double fault",
        13 => "general protection",
        14 if paging::guards().any(|guard| guard.contains(&address)) => "stack overflow",
        14 if address < 4096 => "null pointer",
        14 => "page fault",
        18 => "machine check",
        _ => "exception",
    };
    let f = frame;
    let _ = write!(
        words,
        "\n*** tapdom is dead: {name} (vector {}, error {:#x}) at {:#x}, address {address:#x}\n\
         rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}\nrsi {:016x} rdi {:016x} rbp {:016x} rsp {:016x}\n\
         r8  {:016x} r9  {:016x} r10 {:016x} r11 {:016x}\nr12 {:016x} r13 {:016x} r14 {:016x} r15 {:016x}\n\
         rflags {:x} cs {:x} ss {:x}\n",
        f.vector,
        f.error,
        f.rip,
        f.rax,
        f.rbx,
        f.rcx,
        f.rdx,
        f.rsi,
        f.rdi,
        f.rbp,
        f.rsp,
        f.r8,
        f.r9,
        f.r10,
        f.r11,
        f.r12,
        f.r13,
        f.r14,
        f.r15,
        f.rflags,
        f.cs,
        f.ss,
    );
    end(words, frame.rbp)
}

/// A fault in the telling ends it at once; another vCPU's waits for the end of the first.
fn begin() {
    let stack: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack, preserves_flags)) };
    let me = paging::vcpu_at(stack) + 1;
    match DYING.compare_exchange(0, me, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => {}
        Err(other) if other == me => shutdown(SHUTDOWN_crash),
        Err(_) => loop {
            core::hint::spin_loop();
        },
    }
}

fn end(mut words: LastWords, frame: u64) -> ! {
    let _ = write!(words, "called from");
    backtrace(frame, |address| {
        let _ = write!(words, " {address:#x}");
    });
    let _ = writeln!(words, "\nlast moments:");
    xen::trace::epitaph(&mut words);
    words.wait_until_read();
    shutdown(SHUTDOWN_crash)
}

/// Return addresses, innermost first, for `addr2line` and the image that was not stripped.
fn backtrace(mut frame: u64, mut each: impl FnMut(u64)) {
    const DEPTH_MAX: usize = 32;
    for _ in 0..DEPTH_MAX {
        let stacks = paging::stacks(paging::vcpu_at(frame));
        let inside = stacks.iter().any(|stack| stack.start <= frame && frame + 16 <= stack.end);
        if !inside || !frame.is_multiple_of(8) {
            return;
        }
        // SAFETY: two aligned words inside a stack; whatever they hold is only printed or checked again.
        let [outer, address] = unsafe { *(frame as *const [u64; 2]) };
        if !paging::text().contains(&address) {
            return;
        }
        each(address);
        if outer <= frame {
            return;
        }
        frame = outer;
    }
}

/// Ends the domain.
pub fn shutdown(reason: u32) -> ! {
    let mut argument = sched_shutdown { reason };
    loop {
        // SAFETY: the operation takes this structure. It does not return.
        let _ = unsafe { hypercall::sched(SCHEDOP_shutdown, &mut argument) };
    }
}
