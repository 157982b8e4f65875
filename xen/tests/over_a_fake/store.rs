//! The client of xenstore, against a xenstored that a test plays message by message.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Deref;
use std::rc::Rc;

use protocol::xenstore::{HEADER_BYTES, Header, Kind, Reason, Server};
use xen::domain::Domain;
use xen::limits::{STORE_OUTSTANDING, STORE_TRANSACTION_TRIES, WATCH_PATHS};
use xen::port::Xen;
use xen::store::{Nodes, Store, Watch};

use crate::fake::{Fake, STORE_PORT, domain, run};

/// The test's side of the page.
struct Daemon {
    domain: Rc<Domain<Fake>>,
    fake: Fake,
    outgoing: VecDeque<u8>,
    incoming: Vec<u8>,
    server: Server<Page>,
}

/// The page of the fake, as memory of its own.
struct Page(Fake);

impl Deref for Page {
    type Target = xen::page::Page;

    fn deref(&self) -> &Self::Target {
        self.0.store_ring().0
    }
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    kind: Kind,
    payload: String,
    header: Header,
}

impl Daemon {
    fn new() -> (Self, Store<Fake>) {
        let (domain, fake) = domain();
        let store = Store::connect(&domain);
        let server = Server::new(Page(fake.clone()));
        (Daemon { domain, fake, outgoing: VecDeque::new(), incoming: Vec::new(), server }, store)
    }

    /// Moves bytes both ways until nothing moves, and hands out the requests that came. Looks only when notified.
    fn exchange(&mut self) -> Vec<Asked> {
        loop {
            run(&self.domain);
            let mut moved = 0;
            if !std::mem::take(&mut *self.fake.notified.borrow_mut()).is_empty() {
                let mut bytes = [0; 2000];
                let read = self.server.read(&mut bytes).unwrap();
                self.incoming.extend(&bytes[..read]);
                moved += read;
            }
            let written = self.server.write(self.outgoing.make_contiguous()).unwrap();
            self.outgoing.drain(..written);
            if moved + written == 0 {
                break;
            }
            self.fake.pending.borrow_mut().insert(STORE_PORT.0);
        }
        let mut asked = Vec::new();
        while let Some(head) = self.incoming.first_chunk::<HEADER_BYTES>() {
            let header = Header::decode(head).unwrap();
            let end = HEADER_BYTES + header.bytes as usize;
            let payload = String::from_utf8(self.incoming[HEADER_BYTES..end].to_vec()).unwrap();
            self.incoming.drain(..end);
            asked.push(Asked { kind: Kind::of(header.kind).unwrap(), payload, header });
        }
        asked
    }

    /// The one request that came, and what it says.
    fn one(&mut self, kind: Kind, payload: &str) -> Asked {
        let asked = self.exchange();
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert_eq!((asked[0].kind, asked[0].payload.as_str()), (kind, payload));
        asked[0].clone()
    }

    fn send(&mut self, kind: Kind, request: u32, payload: &[u8]) {
        let header = Header { kind: kind as u32, request, transaction: 0, bytes: payload.len() as u32 };
        self.outgoing.extend(header.encode());
        self.outgoing.extend(payload);
    }

    fn answer(&mut self, asked: &Asked, payload: impl AsRef<[u8]>) {
        self.send(asked.kind, asked.header.request, payload.as_ref());
    }

    fn refuse(&mut self, asked: &Asked, reason: &str) {
        self.send(Kind::Error, asked.header.request, format!("{reason}\0").as_bytes());
    }

    fn event(&mut self, path: &str, token: &str) {
        self.send(Kind::WatchEvent, 0, format!("{path}\0{token}\0").as_bytes());
    }

    /// Runs a body as a task; its outcome, when it has one.
    fn ask<T: 'static>(
        &self,
        store: &Store<Fake>,
        body: impl AsyncFnOnce(Store<Fake>) -> T + 'static,
    ) -> Rc<RefCell<Option<T>>> {
        let outcome = Rc::new(RefCell::new(None));
        let (store, told) = (store.clone(), outcome.clone());
        self.domain.exec.spawn(async move {
            let result = body(store).await;
            *told.borrow_mut() = Some(result);
        });
        outcome
    }
}

