//! Pages lent once and for ever to one backend domain: the data pages of all requests to the disks it gives us.
//!
//! The other domain may keep them mapped (`feature-persistent`), so a request costs no grant operation there; what it
//! costs is that the domain could read a page at any time. It is the one that holds the data anyway.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

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
    free: RefCell<Vec<usize>>,
    credits: Credits,
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

impl<X: Xen> Pool<X> {
    /// Allocates and lends `pages` pages.
    pub fn new(domain: &Rc<Domain<X>>, to: DomId, pages: usize) -> Result<Self, NoPool> {
        let run = Run::new(pages)?;
        let lent =
            (0..pages).map(|i| Lent::new(domain, run.page(i), to, Access::ReadWrite)).collect::<Result<Vec<_>, _>>()?;
        Ok(Pool {
            domain: domain.clone(),
            run,
            lent,
            free: RefCell::new((0..pages).rev().collect()),
            credits: Credits::new(pages),
        })
    }

    /// How many pages it has in all: nobody may want more at once.
    pub fn pages(&self) -> usize {
        self.run.pages()
    }

    /// Waits until `n` pages are free, then calls `each` with every one of them. What is in them is old.
    pub async fn take(&self, n: usize, mut each: impl FnMut(PageRef)) {
        assert!(n <= self.pages());
        self.credits.take(n).await;
        count(&self.domain.held.pages, n as isize);
        let mut free = self.free.borrow_mut();
        for _ in 0..n {
            each(self.run.page(free.pop().expect("a credit is a page")));
        }
    }

    /// Takes a page back.
    pub fn put(&self, page: PageRef) {
        count(&self.domain.held.pages, -1);
        self.free.borrow_mut().push(page.index());
        self.credits.put(1);
    }

    /// Under which reference the other domain knows this page of the pool.
    pub fn grant(&self, page: &PageRef) -> GrantRef {
        self.lent[page.index()].grant()
    }
}
