//! How large the two rings are and where they lie.

use super::PAGE_BYTES;
use crate::mem::Memory;

/// left_order and right_order, 16 bits each.
const ORDERS: usize = 16;
/// The grants of the left ring's pages, then those of the right one's.
const GRANTS: usize = 24;
/// The smallest order: 1 KiB at offset 1024 of the page.
const ORDER_MIN: u16 = 10;
/// Orders below have their ring in the page.
const ORDER_PAGES: u16 = 12;
/// The largest order libxenvchan takes: 256 pages.
const ORDER_MAX: u16 = 20;

/// Grants that both rings have at most.
pub const GRANTS_MAX: usize = 2 << (ORDER_MAX - ORDER_PAGES);

/// Orders that no vchan has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// log2 of the bytes of both rings: a pair that can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orders {
    left: u16,
    right: u16,
}

/// Where a ring lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the page itself, from this offset.
    InPage(usize),
    /// In that many pages of its own.
    Pages(usize),
}

impl Orders {
    /// A page for each ring: as small as rings outside the page get, and no message of a few KiB needs many turns.
    pub const ONE_PAGE_EACH: Orders = Orders { left: ORDER_PAGES, right: ORDER_PAGES };

    /// A pair of orders. Each must be one of 10 to 20; two rings do not fit one place in the page; and the grants of
    /// one ring's pages must not reach into the other ring, which libxenvchan leaves to the server's honesty.
    pub const fn new(left: u16, right: u16) -> Result<Orders, Malformed> {
        let orders = Orders { left, right };
        if left < ORDER_MIN || right < ORDER_MIN || left > ORDER_MAX || right > ORDER_MAX {
            return Err(Malformed);
        }
        if left == right && left < ORDER_PAGES {
            return Err(Malformed);
        }
        let grants_end = GRANTS + 4 * orders.grants();
        match (orders.left(), orders.right()) {
            (Place::InPage(ring), _) | (_, Place::InPage(ring)) if ring < grants_end => Err(Malformed),
            _ => Ok(orders),
        }
    }

    /// What a server says in its page, fetched once.
    pub fn read(page: &impl Memory) -> Result<Orders, Malformed> {
        let word = page.load(ORDERS);
        // The truncations take the word's two halves.
        Orders::new(word as u16, (word >> 16) as u16)
    }

    /// Where the left ring lies.
    pub const fn left(self) -> Place {
        place(self.left)
    }

    /// Where the right ring lies.
    pub const fn right(self) -> Place {
        place(self.right)
    }

    /// Bytes of the left ring.
    pub const fn left_bytes(self) -> u32 {
        1 << self.left
    }

    /// Bytes of the right ring.
    pub const fn right_bytes(self) -> u32 {
        1 << self.right
    }

    /// Pages granted beside the first one.
    pub const fn grants(self) -> usize {
        self.left().pages() + self.right().pages()
    }

    /// The grant of the page with this index, as the server says now: those of the left ring come first. The index
    /// must be below [`grants`](Orders::grants).
    pub fn grant(self, page: &impl Memory, index: usize) -> u32 {
        assert!(index < self.grants());
        page.load(GRANTS + 4 * index)
    }

    /// Writes both orders and the grants of the pages into the page.
    pub(super) fn publish(self, page: &impl Memory, grants: impl Iterator<Item = u32>) {
        page.store(ORDERS, u32::from(self.left) | u32::from(self.right) << 16);
        for (i, grant) in grants.take(self.grants()).enumerate() {
            page.store(GRANTS + 4 * i, grant);
        }
    }
}

impl Place {
    /// Pages of its own.
    pub const fn pages(self) -> usize {
        match self {
            Place::InPage(_) => 0,
            Place::Pages(pages) => pages,
        }
    }

    /// Where the ring begins in the memory that holds it: the page, or its own pages.
    pub(super) const fn at(self) -> usize {
        match self {
            Place::InPage(at) => at,
            Place::Pages(_) => 0,
        }
    }
}

/// Where a ring of a valid order lies.
const fn place(order: u16) -> Place {
    if order < ORDER_PAGES { Place::InPage(1 << order) } else { Place::Pages(1 << (order - ORDER_PAGES)) }
}

const _: () = assert!(GRANTS + 4 * GRANTS_MAX <= PAGE_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Flat;

    #[test]
    fn every_pair_of_orders() {
        // The rules again, told the other way round.
        let size = |order: u16| (10..=20).contains(&order).then(|| 1usize << order);
        for left in 0..64 {
            for right in 0..64 {
                let good = match (size(left), size(right)) {
                    (Some(1024), Some(1024)) | (Some(2048), Some(2048)) => false,
                    // 24 bytes of header and 256 grants reach to 1048.
                    (Some(1024), Some(0x10_0000)) | (Some(0x10_0000), Some(1024)) => false,
                    (Some(_), Some(_)) => true,
                    _ => false,
                };
                let orders = Orders::new(left, right);
                assert_eq!(orders.is_ok(), good, "{left}, {right}");
                let Ok(orders) = orders else { continue };
                assert_eq!(orders.left_bytes(), 1 << left);
                assert_eq!(orders.right_bytes(), 1 << right);
                assert_eq!(orders.left(), lies(left));
                assert_eq!(orders.right(), lies(right));
                assert_eq!(orders.grants(), orders.left().pages() + orders.right().pages());
                disjoint(orders);
            }
        }
    }

    fn lies(order: u16) -> Place {
        match order {
            10 => Place::InPage(1024),
            11 => Place::InPage(2048),
            _ => Place::Pages(2usize.pow(u32::from(order) - 12)),
        }
    }

    /// Header, grants and the rings in the page share no byte of it.
    fn disjoint(orders: Orders) {
        let mut used = [false; PAGE_BYTES];
        let mut take = |from: usize, bytes: usize| {
            for byte in &mut used[from..from + bytes] {
                assert!(!core::mem::replace(byte, true), "{orders:?}");
            }
        };
        take(0, 24 + 4 * orders.grants());
        if let Place::InPage(at) = orders.left() {
            take(at, orders.left_bytes() as usize);
        }
        if let Place::InPage(at) = orders.right() {
            take(at, orders.right_bytes() as usize);
        }
    }

    #[test]
    fn what_a_page_says() {
        // Bytes of struct vchan_interface { .left_order = 13, .right_order = 11, .grants = { 0x01020304, 9 } }, printed
        // by a C program.
        let page = Flat::<PAGE_BYTES>::default();
        page.write(16, &[13, 0, 11, 0]);
        page.write(24, &[4, 3, 2, 1, 9, 0, 0, 0]);
        let orders = Orders::read(&page).unwrap();
        assert_eq!(Ok(orders), Orders::new(13, 11));
        assert_eq!((orders.grants(), orders.grant(&page, 0), orders.grant(&page, 1)), (2, 0x0102_0304, 9));
        let again = Flat::<PAGE_BYTES>::default();
        orders.publish(&again, [0x0102_0304, 9, 77].into_iter());
        let (mut said, mut meant) = ([0; 40], [0; 40]);
        page.read(0, &mut meant);
        again.read(0, &mut said);
        assert_eq!(said, meant);
        page.write(16, &[0, 1, 11, 0]);
        assert_eq!(Orders::read(&page), Err(Malformed));
        assert_eq!(Orders::ONE_PAGE_EACH, Orders::new(12, 12).unwrap());
    }

    #[test]
    #[should_panic]
    fn a_grant_that_the_orders_do_not_have() {
        Orders::ONE_PAGE_EACH.grant(&Flat::<PAGE_BYTES>::default(), 2);
    }
}
