//! The trait `Xen`, on real Xen.

use alloc::vec::Vec;

use xen::exec::Kick;
use xen::page::{Page, PageRef};
use xen::port::{Access, DomId, Foreign, GrantRef, Instant, Move, Port, PortState, Refused, StillInUse, Stop, Xen};
use xen_sys::sched::{SHUTDOWN_crash, SHUTDOWN_poweroff, SHUTDOWN_reboot};

use crate::events::{self, Events};
use crate::grants::{self, Grants};
use crate::window::{Mapping, Window};
use crate::{console, epitaph};

/// This domain, as one of its vCPUs sees it.
pub struct Machine {
    /// Event channels of this vCPU.
    pub events: Events,
    /// The grant table.
    pub grants: &'static Grants,
    /// Pages of other domains.
    pub window: &'static Window,
    /// The page shared with xenstored, and its port.
    pub store: (&'static Page, Port),
}

impl Xen for Machine {
    type Mapping = Mapping;

    fn alloc_unbound(&self, remote: DomId) -> Result<Port, Refused> {
        self.events.alloc_unbound(remote)
    }
    fn bind(&self, remote: DomId, port: Port) -> Result<Port, Refused> {
        self.events.bind(remote, port)
    }
    fn close(&self, port: Port) {
        self.events.close(port)
    }
    fn notify(&self, port: Port) {
        events::notify(port)
    }
    fn peer(&self, port: Port) -> PortState {
        events::peer(port)
    }
    fn take_events(&self, each: &mut dyn FnMut(Port)) {
        self.events.take(each)
    }

    fn lend(&self, page: &PageRef, to: DomId, access: Access) -> Result<GrantRef, Refused> {
        self.grants.lend(page, to, access)
    }
    fn reclaim(&self, grant: GrantRef) -> Result<(), StillInUse> {
        self.grants.reclaim(grant)
    }
    fn map(&self, pages: &[Foreign], into: &mut Vec<Result<Mapping, Refused>>) {
        self.window.map(pages, into)
    }
    fn unmap(&self, pages: &mut Vec<Mapping>) {
        self.window.unmap(pages)
    }
    fn copy(&self, moves: &[Move], into: &mut Vec<Result<(), Refused>>) {
        grants::copy(moves, into)
    }

    fn now(&self) -> Instant {
        self.events.now()
    }
    fn wait(&self, until: Option<Instant>) {
        self.events.wait(until)
    }
    fn kick(&self) -> Kick {
        self.events.kick()
    }
    fn say(&self, bytes: &[u8]) {
        console::say(bytes)
    }
    fn store_ring(&self) -> (&Page, Port) {
        self.store
    }
    fn stop(&self, reason: Stop) -> ! {
        epitaph::shutdown(match reason {
            Stop::Poweroff => SHUTDOWN_poweroff,
            Stop::Reboot => SHUTDOWN_reboot,
            Stop::Crash => SHUTDOWN_crash,
        })
    }
}
