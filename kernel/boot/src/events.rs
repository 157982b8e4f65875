//! Event channels (`event_channel.h`) and sleeping. Interrupts are off but inside [`idt::sleep`]: an event never
//! interrupts anything.

use core::sync::atomic::{AtomicU64, Ordering};

use boot::shared::Shared;
use xen::port::{DomId, Instant, Port, PortState, Refused};
use xen_sys::event_channel::{
    EVTCHNOP_alloc_unbound, EVTCHNOP_bind_interdomain, EVTCHNOP_bind_virq, EVTCHNOP_close, EVTCHNOP_send,
    EVTCHNOP_status, EVTCHNSTAT_interdomain, EVTCHNSTAT_unbound, evtchn_alloc_unbound, evtchn_bind_interdomain,
    evtchn_bind_virq, evtchn_close, evtchn_send, evtchn_status,
};
use xen_sys::hvm::{HVM_PARAM_CALLBACK_IRQ, HVM_PARAM_CALLBACK_TYPE_VECTOR};
use xen_sys::vcpu::{VCPUOP_set_singleshot_timer, vcpu_set_singleshot_timer};
use xen_sys::xen::{DOMID_SELF, VIRQ_TIMER};

use crate::{clock, hypercall, idt};

/// Our event channels.
pub struct Events {
    shared: &'static Shared,
    timer: Port,
    /// When the timer will fire; 0 if it is not set.
    alarm: AtomicU64,
}

impl Events {
    /// Begins to receive. The daemon tells the console's port whenever it has read something, which is of no interest.
    pub fn new(shared: &'static Shared, console: Port) -> Result<Self, Refused> {
        shared.unmask_all();
        shared.mask(console.0);
        set_upcall()?;
        let mut argument = evtchn_bind_virq { virq: VIRQ_TIMER, vcpu: 0, port: 0 };
        // SAFETY: the operation takes this structure.
        unsafe { hypercall::event_channel(EVTCHNOP_bind_virq, &mut argument) }?;
        Ok(Events { shared, timer: Port(argument.port), alarm: AtomicU64::new(0) })
    }

    /// See `Xen::alloc_unbound`.
    pub fn alloc_unbound(&self, remote: DomId) -> Result<Port, Refused> {
        let mut argument = evtchn_alloc_unbound { dom: DOMID_SELF, remote_dom: remote.0, port: 0 };
        // SAFETY: the operation takes this structure.
        unsafe { hypercall::event_channel(EVTCHNOP_alloc_unbound, &mut argument) }?;
        Ok(Port(argument.port))
    }

    /// See `Xen::bind`.
    pub fn bind(&self, remote: DomId, port: Port) -> Result<Port, Refused> {
        let mut argument = evtchn_bind_interdomain { remote_dom: remote.0, remote_port: port.0, local_port: 0 };
        // SAFETY: the operation takes this structure.
        unsafe { hypercall::event_channel(EVTCHNOP_bind_interdomain, &mut argument) }?;
        Ok(Port(argument.local_port))
    }

    /// See `Xen::close`.
    pub fn close(&self, port: Port) {
        let mut argument = evtchn_close { port: port.0 };
        // SAFETY: the operation takes this structure.
        let closed = unsafe { hypercall::event_channel(EVTCHNOP_close, &mut argument) };
        assert!(closed.is_ok(), "closing {port:?}: {closed:?}");
        // The number may be given out again, and must not come with the old event.
        self.shared.forget(port.0);
    }

    /// See `Xen::take_events`.
    pub fn take(&self, each: &mut dyn FnMut(Port)) {
        self.shared.take(&mut |port| {
            if port == self.timer.0 {
                self.alarm.store(0, Ordering::Relaxed);
            } else {
                each(Port(port));
            }
        });
    }

    /// See `Xen::wait`.
    pub fn wait(&self, until: Option<Instant>) {
        if let Some(until) = until {
            if clock::now() >= until {
                return;
            }
            self.set_alarm(until);
        }
        if !self.shared.is_pending() {
            idt::sleep();
        }
    }

    /// An alarm that is still set for an earlier wait only wakes us once too often.
    fn set_alarm(&self, at: Instant) {
        if self.alarm.swap(at.0, Ordering::Relaxed) == at.0 {
            return;
        }
        let mut argument = vcpu_set_singleshot_timer { timeout_abs_ns: at.0, flags: 0 };
        // SAFETY: the operation takes this structure.
        let set = unsafe { hypercall::vcpu(VCPUOP_set_singleshot_timer, &mut argument) };
        assert!(set.is_ok(), "setting the timer: {set:?}");
    }
}

/// Sends an event.
pub fn notify(port: Port) {
    let mut argument = evtchn_send { port: port.0 };
    // SAFETY: the operation takes this structure. A peer that is gone makes it fail, and then nobody waits for it.
    let _ = unsafe { hypercall::event_channel(EVTCHNOP_send, &mut argument) };
}

/// See `Xen::peer`.
pub fn peer(port: Port) -> PortState {
    let mut argument = evtchn_status { dom: DOMID_SELF, port: port.0, status: 0, vcpu: 0, u: [0; 2] };
    // SAFETY: the operation takes this structure.
    match unsafe { hypercall::event_channel(EVTCHNOP_status, &mut argument) } {
        Ok(_) if argument.status == EVTCHNSTAT_interdomain => PortState::Bound,
        Ok(_) if argument.status == EVTCHNSTAT_unbound => PortState::Unbound,
        _ => PortState::Closed,
    }
}

fn set_upcall() -> Result<(), Refused> {
    let upcall = HVM_PARAM_CALLBACK_TYPE_VECTOR << 56 | u64::from(idt::UPCALL);
    hypercall::set_parameter(HVM_PARAM_CALLBACK_IRQ, upcall)
}
