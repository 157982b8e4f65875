//! Rings that messages connect (XENBLKIF_CONNECT): of frontends whose handshake somebody else does.

use alloc::format;
use alloc::rc::Rc;
use core::future::poll_fn;
use core::task::Poll;
use core::time::Duration;
use protocol::errno::Errno;

use drivers::target::OpenError;
use embassy_futures::select::{Either, select};
use protocol::tapdisk::{Blkif, Vdev};
use xen::limits::{MEMORY_PER_RING, VBDS};
use xen::port::{DomId, Port, PortState, Xen};

use crate::Shared;
use crate::minor::Minor;
use crate::queue::{self, Handle, Ring, Whose};
use crate::request::Desk;

/// How often we look whether the guest is still at its end of the port: when it is not, nobody else may tell us.
const LOOK: Duration = Duration::from_secs(2);

/// The ring of this guest and device that a message connected, from whichever minor it is served.
pub fn find<X: Xen>(shared: &Shared<X>, vdev: Vdev) -> Option<Rc<Handle>> {
    let minors = shared.minors.all();
    minors.iter().find_map(|minor| of(minor, vdev).filter(|handle| handle.by_message))
}

/// The ring of this guest and device that is served from this minor.
pub fn of<X: Xen>(minor: &Minor<X>, vdev: Vdev) -> Option<Rc<Handle>> {
    some(minor, vdev, |ring| !ring.is_stopping())
}

/// The ring of this guest and device that was let go of, and whose requests are still in flight to the image that is
/// under this minor now.
pub fn ending<X: Xen>(minor: &Minor<X>, vdev: Vdev) -> Option<Rc<Handle>> {
    some(minor, vdev, |ring| ring.is_stopping() && ring.life == minor.life())
}

fn some<X: Xen>(minor: &Minor<X>, vdev: Vdev, is_meant: impl Fn(&Handle) -> bool) -> Option<Rc<Handle>> {
    let is_its = |ring: &Handle| (ring.guest, ring.device) == (DomId(vdev.domid), vdev.devid);
    minor.rings.borrow().iter().find(|ring| is_its(ring) && is_meant(ring)).cloned()
}

/// Serves a ring. The caller has seen that the minor is servable and has no such ring.
pub fn connect<X: Xen>(shared: &Rc<Shared<X>>, minor: &Rc<Minor<X>>, blkif: &Blkif<'_>) -> Result<(), OpenError> {
    let (guest, device) = (DomId(blkif.vdev.domid), blkif.vdev.devid);
    let Some(info) = minor.info() else {
        return Err(OpenError::new(Errno::ENODEV, "no image is open"));
    };
    // A guest pays for what it grants, but the ring costs us memory too.
    if shared.minors.all().iter().map(|minor| minor.rings.borrow().len()).sum::<usize>() >= VBDS {
        return Err(OpenError::new(Errno::ENOMEM, format!("{VBDS} rings are served already")));
    }
    let (domain, memory) = (&shared.domain, &shared.domain.memory);
    let promise = memory.promise(MEMORY_PER_RING).ok_or_else(|| OpenError::new(Errno::ENOMEM, format!("{memory}")))?;
    let ring = Ring::take(domain, guest, blkif.grefs.as_slice(), blkif.port, blkif.proto.layout());
    let ring = ring.map_err(|no| OpenError::new(Errno::EINVAL, format!("domain {}: {no}", guest.0)))?;
    let port = ring.channel.port();
    let read_only = info.read_only || minor.is_read_only();
    let handle = Handle::new(Whose { guest, device, queue: 0, by_message: true, life: minor.life() }, ring.pages);
    let discard = info.discard.is_some() && !read_only;
    let desk = Desk::new(minor.clone(), handle.clone(), promise, read_only, discard, None);
    let (user, queue) = (minor.used(), queue::start(domain.clone(), Rc::new(desk), ring, handle.clone()));
    domain.exec.spawn(async move {
        queue.await;
        // Here and not later: who waited for the end finds the minor unused.
        drop(user);
    });
    domain.exec.spawn(look_after(shared.clone(), minor.clone(), handle, port));
    shared.domain.changed.raise();
    Ok(())
}

/// Ends a ring whose guest is gone or broke it, or whose image was closed. One task a ring.
async fn look_after<X: Xen>(shared: Rc<Shared<X>>, minor: Rc<Minor<X>>, handle: Rc<Handle>, port: Port) {
    let mut changed = minor.changed.listen();
    loop {
        let over = poll_fn(|cx| {
            while changed.poll(cx).is_ready() {}
            let closed = minor.life() != handle.life;
            if handle.broken.poll(cx).is_ready() || closed { Poll::Ready(()) } else { Poll::Pending }
        });
        let ended = async {
            match select(over, shared.domain.sleep(LOOK)).await {
                Either::First(()) => true,
                Either::Second(()) => shared.domain.xen.peer(port) != PortState::Bound,
            }
        };
        match select(handle.ended(), ended).await {
            Either::First(()) => break,
            Either::Second(false) => {}
            Either::Second(true) => handle.end().await,
        }
    }
    shared.domain.changed.raise();
}
