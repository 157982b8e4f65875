//! Grants: pages mapped from others, pages lent to others, and copies in batches.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::ops::Deref;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use crate::domain::{Domain, count};
use crate::limits::{AGAIN_TRIES, COPIES_PER_BATCH};
use crate::page::{PageRef, Span};
use crate::port::{Access, DomId, Foreign, GrantRef, Move, Refused, Xen};

/// Foreign pages mapped as one piece of memory: a ring. Unmapped when dropped.
pub struct Mapped<X: Xen> {
    domain: Rc<Domain<X>>,
    pages: Span<X::Mapping>,
}

impl<X: Xen> Mapped<X> {
    /// Maps the pages in order. If Xen refuses one, none stays mapped (XSA-361).
    pub fn new(domain: &Rc<Domain<X>>, pages: &[Foreign]) -> Result<Self, Refused> {
        let mut results = Vec::with_capacity(pages.len());
        domain.xen.map(pages, &mut results);
        for _ in 0..AGAIN_TRIES {
            for (page, result) in pages.iter().zip(&mut results) {
                if matches!(result, Err(Refused::AGAIN)) {
                    let mut once = Vec::with_capacity(1);
                    domain.xen.map(core::slice::from_ref(page), &mut once);
                    *result = once.remove(0);
                }
            }
        }
        let mut refused = None;
        let mapped: Vec<_> = results.into_iter().filter_map(|r| r.map_err(|e| refused = Some(e)).ok()).collect();
        count(&domain.held.mappings, mapped.len() as isize);
        let all = Mapped { domain: domain.clone(), pages: Span(mapped) };
        match refused {
            None => Ok(all),
            Some(refused) => Err(refused),
        }
    }
}

impl<X: Xen> Deref for Mapped<X> {
    type Target = Span<X::Mapping>;

    fn deref(&self) -> &Self::Target {
        &self.pages
    }
}

impl<X: Xen> Drop for Mapped<X> {
    fn drop(&mut self) {
        count(&self.domain.held.mappings, -(self.pages.0.len() as isize));
        if !self.pages.0.is_empty() {
            self.domain.xen.unmap(&mut self.pages.0);
        }
    }
}

/// A page of ours that another domain may use. The grant ends when this is dropped; if the other side still uses the
/// page then, page and grant are kept until it lets go, for memory that somebody else can write is never used again.
pub struct Lent<X: Xen> {
    domain: Rc<Domain<X>>,
    page: PageRef,
    grant: GrantRef,
    ended: bool,
}

impl<X: Xen> Lent<X> {
    /// Grants a page of ours.
    pub fn new(domain: &Rc<Domain<X>>, page: PageRef, to: DomId, access: Access) -> Result<Self, Refused> {
        Self::sweep(domain);
        let grant = domain.xen.lend(&page, to, access)?;
        count(&domain.held.grants, 1);
        Ok(Lent { domain: domain.clone(), page, grant, ended: false })
    }

    /// The page.
    pub fn page(&self) -> &PageRef {
        &self.page
    }

    /// The grant's reference, as the other domain is told.
    pub fn grant(&self) -> GrantRef {
        self.grant
    }

    /// Ends the grant now, or gives it back because the other side still uses the page.
    pub fn release(mut self) -> Result<(), Self> {
        if self.end() { Ok(()) } else { Err(self) }
    }

    fn end(&mut self) -> bool {
        self.ended = self.domain.xen.reclaim(self.grant).is_ok();
        if self.ended {
            count(&self.domain.held.grants, -1);
        }
        self.ended
    }

    /// Tries again to end the grants that could not be ended.
    pub fn sweep(domain: &Rc<Domain<X>>) {
        let stuck = core::mem::take(&mut *domain.stuck.borrow_mut());
        // What is still stuck goes back to the list as it is dropped.
        drop(stuck);
    }
}

impl<X: Xen> Drop for Lent<X> {
    fn drop(&mut self) {
        if !self.ended && !self.end() {
            let kept = Lent { domain: self.domain.clone(), page: self.page.clone(), grant: self.grant, ended: false };
            self.domain.stuck.borrow_mut().push(kept);
        }
    }
}

/// Copies that the requests of one turn want, made by one hypercall.
#[derive(Default)]
pub struct Batch(RefCell<Orders>);

