//! Disks whose LVM2 metadata is bytes: whole, with some of its copies stale or damaged, or anything; and the volumes that a
//! group is asked for.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::rc::Rc;

use drivers::disk::{Device, Error, Info, Op, Piece, SECTOR_BYTES, SECTORS_MAX, Store, within};
use drivers::target::Lower;
use drivers::volume::Run;
use drivers::volume::group::Group;
use protocol::lvm::Name;

use crate::image::finish;
use crate::lvm;
use crate::random::Random;
use crate::stage::XVDA;

/// Sectors in which a label may be.
const LABEL_SECTORS: u64 = 4;
/// Sectors of the longest text that is read, with the one that it begins in the middle of.
const TEXT_SECTORS_MAX: u64 = (4 << 20) / SECTOR_BYTES as u64 + 1;
/// Legs of a segment.
const LEGS_MAX: usize = 128;

/// A group of up to three disks.
struct Plan {
    extent: u64,
    disks: Vec<Place>,
    volumes: Vec<(String, Vec<Segment>)>,
}

/// A physical volume: the disk of the same number.
struct Place {
    id: [u8; 32],
    start: u64,
    extents: u64,
    areas: Vec<(u64, u64)>,
}

/// Extents of each leg, and where they begin.
struct Segment {
    each: u64,
    stripe: u64,
    legs: Vec<(usize, u64)>,
}

/// What an area holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Fresh,
    /// An older text, in which there was no volume yet.
    Stale,
    /// The right header of another text.
    WrongText,
    WrongHeader,
    /// Not in use.
    Ignored,
}

/// Disks, and what is asked of them.
pub fn volumes(bytes: &[u8]) {
    let mut tape = Random::of(bytes);
    let plan = Plan::any(&mut tape);
    let wild = tape.one_in(2);
    let mut text = plan.text(&mut tape);
    if wild {
        harm(&mut text, &mut tape);
    }
    let mut fresh = 0;
    let disks: Vec<(Lower, Rc<Hostile>)> = (0..plan.disks.len())
        .map(|number| {
            let mut disk = plan.empty(number, &mut tape);
            for area in &plan.disks[number].areas {
                let state = tape.pick(&[
                    State::Fresh,
                    State::Fresh,
                    State::Stale,
                    State::WrongText,
                    State::WrongHeader,
                    State::Ignored,
                ]);
                fresh += u32::from(state == State::Fresh);
                disk.area(*area, state, &text, &plan.stale(), &mut tape);
            }
            if wild {
                disk.harm(&mut tape);
            }
            (Lower { device: XVDA + 16 * number as u32, partition: None }, Rc::new(disk))
        })
        .collect();
    for (name, segments) in &plan.volumes {
        disks.iter().for_each(|(_, disk)| disk.reads.set(0));
        let group = finish(Group::read(&disks, &Name::new("vg", name).expect("a name")));
        for (_, disk) in &disks {
            assert!(disk.reads.get() <= disk.reads_max(), "{} sectors read of a disk", disk.reads.get());
        }
        let failing = disks.iter().any(|(_, disk)| disk.reads.get() > disk.failing);
        let found = group.as_ref().map_err(|error| error.to_string()).and_then(|group| {
            let found = group.find(name).map_err(|error| error.to_string())?;
            Ok((found.runs, group))
        });
        match found {
            Err(text) => {
                assert!(text.len() < 1024 && text.contains("/dev/vg") && !text.contains(char::is_control), "{text:?}");
                assert!(wild || failing || fresh == 0, "a good group says {text}");
            }
            Ok((runs, group)) => {
                let number_of = |disk: usize| {
                    disks.iter().position(|(_, one)| Rc::ptr_eq(one, &group.disks()[disk])).expect("one of the disks")
                };
                bounded(&runs, |disk| disks[number_of(disk)].1.sectors);
                if !wild && fresh > 0 && !failing {
                    let sectors: Vec<_> =
                        runs.iter().flat_map(sectors).map(|(disk, at)| (number_of(disk), at)).collect();
                    assert!(sectors == plan.sectors(segments), "{name} is not where it was put");
                }
            }
        }
    }
}

