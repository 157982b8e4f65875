//! Labels and metadata areas of all disks: which of them are a group's, and its newest text that is whole.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use protocol::errno::Errno;
use protocol::lvm::{Bad, Header, LABEL_SECTORS, Label, Reader, Span, Sum, Text};

use super::tables::{Maker, Stop, Tables};
use crate::disk::{Error, SECTOR_BYTES, Store};
use crate::target::{Lower, OpenError};

/// Bytes of a text read at once.
const READ_BYTES: usize = 32 << 10;
/// How often an area is read whose text changes under our hands.
const TRIES: u32 = 4;

/// A disk that is a physical volume.
pub struct Member {
    /// Its label.
    pub label: Label,
    /// Which of the disks.
    pub disk: usize,
}

/// Why an area says nothing.
enum Failed {
    Store(Error),
    Structure(Bad),
    /// The text is not what its checksum is of.
    Checksum,
    /// It is not within the disk.
    Outside(u64),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed::Store(error)
    }
}

impl From<Bad> for Failed {
    fn from(bad: Bad) -> Self {
        Failed::Structure(bad)
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failed::Store(error) => write!(f, "LVM: {error}"),
            Failed::Structure(bad) => bad.fmt(f),
            Failed::Checksum => f.write_str("LVM metadata: wrong checksum"),
            Failed::Outside(sectors) => write!(f, "LVM metadata area: ends behind the disk's {sectors} sectors"),
        }
    }
}

/// A text that was read, and where.
struct Copy {
    text: Text,
    tables: Tables,
    lower: Lower,
}

/// The newest metadata of a group, and all physical volumes there are.
pub async fn newest<S: Store>(disks: &[(Lower, Rc<S>)], group: &str) -> Result<(Tables, Vec<Member>), OpenError> {
    let (mut members, mut failures) = (Vec::new(), Vec::new());
    for (index, (lower, disk)) in disks.iter().enumerate() {
        match label(&**disk).await {
            Ok(Some(label)) => members.push(Member { label, disk: index }),
            Ok(None) => {}
            Err(failed) => failures.push(format!("{lower}: {failed}")),
        }
    }
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(READ_BYTES).map_err(|_| no_memory(group))?;
    buffer.resize(READ_BYTES, 0);
    let mut best: Option<Copy> = None;
    for member in &members {
        let (lower, disk) = &disks[member.disk];
        for area in member.label.areas() {
            let known = best.as_ref().map(|copy| &copy.text);
            match read(&**disk, area, group, known, &mut buffer).await {
                Ok(None) => {}
                Ok(Some((text, Ok(tables)))) => {
                    let copy = Copy { text, tables, lower: *lower };
                    best = Some(match best {
                        None => copy,
                        Some(best) => newer(best, copy, group)?,
                    });
                }
                // The text is whole, so this is what its writer meant; an older one would not be it.
                Ok(Some((_, Err(Stop::Memory)))) => return Err(no_memory(group)),
                Ok(Some((_, Err(stop)))) => return Err(refused(group, *lower, stop)),
                Err(failed) => failures.push(format!("{lower}: sector {}: {failed}", area.sector)),
            }
        }
    }
    failures.iter().for_each(|failure| log::warn!("{failure}"));
    match best {
        Some(best) => Ok((best.tables, members)),
        None => {
            let mut text = format!("/dev/{group}: no lower disk has a volume group of this name");
            // One of them, so that the text stays short.
            failures.first().into_iter().for_each(|failure| text.push_str(&format!("; {failure}")));
            Err(OpenError::new(if failures.is_empty() { Errno::ENOENT } else { Errno::EIO }, text))
        }
    }
}

fn no_memory(group: &str) -> OpenError {
    OpenError::new(Errno::ENOMEM, format!("/dev/{group}: no memory for its metadata"))
}

fn refused(group: &str, lower: Lower, stop: Stop) -> OpenError {
    let why = match stop {
        Stop::Text(bad) => bad.to_string(),
        Stop::Field(why) => format!("LVM metadata: {why}"),
        Stop::Other | Stop::Damaged | Stop::Memory => String::from("LVM metadata"),
    };
    OpenError::new(Errno::EINVAL, format!("/dev/{group}: {lower}: {why}"))
}

