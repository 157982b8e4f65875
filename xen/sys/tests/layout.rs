//! Compares every number, size and offset of this crate with Xen's own headers, by a C program.

use std::fmt::Write;
use std::process::Command;

use xen_sys::{console, cpuid, elfnote, event_channel, grant_table, hvm, memory, sched, start_info, vcpu, xen};

/// A C expression and the value we give it.
type Claim = (&'static str, i128);

/// `structure C_TYPE = PATH { FIELD or FIELD = C_FIELD, ... }`: its size, and offset and size of each field.
macro_rules! structure {
    ($into:ident, $c:literal, $rust:path { $($field:tt $(= $name:literal)?),* }) => {
        $into.push((concat!("sizeof(", $c, ")"), size_of::<$rust>() as i128));
        $($into.push((
            concat!("offsetof(", $c, ", ", structure!(@name $field $($name)?), ")"),
            core::mem::offset_of!($rust, $field) as i128,
        ));
        $into.push((
            concat!("sizeof(((", $c, " *)0)->", structure!(@name $field $($name)?), ")"),
            size_of_field(|whole: &$rust| &whole.$field) as i128,
        ));)*
    };
    (@name $field:tt $name:literal) => { $name };
    (@name $field:tt) => { stringify!($field) };
}

/// Bytes of the field that `pick` picks.
fn size_of_field<T, F>(_pick: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// The constants of one module.
macro_rules! numbers {
    ($into:ident, $module:ident { $($name:ident),* }) => {
        $($into.push((stringify!($name), $module::$name as i128));)*
    };
}

fn claims() -> Vec<Claim> {
    let mut all = Vec::new();
    numbers!(
        all,
        xen {
            __HYPERVISOR_memory_op,
            __HYPERVISOR_grant_table_op,
            __HYPERVISOR_vcpu_op,
            __HYPERVISOR_sched_op,
            __HYPERVISOR_event_channel_op,
            __HYPERVISOR_hvm_op,
            DOMID_SELF,
            VIRQ_TIMER,
            XEN_LEGACY_MAX_VCPUS
        }
    );
    structure!(
        all,
        "struct vcpu_time_info",
        xen::vcpu_time_info { version, pad0, tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift, flags, pad1 }
    );
    structure!(all, "struct arch_vcpu_info", xen::arch_vcpu_info { cr2, pad });
    structure!(
        all,
        "struct vcpu_info",
        xen::vcpu_info { evtchn_upcall_pending, evtchn_upcall_mask, evtchn_pending_sel, arch, time }
    );
    structure!(
        all,
        "struct arch_shared_info",
        xen::arch_shared_info { max_pfn, pfn_to_mfn_frame_list_list, nmi_reason, p2m_cr3, p2m_vaddr, p2m_generation }
    );
    structure!(
        all,
        "struct shared_info",
        xen::shared_info { vcpu_info, evtchn_pending, evtchn_mask, wc_version, wc_sec, wc_nsec, wc_sec_hi, arch }
    );
    numbers!(all, memory { XENMEM_add_to_physmap, XENMAPSPACE_shared_info, XENMAPSPACE_grant_table });
    structure!(all, "struct xen_add_to_physmap", memory::xen_add_to_physmap { domid, size, space, idx, gpfn });
    numbers!(
        all,
        grant_table {
            GNTTAB_NR_RESERVED_ENTRIES,
            GTF_invalid,
            GTF_permit_access,
            GTF_readonly,
            GTF_reading,
            GTF_writing,
            GNTTABOP_map_grant_ref,
            GNTTABOP_unmap_grant_ref,
            GNTTABOP_copy,
            GNTTABOP_query_size,
            GNTMAP_host_map,
            GNTMAP_readonly,
            GNTCOPY_source_gref,
            GNTCOPY_dest_gref,
            GNTST_okay,
            GNTST_eagain,
            GNTST_no_space
        }
    );
    structure!(all, "struct grant_entry_v1", grant_table::grant_entry_v1 { flags, domid, frame });
    structure!(all, "struct gnttab_map_grant_ref", grant_table::gnttab_map_grant_ref {
        host_addr, flags, r#ref = "ref", dom, status, handle, dev_bus_addr
    });
    structure!(
        all,
        "struct gnttab_unmap_grant_ref",
        grant_table::gnttab_unmap_grant_ref { host_addr, dev_bus_addr, handle, status }
    );
    structure!(all, "struct gnttab_copy_ptr", grant_table::gnttab_copy_ptr { u, domid, offset });
    structure!(all, "struct gnttab_copy", grant_table::gnttab_copy { source, dest, len, flags, status });
    structure!(
        all,
        "struct gnttab_query_size",
        grant_table::gnttab_query_size { dom, nr_frames, max_nr_frames, status }
    );
    numbers!(
        all,
        event_channel {
            EVTCHN_2L_NR_CHANNELS,
            EVTCHNOP_bind_interdomain,
            EVTCHNOP_bind_virq,
            EVTCHNOP_bind_ipi,
            EVTCHNOP_bind_vcpu,
            EVTCHNOP_close,
            EVTCHNOP_send,
            EVTCHNOP_status,
            EVTCHNOP_alloc_unbound,
            EVTCHNSTAT_closed,
            EVTCHNSTAT_unbound,
            EVTCHNSTAT_interdomain
        }
    );
    structure!(all, "struct evtchn_alloc_unbound", event_channel::evtchn_alloc_unbound { dom, remote_dom, port });
    structure!(
        all,
        "struct evtchn_bind_interdomain",
        event_channel::evtchn_bind_interdomain { remote_dom, remote_port, local_port }
    );
    structure!(all, "struct evtchn_bind_virq", event_channel::evtchn_bind_virq { virq, vcpu, port });
    structure!(all, "struct evtchn_close", event_channel::evtchn_close { port });
    structure!(all, "struct evtchn_send", event_channel::evtchn_send { port });
    structure!(all, "struct evtchn_status", event_channel::evtchn_status { dom, port, status, vcpu, u });
    numbers!(all, sched { SCHEDOP_shutdown, SHUTDOWN_poweroff, SHUTDOWN_reboot, SHUTDOWN_crash });
    structure!(all, "struct sched_shutdown", sched::sched_shutdown { reason });
    structure!(all, "struct evtchn_bind_ipi", event_channel::evtchn_bind_ipi { vcpu, port });
    structure!(all, "struct evtchn_bind_vcpu", event_channel::evtchn_bind_vcpu { port, vcpu });
    numbers!(all, vcpu { VCPUOP_initialise, VCPUOP_up, VCPUOP_is_up, VCPUOP_set_singleshot_timer, VCPU_HVM_MODE_64B });
    structure!(
        all,
        "struct vcpu_hvm_x86_64",
        vcpu::vcpu_hvm_x86_64 { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, rip, rflags, cr0, cr3, cr4, efer }
    );
    all.push(("sizeof(struct vcpu_hvm_context)", size_of::<vcpu::vcpu_hvm_context>() as i128));
    all.push((
        "offsetof(struct vcpu_hvm_context, cpu_regs)",
        core::mem::offset_of!(vcpu::vcpu_hvm_context, cpu_regs) as i128,
    ));
    structure!(all, "struct vcpu_set_singleshot_timer", vcpu::vcpu_set_singleshot_timer { timeout_abs_ns, flags });
    numbers!(
        all,
        hvm {
            HVMOP_set_param,
            HVMOP_get_param,
            HVM_PARAM_CALLBACK_IRQ,
            HVM_PARAM_CALLBACK_TYPE_VECTOR,
            HVM_PARAM_STORE_PFN,
            HVM_PARAM_STORE_EVTCHN,
            HVM_PARAM_CONSOLE_PFN,
            HVM_PARAM_CONSOLE_EVTCHN
        }
    );
    structure!(all, "struct xen_hvm_param", hvm::xen_hvm_param { domid, pad, index, value });
    numbers!(all, start_info { XEN_HVM_START_MAGIC_VALUE, XEN_HVM_MEMMAP_TYPE_RAM });
    structure!(
        all,
        "struct hvm_start_info",
        start_info::hvm_start_info {
            magic,
            version,
            flags,
            nr_modules,
            modlist_paddr,
            cmdline_paddr,
            rsdp_paddr,
            memmap_paddr,
            memmap_entries,
            reserved
        }
    );
    structure!(all, "struct hvm_memmap_table_entry", start_info::hvm_memmap_table_entry {
        addr, size, r#type = "type", reserved
    });
    numbers!(all, elfnote { XEN_ELFNOTE_PHYS32_ENTRY });
    numbers!(
        all,
        cpuid {
            XEN_CPUID_FIRST_LEAF,
            XEN_CPUID_SIGNATURE_EBX,
            XEN_CPUID_SIGNATURE_ECX,
            XEN_CPUID_SIGNATURE_EDX,
            XEN_HVM_CPUID_DOMID_PRESENT
        }
    );
    structure!(all, "struct xencons_interface", console::xencons_interface {
        r#in = "in", out, in_cons, in_prod, out_cons, out_prod
    });
    all
}

/// A C program that prints the value of every expression, a line each.
fn program(claims: &[Claim]) -> String {
    let mut c = String::from(
        "#define __XEN_INTERFACE_VERSION__ 0x00040e00\n#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n",
    );
    for header in [
        "xen",
        "memory",
        "grant_table",
        "event_channel",
        "sched",
        "vcpu",
        "hvm/hvm_op",
        "hvm/hvm_vcpu",
        "hvm/params",
        "elfnote",
        "arch-x86/hvm/start_info",
        "arch-x86/cpuid",
        "io/console",
    ] {
        writeln!(c, "#include <xen/{header}.h>").unwrap();
    }
    c += "int main(void) {\n";
    for (expression, _) in claims {
        writeln!(c, "printf(\"%lld\\n\", (long long)({expression}));").unwrap();
    }
    c + "return 0; }\n"
}

#[test]
fn every_number_size_and_offset_is_that_of_xens_headers() {
    assert!(
        std::path::Path::new("/usr/include/xen/xen.h").exists(),
        "Xen's headers are missing: install the package libxen-dev"
    );
    let claims = claims();
    let place = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, binary) = (place.join("layout.c"), place.join("layout"));
    std::fs::write(&source, program(&claims)).unwrap();
    let compiler = Command::new("cc").arg("-o").arg(&binary).arg(&source).output();
    let built = compiler.expect("no C compiler `cc`: install the package gcc");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let run = Command::new(&binary).output().unwrap();
    let printed = String::from_utf8(run.stdout).unwrap();
    let theirs: Vec<i128> = printed.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(theirs.len(), claims.len());
    let wrong: Vec<String> = claims
        .iter()
        .zip(&theirs)
        .filter(|((_, ours), theirs)| ours != *theirs)
        .map(|((expression, ours), theirs)| format!("{expression}: headers say {theirs}, we say {ours}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
