//! The program itself against a tapdisk that answers from a script: what it sends, what it prints, how it ends.

mod relay;
mod server;

use server::{Answer, Asked, Said, Server, done, id, listed, message, refused, run};

fn said(status: i32, out: &str, err: &str) -> Said {
    Said { status, out: out.to_owned(), err: err.to_owned() }
}

/// Answers what needs no thought.
fn content(asked: &Asked) -> Answer {
    Answer::Bytes(match asked.id() {
        id::PID => message(id::PID + 1, asked.cookie(), &[(0, &5i32.to_le_bytes())]),
        id::LIST => listed(asked.cookie(), 0, -1, 0, ""),
        id::OPEN | id::DISK_INFO => {
            let (sectors, size) = (24576u64.to_le_bytes(), 512u32.to_le_bytes());
            message(asked.id() + 1, asked.cookie(), &[(0, &sectors), (8, &size)])
        }
        id::EXIT => message(id::EXIT, asked.cookie(), &[]),
        _ => done(asked),
    })
}

#[test]
fn every_command_sends_its_message_and_says_nothing() {
    let server = Server::new("every", content);
    for (words, id) in [
        ("attach -m 3", id::ATTACH),
        ("detach -m 3", id::DETACH),
        ("open -m 3 -a aio:/dev/xvda", id::OPEN),
        ("close -m 3", id::CLOSE),
        ("close -m 3 -f -t 5", id::FORCE_SHUTDOWN),
        ("pause -m 3", id::PAUSE),
        ("pause -m 3 -t 5", id::PAUSE),
        ("unpause -m 3", id::RESUME),
        ("connect -m 3 --guest 7 --devid 51712 --grefs 8,9 --port 11", id::CONNECT),
    ] {
        assert_eq!(server.run(&words.split(' ').collect::<Vec<_>>()), said(0, "", ""), "{words}");
        let asked = server.asked().pop().unwrap();
        assert_eq!((asked.id(), asked.cookie(), asked.bytes.len()), (id, 3, server::BYTES), "{words}");
    }
    assert_eq!(server.run(&["disconnect", "--guest", "7", "--devid", "51712"]), said(0, "", ""));
    let asked = server.asked().pop().unwrap();
    assert_eq!((asked.id(), asked.word(0), asked.word(4)), (id::DISCONNECT, 7, 51712));
    assert_eq!(server.run(&["shutdown"]), said(0, "", ""));
    assert_eq!(server.asked().pop().unwrap().id(), id::EXIT);
}

#[test]
fn open_says_all_that_it_was_told() {
    let server = Server::new("open", content);
    let words = "open -m 9 -a vhd:/dev/VG/LV -R -D -r -e 7 -2 aio:/dev/xvdb -s -t 40 -C /var/log/cbt -E";
    let key: Vec<u8> = (0..32).collect();
    assert_eq!(server.run_with(&words.split(' ').collect::<Vec<_>>(), &key), said(0, "", ""));
    let asked = server.asked().pop().unwrap();
    // RDONLY, ADD_LOG, ADD_LCACHE, REUSE_PRT, SECONDARY, STANDBY, NO_O_DIRECT, OPEN_ENCRYPTED.
    assert_eq!(asked.word(0), 0x7f2);
    assert_eq!((asked.text(12), asked.word(268)), ("vhd:/dev/VG/LV".into(), 7));
    assert_eq!((asked.word(272) & 0xffff, asked.text(274)), (40, "aio:/dev/xvdb".into()));
    assert_eq!(&asked.bytes[server::BYTES..][..13], b"/var/log/cbt\0");
    assert_eq!(asked.bytes[server::BYTES + 256..], [&[32], key.as_slice()].concat());
    // Unused, the parent's number is -1.
    assert_eq!(server.run(&["open", "-m", "9", "-a", "aio:/x"]), said(0, "", ""));
    let asked = server.asked().pop().unwrap();
    assert_eq!((asked.word(0), asked.word(268), asked.text(274)), (0, u32::MAX, String::new()));
    for (bytes, count) in [(0, "0"), (31, "31"), (33, "33"), (65, "more than 64")] {
        let said = server.run_with(&["open", "-m", "9", "-a", "aio:/x", "-E"], &vec![0; bytes]);
        let text = format!("tap-ctl: the key has {count} bytes instead of 32 or 64\n");
        assert_eq!(said, Said { status: 22, out: String::new(), err: text });
    }
    let long = format!("aio:{}", "x".repeat(252));
    let refused = server.run(&["open", "-m", "9", "-a", &long]);
    assert_eq!(refused, said(36, "", "tap-ctl: image: longer than the 255 bytes that a message has\n"));
}

