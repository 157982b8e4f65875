//! Pages lent to other domains, and copies between their pages and ours (`grant_table.h`, version 1).

use alloc::vec::Vec;

use boot::free::Free;
use boot::grant::{ENTRIES_PER_PAGE, Entry};
use boot::map::PAGE;
use xen::page::PageRef;
use xen::port::{Access, DomId, GrantRef, Move, Refused, StillInUse, Way};
use xen_sys::grant_table::{
    GNTCOPY_dest_gref, GNTCOPY_source_gref, GNTST_no_space, GNTST_okay, GNTTAB_NR_RESERVED_ENTRIES, GNTTABOP_copy,
    GNTTABOP_query_size, gnttab_copy, gnttab_copy_ptr, gnttab_query_size,
};
use xen_sys::memory::XENMAPSPACE_grant_table;
use xen_sys::xen::DOMID_SELF;

use crate::{hypercall, paging};

/// Copies told to Xen at a time.
const BATCH: usize = 128;

/// Our grant table.
pub struct Grants {
    table: u64,
    pages_max: u32,
    state: spin::Mutex<State>,
}

struct State {
    pages: u32,
    free: Free,
    /// By grant: the page that is lent, kept alive as long as the other side may use it.
    lent: Vec<Option<PageRef>>,
}

impl Grants {
    /// A table in the holes from `table` on, `room` pages of them.
    ///
    /// # Safety
    /// The holes are mapped and nobody else's.
    pub unsafe fn new(table: u64, room: u32) -> Result<Self, Refused> {
        let mut size = [gnttab_query_size { dom: DOMID_SELF, ..Default::default() }];
        // SAFETY: the operation takes this structure.
        unsafe { hypercall::grant_table(GNTTABOP_query_size, &mut size) }?;
        if size[0].status != GNTST_okay {
            return Err(Refused(size[0].status));
        }
        let free = Free::new(GNTTAB_NR_RESERVED_ENTRIES..GNTTAB_NR_RESERVED_ENTRIES);
        let state = State { pages: 0, free, lent: Vec::new() };
        Ok(Grants { table, pages_max: size[0].max_nr_frames.min(room), state: spin::Mutex::new(state) })
    }

    /// See `Xen::lend`.
    pub fn lend(&self, page: &PageRef, to: DomId, access: Access) -> Result<GrantRef, Refused> {
        let mut state = self.state.lock();
        let grant = match state.free.take() {
            Some(grant) => grant,
            None => {
                self.grow(&mut state)?;
                state.free.take().ok_or(Refused(GNTST_no_space))?
            }
        };
        let frame = u32::try_from(page.address() / PAGE).expect("memory ends below 16 TiB");
        self.entry(grant).grant(to.0, frame, access == Access::ReadOnly);
        let slot = grant as usize;
        if state.lent.len() <= slot {
            state.lent.resize(slot + 1, None);
        }
        state.lent[slot] = Some(page.clone());
        Ok(GrantRef(grant))
    }

    /// See `Xen::reclaim`.
    pub fn reclaim(&self, grant: GrantRef) -> Result<(), StillInUse> {
        let mut state = self.state.lock();
        let lent = state.lent.get(grant.0 as usize).is_some_and(|page| page.is_some());
        assert!(lent, "{grant:?} is not lent");
        if !self.entry(grant.0).end() {
            return Err(StillInUse);
        }
        let page = state.lent[grant.0 as usize].take();
        state.free.give(grant.0);
        // The page may be the last of its run; freeing it needs no lock of ours.
        drop(state);
        drop(page);
        Ok(())
    }

    fn entry(&self, grant: u32) -> &Entry {
        // SAFETY: only numbers from the free list come here, and those lie in pages Xen has placed in the table.
        // Entries are touched by atomics only.
        unsafe { &*(self.table as *const Entry).add(grant as usize) }
    }

    /// One page more.
    fn grow(&self, state: &mut State) -> Result<(), Refused> {
        if state.pages == self.pages_max {
            return Err(Refused(GNTST_no_space));
        }
        let address = self.table + u64::from(state.pages) * PAGE;
        // SAFETY: the holes are ours (`new`), and this one is still empty.
        unsafe { paging::place(XENMAPSPACE_grant_table, u64::from(state.pages), address) }?;
        let reserved = if state.pages == 0 { GNTTAB_NR_RESERVED_ENTRIES } else { 0 };
        state.pages += 1;
        state.free.extend(ENTRIES_PER_PAGE - reserved);
        Ok(())
    }
}

/// See `Xen::copy`.
pub fn copy(moves: &[Move], into: &mut Vec<Result<(), Refused>>) {
    let mut batch = [gnttab_copy::default(); BATCH];
    for moves in moves.chunks(BATCH) {
        let batch = &mut batch[..moves.len()];
        batch.iter_mut().zip(moves).for_each(|(copy, it)| *copy = as_copy(it));
        // SAFETY: the operation takes an array of this structure. It writes pages that are alive (the moves hold
        // them) and that anyone may write at any time (`Page`).
        let called = unsafe { hypercall::grant_table(GNTTABOP_copy, batch) };
        assert!(called.is_ok(), "GNTTABOP_copy: {called:?}");
        into.extend(batch.iter().map(|copy| as_result(copy.status)));
    }
}

fn as_copy(it: &Move) -> gnttab_copy {
    let ours = gnttab_copy_ptr { u: it.ours.address() / PAGE, domid: DOMID_SELF, offset: it.ours_at };
    let theirs = gnttab_copy_ptr { u: u64::from(it.grant.0), domid: it.domain.0, offset: it.theirs_at };
    let (source, dest, flags) = match it.way {
        Way::In => (theirs, ours, GNTCOPY_source_gref),
        Way::Out => (ours, theirs, GNTCOPY_dest_gref),
    };
    gnttab_copy { source, dest, len: it.bytes, flags, status: 0 }
}

/// A `GNTST_*` status.
pub fn as_result(status: i16) -> Result<(), Refused> {
    if status == GNTST_okay { Ok(()) } else { Err(Refused(status)) }
}
