//! The sockets of `tap-ctl serve`: what goes in comes out at a scripted tapdisk, and back.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use protocol::tapdisk::Dialect;
use tap_ctl::failure::Failure;
use tap_ctl::line::Socket;
use tap_ctl::serve::relay::relay;

use crate::server::{Answer, BYTES, Server, id, listed, message, run};
use crate::{content, three};

/// Nobody who is honest needs so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client of a relay to this server, and how the relay ends.
fn connect(server: &Server, patience: Duration) -> (UnixStream, JoinHandle<Result<(), Failure>>) {
    let (client, theirs) = UnixStream::pair().unwrap();
    let line = Socket(server.folder().join("ctl"));
    (client, thread::spawn(move || relay(theirs, &line, Dialect::Blktap, patience)))
}

fn answer(mut client: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_request_in_pieces_arrives_whole_with_what_follows_it() {
    let server = Server::new("relay-pieces", content);
    let mut open = message(id::OPEN, 9, &[(0, &0x410u32.to_le_bytes()), (12, b"aio:/x"), (268, &[0xff; 4])]);
    open.extend([b"/var/log/cbt".as_slice(), &[0; 244], &[32], &[7; 32]].concat());
    let (mut client, relayed) = connect(&server, PATIENCE);
    for byte in &open {
        client.write_all(&[*byte]).unwrap();
    }
    let expected = message(id::OPEN + 1, 9, &[(0, &24576u64.to_le_bytes()), (8, &512u32.to_le_bytes())]);
    assert_eq!(answer(client), expected);
    assert_eq!(relayed.join().unwrap(), Ok(()));
    assert_eq!(server.asked().pop().unwrap().bytes, open);
}

#[test]
fn answers_of_every_form_come_back_as_they_are() {
    let stats = |cookie: u16| {
        let json = "x".repeat(10_000);
        let length = (json.len() as u64).to_le_bytes();
        [message(id::STATS + 1, cookie, &[(8, &length)]), json.into_bytes()].concat()
    };
    let server = Server::new("relay-forms", move |asked| match asked.id() {
        id::LIST => Answer::Split(three(asked)),
        id::STATS => Answer::Bytes(stats(asked.cookie())),
        // What follows a message that makes no sense is not passed on.
        id::ATTACH => Answer::Bytes([vec![0xff; BYTES], vec![1; 9]].concat()),
        _ => content(asked),
    });
    let ask = |request: &[u8]| {
        let (mut client, relayed) = connect(&server, PATIENCE);
        client.write_all(request).unwrap();
        let bytes = answer(client);
        assert_eq!(relayed.join().unwrap(), Ok(()));
        bytes
    };
    let list = ask(&message(id::LIST, 0xffff, &[]));
    let rows = [(3, 0, 0, "aio:/dev/xvda"), (2, 17, 0x2a, "vhd:/dev/VG/LV"), (1, 300, 2, ""), (0, -1, 0, "")];
    assert_eq!(list, rows.map(|(count, minor, state, path)| listed(0xffff, count, minor, state, path)).concat());
    assert_eq!(ask(&message(id::STATS, 4, &[])), stats(4));
    assert_eq!(ask(&message(id::ATTACH, 4, &[])), vec![0xff; BYTES]);
    assert_eq!(ask(&message(id::DETACH, 4, &[])), message(id::DETACH + 1, 4, &[]));
}

#[test]
fn what_is_no_request_is_answered_here() {
    let server = Server::new("relay-wrong", content);
    let ask = |request: &[u8]| {
        let (mut client, relayed) = connect(&server, PATIENCE);
        client.write_all(request).unwrap();
        let bytes = answer(client);
        assert_eq!(relayed.join().unwrap(), Ok(()));
        bytes
    };
    let refused = |cookie, text: &str| message(id::ERROR, cookie, &[(0, &22i32.to_le_bytes()), (4, text.as_bytes())]);
    assert_eq!(ask(&message(99, 3, &[])), refused(3, "message type 99 is unknown"));
    assert_eq!(ask(&message(id::OPEN, 3, &[(12, &[b'a'; 256])])), refused(3, "path: not terminated"));
    let mut keyless = message(id::OPEN, 3, &[(0, &0x400u32.to_le_bytes()), (12, b"aio:/x")]);
    keyless.push(129);
    assert_eq!(ask(&keyless), refused(3, "key: out of range"));
    assert!(server.asked().is_empty());
}

#[test]
fn a_domain_that_does_not_answer_is_told_to_the_client() {
    let server = Server::new("relay-hangup", |_| Answer::Hangup);
    let (mut client, relayed) = connect(&server, PATIENCE);
    client.write_all(&message(id::PAUSE, 3, &[])).unwrap();
    let union: [(usize, &[u8]); 2] = [(0, &104i32.to_le_bytes()), (4, b"the domain ended the connection")];
    assert_eq!(answer(client), message(id::ERROR, 3, &union));
    assert!(relayed.join().unwrap().is_err());
}

#[test]
fn a_client_that_leaves_is_not_waited_for() {
    let server = Server::new("relay-leave", |_| Answer::Silence);
    let (mut client, relayed) = connect(&server, PATIENCE);
    client.write_all(&message(id::PAUSE, 3, &[])).unwrap();
    while server.asked().is_empty() {
        thread::yield_now();
    }
    drop(client);
    assert!(relayed.join().unwrap().is_err());
    // Before it said anything it owes nothing, in the middle of a request it does.
    let (client, relayed) = connect(&server, PATIENCE);
    drop(client);
    assert_eq!(relayed.join().unwrap(), Ok(()));
    let (mut client, relayed) = connect(&server, PATIENCE);
    client.write_all(&[3, 0, 0]).unwrap();
    drop(client);
    assert_eq!(relayed.join().unwrap().unwrap_err().status(), 104);
}

#[test]
fn half_a_request_is_not_waited_for_for_ever() {
    let server = Server::new("relay-half", content);
    let (mut client, relayed) = connect(&server, Duration::from_millis(50));
    client.write_all(&[3, 0, 0]).unwrap();
    assert_eq!(relayed.join().unwrap().unwrap_err().status(), 110);
    assert!(server.asked().is_empty());
}

/// Our own program as the client, over a socket as `serve` has them.
#[test]
fn tap_ctl_through_a_relay() {
    let server = Server::new("relay-program", |asked| match asked.id() {
        id::LIST => Answer::Bytes(three(asked)),
        _ => content(asked),
    });
    let path = server.folder().join("ctl5");
    let listener = UnixListener::bind(&path).unwrap();
    let line = Socket(server.folder().join("ctl"));
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let _ = relay(client, &line, Dialect::Blktap, PATIENCE);
        }
    });
    let said = run(&["--socket", path.to_str().unwrap(), "list", "-p", "5", "-m", "17"], b"", server.folder());
    assert_eq!((said.status, said.out.as_str()), (0, "pid=5 minor=17 state=0x2a args=vhd:/dev/VG/LV\n"));
}
