//! The client against an xenstored of a few lines, which writes its messages by hand.

use std::collections::BTreeMap;
use std::thread;

use super::*;

/// Numbers of `io/xs_wire.h`.
const DIRECTORY: u32 = 1;
const READ: u32 = 2;
const WATCH: u32 = 4;
const UNWATCH: u32 = 5;
const TRANSACTION_START: u32 = 6;
const TRANSACTION_END: u32 = 7;
const WRITE: u32 = 11;
const WATCH_EVENT: u32 = 15;
const ERROR: u32 = 16;
const IS_DOMAIN_INTRODUCED: u32 = 17;

fn message(kind: u32, request: u32, transaction: u32, payload: &[u8]) -> Vec<u8> {
    let words = [kind, request, transaction, payload.len() as u32];
    words.iter().flat_map(|word| word.to_le_bytes()).chain(payload.iter().copied()).collect()
}

/// What the daemon does instead of its duty.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Fault {
    #[default]
    None,
    /// The first two transactions collide.
    Collides,
    /// An answer carries another number.
    WrongNumber,
    /// The connection ends.
    Leaves,
    /// An answer announces more than a message may have.
    TooLong,
}

struct Daemon {
    link: UnixStream,
    nodes: BTreeMap<String, String>,
    collisions: u32,
    /// The transaction that is under way.
    open: u32,
    fault: Fault,
}

impl Daemon {
    fn serve(mut self) -> BTreeMap<String, String> {
        let mut header = [0; 16];
        while self.link.read_exact(&mut header).is_ok() {
            let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
            let (kind, request, transaction) = (word(0), word(4), word(8));
            let mut payload = vec![0; word(12) as usize];
            self.link.read_exact(&mut payload).unwrap();
            let parts: Vec<String> =
                payload.split(|byte| *byte == 0).map(|part| String::from_utf8(part.to_vec()).unwrap()).collect();
            let answer = match self.fault {
                Fault::Leaves => break,
                Fault::WrongNumber => message(kind, request + 1, transaction, b"OK\0"),
                Fault::TooLong => [message(kind, request, transaction, b"")[..12].to_vec(), vec![1, 16, 0, 0]].concat(),
                Fault::None | Fault::Collides => match self.answer(kind, transaction, &parts) {
                    Ok(payload) => message(kind, request, transaction, &payload),
                    Err(name) => message(ERROR, request, transaction, format!("{name}\0").as_bytes()),
                },
            };
            // An event may come at any moment, in front of an answer too.
            let event = match kind {
                WATCH | READ => message(WATCH_EVENT, 0, 0, format!("{}\0token\0", parts[0]).as_bytes()),
                _ => Vec::new(),
            };
            // In two pieces: a stream knows no messages.
            for part in [event, answer].concat().chunks(9) {
                self.link.write_all(part).unwrap();
            }
        }
        self.nodes
    }

    fn answer(&mut self, kind: u32, transaction: u32, parts: &[String]) -> Result<Vec<u8>, &'static str> {
        if transaction != self.open && transaction != 0 {
            return Err("ENOENT");
        }
        match kind {
            READ if parts[0] == "/secret" => Err("EACCES"),
            READ => self.nodes.get(&parts[0]).map(|value| value.clone().into_bytes()).ok_or("ENOENT"),
            WRITE if parts[0] == "/full" => Err("EQUOTA"),
            WRITE => {
                // A transaction that collides leaves nothing; here it is seen by this one connection alone.
                if transaction == 0 || self.fault == Fault::None || self.collisions >= 2 {
                    self.nodes.insert(parts[0].clone(), parts[1].clone());
                }
                Ok(b"OK\0".to_vec())
            }
            DIRECTORY => {
                let below = format!("{}/", parts[0]);
                let names = self.nodes.keys().filter_map(|node| node.strip_prefix(&below));
                let names: Vec<&str> = names.filter(|name| !name.contains('/')).collect();
                if names.is_empty() { Err("ENOENT") } else { Ok((names.join("\0") + "\0").into_bytes()) }
            }
            WATCH | UNWATCH => Ok(b"OK\0".to_vec()),
            TRANSACTION_START => {
                self.open = 77;
                Ok(b"77\0".to_vec())
            }
            TRANSACTION_END if parts[0] == "T" && self.fault == Fault::Collides && self.collisions < 2 => {
                self.collisions += 1;
                Err("EAGAIN")
            }
            TRANSACTION_END => {
                self.open = 0;
                Ok(b"OK\0".to_vec())
            }
            IS_DOMAIN_INTRODUCED => Ok(if parts[0] == "5" { b"T\0".to_vec() } else { b"F\0".to_vec() }),
            _ => Err("ENOSYS"),
        }
    }
}

