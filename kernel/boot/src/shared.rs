//! The page shared with Xen (`struct shared_info` of `xen.h`), in the shape in which it may be touched: Xen writes it
//! at any moment, so every field we use is an atomic. Two-level event channels (`event_channel.h`).

use core::mem::offset_of;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use xen_sys::xen::{XEN_LEGACY_MAX_VCPUS, shared_info, vcpu_info};

use crate::pvclock::Time;

/// What Xen tells one vCPU.
#[repr(C)]
pub struct Vcpu {
    upcall_pending: AtomicU8,
    /// A bit per word of `pending` with news.
    selector: AtomicU64,
    arch: [u64; 2],
    /// Its clock.
    pub time: Time,
}

/// The shared page.
#[repr(C)]
pub struct Shared {
    /// One per vCPU.
    pub vcpus: [Vcpu; XEN_LEGACY_MAX_VCPUS],
    pending: [AtomicU64; 64],
    masks: [AtomicU64; 64],
}

const _: () = {
    assert!(offset_of!(Vcpu, selector) == offset_of!(vcpu_info, evtchn_pending_sel));
    assert!(offset_of!(Vcpu, time) == offset_of!(vcpu_info, time));
    assert!(size_of::<Vcpu>() == size_of::<vcpu_info>());
    assert!(offset_of!(Shared, pending) == offset_of!(shared_info, evtchn_pending));
    assert!(offset_of!(Shared, masks) == offset_of!(shared_info, evtchn_mask));
};

/// The ports whose events are one vCPU's: the bits of all stand in the same words, and each takes only its own.
pub struct Ports([AtomicU64; 64]);

impl Default for Ports {
    fn default() -> Self {
        Ports(core::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Ports {
    /// One more. Only its own vCPU looks at these.
    pub fn add(&self, port: u32) {
        self.0[port as usize / 64].fetch_or(1 << (port % 64), Ordering::Relaxed);
    }

    /// One less.
    pub fn remove(&self, port: u32) {
        self.0[port as usize / 64].fetch_and(!(1 << (port % 64)), Ordering::Relaxed);
    }
}

impl Shared {
    /// Whether an upcall is due on this vCPU: some port has an event since the last [`take`](Shared::take).
    pub fn is_pending(&self, vcpu: usize) -> bool {
        self.vcpus[vcpu].upcall_pending.load(Ordering::SeqCst) != 0
    }

    /// Takes the pending events of this vCPU and of these ports, each port once. An event that comes meanwhile raises the
    /// upcall again: its flag is cleared before anything is looked at. One pass and no loop, so a peer that never stops
    /// sending does not keep us here.
    pub fn take(&self, vcpu: usize, ports: &Ports, each: &mut dyn FnMut(u32)) {
        let vcpu = &self.vcpus[vcpu];
        vcpu.upcall_pending.swap(0, Ordering::SeqCst);
        for word in bits(vcpu.selector.swap(0, Ordering::SeqCst)) {
            let its = ports.0[word].load(Ordering::Relaxed) & !self.masks[word].load(Ordering::SeqCst);
            let news = self.pending[word].load(Ordering::SeqCst) & its;
            self.pending[word].fetch_and(!news, Ordering::SeqCst);
            for bit in bits(news) {
                each((word * 64 + bit) as u32);
            }
        }
    }

    /// Forgets the event of a port, if any.
    pub fn forget(&self, port: u32) {
        self.pending[port as usize / 64].fetch_and(!(1 << (port % 64)), Ordering::SeqCst);
    }

    /// Keeps a port from raising upcalls: its news is of no interest.
    pub fn mask(&self, port: u32) {
        self.masks[port as usize / 64].fetch_or(1 << (port % 64), Ordering::SeqCst);
    }

    /// Lets every port raise upcalls. At the start, before any port is of interest.
    pub fn unmask_all(&self) {
        self.masks.iter().for_each(|mask| mask.store(0, Ordering::SeqCst));
    }
}

/// Positions of the bits that are set, lowest first.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        (word != 0).then(|| {
            let bit = word.trailing_zeros() as usize;
            word &= word - 1;
            bit
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Shared {
        let vcpu = || Vcpu { upcall_pending: 0.into(), selector: 0.into(), arch: [0; 2], time: Time::default() };
        Shared {
            vcpus: core::array::from_fn(|_| vcpu()),
            pending: core::array::from_fn(|_| 0.into()),
            masks: core::array::from_fn(|_| 0.into()),
        }
    }

    fn all() -> Ports {
        let ports = Ports::default();
        (0..4096).for_each(|port| ports.add(port));
        ports
    }

    impl Shared {
        /// What Xen does (`evtchn_2l_set_pending`).
        fn send(&self, port: u32) {
            self.send_to(0, port);
        }

        fn send_to(&self, vcpu: usize, port: u32) {
            let (word, bit) = (port as usize / 64, 1 << (port % 64));
            if self.pending[word].fetch_or(bit, Ordering::SeqCst) & bit != 0 {
                return;
            }
            if self.masks[word].load(Ordering::SeqCst) & bit != 0 {
                return;
            }
            let selected = 1 << word;
            if self.vcpus[vcpu].selector.fetch_or(selected, Ordering::SeqCst) & selected == 0 {
                self.vcpus[vcpu].upcall_pending.store(1, Ordering::SeqCst);
            }
        }

        fn taken(&self) -> Vec<u32> {
            let mut taken = Vec::new();
            self.take(0, &all(), &mut |port| taken.push(port));
            taken
        }
    }

    #[test]
    fn every_port_is_taken_once() {
        let shared = shared();
        for port in [4095, 0, 63, 64, 64, 1000] {
            shared.send(port);
        }
        assert!(shared.is_pending(0));
        assert_eq!(shared.taken(), [0, 63, 64, 1000, 4095]);
        assert!(!shared.is_pending(0));
        assert_eq!(shared.taken(), []);
    }

    #[test]
    fn an_event_during_the_taking_is_pending_afterwards() {
        let shared = shared();
        shared.send(5);
        let mut first = Vec::new();
        shared.take(0, &all(), &mut |port| {
            first.push(port);
            shared.send(port);
        });
        assert_eq!(first, [5]);
        assert!(shared.is_pending(0));
        assert_eq!(shared.taken(), [5]);
    }

    #[test]
    fn each_vcpu_takes_its_own_ports() {
        let shared = shared();
        let (first, second) = (Ports::default(), Ports::default());
        first.add(3);
        [4, 70].iter().for_each(|port| second.add(*port));
        [(0, 3), (1, 4), (1, 70)].iter().for_each(|(vcpu, port)| shared.send_to(*vcpu, *port));
        let taken = |vcpu, ports: &Ports| {
            let mut taken = Vec::new();
            shared.take(vcpu, ports, &mut |port| taken.push(port));
            taken
        };
        assert_eq!((taken(0, &first), shared.is_pending(1)), (vec![3], true));
        assert_eq!((taken(1, &second), shared.is_pending(1)), (vec![4, 70], false));
        second.remove(4);
        shared.send_to(1, 4);
        assert_eq!(taken(1, &second), []);
    }

    #[test]
    fn forgotten_and_masked_ports_are_silent() {
        let shared = shared();
        shared.mask(9);
        shared.send(9);
        assert!(!shared.is_pending(0));
        shared.send(10);
        shared.send(11);
        shared.forget(10);
        assert_eq!(shared.taken(), [11]);
        shared.unmask_all();
        shared.forget(9);
        shared.send(9);
        assert_eq!(shared.taken(), [9]);
    }
}