#[test]
fn unpause_says_all_that_it_was_told() {
    let server = Server::new("unpause", content);
    let words = "unpause -m 9 -a vhd:/dev/VG/new -2 null -c /var/log/cbt";
    assert_eq!(server.run(&words.split(' ').collect::<Vec<_>>()), said(0, "", ""));
    let asked = server.asked().pop().unwrap();
    assert_eq!((asked.word(0), asked.text(12), asked.text(274)), (0x90, "vhd:/dev/VG/new".into(), "null".into()));
    assert_eq!(&asked.bytes[server::BYTES..][..13], b"/var/log/cbt\0");
    assert_eq!(asked.bytes.len(), server::BYTES + 256);
}

#[test]
fn connect_describes_the_ring() {
    let server = Server::new("connect", content);
    let words = "connect -m 3 --guest 7 --devid 51728 --grefs 101,102,103,104 --port 19 --proto x86-32 --pool p \
                 --poll-duration 1000 --poll-idle-threshold 50";
    assert_eq!(server.run(&words.split_whitespace().collect::<Vec<_>>()), said(0, "", ""));
    let asked = server.asked().pop().unwrap();
    let words = [0, 4, 8, 12, 16, 20, 24, 36, 40, 44, 304, 308, 312].map(|at| asked.word(at));
    assert_eq!(words, [7, 51728, 101, 102, 103, 104, 0, 0, 2, 2, 19, 1000, 50]);
    assert_eq!(asked.text(48), "p");
    let wrong = server.run(&["connect", "-m", "3", "--guest", "7", "--devid", "1", "--grefs", "1,2,3", "--port", "1"]);
    assert_eq!(wrong, said(22, "", "tap-ctl: --grefs: a ring has 1, 2, 4 or 8 pages\n"));
}

fn three(asked: &Asked) -> Vec<u8> {
    let cookie = asked.cookie();
    [
        listed(cookie, 3, 0, 0, "aio:/dev/xvda"),
        listed(cookie, 2, 17, 0x2a, "vhd:/dev/VG/LV"),
        listed(cookie, 1, 300, 2, ""),
        listed(cookie, 0, -1, 0, ""),
    ]
    .concat()
}

#[test]
fn list_prints_tap_ctls_lines() {
    for (name, split) in [("list", false), ("list-split", true)] {
        let server = Server::new(name, move |asked| match asked.id() {
            id::LIST if split => Answer::Split(three(asked)),
            id::LIST => Answer::Bytes(three(asked)),
            _ => content(asked),
        });
        let all = "pid=5 minor=0 state=0 args=aio:/dev/xvda\npid=5 minor=17 state=0x2a args=vhd:/dev/VG/LV\n\
                   pid=5 minor=300 state=0x2\n";
        assert_eq!(server.run(&["list"]), said(0, all, ""));
        assert_eq!(server.asked().pop().unwrap().cookie(), 0xffff);
        let line = "pid=5 minor=17 state=0x2a args=vhd:/dev/VG/LV\n";
        assert_eq!(server.run(&["list", "-m", "17"]), said(0, line, ""));
        // As with blktap, a filter for images lets those pass that have none.
        let two = format!("{line}pid=5 minor=300 state=0x2\n");
        assert_eq!(server.run(&["list", "-t", "vhd"]), said(0, &two, ""));
        assert_eq!(server.run(&["list", "-f", "/dev/VG/LV"]), said(0, &two, ""));
        assert_eq!(server.run(&["list", "-p", "5", "-m", "17"]), said(0, line, ""));
        let json = "[{\"pid\":5,\"minor\":17,\"state\":42,\"type\":\"vhd\",\"path\":\"/dev/VG/LV\"}]\n";
        assert_eq!(server.run(&["list", "-m", "17", "--json"]), said(0, json, ""));
    }
    let server = Server::new("list-empty", content);
    assert_eq!(server.run(&["list"]), said(0, "pid=5\n", ""));
}

