//! One slot of a ring, read twice: by the product, and by the simulator's own reading of `io/blkif.h`.

use protocol::blkif::{self, Ask, Rejected, Status};

use crate::blkif::{Body, Layout, Request, SECTOR, Segment, op};
use crate::random::Random;

/// A layout, what we offered, and a slot; or a page of descriptors.
pub fn blkif(bytes: &[u8]) {
    let mut tape = Random::of(bytes);
    let layout = tape.pick(&[Layout::X86_64, Layout::X86_32]);
    let offered = tape.pick(&[0, 1, 11, 256, 4096, u16::MAX]);
    let mut entry = [0; 112];
    entry.fill_with(|| tape.below(256) as u8);
    agree(&entry, layout, offered);
    descriptors(bytes);
}

/// The product's name of a layout.
pub(super) fn product(layout: Layout) -> blkif::Layout {
    match layout {
        Layout::X86_64 => blkif::Layout::X86_64,
        Layout::X86_32 => blkif::Layout::X86_32,
    }
}

/// Both readings come to one: the same request, or the refusal that the header wants.
pub(super) fn agree(entry: &[u8], layout: Layout, offered: u16) {
    let parsed = blkif::parse(entry, product(layout), offered);
    let read = Request::decode(layout, &entry[..product(layout).entry_bytes()]);
    match (parsed, lawful(entry, read.as_ref(), offered)) {
        (Ok(request), Ok(())) => {
            let read = read.expect("lawful");
            assert_eq!((request.id, request.operation), (read.id, read.op));
            same(&request.body, &read);
            reply(&read, layout);
            ask_again(&read);
        }
        (Err(Rejected { id, operation, status, .. }), Err(expected)) => {
            let outer = entry[0];
            assert_eq!(operation, if outer == op::INDIRECT { entry[1] } else { outer }, "the operation to be echoed");
            let at = if layout == Layout::X86_64 { 8 } else { 4 };
            assert_eq!(id.to_le_bytes(), entry[at..at + 8], "the number to be echoed");
            assert_eq!(status, expected);
        }
        (parsed, lawful) => panic!("parsed as {parsed:?}, by the header {lawful:?}, read as {read:?}"),
    }
}

/// What the header makes of it.
fn lawful(entry: &[u8], read: Option<&Request>, offered: u16) -> Result<(), Status> {
    let fine = match (entry[0], read.map(|read| &read.body)) {
        (op::READ | op::WRITE, Some(Body::Segments(segments))) => !segments.is_empty() && inside(segments),
        (op::BARRIER | op::FLUSH, Some(Body::Segments(segments))) => inside(segments),
        (op::DISCARD, Some(Body::Discard { sectors })) => *sectors > 0,
        (op::INDIRECT, Some(Body::Indirect { count, .. })) => {
            matches!(entry[1], op::READ | op::WRITE) && (1..=offered).contains(count)
        }
        (op::READ | op::WRITE | op::BARRIER | op::FLUSH | op::DISCARD | op::INDIRECT, _) => false,
        _ => return Err(Status::Unsupported),
    };
    if fine { Ok(()) } else { Err(Status::Error) }
}

fn inside(segments: &[Segment]) -> bool {
    segments.iter().all(|segment| segment.first <= segment.last && usize::from(segment.last) < 4096 / SECTOR)
}

