//! Peers that write whatever they like, whenever they like: nothing panics, and no bound gives way.

use proptest::prelude::*;
use protocol::blkif::{self, Body, Layout};
use protocol::mem::{Evil, Memory};
use protocol::ring::{Back, Front, Shape};
use protocol::vchan::{Endpoint, GRANTS_MAX, Orders, Peer, Place, Rings};
use protocol::xenbus::{self, State};
use protocol::{gpt, number, xenstore};

/// What one half of a ring does next.
#[derive(Clone, Copy, Debug)]
enum Act {
    Take,
    Put,
    Publish,
    Rearm,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![5 => Just(Act::Take), 4 => Just(Act::Put), 1 => Just(Act::Publish), 1 => Just(Act::Rearm)];
    proptest::collection::vec(act, 1..200)
}

fn layout() -> impl Strategy<Value = Layout> {
    prop_oneof![Just(Layout::X86_64), Just(Layout::X86_32)]
}

/// Bytes of which many are small, as the rules are about small numbers.
fn bytes(count: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![any::<u8>(), 0..9u8], count)
}

fn state() -> impl Strategy<Value = State> {
    (0..9usize).prop_map(|state| State::ALL[state])
}

/// What the toolstack writes into our node, now and then.
fn poke() -> impl Strategy<Value = Option<State>> {
    proptest::option::weighted(0.1, state())
}

/// What the frontend says, if it is there.
fn front() -> impl Strategy<Value = Option<State>> {
    proptest::option::weighted(0.95, state())
}

/// What one side of a vchan does next.
#[derive(Clone, Copy, Debug)]
enum Talk {
    Read(usize),
    Write(usize),
    AskData,
    AskRoom,
    Peer,
}

fn talks() -> impl Strategy<Value = Vec<Talk>> {
    let talk = prop_oneof![
        (0..5000usize).prop_map(Talk::Read),
        (0..5000usize).prop_map(Talk::Write),
        Just(Talk::AskData),
        Just(Talk::AskRoom),
        Just(Talk::Peer),
    ];
    proptest::collection::vec(talk, 1..100)
}

