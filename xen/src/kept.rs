//! Pages of a peer that stay mapped from one request to the next (`feature-persistent` of `io/blkif.h`): a peer that
//! offers this grants the same pages under the same references again and again, and a copy to or from a page that is
//! mapped needs no hypercall.
//!
//! What a peer may do about it, and why that harms nobody else: it may use a reference again for another page while we
//! have the old one mapped; then the old one, which is its own as well, is what we read and write. It may grant for
//! reading only; then Xen does not map it, and from there on nothing more is mapped for this peer. It cannot take a page
//! back that is mapped. Whatever is not mapped is copied by Xen, as for any other peer.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Range;

use crate::domain::{Domain, count};
use crate::grant;
use crate::limits::KEPT_PER_RING;
use crate::page::Page;
use crate::port::{Access, DomId, Foreign, GrantRef, Move, Refused, Way, Xen};

/// Places among which a reference has its own: those from one on that the whole reference says, whether references follow
/// each other or lie between those of other rings. Of 1,056 references eight would do for most and 16 do for all.
const NEAR: usize = 16;

/// A page makes room for another when so many copies were made since its last: unmapping costs more than some copies.
const STALE: u32 = 4 * KEPT_PER_RING as u32;

/// The pages of one peer's ring. Unmapped when dropped.
pub struct Kept<X: Xen> {
    domain: Rc<Domain<X>>,
    peer: DomId,
    places: Vec<Place<X>>,
    /// Copies so far, from 0 again after the last number.
    copies: u32,
    /// Nothing more is mapped.
    full: bool,
}

struct Place<X: Xen> {
    grant: GrantRef,
    used: u32,
    page: Option<X::Mapping>,
}

impl<X: Xen> Kept<X> {
    /// None yet.
    pub fn new(domain: &Rc<Domain<X>>, peer: DomId) -> Self {
        Kept { domain: domain.clone(), peer, places: Vec::new(), copies: 0, full: false }
    }

    /// Makes a copy whose page is mapped, or can be now. False if Xen has to make it.
    pub fn copy(&mut self, it: &Move) -> bool {
        let Some(theirs) = self.page(it.grant) else { return false };
        let (ours_at, theirs_at, bytes) = (it.ours_at.into(), it.theirs_at.into(), it.bytes.into());
        match it.way {
            Way::In => it.ours.copy(ours_at, theirs, theirs_at, bytes),
            Way::Out => theirs.copy(theirs_at, &it.ours, ours_at, bytes),
        }
        true
    }

    /// Has Xen make a copy here and now: for a page that was mapped when it was asked for and is so no more, which is rare.
    pub fn copy_unmapped(&self, it: &Move) -> Result<(), Refused> {
        grant::copy(&self.domain, it)
    }

    /// The page under a reference, if it is mapped or can be now.
    #[inline]
    pub fn page(&mut self, grant: GrantRef) -> Option<&Page> {
        self.copies = self.copies.wrapping_add(1);
        let near = near(grant);
        let first = near.start;
        let mut places = self.places.get(near).unwrap_or_default().iter();
        let found = places.position(|place| place.grant == grant && place.page.is_some());
        let place = found.map(|at| first + at).or_else(|| self.map(grant))?;
        let place = &mut self.places[place];
        place.used = self.copies;
        place.page.as_deref()
    }

    /// Memory for the places, once there is something to put there. Without it, or while it is short, Xen copies.
    fn prepare(&mut self) -> bool {
        if self.domain.memory.is_short() {
            return false;
        }
        if !self.full && self.places.try_reserve_exact(KEPT_PER_RING).is_ok() {
            self.places.extend((0..KEPT_PER_RING).map(|_| Place { grant: GrantRef(0), used: 0, page: None }));
        }
        self.full |= self.places.is_empty();
        !self.full
    }

    /// Maps a page near its place, where there is room.
    #[cold]
    fn map(&mut self, grant: GrantRef) -> Option<usize> {
        if self.places.is_empty() && !self.prepare() || self.full {
            return None;
        }
        let near = near(grant);
        let (first, now, places) = (near.start, self.copies, &mut self.places[near]);
        let (at, oldest) = places
            .iter_mut()
            .enumerate()
            .min_by_key(|(_, place)| place.page.as_ref().map(|_| u32::MAX - now.wrapping_sub(place.used)))?;
        if oldest.page.is_some() {
            if now.wrapping_sub(oldest.used) < STALE {
                return None;
            }
            let mut page: Vec<_> = oldest.page.take().into_iter().collect();
            unmap(&self.domain, &mut page);
        }
        if !self.domain.memory.keep_page() {
            return None;
        }
        let mut mapped = Vec::with_capacity(1);
        self.domain.xen.map(&[Foreign { domain: self.peer, grant, access: Access::ReadWrite }], &mut mapped);
        match mapped.pop()? {
            Ok(page) => {
                count(&self.domain.held.mappings, 1);
                *oldest = Place { grant, used: now, page: Some(page) };
                Some(first + at)
            }
            Err(refused) => {
                self.domain.memory.let_pages_go(1);
                // The page may be there for the next request; any other reason stays one.
                self.full = refused != Refused::AGAIN;
                None
            }
        }
    }
}

/// Where a reference's page may be. By the golden ratio numbers in a row come to lie far apart.
fn near(grant: GrantRef) -> Range<usize> {
    let spread = u64::from(grant.0.wrapping_mul(0x9e37_79b9));
    let first = ((spread * (KEPT_PER_RING - NEAR + 1) as u64) >> 32) as usize;
    first..first + NEAR
}

fn unmap<X: Xen>(domain: &Domain<X>, pages: &mut Vec<X::Mapping>) {
    count(&domain.held.mappings, -(pages.len() as isize));
    domain.memory.let_pages_go(pages.len());
    domain.xen.unmap(pages);
}

impl<X: Xen> Drop for Kept<X> {
    fn drop(&mut self) {
        let mut pages: Vec<_> = self.places.iter_mut().filter_map(|place| place.page.take()).collect();
        if !pages.is_empty() {
            unmap(&self.domain, &mut pages);
        }
    }
}
