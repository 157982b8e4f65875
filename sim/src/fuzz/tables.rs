//! A disk whose partition table is bytes: what is found is what the table says, for a bounded number of reads.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use drivers::disk::{Device, Error, Info, Op, Piece, SECTOR_BYTES, Store};
use drivers::partition::{self, Extent};
use drivers::target::Lower;

use crate::random::Random;

type Sector = [u8; SECTOR_BYTES];

/// Reads for one name: two headers, each with the entries of the largest table.
const READS_MAX: u32 = 2 * (1 + 1024);

/// A table and the number of a partition.
pub fn tables(bytes: &[u8]) {
    let mut tape = Random::of(bytes);
    let number = tape.pick(&[1, 2, 3, 4, 5, 128, 1024, 1025, u32::MAX, 0]);
    let mut disk = Hostile {
        sectors: tape.pick(&[2048, 80, 66, 2, 1, 0, u64::MAX]),
        written: BTreeMap::new(),
        reads: Cell::new(0),
        failing: if tape.one_in(8) { tape.below(64) as u32 } else { u32::MAX },
    };
    let expected = if tape.one_in(2) && disk.sectors >= 80 { Some(honest(&mut disk, &mut tape, number)) } else { None };
    if expected.is_none() {
        for _ in 0..tape.between(1, 2) {
            wild(&mut disk, &mut tape);
        }
    }
    let lower = Lower { device: 51712, partition: Some(number) };
    let mut find = pin!(partition::find(&disk, &lower, number));
    let Poll::Ready(found) = find.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("nothing to wait for")
    };
    assert!(disk.reads.get() <= READS_MAX, "{} reads for one name", disk.reads.get());
    if disk.reads.get() > disk.failing {
        assert!(found.is_err(), "a table that cannot be read says {found:?}");
    } else if let Some(expected) = expected {
        assert_eq!(found.as_ref().ok(), expected.as_ref(), "{found:?}");
    }
    if let Ok(Extent { start, sectors }) = found {
        let end = start.checked_add(sectors).expect("a partition ends");
        assert!(sectors > 0 && start > 1 && end < disk.sectors, "{start}+{sectors} of {}", disk.sectors);
        assert!(disk.says(number, start, sectors), "{start}+{sectors} is in no table");
    }
}

/// A good table of a few partitions and its copy, of which the first may be damaged in any bytes; what it says.
fn honest(disk: &mut Hostile, tape: &mut Random, number: u32) -> Option<Extent> {
    let last = disk.sectors - 1;
    let (entries, entry_bytes) = tape.pick(&[(128u32, 128u32), (4, 128), (16, 256), (8, 512), (5, 128)]);
    let room = u64::from(entries * entry_bytes).div_ceil(512);
    let usable = (2 + room, last - room - 1);
    let mut table = vec![0; (entries * entry_bytes) as usize];
    let (mut at, mut found) = (usable.0, None);
    for i in 0..tape.between(0, 4).min(entries.into()) {
        let (gap, sectors) = (tape.below(4), tape.between(1, 6));
        if tape.one_in(4) || at + gap + sectors > usable.1 {
            continue;
        }
        at += gap;
        let entry = &mut table[(i * u64::from(entry_bytes)) as usize..][..128];
        entry[..16].fill_with(|| tape.below(256) as u8);
        entry[0] |= 1;
        put(entry, 32, at);
        put(entry, 40, at + sectors - 1);
        if i + 1 == u64::from(number) {
            found = Some(Extent { start: at, sectors });
        }
        at += sectors;
    }
    let fields = Fields { usable, entries, entry_bytes, crc: crc(&table) };
    disk.put(1, &header(&fields, 1, last, 2, 92));
    disk.put_all(2, &table);
    disk.put(last, &header(&fields, last, 1, last - room, 92));
    disk.put_all(last - room, &table);
    for _ in 0..tape.below(4) {
        let (sector, at) = (1 + tape.below(1 + room), tape.index(SECTOR_BYTES));
        disk.written.entry(sector).or_insert([0; SECTOR_BYTES])[at] ^= tape.below(256) as u8;
    }
    found
}

