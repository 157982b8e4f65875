//! Every flag, every index, and every order of the two sides' accesses.

use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::vec::Vec;

use super::*;
use crate::mem::Flat;
use crate::vchan::PAGE_BYTES;

type Page = Flat<PAGE_BYTES>;

/// Left 1 KiB, right 2 KiB, both in the page.
const SMALL: Orders = match Orders::new(10, 11) {
    Ok(orders) => orders,
    Err(_) => panic!(),
};

/// What the peer does to the page.
type Act<'a> = Box<dyn FnMut(&Page) + 'a>;

/// A page that counts the fetches of each index and lets the peer act before every access of ours.
struct Watched<'a> {
    page: &'a Page,
    loads: [Cell<u32>; 4],
    act: RefCell<Option<Act<'a>>>,
}

impl<'a> Watched<'a> {
    fn new(page: &'a Page) -> Self {
        Watched { page, loads: Default::default(), act: RefCell::default() }
    }
    fn before(&self, act: impl FnMut(&Page) + 'a) {
        *self.act.borrow_mut() = Some(Box::new(act));
    }
    fn loads(&self) -> [u32; 4] {
        self.loads.each_ref().map(Cell::take)
    }
    fn page(&self) -> &Page {
        if let Ok(mut act) = self.act.try_borrow_mut()
            && let Some(act) = act.as_mut()
        {
            act(self.page);
        }
        self.page
    }
}

impl Memory for Watched<'_> {
    fn load(&self, at: usize) -> u32 {
        if let Some(loads) = self.loads.get(at / 4) {
            loads.set(loads.get() + 1);
        }
        self.page().load(at)
    }
    fn store(&self, at: usize, value: u32) {
        self.page().store(at, value)
    }
    fn read(&self, at: usize, into: &mut [u8]) {
        self.page().read(at, into)
    }
    fn write(&self, at: usize, from: &[u8]) {
        self.page().write(at, from)
    }
    fn load8(&self, at: usize) -> u8 {
        self.page().load8(at)
    }
    fn store8(&self, at: usize, value: u8) {
        self.page().store8(at, value)
    }
    fn fetch_or8(&self, at: usize, bits: u8) -> u8 {
        self.page().fetch_or8(at, bits)
    }
    fn fetch_and8(&self, at: usize, bits: u8) -> u8 {
        self.page().fetch_and8(at, bits)
    }
    fn fence(&self) {
        self.page();
    }
}

fn serve<M: Memory + Copy>(page: M) -> Endpoint<M> {
    Endpoint::serve(page, Rings { left: page, right: page }, SMALL, core::iter::empty())
}

fn connect<M: Memory + Copy>(page: M) -> Endpoint<M> {
    Endpoint::connect(page, Rings { left: page, right: page }, SMALL)
}

/// Both sides of a vchan whose indices have come to `start`.
fn pair(page: &Page, start: u32) -> (Endpoint<&Page>, Endpoint<&Page>) {
    let mut server = serve(page);
    [0, 4, 8, 12].into_iter().for_each(|index| page.store(index, start));
    server.incoming.own = start;
    server.outgoing.own = start;
    let client = connect(page);
    assert_eq!(server.peer(), Peer::Here);
    (server, client)
}

fn bytes(page: &Page, at: usize, count: usize) -> Vec<u8> {
    let mut bytes = std::vec![0; count];
    page.read(at, &mut bytes);
    bytes
}

fn moved(bytes: usize, notify: bool) -> Result<Moved, Overrun> {
    Ok(Moved { bytes, notify })
}

#[test]
fn a_fresh_page_is_what_the_header_says() {
    // struct vchan_interface { .left_order = 12, .right_order = 13, .cli_live = 2, .srv_live = 1, .cli_notify = 1,
    // .grants = { 8, 9, 10 } }, printed by a C program.
    let page = Page::default();
    page.write(0, &[0xa5; 40]);
    let memory = [Flat::<4096>::default(), Flat::<4096>::default()];
    let orders = Orders::new(12, 13).unwrap();
    let rings = Rings { left: &memory[0] as &dyn Memory, right: &memory[1] };
    Endpoint::serve(&page as &dyn Memory, rings, orders, [8, 9, 10, 11].into_iter());
    let mut golden = [0; 40];
    golden[16..24].copy_from_slice(&[12, 0, 13, 0, 2, 1, 1, 0]);
    (golden[24], golden[28], golden[32]) = (8, 9, 10);
    golden[36..].fill(0xa5);
    assert_eq!(bytes(&page, 0, 40), golden);
    // The rings of the small one: left at 1024, right at 2048.
    let (mut server, mut client) = pair(&page, 0);
    assert_eq!(bytes(&page, 16, 8), [10, 0, 11, 0, 3, 1, 1, 1]);
    assert_eq!(client.write(b"left"), moved(4, true));
    assert_eq!((bytes(&page, 1024, 5), page.load(4)), (b"left\0".to_vec(), 4));
    assert_eq!(server.write(b"right"), moved(5, true));
    assert_eq!((bytes(&page, 2048, 6), page.load(12)), (b"right\0".to_vec(), 5));
    let mut into = [0; 8];
    assert_eq!((server.read(&mut into), &into[..4], page.load(0)), (moved(4, false), b"left".as_slice(), 4));
    assert_eq!((client.read(&mut into), &into[..5], page.load(8)), (moved(5, false), b"right".as_slice(), 5));
}