#[test]
fn stats_prints_the_json_and_two_line_ends() {
    let json = "{ \"name\": \"aio:/dev/xvda\", \"secs\": [ 1, 2 ] }";
    let answer = move |asked: &Asked| {
        let length = (json.len() as u64).to_le_bytes();
        [message(id::STATS + 1, asked.cookie(), &[(8, &length)]), json.as_bytes().to_vec()].concat()
    };
    let server = Server::new("stats", move |asked| Answer::Split(answer(asked)));
    assert_eq!(server.run(&["stats", "-m", "0"]), said(0, &format!("{json}\n\n"), ""));
    let server = Server::new("stats-short", move |asked| {
        let mut bytes = answer(asked);
        bytes.pop();
        Answer::Bytes(bytes)
    });
    let short = server.run(&["stats", "-m", "0"]);
    assert_eq!((short.status, short.out.as_str()), (104, ""));
    assert!(short.err.ends_with("minor 0: stats: the connection ended before the answer; it may have been done\n"));
}

#[test]
fn info_prints_the_size() {
    let server = Server::new("info", content);
    assert_eq!(server.run(&["info", "-m", "3"]), said(0, "sectors=24576 sector-size=512 info=0\n", ""));
    let json = "{\"sectors\":24576,\"sector_size\":512,\"info\":0}\n";
    assert_eq!(server.run(&["info", "-m", "3", "--json"]), said(0, json, ""));
}

#[test]
fn a_refusal_is_the_status_and_the_servers_text() {
    let server = Server::new("refusal", |asked| Answer::Bytes(refused(asked, 19, "minor 3: no such minor")));
    let socket = server.folder().join("ctl").display().to_string();
    for words in [["pause", "-m", "3"], ["detach", "-m", "3"], ["stats", "-m", "3"], ["info", "-m", "3"]] {
        let text = format!("tap-ctl: {socket}, minor 3: {}: minor 3: no such minor\n", name(words[0]));
        assert_eq!(server.run(&words), Said { status: 19, out: String::new(), err: text });
    }
    // tapdisk has no words.
    let server = Server::new("refusal-mute", |asked| Answer::Bytes(refused(asked, 114, "")));
    let said = server.run(&["open", "-m", "3", "-a", "aio:/x"]);
    assert_eq!(said.status, 114);
    assert!(said.err.ends_with(", minor 3: open: Operation already in progress\n"), "{}", said.err);
    // Some answer in the response's own field, as the RFC has it.
    let server = Server::new("refusal-own", |asked| {
        Answer::Bytes(message(asked.id() + 1, asked.cookie(), &[(0, &16i32.to_le_bytes()), (4, b"busy with close")]))
    });
    let said = server.run(&["close", "-m", "3"]);
    assert_eq!((said.status, said.err.ends_with(", minor 3: close: busy with close\n")), (16, true), "{}", said.err);
}

/// `tapdisk_message_name` of a command.
fn name(command: &str) -> &str {
    if command == "info" { "disk info" } else { command }
}

#[test]
fn a_server_that_takes_too_long() {
    let server = Server::new("slow", |_| Answer::Silence);
    let said = server.run(&["pause", "-m", "3", "-t", "1"]);
    assert_eq!(said.status, 110);
    assert!(said.err.ends_with("minor 3: pause: no answer in time; it may still be done\n"), "{}", said.err);
}