/// Whatever the text says, what is found is on a disk and away from its label.
fn bounded(runs: &[Run], sectors_of: impl Fn(usize) -> u64) {
    assert!(!runs.is_empty());
    let mut sum = 0u64;
    for run in runs {
        let legs = run.legs.len() as u64;
        assert!(run.stripe > 0 && (1..=LEGS_MAX).contains(&run.legs.len()));
        assert!(run.sectors > 0 && run.sectors.is_multiple_of(legs));
        let each = run.sectors / legs;
        assert!(legs == 1 || each.is_multiple_of(run.stripe));
        for (disk, start) in &run.legs {
            let end = start.checked_add(each).expect("a leg ends");
            assert!(*start >= LABEL_SECTORS && end <= sectors_of(*disk), "{start}+{each} of {}", sectors_of(*disk));
        }
        sum = sum.checked_add(run.sectors).expect("a volume ends");
    }
    assert!(sum <= SECTORS_MAX);
}

/// Each sector of a run, in order.
fn sectors(run: &Run) -> impl Iterator<Item = (usize, u64)> {
    (0..run.sectors).map(|at| {
        let (row, legs) = (at / run.stripe, run.legs.len() as u64);
        let (disk, start) = run.legs[(row % legs) as usize];
        (disk, start + row / legs * run.stripe + at % run.stripe)
    })
}

impl Plan {
    fn any(tape: &mut Random) -> Plan {
        let extent = tape.pick(&[8, 16, 64, 1]);
        let disks: Vec<Place> = (0..tape.between(1, 3))
            .map(|number| {
                let (first, second) = ((8, tape.between(12, 40)), (2000, 40));
                let areas = match tape.below(3) {
                    0 => vec![first, second],
                    1 => vec![first],
                    _ if number > 0 => Vec::new(),
                    _ => vec![second],
                };
                Place { id: [b'a' + number as u8; 32], start: 48 + tape.below(9), extents: tape.between(4, 24), areas }
            })
            .collect();
        let volumes = (0..tape.between(1, 3))
            .map(|number| {
                let segments = (0..tape.between(1, 3)).map(|_| Segment::any(tape, &disks, extent)).collect();
                (format!("lv-{number}"), segments)
            })
            .collect();
        Plan { extent, disks, volumes }
    }

    /// As lvm2 writes it, more or less.
    fn text(&self, tape: &mut Random) -> Vec<u8> {
        let mut text = self.head(7);
        for (number, (name, segments)) in self.volumes.iter().enumerate() {
            let count = segments.len();
            let tags = tape.pick(&["", "tags = [\"a\", \"b}{\"]\n", "# } \" {\n", "id = \"x\\\"y\"\n"]);
            let _ = write!(
                text,
                "\t\t{name} {{\nid = \"{}\"\n{tags}status = [\"READ\", \"WRITE\", \"VISIBLE\"]\nflags = []\n\
                 creation_time = {number}\nsegment_count = {count}\n\n",
                lvm::id(&[b'l' + number as u8; 32])
            );
            let mut start = 0;
            for (number, segment) in segments.iter().enumerate() {
                let (number, legs) = (number + 1, segment.legs.len() as u64);
                let extents = segment.each * legs;
                let _ = write!(
                    text,
                    "segment{number} {{\nstart_extent = {start}\nextent_count = {extents}\t# some\n\ntype = \"striped\"\n\
                     stripe_count = {legs}\t# linear\n"
                );
                if legs > 1 {
                    let _ = writeln!(text, "stripe_size = {}", segment.stripe);
                }
                let stripes: Vec<String> =
                    segment.legs.iter().map(|(disk, extent)| format!("\"pv{disk}\", {extent}")).collect();
                let _ = write!(text, "\nstripes = [\n{}\n]\n}}\n", stripes.join(",\n"));
                start += extents;
            }
            text.push_str("}\n");
        }
        text.push_str("\t}\n\n}\n# Generated by LVM2\n\ncontents = \"Text Format Volume Group\"\nversion = 1\n\0");
        text.into_bytes()
    }

    fn stale(&self) -> Vec<u8> {
        (self.head(3) + "}\n}\n\0").into_bytes()
    }

    fn head(&self, seqno: u32) -> String {
        let mut text = format!(
            "vg {{\nid = \"{}\"\nseqno = {seqno}\nformat = \"lvm2\"\nstatus = [\"RESIZEABLE\", \"READ\", \"WRITE\"]\n\
             extent_size = {}\nmax_lv = 0\n\n\tphysical_volumes {{\n",
            lvm::id(&[b'z'; 32]),
            self.extent
        );
        for (number, disk) in self.disks.iter().enumerate() {
            let (id, start, extents) = (lvm::id(&disk.id), disk.start, disk.extents);
            let _ = write!(
                text,
                "pv{number} {{\nid = \"{id}\"\ndevice = \"/dev/sd{number}\"\n\nstatus = [\"ALLOCATABLE\"]\n\
                 pe_start = {start}\npe_count = {extents}\n}}\n"
            );
        }
        text + "\t}\n\n\tlogical_volumes {\n"
    }

