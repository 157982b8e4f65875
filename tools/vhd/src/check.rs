//! Whether an image keeps the rules: the specification's, and those of the programs that are to read it. Nothing is
//! changed, and the engine is not asked: what is here reads the structures a second time.

mod blocks;
mod parent;

use std::collections::BTreeMap;
use std::fmt;

use drivers::disk::SECTOR_BYTES;
use protocol::vhd::{Bad, Batmap, COOKIE, Code, Field, Footer, Header, Kind, TAP_VERSION, geometry};
use serde_json::{Value, json};

use crate::disk::load;
use crate::failure::Failure;
use crate::layout::HEADER_SECTORS;
use crate::medium::Medium;
use crate::structures::HOME;
pub use parent::NAMES;

/// Seconds that a clock may be behind the one an image was made by; blktap allows as many.
const SLACK_SECONDS: u32 = 1800;
/// The largest disk that QEMU opens: 2040 GiB.
const QEMU_SECTORS_MAX: u64 = 0xff00_0000;
/// Findings of one part that are told; more are counted.
const TOLD_MAX: usize = 20;

/// Who an image is wrong for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Everyone: it is damaged, or its readers disagree about what is on it.
    Everyone,
    /// blktap: vhd-util or tapdisk refuses it, or takes it for something else.
    Blktap,
    /// QEMU does.
    Qemu,
}

impl Who {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Who::Everyone => "everyone",
            Who::Blktap => "blktap",
            Who::Qemu => "qemu",
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// For whom.
    pub who: Who,
    /// With which structure.
    pub part: &'static str,
    /// What.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.part, self.text)?;
        match self.who {
            Who::Everyone => Ok(()),
            who => write!(f, " (for {})", who.name()),
        }
    }
}

/// How thorough.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Read the data of dynamic disks too, where bitmaps say that there are none.
    pub data: bool,
    /// Seconds since 2000; an image from later is wrong. None if times do not matter.
    pub now: Option<u32>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Blocks that are there.
    pub blocks: u64,
    /// Sectors in them whose bit is set.
    pub written: u64,
    /// Sectors before the footer that nothing uses.
    pub unused: u64,
    /// Blocks whose data do not begin at a multiple of 4 KiB: slower, not wrong.
    pub unaligned: u64,
    /// The parent's name, if there is one.
    pub parent: Option<String>,
    counts: BTreeMap<&'static str, usize>,
}

impl Report {
    /// Whether nothing is wrong for anyone.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// Whether nothing is wrong for everyone.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.who != Who::Everyone)
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        let finding =
            |finding: &Finding| json!({"for": finding.who.name(), "part": finding.part, "text": finding.text});
        json!({
            "clean": self.is_clean(),
            "sound": self.is_sound(),
            "findings": self.findings.iter().map(finding).collect::<Vec<_>>(),
            "blocks": self.blocks,
            "sectors-written": self.written,
            "sectors-unused": self.unused,
            "blocks-unaligned": self.unaligned,
            "parent": self.parent,
        })
    }

    fn wrong(&mut self, who: Who, part: &'static str, text: impl fmt::Display) {
        let count = self.counts.entry(part).or_default();
        *count += 1;
        if *count <= TOLD_MAX {
            self.findings.push(Finding { who, part, text: text.to_string() });
        }
    }

    /// Says what was not told.
    fn close(&mut self) {
        for (part, count) in core::mem::take(&mut self.counts) {
            if count > TOLD_MAX {
                let text = format!("and {} more", count - TOLD_MAX);
                self.findings.push(Finding { who: Who::Everyone, part, text });
            }
        }
    }
}

/// What is being checked.
struct Checked<'a, M> {
    store: &'a M,
    options: Options,
    report: Report,
    footer: Footer,
    /// Sectors of the store; the footer is in the last. A file that has none would have it behind its end.
    sectors: u64,
    /// Stretches of metadata: first sector, end, what.
    metadata: Vec<(u64, u64, &'static str)>,
}

/// Checks one image. With parents it has to do as far as its own unique id goes.
///
/// # Errors
/// The store cannot be read. What is wrong with the image is in the report.
pub fn check(store: &impl Medium, options: Options) -> Result<Report, Failure> {
    let mut report = Report::default();
    let sectors = store.info().sectors;
    if sectors < 2 {
        report.wrong(Who::Everyone, "footer", "no room for one");
        return Ok(report);
    }
    let Some((footer, bytes, at_end)) = footers(store, sectors, &mut report)? else { return Ok(report) };
    let sectors = sectors + u64::from(!at_end && !store.is_device());
    let mut checked = Checked { store, options, report, footer, sectors, metadata: Vec::new() };
    checked.footer_fields(&bytes);
    match checked.footer.kind {
        Kind::Fixed => checked.fixed(),
        Kind::Dynamic | Kind::Differencing => checked.dynamic()?,
    }
    checked.report.close();
    Ok(checked.report)
}