/// A client, and the daemon's nodes once the client is gone.
fn store(fault: Fault) -> (Store, thread::JoinHandle<BTreeMap<String, String>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let nodes = [("/a/b", "1"), ("/a/c", "2"), ("/a/c/d", "3")];
    let nodes = nodes.map(|(path, value)| (path.to_owned(), value.to_owned())).into();
    let daemon = Daemon { link: theirs, nodes, collisions: 0, open: 0, fault };
    (Store::on(File::from(OwnedFd::from(ours))), thread::spawn(move || daemon.serve()))
}

#[test]
fn nodes_and_events() {
    let (mut store, daemon) = store(Fault::None);
    assert_eq!(store.read("/a/b").unwrap().as_deref(), Some("1"));
    assert_eq!(store.read("/a/x").unwrap(), None);
    assert_eq!(store.list("/a").unwrap(), ["b", "c"]);
    assert_eq!(store.list("/x").unwrap(), [""; 0]);
    store.write("/a/e", "new value").unwrap();
    // Two events came in front of the answers to the two reads.
    assert!(store.has_event());
    let mut event = || store.event(Some(Instant::now())).unwrap().map(|(path, _)| path);
    assert_eq!([event(), event(), event()], [Some("/a/b".to_owned()), Some("/a/x".to_owned()), None]);
    store.watch("/a", "token").unwrap();
    assert_eq!(store.event(None).unwrap(), Some(("/a".to_owned(), "token".to_owned())));
    store.unwatch("/a", "token").unwrap();
    assert!(store.knows(5).unwrap() && !store.knows(6).unwrap());
    drop(store);
    assert_eq!(daemon.join().unwrap()["/a/e"], "new value");
}

#[test]
fn what_is_refused_names_the_node() {
    let (mut store, _daemon) = store(Fault::None);
    let why = store.write("/full", "x").unwrap_err();
    assert_eq!((why.status(), why.to_string()), (122, "xenstore: writing /full: EQUOTA".to_owned()));
    let why = store.read("/secret").unwrap_err();
    assert_eq!((why.status(), why.to_string()), (13, "xenstore: reading /secret: EACCES".to_owned()));
    let why = store.read("no path\0").unwrap_err();
    assert_eq!(why.status(), 22);
    let why = store.write("/long", &"x".repeat(4096)).unwrap_err();
    assert_eq!(why.status(), 7);
    // To xenio both are as good as not there.
    for path in ["/secret", "no path\0", "/a/x"] {
        assert_eq!(Tree::read(&mut store, path).unwrap(), None);
    }
}

#[test]
fn all_or_nothing() {
    let nodes = [("/a/b".to_owned(), "9".to_owned()), ("/a/n".to_owned(), "8".to_owned())];
    let (mut client, daemon) = store(Fault::Collides);
    assert_eq!(client.write_if("/a/b", "1", &nodes), Ok(true));
    assert_eq!(client.write_if("/a/b", "1", &nodes), Ok(false));
    drop(client);
    let after = daemon.join().unwrap();
    assert_eq!((after["/a/b"].as_str(), after["/a/n"].as_str()), ("9", "8"));
    let (mut client, daemon) = store(Fault::None);
    assert_eq!(client.write_if("/a/none", "1", &nodes), Ok(false));
    // After a transaction that was given up, requests are part of none.
    client.write("/a/z", "1").unwrap();
    drop(client);
    assert!(!daemon.join().unwrap().contains_key("/a/n"));
}

#[test]
fn a_connection_that_is_lost_stays_lost() {
    for (fault, status) in [(Fault::WrongNumber, 71), (Fault::TooLong, 71), (Fault::Leaves, 104)] {
        let (mut store, _daemon) = store(fault);
        assert_eq!(store.read("/a/b").unwrap_err().status(), status);
        assert_eq!(store.read("/a/b").unwrap_err().status(), 107);
    }
}
