//! The short way: a read or write of a disk in our own memory, by a guest whose pages stay mapped, waits for nothing and is
//! done before the next request is looked at. It takes no slot, no credit and no hypercall.

use alloc::vec::Vec;

use drivers::device::ram::Ram;
use drivers::disk::{SECTOR_BYTES, SECTORS_PER_PAGE};
use drivers::stack::Stack;
use protocol::blkif::{self, Body, Request, SEGMENT_BYTES, SEGMENTS_PER_PAGE, Segment, Status, Way};
use protocol::mem::Memory;
use xen::kept::Kept;
use xen::port::{GrantRef, Xen};

use crate::request::{Answer, Desk};
use crate::stats::add;

/// Descriptors read at a time.
const CHUNK_BYTES: usize = 512;

impl<X: Xen> Desk<X> {
    /// Does the request, if it can be done here and now. If not it is to be done the ordinary
    /// way, which also finds out what is wrong with it: what was copied by then is copied again.
    pub fn at_once(&self, stack: &Stack<X>, request: &Request) -> Option<Answer> {
        let ram = stack.resident()?;
        let mut kept = self.kept.borrow_mut();
        let kept = kept.as_mut()?;
        let (way, sectors, segments) = match &request.body {
            Body::Transfer { way, sector, segments, flush_first: _, barrier: false } => {
                (*way, self.move_all(ram, kept, *way, *sector, segments)?, segments.len())
            }
            Body::Indirect { way, sector, count, pages } => {
                let mut sheet = self.sheets.take(usize::from(*count));
                let moved = self
                    .read_descriptors(kept, pages, *count, &mut sheet.segments)
                    .and_then(|()| self.move_all(ram, kept, *way, *sector, &sheet.segments));
                self.sheets.put(sheet);
                (*way, moved?, usize::from(*count))
            }
            Body::Transfer { barrier: true, .. } | Body::Flush | Body::Barrier | Body::Discard { .. } => return None,
        };
        add(&self.stats.copied, segments as u64);
        self.spent(segments);
        self.transfers(way).done(sectors, 0);
        Some(Answer { id: request.id, operation: request.operation, status: Status::Okay })
    }

    /// Moves the segments' sectors, in order; how many.
    fn move_all(&self, ram: &Ram, kept: &mut Kept<X>, way: Way, sector: u64, segments: &[Segment]) -> Option<u64> {
        let sectors = segments.iter().map(|segment| u64::from(segment.sectors())).sum();
        blkif::span(sector, sectors, ram.sectors()).ok()?;
        if way == Way::Write && self.read_only {
            return None;
        }
        let mut at = sector;
        for segment in segments {
            let theirs = kept.page(GrantRef(segment.grant))?;
            let (mut first, mut left) = (u32::from(segment.first), segment.sectors());
            while left > 0 {
                let (ours, here) = ram.at(at);
                let some = left.min(u32::from(SECTORS_PER_PAGE) - here);
                let [theirs_at, ours_at, bytes] = [first, here, some].map(|sectors| sectors as usize * SECTOR_BYTES);
                match way {
                    Way::Read => theirs.copy(theirs_at, ours, ours_at, bytes),
                    Way::Write => ours.copy(ours_at, theirs, theirs_at, bytes),
                }
                (at, first, left) = (at + u64::from(some), first + some, left - some);
            }
        }
        Some(sectors)
    }

    /// Reads the descriptors of an indirect request, each byte once (XSA-155).
    pub(crate) fn read_descriptors(
        &self,
        kept: &mut Kept<X>,
        pages: &[u32],
        count: u16,
        into: &mut Vec<Segment>,
    ) -> Option<()> {
        let mut left = usize::from(count);
        for grant in pages {
            let page = kept.page(GrantRef(*grant))?;
            let here = left.min(usize::from(SEGMENTS_PER_PAGE));
            left -= here;
            let bytes = here * SEGMENT_BYTES;
            let mut descriptors = [0; CHUNK_BYTES];
            for at in (0..bytes).step_by(CHUNK_BYTES) {
                let some = &mut descriptors[..(bytes - at).min(CHUNK_BYTES)];
                page.read(at, some);
                for segment in blkif::segments(some, (some.len() / SEGMENT_BYTES) as u16) {
                    into.push(segment.ok()?);
                }
            }
        }
        Some(())
    }
}
