//! Event channels as `xen/common/event_channel.c` has them (2-level): bits, not messages.

use std::collections::BTreeSet;

use xen::port::{DomId, Port, Refused};

use crate::world::{ESRCH, Life, World};

const EINVAL: i16 = -22;
const ENOSPC: i16 = -28;

/// `max_event_channels` of xl.cfg(5).
const PORTS_MAX: u32 = 1023;

/// One end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Waits for `remote` to bind it.
    Unbound {
        /// Who may.
        remote: DomId,
    },
    /// Bound.
    Interdomain {
        /// The other end's domain.
        remote: DomId,
        /// The other end's port.
        port: u32,
    },
}

impl World {
    /// A new port of `id` that `remote` may bind. The lowest free number is taken, as Xen does, so that a stale number
    /// soon means another channel.
    pub fn alloc_unbound(&self, id: DomId, remote: DomId) -> Result<Port, Refused> {
        let port = self.free_port(id)?;
        let mut xen = self.hypervisor();
        let domain = xen.domains.get_mut(&id).ok_or(Refused(ESRCH))?;
        domain.ports.insert(port, Channel::Unbound { remote });
        Ok(Port(port))
    }

    /// A new port of `id`, bound to `port` of `remote`. One event is pending on it.
    pub fn bind(&self, id: DomId, remote: DomId, port: Port) -> Result<Port, Refused> {
        let local = self.free_port(id)?;
        let mut xen = self.hypervisor();
        let far = xen.domains.get_mut(&remote).filter(|far| far.life == Life::Alive).ok_or(Refused(ESRCH))?;
        match far.ports.get_mut(&port.0) {
            Some(end) if *end == (Channel::Unbound { remote: id }) => {
                *end = Channel::Interdomain { remote: id, port: local };
            }
            _ => return Err(Refused(EINVAL)),
        }
        let near = xen.domains.get_mut(&id).ok_or(Refused(ESRCH))?;
        near.ports.insert(local, Channel::Interdomain { remote, port: port.0 });
        near.pending.insert(local);
        xen.activity += 1;
        Ok(Port(local))
    }

    /// Closes a port. The other end is unbound again, for the same domain number, and hears nothing of it. Returns
    /// whether there was such a port.
    pub fn close(&self, id: DomId, port: Port) -> bool {
        let mut xen = self.hypervisor();
        let Some(domain) = xen.domains.get_mut(&id) else { return false };
        domain.pending.remove(&port.0);
        domain.vcpus.remove(&port.0);
        let Some(end) = domain.ports.remove(&port.0) else { return false };
        if let Channel::Interdomain { remote, port } = end
            && let Some(far) = xen.domains.get_mut(&remote)
            && let Some(far) = far.ports.get_mut(&port)
        {
            *far = Channel::Unbound { remote: id };
        }
        true
    }

    /// Sends an event; to an unbound port's peer it goes nowhere. Returns whether there was such a port.
    pub fn notify(&self, id: DomId, port: Port) -> bool {
        let mut xen = self.hypervisor();
        match xen.domains.get(&id).and_then(|domain| domain.ports.get(&port.0)).copied() {
            Some(Channel::Interdomain { remote, port }) => {
                if let Some(far) = xen.domains.get_mut(&remote) {
                    far.pending.insert(port);
                }
                xen.activity += 1;
                true
            }
            Some(Channel::Unbound { .. }) => true,
            None => false,
        }
    }

    /// Takes all pending events of a domain, in the order of their bits.
    pub fn take_events(&self, id: DomId) -> Vec<Port> {
        let mut xen = self.hypervisor();
        let Some(domain) = xen.domains.get_mut(&id) else { return Vec::new() };
        std::mem::take(&mut domain.pending).into_iter().map(Port).collect()
    }

