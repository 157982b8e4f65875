//! A ring whose owner keeps no rule: raw access to the shared pages, with the honest indices on the side.

use protocol::mem::Memory;
use xen::page::{PageRef, Span};
use xen::port::{Access, DomId, GrantRef, Port};

use crate::blkif::{Layout, Response};
use crate::world::World;

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
const SLOTS: usize = 64;

/// The ring of one connection.
pub struct Ring {
    world: World,
    guest: DomId,
    span: Span<PageRef>,
    layout: Layout,
    /// The grants of its pages.
    pub grants: Vec<GrantRef>,
    /// Its port.
    pub port: Port,
    /// Slots.
    pub slots: u32,
    /// The next slot to write.
    pub prod: u32,
    /// What was published, if that makes sense.
    published: u32,
    /// The next answer to take.
    cons: u32,
}

impl Ring {
    /// Makes a ring and grants it. All its indices begin at `start`.
    pub fn new(world: &World, guest: DomId, backend: DomId, layout: Layout, order: u32, start: u32) -> Self {
        let pages = (0..1 << order).map(|_| PageRef::alone().expect("memory for a test")).collect();
        Ring::on(pages, world, guest, backend, layout, start)
    }

    /// The same on given pages.
    pub fn on(pages: Vec<PageRef>, world: &World, guest: DomId, backend: DomId, layout: Layout, start: u32) -> Self {
        let lend = |page| world.lend(guest, page, backend, Access::ReadWrite).expect("a guest's table is large");
        let (grants, slots) = (pages.iter().map(lend).collect(), layout.slots(pages.len()));
        let port = world.alloc_unbound(guest, backend).expect("a guest has ports");
        let world = world.clone();
        let span = Span(pages);
        let ring = Ring { world, guest, span, layout, grants, port, slots, prod: start, published: start, cons: start };
        for (at, value) in [(REQ_PROD, 0), (REQ_EVENT, 1), (RSP_PROD, 0), (RSP_EVENT, 1)] {
            ring.span.store(at, start.wrapping_add(value));
        }
        ring
    }

    /// Bytes from one slot to the next.
    pub fn stride(&self) -> usize {
        if self.layout == Layout::X86_64 { 112 } else { 108 }
    }

    fn at(&self, index: u32) -> usize {
        SLOTS + (index % self.slots) as usize * self.stride()
    }

    /// Slots that an honest frontend would still use.
    pub fn free(&self) -> u32 {
        self.slots - self.prod.wrapping_sub(self.cons)
    }

    /// Published requests whose answers were not taken.
    pub fn owed(&self) -> u32 {
        self.published.wrapping_sub(self.cons)
    }

    /// The first of the slots that are not answered.
    pub fn first_owed(&self) -> u32 {
        self.cons
    }

    /// What is in a slot.
    pub fn slot(&self, index: u32) -> Vec<u8> {
        let mut entry = vec![0; self.stride()];
        self.span.read(self.at(index), &mut entry);
        entry
    }

    /// Writes the next slot.
    pub fn put(&mut self, entry: &[u8]) {
        self.span.write(self.at(self.prod), entry);
        self.prod = self.prod.wrapping_add(1);
    }

    /// Writes a byte of any slot.
    pub fn poke(&self, index: u32, at: usize, byte: u8) {
        self.span.write(self.at(index) + at, &[byte]);
    }

    /// Publishes what was put, and tells the backend whether it asked or not.
    pub fn publish(&mut self) {
        self.published = self.prod;
        self.span.store(REQ_PROD, self.prod);
        self.notify();
    }

    /// Publishes any number.
    pub fn claim(&self, prod: u32) {
        self.span.store(REQ_PROD, prod);
        self.notify();
    }

    /// The number published last.
    pub fn published(&self) -> u32 {
        self.published
    }

    /// An event.
    pub fn notify(&self) {
        self.world.notify(self.guest, self.port);
    }

    /// Nonsense, or sense, in the word that says when we want an event.
    pub fn answer_event(&self, value: u32) {
        self.span.store(RSP_EVENT, value);
    }

    /// Nonsense in the word that says when the backend wants an event.
    pub fn request_event(&self, value: u32) {
        self.span.store(REQ_EVENT, value);
    }

    /// The next answer. More of them than there were requests, or bytes of the backend's own in one, are its break of
    /// the protocol.
    pub fn take(&mut self) -> Result<Option<Response>, String> {
        let ready = self.span.load(RSP_PROD).wrapping_sub(self.cons);
        if ready > self.owed() {
            return Err(format!("{ready} answers to {} requests", self.owed()));
        }
        if ready == 0 {
            return Ok(None);
        }
        let mut raw = [0; 16];
        let bytes = if self.layout == Layout::X86_64 { 16 } else { 12 };
        self.span.read(self.at(self.cons), &mut raw[..bytes]);
        self.cons = self.cons.wrapping_add(1);
        if raw[9] != 0 || raw[12..] != [0; 4] {
            return Err(format!("an answer's padding holds something (XSA-216): {raw:x?}"));
        }
        let id = u64::from_le_bytes(raw[..8].try_into().expect("eight bytes"));
        Ok(Some(Response { id, op: raw[8], status: i16::from_le_bytes([raw[10], raw[11]]) }))
    }

    /// Whether the backend has it mapped.
    pub fn is_mapped(&self) -> bool {
        self.grants.iter().any(|grant| self.world.in_use(self.guest, *grant))
    }

    /// Closes the port.
    pub fn close(&self) {
        self.world.close(self.guest, self.port);
    }
}
