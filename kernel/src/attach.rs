//! From xenstore to disks: one task for every `backend/KIND/DOMAIN/DEVICE` directory, also for those that were there
//! before us.

use alloc::collections::btree_map::{BTreeMap, Entry};
use alloc::rc::Rc;
use core::cell::RefCell;
use core::convert::Infallible;
use core::fmt;

use embassy_futures::select::select;
use protocol::number;
use protocol::xenstore::Reason;
use xen::limits::VBDS;
use xen::patience::Patience;
use xen::port::{DomId, Xen};
use xen::sync::Signal;

use crate::{Shared, vbd};

/// A directory's name: what a toolstack calls a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The backend kind the toolstack chose; all are served alike.
    pub kind: Kind,
    /// The frontend's domain.
    pub domain: DomId,
    /// The device number.
    pub device: u32,
}

/// The kinds a toolstack's `format=` and `backendtype=` lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `format=raw`: phy.
    Vbd,
    /// Other formats.
    Qdisk,
    /// `backendtype=tap`, and XAPI.
    Vbd3,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Vbd, Kind::Qdisk, Kind::Vbd3];

    /// The directory's name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Vbd => "vbd",
            Kind::Qdisk => "qdisk",
            Kind::Vbd3 => "vbd3",
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backend/{}/{}/{}", self.kind.name(), self.domain.0, self.device)
    }
}

impl Key {
    /// The disk whose directory `path` is, or lies in.
    fn of(path: &str) -> Option<Key> {
        let mut parts = path.strip_prefix("backend/")?.split('/');
        let kind = parts.next()?;
        let kind = Kind::ALL.into_iter().find(|known| known.name() == kind)?;
        let domain = DomId(number::u16(parts.next()?)?);
        Some(Key { kind, domain, device: number::u32(parts.next()?)? })
    }
}

/// The disks that have a task.
#[derive(Default)]
pub struct Vbds(RefCell<BTreeMap<Key, Rc<Signal>>>);

impl Vbds {
    /// How many.
    pub fn count(&self) -> usize {
        self.0.borrow().len()
    }
}

/// Looks for directories as long as the domain lives. One task runs this; `ready` is raised when those that were there
/// from the start have been seen.
pub async fn run<X: Xen>(shared: Rc<Shared<X>>, ready: Rc<Signal>) {
    let patience = Patience::default();
    loop {
        let Err(reason) = look(&shared, &ready, &patience).await;
        // A fresh watch tells everything once more.
        log::error!("backend: xenstore: {reason:?}");
        shared.domain.sleep(patience.next()).await;
    }
}

async fn look<X: Xen>(shared: &Rc<Shared<X>>, ready: &Signal, patience: &Patience) -> Result<Infallible, Reason> {
    let watch = shared.store.watch("backend", "backend").await?;
    loop {
        let path = watch.next().await;
        match Key::of(&path) {
            Some(key) => changed(shared, key),
            None => {
                scan(shared).await?;
                patience.reset();
                ready.raise();
            }
        }
    }
}

/// Looks at every directory there is.
async fn scan<X: Xen>(shared: &Rc<Shared<X>>) -> Result<(), Reason> {
    for kind in Kind::ALL {
        let kind_path = alloc::format!("backend/{}", kind.name());
        for domain in list(shared, &kind_path).await? {
            for device in list(shared, &alloc::format!("{kind_path}/{domain}")).await? {
                if let Some(key) = Key::of(&alloc::format!("{kind_path}/{domain}/{device}")) {
                    changed(shared, key);
                }
            }
        }
    }
    Ok(())
}

async fn list<X: Xen>(shared: &Shared<X>, path: &str) -> Result<alloc::vec::Vec<alloc::string::String>, Reason> {
    match shared.store.list(path).await {
        Err(Reason::NoEntry | Reason::Access) => Ok(alloc::vec::Vec::new()),
        names => names,
    }
}

/// Something changed at or below a disk's directory: tell its task, or start one.
fn changed<X: Xen>(shared: &Rc<Shared<X>>, key: Key) {
    let mut vbds = shared.vbds.0.borrow_mut();
    let full = vbds.len() >= VBDS;
    match vbds.entry(key) {
        Entry::Occupied(entry) => entry.get().raise(),
        Entry::Vacant(_) if full => log::error!("{key}: {VBDS} disks are served already"),
        Entry::Vacant(entry) => {
            let signal = entry.insert(Rc::default()).clone();
            shared.domain.exec.spawn(disk(shared.clone(), key, signal));
        }
    }
}

async fn disk<X: Xen>(shared: Rc<Shared<X>>, key: Key, signal: Rc<Signal>) {
    let patience = Patience::default();
    loop {
        let result = vbd::run(&shared, key, &signal).await;
        // A directory removed and made again while its task was ending is a new disk. What changes while we look raises
        // the signal again.
        signal.lower();
        match shared.store.read_if_there(&alloc::format!("{key}/state")).await {
            Ok(None) if !signal.is_raised() => break,
            Ok(Some(state)) if state != "1" && result.is_ok() && !signal.is_raised() => break,
            Ok(_) if result.is_ok() => patience.reset(),
            // Xenstore itself said no: there is nothing to do before something changes, or its trouble has passed.
            Ok(_) | Err(_) => {
                select(signal.wait(), shared.domain.sleep(patience.next())).await;
            }
        }
    }
    shared.vbds.0.borrow_mut().remove(&key);
    shared.domain.changed.raise();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_disks() {
        let key = Key { kind: Kind::Vbd, domain: DomId(5), device: 51712 };
        assert_eq!(Key::of("backend/vbd/5/51712/state"), Some(key));
        assert_eq!(Key::of("backend/vbd/5/51712"), Some(key));
        assert_eq!(Key::of("backend/vbd3/0/1"), Some(Key { kind: Kind::Vbd3, domain: DomId(0), device: 1 }));
        for path in [
            "backend",
            "backend/vbd",
            "backend/vbd/5",
            "backend/vif/5/0",
            "backend/vbd/-5/1",
            "backend/vbd/65536/1",
            "x",
        ] {
            assert_eq!(Key::of(path), None, "{path}");
        }
        assert_eq!(alloc::format!("{key}"), "backend/vbd/5/51712");
    }
}
