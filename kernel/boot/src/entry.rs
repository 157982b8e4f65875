//! From the domain builder's 32-bit entry to Rust in long mode, and what the builder left in memory
//! (`elfnote.h`, `arch-x86/hvm/start_info.h`).

use core::arch::global_asm;

use boot::map::Map;
use xen_sys::elfnote::XEN_ELFNOTE_PHYS32_ENTRY;
use xen_sys::start_info::{XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_start_info};

// The builder enters with paging off, interrupts off, flat segments, no stack and start_info in ebx. The tables here
// map the first GiB with everything allowed; `paging` replaces them before anything beyond is touched.
global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, {note}
    .asciz "Xen"
    .long pvh_start

    .section .data.boot_tables, "aw"
    .balign 4096
boot_level4:
    .quad boot_level3 + 3
    .fill 511, 8, 0
boot_level3:
    .quad boot_level2 + 3
    .fill 511, 8, 0
boot_level2:
    .set large_page, 0
    .rept 512
    .quad large_page + 0x83
    .set large_page, large_page + 0x200000
    .endr

    .section .rodata.boot_gdt, "a"
    .balign 8
boot_gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
boot_gdt_pointer:
    .word 23
    .long boot_gdt

    .section .text.entry, "ax"
    .code32
    .global pvh_start
pvh_start:
    cld
    movl $main_top, %esp
    movl %cr4, %eax
    orl $0x20, %eax                 // PAE
    movl %eax, %cr4
    movl $boot_level4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx          // EFER: long mode, no-execute
    rdmsr
    orl $0x900, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80010000, %eax           // paging, write protection also for us
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $8, $1f
    .code64
1:  movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    xorl %ebp, %ebp                 // where a backtrace ends
    movl %ebx, %edi
    call {start}
    ud2
    "#,
    note = const XEN_ELFNOTE_PHYS32_ENTRY,
    start = sym crate::start,
    options(att_syntax)
);

/// Bytes of the command line we keep.
const COMMAND_LINE_MAX: usize = 2048;

/// What the builder told us, copied: the memory it was in is RAM like any other.
pub struct Start {
    /// The memory map.
    pub map: Map,
    /// The command line.
    pub command_line: heapless::Vec<u8, COMMAND_LINE_MAX>,
}

impl Start {
    /// Reads what `start_info` points to.
    ///
    /// # Safety
    /// `start_info` is what the domain builder left in ebx, nothing has written to memory outside the image since, and
    /// what it points to is mapped.
    pub unsafe fn read(start_info: u64) -> Start {
        // SAFETY: by the caller's word there is a start_info; its address is aligned by the builder to 8 bytes.
        let info = unsafe { *(start_info as *const hvm_start_info) };
        assert!(info.magic == XEN_HVM_START_MAGIC_VALUE, "start_info has magic {:#x}, not Xen's", info.magic);
        assert!(
            info.version >= 1 && info.memmap_entries > 0,
            "start_info has no memory map (version {})",
            info.version
        );
        let entries = (0..u64::from(info.memmap_entries)).map(|i| {
            let entry = info.memmap_paddr + i * size_of::<hvm_memmap_table_entry>() as u64;
            // SAFETY: start_info says that there are so many entries.
            unsafe { *(entry as *const hvm_memmap_table_entry) }
        });
        let map = Map::parse(entries).unwrap_or_else(|bad| panic!("the memory map is no good: {bad:?}"));
        let mut command_line = heapless::Vec::new();
        for at in (info.cmdline_paddr..).take(COMMAND_LINE_MAX) {
            // SAFETY: start_info says that a string is here, and we stop at its end.
            let byte = if info.cmdline_paddr == 0 { 0 } else { unsafe { *(at as *const u8) } };
            if byte == 0 || command_line.push(byte).is_err() {
                break;
            }
        }
        Start { map, command_line }
    }
}
