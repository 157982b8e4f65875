//! What a hostile guest does about pages that it lets the backend keep mapped (`feature-persistent`): it takes them away, puts
//! others in their place, names one twice, and names more than can be kept.

use std::time::Duration;

use xen::port::GrantRef;

use crate::blkif::{Segment, op};
use crate::hostile::guest::{Hostile, Phase};
use crate::hostile::pages::Kind;
use crate::hostile::rows::Keep;
use crate::marks;

/// References of its pages that may stay mapped, of one ring.
pub const KEPT_OF_A_RING: usize = 2048;
/// The same of all rings.
pub const KEPT_OF_ALL: usize = 16384;
/// As good as all that a ring may keep: a page stays near its reference's place or not at all.
pub const NEARLY_A_RING: usize = KEPT_OF_A_RING * 98 / 100;

/// References of one request of a hoard.
const HOARD_STEP: usize = 256;
/// References of a hoard, some more than a ring may keep.
pub const HOARD: usize = KEPT_OF_A_RING + HOARD_STEP;

impl Hostile {
    /// One thing about pages that stay mapped.
    pub(super) fn keep(&mut self) {
        let room = self.link.as_ref().filter(|link| !link.wild).map_or(0, |link| link.ring.free());
        let mapped: Vec<usize> = (0..self.stock.len()).filter(|at| self.pages.is_mapped(self.stock[*at])).collect();
        let row = self.random.pick(Keep::ALL);
        if room < 2 || mapped.is_empty() && row != Keep::ReadOnly {
            // Nothing is mapped before it was used.
            return self.use_some();
        }
        let way = self.random.pick(&[op::READ, op::WRITE]);
        // From here on an old page is used by who may still have it mapped: what the request comes to is certain only where
        // the reference is good in any case.
        match row {
            Keep::Revoked | Keep::Ballooned | Keep::Reused => {
                let at = self.random.pick(&mapped);
                let grant = self.stock[at];
                let page = self.pages.under(grant.0).expect("from the stock");
                let other = self.pages.page(&mut self.random);
                match row {
                    Keep::Revoked => self.pages.revoke(grant),
                    Keep::Ballooned => self.pages.balloon(grant),
                    _ => self.pages.lend_other(grant, other),
                }
                self.touched(grant);
                if row != Keep::Reused {
                    let next = if row == Keep::Revoked { page } else { other };
                    self.stock[at] = self.lend_for_good(next);
                }
                self.name(way, grant, row);
            }
            Keep::ReadOnly => {
                let grant = self.odd.read_only;
                self.name(op::WRITE, grant, row);
                self.name(op::READ, grant, row);
            }
            Keep::TwiceInOne => {
                let grant = self.stock[self.random.pick(&mapped)];
                let mut segments = self.kit().segments(3);
                segments.iter_mut().for_each(|segment| segment.grant = grant);
                let made = self.kit().transfer(way, segments);
                self.put_if_room(made, row.mark());
            }
            Keep::TwoReferences => {
                let one = self.stock[self.random.pick(&mapped)];
                let page = self.pages.under(one.0).expect("from the stock");
                let other = self.kit().lend(page, Kind::Fine);
                let mut segments = self.kit().segments(2);
                (segments[0].grant, segments[1].grant) = (one, other);
                let made = self.kit().transfer(way, segments);
                self.put_if_room(made, row.mark());
            }
            Keep::Table => self.write_over_table(way),
            // These come of their own, or have a world of their own.
            _ => self.use_some(),
        }
    }

    /// Grants a page under a number that no request in flight will end the grant of.
    fn lend_for_good(&mut self, page: usize) -> GrantRef {
        loop {
            let grant = self.kit().lend(page, Kind::Fine);
            if !self.kit().book.owns(grant) {
                return grant;
            }
        }
    }

    fn touched(&mut self, grant: GrantRef) {
        if let Some(link) = &mut self.link {
            link.book.touched(Some(grant.0), &mut self.pages);
        }
    }

