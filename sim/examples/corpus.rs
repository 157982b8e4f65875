//! Writes the fuzzer's seed corpus: `cargo run -p sim --example corpus`. Inputs that a fuzzer would take long to come
//! by, each under the name of what it is. What a fuzzer found is kept beside them, under `found-`.

use std::fs;
use std::path::Path;

use protocol::xenstore::{Header, Kind};
use sim::blkif::{Body, Layout, Request, Segment, op};
use xen::port::GrantRef;

/// Inputs by their names.
type Inputs = Vec<(&'static str, Vec<u8>)>;

/// A choice of layout and offer, and a slot.
fn slot(layout: u8, offered: u8, op: u8, body: Body) -> Vec<u8> {
    let request = Request { op, id: 0x1122_3344_5566_7788, sector: 1 << 33, body };
    let layout_of = [Layout::X86_64, Layout::X86_32][usize::from(layout)];
    [vec![layout, offered], request.encode(layout_of, 51712)].concat()
}

fn segments(count: u32) -> Body {
    Body::Segments((0..count).map(|i| Segment { grant: GrantRef(8 + i), first: 0, last: 7 }).collect())
}

fn blkif() -> Inputs {
    let pages = |count: u32| (0..count).map(|i| GrantRef(8 + i)).collect();
    let table: Vec<u8> = (0..32).flat_map(|i| Segment { grant: GrantRef(i), first: 1, last: 6 }.encode()).collect();
    vec![
        ("read", slot(0, 3, op::READ, segments(1))),
        ("write-eleven-32-bit", slot(1, 3, op::WRITE, segments(11))),
        ("flush", slot(0, 0, op::FLUSH, segments(0))),
        ("barrier-with-data", slot(0, 0, op::BARRIER, segments(2))),
        ("discard", slot(1, 0, op::DISCARD, Body::Discard { sectors: 1 << 20 })),
        ("indirect-two-pages", slot(0, 4, op::WRITE, Body::Indirect { count: 513, pages: pages(2) })),
        ("indirect-eight-pages", slot(0, 5, op::READ, Body::Indirect { count: 4096, pages: pages(8) })),
        ("descriptors", table),
    ]
}

/// Deeds by their numbers, repeated.
fn deeds(head: &[u8], round: &[u8], times: usize) -> Vec<u8> {
    [head, &round.repeat(times)].concat()
}

fn all() -> Vec<(&'static str, Inputs)> {
    // Layout, ring order, start, requests there at once, offer; then: put, take, answer, publish, rearm.
    let put = [0, 0, 0, 1, 0, 8, 0, 0, 7, 7, 7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 1];
    let round = [&put[..], &[4, 6, 1, 2, 3, 4, 5, 6, 7, 8, 7, 4, 8]].concat();
    let header = |kind: Kind, bytes| Header { kind: kind as u32, request: 1, transaction: 0, bytes }.encode();
    vec![
        ("blkif", blkif()),
        (
            "requests",
            vec![
                ("honest", deeds(&[0, 0, 0, 0, 2], &round, 4)),
                ("across-the-wrap", deeds(&[1, 1, 2, 0, 1], &round, 8)),
                ("a-full-ring", deeds(&[0, 0, 3, 32, 2], &[4], 40)),
                ("one-too-many", vec![0, 0, 0, 33]),
            ],
        ),
        (
            "answers",
            vec![
                ("honest", deeds(&[0], &[&put[..], &[2, 4, 6, 7]].concat(), 6)),
                ("more-than-asked", deeds(&[0], &[4, 6, 7], 3)),
                ("a-full-ring", deeds(&[0], &put, 33)),
            ],
        ),
        (
            // The frontend's state (0 none, n + 1), online, the toolstack, success.
            "handshake",
            vec![
                ("linux", vec![2, 1, 9, 1, 4, 1, 9, 1, 5, 1, 9, 1, 5, 0, 0, 1, 6, 0, 9, 1, 7, 0, 9, 1]),
                ("ovmf", [5, 6, 7, 2, 4, 5].iter().flat_map(|state| [*state, 1, 9, 1]).collect()),
                ("refused", [2, 4, 4, 5, 6, 7, 2].iter().flat_map(|state| [*state, 1, 9, 0]).collect()),
                ("made-anew", vec![4, 1, 9, 1, 5, 1, 2, 1, 4, 1, 9, 1]),
            ],
        ),
        (
            "handshake_lower",
            vec![
                ("linux", [1, 3, 5, 5, 6, 7].iter().flat_map(|state| [*state, 9, 1]).collect()),
                ("forgotten", [3, 5, 3, 5].iter().flat_map(|state| [*state, 9, 1]).collect()),
                ("made-anew", vec![3, 9, 1, 5, 1, 1, 3, 1, 1, 0, 0, 1]),
            ],
        ),
        (
            "store",
            vec![
                // Ask, run, receive, answer, send, run.
                ("a-read", deeds(&[0], &[0, 0, 2, 4, 255, 4, 5, 0, 9, 8, 200, 0, 2], 3)),
                ("watches", deeds(&[1], &[0, 7, 0, 6, 2, 4, 255, 4, 5, 0, 1, 10, 0, 2, 8, 255, 4, 3], 4)),
                ("a-transaction", deeds(&[2], &[1, 5, 2, 4, 255, 4, 5, 0, 3, 8, 255, 4, 2], 6)),
                ("answered-twice", deeds(&[0], &[0, 0, 2, 4, 255, 0, 5, 0, 9, 7, 0, 0, 0, 0, 8, 255, 0], 2)),
                ("out-of-step", deeds(&[0], &[0, 0, 2, 4, 255, 0, 11, 0, 1, 9, 8, 255, 0, 3], 2)),
            ],
        ),
        (
            // Dialect; type (two bytes), cookie, patches, a long text, what follows.
            "control",
            vec![
                ("pid", vec![0, 1, 1, 7, 0, 1, 0]),
                ("rfc-open", vec![0, 13, 1, 7, 2, 0, 16, 8, 1, 0, 8, 1, 0]),
                ("blktap-open-with-a-log", vec![1, 13, 1, 9, 1, 0, 5, 4, 1, 1, 0]),
                ("every-type", (0..48).flat_map(|id| [1, id, 1, id, 0, 1, 0]).collect()),
                ("no-end", vec![1, 13, 1, 1, 0, 0, 2, 2, 0]),
            ],
        ),
        (
            // Orders to check, orders to use, side; then deeds.
            "vchan",
            vec![
                ("serves", deeds(&[10, 11, 0, 0], &[3, 3, 1, 0, 0, 2, 5, 3, 7, 3, 9, 0, 9, 1], 6)),
                ("connects", deeds(&[12, 12, 4, 1, 0, 0, 0, 0], &[0, 0, 1, 5, 2, 8, 3, 1, 9, 1], 6)),
                ("overrun", deeds(&[10, 10, 0, 0], &[0, 0, 6, 5, 2, 7, 2, 9, 0], 2)),
                ("across-the-wrap", deeds(&[20, 20, 1, 1, 3, 3, 3, 3], &[7, 3, 65, 0, 1, 2, 5, 4, 0, 0, 2], 8)),
            ],
        ),
        (
            // Number, size, faults, honest, entries.
            "tables",
            vec![
                ("honest", vec![0, 0, 1, 0, 0, 4, 0, 1, 5, 1]),
                ("damaged", vec![1, 0, 1, 0, 2, 4, 0, 1, 5, 1, 0, 1, 5, 1, 3, 9, 9, 1, 0, 1]),
                ("wild", vec![0, 0, 1, 1, 1, 0, 0, 0, 3, 0, 0, 6, 0, 0, 1, 0, 0]),
                ("unreadable", vec![0, 1, 0, 3, 0]),
            ],
        ),
        (
            // Bytes of choices: block sizes, how many harms, where and what, then requests.
            "image",
            vec![
                ("whole", vec![0, 0, 0, 1, 8, 1, 20, 0, 4, 2, 8, 3, 3, 30, 0, 4, 0, 1, 40, 0]),
                ("a-table", vec![1, 2, 1, 2, 3, 1, 0, 2, 40, 0, 3, 1, 2, 60, 0, 1, 8, 10, 0, 9, 9]),
                ("a-header", vec![0, 1, 1, 1, 2, 0, 7, 1, 0, 1, 9, 1, 2, 3, 4]),
                ("both-footers", vec![0, 0, 2, 1, 0, 0, 12, 5, 8, 7, 6, 5, 0, 0, 1, 4, 9, 1, 20, 0]),
            ],
        ),
        (
            // Extents, disks with their areas, volumes with their segments; whether anything is wrong; then area by area.
            "volumes",
            vec![
                ("linear", vec![0, 0, 4, 1, 3, 9, 0, 0, 1, 0, 2, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0]),
                (
                    "striped",
                    vec![1, 1, 9, 0, 3, 15, 20, 0, 5, 9, 1, 1, 2, 2, 0, 1, 1, 3, 1, 0, 0, 1, 0, 1, 1, 0, 0, 0, 2],
                ),
                (
                    "stale-and-damaged",
                    vec![2, 2, 9, 0, 3, 9, 9, 0, 3, 9, 9, 0, 3, 9, 0, 0, 1, 0, 0, 0, 1, 0, 1, 2, 0, 1, 3],
                ),
                ("a-text", vec![0, 0, 4, 1, 3, 9, 0, 0, 1, 0, 2, 0, 0, 0, 1, 3, 0, 2, 1, 1, 40, 0, 3, 9]),
                (
                    "a-label",
                    vec![0, 0, 4, 1, 3, 9, 0, 0, 1, 0, 2, 0, 0, 0, 0, 3, 0, 2, 1, 1, 2, 0, 1, 3, 0, 0, 3, 2, 1],
                ),
            ],
        ),
        (
            "names",
            vec![
                ("lower", b"aio:/dev/xvda".to_vec()),
                ("partition", b"raw:/dev/xvdzz128".to_vec()),
                ("ram", b"ram:64M".to_vec()),
                ("vhd", b"vhd:/dev/xvda".to_vec()),
                ("number", b"18446744073709551615".to_vec()),
                ("names", b"51712\0queue-0\0".to_vec()),
                ("event", b"backend/vbd/3/51712/state\x007\0".to_vec()),
                ("header", [&header(Kind::Read, 4096)[..], b"ENOENT\0"].concat()),
            ],
        ),
        (
            // Seed; target and mode; ring order and layout; a request; then deeds.
            "domain",
            vec![
                ("honest", deeds(&[1, 0, 1, 0, 0], &[0, 1, 3, 0, 0, 1, 0, 7, 1, 1, 0, 17, 40], 4)),
                ("scribbles", deeds(&[2, 0, 1, 1, 1], &[3, 0, 1, 9, 5, 0, 2, 3, 17, 30, 7, 0, 0], 6)),
                ("detached", deeds(&[3, 0, 1, 0, 0], &[13, 16, 2, 12, 0, 1, 7, 0, 0, 16, 2, 11], 3)),
                ("a-stuck-disk", deeds(&[4, 0, 1, 0, 0], &[14, 0, 0, 1, 3, 0, 0, 1, 0, 7, 1, 1, 0, 10, 1, 16, 3], 3)),
            ],
        ),
    ]
}

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (target, inputs) in all() {
        fs::create_dir_all(corpus.join(target))?;
        for (name, bytes) in inputs {
            fs::write(corpus.join(target).join(name), bytes)?;
        }
    }
    Ok(())
}
