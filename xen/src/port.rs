//! The cut: the hypervisor as one domain sees it.
//!
//! Everything above [`Xen`] is product code and runs unchanged on the real hypervisor (package `boot`) and on the
//! in-memory one of the tests (package `sim`). Each vCPU has one of its own. One method is one hypercall, or one look at a page shared with Xen. No
//! method has a policy, none waits but [`Xen::wait`].

use alloc::vec::Vec;
use core::ops::Deref;
use core::time::Duration;

use crate::exec::Kick;
use crate::page::{Page, PageRef};

/// A domain's number. Numbers are used again after a domain died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomId(pub u16);

/// A local event channel port (`evtchn_port_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub u32);

/// A grant reference (`grant_ref_t`), ours or a peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantRef(pub u32);

/// Nanoseconds of Xen system time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Instant(pub u64);

impl core::ops::Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, rest: Duration) -> Instant {
        Instant(self.0.saturating_add(rest.as_nanos() as u64))
    }
}

/// Xen said no: a negative errno of `xen/errno.h`, or for grant operations a `GNTST_*` status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub i16);

impl Refused {
    /// `GNTST_eagain`: the peer's page is paged out or shared for the moment; the operation is to be made again.
    pub const AGAIN: Refused = Refused(-12);
    /// `GNTST_general_error`: what we say ourselves when there is no peer to ask for.
    pub const GONE: Refused = Refused(-1);
}

/// The other domain still uses the page; the grant stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StillInUse;

/// What is at the other end of a port of ours (`EVTCHNOP_status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// Another domain's port.
    Bound,
    /// Nothing: nobody has bound it yet, or who had is gone.
    Unbound,
    /// There is no such port.
    Closed,
}

/// What the receiver of a grant may do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// Another domain's page, as it granted it to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Whose page.
    pub domain: DomId,
    /// By which of its grants.
    pub grant: GrantRef,
    /// How we want it.
    pub access: Access,
}

/// Which way a [`Move`] goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the peer's page to ours.
    In,
    /// From our page to the peer's.
    Out,
}

/// One copy between a page of ours and a page granted to us (`GNTTABOP_copy`). Neither side may cross a page's end:
/// `offset + bytes <= 4096` on both.
#[derive(Clone)]
pub struct Move {
    /// Our page.
    pub ours: PageRef,
    /// Byte offset in it.
    pub ours_at: u16,
    /// Whose page.
    pub domain: DomId,
    /// By which of its grants.
    pub grant: GrantRef,
    /// Byte offset in it.
    pub theirs_at: u16,
    /// How many bytes.
    pub bytes: u16,
    /// Which way.
    pub way: Way,
}

/// Why the domain ends (`SHUTDOWN_*` of `sched.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Asked for, and clean.
    Poweroff,
    /// Asked for, and clean; to be started again.
    Reboot,
    /// Our own fault.
    Crash,
}

/// The hypervisor as one domain sees it.
pub trait Xen: 'static {
    /// One mapped foreign page. It ends only in [`unmap`](Xen::unmap).
    type Mapping: Deref<Target = Page> + 'static;

    /// A new port that `remote` may bind.
    fn alloc_unbound(&self, remote: DomId) -> Result<Port, Refused>;
    /// A new port bound to `port` of `remote`. Comes with one event pending.
    fn bind(&self, remote: DomId, port: Port) -> Result<Port, Refused>;
    /// Closes a port of ours. Its pending event, if any, is gone.
    fn close(&self, port: Port);
    /// Sends an event. To a peer that is gone it goes nowhere.
    fn notify(&self, port: Port);
    /// What is at the other end of a port of ours. When a domain dies, its ends of all ports are closed: nothing else
    /// tells that it is gone.
    fn peer(&self, port: Port) -> PortState;
    /// Takes every pending event of the ports that this vCPU has opened, at most one per port.
    fn take_events(&self, each: &mut dyn FnMut(Port));

    /// Grants `page` to another domain.
    fn lend(&self, page: &PageRef, to: DomId, access: Access) -> Result<GrantRef, Refused>;
    /// Ends a grant. As long as the other side uses the page it stands.
    fn reclaim(&self, grant: GrantRef) -> Result<(), StillInUse>;
    /// Maps pages granted to us; one result per page is appended, in order.
    fn map(&self, pages: &[Foreign], into: &mut Vec<Result<Self::Mapping, Refused>>);
    /// Ends mappings; the vector is empty afterwards.
    fn unmap(&self, pages: &mut Vec<Self::Mapping>);
    /// Makes the copies, in order; one result per move is appended.
    fn copy(&self, moves: &[Move], into: &mut Vec<Result<(), Refused>>);

    /// System time.
    fn now(&self) -> Instant;
    /// Sleeps until an event is pending (returns at once if one is) or `until` has come.
    fn wait(&self, until: Option<Instant>);
    /// What ends a [`wait`](Xen::wait) of this vCPU, this one or the next. For other vCPUs.
    fn kick(&self) -> Kick;
    /// Writes bytes to the console. Never waits for a reader: what does not fit is dropped.
    fn say(&self, bytes: &[u8]);
    /// The page shared with xenstored (`io/xs_wire.h`) and the port that goes with it.
    fn store_ring(&self) -> (&Page, Port);
    /// Ends the domain.
    fn stop(&self, reason: Stop) -> !;
}
