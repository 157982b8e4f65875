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
    /// No; but it may be mapped from before.
    Either,
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
    /// The backend was told that it may keep pages mapped.
    keeping: bool,
    /// What was mapped under a reference as that came to mean something else, or nothing, in this connection.
    before: BTreeMap<u32, Vec<usize>>,
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
            keeping: false,
            before: BTreeMap::new(),
        }
    }

    /// A connection begins in which the backend may keep pages mapped, or may not.
    pub fn begin(&mut self, keeping: bool) {
        self.keeping = keeping;
        self.before.clear();
    }

    /// Whether it may in this one.
    pub fn is_keeping(&self) -> bool {
        self.keeping
    }

    /// Whether the backend has the page under this reference mapped.
    pub fn is_mapped(&self, grant: GrantRef) -> bool {
        self.world.in_use(self.guest, grant)
    }

    /// References whose pages the backend has mapped.
    pub fn mapped(&self) -> usize {
        let all = self.grants.keys().map(|grant| GrantRef(*grant)).chain(self.deferred.iter().copied());
        all.filter(|grant| self.is_mapped(*grant)).count()
    }

    /// What is under this reference now may stay mapped for the rest of the connection.
    fn note(&mut self, grant: GrantRef, page: usize) {
        if self.is_mapped(grant) {
            self.before.entry(grant.0).or_default().push(page);
        }
    }

    /// Puts another page under a reference, mapped or not.
    pub fn lend_other(&mut self, grant: GrantRef, page: usize) {
        let Some(held) = self.grants.get_mut(&grant.0) else { return };
        let old = std::mem::replace(&mut held.page, page);
        self.note(grant, old);
        self.world.lend_other(self.guest, grant, &self.pages[page].page);
    }

    /// A page of content of our own, not granted to anybody.
    pub fn page(&mut self, random: &mut Random) -> usize {
        let spare = self.spare.iter().rposition(|page| self.is_free(*page));
        let at = spare.map(|place| self.spare.remove(place)).unwrap_or_else(|| {
            let page = PageRef::alone().expect("memory for a test");
            self.pages.push(Page { page, copy: Box::new([0; PAGE_BYTES]), exposed: 0 });
            self.pages.len() - 1
        });
        self.fill(at, random);
        at
    }

    /// Whether nobody can write to a page but us. What a request says of itself in a page that another one is read into
    /// is certain to nobody.
    fn is_free(&self, page: usize) -> bool {
        self.pages[page].exposed == 0
            && self.grants.values().all(|held| held.page != page)
            && self.before.values().flatten().all(|before| *before != page)
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
        if let Some(held) = self.grants.remove(&grant.0)
            && self.world.reclaim(self.guest, grant).is_err()
        {
            self.note(grant, held.page);
            self.deferred.push(grant);
        }
    }

    /// Ends a grant made for one request, and keeps its page for another. The number may mean another page by now, which has
    /// other uses under other numbers: it is kept all the same, until those end.
    pub fn done_with(&mut self, grant: GrantRef) {
        if let Some(page) = self.under(grant.0) {
            if !self.spare.contains(&page) {
                self.spare.push(page);
            }
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
            let page = held.page;
            self.note(grant, page);
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
        let anew = match self.grants.get(&grant).map(|held| held.kind) {
            _ if self.switching => Stand::Refused,
            Some(Kind::Fine) => Stand::Fine,
            Some(Kind::ReadOnly) => Stand::ReadOnly,
            Some(Kind::Other | Kind::Gone) | None => Stand::Refused,
        };
        let mapped = self.before.contains_key(&grant) || self.switching && self.is_mapped(GrantRef(grant));
        if mapped && anew != Stand::Fine { Stand::Either } else { anew }
    }

    /// The page under a reference.
    pub fn under(&self, grant: u32) -> Option<usize> {
        self.grants.get(&grant).map(|held| held.page)
    }

    /// The pages that a backend may write to by this reference.
    pub fn writable_under(&self, grant: u32) -> Vec<usize> {
        let now = self.grants.get(&grant).filter(|held| held.kind != Kind::ReadOnly).map(|held| held.page);
        self.before.get(&grant).into_iter().flatten().copied().chain(now).collect()
    }

    /// All references that are granted, or under which something is mapped.
    pub fn granted(&self) -> Vec<u32> {
        self.grants.keys().chain(self.before.keys()).copied().collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    /// One page was once a request's descriptors and in use under another number as well: a read that filled it made
    /// nonsense of the descriptors, and its answer was taken for a wrong one.
    #[test]
    fn a_page_with_other_uses_is_not_spare() {
        let mut random = Random::new(1);
        let world = World::new(random.fork());
        let (guest, backend) = (DomId(5), DomId(1));
        world.create(guest);
        world.create(backend);
        let mut pages = Pages::new(&world, guest, backend);
        pages.begin(true);
        let page = pages.page(&mut random);
        let (one, other) = (pages.lend(page, Kind::Fine), pages.lend(page, Kind::Fine));
        pages.done_with(one);
        assert_ne!(pages.page(&mut random), page, "it is granted under another number");
        pages.expose(&[page]);
        pages.done_with(other);
        assert_ne!(pages.page(&mut random), page, "a read in flight may write to it");
        pages.cover(&[page]).unwrap();
        assert_eq!(pages.page(&mut random), page);
        assert_ne!(pages.page(&mut random), page, "given twice");
        let third = pages.lend(page, Kind::Fine);
        let what = xen::port::Foreign { domain: guest, grant: third, access: Access::ReadWrite };
        let (handle, _) = world.map(backend, what).unwrap();
        pages.done_with(third);
        assert_ne!(pages.page(&mut random), page, "it is mapped, and who names the number again is served");
        world.unmap(backend, handle);
        pages.retry();
        pages.begin(false);
        assert_eq!(pages.page(&mut random), page);
    }
}
