//! A client, as `libxenvchan_client_init` and its siblings have it.

use protocol::mem::Memory;
use xen::page::PageRef;
use xen::port::{Access, DomId, Foreign, GrantRef, Port};

use crate::store;
use crate::vchan::page::{Ring, at, half, notify};
use crate::world::World;

/// A connected client.
pub struct Client {
    world: World,
    id: DomId,
    /// The shared page.
    pub page: PageRef,
    mappings: Vec<u64>,
    /// What it writes.
    pub left: Ring,
    /// What it reads.
    pub right: Ring,
    /// Its end of the port.
    pub port: Port,
    /// Nobody was in the page before. The library does not look.
    pub fresh: bool,
}

/// What a node at `path` is called in 64 bytes with a NUL.
pub fn node(path: &str, name: &str) -> String {
    let mut node = format!("{path}/{name}");
    node.truncate(63);
    node
}

/// The grant and the port that a server offers at `path`.
pub fn offer(store: &store::Client, path: &str) -> Option<(GrantRef, Port)> {
    // atoi, and 0 is a failure.
    let number = |name| store.number(&node(path, name)).filter(|value| *value != 0).map(|value| value as u32);
    Some((GrantRef(number("ring-ref")?), Port(number("event-channel")?)))
}

impl Client {
    /// Connects to what `server` offers at `path`, or says what failed. Without `kick` the server hears nothing of it,
    /// as from a library before 2018.
    pub fn connect(
        world: &World,
        store: &store::Client,
        (id, server): (DomId, DomId),
        path: &str,
        kick: bool,
    ) -> Result<Self, &'static str> {
        let (grant, port) = offer(store, path).ok_or("nothing is offered")?;
        let port = world.bind(id, server, port).map_err(|_| "the port cannot be bound")?;
        match Self::map(world, (id, server), grant, port) {
            Ok(mut client) => {
                client.fresh = client.page.load8(at::CLI_LIVE) == 2;
                client.page.store8(at::CLI_LIVE, 1);
                client.page.store8(at::SRV_NOTIFY, notify::WRITE);
                if kick {
                    client.notify();
                }
                Ok(client)
            }
            Err(why) => {
                world.close(id, port);
                Err(why)
            }
        }
    }

    /// Maps everything, says nothing.
    pub fn map(world: &World, (id, server): (DomId, DomId), grant: GrantRef, port: Port) -> Result<Self, &'static str> {
        let mut mappings = Vec::new();
        let mut map = |grant, access| {
            let (handle, page) = world.map(id, Foreign { domain: server, grant, access }).ok()?;
            mappings.push(handle);
            Some(page)
        };
        let rings = |map: &mut dyn FnMut(GrantRef, Access) -> Option<PageRef>| {
            let page = map(grant, Access::ReadWrite)?;
            let (left, right) = (half(&page, at::LEFT_ORDER), half(&page, at::RIGHT_ORDER));
            let possible = |order: u16| (10..=20).contains(&order);
            if !possible(left) || !possible(right) || left == right && left < 12 {
                return None;
            }
            let mut grants = (0..).map(|i| GrantRef(page.load(at::GRANTS + 4 * i)));
            let pages = |order: u16| if order < 12 { 0 } else { 1 << (order - 12) };
            let lefts = grants.by_ref().take(pages(left)).map(|grant| map(grant, Access::ReadWrite));
            let lefts = lefts.collect::<Option<Vec<_>>>()?;
            let rights = grants.take(pages(right)).map(|grant| map(grant, Access::ReadOnly));
            let rights = rights.collect::<Option<Vec<_>>>()?;
            let left = Ring::new(&page, (at::LEFT_CONS, at::LEFT_PROD), left, lefts);
            let right = Ring::new(&page, (at::RIGHT_CONS, at::RIGHT_PROD), right, rights);
            Some((page.clone(), left, right))
        };
        match rings(&mut map) {
            Some((page, left, right)) => {
                Ok(Client { world: world.clone(), id, page, mappings, left, right, port, fresh: false })
            }
            None => {
                mappings.into_iter().for_each(|handle| world.unmap(id, handle));
                Err("a page cannot be mapped")
            }
        }
    }

    /// `libxenvchan_is_open`
    pub fn is_open(&self) -> bool {
        self.page.load8(at::SRV_LIVE) != 0
    }

    /// `libxenvchan_data_ready`: asks for an event, too.
    pub fn data_ready(&self) -> usize {
        self.page.fetch_or8(at::SRV_NOTIFY, notify::WRITE);
        self.right.ready()
    }

    /// `libxenvchan_buffer_space`: asks for an event, too.
    pub fn buffer_space(&self) -> usize {
        self.page.fetch_or8(at::SRV_NOTIFY, notify::READ);
        self.left.space()
    }

    /// `libxenvchan_write` that does not wait: how much was written.
    pub fn write(&self, data: &[u8]) -> usize {
        let mut bytes = self.left.space();
        if bytes < data.len() {
            bytes = self.buffer_space();
        }
        let bytes = bytes.min(data.len());
        if bytes > 0 {
            self.left.send(&data[..bytes]);
            self.tell(notify::WRITE);
        }
        bytes
    }

    /// `libxenvchan_read` that does not wait.
    pub fn read(&self, bytes_max: usize) -> Vec<u8> {
        let mut bytes = self.right.ready();
        if bytes == 0 {
            bytes = self.data_ready();
        }
        let data = self.right.receive(bytes.min(bytes_max));
        if !data.is_empty() {
            self.tell(notify::READ);
        }
        data
    }

    /// Consumes what the server wished for, and sends the event if it did.
    pub fn tell(&self, what: u8) {
        if self.page.fetch_and8(at::CLI_NOTIFY, !what) & what != 0 {
            self.notify();
        }
    }

    /// Sends an event.
    pub fn notify(&self) {
        self.world.notify(self.id, self.port);
    }

    /// Whether an event came, which is taken.
    pub fn take_event(&self) -> bool {
        self.world.take_event(self.id, self.port)
    }

    /// `libxenvchan_close`
    pub fn close(self) {
        self.page.store8(at::CLI_LIVE, 0);
        self.unmap();
        self.world.notify(self.id, self.port);
        self.world.close(self.id, self.port);
    }

    /// The process is killed: the kernel unmaps, clears the byte and sends the event that were registered
    /// (`IOCTL_GNTDEV_SET_UNMAP_NOTIFY`), and closes the port, in whatever order.
    pub fn kill(self, port_first: bool) {
        if port_first {
            self.world.close(self.id, self.port);
        }
        self.page.store8(at::CLI_LIVE, 0);
        self.unmap();
        if !port_first {
            self.world.notify(self.id, self.port);
            self.world.close(self.id, self.port);
        }
    }

    /// It ends without a word: mappings and port are gone.
    pub fn vanish(self) {
        self.unmap();
        self.world.close(self.id, self.port);
    }

    /// Closes, but the pages stay mapped until the mappings that are returned are ended.
    pub fn close_mapped(self) -> Vec<u64> {
        self.page.store8(at::CLI_LIVE, 0);
        self.world.notify(self.id, self.port);
        self.world.close(self.id, self.port);
        self.mappings
    }

    /// Ends the mappings and nothing else.
    pub(crate) fn unmap(&self) {
        self.mappings.iter().for_each(|handle| self.world.unmap(self.id, *handle));
    }
}
