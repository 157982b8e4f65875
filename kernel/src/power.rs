//! `control/shutdown`: the toolstack's word to end (docs/misc/xenstore-paths of Xen).

use alloc::rc::Rc;
use core::time::Duration;

use embassy_futures::select::select;
use protocol::xenstore::Reason;
use xen::patience::Patience;
use xen::port::{Stop, Xen};

use crate::Shared;

/// How long images may take to make durable what they know before the end.
const PATIENCE: Duration = Duration::from_secs(5);

const NODE: &str = "control/shutdown";

/// Waits for the word and ends the domain. One task runs this.
pub async fn run<X: Xen>(shared: Rc<Shared<X>>) {
    let patience = Patience::default();
    while let Err(reason) = listen(&shared, &patience).await {
        log::error!("{NODE}: xenstore: {reason:?}");
        shared.domain.sleep(patience.next()).await;
    }
}

async fn listen<X: Xen>(shared: &Shared<X>, patience: &Patience) -> Result<(), Reason> {
    for feature in ["control/feature-poweroff", "control/feature-reboot"] {
        shared.store.write(feature, "1").await?;
    }
    let watch = shared.store.watch(NODE, NODE).await?;
    loop {
        watch.next().await;
        let word = shared.store.read_if_there(NODE).await?.unwrap_or_default();
        let stop = match word.as_str() {
            "" => {
                patience.reset();
                continue;
            }
            "poweroff" | "halt" => Some(Stop::Poweroff),
            "reboot" => Some(Stop::Reboot),
            _ => None,
        };
        // The empty word says that it was heard.
        shared.store.write(NODE, "").await?;
        match stop {
            Some(stop) => {
                log::info!("{word} was asked for, {} disks are served", shared.vbds.count());
                end(shared, stop).await;
                return Ok(());
            }
            None => log::warn!("{NODE}: \"{}\" is refused", drivers::target::Quoted(&word)),
        }
    }
}

/// Ends the domain, once its images know nothing that is not durable, or will not be for long.
pub async fn end<X: Xen>(shared: &Shared<X>, stop: Stop) {
    select(shared.minors.settle(), shared.domain.sleep(PATIENCE)).await;
    shared.stop.set(Some(stop));
}