/// A header of any numbers, its checksum right, before entries of any numbers.
fn wild(disk: &mut Hostile, tape: &mut Random) {
    let last = disk.sectors.saturating_sub(1);
    let sectors = disk.sectors;
    let near = |tape: &mut Random| {
        let base = tape.pick(&[0, 1, 2, 34, 64, last, sectors, u64::MAX]);
        base.wrapping_add(tape.below(8)).wrapping_sub(tape.below(8))
    };
    let at = if tape.one_in(2) { 1 } else { last };
    let (entries, entry_bytes) =
        (tape.pick(&[1, 4, 128, 1024, 1025, 0, u32::MAX]), tape.pick(&[128, 256, 512, 64, 0, u32::MAX]));
    let (usable, entries_at) = ((near(tape), near(tape)), near(tape));
    let mut table = vec![0; 512.min(entries.saturating_mul(entry_bytes) as usize)];
    table.fill_with(|| tape.below(256) as u8);
    for entry in table.chunks_exact_mut(128) {
        put(entry, 32, near(tape));
        put(entry, 40, near(tape));
    }
    disk.put_all(entries_at, &table);
    let mut whole = table.clone();
    whole.resize((entries.min(1024) * entry_bytes.min(512)) as usize, 0);
    let fields = Fields { usable, entries, entry_bytes, crc: crc(&whole) };
    let length = tape.pick(&[92, 92, 512, 513, 91, u32::MAX]);
    let (said, other) = (if tape.one_in(8) { near(tape) } else { at }, near(tape));
    disk.put(at, &header(&fields, said, other, entries_at, length));
}

struct Fields {
    usable: (u64, u64),
    entries: u32,
    entry_bytes: u32,
    crc: u32,
}

fn put(into: &mut [u8], at: usize, value: u64) {
    into[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn header(fields: &Fields, at: u64, other: u64, entries_at: u64, length: u32) -> Sector {
    let mut sector = [0; SECTOR_BYTES];
    sector[..12].copy_from_slice(b"EFI PART\0\0\x01\0");
    sector[12..16].copy_from_slice(&length.to_le_bytes());
    for (place, value) in [(24, at), (32, other), (40, fields.usable.0), (48, fields.usable.1), (72, entries_at)] {
        put(&mut sector, place, value);
    }
    for (place, value) in [(80, fields.entries), (84, fields.entry_bytes), (88, fields.crc)] {
        sector[place..place + 4].copy_from_slice(&value.to_le_bytes());
    }
    let own = crc(&sector[..SECTOR_BYTES.min(length as usize)]);
    sector[16..20].copy_from_slice(&own.to_le_bytes());
    sector
}

/// CRC-32 of ISO 3309.
fn crc(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let (mut table, mut i) = ([0; 256], 0);
        while i < 256 * 8 {
            let (entry, crc) = (i / 8, if i % 8 == 0 { i as u32 / 8 } else { table[i / 8] });
            table[entry] = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
            i += 1;
        }
        table
    };
    !bytes.iter().fold(u32::MAX, |crc, byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

/// The disk.
struct Hostile {
    sectors: u64,
    written: BTreeMap<u64, Sector>,
    reads: Cell<u32>,
    /// Reads from this one on fail.
    failing: u32,
}

impl Hostile {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        let mut sector = [0; SECTOR_BYTES];
        sector[..bytes.len()].copy_from_slice(bytes);
        self.written.insert(at, sector);
    }

    fn put_all(&mut self, at: u64, bytes: &[u8]) {
        for (i, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
            self.put(at.wrapping_add(i as u64), sector);
        }
    }

    /// Whether one of the two headers leads to an entry that says so.
    fn says(&self, number: u32, start: u64, sectors: u64) -> bool {
        [1, self.sectors - 1].iter().filter_map(|at| self.written.get(at)).any(|header| {
            let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
            let byte = u64::from(number - 1) * (word(84) & 0xffff_ffff);
            let Some(entry) = word(72).checked_add(byte / 512).and_then(|at| self.written.get(&at)) else {
                return false;
            };
            let field = |at: u64| {
                let at = (byte % 512 + at) as usize;
                entry.get(at..at + 8).map(|raw| u64::from_le_bytes(raw.try_into().expect("eight bytes")))
            };
            field(32) == Some(start) && field(40) == Some(start + sectors - 1)
        })
    }
}

impl Device for Hostile {
    fn info(&self) -> Info {
        Info { sectors: self.sectors, physical_bytes: 512, read_only: true, flush: false, discard: None, grows: false }
    }

    async fn take(&self, _: u64, _: impl ExactSizeIterator<Item = (u8, u8)>, _: &mut Vec<Piece>) {
        panic!("a table is read in bytes")
    }

    fn give(&self, _: &mut Vec<Piece>) {}

    async fn submit(&self, _: Op<'_>, _: u64) -> Result<(), Error> {
        panic!("a table is read in bytes")
    }
}

impl Store for Hostile {
    async fn load(&self, sector: u64, bytes: &mut [u8]) -> Result<(), Error> {
        assert_eq!(bytes.len(), SECTOR_BYTES);
        drivers::disk::within(sector, 1, self.sectors)?;
        let read = self.reads.replace(self.reads.get() + 1);
        if read >= self.failing {
            return Err(Error::Medium);
        }
        bytes.copy_from_slice(self.written.get(&sector).unwrap_or(&[0; SECTOR_BYTES]));
        Ok(())
    }

    async fn save(&self, _: u64, _: &[u8]) -> Result<(), Error> {
        panic!("a table is read")
    }

    async fn zero(&self, _: u64, _: u64) -> Result<(), Error> {
        panic!("a table is read")
    }
}
