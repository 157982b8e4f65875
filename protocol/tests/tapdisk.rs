//! Every message of both dialects against what a C compiler makes of the headers' structures.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use protocol::tapdisk::*;

/// What the C program printed.
struct Golden {
    sizes: BTreeMap<String, usize>,
    fields: BTreeMap<String, (usize, usize)>,
    messages: BTreeMap<String, Vec<u8>>,
}

fn golden(dialect: Dialect) -> Golden {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tapdisk/messages.c");
    // A name of its own for each run: tests of one program run beside each other.
    let name = format!("messages-{}-{:?}", dialect.name(), std::thread::current().id());
    let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut compiler = Command::new("cc");
    compiler.args(["-Wall", "-Werror", "-o"]).arg(&binary).arg(source);
    if dialect == Dialect::Rfc {
        compiler.arg("-DRFC");
    }
    let built = compiler.output().expect("no C compiler `cc`: install the package gcc");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let run = Command::new(&binary).output().unwrap();
    let printed = String::from_utf8(run.stdout).unwrap();
    let mut golden = Golden { sizes: BTreeMap::new(), fields: BTreeMap::new(), messages: BTreeMap::new() };
    for line in printed.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["size", name, bytes] => {
                golden.sizes.insert(name.into(), bytes.parse().unwrap());
            }
            ["field", name, offset, bytes] => {
                golden.fields.insert(name.into(), (offset.parse().unwrap(), bytes.parse().unwrap()));
            }
            ["message", name, hex] => {
                let bytes = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
                let bytes = bytes.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
                golden.messages.insert(name.into(), bytes);
            }
            _ => panic!("{line}"),
        }
    }
    golden
}

/// 63 minors, as the C program makes them.
fn minors() -> Vec<[u8; 4]> {
    (0..63).map(|index| (0x0d0e_0f00i32 + index).to_le_bytes()).collect()
}

/// The C program's messages in our words. The cookie is 0x2100 and the id.
fn ours(dialect: Dialect, minors: &[[u8; 4]]) -> Vec<(&'static str, Body<'_>)> {
    let response = |error, text| Response { error, message: Text::new(text).unwrap() };
    let image = Image { sectors: 0x0102_0304_0506_0708, sector_size: 0x1112_1314, info: 0x2122_2324 };
    const LONG: [&str; 2] = {
        const P: [u8; 255] = [b'p'; 255];
        const S: [u8; 255] = [b's'; 255];
        match (std::str::from_utf8(&P), std::str::from_utf8(&S)) {
            (Ok(p), Ok(s)) => [p, s],
            _ => panic!(),
        }
    };
    let blktap = dialect == Dialect::Blktap;
    let params = Params {
        flags: Flags::of_bits(0x8182_83c4),
        devnum: 0x3132_3334,
        domid: 0x4142_4344,
        path: Text::new(LONG[0]).unwrap(),
        prt_devnum: Some(0x5152_5354),
        req_timeout: if blktap { 0x6162 } else { 0 },
        secondary: Text::new(LONG[1]).unwrap(),
    };
    let vdev = Vdev { domid: 0x7172, devid: 0x8182_8384 };
    let grefs: Vec<u32> = (0..8).map(|index| 0x9192_9300 + index).collect();
    let blkif = |pages, proto| {
        let poll = Poll { duration: 0xb1b2_b3b4, idle_threshold: 0xc1c2_c3c4 };
        Body::XenblkifConnect(Blkif {
            vdev,
            grefs: Grefs::new(&grefs[..pages]).unwrap(),
            proto,
            pool: Text::new("td-xenio-default").unwrap(),
            port: 0xa1a2_a3a4,
            poll: if blktap { poll } else { Poll::default() },
        })
    };
    let listed =
        Listed { count: 0x1122_3344, minor: 0x2122_2324, state: 0x22a, path: Text::new("vhd:/dev/vg/lv").unwrap() };
    let mut all = vec![
        ("error", Body::Error(response(22, "no such message"))),
        ("runtime-error", Body::RuntimeError(response(5, "the store failed"))),
        ("pid", Body::Pid),
        ("pid-rsp", Body::PidRsp(0x0102_0304)),
        ("attach", Body::Attach),
        ("attach-rsp", Body::AttachRsp(response(17, "minor 3 is attached"))),
        ("open", Body::Open(params)),
        ("open-rsp", Body::OpenRsp(image)),
        ("pause", Body::Pause),
        ("pause-rsp", Body::PauseRsp(Response::DONE)),
        ("resume", Body::Resume(params)),
        ("resume-rsp", Body::ResumeRsp(response(124, "sizes differ"))),
        ("close", Body::Close),
        ("close-rsp", Body::CloseRsp(response(-0x0102_0304, "a negative number"))),
        ("detach", Body::Detach),
        ("detach-rsp", Body::DetachRsp(response(16, "open"))),
        ("list-minors", Body::ListMinors),
        ("list-minors-rsp", Body::ListMinorsRsp(Minors::new(minors).unwrap())),
        ("list", Body::List),
        ("list-rsp", Body::ListRsp(listed)),
        ("list-end", Body::ListRsp(Listed::END)),
        ("stats", Body::Stats),
        ("stats-rsp", Body::StatsRsp { bytes: 0x0807_0605_0403_0201 }),
        ("force-shutdown", Body::ForceShutdown),
        ("disk-info", Body::DiskInfo),
        ("disk-info-rsp", Body::DiskInfoRsp(image)),
        ("blkif-connect-0", blkif(1, Protocol::Native)),
        ("blkif-connect-1", blkif(2, Protocol::X86_32)),
        ("blkif-connect-2", blkif(4, Protocol::X86_64)),
        ("blkif-connect-3", blkif(8, Protocol::X86_64)),
        ("blkif-connect-rsp", Body::XenblkifConnectRsp(response(114, "connected already"))),
        ("blkif-disconnect", Body::XenblkifDisconnect(vdev)),
        ("blkif-disconnect-rsp", Body::XenblkifDisconnectRsp(response(19, "no such ring"))),
        ("exit", Body::Exit),
    ];
    if blktap {
        all.extend([
            ("commit", Body::XcpNg(XcpNg::Commit)),
            ("commit-rsp", Body::XcpNg(XcpNg::CommitRsp)),
            ("query-commit-job", Body::XcpNg(XcpNg::QueryCommitJob)),
            ("query-commit-job-rsp", Body::XcpNg(XcpNg::QueryCommitJobRsp)),
            ("cancel-commit-job", Body::XcpNg(XcpNg::CancelCommitJob)),
            ("cancel-commit-job-rsp", Body::XcpNg(XcpNg::CancelCommitJobRsp)),
        ]);
    }
    all
}

