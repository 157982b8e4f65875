//! Event channels: a port of ours and who waits for it.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::future::poll_fn;
use core::task::{Context, Poll};

use crate::domain::{Domain, count};
use crate::port::{DomId, Port, Refused, Xen};
use crate::sync::Signal;

/// Who waits for which port.
#[derive(Default)]
pub(crate) struct Events(RefCell<Vec<Option<Rc<Signal>>>>);

impl Events {
    /// An event on a port nobody has any more is nobody's.
    pub(crate) fn arrived(&self, port: Port) {
        if let Some(Some(signal)) = self.0.borrow().get(port.0 as usize) {
            signal.raise();
        }
    }

    fn open(&self, port: Port) -> Rc<Signal> {
        let mut table = self.0.borrow_mut();
        let index = port.0 as usize;
        if index >= table.len() {
            table.resize(index + 1, None);
        }
        let signal = Rc::new(Signal::default());
        table[index] = Some(signal.clone());
        signal
    }

    fn close(&self, port: Port) {
        self.0.borrow_mut()[port.0 as usize] = None;
    }
}

/// One event channel of ours; closed when dropped.
pub struct Channel<X: Xen> {
    domain: Rc<Domain<X>>,
    port: Port,
    signal: Rc<Signal>,
    ours: bool,
}

impl<X: Xen> Channel<X> {
    /// Binds to a port that `remote` opened for us.
    pub fn bind(domain: &Rc<Domain<X>>, remote: DomId, port: Port) -> Result<Self, Refused> {
        Ok(Self::open(domain, domain.xen.bind(remote, port)?, true))
    }

    /// Opens a port that `remote` may bind.
    pub fn offer(domain: &Rc<Domain<X>>, remote: DomId) -> Result<Self, Refused> {
        Ok(Self::open(domain, domain.xen.alloc_unbound(remote)?, true))
    }

    /// A port that Xen opened before we came and that is never closed: xenstore's.
    pub fn given(domain: &Rc<Domain<X>>, port: Port) -> Self {
        Self::open(domain, port, false)
    }

    fn open(domain: &Rc<Domain<X>>, port: Port, ours: bool) -> Self {
        count(&domain.held.ports, 1);
        Channel { domain: domain.clone(), port, signal: domain.events.open(port), ours }
    }

    /// Its number on our side.
    pub fn port(&self) -> Port {
        self.port
    }

    /// Sends an event.
    pub fn notify(&self) {
        self.domain.xen.notify(self.port);
    }

    /// Ready when an event came since this was last ready.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.signal.poll(cx)
    }

    /// Waits for an event that came since the last one waited for.
    pub async fn wait(&self) {
        poll_fn(|cx| self.poll(cx)).await
    }
}

impl<X: Xen> Drop for Channel<X> {
    fn drop(&mut self) {
        self.domain.events.close(self.port);
        count(&self.domain.held.ports, -1);
        if self.ours {
            self.domain.xen.close(self.port);
        }
    }
}
