//! The daemon's threads: one looks for disks, each disk has one.
//!
//! Letting a ring go waits for what is in flight, which may take as long as the store below takes: nobody else is to
//! wait for that.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use protocol::blkif::keys as node;

use super::{Keeper, Key, Setting, Went, key};
use crate::dom0::store::Store;
use crate::failure::Failure;

/// Disks have little to remember.
const STACK_BYTES: usize = 256 << 10;

/// Runs until xenstore fails.
pub fn run(setting: &Setting<'_>) -> Result<(), Failure> {
    let mut store = Store::open()?;
    store.watch(setting.root, "root")?;
    let kept = Mutex::new(BTreeSet::new());
    thread::scope(|scope| {
        loop {
            let Some((path, _)) = store.event(None)? else { continue };
            let found = path.strip_prefix(setting.root).and_then(|rest| key(rest.trim_start_matches('/')));
            let found = match found {
                Some(key) => vec![key],
                // The root itself or a guest's directory.
                None => all(&mut store, setting.root)?,
            };
            for key in found {
                if !lock(&kept).insert(key) {
                    continue;
                }
                let kept = &kept;
                let started = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, move || {
                    if let Err(why) = keep(setting, key, kept) {
                        tell(key, &why);
                        lock(kept).remove(&key);
                    }
                });
                if let Err(why) = started {
                    tell(key, &why.into());
                    lock(kept).remove(&key);
                }
            }
        }
    })
}

/// Looks after one disk as long as it has a directory.
fn keep(setting: &Setting<'_>, key: Key, kept: &Mutex<BTreeSet<Key>>) -> Result<(), Failure> {
    let mut store = Store::open()?;
    let mut keeper = Keeper::new(setting, key);
    store.watch(keeper.home(), "home")?;
    loop {
        // Several events are one: what counts is how things are now.
        store.event(None)?;
        while store.has_event() {
            store.event(None)?;
        }
        if keeper.turn(&mut store)? == Went::Away {
            // Made anew meanwhile? Who looks for disks believes that this one is kept.
            let mut kept = lock(kept);
            if store.read(&format!("{}/{}", keeper.home(), node::STATE))?.is_none() {
                kept.remove(&key);
                return Ok(());
            }
            drop(kept);
            keeper = Keeper::new(setting, key);
            keeper.turn(&mut store)?;
        }
    }
}

fn all(store: &mut Store, root: &str) -> Result<Vec<Key>, Failure> {
    let mut all = Vec::new();
    for guest in store.list(root)? {
        for device in store.list(&format!("{root}/{guest}"))? {
            all.extend(key(&format!("{guest}/{device}")));
        }
    }
    Ok(all)
}

fn tell(key: Key, why: &Failure) {
    eprintln!("tap-ctl: xenio: device {} of guest {}: {why}", key.1, key.0);
}

fn lock(kept: &Mutex<BTreeSet<Key>>) -> MutexGuard<'_, BTreeSet<Key>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}
