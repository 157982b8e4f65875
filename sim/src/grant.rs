//! Grant tables, version 1, with the statuses of `xen/common/grant_table.c`.

use std::collections::BTreeMap;

use protocol::mem::Memory;
use xen::page::PageRef;
use xen::port::{Access, DomId, Foreign, GrantRef, Move, Refused, StillInUse, Way};

use crate::world::{Life, World};

/// `GNTST_*` of `grant_table.h`.
pub mod status {
    use xen::port::Refused;
    /// Unused entry, another domain's, or more access than was granted.
    pub const GENERAL_ERROR: Refused = Refused(-1);
    /// No such domain.
    pub const BAD_DOMAIN: Refused = Refused(-2);
    /// Past the table's end.
    pub const BAD_GNTREF: Refused = Refused(-3);
    /// No maptrack entry left.
    pub const NO_DEVICE_SPACE: Refused = Refused(-7);
    /// The granter's page is no RAM, or gone.
    pub const BAD_PAGE: Refused = Refused(-9);
    /// The table is full.
    pub const NO_SPACE: Refused = Refused(-13);
}

/// References below are reserved (`GNTTAB_NR_RESERVED_ENTRIES`).
const RESERVED: u32 = 8;
/// Entries of 64 version 1 frames.
const ENTRIES_MAX: u32 = 32768;

struct Entry {
    page: PageRef,
    to: DomId,
    access: Access,
    pins: u32,
    /// The frame that is mapped: as long as somebody has it so, Xen does not look at what the entry says now.
    pinned: Option<PageRef>,
    /// The frame behind the entry is no RAM of the granter's any more: ballooned out, MMIO, another domain's page.
    gone: bool,
}

/// One domain's grant table.
#[derive(Default)]
pub(crate) struct Grants {
    entries: BTreeMap<u32, Entry>,
    free: Vec<u32>,
    /// The granter is changing the table's version: no entry stands for now.
    switching: bool,
}

/// Times that one grant can be mapped at once: Xen counts mappings in a few bits of the entry.
const PINS_MAX: u32 = 128;

/// One page of another domain, mapped.
pub(crate) struct Mapped {
    pub domain: DomId,
    pub grant: GrantRef,
}

impl Grants {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn pinned(&self) -> bool {
        self.entries.values().any(|entry| entry.pins > 0)
    }

    fn entry(&mut self, by: DomId, grant: GrantRef, access: Access) -> Result<&mut Entry, Refused> {
        if grant.0 >= ENTRIES_MAX {
            return Err(status::BAD_GNTREF);
        }
        if self.switching {
            return Err(status::GENERAL_ERROR);
        }
        let entry = self.entries.get_mut(&grant.0).filter(|entry| entry.to == by).ok_or(status::GENERAL_ERROR)?;
        if access == Access::ReadWrite && entry.access == Access::ReadOnly {
            return Err(status::GENERAL_ERROR);
        }
        if entry.gone { Err(status::BAD_PAGE) } else { Ok(entry) }
    }
}

impl World {
    /// Grants a page of `id` to another domain. The reference freed last is used first, so that a stale one soon means
    /// another page.
    pub fn lend(&self, id: DomId, page: &PageRef, to: DomId, access: Access) -> Result<GrantRef, Refused> {
        let mut xen = self.hypervisor();
        let grants = &mut xen.domains.get_mut(&id).ok_or(status::BAD_DOMAIN)?.grants;
        let fresh = RESERVED + (grants.entries.len() + grants.free.len()) as u32;
        let grant = grants.free.pop().unwrap_or(fresh);
        if grant >= ENTRIES_MAX {
            return Err(status::NO_SPACE);
        }
        grants.entries.insert(grant, Entry { page: page.clone(), to, access, pins: 0, pinned: None, gone: false });
        Ok(GrantRef(grant))
    }

    /// Ends a grant, unless it is in use. Panics if there is no such grant: only its owner can know the number.
    pub fn reclaim(&self, id: DomId, grant: GrantRef) -> Result<(), StillInUse> {
        let mut xen = self.hypervisor();
        let grants = &mut xen.domains.get_mut(&id).expect("a dead domain reclaims").grants;
        let entry = grants.entries.get(&grant.0);
        let entry = entry.unwrap_or_else(|| panic!("{id:?} reclaims {grant:?}, which it has not granted"));
        if entry.pins > 0 {
            return Err(StillInUse);
        }
        grants.entries.remove(&grant.0);
        grants.free.push(grant.0);
        Ok(())
    }