proptest! {
    #[test]
    fn vchan_sides(seed: u64, server: bool, talks in talks(), orders in proptest::sample::select(vec![(10, 11), (12, 12), (11, 13)])) {
        let orders = Orders::new(orders.0, orders.1).unwrap();
        let page = Evil::<4096>::new(seed);
        let [left, right] = [seed ^ 1, seed ^ 2].map(Evil::<8192>::new);
        let own = |place, pages| match place {
            Place::InPage(_) => &page as &dyn Memory,
            Place::Pages(_) => pages,
        };
        let rings = Rings { left: own(orders.left(), &left), right: own(orders.right(), &right) };
        let mut end = match server {
            true => Endpoint::serve(&page as &dyn Memory, rings, orders, 8..),
            false => Endpoint::connect(&page as &dyn Memory, rings, orders),
        };
        let (incoming, outgoing) = match server {
            true => (orders.left_bytes() as usize, orders.right_bytes() as usize),
            false => (orders.right_bytes() as usize, orders.left_bytes() as usize),
        };
        let mut broken = false;
        for talk in talks {
            let mut bytes = [0; 5000];
            let result = match talk {
                Talk::Read(most) => end.read(&mut bytes[..most]).map(|moved| moved.bytes <= most.min(incoming)),
                Talk::Write(most) => end.write(&bytes[..most]).map(|moved| moved.bytes <= most.min(outgoing)),
                Talk::AskData => end.ask_data().map(|_| true),
                Talk::AskRoom => end.ask_room().map(|_| true),
                Talk::Peer => Ok(matches!(end.peer(), Peer::Awaited | Peer::Here | Peer::Gone | Peer::Another)),
            };
            prop_assert_ne!(result, Ok(false));
            prop_assert!(!broken || result.is_err() || matches!(talk, Talk::Peer), "an overrun is for good");
            broken |= result.is_err();
        }
    }

    #[test]
    fn vchan_orders(seed: u64) {
        let page = Evil::<4096>::new(seed);
        page.store(16, 0x000c_000c);
        if let Ok(orders) = Orders::read(&page) {
            prop_assert!(orders.grants() <= GRANTS_MAX);
            (0..orders.grants()).for_each(|index| {
                orders.grant(&page, index);
            });
        }
    }

    #[test]
    fn backend_ring(seed: u64, layout in layout(), acts in acts(), start: u32) {
        let shape = Shape::new(1, layout.entry_bytes());
        let memory = Evil::<4096>::new(seed);
        memory.store(0, start);
        memory.store(8, start);
        let Ok(mut back) = Back::attach(&memory, shape) else { return Ok(()) };
        let mut entry = [0; 112];
        for act in acts {
            let before = back.taken();
            match act {
                Act::Take => match back.take(&mut entry[..layout.entry_bytes()]) {
                    Ok(true) => {
                        prop_assert_eq!(back.taken(), before + 1);
                        let _ = blkif::parse(&entry, layout, 256);
                    }
                    Ok(false) | Err(_) => prop_assert_eq!(back.taken(), before),
                },
                Act::Put if before > 0 => {
                    back.put(&blkif::respond(seed, 0, blkif::Status::Okay, layout));
                    prop_assert_eq!(back.taken(), before - 1);
                }
                Act::Put => {}
                Act::Publish => {
                    let _ = back.publish();
                    prop_assert!(!back.publish(), "nothing new");
                }
                Act::Rearm => {
                    let _ = back.rearm();
                    prop_assert_eq!(back.taken(), before);
                }
            }
            prop_assert!(back.taken() <= shape.slots);
        }
    }

    #[test]
    fn frontend_ring(seed: u64, acts in acts()) {
        let shape = Shape::new(1, blkif::REQUEST_BYTES);
        let memory = Evil::<4096>::new(seed);
        let mut front = Front::init(&memory, shape);
        let (mut shown, mut answered, mut asked) = (0, 0, 0);
        for act in acts {
            match act {
                Act::Put if front.free() > 0 => {
                    front.put(blkif::encode(0, 0, &blkif::Ask::Flush, &mut [0; blkif::REQUEST_BYTES]));
                    asked += 1;
                }
                Act::Put => {}
                Act::Take => {
                    let mut response = [0; blkif::RESPONSE_BYTES];
                    if front.take(&mut response) == Ok(true) {
                        let _ = blkif::Answer::parse(&response);
                        answered += 1;
                    }
                }
                Act::Publish => {
                    let _ = front.publish();
                    shown = asked;
                }
                Act::Rearm => {
                    let _ = front.rearm();
                }
            }
            prop_assert!(answered <= shown, "an answer to what was never shown");
            prop_assert_eq!(front.outstanding(), asked - answered);
            prop_assert_eq!(front.free() + front.outstanding(), shape.slots);
        }
    }

    #[test]
    fn store_page(seed: u64, counts in proptest::collection::vec((any::<bool>(), 0..1500usize), 1..100)) {
        let memory = Evil::<4096>::new(seed);
        let mut client = xenstore::Client::new(&memory);
        let mut server = xenstore::Server::new(&memory);
        let mut buffer = [0; 1500];
        for (write, count) in counts {
            let moved = match write {
                true => [client.write(&buffer[..count]), server.write(&buffer[..count])],
                false => [client.read(&mut buffer[..count]), server.read(&mut buffer[..count])],
            };
            for moved in moved.into_iter().flatten() {
                prop_assert!(moved <= count && moved <= 1024);
            }
        }
    }

    #[test]
    fn requests_keep_the_rules(
        operation in prop_oneof![0..8u8, any::<u8>()],
        rest in bytes(111),
        layout in layout(),
        offered: u16,
    ) {
        let mut entry = vec![operation];
        entry.extend(&rest);
        let echoed = if operation == blkif::INDIRECT { entry[1] } else { operation };
        match blkif::parse(&entry, layout, offered) {
            Err(rejected) => {
                prop_assert_eq!(rejected.operation, echoed);
                prop_assert_ne!(rejected.status, blkif::Status::Okay);
            }
            Ok(request) => {
                prop_assert_eq!(request.operation, echoed);
                prop_assert!(request.operation <= blkif::DISCARD);
                match request.body {
                    Body::Transfer { segments, flush_first, barrier, way, .. } => {
                        prop_assert!((1..=11).contains(&segments.len()));
                        prop_assert!(segments.iter().all(|segment| segment.first <= segment.last && segment.last <= 7));
                        prop_assert!(!(flush_first && barrier));
                        prop_assert_eq!(way == blkif::Way::Read, operation == blkif::READ);
                    }
                    Body::Indirect { count, pages, .. } => {
                        prop_assert!((1..=offered).contains(&count));
                        prop_assert!(pages.len() * 512 >= count.into() && (pages.len() - 1) * 512 < count.into());
                    }
                    Body::Discard { sectors, .. } => prop_assert!(sectors > 0),
                    Body::Flush | Body::Barrier => prop_assert_eq!(entry[1], 0),
                }
            }
        }
    }

    #[test]
    fn what_we_ask_is_what_a_backend_reads(id: u64, sector: u64, grants in proptest::collection::vec(any::<u32>(), 1..=11)) {
        let segments: Vec<_> = grants.iter().map(|grant| {
            let (first, last) = ((grant % 8) as u8, (grant / 8 % 8) as u8);
            blkif::Segment::new(*grant, first.min(last), first.max(last)).unwrap()
        }).collect();
        let ask = blkif::Ask::Transfer { way: blkif::Way::Write, sector, segments: &segments };
        let mut entry = [0; blkif::REQUEST_BYTES];
        blkif::encode(id, 7, &ask, &mut entry);
        let request = blkif::parse(&entry, Layout::X86_64, 0).unwrap();
        prop_assert_eq!(request.id, id);
        match request.body {
            Body::Transfer { sector: read, segments: same, .. } => {
                prop_assert_eq!(read, sector);
                prop_assert_eq!(same.as_slice(), segments.as_slice());
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn descriptor_pages(page in bytes(256), count in 0..=32u16) {
        let read: Vec<_> = blkif::segments(&page, count).collect();
        prop_assert_eq!(read.len(), usize::from(count));
        for (segment, bytes) in read.into_iter().zip(page.chunks(8)) {
            prop_assert_eq!(segment.is_ok(), bytes[4] <= bytes[5] && bytes[5] <= 7);
        }
    }

    #[test]
    fn spans_are_those_of_wide_numbers(sector: u64, sectors: u64, disk: u64) {
        let fits = u128::from(sector) + u128::from(sectors) <= u128::from(disk);
        prop_assert_eq!(blkif::span(sector, sectors, disk).is_ok(), fits);
    }

    #[test]
    fn texts_of_any_bytes(text in proptest::collection::vec(prop_oneof![b'0'..=b'9', any::<u8>()], 0..40)) {
        let plain = std::str::from_utf8(&text).ok().filter(|text| text.len() <= 20 && !text.starts_with('+'));
        prop_assert_eq!(number::u64(&text), plain.and_then(|text| text.parse::<u64>().ok()));
        prop_assert_eq!(number::u32(&text), plain.and_then(|text| text.parse::<u32>().ok()));
        let _ = (State::parse(&text), xenstore::Reason::of(&text), xenstore::Event::parse(&text));
        for name in xenstore::names(&text) {
            prop_assert!(xenstore::valid_path(name) && !name.contains('/'));
        }
    }

    #[test]
    fn partition_tables_of_any_numbers(
        positions in proptest::array::uniform5(prop_oneof![4 => 0..64u64, 1 => any::<u64>()]),
        (entries, entry_bytes) in (prop_oneof![4 => 1..200u32, 1 => any::<u32>()], prop_oneof![Just(128), Just(256), Just(512), any::<u32>()]),
        (entry_first, entry_last) in (0..64u64, 0..64u64),
    ) {
        let [lba, usable_first, usable_last, entries_at, disk] = positions;
        let mut sector = [0; 512];
        sector[..16].copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
        for (at, value) in [(24, lba), (40, usable_first), (48, usable_last), (72, entries_at)] {
            sector[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        sector[80..84].copy_from_slice(&entries.to_le_bytes());
        sector[84..88].copy_from_slice(&entry_bytes.to_le_bytes());
        let crc = crc32fast::hash(&sector[..92]);
        sector[16..20].copy_from_slice(&crc.to_le_bytes());
        let mut entry = [1; 128];
        entry[32..40].copy_from_slice(&entry_first.to_le_bytes());
        entry[40..48].copy_from_slice(&entry_last.to_le_bytes());
        if let Ok(header) = gpt::Header::parse(&sector, lba, disk) {
            prop_assert!(header.usable_last < disk && header.entries_at + header.entries_sectors() <= disk);
            for number in [1, header.entries] {
                let (at, byte) = header.place(number).unwrap();
                prop_assert!(at < header.entries_at + header.entries_sectors());
                prop_assert!(byte + header.entry_bytes as usize <= 512);
            }
            if let Ok(Some(entry)) = gpt::Entry::parse(&entry, &header) {
                prop_assert!(entry.sectors() >= 1 && entry.last < disk);
            }
        }
    }

    /// A frontend and a toolstack that write any state at any time: what we hold is let go of before it is taken
    /// again, and nothing is left when the device ends.
    #[test]
    fn handshakes_hold_at_most_one_connection(
        walk in proptest::collection::vec((poke(), front(), proptest::bool::weighted(0.9)), 1..100),
    ) {
        use xenbus::Do;
        let mut back = xenbus::Back::new();
        let (mut own, mut holds) = (State::Initialising, false);
        for (poked, front, online) in walk {
            own = poked.unwrap_or(own);
            let what = back.step(xenbus::Seen { own: Some(own), front, online });
            match what {
                Do::Nothing => continue,
                Do::Publish => {
                    prop_assert!(!holds, "offers anew while it serves");
                    own = State::InitWait;
                    back.published();
                }
                Do::Connect => {
                    prop_assert!(!holds, "two connections");
                    (own, holds) = (State::Connected, true);
                    back.connected();
                }
                Do::Reconnect => {
                    (own, holds) = (State::Connected, true);
                    back.connected();
                }
                Do::Restart => {
                    (own, holds) = (State::InitWait, false);
                    back.published();
                }
                Do::AnswerClosing => {
                    own = State::Closing;
                    back.closing();
                }
                Do::Close => {
                    (own, holds) = (State::Closed, false);
                    back.closed();
                }
                Do::Remove | Do::Forget => return Ok(()),
            }
            prop_assert_eq!(holds && back.phase() == xenbus::Phase::Closed, false);
        }
    }
}