    /// A disk with its label and nothing else; a fault below now and then.
    fn empty(&self, number: usize, tape: &mut Random) -> Hostile {
        let (place, sectors) = (&self.disks[number], 2100);
        let mut disk = Hostile {
            sectors,
            written: BTreeMap::new(),
            reads: Cell::new(0),
            failing: if tape.one_in(16) { tape.below(64) } else { u64::MAX },
        };
        let at = tape.below(LABEL_SECTORS);
        disk.put_all(at, &lvm::label(at, &place.id, sectors, &place.areas));
        disk
    }

    /// Where a volume's sectors are.
    fn sectors(&self, segments: &[Segment]) -> Vec<(usize, u64)> {
        let mut all = Vec::new();
        for segment in segments {
            let leg = |leg: &(usize, u64)| self.disks[leg.0].start + leg.1 * self.extent;
            let each = segment.each * self.extent;
            let stripe = if segment.legs.len() == 1 { each } else { segment.stripe };
            for row in 0..each / stripe {
                for one in &segment.legs {
                    all.extend((0..stripe).map(|at| (one.0, leg(one) + row * stripe + at)));
                }
            }
        }
        all
    }
}

impl Segment {
    fn any(tape: &mut Random, disks: &[Place], extent: u64) -> Segment {
        let each = tape.between(1, 4);
        let legs = (0..tape.pick(&[1, 1, 2, 3]))
            .map(|_| {
                let disk = tape.index(disks.len());
                (disk, tape.below(disks[disk].extents - each + 1))
            })
            .collect();
        // Of both is a multiple of all of these.
        let stripe = tape.pick(&[extent, extent * each, 1]);
        Segment { each, stripe, legs }
    }
}

/// Changes a text here and there. Its checksum will be right.
fn harm(text: &mut Vec<u8>, tape: &mut Random) {
    const PIECES: [&[u8]; 16] = [
        b"0",
        b"4294967295",
        b"18446744073709551615",
        b"-1",
        b"{",
        b"}",
        b"\"",
        b"[",
        b"]",
        b"=",
        b"\0",
        b"\xff",
        b"\"thin\"",
        b"\"pv9\"",
        b"#",
        b"\x1b[2J\n",
    ];
    for _ in 0..tape.between(1, 4) {
        let at = tape.index(text.len());
        match tape.below(4) {
            // A line, or some of it, is lost or comes twice.
            0 => {
                let end = text[at..].iter().position(|byte| *byte == b'\n').map_or(text.len(), |more| at + more + 1);
                text.drain(at..end);
            }
            1 => {
                let end = (at + tape.index(80)).min(text.len());
                let again = text[at..end].to_vec();
                text.splice(at..at, again);
            }
            // A number becomes another one.
            2 => {
                let digits = |byte: &u8| byte.is_ascii_digit();
                if let Some(from) = text[at..].iter().position(digits).map(|more| at + more) {
                    let to = text[from..].iter().position(|byte| !digits(byte)).map_or(text.len(), |more| from + more);
                    text.splice(from..to, tape.pick(&PIECES[..4]).iter().copied());
                }
            }
            _ => {
                text.splice(at..at, tape.pick(&PIECES).iter().copied());
            }
        }
        if text.is_empty() {
            text.push(0);
        }
    }
}

/// A disk.
struct Hostile {
    sectors: u64,
    written: BTreeMap<u64, [u8; SECTOR_BYTES]>,
    /// Sectors that were read.
    reads: Cell<u64>,
    /// Reads after so many sectors fail.
    failing: u64,
}

impl Hostile {
    fn put_all(&mut self, at: u64, bytes: &[u8]) {
        for (sector, bytes) in (at..).zip(bytes.chunks(SECTOR_BYTES)) {
            self.written.entry(sector).or_insert([0; SECTOR_BYTES])[..bytes.len()].copy_from_slice(bytes);
        }
    }

