//! `event_channel.h`, the two-level interface.

use crate::xen::domid_t;

/// A port's number.
pub type evtchn_port_t = u32;

/// Ports of the two-level interface: a word of 64 bits for each bit of a word of 64 bits.
pub const EVTCHN_2L_NR_CHANNELS: usize = 64 * 64;

/// Binds a port to a port of another domain; an [`evtchn_bind_interdomain`].
pub const EVTCHNOP_bind_interdomain: u64 = 0;
/// Binds a port to a virtual interrupt; an [`evtchn_bind_virq`].
pub const EVTCHNOP_bind_virq: u64 = 1;
/// Closes a port; an [`evtchn_close`].
pub const EVTCHNOP_close: u64 = 3;
/// Sends an event; an [`evtchn_send`].
pub const EVTCHNOP_send: u64 = 4;
/// What a port is; an [`evtchn_status`].
pub const EVTCHNOP_status: u64 = 5;
/// Binds a port to an event that vCPUs of ours send each other; an [`evtchn_bind_ipi`].
pub const EVTCHNOP_bind_ipi: u64 = 7;
/// Says which vCPU a port tells; an [`evtchn_bind_vcpu`].
pub const EVTCHNOP_bind_vcpu: u64 = 8;
/// Makes a port another domain may bind; an [`evtchn_alloc_unbound`].
pub const EVTCHNOP_alloc_unbound: u64 = 6;

/// Not in use.
pub const EVTCHNSTAT_closed: u32 = 0;
/// Waits for the other domain.
pub const EVTCHNSTAT_unbound: u32 = 1;
/// Bound to another domain's port.
pub const EVTCHNSTAT_interdomain: u32 = 2;

/// Argument of `EVTCHNOP_alloc_unbound`.
#[repr(C)]
pub struct evtchn_alloc_unbound {
    /// Whose port.
    pub dom: domid_t,
    /// Who may bind it.
    pub remote_dom: domid_t,
    /// Out.
    pub port: evtchn_port_t,
}

/// Argument of `EVTCHNOP_bind_interdomain`.
#[repr(C)]
pub struct evtchn_bind_interdomain {
    /// The other domain.
    pub remote_dom: domid_t,
    /// Its port.
    pub remote_port: evtchn_port_t,
    /// Out.
    pub local_port: evtchn_port_t,
}

/// Argument of `EVTCHNOP_bind_virq`.
#[repr(C)]
pub struct evtchn_bind_virq {
    /// `VIRQ_*`
    pub virq: u32,
    /// Of which vCPU.
    pub vcpu: u32,
    /// Out.
    pub port: evtchn_port_t,
}

/// Argument of `EVTCHNOP_bind_ipi`.
#[repr(C)]
pub struct evtchn_bind_ipi {
    /// Which vCPU is told.
    pub vcpu: u32,
    /// Out.
    pub port: evtchn_port_t,
}

/// Argument of `EVTCHNOP_bind_vcpu`.
#[repr(C)]
pub struct evtchn_bind_vcpu {
    /// The port.
    pub port: evtchn_port_t,
    /// Which vCPU it is to tell.
    pub vcpu: u32,
}

/// Argument of `EVTCHNOP_close`.
#[repr(C)]
pub struct evtchn_close {
    /// The port.
    pub port: evtchn_port_t,
}

/// Argument of `EVTCHNOP_send`.
#[repr(C)]
pub struct evtchn_send {
    /// The port.
    pub port: evtchn_port_t,
}

/// Argument of `EVTCHNOP_status`.
#[repr(C)]
pub struct evtchn_status {
    /// Whose port.
    pub dom: domid_t,
    /// The port.
    pub port: evtchn_port_t,
    /// Out: `EVTCHNSTAT_*`
    pub status: u32,
    /// Out: the vCPU it is bound to.
    pub vcpu: u32,
    /// Out: by status, the other end.
    pub u: [u32; 2],
}
