//! A control channel: bytes to requests, in whatever pieces they come, and messages to bytes and back.

use protocol::tapdisk::{
    Arrived, Assembler, Dialect, MESSAGE_BYTES_MAX, Message, REQUEST_BYTES_MAX, Reason, Rejected, Request,
};

use crate::random::Random;

/// Bytes of one input's stream: a few messages.
const STREAM_BYTES_MAX: usize = 4096;

/// A stream of messages.
pub fn control(bytes: &[u8]) {
    let mut tape = Random::of(bytes);
    let dialect = tape.pick(&Dialect::ALL);
    let mut stream = Vec::new();
    while !tape.is_spent() && stream.len() < STREAM_BYTES_MAX {
        message(&mut stream, dialect, &mut tape);
    }
    let whole = feed(dialect, &stream, &mut |room| room);
    let bytewise = feed(dialect, &stream, &mut |_| 1);
    let any = feed(dialect, &stream, &mut |room| 1 + tape.index(room));
    assert!(whole == bytewise && whole == any, "what arrives depends on the pieces: {whole:?} {bytewise:?} {any:?}");
}

/// One message, nearly right, and what may follow it.
fn message(stream: &mut Vec<u8>, dialect: Dialect, tape: &mut Random) {
    let mut message = vec![0; dialect.message_bytes()];
    message[0] = tape.below(48) as u8;
    message[1] = u8::from(tape.one_in(32));
    message[2] = tape.below(256) as u8;
    for _ in 0..tape.below(8) {
        let at = match tape.below(4) {
            // The numbers before a path, the path, what is behind it.
            0 | 1 => 4 + tape.index(28),
            2 => 20 + tape.index(256),
            _ => tape.index(message.len()),
        };
        message[at] = tape.pick(&[1, 0, 2, 8, 64, 0x7f, 0x80, 0xff, b'/', b'v']);
    }
    if tape.one_in(4) {
        let (at, bytes) = (tape.pick(&[12, 16, 20, 24, 276]), tape.pick(&[4, 255, 256, 260]));
        let end = message.len().min(at + bytes);
        message[at..end].fill(b'x');
    }
    stream.extend(message);
    for _ in 0..tape.below(3) {
        match tape.below(3) {
            0 => stream.extend([b'/'; 255].iter().chain(&[0])),
            1 => stream.extend([2, 7, 8]),
            _ => stream.push(tape.below(256) as u8),
        }
    }
}

/// Feeds the stream in pieces, checks each request that arrives, and tells what did.
fn feed(dialect: Dialect, mut stream: &[u8], piece: &mut dyn FnMut(usize) -> usize) -> Vec<String> {
    let (mut assembler, mut told) = (Assembler::new(dialect), Vec::new());
    while !stream.is_empty() {
        let room = assembler.room();
        assert!(!room.is_empty() && room.len() <= REQUEST_BYTES_MAX);
        let count = piece(room.len()).min(room.len()).min(stream.len());
        room[..count].copy_from_slice(&stream[..count]);
        stream = &stream[count..];
        let Some(arrived) = assembler.filled(count) else { continue };
        told.push(format!("{arrived:?}"));
        match arrived {
            Arrived::Request(request) => again(dialect, &request),
            Arrived::Refused(rejected) => refusal(dialect, &rejected),
            Arrived::OutOfStep(rejected) => {
                refusal(dialect, &rejected);
                break;
            }
        }
        assert!(assembler.is_idle(), "a request has ended");
    }
    told
}

/// What was read can be said again, and is read as the same.
fn again(dialect: Dialect, request: &Request<'_>) {
    let mut bytes = [0xee; REQUEST_BYTES_MAX];
    let said = request.encode(dialect, &mut bytes).unwrap_or_else(|why| panic!("{request:?} cannot be said: {why}"));
    let mut assembler = Assembler::new(dialect);
    let mut rest: &[u8] = said;
    loop {
        let room = assembler.room();
        let count = room.len().min(rest.len());
        room[..count].copy_from_slice(&rest[..count]);
        rest = &rest[count..];
        match assembler.filled(count) {
            Some(arrived) => {
                assert!(rest.is_empty() && arrived == Arrived::Request(*request), "{request:?} is read as {arrived:?}");
                return;
            }
            None => assert!(!rest.is_empty(), "{request:?} does not end"),
        }
    }
}

/// What was wrong can be answered, and the answer says no under the same cookie.
fn refusal(dialect: Dialect, rejected: &Rejected) {
    let reason = Reason::of(rejected.why);
    let answer = rejected.answer(dialect, reason.text());
    let mut bytes = [0xee; MESSAGE_BYTES_MAX];
    let said = answer.encode(dialect, &mut bytes).expect("an answer is in the dialect");
    assert_eq!(said.len(), dialect.message_bytes());
    let read = Message::decode(dialect, said).expect("an answer can be read");
    assert_eq!((read.cookie, read), (rejected.cookie, answer));
    let failure = read.failure().expect("an answer to what is wrong says no");
    assert!(failure.error != 0 && !failure.message.as_str().is_empty());
}