#[test]
fn rings_in_pages_of_their_own() {
    let page = Page::default();
    let (left, right) = (Flat::<4096>::default(), Flat::<4096>::default());
    let rings = || Rings { left: &left, right: &right };
    let mut server = Endpoint::serve(&page, rings(), Orders::ONE_PAGE_EACH, [8, 9].into_iter());
    let mut client = Endpoint::connect(&page, rings(), Orders::read(&page).unwrap());
    let sent: Vec<u8> = (0..5000).map(|byte| (byte % 251) as u8).collect();
    assert_eq!(client.write(&sent), moved(4096, true));
    assert_eq!(client.write(&sent[4096..]), moved(0, false));
    assert_eq!((bytes(&left, 0, 4096), bytes(&right, 0, 4096)), (sent[..4096].to_vec(), std::vec![0; 4096]));
    let mut got = [0; 5000];
    assert_eq!(server.read(&mut got[..4000]), moved(4000, false));
    assert_eq!(client.write(&sent[4096..]), moved(904, false));
    assert_eq!(server.read(&mut got[4000..]), moved(1000, false));
    assert_eq!(got, sent[..]);
    assert_eq!(server.write(b"back"), moved(4, true));
    assert_eq!(bytes(&right, 0, 4), b"back");
}

#[test]
fn both_wraps() {
    for start in [0, 1000, u32::MAX - 5, u32::MAX] {
        let page = Page::default();
        let (mut server, mut client) = pair(&page, start);
        let sent: Vec<u8> = (0..3000).map(|byte| (byte % 251) as u8).collect();
        let mut got = [0; 3000];
        assert_eq!(client.write(&sent).unwrap().bytes, 1024);
        assert_eq!(server.read(&mut got[..1000]).unwrap().bytes, 1000);
        assert_eq!(client.write(&sent[1024..]).unwrap().bytes, 1000);
        assert_eq!(server.read(&mut got[1000..]).unwrap().bytes, 1024);
        assert_eq!(got[..2024], sent[..2024]);
        assert_eq!((page.load(4), page.load(0)), (start.wrapping_add(2024), start.wrapping_add(2024)));
        assert_eq!(server.write(&sent).unwrap().bytes, 2048);
        assert_eq!(client.read(&mut got).unwrap().bytes, 2048);
        assert_eq!(got[..2048], sent[..2048]);
        assert_eq!(bytes(&page, 24, 1000), std::vec![0; 1000], "between the header and the left ring");
    }
}

/// A wish is consumed by the move that it is about, alone, and by nobody else's.
#[test]
fn every_wish() {
    for wishes in 0..=255 {
        let page = Page::default();
        let (mut server, mut client) = pair(&page, 0);
        let set = || [CLI_NOTIFY, SRV_NOTIFY].into_iter().for_each(|at| page.store8(at, wishes));
        let now = || (page.load8(CLI_NOTIFY), page.load8(SRV_NOTIFY));
        set();
        assert_eq!(server.write(b"x"), moved(1, wishes & WRITE != 0));
        assert_eq!(now(), (wishes, wishes & !WRITE));
        set();
        assert_eq!(client.read(&mut [0]), moved(1, wishes & READ != 0));
        assert_eq!(now(), (wishes & !READ, wishes));
        set();
        assert_eq!(client.write(b"x"), moved(1, wishes & WRITE != 0));
        assert_eq!(now(), (wishes & !WRITE, wishes));
        set();
        assert_eq!(server.read(&mut [0]), moved(1, wishes & READ != 0));
        assert_eq!(now(), (wishes, wishes & !READ));
        set();
        for nothing in [server.read(&mut [0]), server.read(&mut []), server.write(b""), client.read(&mut [0])] {
            assert_eq!((nothing, now()), (moved(0, false), (wishes, wishes)));
        }
        assert_eq!((server.ask_data(), now()), (Ok(false), (wishes | WRITE, wishes)));
        assert_eq!((client.ask_data(), now()), (Ok(false), (wishes | WRITE, wishes | WRITE)));
        set();
        assert_eq!((server.ask_room(), now()), (Ok(true), (wishes | READ, wishes)));
        assert_eq!((client.ask_room(), now()), (Ok(true), (wishes | READ, wishes | READ)));
    }
}

