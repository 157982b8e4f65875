//! Pages lent once and for ever to one backend domain: the data pages of all requests to the disks it gives us.
//!
//! The other domain may keep them mapped (`feature-persistent`), so a request costs no grant operation there; what it
//! costs is that the domain could read a page at any time. It is the one that holds the data anyway.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::ops::Range;

use crate::domain::{Domain, count};
use crate::grant::Lent;
use crate::page::{NoMemory, PageRef, Run};
use crate::port::{Access, DomId, GrantRef, Refused, Xen};
use crate::sync::Credits;

/// A fixed number of pages, all granted to one domain for reading and writing.
pub struct Pool<X: Xen> {
    domain: Rc<Domain<X>>,
    run: Run,
    lent: Vec<Lent<X>>,
    free: Shelf,
    reserved: Shelf,
}

/// Some of the pages, by number.
struct Shelf {
    free: RefCell<Vec<usize>>,
    credits: Credits,
    pages: Range<usize>,
}

/// Why there is no pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPool {
    /// Not that many pages of memory.
    Memory,
    /// Xen granted fewer.
    Refused(Refused),
}

impl From<NoMemory> for NoPool {
    fn from(_: NoMemory) -> Self {
        NoPool::Memory
    }
}

impl From<Refused> for NoPool {
    fn from(refused: Refused) -> Self {
        NoPool::Refused(refused)
    }
}

impl Shelf {
    fn new(pages: Range<usize>) -> Self {
        Shelf { free: RefCell::new(pages.clone().rev().collect()), credits: Credits::new(pages.len()), pages }
    }

    async fn take(&self, n: usize, mut each: impl FnMut(usize)) {
        assert!(n <= self.pages.len());
        self.credits.take(n).await;
        let mut free = self.free.borrow_mut();
        for _ in 0..n {
            each(free.pop().expect("a credit is a page"));
        }
    }

    fn take_now(&self, n: usize, mut each: impl FnMut(usize)) -> bool {
        let there = self.credits.take_now(n);
        if there {
            let mut free = self.free.borrow_mut();
            let kept = free.len() - n;
            free[kept..].iter().copied().for_each(&mut each);
            free.truncate(kept);
        }
        there
    }

    fn put(&self, page: usize) {
        self.free.borrow_mut().push(page);
        self.credits.put(1);
    }
}

impl<X: Xen> Pool<X> {
    /// Allocates and lends `pages` pages, and `reserved` more.
    pub fn new(domain: &Rc<Domain<X>>, to: DomId, pages: usize, reserved: usize) -> Result<Self, NoPool> {
        let all = pages.checked_add(reserved).ok_or(NoPool::Memory)?;
        let run = Run::new(all)?;
        let lent =
            (0..all).map(|i| Lent::new(domain, run.page(i), to, Access::ReadWrite)).collect::<Result<Vec<_>, _>>()?;
        Ok(Pool { domain: domain.clone(), run, lent, free: Shelf::new(0..pages), reserved: Shelf::new(pages..all) })
    }

    /// How many pages it has without the reserve: nobody may want more at once.
    pub fn pages(&self) -> usize {
        self.free.pages.len()
    }

    /// Waits until `n` pages are free, then calls `each` with every one of them. What is in them is old.
    pub async fn take(&self, n: usize, each: impl FnMut(PageRef)) {
        self.take_from(&self.free, n, each).await
    }

    /// The same if nobody has to wait for it; false, and `each` is not called, otherwise.
    pub fn take_now(&self, n: usize, mut each: impl FnMut(PageRef)) -> bool {
        let there = self.free.take_now(n, |page| each(self.run.page(page)));
        if there {
            count(&self.domain.held.pages, n as isize);
        }
        there
    }

    /// As [`take`](Pool::take), from the reserve. Who has some of it must wait for nothing but what they are for; who has pages of
    /// [`take`](Pool::take) may wait here.
    pub async fn take_reserved(&self, n: usize, each: impl FnMut(PageRef)) {
        self.take_from(&self.reserved, n, each).await
    }

    async fn take_from(&self, shelf: &Shelf, n: usize, mut each: impl FnMut(PageRef)) {
        shelf.take(n, |page| each(self.run.page(page))).await;
        count(&self.domain.held.pages, n as isize);
    }

    /// Takes a page back.
    pub fn put(&self, page: &PageRef) {
        count(&self.domain.held.pages, -1);
        let shelf = if self.free.pages.contains(&page.index()) { &self.free } else { &self.reserved };
        shelf.put(page.index());
    }

    /// Under which reference the other domain knows this page of the pool.
    pub fn grant(&self, page: &PageRef) -> GrantRef {
        self.lent[page.index()].grant()
    }
}