#[test]
fn requests_have_the_wires_form_and_answers_find_their_task() {
    let (mut daemon, store) = Daemon::new();
    let value = daemon.ask(&store, async |s| s.read("a").await);
    let names = daemon.ask(&store, async |s| s.list("dir").await);
    let wrote = daemon.ask(&store, async |s| s.write("b", "x y").await);
    let gone = daemon.ask(&store, async |s| s.remove("c").await);
    let asked = daemon.exchange();
    let said: Vec<_> = asked.iter().map(|a| (a.kind, a.payload.as_str(), a.header.transaction)).collect();
    let expected = [(Kind::Read, "a\0"), (Kind::Directory, "dir\0"), (Kind::Write, "b\0x y"), (Kind::Rm, "c\0")];
    assert_eq!(said, expected.map(|(kind, payload)| (kind, payload, 0)));
    // In another order than they were asked.
    daemon.refuse(&asked[3], "EACCES");
    daemon.answer(&asked[1], "one\0two\0");
    daemon.answer(&asked[2], "OK\0");
    daemon.answer(&asked[0], "value");
    assert_eq!(daemon.exchange(), []);
    assert_eq!(*value.borrow(), Some(Ok("value".into())));
    assert_eq!(*names.borrow(), Some(Ok(vec!["one".into(), "two".into()])));
    assert_eq!((*wrote.borrow(), *gone.borrow()), (Some(Ok(())), Some(Err(Reason::Access))));
}

#[test]
fn a_node_that_is_not_there_or_is_no_text() {
    let (mut daemon, store) = Daemon::new();
    for (reply, expected) in [
        (Err("ENOENT"), Ok(None)),
        (Err("EACCES"), Err(Reason::Access)),
        (Ok(&b"v"[..]), Ok(Some("v".to_string()))),
        (Ok(b"\xff"), Err(Reason::Invalid)),
    ] {
        let read = daemon.ask(&store, async |s| s.read_if_there("n").await);
        let asked = daemon.one(Kind::Read, "n\0");
        match reply {
            Ok(value) => daemon.answer(&asked, value),
            Err(reason) => daemon.refuse(&asked, reason),
        }
        daemon.exchange();
        assert_eq!(*read.borrow(), Some(expected));
    }
    let list = daemon.ask(&store, async |s| s.list("n").await);
    let asked = daemon.one(Kind::Directory, "n\0");
    daemon.answer(&asked, b"fine\0\xff\0");
    daemon.exchange();
    assert_eq!(*list.borrow(), Some(Err(Reason::Invalid)));
}

#[test]
fn the_longest_message_goes_in_pieces_and_a_longer_one_not_at_all() {
    let (mut daemon, store) = Daemon::new();
    let value = "v".repeat(4096 - 2);
    let wrote = daemon.ask(&store, {
        let value = value.clone();
        async move |s| s.write("n", &value).await
    });
    let asked = daemon.one(Kind::Write, &format!("n\0{value}"));
    daemon.answer(&asked, "OK\0");
    daemon.exchange();
    assert_eq!(*wrote.borrow(), Some(Ok(())));
    // Refused here, again and again, and no place in the queue is lost by it.
    for _ in 0..STORE_OUTSTANDING + 1 {
        let value = format!("{value}v");
        let wrote = daemon.ask(&store, async move |s| s.write("n", &value).await);
        assert_eq!(daemon.exchange(), []);
        assert_eq!(*wrote.borrow(), Some(Err(Reason::TooBig)));
    }
    let read = daemon.ask(&store, async |s| s.read("n").await);
    let asked = daemon.one(Kind::Read, "n\0");
    daemon.answer(&asked, "x".repeat(4096));
    daemon.exchange();
    assert_eq!(*read.borrow(), Some(Ok("x".repeat(4096))));
}

#[test]
fn so_many_requests_and_no_more_wait_for_answers() {
    let (mut daemon, store) = Daemon::new();
    let reads: Vec<_> =
        (0..STORE_OUTSTANDING + 2).map(|i| daemon.ask(&store, async move |s| s.read(&i.to_string()).await)).collect();
    let first = daemon.exchange();
    assert_eq!(first.len(), STORE_OUTSTANDING);
    daemon.answer(&first[3], "3");
    let next = daemon.one(Kind::Read, &format!("{STORE_OUTSTANDING}\0"));
    daemon.answer(&next, "late");
    let last = daemon.one(Kind::Read, &format!("{}\0", STORE_OUTSTANDING + 1));
    daemon.answer(&last, "last");
    daemon.exchange();
    let done: Vec<_> = (0..reads.len()).filter(|i| reads[*i].borrow().is_some()).collect();
    assert_eq!(done, [3, STORE_OUTSTANDING, STORE_OUTSTANDING + 1]);
}