#[test]
fn asking_sees_what_came_meanwhile() {
    let page = Page::default();
    let (mut server, mut client) = pair(&page, 0);
    assert_eq!((server.ask_data(), client.ask_room()), (Ok(false), Ok(true)));
    assert_eq!(client.write(&[7; 1024]).unwrap().bytes, 1024);
    assert_eq!((server.ask_data(), client.ask_room()), (Ok(true), Ok(false)));
    assert_eq!(server.read(&mut [0]).unwrap().bytes, 1);
    assert_eq!((server.ask_data(), client.ask_room()), (Ok(true), Ok(true)));
    assert_eq!(server.read(&mut [0; 1024]).unwrap().bytes, 1023);
    assert_eq!(server.ask_data(), Ok(false));
    assert_eq!(server.write(&[7; 2048]).unwrap().bytes, 2048);
    assert_eq!((server.ask_room(), client.ask_data()), (Ok(false), Ok(true)));
}

#[test]
fn indices_that_make_no_sense_end_it_for_good() {
    for start in [0, 5000, u32::MAX] {
        for server_side in [true, false] {
            // Our consumer and the peer's producer of the ring we read; then of the one we write.
            let [(_, prod, size), (cons, _, room)] = match server_side {
                true => [(0, 4, 1024), (8, 12, 2048u32)],
                false => [(8, 12, 2048u32), (0, 4, 1024)],
            };
            let all = |check: &mut dyn FnMut(&Page, &mut Endpoint<&Page>)| {
                let page = Page::default();
                let (mut server, mut client) = pair(&page, start);
                check(&page, if server_side { &mut server } else { &mut client });
            };
            all(&mut |page, end| {
                page.store(prod, start.wrapping_add(size));
                assert_eq!(end.read(&mut [0; 4096]).unwrap().bytes, size as usize, "a full ring is none");
            });
            for jump in [size + 1, 1 << 31, u32::MAX] {
                for ask in [true, false] {
                    all(&mut |page, end| {
                        page.store(prod, start.wrapping_add(jump));
                        match ask {
                            true => assert_eq!(end.ask_data(), Err(Overrun)),
                            false => assert_eq!(end.read(&mut [0; 8]), Err(Overrun)),
                        }
                        page.store(prod, start.wrapping_add(1));
                        assert_eq!(end.read(&mut [0; 8]), Err(Overrun), "repaired, and not believed");
                        assert_eq!(end.write(&[0; 8]), Err(Overrun));
                        assert_eq!((end.ask_data(), end.ask_room()), (Err(Overrun), Err(Overrun)));
                        assert_eq!([0, 8].map(|at| page.load(at)), [start; 2]);
                    });
                }
            }
            for jump in [1, 77, 1 << 31, u32::MAX - room] {
                for ask in [true, false] {
                    all(&mut |page, end| {
                        page.store(cons, start.wrapping_add(jump));
                        match ask {
                            true => assert_eq!(end.ask_room(), Err(Overrun)),
                            false => assert_eq!(end.write(&[0; 8]), Err(Overrun)),
                        }
                        page.store(cons, start);
                        assert_eq!(end.write(&[0; 8]), Err(Overrun), "repaired, and not believed");
                    });
                }
            }
            all(&mut |page, end| {
                page.store(cons, start.wrapping_sub(room));
                assert_eq!(end.write(&[0; 8]), moved(0, false), "a full ring is none");
            });
        }
    }
}

