//! The shared page, and a ring of it as either side sees it.

use protocol::mem::Memory;
use xen::page::{PAGE_BYTES, PageRef};

/// Offsets of `struct vchan_interface`.
#[allow(missing_docs)]
pub mod at {
    pub const LEFT_CONS: usize = 0;
    pub const LEFT_PROD: usize = 4;
    pub const RIGHT_CONS: usize = 8;
    pub const RIGHT_PROD: usize = 12;
    pub const LEFT_ORDER: usize = 16;
    pub const RIGHT_ORDER: usize = 18;
    pub const CLI_LIVE: usize = 20;
    pub const SRV_LIVE: usize = 21;
    pub const CLI_NOTIFY: usize = 22;
    pub const SRV_NOTIFY: usize = 23;
    pub const GRANTS: usize = 24;
}

/// `VCHAN_NOTIFY_WRITE` and `VCHAN_NOTIFY_READ`.
#[allow(missing_docs)]
pub mod notify {
    pub const WRITE: u8 = 1;
    pub const READ: u8 = 2;
}

/// A 16-bit field.
pub fn half(page: &PageRef, at: usize) -> u16 {
    let mut bytes = [0; 2];
    page.read(at, &mut bytes);
    u16::from_le_bytes(bytes)
}

/// One ring.
pub struct Ring {
    page: PageRef,
    cons: usize,
    prod: usize,
    bytes: u32,
    /// Where the data is: in the page from some offset, or in pages of its own.
    pages: Vec<PageRef>,
    offset: usize,
}

impl Ring {
    /// A ring with its indices at these offsets; `pages` is empty for one in the page.
    pub fn new(page: &PageRef, (cons, prod): (usize, usize), order: u16, pages: Vec<PageRef>) -> Self {
        let (pages, offset) = match order {
            10 => (vec![page.clone()], 1024),
            11 => (vec![page.clone()], 2048),
            _ => (pages, 0),
        };
        Ring { page: page.clone(), cons, prod, bytes: 1 << order, pages, offset }
    }

    /// Bytes to read; 0 where the indices make no sense (`raw_get_data_ready`).
    pub fn ready(&self) -> usize {
        let ready = self.page.load(self.prod).wrapping_sub(self.page.load(self.cons));
        if ready > self.bytes { 0 } else { ready as usize }
    }

    /// Bytes to write; 0 where the indices make no sense.
    pub fn space(&self) -> usize {
        let used = self.page.load(self.prod).wrapping_sub(self.page.load(self.cons));
        self.bytes.saturating_sub(used) as usize
    }

    /// Copies in and moves the producer. There must be space.
    pub fn send(&self, data: &[u8]) {
        self.put(data);
        self.page.store(self.prod, self.page.load(self.prod).wrapping_add(data.len() as u32));
    }

    /// Copies in, the producer to be moved by who calls this.
    pub fn put(&self, data: &[u8]) {
        let prod = self.page.load(self.prod);
        for (i, byte) in data.iter().enumerate() {
            let (page, at) = self.place(prod.wrapping_add(i as u32));
            page.write(at, &[*byte]);
        }
    }

    /// Copies out and moves the consumer. There must be as much.
    pub fn receive(&self, bytes: usize) -> Vec<u8> {
        let cons = self.page.load(self.cons);
        let mut data = vec![0; bytes];
        for (i, byte) in data.iter_mut().enumerate() {
            let (page, at) = self.place(cons.wrapping_add(i as u32));
            page.read(at, std::slice::from_mut(byte));
        }
        self.page.store(self.cons, cons.wrapping_add(bytes as u32));
        data
    }

    fn place(&self, index: u32) -> (&PageRef, usize) {
        let at = self.offset + (index % self.bytes) as usize;
        (&self.pages[at / PAGE_BYTES], at % PAGE_BYTES)
    }
}
