//! What the domain under test holds of its heap, byte by byte: every allocation is noted as the product's or the world's,
//! after whose turn it is, and stays that whoever frees it.
//!
//! The product's are those made in its turns, but for what hypercalls, peers at its schedule points and the journal need.
//! Whole pages that lie on pages are counted apart from everything else: disks in memory, and what is lent or shared. Bytes
//! are counted as they were asked for; an allocation that is made larger counts twice while it moves.

use std::cell::{Cell, RefCell};
use std::num::NonZeroUsize;
use std::ops::Sub;
use std::sync::{Mutex, Once, PoisonError};

use tracking_allocator::{AllocationGroupId, AllocationGroupToken, AllocationRegistry, AllocationTracker, Allocator};
use xen::page::PAGE_BYTES;

#[global_allocator]
static HEAP: Allocator<std::alloc::System> = Allocator::system();

/// What the product may hold beside whole pages for one disk, whatever its guest does. An image with metadata may hold what
/// it was promised beside that.
pub const NOTES_PER_DISK: usize = 512 << 10;
/// The same for a disk whose guest asks for nothing.
pub const NOTES_IDLE: usize = 32 << 10;
/// What it may hold more than before when all disks that came are gone: texts of errors, and tables that have grown.
pub const NOTES_LEFT: usize = 16 << 10;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// A test, or the scheduler.
    Outside,
    Product,
    World,
}

/// Turns of the product that may stand within each other: of a vCPU, and of another at one of its schedule points.
const DEPTH: usize = 2;

/// Whose allocations are noted.
struct Group(RefCell<AllocationGroupToken>);

impl Group {
    fn new() -> Self {
        // Of two threads that ask for a number at once the crate refuses one.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        Group(RefCell::new(AllocationGroupToken::register().expect("there are numbers enough")))
    }

    /// Does something on this side.
    fn on<T>(&self, side: Side, act: impl FnOnce() -> T) -> T {
        struct Back(Side);
        impl Drop for Back {
            fn drop(&mut self) {
                SIDE.set(self.0);
            }
        }
        let mut token = self.0.borrow_mut();
        let _noted = token.enter();
        let _back = Back(SIDE.replace(side));
        act()
    }
}

thread_local! {
    static SIDE: Cell<Side> = const { Cell::new(Side::Outside) };
    /// The numbers of the product's groups; 0 while it has none.
    static NUMBERS: Cell<[usize; DEPTH]> = const { Cell::new([0; DEPTH]) };
    /// How many turns of the product stand within each other.
    static TURNS: Cell<usize> = const { Cell::new(0) };
    static HELD: Cell<Heap> = const { Cell::new(Heap { notes: 0, pages: 0 }) };
    static PEAK: Cell<Heap> = const { Cell::new(Heap { notes: 0, pages: 0 }) };
    static PRODUCTS: [Group; DEPTH] = [Group::new(), Group::new()];
    static WORLDS: [Group; DEPTH] = [Group::new(), Group::new()];
}

/// What is held, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heap {
    /// Whole pages.
    pub pages: usize,
    /// All else.
    pub notes: usize,
}

impl Heap {
    /// The one of both that an allocation is of.
    fn part(&mut self, address: usize, bytes: usize) -> &mut usize {
        if address.is_multiple_of(PAGE_BYTES) && bytes.is_multiple_of(PAGE_BYTES) {
            &mut self.pages
        } else {
            &mut self.notes
        }
    }

    fn max(self, other: Heap) -> Heap {
        Heap { pages: self.pages.max(other.pages), notes: self.notes.max(other.notes) }
    }
}

impl Sub for Heap {
    type Output = Heap;

    /// How much more this is; nothing where it is less.
    fn sub(self, less: Heap) -> Heap {
        Heap { pages: self.pages.saturating_sub(less.pages), notes: self.notes.saturating_sub(less.notes) }
    }
}

struct Account;

fn is_products(group: NonZeroUsize) -> bool {
    NUMBERS.get().contains(&group.get())
}

impl AllocationTracker for Account {
    fn allocated(&self, address: usize, bytes: usize, _: usize, group: AllocationGroupId) {
        if is_products(group.as_usize()) {
            let mut held = HELD.get();
            *held.part(address, bytes) += bytes;
            HELD.set(held);
            PEAK.set(PEAK.get().max(held));
        }
    }

    fn deallocated(&self, address: usize, bytes: usize, _: usize, group: AllocationGroupId, _: AllocationGroupId) {
        if is_products(group.as_usize()) {
            let mut held = HELD.get();
            *held.part(address, bytes) -= bytes;
            HELD.set(held);
        }
    }
}

/// Allocations are noted from now on.
pub fn begin() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if AllocationRegistry::set_global_tracker(Account).is_ok() {
            AllocationRegistry::enable_tracking();
        }
    });
    NUMBERS.set(PRODUCTS.with(|groups| groups.each_ref().map(|group| group.0.borrow().id().as_usize().get())));
}

/// What is allocated here is the product's.
pub fn of_product<T>(turn: impl FnOnce() -> T) -> T {
    struct Ended(usize);
    impl Drop for Ended {
        fn drop(&mut self) {
            TURNS.set(self.0);
        }
    }
    let turns = TURNS.get();
    let _ended = Ended(turns);
    TURNS.set(turns + 1);
    PRODUCTS.with(|groups| groups[turns].on(Side::Product, turn))
}

/// What is allocated here, in a turn of the product, is not the product's.
pub fn of_world<T>(act: impl FnOnce() -> T) -> T {
    match SIDE.get() {
        Side::Product => WORLDS.with(|groups| groups[TURNS.get() - 1].on(Side::World, act)),
        Side::Outside | Side::World => act(),
    }
}

/// What products on this thread hold now.
pub fn held() -> Heap {
    HELD.get()
}

/// The most they held since this was last asked, of pages and of all else, each by itself.
pub fn peak() -> Heap {
    PEAK.replace(HELD.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_of_who_asked_for_them_whoever_frees_them() {
        begin();
        let (before, _) = (held(), peak());
        let mine = vec![0u8; 1000];
        let (its, worlds) = of_product(|| (vec![0u8; 300], of_world(|| vec![0u8; 5000])));
        assert_eq!(((held() - before).notes, (peak() - before).notes), (300, 300));
        of_product(|| drop((mine, worlds)));
        assert_eq!((held() - before).notes, 300);
        of_product(|| drop(vec![0u8; 50]));
        drop(its);
        assert_eq!(((held() - before).notes, (peak() - before).notes, (peak() - before).notes), (0, 350, 0));
    }

    #[test]
    fn pages_are_apart() {
        begin();
        let before = held();
        let run = of_product(|| xen::page::Run::new(3).unwrap());
        let more = held() - before;
        assert!(more.pages == 3 * PAGE_BYTES && more.notes < 100, "{more:?}");
        drop(run);
        assert_eq!(held(), before);
    }

    #[test]
    fn a_panic_leaves_the_product() {
        begin();
        let failed = std::panic::catch_unwind(|| of_product(|| of_world(|| panic!("on purpose"))));
        assert!(failed.is_err() && SIDE.get() == Side::Outside);
        let before = held();
        let mine = Box::new([0u8; 100]);
        assert_eq!((held(), mine[9]), (before, 0));
    }
}