#[test]
fn what_is_ours_is_never_read_back_and_what_is_the_peers_once() {
    let page = Page::default();
    let memory = Watched::new(&page);
    let mut server = serve(&memory);
    let mut client = connect(&page);
    memory.loads();
    // Left: cons, prod; right: cons, prod.
    assert_eq!(client.write(b"abcd").unwrap().bytes, 4);
    assert_eq!((server.read(&mut [0; 2]).unwrap().bytes, memory.loads()), (2, [0, 1, 0, 0]));
    assert_eq!((server.write(b"abcd").unwrap().bytes, memory.loads()), (4, [0, 0, 1, 0]));
    assert_eq!((server.ask_data(), memory.loads()), (Ok(true), [0, 1, 0, 0]));
    assert_eq!((server.ask_room(), memory.loads()), (Ok(true), [0, 0, 1, 0]));
    page.store(0, 0x5555_5555);
    page.store(12, 0x5555_5555);
    page.store(16, 0x000f_000f);
    let mut into = [0; 8];
    assert_eq!((server.read(&mut into).unwrap().bytes, &into[..2], page.load(0)), (2, b"cd".as_slice(), 4));
    assert_eq!((server.write(b"ef").unwrap().bytes, page.load(12)), (2, 6));
    assert_eq!(bytes(&page, 2048, 6), b"abcdef");
}

#[test]
fn every_word_of_the_client_about_itself() {
    for said in 0..=255 {
        let page = Page::default();
        let mut server = serve(&page);
        assert_eq!((server.peer(), server.has_met()), (Peer::Awaited, false));
        page.store8(CLI_LIVE, said);
        let meant = match said {
            1 => Peer::Here,
            2 => Peer::Awaited,
            _ => Peer::Gone,
        };
        assert_eq!((server.peer(), server.has_met()), (meant, said == 1), "{said}");
        assert_eq!(page.load8(CLI_LIVE), if said == 1 { 3 } else { said });
        let (mut server, _) = pair(&page, 0);
        page.store8(CLI_LIVE, said);
        let meant = match said {
            1 => Peer::Another,
            3 => Peer::Here,
            _ => Peer::Gone,
        };
        assert_eq!((server.peer(), page.load8(CLI_LIVE)), (meant, said));
        let (_, mut client) = pair(&page, 0);
        page.store8(SRV_LIVE, said);
        assert_eq!(client.peer(), if said == 1 { Peer::Here } else { Peer::Gone });
        assert!(client.has_met());
    }
}

#[test]
fn a_client_that_closes_while_it_is_met() {
    let (page, accesses) = (Page::default(), Cell::new(0));
    let memory = Watched::new(&page);
    let mut server = serve(&memory);
    connect(&page);
    // It is there at the look, and gone at the mark.
    memory.before(|page| {
        if accesses.replace(accesses.get() + 1) == 1 {
            page.store8(CLI_LIVE, 0);
        }
    });
    assert_eq!((server.peer(), server.has_met(), accesses.get()), (Peer::Gone, false, 2));
    assert_eq!(server.peer(), Peer::Gone);
}

#[test]
fn a_client_takes_the_page_as_it_is_and_says_only_its_own() {
    let page = Page::default();
    serve(&page);
    assert!(Endpoint::is_unused(&&page));
    page.store(0, 70);
    page.store(4, 77);
    page.store(8, 80);
    page.store(12, 88);
    page.store8(CLI_NOTIFY, 2);
    let mut client = connect(&page);
    assert!(!Endpoint::is_unused(&&page));
    assert_eq!(bytes(&page, 20, 4), [1, 1, 2, 1]);
    let mut into = [0; 16];
    assert_eq!((client.read(&mut into).unwrap(), page.load(8)), (Moved { bytes: 8, notify: true }, 88));
    assert_eq!((client.write(b"x").unwrap().bytes, page.load(4), page.load8(1024 + 77)), (1, 78, b'x'));
    client.close();
    assert_eq!(bytes(&page, 20, 2), [0, 1]);
    let mut server = serve(&page);
    server.close();
    assert_eq!(bytes(&page, 20, 2), [2, 0]);
}

/// Runs `ours` with `first` done before its access number `i` and `second` before number `j`, for every i <= j, and
/// both after its end at the latest.
fn between<T>(
    page: impl Fn() -> Page,
    first: impl Fn(&Page),
    second: impl Fn(&Page),
    ours: impl Fn(&mut Endpoint<&dyn Memory>) -> T,
    check: impl Fn(T),
) {
    const ACCESSES: usize = 12;
    for i in 0..=ACCESSES {
        for j in i..=ACCESSES {
            let (page, count) = (page(), Cell::new(0));
            let at = |access: usize, page: &Page| {
                if access == i {
                    first(page);
                }
                if access == j {
                    second(page);
                }
            };
            let memory = Watched::new(&page);
            let shared: &dyn Memory = &memory;
            let rings = Rings { left: shared, right: shared };
            let mut server = Endpoint::new(shared, rings, SMALL, Side::Server);
            server.outgoing.own = page.load(12);
            memory.before(|page| at(count.replace(count.get() + 1), page));
            let result = ours(&mut server);
            memory.before(|_| {});
            assert!(count.get() <= ACCESSES);
            (count.get()..=ACCESSES).for_each(|access| at(access, &page));
            check(result);
        }
    }
}