/// Once a second answer, arriving before its task had run, took the first one away, and the task waited for ever.
#[test]
fn a_second_answer_takes_nothing_away() {
    let (mut daemon, store) = Daemon::new();
    let read = daemon.ask(&store, async |s| s.read("a").await);
    let asked = daemon.one(Kind::Read, "a\0");
    daemon.answer(&asked, "first");
    daemon.answer(&asked, "second");
    daemon.send(Kind::Read, 0x7777_7777, b"nobody's");
    daemon.exchange();
    assert_eq!(*read.borrow(), Some(Ok("first".into())));
    // Nor does it let one more request go than may.
    (0..STORE_OUTSTANDING + 1).for_each(|_| drop(daemon.ask(&store, async |s| s.read("b").await)));
    assert_eq!(daemon.exchange().len(), STORE_OUTSTANDING);
}

#[test]
fn a_transaction_is_made_again_when_it_is_disturbed_and_then_given_up() {
    let (mut daemon, store) = Daemon::new();
    let done =
        daemon.ask(&store, async |s| s.transaction(async |inside: &Store<Fake>| inside.write("a", "1").await).await);
    for (attempt, end) in [(1, "EAGAIN"), (2, "")] {
        let start = daemon.one(Kind::TransactionStart, "\0");
        assert_eq!(start.header.transaction, 0);
        daemon.answer(&start, format!("{attempt}\0"));
        let write = daemon.one(Kind::Write, "a\x001");
        assert_eq!(write.header.transaction, attempt);
        daemon.answer(&write, "OK\0");
        let ends = daemon.one(Kind::TransactionEnd, "T\0");
        assert_eq!(ends.header.transaction, attempt);
        if end.is_empty() { daemon.answer(&ends, "OK\0") } else { daemon.refuse(&ends, end) }
    }
    assert_eq!(daemon.exchange(), []);
    assert_eq!(*done.borrow(), Some(Ok(())));

    let never = daemon.ask(&store, async |s| s.transaction(async |_: &Store<Fake>| Ok(())).await);
    for _ in 0..STORE_TRANSACTION_TRIES {
        let start = daemon.one(Kind::TransactionStart, "\0");
        daemon.answer(&start, "5\0");
        let ends = daemon.one(Kind::TransactionEnd, "T\0");
        daemon.refuse(&ends, "EAGAIN");
    }
    assert_eq!(daemon.exchange(), []);
    assert_eq!(*never.borrow(), Some(Err(Reason::Again)));
}

#[test]
fn a_transaction_whose_body_fails_has_no_effect_and_one_goes_after_the_other() {
    let (mut daemon, store) = Daemon::new();
    let failed = daemon.ask(&store, async |s| s.transaction(async |inside: &Store<Fake>| inside.read("a").await).await);
    let waits = daemon.ask(&store, async |s| s.transaction(async |_: &Store<Fake>| Ok(())).await);
    let start = daemon.one(Kind::TransactionStart, "\0");
    daemon.answer(&start, "9\0");
    let read = daemon.one(Kind::Read, "a\0");
    daemon.refuse(&read, "ENOENT");
    let ends = daemon.one(Kind::TransactionEnd, "F\0");
    // Even if xenstored says "again": nothing is made again that failed.
    daemon.refuse(&ends, "EAGAIN");
    let start = daemon.one(Kind::TransactionStart, "\0");
    assert_eq!((failed.borrow().clone(), *waits.borrow()), (Some(Err(Reason::NoEntry)), None));
    daemon.answer(&start, "no number\0");
    daemon.exchange();
    assert_eq!(*waits.borrow(), Some(Err(Reason::Invalid)));
}

/// A watch that is set, with its token.
fn watch(daemon: &mut Daemon, store: &Store<Fake>, path: &'static str, below: &'static str) -> (Watch<Fake>, String) {
    let set = daemon.ask(store, async move |s| s.watch(path, below).await);
    let asked = daemon.exchange();
    assert_eq!((asked.len(), asked[0].kind), (1, Kind::Watch));
    let (told, token) = asked[0].payload.strip_suffix('\0').unwrap().split_once('\0').unwrap();
    assert_eq!(told, path);
    daemon.answer(&asked[0], "OK\0");
    daemon.exchange();
    (set.take().unwrap().ok().unwrap(), token.to_string())
}

/// All that a watcher was told and has not looked at.
fn told(watch: &Watch<Fake>) -> Vec<String> {
    let mut told = Vec::new();
    while let std::task::Poll::Ready(path) = crate::fake::poll(std::pin::pin!(watch.next())) {
        told.push(path);
    }
    told
}