    /// An area with a text somewhere in its ring.
    fn area(&mut self, area: (u64, u64), state: State, fresh: &[u8], stale: &[u8], tape: &mut Random) {
        let text = if state == State::Stale { stale } else { fresh };
        let ring = (area.1 - 1) * SECTOR_BYTES as u64;
        let offset = SECTOR_BYTES as u64 + tape.below(ring / SECTOR_BYTES as u64) * SECTOR_BYTES as u64;
        let flags = u32::from(state == State::Ignored);
        let sum = lvm::crc(text) ^ u32::from(state == State::WrongText);
        let mut header = lvm::header(area, offset, text.len() as u64, sum, flags);
        if state == State::WrongHeader {
            header[tape.index(SECTOR_BYTES)] ^= 1 << tape.below(8);
        }
        self.put_all(area.0, &header);
        // What the ring has no room for is not written, as no lvm2 would.
        for (done, byte) in (0..ring).zip(text) {
            let at = SECTOR_BYTES as u64 + (offset - SECTOR_BYTES as u64 + done) % ring;
            let sector = self.written.entry(area.0 + at / SECTOR_BYTES as u64).or_insert([0; SECTOR_BYTES]);
            sector[(at % SECTOR_BYTES as u64) as usize] = *byte;
        }
    }

    /// Labels and headers of any numbers, their checksums right.
    fn harm(&mut self, tape: &mut Random) {
        let near = |tape: &mut Random| {
            let base = tape.pick(&[0, 8, 48, 2000, 2100, 1 << 40, u64::MAX / 512]);
            base.wrapping_add(tape.below(4)).wrapping_sub(tape.below(4))
        };
        for _ in 0..tape.below(3) {
            match tape.below(4) {
                0 => {
                    let at = tape.below(LABEL_SECTORS);
                    let areas = [(near(tape), near(tape)), (near(tape), near(tape))];
                    let said = if tape.one_in(4) { near(tape) } else { at };
                    let label = lvm::label(said, &[b'a' + tape.below(3) as u8; 32], near(tape), &areas);
                    self.put_all(at, &label);
                }
                1 => {
                    let area = (tape.pick(&[8, 2000]), tape.pick(&[40, 12, 1, 0]));
                    let offset = tape.pick(&[0, 512, 513, 1024, 20_479, 20_480, u64::MAX]);
                    let length = tape.pick(&[0, 1, 300, 19_968, 4 << 20, u64::MAX]);
                    let header = lvm::header(area, offset, length, tape.next() as u32, 0);
                    self.put_all(area.0, &header);
                }
                2 if tape.one_in(8) => {
                    // A text that would take for ever.
                    let area = (8, 1 << 24);
                    let id = [b'a' + tape.below(3) as u8; 32];
                    self.sectors = u64::MAX;
                    self.put_all(0, &lvm::label(0, &id, 1 << 40, &[area, area]));
                    let length = tape.pick(&[4 << 20, 32 << 20, (1 << 33) - 512]);
                    self.put_all(area.0, &lvm::header(area, tape.pick(&[512, 513]), length, 0, 0));
                }
                _ => self.sectors = tape.pick(&[2100, 2000, 9, 2, 1, 0, u64::MAX]),
            }
        }
    }

    /// The label, and each of two areas: its header and its text, twice in case somebody was writing it.
    fn reads_max(&self) -> u64 {
        // A piece that begins in the middle of a sector reads that sector again.
        let text = self.sectors.min(TEXT_SECTORS_MAX);
        LABEL_SECTORS + 2 * 2 * (1 + text + text / 63 + 2)
    }
}

impl Device for Hostile {
    fn info(&self) -> Info {
        Info { sectors: self.sectors, physical_bytes: 512, read_only: true, flush: false, discard: None, grows: false }
    }

    async fn take(&self, _: u64, _: impl ExactSizeIterator<Item = (u8, u8)>, _: &mut Vec<Piece>) {
        panic!("metadata is read in bytes")
    }

    fn give(&self, _: &mut Vec<Piece>) {}

    async fn submit(&self, _: Op<'_>, _: u64) -> Result<(), Error> {
        panic!("metadata is read in bytes")
    }
}

impl Store for Hostile {
    async fn load(&self, sector: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let count = (bytes.len() / SECTOR_BYTES) as u64;
        assert!(bytes.len().is_multiple_of(SECTOR_BYTES));
        within(sector, count, self.sectors).expect("no read that is not within the disk");
        self.reads.set(self.reads.get() + count);
        if self.reads.get() > self.failing {
            return Err(Error::Medium);
        }
        for (at, bytes) in (sector..).zip(bytes.chunks_mut(SECTOR_BYTES)) {
            bytes.copy_from_slice(self.written.get(&at).unwrap_or(&[0; SECTOR_BYTES]));
        }
        Ok(())
    }

    async fn save(&self, _: u64, _: &[u8]) -> Result<(), Error> {
        panic!("metadata is read")
    }

    async fn zero(&self, _: u64, _: u64) -> Result<(), Error> {
        panic!("metadata is read")
    }
}
