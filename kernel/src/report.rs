//! What is told through xenstore beside the disks' own nodes: errors, and what we hold.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use core::cell::RefCell;
use core::time::Duration;

use drivers::target::OpenError;
use protocol::number;
use protocol::xenstore::Reason;
use xen::port::Xen;
use xen::store::Store;

use crate::Shared;
use crate::attach::Key;

/// Errors that stay readable; the nodes are charged to us, so the oldest go.
const ERRORS_KEPT: usize = 8;

/// Least time between two lines of counters.
const PAUSE: Duration = Duration::from_millis(500);

/// The errors told, oldest first.
#[derive(Default)]
pub struct Errors(RefCell<VecDeque<Key>>);

impl Errors {
    /// Tells an error as xenbus does, in `error/backend/KIND/DOMAIN/DEVICE/error`, where it stays when the disk is gone.
    pub async fn tell<X: Xen>(&self, store: &Store<X>, key: Key, error: &OpenError) {
        if let Err(reason) = store.write(&format!("error/{key}/error"), &format!("{error}")).await {
            log::debug!("{key}: the error could not be written to xenstore: {reason:?}");
            return;
        }
        let oldest = {
            let mut kept = self.0.borrow_mut();
            kept.retain(|other| *other != key);
            kept.push_back(key);
            if kept.len() > ERRORS_KEPT { kept.pop_front() } else { None }
        };
        if let Some(oldest) = oldest {
            let domain = format!("error/backend/{}/{}", oldest.kind.name(), oldest.domain.0);
            // What is gone already needs no removing.
            let _ = store.remove(&format!("{domain}/{}", oldest.device)).await;
            if store.list(&domain).await.is_ok_and(|left| left.is_empty()) {
                let _ = store.remove(&domain).await;
            }
        }
    }
}

/// Keeps `data/counters` true: one line of what we hold. One task runs this.
pub async fn counters<X: Xen>(shared: Rc<Shared<X>>) {
    let mut told = String::new();
    loop {
        let held = shared.crew.holds();
        let now = format!(
            "vbds={} mappings={} grants={} ports={} pages={} nodes={}",
            shared.vbds.count(),
            held.mappings,
            held.grants,
            held.ports,
            held.pages,
            held.nodes
        );
        if now != told {
            match shared.store.write("data/counters", &now).await {
                Ok(()) => told = now,
                // Told with the next change, or after the pause.
                Err(reason) => log::debug!("data/counters: xenstore: {reason:?}"),
            }
            // Pages come and go with every request: without a pause a busy guest would have us write for ever.
            shared.domain.sleep(PAUSE).await;
            continue;
        }
        shared.domain.changed.wait().await;
    }
}

/// Our own domain's number, as xenstore tells it; 0 if the toolstack did not write it.
pub async fn number<X: Xen>(shared: &Shared<X>) -> Result<u16, Reason> {
    if shared.number.get() == 0 {
        let number = shared.store.read_if_there("domid").await?;
        shared.number.set(number.as_deref().and_then(number::u16).unwrap_or(0));
    }
    Ok(shared.number.get())
}

/// Says that disks can be attached.
pub async fn ready<X: Xen>(shared: &Shared<X>) -> Result<(), Reason> {
    shared.store.write("data/ready", concat!("tapdom ", env!("CARGO_PKG_VERSION"))).await?;
    let (used, all) = shared.domain.memory.figures();
    log::info!("tapdom {} is ready, {} of {} KiB of memory in use", env!("CARGO_PKG_VERSION"), used / 1024, all / 1024);
    Ok(())
}
