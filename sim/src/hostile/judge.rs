//! Which answers a slot's bytes may have: the rules of `io/blkif.h` as a third reader has them, and what we offered.

use xen::page::PAGE_BYTES;

use crate::blkif::{Layout, SEGMENTS_MAX, SEGMENTS_PER_PAGE, Segment, op, status};
use crate::hostile::pages::{Pages, Stand};
use protocol::mem::Memory;

/// What is known of the disk that a request goes to.
#[derive(Clone, Copy, Debug)]
pub struct Env {
    /// How the guest lays requests out.
    pub layout: Layout,
    /// The fewest sectors it may have at the moment.
    pub sectors_min: u64,
    /// The most.
    pub sectors_max: u64,
    /// Nothing may be written.
    pub read_only: bool,
    /// Discards were offered.
    pub discard: bool,
    /// Segments offered for indirect requests.
    pub indirect: u16,
    /// The store below may fail anything.
    pub soft: bool,
}

/// What may come of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The number to be echoed.
    pub id: u64,
    /// The operation to be echoed.
    pub op: u8,
    /// The answers that are right.
    pub allowed: Vec<i16>,
    /// References that a read may write to.
    pub into: Vec<u32>,
    /// All references that matter.
    pub names: Vec<u32>,
}

/// Reads a slot.
pub fn judge(entry: &[u8], env: &Env, pages: &Pages) -> Verdict {
    let (id_at, sector_at, tail) = if env.layout == Layout::X86_64 { (8, 16, 24) } else { (4, 12, 20) };
    let long = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("eight bytes"));
    let (outer, second, sector) = (entry[0], entry[1], long(sector_at));
    let mut verdict = Verdict {
        id: long(id_at),
        op: if outer == op::INDIRECT { second } else { outer },
        allowed: Vec::new(),
        into: Vec::new(),
        names: Vec::new(),
    };
    let error = vec![status::ERROR];
    verdict.allowed = match outer {
        op::READ | op::WRITE | op::BARRIER | op::FLUSH => {
            let count = usize::from(second);
            if count > SEGMENTS_MAX {
                return Verdict { allowed: error, ..verdict };
            }
            if count == 0 {
                let bare = outer == op::BARRIER || outer == op::FLUSH;
                return Verdict { allowed: if bare { okay(env) } else { error }, ..verdict };
            }
            let segments: Vec<Segment> = entry[tail..tail + 8 * count].chunks(8).map(Segment::decode).collect();
            transfer(outer != op::READ, sector, &segments, env, pages, &mut verdict)
        }
        op::DISCARD => discard(sector, long(tail), env),
        op::INDIRECT => {
            let count = u16::from_le_bytes([entry[2], entry[3]]);
            let inner = second == op::READ || second == op::WRITE;
            if !inner || count == 0 || count > env.indirect {
                return Verdict { allowed: error, ..verdict };
            }
            let at = tail + 4;
            let tables = entry[at..at + 4 * usize::from(count).div_ceil(SEGMENTS_PER_PAGE)].chunks(4);
            let tables: Vec<u32> = tables.map(|raw| u32::from_le_bytes(raw.try_into().expect("four bytes"))).collect();
            verdict.names.extend(&tables);
            if tables.iter().any(|table| pages.stand(*table) == Stand::Either) {
                // What is read there is whatever the page, which has other uses now, holds by then.
                verdict.into = pages.granted();
                return Verdict { allowed: vec![status::OKAY, status::ERROR], ..verdict };
            }
            let Some(segments) = descriptors(&tables, count, pages) else {
                return Verdict { allowed: error, ..verdict };
            };
            transfer(second == op::WRITE, sector, &segments, env, pages, &mut verdict)
        }
        _ => vec![status::EOPNOTSUPP],
    };
    verdict
}

fn okay(env: &Env) -> Vec<i16> {
    if env.soft { vec![status::OKAY, status::ERROR] } else { vec![status::OKAY] }
}

/// The descriptors as they are now; none if Xen would not copy one of their pages.
fn descriptors(tables: &[u32], count: u16, pages: &Pages) -> Option<Vec<Segment>> {
    let mut bytes = vec![0; tables.len() * PAGE_BYTES];
    for (table, bytes) in tables.iter().zip(bytes.chunks_mut(PAGE_BYTES)) {
        if pages.stand(*table) == Stand::Refused {
            return None;
        }
        pages.at(pages.under(*table)?).read(0, bytes);
    }
    Some(bytes.chunks(8).take(count.into()).map(Segment::decode).collect())
}

fn transfer(
    write: bool,
    sector: u64,
    segments: &[Segment],
    env: &Env,
    pages: &Pages,
    verdict: &mut Verdict,
) -> Vec<i16> {
    verdict.names.extend(segments.iter().map(|segment| segment.grant.0));
    if segments.iter().any(|segment| segment.first > segment.last || segment.last > 7) {
        return vec![status::ERROR];
    }
    let sectors: u64 = segments.iter().map(|segment| u64::from(segment.last - segment.first) + 1).sum();
    let fits = |disk: u64| sector.checked_add(sectors).is_some_and(|end| end <= disk);
    if !fits(env.sectors_max) || write && env.read_only {
        return vec![status::ERROR];
    }
    if !write {
        // Some pages may be filled though others are refused.
        verdict.into.extend(segments.iter().map(|segment| segment.grant.0));
    }
    let wrong = |segment: &Segment| match pages.stand(segment.grant.0) {
        Stand::Fine | Stand::Either => false,
        Stand::ReadOnly => !write,
        Stand::Refused => true,
    };
    if segments.iter().any(wrong) {
        return vec![status::ERROR];
    }
    if segments.iter().any(|segment| pages.stand(segment.grant.0) == Stand::Either) {
        return vec![status::OKAY, status::ERROR];
    }
    if fits(env.sectors_min) { okay(env) } else { vec![status::OKAY, status::ERROR] }
}

fn discard(sector: u64, sectors: u64, env: &Env) -> Vec<i16> {
    let fits = |disk: u64| sectors > 0 && sector.checked_add(sectors).is_some_and(|end| end <= disk);
    match (env.discard, fits(env.sectors_max)) {
        (false, true) => vec![status::EOPNOTSUPP],
        // Both are true: it makes no sense, and it was not offered.
        (false, false) => vec![status::EOPNOTSUPP, status::ERROR],
        (true, false) => vec![status::ERROR],
        (true, true) if fits(env.sectors_min) => okay(env),
        (true, true) => vec![status::OKAY, status::ERROR],
    }
}