fn same(body: &blkif::Body, read: &Request) {
    let writes = read.op != op::READ;
    match (body, &read.body) {
        (blkif::Body::Transfer { way, sector, segments, flush_first, barrier }, Body::Segments(theirs)) => {
            assert_eq!((*sector, *way == blkif::Way::Write), (read.sector, writes));
            assert_eq!((*flush_first, *barrier), (read.op == op::FLUSH, read.op == op::BARRIER));
            let ours: Vec<_> = segments.iter().map(|s| (s.grant, s.first, s.last)).collect();
            let theirs: Vec<_> = theirs.iter().map(|s| (s.grant.0, s.first, s.last)).collect();
            assert_eq!(ours, theirs);
            for (segment, (_, first, last)) in segments.iter().zip(theirs) {
                assert_eq!(segment.bytes(), usize::from(last - first + 1) * SECTOR);
                assert_eq!(segment.offset(), usize::from(first) * SECTOR);
            }
        }
        (blkif::Body::Indirect { way, sector, count, pages }, Body::Indirect { count: n, pages: theirs }) => {
            assert_eq!((*sector, *way == blkif::Way::Write, count), (read.sector, writes, n));
            assert!(pages.iter().eq(theirs.iter().map(|grant| &grant.0)));
        }
        (blkif::Body::Discard { sector, sectors, .. }, Body::Discard { sectors: theirs }) => {
            assert_eq!((*sector, sectors), (read.sector, theirs))
        }
        (blkif::Body::Flush, Body::Segments(none)) => assert!(read.op == op::FLUSH && none.is_empty()),
        (blkif::Body::Barrier, Body::Segments(none)) => assert!(read.op == op::BARRIER && none.is_empty()),
        other => panic!("read differently: {other:?}"),
    }
}

/// The answer's bytes as a frontend of that layout reads them.
fn reply(read: &Request, layout: Layout) {
    for status in [Status::Okay, Status::Error, Status::Unsupported] {
        let bytes = blkif::respond(read.id, read.op, status, product(layout));
        assert_eq!(bytes.len(), if layout == Layout::X86_64 { 16 } else { 12 });
        assert_eq!(bytes[..8], read.id.to_le_bytes());
        assert_eq!((bytes[8], i16::from_le_bytes([bytes[10], bytes[11]])), (read.op, status as i16));
        assert!(bytes[9] == 0 && bytes[12..].iter().all(|byte| *byte == 0), "nothing of ours in the padding");
    }
}

/// The same request as we would make it of the disk below is the same to a backend.
fn ask_again(read: &Request) {
    let (mut segments, mut grants) = (Vec::new(), Vec::new());
    let way = if read.op == op::READ { blkif::Way::Read } else { blkif::Way::Write };
    let sector = read.sector;
    let ask = match &read.body {
        Body::Segments(none) if none.is_empty() && read.op == op::FLUSH => Ask::Flush,
        Body::Segments(theirs) if matches!(read.op, op::READ | op::WRITE) => {
            segments.extend(theirs.iter().map(|s| blkif::Segment::new(s.grant.0, s.first, s.last).expect("lawful")));
            Ask::Transfer { way, sector, segments: &segments }
        }
        Body::Indirect { count, pages } => {
            grants.extend(pages.iter().map(|grant| grant.0));
            Ask::Indirect { way, sector, count: *count, pages: &grants }
        }
        Body::Discard { sectors } => Ask::Discard { sector, sectors: *sectors },
        Body::Segments(_) => return,
    };
    let mut entry = [0; blkif::REQUEST_BYTES];
    blkif::encode(read.id, 51712, &ask, &mut entry);
    assert_eq!(ask.operation(), read.op);
    let again = Request::decode(Layout::X86_64, &entry).expect("what we ask can be read");
    let sector = if ask == Ask::Flush { again.sector } else { read.sector };
    assert_eq!(again, Request { sector, ..read.clone() });
}

/// A page of descriptors of an indirect request.
fn descriptors(bytes: &[u8]) {
    let count = bytes.len() / 8;
    let read: Vec<_> = blkif::segments(bytes, count as u16).collect();
    assert_eq!(read.len(), count);
    for (ours, raw) in read.into_iter().zip(bytes.chunks(8)) {
        let theirs = Segment::decode(raw);
        let lawful = inside(&[theirs]);
        let ours = ours.ok().map(|s| (s.grant, s.first, s.last));
        assert_eq!(ours, lawful.then_some((theirs.grant.0, theirs.first, theirs.last)));
    }
}