#[test]
fn a_server_that_makes_no_sense() {
    let nonsense = |asked: &Asked| match asked.id() {
        // Another answer, another minor, no message at all, a list without end, half an answer.
        id::ATTACH => Answer::Bytes(message(id::DETACH + 1, asked.cookie(), &[])),
        id::DETACH => Answer::Bytes(message(id::DETACH + 1, asked.cookie() + 1, &[])),
        id::PAUSE => Answer::Bytes(vec![0xff; server::BYTES]),
        id::LIST => Answer::Bytes([listed(0xffff, 1, 0, 0, ""), listed(0xffff, 1, 1, 0, "")].concat()),
        id::STATS => Answer::Bytes(message(id::STATS + 1, asked.cookie(), &[(8, &[0xff; 8])])),
        id::PID => content(asked),
        id::DISK_INFO => Answer::Bytes(vec![0; 7]),
        _ => Answer::Hangup,
    };
    let server = Server::new("nonsense", nonsense);
    for (words, status, text) in [
        ("attach -m 3", 71, "minor 3: attach: answered by detach response"),
        ("detach -m 3", 71, "minor 3: detach: answered for minor 4"),
        ("pause -m 3", 71, "minor 3: pause: the answer makes no sense: message type 65535 is unknown"),
        ("list", 71, "list: 1 to come after 1"),
        ("stats -m 3", 71, "minor 3: stats: 18446744073709551615 bytes of them"),
        ("info -m 3", 104, "minor 3: disk info: the connection ended before the answer; it may have been done"),
        ("close -m 3", 104, "minor 3: close: the connection ended before the answer; it may have been done"),
    ] {
        let said = server.run(&words.split(' ').collect::<Vec<_>>());
        assert_eq!((said.status, said.out.as_str()), (status, ""), "{words}");
        assert!(said.err.trim_end().ends_with(text), "{words}: {}", said.err);
    }
}

#[test]
fn create_and_destroy() {
    let server = Server::new("create", |asked| match asked.id() {
        id::LIST => Answer::Bytes([listed(0xffff, 1, 0, 0, "aio:/dev/xvda"), listed(0xffff, 0, -1, 0, "")].concat()),
        // Taken since it was listed.
        id::ATTACH if asked.cookie() == 1 => Answer::Bytes(refused(asked, 17, "minor 1: it is there")),
        id::OPEN if asked.text(12) == "aio:/dev/none" => Answer::Bytes(refused(asked, 2, "no such disk")),
        _ => content(asked),
    });
    let marker = |minor| server.folder().join(format!("tapdisk/tapdisk-{minor}"));
    let created = server.run(&["create", "-a", "aio:/dev/xvdb"]);
    assert_eq!(created, said(0, &format!("{}\n", marker(2).display()), ""));
    assert!(marker(2).exists() && !marker(1).exists());
    // What could not be opened leaves nothing.
    let failed = server.run(&["create", "-a", "aio:/dev/none"]);
    assert_eq!((failed.status, failed.out.as_str()), (2, ""));
    assert!(failed.err.ends_with("minor 3: open: no such disk\n"), "{}", failed.err);
    assert_eq!(server.asked().pop().unwrap().id(), id::DETACH);
    assert!(!marker(3).exists());
    assert_eq!(server.run(&["free", "-m", "0"]), said(11, "", "tap-ctl: minor 0 is in use: detach it first\n"));
    let before = server.asked().len();
    assert_eq!(server.run(&["destroy", "-m", "2", "-t", "9"]), said(0, "", ""));
    let ids: Vec<u16> = server.asked()[before..].iter().map(Asked::id).collect();
    assert_eq!((ids, marker(2).exists()), (vec![id::CLOSE, id::DETACH], false));
    assert_eq!(server.run(&["allocate"]).out, format!("{}\n", marker(1).display()));
    assert_eq!(server.run(&["free", "-m", "1"]), said(0, "", ""));
    assert_eq!(server.run(&["spawn"]), said(0, "5\n", ""));
    let json = server.run(&["create", "-a", "aio:/dev/xvdb", "--json"]);
    assert_eq!(json.out, format!("{{\"minor\":2,\"marker\":\"{}\"}}\n", marker(2).display()));
}