#[test]
fn a_watcher_is_told_at_first_and_then_of_what_is_below_or_above() {
    let (mut daemon, store) = Daemon::new();
    let (watch, token) = watch(&mut daemon, &store, "w", "w/b");
    assert_eq!(told(&watch), ["w/b"]);
    for path in ["w/b", "w/b/c", "w", "w/bc", "w/a", "v", "w/b/c"] {
        daemon.event(path, &token);
    }
    daemon.event("w/b/d", "4294967295");
    daemon.event("w/b/d", "no number");
    daemon.send(Kind::WatchEvent, 0, b"w/b/d\0");
    daemon.send(Kind::WatchEvent, 0, b"\xff\0\xff\0");
    daemon.exchange();
    assert_eq!(told(&watch), ["w", "w/b", "w/b/c"], "each once, in the order of names");
}

#[test]
fn many_changes_fold_into_one() {
    let (mut daemon, store) = Daemon::new();
    let (watch, token) = watch(&mut daemon, &store, "w", "w");
    assert_eq!(told(&watch), ["w"]);
    for i in 0..WATCH_PATHS {
        daemon.event(&format!("w/{i:03}"), &token);
    }
    daemon.exchange();
    assert_eq!(told(&watch).len(), WATCH_PATHS);
    for i in 0..WATCH_PATHS + 1 {
        daemon.event(&format!("w/{i:03}"), &token);
    }
    daemon.exchange();
    assert_eq!(told(&watch), ["w"], "look at all of it again");
}

#[test]
fn watchers_of_one_path_share_one_watch_which_ends_with_the_last() {
    let (mut daemon, store) = Daemon::new();
    let (first, token) = watch(&mut daemon, &store, "w", "w/1");
    let second = daemon.ask(&store, async |s| s.watch("w", "w/2").await);
    assert_eq!(daemon.exchange(), [], "xenstored has it already");
    let second = second.take().unwrap().ok().unwrap();
    assert_eq!((told(&first), told(&second)), (vec!["w/1".to_string()], vec!["w/2".to_string()]));
    daemon.event("w/2/x", &token);
    daemon.event("w", &token);
    daemon.exchange();
    assert_eq!((told(&first), told(&second)), (vec!["w".to_string()], vec!["w".to_string(), "w/2/x".into()]));
    drop(first);
    assert_eq!(daemon.exchange(), []);
    drop(second);
    let ends = daemon.one(Kind::Unwatch, &format!("w\0{token}\0"));
    daemon.event("w", &token);
    daemon.answer(&ends, "OK\0");
    assert_eq!(daemon.exchange(), []);
    // The next is a new one.
    let (_, other) = watch(&mut daemon, &store, "w", "w");
    assert_ne!(other, token);
}

#[test]
fn a_watch_that_is_refused_is_asked_for_by_the_next() {
    let (mut daemon, store) = Daemon::new();
    let both = ["w/1", "w/2"].map(|below| daemon.ask(&store, async move |s| s.watch("w", below).await));
    let asked = daemon.exchange();
    assert_eq!(asked.iter().map(|a| a.kind).collect::<Vec<_>>(), [Kind::Watch; 2]);
    assert_eq!(asked[0].payload, asked[1].payload, "one token");
    daemon.refuse(&asked[0], "E2BIG");
    daemon.refuse(&asked[1], "EEXIST");
    assert_eq!(daemon.exchange(), []);
    let [refused, set] = both.map(|outcome| outcome.take().unwrap());
    assert_eq!((refused.err(), set.is_ok()), (Some(Reason::TooBig), true));
}

#[test]
fn a_poll_of_a_watch_forgets_what_and_keeps_that() {
    let (mut daemon, store) = Daemon::new();
    let (watch, token) = watch(&mut daemon, &store, "w", "w");
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(watch.poll(&mut cx).is_ready() && watch.poll(&mut cx).is_pending());
    daemon.event("w/a", &token);
    daemon.event("w/b", &token);
    daemon.exchange();
    assert!(watch.poll(&mut cx).is_ready() && watch.poll(&mut cx).is_pending());
    assert_eq!(told(&watch), [""; 0]);
}

#[test]
fn nodes_are_counted_once_while_they_stand() {
    let (domain, _fake) = domain();
    let (one, two) = (Nodes::new(&domain), Nodes::new(&domain));
    ["a", "b", "a"].iter().for_each(|path| one.wrote(path));
    two.wrote("a");
    assert_eq!(domain.held.nodes.get(), 3);
    one.gone();
    assert_eq!(domain.held.nodes.get(), 1);
    one.wrote("a");
    drop((one, two));
    assert_eq!(domain.held.nodes.get(), 0);
}