/// We ask and look, the peer moves its index and looks for our wish: one of the two sees the other.
#[test]
fn no_order_of_asking_and_moving_loses_an_event() {
    for (index, bit, full) in [(4, WRITE, 0), (8, READ, 2048)] {
        let seen = Cell::new(false);
        let moves = |page: &Page| page.store(index, page.load(index).wrapping_add(1));
        let tells = |page: &Page| seen.set(page.fetch_and8(CLI_NOTIFY, !bit) & bit != 0);
        let rest = || {
            let page = Page::default();
            page.store(12, full);
            page
        };
        let asks =
            |server: &mut Endpoint<&dyn Memory>| if bit == WRITE { server.ask_data() } else { server.ask_room() };
        between(rest, moves, tells, asks, |found| assert!(found.unwrap() || seen.take(), "{bit}: nobody saw"));
    }
}

/// The peer asks and looks, we move our index and look for its wish.
#[test]
fn no_order_of_moving_and_being_asked_loses_an_event() {
    for (index, bit) in [(0, READ), (12, WRITE)] {
        let seen = Cell::new(false);
        let asks = |page: &Page| {
            page.fetch_or8(SRV_NOTIFY, bit);
        };
        let looks = |page: &Page| seen.set(page.load(index) == 1);
        let rest = || {
            let page = Page::default();
            page.store(4, 1);
            page
        };
        let moves = |server: &mut Endpoint<&dyn Memory>| {
            if bit == READ { server.read(&mut [0]) } else { server.write(b"x") }
        };
        let check = |moved: Result<Moved, Overrun>| assert!(moved.unwrap().notify || seen.take(), "{bit}: nobody saw");
        between(rest, asks, looks, moves, check);
    }
}

/// The other side as libxenvchan has it, one access at a time: its indices are in the page, nowhere else.
struct Library {
    /// Bytes written and read so far.
    done: [u32; 2],
    total: [u32; 2],
    chunk: u32,
    step: Step,
    event: bool,
    random: u32,
    /// What it asked for and has not got.
    asleep: [bool; 2],
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Look { way: usize, asked: bool },
    Move { way: usize, bytes: u32 },
    Show { way: usize, bytes: u32 },
    Tell { way: usize },
}

/// What each side sends: no byte is like its neighbours.
fn pattern(way: usize, index: u32) -> u8 {
    (index % 251) as u8 ^ (way as u8 * 0x80)
}

/// Ways of the library: 0 writes the left ring, 1 reads the right one.
const WAYS: [(usize, usize, u32, usize, u8); 2] = [(0, 4, 1024, 1024, 2), (8, 12, 2048, 2048, 1)];