    /// Writes another frame into an entry, mapped or not: nobody asks Xen for that.
    pub fn lend_other(&self, id: DomId, grant: GrantRef, page: &PageRef) {
        let mut xen = self.hypervisor();
        let grants = &mut xen.domains.get_mut(&id).expect("a dead domain grants").grants;
        grants.entries.get_mut(&grant.0).expect("only its owner can know the number").page = page.clone();
    }

    /// Takes the frame from behind a grant, as ballooning out does, and as it is for a grant of MMIO or of a foreign page
    /// from the start: the entry stands, but nobody gets at the page through it.
    pub fn spoil(&self, id: DomId, grant: GrantRef) {
        let mut xen = self.hypervisor();
        let grants = &mut xen.domains.get_mut(&id).expect("a dead domain balloons").grants;
        grants.entries.get_mut(&grant.0).expect("only its owner can know the number").gone = true;
    }

    /// The domain begins, or ends, to change the version of its grant table: meanwhile none of its entries stands for
    /// whoever asks anew.
    pub fn switch_grants(&self, id: DomId, switching: bool) {
        if let Some(domain) = self.hypervisor().domains.get_mut(&id) {
            domain.grants.switching = switching;
        }
    }

    /// The page behind a grant, for a test that plays its owner.
    pub fn granted(&self, id: DomId, grant: GrantRef) -> Option<PageRef> {
        self.look().domains.get(&id)?.grants.entries.get(&grant.0).map(|entry| entry.page.clone())
    }

    /// Whether somebody has the granted page mapped.
    pub fn in_use(&self, id: DomId, grant: GrantRef) -> bool {
        let xen = self.look();
        xen.domains.get(&id).and_then(|domain| domain.grants.entries.get(&grant.0)).is_some_and(|e| e.pins > 0)
    }

    /// Maps a page into `by`; the number is what [`unmap`](World::unmap) takes.
    pub fn map(&self, by: DomId, what: Foreign) -> Result<(u64, PageRef), Refused> {
        let mut xen = self.hypervisor();
        let granter = xen.domains.get_mut(&what.domain).ok_or(status::BAD_DOMAIN)?;
        if granter.life != Life::Alive {
            return Err(status::GENERAL_ERROR);
        }
        let entry = granter.grants.entry(by, what.grant, what.access)?;
        if entry.pins >= PINS_MAX {
            return Err(status::GENERAL_ERROR);
        }
        entry.pins += 1;
        let page = entry.pinned.get_or_insert(entry.page.clone()).clone();
        let handle = xen.handles;
        xen.handles += 1;
        let mapper = xen.domains.get_mut(&by).expect("a dead domain maps");
        mapper.mappings.insert(handle, Mapped { domain: what.domain, grant: what.grant });
        Ok((handle, page))
    }

    /// Ends a mapping. Panics if there is none.
    pub fn unmap(&self, by: DomId, handle: u64) {
        let domain = {
            let mut xen = self.hypervisor();
            let mapper = xen.domains.get_mut(&by).expect("a dead domain unmaps");
            let mapped = mapper.mappings.remove(&handle).expect("unmapped twice");
            let granter = xen.domains.get_mut(&mapped.domain).expect("a granter vanished under a mapping");
            let entry = granter.grants.entries.get_mut(&mapped.grant.0).expect("a grant vanished under a mapping");
            entry.pins -= 1;
            entry.pinned = entry.pinned.take().filter(|_| entry.pins > 0);
            mapped.domain
        };
        self.bury(domain);
    }

    /// Whether this mapping stands.
    pub fn is_mapped(&self, by: DomId, handle: u64) -> bool {
        self.look().domains.get(&by).is_some_and(|domain| domain.mappings.contains_key(&handle))
    }