    fn name(&mut self, way: u8, grant: GrantRef, row: Keep) {
        let mut segments = self.kit().segments(2);
        segments[1].grant = grant;
        let made = self.kit().transfer(way, segments);
        self.put_if_room(made, row.mark());
    }

    /// Requests that are honest; those whose pages are mapped from before show that they can be used so.
    fn use_some(&mut self) {
        for _ in 0..self.random.between(1, 4) {
            let stays = self.stock.iter().any(|grant| self.pages.is_mapped(*grant));
            let segments = self.kit().segments(4);
            let stays = stays && segments.iter().all(|segment| self.pages.is_mapped(segment.grant));
            let way = self.random.pick(&[op::READ, op::WRITE]);
            let made = self.kit().transfer(way, segments);
            if self.link.as_ref().is_some_and(|link| link.ring.free() > 0) {
                self.put(made, stays.then_some(Keep::Stays.mark()));
            }
        }
    }

    /// Uses one descriptor page for all requests, good ones and such that are not: each is judged by what it says now.
    fn write_over_table(&mut self, way: u8) {
        let table = match self.table {
            Some(table) => table,
            None => {
                let page = self.pages.page(&mut self.random);
                let table = self.lend_for_good(page);
                *self.table.insert(table)
            }
        };
        if self.link.as_ref().is_none_or(|link| link.book.names(table.0)) {
            return;
        }
        let mapped = self.pages.is_mapped(table);
        let count = self.random.between(12, 40) as usize;
        let mut segments = self.kit().segments(count);
        if self.random.one_in(2) {
            let at = self.random.index(count);
            segments[at] = Segment { first: 7, last: 8, ..segments[at] };
        }
        let page = self.pages.under(table.0).expect("it is never given up");
        let made = self.kit().indirect_by(way, page, table, &segments);
        self.put(made, mapped.then_some(Keep::Table.mark()));
    }

    /// A request with references that were never used before, more of them from one to the next than may be kept.
    pub(super) fn hoard(&mut self) {
        while self.hoard.len() < HOARD {
            let page = self.pages.under(self.stock[self.hoard.len() % self.stock.len()].0).expect("from the stock");
            let grant = self.lend_for_good(page);
            self.hoard.push(grant);
        }
        let room = self.link.as_ref().filter(|link| !link.wild).map_or(0, |link| link.ring.free());
        for _ in 0..room.min(3) {
            let from = self.hoarded % HOARD;
            self.hoarded += HOARD_STEP;
            let mut segments = self.kit().segments(HOARD_STEP);
            segments.iter_mut().zip(&self.hoard[from..]).for_each(|(segment, grant)| segment.grant = *grant);
            let made = self.kit().indirect(op::READ, &segments);
            self.put(made, None);
        }
        self.publish();
        if self.hoarded > HOARD {
            if self.pages.mapped() >= NEARLY_A_RING {
                marks::hit(Keep::RingFull.mark());
            }
            // Until the others have theirs.
            self.next_at = self.now() + Duration::from_secs(3);
        }
    }

    /// Pages of this disk user that the backend has mapped beside its ring. No more than may be.
    pub fn kept(&self) -> usize {
        let kept = self.pages.mapped();
        if kept > KEPT_OF_A_RING {
            self.fail(&format!("{kept} of its pages are kept mapped, and {KEPT_OF_A_RING} are the most"));
        }
        kept
    }

    /// The ring is let go of and the backend has said so: with it goes all that was kept.
    pub(super) fn nothing_is_kept(&mut self) {
        let kept = self.kept();
        if kept > 0 {
            self.fail(&format!("closed, and {kept} pages are still mapped"));
        }
        if std::mem::take(&mut self.left_mapped) {
            marks::hit(Keep::Disconnected.mark());
        }
    }

    /// It is about to go: whatever is mapped now has to be let go of.
    pub(super) fn leaves_mapped(&mut self) {
        self.left_mapped = self.kept() > 0;
    }

    /// Whether it is one that lets the backend keep pages, and connected.
    pub(super) fn is_keeping(&self) -> bool {
        self.pages.is_keeping() && matches!(self.phase, Phase::Connected)
    }
}