impl Library {
    fn random(&mut self, below: u32) -> u32 {
        self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.random >> 8) % below
    }

    fn rests(&self) -> bool {
        let idle = matches!(self.step, Step::Look { asked: false, .. });
        idle && (0..2).all(|way| self.asleep[way] || self.done[way] == self.total[way])
    }

    /// One access, or none if it sleeps. True if the server is to have an event.
    fn step(&mut self, page: &Page) -> bool {
        // It waits for events between its looks: one that comes after it has asked must not be taken for older.
        if matches!(self.step, Step::Look { asked: false, .. }) && core::mem::take(&mut self.event) {
            self.asleep = [false; 2];
        }
        match self.step {
            Step::Look { mut way, asked } => {
                if !asked && (self.asleep[way] || self.done[way] == self.total[way]) {
                    way = 1 - way;
                }
                if !asked && (self.asleep[way] || self.done[way] == self.total[way]) {
                    return false;
                }
                let (cons, prod, size, _, wish) = WAYS[way];
                let filled = page.load(prod).wrapping_sub(page.load(cons));
                let there = if way == 0 { size - filled } else { filled };
                let bytes = there.min(self.total[way] - self.done[way]).min(1 + self.random(self.chunk));
                self.step = match (bytes, asked) {
                    (0, false) => {
                        page.fetch_or8(SRV_NOTIFY, wish);
                        Step::Look { way, asked: true }
                    }
                    (0, true) => {
                        self.asleep[way] = true;
                        Step::Look { way: 1 - way, asked: false }
                    }
                    _ => Step::Move { way, bytes },
                };
            }
            Step::Move { way, bytes } => {
                let (cons, prod, size, at, _) = WAYS[way];
                let index = page.load(if way == 0 { prod } else { cons });
                for i in 0..bytes {
                    let at = at + (index.wrapping_add(i) % size) as usize;
                    let meant = pattern(way, self.done[way] + i);
                    match way {
                        0 => page.store8(at, meant),
                        _ => assert_eq!(page.load8(at), meant),
                    }
                }
                self.step = Step::Show { way, bytes };
            }
            Step::Show { way, bytes } => {
                let (cons, prod, ..) = WAYS[way];
                let at = if way == 0 { prod } else { cons };
                page.store(at, page.load(at).wrapping_add(bytes));
                self.done[way] += bytes;
                self.step = Step::Tell { way };
            }
            Step::Tell { way } => {
                let bit = if way == 0 { 1 } else { 2 };
                let way = self.random(2) as usize;
                self.step = Step::Look { way, asked: false };
                return page.fetch_and8(CLI_NOTIFY, !bit) & bit != 0;
            }
        }
        false
    }
}

/// Our server against the library in random order, the library acting between any two accesses of ours: every byte
/// arrives, once and in order, and nobody sleeps while it could go on.
#[test]
fn nothing_is_lost_between_any_two_accesses() {
    for seed in 1..1000u32 {
        // Who misses one event is helped by the next, or by one for the other way: most have few bytes, and those
        // with many have them one way.
        let total = match seed % 16 {
            0 => [3, 6000],
            1 => [6000, 3],
            2 => [6000, 6000],
            _ => [2 + seed % 7, 2 + seed % 5],
        };
        // A library that is mostly slower than we are makes us wait.
        let pace = 1 << (seed % 7);
        let page = Page::default();
        let event = Cell::new(false);
        let library = RefCell::new(Library {
            done: [0; 2],
            total,
            chunk: if seed % 32 < 2 { 4000 } else { 1 + total[0].max(total[1]) / 8 },
            step: Step::Look { way: 0, asked: false },
            event: false,
            random: seed.wrapping_mul(0x9e37_79b9),
            asleep: [false; 2],
        });
        let memory = Watched::new(&page);
        let start = 0u32.wrapping_sub(seed * 7);
        let mut server = serve(&memory);
        [0, 4, 8, 12].into_iter().for_each(|index| page.store(index, start));
        (server.incoming.own, server.outgoing.own) = (start, start);
        connect(&page);
        memory.before(|page| {
            let mut library = library.borrow_mut();
            let steps = if library.random(pace) == 0 { library.random(10) } else { 0 };
            for _ in 0..steps {
                if library.step(page) {
                    event.set(true);
                }
            }
        });
        let (mut read, mut written, mut asleep) = (0u32, 0u32, false);
        let mut random = seed;
        while (read, written) != (total[0], total[1]) || library.borrow().done != total {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let mut notify = false;
            // An event that came before the looks that follow is about nothing later.
            if event.take() || !asleep {
                let some = 1 + (random >> 8) % (1 + total[0].max(total[1]) / 8);
                let mut into = [0; 900];
                let got = server.read(&mut into[..some as usize]).unwrap();
                for (i, byte) in into[..got.bytes].iter().enumerate() {
                    assert_eq!(*byte, pattern(0, read + i as u32));
                }
                read += got.bytes as u32;
                let more: Vec<u8> = (written..total[1].min(written + some)).map(|index| pattern(1, index)).collect();
                let put = server.write(&more).unwrap();
                written += put.bytes as u32;
                notify = got.notify || put.notify;
                asleep = got.bytes + put.bytes == 0;
                if asleep {
                    let data = server.ask_data().unwrap();
                    let room = written < total[1] && server.ask_room().unwrap();
                    asleep = !data && !room;
                }
            }
            let mut library = library.borrow_mut();
            library.event |= notify;
            if library.random(pace) == 0 && library.step(&page) {
                event.set(true);
            }
            let all_sleep = asleep && !event.get() && library.rests() && !library.event;
            let over = (read, written) == (total[0], total[1]) && library.done == total;
            assert!(!all_sleep || over, "seed {seed}: all sleep at {read} read, {written} written");
        }
    }
}