#[test]
fn another_process_than_was_meant() {
    let server = Server::new("other", content);
    let said = server.run(&["attach", "-p", "6", "-m", "3"]);
    assert_eq!((said.status, said.err.ends_with("this is 5, not 6\n")), (22, true), "{}", said.err);
    assert_eq!(server.run(&["attach", "-p", "5", "-m", "3"]).status, 0);
}

#[test]
fn the_rfcs_dialect_has_other_sizes_and_ids() {
    use std::io::{Read, Write};
    let server = Server::new("rfc", content);
    let path = server.folder().join("rfc");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let heard = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = vec![0; 536];
        stream.read_exact(&mut asked).unwrap();
        let mut answer = message(25, 3, &[(0, &8u64.to_le_bytes()), (8, &512u32.to_le_bytes())]);
        answer.truncate(536);
        stream.write_all(&answer).unwrap();
        asked
    });
    let words = ["--dialect", "rfc", "--socket", path.to_str().unwrap(), "info", "-m", "3"];
    assert_eq!(run(&words, b"", server.folder()), said(0, "sectors=8 sector-size=512 info=0\n", ""));
    assert_eq!(heard.join().unwrap()[..4], [24, 0, 3, 0]);
    // What a dialect does not have is refused before anything is sent.
    let refused = server.run(&["--dialect", "rfc", "open", "-m", "3", "-a", "aio:/x", "-t", "9"]);
    assert_eq!(refused.status, 22);
    assert!(refused.err.ends_with("minor 3: open: req_timeout: this dialect has no such field\n"), "{}", refused.err);
}

#[test]
fn trace_tells_what_moved() {
    let looks = std::sync::atomic::AtomicU64::new(0);
    let server = Server::new("trace", move |asked| match asked.id() {
        id::LIST => Answer::Bytes([listed(0xffff, 1, 4, 0, "aio:/dev/xvda"), listed(0xffff, 0, -1, 0, "")].concat()),
        id::STATS => {
            let look = looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let json = format!("{{ \"secs\": [ {}, 0 ], \"xenbus\": {{ \"reqs\": [ {look}, {look} ] }} }}", 8 * look);
            let length = (json.len() as u64).to_le_bytes();
            Answer::Bytes([message(id::STATS + 1, asked.cookie(), &[(8, &length)]), json.into_bytes()].concat())
        }
        _ => content(asked),
    });
    let traced = server.run(&["trace", "-n", "2"]);
    assert_eq!(traced, said(0, "minor=4 state=0 args=aio:/dev/xvda\nminor=4 secs=8,0 reqs=1,1\n", ""));
}

#[test]
fn wrong_usage_ends_with_einval() {
    let here = std::env::temp_dir();
    for words in [&["nonsense"][..], &[], &["attach"], &["attach", "-m", "x"], &["--nonsense", "list"]] {
        let said = run(words, b"", &here);
        assert_eq!((said.status, said.out.as_str()), (22, ""), "{words:?}");
        assert!(said.err.contains("--help") || said.err.contains("Usage: tap-ctl"), "{words:?}: {}", said.err);
    }
    for words in [&["--help"][..], &["help"], &["open", "--help"], &["open", "-h"], &["--version"]] {
        let said = run(words, b"", &here);
        assert_eq!((said.status, said.err.as_str()), (0, ""), "{words:?}");
        assert!(said.out.contains("tap-ctl"), "{words:?}");
    }
    let said = run(&["completions", "bash"], b"", &here);
    assert!(said.status == 0 && said.out.contains("unpause") && said.out.contains("complete -F"));
}

#[test]
fn nobody_at_the_socket() {
    let said = run(&["--socket", "/nonexistent/ctl5", "attach", "-m", "0"], b"", &std::env::temp_dir());
    let text = "tap-ctl: /nonexistent/ctl5, minor 0: connecting: No such file or directory\n";
    assert_eq!(said, Said { status: 2, out: String::new(), err: text.to_owned() });
}