/// The newer of two texts of a group.
fn newer(one: Copy, other: Copy, group: &str) -> Result<Copy, OpenError> {
    let (a, b) = (&one.tables, &other.tables);
    let conflict = |what| {
        let text = format!("/dev/{group}: {what} ({} on {}, {} on {})", a.id, one.lower, b.id, other.lower);
        Err(OpenError::new(Errno::EINVAL, text))
    };
    if a.id != b.id {
        return conflict("two volume groups have this name");
    }
    match a.seqno.cmp(&b.seqno) {
        core::cmp::Ordering::Less => Ok(other),
        core::cmp::Ordering::Greater => Ok(one),
        // Both are whole: each was written while the other's disk was away.
        core::cmp::Ordering::Equal => conflict("its disks disagree about the same change"),
    }
}

/// A disk's label, if it is a physical volume.
async fn label<S: Store>(disk: &S) -> Result<Option<Label>, Failed> {
    let mut bytes = [0; LABEL_SECTORS as usize * SECTOR_BYTES];
    let sectors = disk.info().sectors.min(LABEL_SECTORS) as usize;
    if sectors == 0 {
        return Ok(None);
    }
    disk.load(0, &mut bytes[..sectors * SECTOR_BYTES]).await?;
    let mut failed = None;
    for (number, sector) in bytes[..sectors * SECTOR_BYTES].as_chunks().0.iter().enumerate() {
        match Label::parse(sector, number as u64) {
            Ok(Some(label)) => return Ok(Some(label)),
            Ok(None) => {}
            Err(bad) => failed = Some(bad),
        }
    }
    failed.map_or(Ok(None), |bad| Err(bad.into()))
}

/// What an area says of the group; none if that is nothing, or what is known already.
async fn read<S: Store>(
    disk: &S,
    area: Span,
    group: &str,
    known: Option<&Text>,
    buffer: &mut [u8],
) -> Result<Option<(Text, Result<Tables, Stop>)>, Failed> {
    let sectors = disk.info().sectors;
    if area.end() > sectors {
        return Err(Failed::Outside(sectors));
    }
    let mut before = None;
    for _ in 0..TRIES {
        let mut sector = [0; SECTOR_BYTES];
        disk.load(area.sector, &mut sector).await?;
        let Some(text) = Header::parse(&sector, area)?.text else { return Ok(None) };
        if known.is_some_and(|known| (known.bytes, known.checksum) == (text.bytes, text.checksum)) {
            return Ok(None);
        }
        if before == Some(text) {
            return Err(Failed::Checksum);
        }
        match tables(disk, &text, group, buffer).await? {
            Err(Stop::Other) => return Ok(None),
            Err(Stop::Damaged) => before = Some(text),
            tables => return Ok(Some((text, tables))),
        }
    }
    Err(Failed::Checksum)
}

/// Reads a text into tables.
async fn tables<S: Store>(
    disk: &S,
    text: &Text,
    group: &str,
    buffer: &mut [u8],
) -> Result<Result<Tables, Stop>, Error> {
    let (mut maker, mut reader, mut sum) = (Maker::new(group), Reader::new(), Sum::new());
    let (mut result, mut done) = (Ok(()), 0);
    while let Some((at, together)) = text.place(done) {
        let (sector, skip) = (at / SECTOR_BYTES as u64, (at % SECTOR_BYTES as u64) as usize);
        let here = together.min((buffer.len() - skip) as u64);
        let end = skip + here as usize;
        let sectors = &mut buffer[..end.next_multiple_of(SECTOR_BYTES)];
        disk.load(sector, sectors).await?;
        let bytes = &sectors[skip..end];
        sum.update(bytes);
        if result.is_ok() {
            result = reader.read(bytes, |item| maker.item(item));
        }
        if matches!(result, Err(Stop::Other)) {
            return Ok(Err(Stop::Other));
        }
        done += here;
    }
    Ok(match (sum.finish() == text.checksum, result) {
        (false, _) => Err(Stop::Damaged),
        (true, Err(stop)) => Err(stop),
        (true, Ok(())) => reader.finish().map_err(Stop::Text).and_then(|()| maker.finish()),
    })
}