/// The footer that counts, with its bytes and whether it is the one at the end; none if there is none.
fn footers(store: &impl Medium, sectors: u64, report: &mut Report) -> Result<Option<(Footer, Vec<u8>, bool)>, Failure> {
    let (end, copy) = (load(store, sectors - 1, 1)?, load(store, 0, 1)?);
    let parse = |bytes: &[u8]| Footer::parse(bytes.first_chunk().expect("a sector"));
    let (at_end, at_begin) = (parse(&end), parse(&copy));
    if let Err(bad) = at_end {
        report.wrong(Who::Everyone, "footer", reason(bad));
    }
    match (at_end, at_begin) {
        (Ok(footer), _) if footer.kind == Kind::Fixed => Ok(Some((footer, end, true))),
        (Ok(footer), Ok(_)) => {
            if end != copy {
                report.wrong(Who::Everyone, "footer", "its copy at the beginning is another one");
            }
            Ok(Some((footer, end, true)))
        }
        (Ok(footer), Err(bad)) => {
            report.wrong(Who::Everyone, "footer's copy", reason(bad));
            Ok(Some((footer, end, true)))
        }
        (Err(_), Ok(footer)) if footer.kind != Kind::Fixed => Ok(Some((footer, copy, false))),
        (Err(_), other) => {
            if let Err(bad) = other
                && copy[..8] == COOKIE
            {
                report.wrong(Who::Everyone, "footer's copy", reason(bad));
            }
            Ok(None)
        }
    }
}

