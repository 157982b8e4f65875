//! Event channels (`event_channel.h`) and sleeping. Interrupts are off but inside [`idt::sleep`]: an event never
//! interrupts anything.

use core::sync::atomic::{AtomicU64, Ordering};

use alloc::sync::Arc;
use boot::shared::{Ports, Shared};
use xen::exec::Kick;
use xen::port::{DomId, Instant, Port, PortState, Refused};
use xen_sys::event_channel::{
    EVTCHNOP_alloc_unbound, EVTCHNOP_bind_interdomain, EVTCHNOP_bind_ipi, EVTCHNOP_bind_vcpu, EVTCHNOP_bind_virq,
    EVTCHNOP_close, EVTCHNOP_send, EVTCHNOP_status, EVTCHNSTAT_interdomain, EVTCHNSTAT_unbound, evtchn_alloc_unbound,
    evtchn_bind_interdomain, evtchn_bind_ipi, evtchn_bind_vcpu, evtchn_bind_virq, evtchn_close, evtchn_send,
    evtchn_status,
};
use xen_sys::hvm::{HVM_PARAM_CALLBACK_IRQ, HVM_PARAM_CALLBACK_TYPE_VECTOR};
use xen_sys::vcpu::{VCPUOP_set_singleshot_timer, vcpu_set_singleshot_timer};
use xen_sys::xen::{DOMID_SELF, VIRQ_TIMER};

use crate::clock::Clock;
use crate::{hypercall, idt};

/// Event channels of one vCPU.
pub struct Events {
    shared: &'static Shared,
    vcpu: usize,
    /// Those whose events come to it.
    ports: Ports,
    timer: Port,
    /// What other vCPUs send to wake it; none where there are no others.
    wake: Option<Port>,
    clock: Clock,
    /// When the timer will fire; 0 if it is not set.
    alarm: AtomicU64,
}

/// Lets events be told, on all vCPUs. The daemon tells the console's port whenever it has read something, which is of no
/// interest.
pub fn begin(shared: &'static Shared, console: Port) -> Result<(), Refused> {
    shared.unmask_all();
    shared.mask(console.0);
    set_upcall()
}

impl Events {
    /// Of this vCPU, whose port `given` is too. With `wakes` it can be woken by others.
    pub fn new(shared: &'static Shared, vcpu: usize, given: Option<Port>, wakes: bool) -> Result<Self, Refused> {
        let number = vcpu as u32;
        let mut timer = evtchn_bind_virq { virq: VIRQ_TIMER, vcpu: number, port: 0 };
        // SAFETY: the operation takes this structure.
        unsafe { hypercall::event_channel(EVTCHNOP_bind_virq, &mut timer) }?;
        let mut wake = evtchn_bind_ipi { vcpu: number, port: 0 };
        if wakes {
            // SAFETY: as above.
            unsafe { hypercall::event_channel(EVTCHNOP_bind_ipi, &mut wake) }?;
        }
        let (timer, wake) = (Port(timer.port), wakes.then_some(Port(wake.port)));
        let ports = Ports::default();
        [Some(timer), wake, given].into_iter().flatten().for_each(|port| ports.add(port.0));
        let clock = Clock::new(&shared.vcpus[vcpu].time);
        Ok(Events { shared, vcpu, ports, timer, wake, clock, alarm: AtomicU64::new(0) })
    }

    /// Has the events of a new port come to this vCPU. One that came before went to the first, which leaves it where it
    /// is; while it stands no other is told of, so it is taken away here. Whoever opens a port looks at what it is
    /// about before waiting for its first event.
    fn own(&self, port: Port) -> Result<Port, Refused> {
        if self.vcpu > 0 {
            let mut argument = evtchn_bind_vcpu { port: port.0, vcpu: self.vcpu as u32 };
            // SAFETY: the operation takes this structure.
            let bound = unsafe { hypercall::event_channel(EVTCHNOP_bind_vcpu, &mut argument) };
            if let Err(refused) = bound {
                self.close(port);
                return Err(refused);
            }
        }
        self.ports.add(port.0);
        if self.vcpu > 0 {
            self.shared.forget(port.0);
        }
        Ok(port)
    }

    /// See `Xen::kick`.
    pub fn kick(&self) -> Kick {
        let port = self.wake.expect("asked for where there are several vCPUs");
        Arc::new(move || notify(port))
    }

    /// See `Xen::now`.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// See `Xen::alloc_unbound`.
    pub fn alloc_unbound(&self, remote: DomId) -> Result<Port, Refused> {
        let mut argument = evtchn_alloc_unbound { dom: DOMID_SELF, remote_dom: remote.0, port: 0 };
        // SAFETY: the operation takes this structure.
        unsafe { hypercall::event_channel(EVTCHNOP_alloc_unbound, &mut argument) }?;
        self.own(Port(argument.port))
    }

    /// See `Xen::bind`.
    pub fn bind(&self, remote: DomId, port: Port) -> Result<Port, Refused> {
        let mut argument = evtchn_bind_interdomain { remote_dom: remote.0, remote_port: port.0, local_port: 0 };
        // SAFETY: the operation takes this structure.
        unsafe { hypercall::event_channel(EVTCHNOP_bind_interdomain, &mut argument) }?;
        self.own(Port(argument.local_port))
    }

    /// See `Xen::close`.
    pub fn close(&self, port: Port) {
        // From the moment it is closed its number may be another vCPU's.
        self.ports.remove(port.0);
        self.shared.forget(port.0);
        let mut argument = evtchn_close { port: port.0 };
        // SAFETY: the operation takes this structure.
        let closed = unsafe { hypercall::event_channel(EVTCHNOP_close, &mut argument) };
        assert!(closed.is_ok(), "closing {port:?}: {closed:?}");
    }

    /// See `Xen::take_events`.
    pub fn take(&self, each: &mut dyn FnMut(Port)) {
        self.shared.take(self.vcpu, &self.ports, &mut |port| {
            if port == self.timer.0 {
                self.alarm.store(0, Ordering::Relaxed);
            } else if self.wake != Some(Port(port)) {
                each(Port(port));
            }
        });
    }

    /// See `Xen::wait`.
    pub fn wait(&self, until: Option<Instant>) {
        if let Some(until) = until {
            if self.now() >= until {
                return;
            }
            self.set_alarm(until);
        }
        if !self.shared.is_pending(self.vcpu) {
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
        let set = unsafe { hypercall::vcpu(VCPUOP_set_singleshot_timer, self.vcpu, &mut argument) };
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