#[derive(Default)]
struct Orders {
    moves: Vec<Move>,
    results: Vec<Result<(), Refused>>,
    orders: Vec<Order>,
    free: Vec<usize>,
    /// Orders that wait.
    queued: usize,
}

enum Order {
    Free,
    Queued { from: usize, moves: usize, waker: Option<Waker> },
    Done(Result<(), Refused>),
}

impl Batch {
    /// Adds moves to the batch. An error is the first one among these moves; the others were made all the same. What
    /// comes of it must be waited for: the place that it has in the batch is free only then.
    pub fn copy(&self, moves: impl Iterator<Item = Move>) -> Copied<'_> {
        let mut batch = self.0.borrow_mut();
        let from = batch.moves.len();
        batch.moves.extend(moves);
        let moves = batch.moves.len() - from;
        batch.queued += 1;
        let place = batch.place(Order::Queued { from, moves, waker: None });
        Copied { batch: self, place }
    }

    /// Refuses all copies that wait, without asking Xen: the other side is gone. False if there were none.
    pub fn refuse(&self) -> bool {
        let mut batch = self.0.borrow_mut();
        let Orders { moves, orders, queued, .. } = &mut *batch;
        moves.clear();
        for order in orders.iter_mut() {
            if let Order::Queued { waker, .. } = order {
                let waker = waker.take();
                *order = Order::Done(Err(Refused::GONE));
                waker.into_iter().for_each(Waker::wake);
            }
        }
        core::mem::take(queued) > 0
    }

    /// Makes all copies that wait, and wakes who waits for them; false if none did.
    pub fn run<X: Xen>(&self, domain: &Domain<X>) -> bool {
        let mut batch = self.0.borrow_mut();
        let Orders { moves, results, orders, queued, .. } = &mut *batch;
        if core::mem::take(queued) == 0 {
            return false;
        }
        results.clear();
        for chunk in moves.chunks(COPIES_PER_BATCH) {
            domain.xen.copy(chunk, results);
        }
        again(domain, moves, results);
        for order in orders.iter_mut() {
            if let Order::Queued { from, moves, waker } = order {
                let result = results[*from..*from + *moves].iter().copied().find(Result::is_err).unwrap_or(Ok(()));
                let waker = waker.take();
                *order = Order::Done(result);
                waker.into_iter().for_each(Waker::wake);
            }
        }
        moves.clear();
        true
    }
}

/// What comes of some copies, see [`Batch::copy`].
#[must_use = "its place is free only when it was waited for"]
pub struct Copied<'a> {
    batch: &'a Batch,
    place: usize,
}

impl Future for Copied<'_> {
    type Output = Result<(), Refused>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut batch = self.batch.0.borrow_mut();
        let Orders { orders, free, .. } = &mut *batch;
        match &mut orders[self.place] {
            Order::Done(result) => {
                let result = *result;
                orders[self.place] = Order::Free;
                free.push(self.place);
                Poll::Ready(result)
            }
            Order::Queued { waker, .. } => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Order::Free => unreachable!("a place is freed by who waits for it"),
        }
    }
}

impl Orders {
    fn place(&mut self, order: Order) -> usize {
        match self.free.pop() {
            Some(place) => {
                self.orders[place] = order;
                place
            }
            None => {
                self.orders.push(order);
                self.orders.len() - 1
            }
        }
    }
}

/// Makes one copy here and now.
pub(crate) fn copy<X: Xen>(domain: &Domain<X>, it: &Move) -> Result<(), Refused> {
    let mut result = Vec::with_capacity(1);
    domain.xen.copy(core::slice::from_ref(it), &mut result);
    again(domain, core::slice::from_ref(it), &mut result);
    result[0]
}

/// Makes those copies again that Xen asked for (GNTST_eagain: the peer's page is being fetched), a bounded number of
/// times.
fn again<X: Xen>(domain: &Domain<X>, moves: &[Move], results: &mut [Result<(), Refused>]) {
    for _ in 0..AGAIN_TRIES {
        let Some(first) = results.iter().position(|r| *r == Err(Refused::AGAIN)) else { return };
        let mut one = Vec::with_capacity(1);
        for (mv, result) in moves.iter().zip(results.iter_mut()).skip(first) {
            if *result == Err(Refused::AGAIN) {
                one.clear();
                domain.xen.copy(core::slice::from_ref(mv), &mut one);
                *result = one[0];
            }
        }
    }
}
