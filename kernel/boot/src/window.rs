//! The window: holes above all RAM in which pages of other domains appear (`grant_table.h`). A hole is filled once at a
//! time: mapping over a page that is there already makes Xen crash the domain.

use alloc::vec::Vec;
use core::num::NonZero;
use core::ops::{Deref, Range};

use boot::free::Free;
use boot::map::PAGE;
use xen::page::Page;
use xen::port::{Access, Foreign, Refused};
use xen_sys::grant_table::{
    GNTMAP_host_map, GNTMAP_readonly, GNTST_eagain, GNTST_no_space, GNTST_okay, GNTTABOP_map_grant_ref,
    GNTTABOP_unmap_grant_ref, gnttab_map_grant_ref, gnttab_unmap_grant_ref,
};

use crate::grants::as_result;
use crate::hypercall;

/// Pages told to Xen at a time; it works in such steps itself.
const BATCH: usize = 32;
/// How often a page that is "not there for the moment" is asked for.
const TRIES_MAX: usize = 16;

/// A page of another domain, mapped. Thousands of places keep one or none, so that none is the address 0.
pub struct Mapping {
    address: NonZero<u64>,
    handle: u32,
}

const _: () = assert!(size_of::<Option<Mapping>>() == 16);

impl Deref for Mapping {
    type Target = Page;

    fn deref(&self) -> &Page {
        // SAFETY: the page is mapped here until `unmap` consumes the mapping; a `Page` may change under us.
        unsafe { &*(self.address.get() as *const Page) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        log::debug!("window: the mapping at {:#x} was dropped and stays for ever", self.address);
    }
}

/// The window.
pub struct Window {
    start: u64,
    free: spin::Mutex<Free>,
}

impl Window {
    /// A window of holes.
    ///
    /// # Safety
    /// The holes are in our page tables, and nobody else's.
    pub unsafe fn new(holes: Range<u64>) -> Self {
        let pages = (holes.end - holes.start) / PAGE;
        Window { start: holes.start, free: spin::Mutex::new(Free::new(0..pages as u32)) }
    }

    /// See `Xen::map`.
    pub fn map(&self, pages: &[Foreign], into: &mut Vec<Result<Mapping, Refused>>) {
        for pages in pages.chunks(BATCH) {
            let mut batch = heapless::Vec::<gnttab_map_grant_ref, BATCH>::new();
            for page in pages {
                let Some(place) = self.free.lock().take() else { break };
                batch.push(self.as_map(page, place)).unwrap_or_else(|_| unreachable!("chunks of that size"));
            }
            map_batch(&mut batch);
            for map in &batch {
                let address = NonZero::new(map.host_addr).expect("the window is above all RAM");
                into.push(as_result(map.status).map(|()| Mapping { address, handle: map.handle }));
                if map.status != GNTST_okay {
                    self.give(map.host_addr);
                }
            }
            into.extend((batch.len()..pages.len()).map(|_| Err(Refused(GNTST_no_space))));
        }
    }

    /// See `Xen::unmap`.
    pub fn unmap(&self, pages: &mut Vec<Mapping>) {
        while !pages.is_empty() {
            let rest = pages.len().saturating_sub(BATCH);
            let mut batch = heapless::Vec::<gnttab_unmap_grant_ref, BATCH>::new();
            batch.extend(pages.drain(rest..).map(|mapping| {
                let (host_addr, handle) = (mapping.address.get(), mapping.handle);
                core::mem::forget(mapping);
                gnttab_unmap_grant_ref { host_addr, handle, ..Default::default() }
            }));
            // SAFETY: the operation takes an array of this structure; the mappings are consumed, so nobody looks at
            // the pages any more.
            let called = unsafe { hypercall::grant_table(GNTTABOP_unmap_grant_ref, &mut batch) };
            assert!(called.is_ok(), "GNTTABOP_unmap_grant_ref: {called:?}");
            for unmap in &batch {
                match as_result(unmap.status) {
                    Ok(()) => self.give(unmap.host_addr),
                    // The page may still be there: its place is never used again.
                    Err(refused) => log::error!("window: unmapping {:#x}: {refused:?}", unmap.host_addr),
                }
            }
        }
    }

    fn as_map(&self, page: &Foreign, place: u32) -> gnttab_map_grant_ref {
        // Exactly these flags: any other is an error for a domain with hardware-assisted paging.
        let flags = GNTMAP_host_map | if page.access == Access::ReadOnly { GNTMAP_readonly } else { 0 };
        let host_addr = self.start + u64::from(place) * PAGE;
        gnttab_map_grant_ref { host_addr, flags, r#ref: page.grant.0, dom: page.domain.0, ..Default::default() }
    }

    fn give(&self, address: u64) {
        self.free.lock().give(((address - self.start) / PAGE) as u32);
    }
}

/// Maps, and asks again for what was not there for the moment.
fn map_batch(batch: &mut [gnttab_map_grant_ref]) {
    map_once(batch);
    for map in batch {
        for _ in 1..TRIES_MAX {
            if map.status != GNTST_eagain {
                break;
            }
            map_once(core::slice::from_mut(map));
        }
    }
}

fn map_once(batch: &mut [gnttab_map_grant_ref]) {
    // SAFETY: the operation takes an array of this structure, and fills holes that are free.
    let called = unsafe { hypercall::grant_table(GNTTABOP_map_grant_ref, batch) };
    assert!(called.is_ok(), "GNTTABOP_map_grant_ref: {called:?}");
}
