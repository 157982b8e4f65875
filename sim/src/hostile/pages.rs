//! A hostile guest's memory: its pages, under which grants they are, and a copy of each to see who writes to them.

use std::collections::BTreeMap;

use protocol::mem::Memory;
use xen::page::{PAGE_BYTES, PageRef};
use xen::port::{Access, DomId, GrantRef};

use crate::random::{HONEST, Random};
use crate::world::World;

/// What Xen will say to a backend that uses a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// Yes.
    Fine,
    /// Only for reading.
    ReadOnly,
    /// No.
    Refused,
}

/// How a page is granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To the backend, for both ways.
    Fine,
    /// To the backend, for reading.
    ReadOnly,
    /// To somebody else.
    Other,
    /// To the backend, with no memory behind it (ballooned out, MMIO, a third domain's).
    Gone,
}

struct Held {
    page: usize,
    kind: Kind,
}

struct Page {
    page: PageRef,
    copy: Box<[u8; PAGE_BYTES]>,
    /// Requests in flight that may write to it.
    exposed: u32,
}

/// The pages of one hostile frontend.
pub struct Pages {
    world: World,
    guest: DomId,
    backend: DomId,
    pages: Vec<Page>,
    grants: BTreeMap<u32, Held>,
    /// Grants that could not be ended yet.
    deferred: Vec<GrantRef>,
    spare: Vec<usize>,
    switching: bool,
}

/// Somebody who is not in any story: grants to it are of no use to a backend.
pub const NOBODY: DomId = DomId(99);

impl Pages {
    /// No pages yet.
    pub fn new(world: &World, guest: DomId, backend: DomId) -> Self {
        Pages {
            world: world.clone(),
            guest,
            backend,
            pages: Vec::new(),
            grants: BTreeMap::new(),
            deferred: Vec::new(),
            spare: Vec::new(),
            switching: false,
        }
    }

    /// A page of content of our own, not granted to anybody.
    pub fn page(&mut self, random: &mut Random) -> usize {
        let at = self.spare.pop().unwrap_or_else(|| {
            let page = PageRef::alone().expect("memory for a test");
            self.pages.push(Page { page, copy: Box::new([0; PAGE_BYTES]), exposed: 0 });
            self.pages.len() - 1
        });
        self.fill(at, random);
        at
    }

    /// The page itself.
    pub fn at(&self, page: usize) -> &PageRef {
        &self.pages[page].page
    }

    /// Grants a page.
    pub fn lend(&mut self, page: usize, kind: Kind) -> GrantRef {
        let to = if kind == Kind::Other { NOBODY } else { self.backend };
        let access = if kind == Kind::ReadOnly { Access::ReadOnly } else { Access::ReadWrite };
        let lent = self.world.lend(self.guest, &self.pages[page].page, to, access);
        let grant = lent.expect("a guest's table is large");
        if kind == Kind::Gone {
            self.world.spoil(self.guest, grant);
        }
        self.grants.insert(grant.0, Held { page, kind });
        grant
    }

    /// Ends a grant. One that is in use ends later.
    pub fn revoke(&mut self, grant: GrantRef) {
        if self.grants.remove(&grant.0).is_some() && self.world.reclaim(self.guest, grant).is_err() {
            self.deferred.push(grant);
        }
    }

    /// Ends a grant made for one request, and keeps its page for another.
    pub fn done_with(&mut self, grant: GrantRef) {
        if let Some(held) = self.grants.get(&grant.0) {
            self.spare.push(held.page);
            self.revoke(grant);
        }
    }

    /// Ends what could not be ended before.
    pub fn retry(&mut self) {
        let (world, guest) = (&self.world, self.guest);
        self.deferred.retain(|grant| world.reclaim(guest, *grant).is_err());
    }

    /// Takes the memory from behind a grant.
    pub fn balloon(&mut self, grant: GrantRef) {
        if let Some(held) = self.grants.get_mut(&grant.0) {
            held.kind = Kind::Gone;
            self.world.spoil(self.guest, grant);
        }
    }

    /// Begins or ends to change the version of the grant table.
    pub fn switch(&mut self, switching: bool) {
        self.switching = switching;
        self.world.switch_grants(self.guest, switching);
    }

    /// Whether no grant stands for the moment.
    pub fn is_switching(&self) -> bool {
        self.switching
    }

    /// What Xen would say of this reference now.
    pub fn stand(&self, grant: u32) -> Stand {
        match self.grants.get(&grant).map(|held| held.kind) {
            _ if self.switching => Stand::Refused,
            Some(Kind::Fine) => Stand::Fine,
            Some(Kind::ReadOnly) => Stand::ReadOnly,
            Some(Kind::Other | Kind::Gone) | None => Stand::Refused,
        }
    }

    /// The page under a reference.
    pub fn under(&self, grant: u32) -> Option<usize> {
        self.grants.get(&grant).map(|held| held.page)
    }

    /// All references that are granted.
    pub fn granted(&self) -> Vec<u32> {
        self.grants.keys().copied().collect()
    }

    /// Requests that may write to these pages are in flight.
    pub fn expose(&mut self, pages: &[usize]) {
        pages.iter().for_each(|page| self.pages[*page].exposed += 1);
    }

    /// Such a request was answered: what is in the pages now stays there, and none of it is an honest guest's.
    pub fn cover(&mut self, pages: &[usize]) -> Result<(), String> {
        for at in pages {
            let page = &mut self.pages[*at];
            page.exposed -= 1;
            page.page.read(0, &mut page.copy[..]);
            clean(&page.copy[..]).map_err(|byte| format!("byte {byte} of page {at} is an honest guest's"))?;
        }
        Ok(())
    }

    /// Nobody may have written to a page that no request in flight names.
    pub fn audit(&mut self) -> Result<(), String> {
        let mut now = [0; PAGE_BYTES];
        for (at, page) in self.pages.iter().enumerate() {
            page.page.read(0, &mut now);
            if now == *page.copy {
                continue;
            }
            if page.exposed == 0 {
                let byte = now.iter().zip(page.copy.iter()).position(|(now, before)| now != before);
                return Err(format!("page {at} was written to at {byte:?}, and no read in flight names it"));
            }
            clean(&now).map_err(|byte| format!("byte {byte} of page {at} is an honest guest's"))?;
        }
        Ok(())
    }

    /// Writes to a page of ours.
    pub fn write(&mut self, page: usize, at: usize, bytes: &[u8]) {
        self.pages[page].page.write(at, bytes);
        self.pages[page].copy[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Fills a page anew.
    pub fn fill(&mut self, page: usize, random: &mut Random) {
        let mut sector = [0; 512];
        random.fill(&mut sector[..64]);
        sector[64..72].copy_from_slice(b"hostile!");
        let all: Vec<u8> = sector.repeat(PAGE_BYTES / 512);
        self.write(page, 0, &all);
    }
}

/// Whether none of the bytes is an honest guest's; else where the first is.
pub fn clean(bytes: &[u8]) -> Result<(), usize> {
    let marked = bytes.chunks_exact(64).position(|piece| piece[16..24] == HONEST);
    marked.map_or(Ok(()), |at| Err(64 * at))
}