    /// `GNTTABOP_copy`, one of it. Ends of pages are the caller's to keep.
    pub fn copy(&self, by: DomId, what: &Move) -> Result<(), Refused> {
        let theirs = {
            let mut xen = self.hypervisor();
            let granter = xen.domains.get_mut(&what.domain).ok_or(status::BAD_DOMAIN)?;
            if granter.life != Life::Alive {
                return Err(status::BAD_PAGE);
            }
            let access = if what.way == Way::Out { Access::ReadWrite } else { Access::ReadOnly };
            let entry = granter.grants.entry(by, what.grant, access)?;
            entry.pinned.as_ref().unwrap_or(&entry.page).clone()
        };
        let mut bytes = [0; xen::page::PAGE_BYTES];
        let bytes = &mut bytes[..what.bytes.into()];
        let (ours_at, theirs_at) = (what.ours_at.into(), what.theirs_at.into());
        match what.way {
            Way::In => {
                theirs.read(theirs_at, bytes);
                what.ours.write(ours_at, bytes);
            }
            Way::Out => {
                what.ours.read(ours_at, bytes);
                theirs.write(theirs_at, bytes);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const GUEST: DomId = DomId(5);
    const DRIVER: DomId = DomId(1);

    fn world() -> World {
        let world = World::new(Random::new(1));
        world.create(GUEST);
        world.create(DRIVER);
        world
    }

    fn whole(grant: GrantRef, ours: &PageRef, way: Way) -> Move {
        Move { ours: ours.clone(), ours_at: 0, domain: GUEST, grant, theirs_at: 8, bytes: 4, way }
    }

    #[test]
    fn a_read_only_grant_is_read_and_never_written() {
        let world = world();
        let (theirs, ours) = (PageRef::alone().unwrap(), PageRef::alone().unwrap());
        theirs.write(8, b"data");
        let grant = world.lend(GUEST, &theirs, DRIVER, Access::ReadOnly).unwrap();
        assert_eq!(world.copy(DRIVER, &whole(grant, &ours, Way::Out)), Err(status::GENERAL_ERROR));
        let writable = Foreign { domain: GUEST, grant, access: Access::ReadWrite };
        assert_eq!(world.map(DRIVER, writable).err(), Some(status::GENERAL_ERROR));
        assert_eq!(world.copy(DRIVER, &whole(grant, &ours, Way::In)), Ok(()));
        let mut back = [0; 4];
        ours.read(0, &mut back);
        assert_eq!(&back, b"data");
    }

    #[test]
    fn bad_references_and_other_peoples_grants_are_refused() {
        let world = world();
        let page = PageRef::alone().unwrap();
        let grant = world.lend(GUEST, &page, DomId(7), Access::ReadWrite).unwrap();
        assert_eq!(world.copy(DRIVER, &whole(grant, &page, Way::In)), Err(status::GENERAL_ERROR));
        assert_eq!(world.copy(DRIVER, &whole(GrantRef(999), &page, Way::In)), Err(status::GENERAL_ERROR));
        assert_eq!(world.copy(DRIVER, &whole(GrantRef(u32::MAX), &page, Way::In)), Err(status::BAD_GNTREF));
        let gone = Foreign { domain: DomId(9), grant, access: Access::ReadOnly };
        assert_eq!(world.map(DRIVER, gone).err(), Some(status::BAD_DOMAIN));
    }

    #[test]
    fn a_frame_that_is_gone_and_a_table_that_changes_are_refused() {
        let world = world();
        let page = PageRef::alone().unwrap();
        let grant = world.lend(GUEST, &page, DRIVER, Access::ReadWrite).unwrap();
        world.switch_grants(GUEST, true);
        assert_eq!(world.copy(DRIVER, &whole(grant, &page, Way::In)), Err(status::GENERAL_ERROR));
        world.switch_grants(GUEST, false);
        world.spoil(GUEST, grant);
        assert_eq!(world.copy(DRIVER, &whole(grant, &page, Way::In)), Err(status::BAD_PAGE));
        let what = Foreign { domain: GUEST, grant, access: Access::ReadOnly };
        assert_eq!(world.map(DRIVER, what).err(), Some(status::BAD_PAGE));
    }

    #[test]
    fn a_mapped_page_cannot_be_taken_back() {
        let world = world();
        let page = PageRef::alone().unwrap();
        let grant = world.lend(GUEST, &page, DRIVER, Access::ReadWrite).unwrap();
        let (handle, mapped) = world.map(DRIVER, Foreign { domain: GUEST, grant, access: Access::ReadWrite }).unwrap();
        page.write(0, b"shared");
        let mut back = [0; 6];
        mapped.read(0, &mut back);
        assert_eq!(&back, b"shared");
        assert_eq!(world.reclaim(GUEST, grant), Err(StillInUse));
        let (other, ours) = (PageRef::alone().unwrap(), PageRef::alone().unwrap());
        other.write(8, b"next");
        world.lend_other(GUEST, grant, &other);
        let under = || {
            world.copy(DRIVER, &whole(grant, &ours, Way::In)).unwrap();
            let mut bytes = [0; 4];
            ours.read(0, &mut bytes);
            bytes
        };
        assert_eq!(&under(), b"\0\0\0\0", "the old page, as long as it is mapped");
        world.unmap(DRIVER, handle);
        assert_eq!(&under(), b"next");
        assert_eq!(world.reclaim(GUEST, grant), Ok(()));
        assert_eq!(world.lend(GUEST, &page, DRIVER, Access::ReadOnly), Ok(grant), "numbers are used again");
    }
}