/// Without the name of the structure, which stands before it.
fn reason(bad: Bad) -> Field {
    match bad {
        Bad::Footer(field) | Bad::Header(field) | Bad::Locator(field) | Bad::Batmap(field) => field,
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

impl<M: Medium> Checked<'_, M> {
    fn wrong(&mut self, who: Who, part: &'static str, text: impl fmt::Display) {
        self.report.wrong(who, part, text);
    }

    fn footer_fields(&mut self, bytes: &[u8]) {
        let footer = self.footer;
        let mut wrong = |wrong: bool, who, text: String| {
            if wrong {
                self.report.wrong(who, "footer", text);
            }
        };
        let (features, late) = (footer.features, self.options.now.map(|now| now.saturating_add(SLACK_SECONDS)));
        wrong(features & 2 == 0 || features & !3 != 0, Who::Blktap, format!("features {features:#x}"));
        wrong(late.is_some_and(|late| footer.timestamp > late), Who::Blktap, "made in the future".into());
        let newer = footer.is_tap() && footer.creator_version > TAP_VERSION;
        wrong(newer, Who::Blktap, format!("made by blktap {:#x}, which is newer than 1.3", footer.creator_version));
        let (has, may) = (footer.geometry, geometry(footer.current_bytes / SECTOR_BYTES as u64));
        let order = |shape: protocol::vhd::Geometry| (shape.cylinders, shape.heads, shape.sectors);
        let text = format!("geometry {}/{}/{} is too large", has.cylinders, has.heads, has.sectors);
        wrong(order(has) > order(may), Who::Blktap, text);
        wrong(footer.saved > 1, Who::Blktap, format!("saved state {}", footer.saved));
        wrong(footer.hidden > 1, Who::Blktap, format!("hidden mark {}", footer.hidden));
        wrong(!is_zero(&bytes[86..]), Who::Blktap, "reserved bytes that are not zero".into());
        wrong(footer.id == [0; 16], Who::Blktap, "no unique id".into());
        let odd = !footer.current_bytes.is_multiple_of(SECTOR_BYTES as u64);
        wrong(odd, Who::Everyone, format!("{} bytes are no whole sectors", footer.current_bytes));
        let (blktap, qemu) = (footer.current_bytes / SECTOR_BYTES as u64, qemu_sectors(&footer));
        let sectors = footer.sectors();
        let text = |who| format!("a disk of {sectors} sectors, of which {who} takes");
        wrong(blktap != sectors, Who::Blktap, format!("{} {blktap}", text("blktap")));
        wrong(qemu != sectors, Who::Qemu, format!("{} {qemu}", text("QEMU")));
        wrong(qemu > QEMU_SECTORS_MAX, Who::Qemu, "larger than 2040 GiB".into());
    }

    fn fixed(&mut self) {
        let (disk, room) = (self.footer.sectors(), self.sectors - 1);
        if disk > room {
            self.wrong(Who::Everyone, "footer", format_args!("a disk of {disk} sectors where there are {room}"));
        }
        if !self.store.is_device() {
            self.report.unused = room.saturating_sub(disk);
        }
    }

    fn dynamic(&mut self) -> Result<(), Failure> {
        let Some(header_at) = self.footer.header_at.filter(|at| at + 2 < self.sectors) else {
            self.wrong(Who::Everyone, "header", "beyond the end");
            return Ok(());
        };
        self.metadata.extend([(0, 1, "footer's copy"), (header_at, header_at + 2, "header")]);
        let bytes = load(self.store, header_at, 2)?;
        let header = match Header::parse(bytes.first_chunk().expect("two sectors"), self.footer.sectors()) {
            Ok(header) => header,
            Err(bad) => {
                self.wrong(Who::Everyone, "header", reason(bad));
                return Ok(());
            }
        };
        self.header_fields(&header, &bytes);
        if is_away(header_at, &header) {
            self.wrong(Who::Blktap, "header", format_args!("at sector {header_at}, as while it is being changed"));
        }
        let table_end = header.table_at + header.table_sectors();
        if table_end > self.sectors - 1 {
            self.wrong(Who::Everyone, "table", format!("ends at sector {table_end} of {}", self.sectors));
            return Ok(());
        }
        self.metadata.push((header.table_at, table_end, "table"));
        let batmap = self.batmap(&header)?;
        match self.footer.kind {
            Kind::Differencing => self.parent(&header)?,
            _ => self.no_parent(&header, &bytes),
        }
        self.overlaps();
        self.blocks(&header, batmap.as_deref())
    }

    fn header_fields(&mut self, header: &Header, bytes: &[u8]) {
        if header.next != u64::MAX {
            self.wrong(Who::Blktap, "header", format_args!("data offset {:#x}", header.next));
        }
        if !is_zero(&bytes[60..64]) || !is_zero(&bytes[768..]) {
            self.wrong(Who::Blktap, "header", "reserved bytes that are not zero");
        }
        if header.block_sectors > 4096 {
            self.wrong(Who::Blktap, "header", format_args!("blocks of {} sectors, above 2 MiB", header.block_sectors));
        }
        let reach = u64::from(header.entries) * u64::from(header.block_sectors);
        if reach < qemu_sectors(&self.footer) {
            self.wrong(Who::Qemu, "table", format_args!("ends at sector {reach} of the disk"));
        }
    }

    /// Checks blktap's map of full blocks and returns its bits.
    fn batmap(&mut self, header: &Header) -> Result<Option<Vec<u8>>, Failure> {
        let at = header.batmap_at();
        if !self.footer.has_batmap() {
            return Ok(None);
        }
        if at >= self.sectors - 1 {
            self.wrong(Who::Blktap, "batmap", "beyond the end");
            return Ok(None);
        }
        let bytes = load(self.store, at, 1)?;
        let batmap = match Batmap::parse(bytes.first_chunk().expect("a sector"), header.entries) {
            Ok(batmap) => batmap,
            Err(bad) => {
                self.wrong(Who::Blktap, "batmap", reason(bad));
                return Ok(None);
            }
        };
        if batmap.is_encrypted() {
            self.wrong(Who::Everyone, "batmap", "the image is encrypted; only blktap reads it");
        }
        let end = batmap.at + u64::from(batmap.sectors);
        if end > self.sectors - 1 {
            self.wrong(Who::Blktap, "batmap", format!("ends at sector {end} of {}", self.sectors));
            return Ok(None);
        }
        self.metadata.extend([(at, at + 1, "batmap's header"), (batmap.at, end, "batmap")]);
        let bits = load(self.store, batmap.at, batmap.sectors.into())?;
        let mut sum = batmap.sum();
        sum.update(&bits);
        if sum.finish() != batmap.checksum {
            self.wrong(Who::Blktap, "batmap", Field::Checksum);
        }
        Ok(Some(bits))
    }

    /// What an image without a parent must not have.
    fn no_parent(&mut self, header: &Header, bytes: &[u8]) {
        let named = !is_zero(&header.parent_name) || !is_zero(&bytes[576..768]);
        if header.parent != [0; 16] || header.parent_timestamp != 0 || named {
            self.wrong(Who::Blktap, "header", "it names a parent and is no differencing disk");
        }
        debug_assert!(named || header.locators.iter().all(|locator| locator.code == Code::None));
    }

    /// Stretches of metadata that lie on each other.
    fn overlaps(&mut self) {
        self.metadata.sort_unstable();
        let clashes: Vec<_> = self
            .metadata
            .windows(2)
            .filter(|pair| pair[1].0 < pair[0].1)
            .map(|pair| format!("{} and {} lie on each other", pair[0].2, pair[1].2))
            .collect();
        clashes.iter().for_each(|text| self.wrong(Who::Everyone, "header", text));
    }
}

/// Whether a header is not where everybody has it, and could be: a change of it was cut off.
pub fn is_away(header_at: u64, header: &Header) -> bool {
    header_at != HOME && header.table_at >= HOME + HEADER_SECTORS
}

/// How large QEMU takes the disk for.
fn qemu_sectors(footer: &Footer) -> u64 {
    let shape = footer.geometry.count();
    let by_size = matches!(&footer.creator, b"win " | b"qem2" | b"d2v " | b"CTXS" | b"tap\0" | b"wa\0\0");
    match by_size || shape == protocol::vhd::CHS_SECTORS_MAX {
        true => footer.current_bytes / SECTOR_BYTES as u64,
        false => shape,
    }
}