#[test]
fn every_message_is_a_compilers_bytes_in_both_directions() {
    for dialect in Dialect::ALL {
        let mut golden = golden(dialect).messages;
        let minors = minors();
        let mut kinds = Vec::new();
        for (name, body) in ours(dialect, &minors) {
            let bytes = golden.remove(name).unwrap_or_else(|| panic!("no {name} in C"));
            let cookie = 0x2100 + body.kind().id(dialect).unwrap();
            let message = Message { cookie, body };
            let mut buffer = [0xee; MESSAGE_BYTES_MAX];
            assert_eq!(message.encode(dialect, &mut buffer).unwrap(), bytes, "{dialect:?} {name}");
            assert_eq!(Message::decode(dialect, &bytes), Ok(message), "{dialect:?} {name}");
            kinds.push(body.kind());
        }
        assert!(golden.is_empty(), "{dialect:?}: {:?} in C only", golden.keys());
        for kind in Kind::ALL.iter().filter(|kind| kind.id(dialect).is_some()) {
            assert!(kinds.contains(kind), "{dialect:?}: no bytes for {kind:?}");
        }
    }
}

#[test]
fn sizes_are_those_of_the_headers() {
    // Printed by a C program from the headers themselves: blktap2 280, the RFC 536, blktap today 544.
    let expected = [
        (Dialect::Rfc, "message", 536),
        (Dialect::Rfc, "params", 528),
        (Dialect::Rfc, "blkif", 308),
        (Dialect::Blktap, "message", 544),
        (Dialect::Blktap, "params", 532),
        (Dialect::Blktap, "blkif", 316),
        (Dialect::Blktap, "resume", 516),
    ];
    let both = [
        ("image", 16),
        ("string", 256),
        ("response", 260),
        ("minors", 256),
        ("list", 268),
        ("stat_", 16),
        ("blktap2_message", 280),
    ];
    for dialect in Dialect::ALL {
        let sizes = golden(dialect).sizes;
        assert_eq!(sizes["message"], dialect.message_bytes());
        let own = expected.iter().filter(|row| row.0 == dialect).map(|row| (row.1, row.2));
        let expected: BTreeMap<String, usize> = own.chain(both).map(|(name, bytes)| (name.into(), bytes)).collect();
        assert_eq!(sizes, expected, "{dialect:?}");
    }
}

#[test]
fn offsets_are_those_of_the_headers() {
    // Offsets in the union, and sizes, as a C program printed them from the headers themselves; the program of this
    // test has only our transcription of them.
    let both = [
        ("tapdisk_pid", 0, 4),
        ("params.flags", 0, 4),
        ("params.devnum", 4, 4),
        ("params.domid", 8, 4),
        ("params.path", 12, 256),
        ("params.prt_devnum", 268, 4),
        ("image.sectors", 0, 8),
        ("image.sector_size", 8, 4),
        ("image.info", 12, 4),
        ("string.text", 0, 256),
        ("response.error", 0, 4),
        ("response.message", 4, 256),
        ("minors.count", 0, 4),
        ("minors.list", 4, 252),
        ("list.count", 0, 4),
        ("list.minor", 4, 4),
        ("list.state", 8, 4),
        ("list.path", 12, 256),
        ("info.type", 0, 2),
        ("info.cookie", 2, 2),
        ("info.length", 8, 8),
        ("blkif.domid", 0, 4),
        ("blkif.devid", 4, 4),
        ("blkif.gref", 8, 32),
        ("blkif.order", 40, 4),
        ("blkif.proto", 44, 4),
        ("blkif.pool", 48, 256),
        ("blkif.port", 304, 4),
    ];
    let rfc = [("params.secondary", 272, 256)];
    let blktap = [
        ("params.req_timeout", 272, 2),
        ("params.secondary", 274, 256),
        ("blkif.poll_duration", 308, 4),
        ("blkif.poll_idle_threshold", 312, 4),
    ];
    for (dialect, own) in [(Dialect::Rfc, rfc.as_slice()), (Dialect::Blktap, &blktap)] {
        let rows = both.iter().chain(own).map(|(name, offset, bytes)| (format!("u.{name}"), (offset + 8, *bytes)));
        let mut expected: BTreeMap<String, (usize, usize)> = rows.collect();
        expected.insert("type".into(), (0, 2));
        expected.insert("cookie".into(), (2, 2));
        expected.insert("u".into(), (8, dialect.message_bytes() - 8));
        assert_eq!(golden(dialect).fields, expected, "{dialect:?}");
    }
}
