//! All lower disks of this domain, by number; those that come later too.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::convert::Infallible;
use core::fmt::Display;
use core::time::Duration;
use protocol::errno::Errno;

use embassy_futures::select::{Either, select};
use protocol::number;
use protocol::xenstore::Reason;
use xen::domain::Domain;
use xen::patience::Patience;
use xen::port::Xen;
use xen::store::Store;
use xen::sync::Signal;

use super::blkfront::{Blkfront, Life};
use crate::claims::Claims;
use crate::target::{Lower, OpenError};

/// How long an open waits for a disk that is on its way, within the 10 s that libxl waits for us.
const PATIENCE: Duration = Duration::from_secs(6);

/// The lower disks.
pub struct Lowers<X: Xen> {
    pub(crate) domain: Rc<Domain<X>>,
    store: Store<X>,
    disks: RefCell<BTreeMap<u32, Rc<Blkfront<X>>>>,
    /// A disk ended: its directory may have been made anew before it had.
    ended: Rc<Signal>,
    /// The images on them that are open.
    pub claims: Claims,
}

impl<X: Xen> Lowers<X> {
    /// None yet.
    pub fn new(domain: &Rc<Domain<X>>, store: &Store<X>) -> Rc<Self> {
        Rc::new(Lowers {
            domain: domain.clone(),
            store: store.clone(),
            disks: RefCell::default(),
            ended: Rc::default(),
            claims: Claims::default(),
        })
    }

    /// Finds the disks, and those that come later. One task runs this.
    pub async fn run(self: Rc<Self>) {
        let patience = Patience::default();
        loop {
            let Err(reason) = self.look_after(&patience).await;
            log::error!("lower disks: xenstore: {reason:?}");
            self.domain.sleep(patience.next()).await;
        }
    }

    async fn look_after(&self, patience: &Patience) -> Result<Infallible, Reason> {
        let watch = self.store.watch("device/vbd", "device/vbd").await?;
        loop {
            select(watch.next(), self.ended.wait()).await;
            self.look().await?;
            patience.reset();
        }
    }

    /// Starts a disk for every directory that has none. Also the way to know that all of the configuration were seen.
    pub async fn look(&self) -> Result<(), Reason> {
        let names = match self.store.list("device/vbd").await {
            Err(Reason::NoEntry) => return Ok(()),
            names => names?,
        };
        self.disks.borrow_mut().retain(|_, disk| !disk.has_ended());
        for device in names.iter().filter_map(number::u32) {
            let state = self.store.read_if_there(&format!("device/vbd/{device}/state")).await?;
            // Asked only now: another task may have looked while we waited for xenstore.
            let free = self.disks.borrow().get(&device).is_none_or(|disk| disk.has_ended());
            // Only a fresh directory is a disk: an old one stays until the toolstack takes it away.
            if free && state.as_deref() == Some("1") {
                let disk = Blkfront::new(&self.domain, &self.store, device);
                self.disks.borrow_mut().insert(device, disk.clone());
                let ended = self.ended.clone();
                self.domain.exec.spawn(async move {
                    disk.run().await;
                    ended.raise();
                });
            }
        }
        Ok(())
    }

    /// Waits until every disk there is now works or has failed, as long as an open would wait.
    pub async fn settled(&self) {
        if let Err(reason) = self.look().await {
            return log::error!("lower disks: xenstore: {reason:?}");
        }
        self.all_settled().await;
    }

    async fn all_settled(&self) {
        let disks: Vec<_> = self.disks.borrow().values().cloned().collect();
        let all = async {
            for disk in &disks {
                disk.settled().await;
            }
        };
        if let Either::Second(()) = select(all, self.domain.sleep(PATIENCE)).await {
            log::warn!("not every lower disk connected within 6 s");
        }
    }

    /// As [`look`](Lowers::look), again and again while xenstore says no, as long as an open would wait.
    async fn look_patiently(&self, whole: &impl Display) -> Result<(), OpenError> {
        let (patience, end) = (Patience::default(), self.domain.xen.now() + PATIENCE);
        loop {
            match self.look().await {
                Ok(()) => return Ok(()),
                Err(reason) if self.domain.xen.now() >= end => {
                    return Err(OpenError::new(Errno::EIO, format!("{whole}: xenstore: {reason:?}")));
                }
                Err(reason) => log::warn!("{whole}: xenstore: {reason:?}"),
            }
            self.domain.sleep(patience.next()).await;
        }
    }

    /// All disks that work, by their numbers, once each there is now works or has failed, or has not within 6 s. `what`
    /// needs them.
    pub async fn ready(&self, what: &impl Display) -> Result<Vec<(Lower, Rc<Blkfront<X>>)>, OpenError> {
        self.look_patiently(what).await?;
        self.all_settled().await;
        let disks = self.disks.borrow();
        let ready = disks.iter().filter(|(_, disk)| disk.life() == Life::Ready);
        Ok(ready.map(|(device, disk)| (Lower { device: *device, partition: None }, disk.clone())).collect())
    }

    /// The disk of this name, once it is ready.
    pub async fn find(&self, lower: &Lower) -> Result<Rc<Blkfront<X>>, OpenError> {
        let whole = Lower { partition: None, ..*lower };
        self.look_patiently(&whole).await?;
        let disk = self.disks.borrow().get(&lower.device).cloned();
        let none = || OpenError::new(Errno::ENOENT, format!("{whole}: this domain has no such disk"));
        let disk = disk.filter(|disk| disk.life() != Life::Over).ok_or_else(none)?;
        match select(disk.settled(), self.domain.sleep(PATIENCE)).await {
            Either::First(()) if disk.life() == Life::Ready => Ok(disk),
            Either::First(()) => Err(OpenError::new(Errno::EIO, format!("{whole}: its backend closed it"))),
            Either::Second(()) => {
                Err(OpenError::new(Errno::ETIMEDOUT, format!("{whole}: its backend did not connect within 6 s")))
            }
        }
    }
}