    /// Takes those of the ports that one of its vCPUs has opened.
    pub fn take_events_of(&self, id: DomId, vcpu: usize) -> Vec<Port> {
        let mut xen = self.hypervisor();
        let Some(domain) = xen.domains.get_mut(&id) else { return Vec::new() };
        let (its, others) =
            std::mem::take(&mut domain.pending).into_iter().partition(|port| domain.vcpu(*port) == vcpu);
        let its: BTreeSet<u32> = its;
        domain.pending = others;
        its.into_iter().map(Port).collect()
    }

    /// Whether an event waits for this vCPU.
    pub fn has_events_of(&self, id: DomId, vcpu: usize) -> bool {
        let xen = self.look();
        xen.domains.get(&id).is_some_and(|domain| domain.pending.iter().any(|port| domain.vcpu(*port) == vcpu))
    }

    /// Has the events of this port go to that vCPU (`EVTCHNOP_bind_vcpu`); what is pending goes with it.
    pub fn bind_vcpu(&self, id: DomId, port: Port, vcpu: usize) {
        if let Some(domain) = self.hypervisor().domains.get_mut(&id) {
            domain.vcpus.insert(port.0, vcpu);
        }
    }

    /// Takes the event of one port, for the several actors that live in dom0.
    pub fn take_event(&self, id: DomId, port: Port) -> bool {
        self.hypervisor().domains.get_mut(&id).is_some_and(|domain| domain.pending.remove(&port.0))
    }

    /// Whether an event waits.
    pub fn has_events(&self, id: DomId) -> bool {
        self.look().domains.get(&id).is_some_and(|domain| !domain.pending.is_empty())
    }

    /// What a port is (`EVTCHNOP_status`).
    pub fn channel(&self, id: DomId, port: Port) -> Option<Channel> {
        self.look().domains.get(&id)?.ports.get(&port.0).copied()
    }

    /// Whether somebody is at the other end of the port.
    pub fn is_bound(&self, id: DomId, port: Port) -> bool {
        matches!(self.channel(id, port), Some(Channel::Interdomain { .. }))
    }

    fn free_port(&self, id: DomId) -> Result<u32, Refused> {
        let xen = self.look();
        let domain = xen.domains.get(&id).ok_or(Refused(ESRCH))?;
        (1..=PORTS_MAX).find(|port| !domain.ports.contains_key(port)).ok_or(Refused(ENOSPC))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const A: DomId = DomId(1);
    const B: DomId = DomId(2);

    fn pair() -> World {
        let world = World::new(Random::new(1));
        world.create(A);
        world.create(B);
        world
    }

    #[test]
    fn events_coalesce_and_a_fresh_bind_has_one_pending() {
        let world = pair();
        let a = world.alloc_unbound(A, B).unwrap();
        let b = world.bind(B, A, a).unwrap();
        assert_eq!(world.take_events(B), [b]);
        for _ in 0..3 {
            world.notify(B, b);
        }
        assert_eq!(world.take_events(A), [a]);
        assert!(!world.has_events(A));
    }

    #[test]
    fn a_closed_end_leaves_the_other_unbound_and_deaf_until_it_is_bound_again() {
        let world = pair();
        let a = world.alloc_unbound(A, B).unwrap();
        let b = world.bind(B, A, a).unwrap();
        assert_eq!(world.bind(B, A, a), Err(Refused(EINVAL)), "one bound peer at a time");
        assert!(world.close(B, b));
        assert_eq!(world.channel(A, a), Some(Channel::Unbound { remote: B }));
        assert!(world.notify(A, a));
        assert!(!world.has_events(B));
        assert!(!world.notify(B, b), "closed is closed");
        assert!(world.bind(B, A, a).is_ok());
    }

    #[test]
    fn only_the_named_domain_may_bind() {
        let world = pair();
        world.create(DomId(3));
        let a = world.alloc_unbound(A, B).unwrap();
        assert_eq!(world.bind(DomId(3), A, a), Err(Refused(EINVAL)));
        assert_eq!(world.bind(B, DomId(9), a), Err(Refused(ESRCH)));
    }
}
