//! The text of a group's metadata as tables: only what is needed to find sectors, and no more than is bounded here.
//!
//! Names lie together in one text, segments and stripes in one list each: ten thousand volumes are some hundred KiB.

use alloc::collections::BTreeMap;
use alloc::collections::TryReserveError;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use protocol::lvm::{Bad, Id, Item, Value};

use crate::target::Quoted;

/// Physical volumes of a group at most.
const PHYSICAL_MAX: usize = 1024;
/// Logical volumes of a group at most; 4 MiB of text hold about 12,000.
const LOGICAL_MAX: usize = 1 << 15;
/// Segments of all volumes at most.
const SEGMENTS_MAX: usize = 1 << 16;
/// Stripes of all segments at most.
const LEGS_MAX: usize = 1 << 17;

/// A number that was not there or is too large to be one; more than any count here.
const NONE: u32 = u32::MAX;

/// A part of the names.
type Part = Range<u32>;

/// A physical volume, as the text has it.
pub struct Physical {
    pub id: Id,
    /// The first sector of its extents.
    pub start: u64,
    /// Its extents, below `u32::MAX`.
    pub extents: u32,
    /// It was away when the metadata was written.
    pub missing: bool,
}

/// A logical volume.
pub struct Logical {
    name: Part,
    /// As the text says.
    pub segment_count: u32,
    segments: Range<u32>,
    pub visible: bool,
    pub writable: bool,
}

/// Why a segment cannot be read, whatever else it says.
pub enum Odd {
    /// Its type.
    Kind(Part),
    /// It lies on this, which is no physical volume.
    On(Part),
}

/// A segment of a logical volume. What the text does not say is `u32::MAX`, or 0 for the stripe.
pub struct Segment {
    pub start: u32,
    /// Extents of all its stripes together.
    pub extents: u32,
    pub stripe_count: u32,
    /// Sectors.
    pub stripe: u32,
    legs: Range<u32>,
    pub odd: Option<Odd>,
}

/// A stripe of a segment.
pub struct Leg {
    /// In the table of physical volumes.
    pub physical: u32,
    /// Its first extent there.
    pub extent: u32,
}

/// The tables.
pub struct Tables {
    pub id: Id,
    pub seqno: u64,
    pub extent_sectors: u32,
    pub exported: bool,
    pub writable: bool,
    pub physical: Vec<Physical>,
    /// By name.
    logical: Vec<Logical>,
    segments: Vec<Segment>,
    legs: Vec<Leg>,
    names: String,
}

impl Tables {
    /// A logical volume by its name.
    pub fn find(&self, name: &str) -> Option<&Logical> {
        let at = self.logical.binary_search_by(|volume| self.text(&volume.name).cmp(name)).ok()?;
        self.logical.get(at)
    }

    /// Its segments.
    pub fn segments(&self, of: &Logical) -> &[Segment] {
        &self.segments[of.segments.start as usize..of.segments.end as usize]
    }

    /// A segment's stripes.
    pub fn legs(&self, of: &Segment) -> &[Leg] {
        &self.legs[of.legs.start as usize..of.legs.end as usize]
    }

    /// A part of the names.
    pub fn text(&self, part: &Part) -> &str {
        &self.names[part.start as usize..part.end as usize]
    }
}

/// Why the text does not become tables.
pub enum Stop {
    /// It is another group's.
    Other,
    /// It is not what its checksum is of.
    Damaged,
    /// It is no text of lvm2's.
    Text(Bad),
    /// A field of it, and what is wrong with it.
    Field(String),
    /// There is no memory for it.
    Memory,
}

impl From<Bad> for Stop {
    fn from(bad: Bad) -> Stop {
        Stop::Text(bad)
    }
}

impl From<TryReserveError> for Stop {
    fn from(_: TryReserveError) -> Stop {
        Stop::Memory
    }
}

/// What section we are in.
#[derive(Clone, Copy)]
enum Inside {
    Group,
    AllPhysical,
    Physical,
    AllLogical,
    Logical,
    Segment,
    Unknown,
}

/// A physical volume that is being read.
struct Draft {
    key: String,
    id: Option<Id>,
    start: Option<u64>,
    extents: u32,
    missing: bool,
}

/// Makes tables of the items of a text.
pub struct Maker<'a> {
    group: &'a str,
    inside: Vec<Inside>,
    begun: bool,
    id: Option<Id>,
    seqno: Option<u64>,
    extent_sectors: u32,
    draft: Option<Draft>,
    /// The names by which segments call physical volumes.
    keys: BTreeMap<String, u32>,
    /// The physical volume that a stripe was said to be on, before its extent is.
    on: Option<u32>,
    exported: bool,
    writable: bool,
    physical: Vec<Physical>,
    logical: Vec<Logical>,
    segments: Vec<Segment>,
    legs: Vec<Leg>,
    names: String,
}

impl<'a> Maker<'a> {
    /// For a group of this name.
    pub fn new(group: &'a str) -> Self {
        Maker {
            group,
            inside: Vec::new(),
            begun: false,
            id: None,
            seqno: None,
            extent_sectors: 0,
            draft: None,
            keys: BTreeMap::new(),
            on: None,
            exported: false,
            writable: false,
            physical: Vec::new(),
            logical: Vec::new(),
            segments: Vec::new(),
            legs: Vec::new(),
            names: String::new(),
        }
    }

    /// Takes the next item.
    pub fn item(&mut self, item: Item<'_>) -> Result<(), Stop> {
        match item {
            Item::Begin(name) => {
                let inside = self.begin(name)?;
                self.inside.push(inside);
                Ok(())
            }
            Item::End => match self.inside.pop() {
                Some(Inside::Physical) => self.end_physical(),
                _ => Ok(()),
            },
            Item::Value(key, value) => match self.inside.last() {
                Some(Inside::Group) => {
                    self.group_value(key, value);
                    Ok(())
                }
                Some(Inside::Physical) => {
                    self.physical_value(key, value);
                    Ok(())
                }
                Some(Inside::Logical) => {
                    self.logical_value(key, value);
                    Ok(())
                }
                Some(Inside::Segment) => self.segment_value(key, value),
                _ => Ok(()),
            },
        }
    }

    fn begin(&mut self, name: &str) -> Result<Inside, Stop> {
        Ok(match self.inside.last() {
            None if self.begun => Inside::Unknown,
            None if name != self.group => return Err(Stop::Other),
            None => {
                self.begun = true;
                Inside::Group
            }
            Some(Inside::Group) if name == "physical_volumes" => Inside::AllPhysical,
            Some(Inside::Group) if name == "logical_volumes" => Inside::AllLogical,
            Some(Inside::AllPhysical) => {
                bound(self.physical.len(), PHYSICAL_MAX, "physical volumes")?;
                let key = String::from(name);
                self.draft = Some(Draft { key, id: None, start: None, extents: NONE, missing: false });
                Inside::Physical
            }
            Some(Inside::AllLogical) => {
                bound(self.logical.len(), LOGICAL_MAX, "logical volumes")?;
                let (name, at) = (self.keep(name)?, self.segments.len() as u32);
                let (segments, segment_count) = (at..at, NONE);
                let volume = Logical { name, segment_count, segments, visible: false, writable: false };
                push(&mut self.logical, volume)?;
                Inside::Logical
            }
            Some(Inside::Logical) if name.starts_with("segment") => {
                bound(self.segments.len(), SEGMENTS_MAX, "segments")?;
                let at = self.legs.len() as u32;
                let (start, extents, stripe_count) = (NONE, NONE, NONE);
                let segment = Segment { start, extents, stripe_count, stripe: 0, legs: at..at, odd: None };
                push(&mut self.segments, segment)?;
                self.on = None;
                if let Some(volume) = self.logical.last_mut() {
                    volume.segments.end += 1;
                }
                Inside::Segment
            }
            Some(_) => Inside::Unknown,
        })
    }

    fn group_value(&mut self, key: &str, value: Value<'_>) {
        match (key, value) {
            ("id", Value::Text(text)) => self.id = Id::parse(text),
            ("seqno", Value::Number(number)) => self.seqno = Some(number),
            ("extent_size", value) => self.extent_sectors = count(value),
            ("status", Value::Text("EXPORTED")) => self.exported = true,
            ("status", Value::Text("WRITE")) => self.writable = true,
            _ => {}
        }
    }

    fn physical_value(&mut self, key: &str, value: Value<'_>) {
        let Some(draft) = &mut self.draft else { return };
        match (key, value) {
            ("id", Value::Text(text)) => draft.id = Id::parse(text),
            ("pe_start", Value::Number(number)) => draft.start = Some(number),
            ("pe_count", value) => draft.extents = count(value),
            ("status" | "flags", Value::Text("MISSING")) => draft.missing = true,
            _ => {}
        }
    }

    fn end_physical(&mut self) -> Result<(), Stop> {
        let Some(Draft { key, id, start, extents, missing }) = self.draft.take() else { return Ok(()) };
        let lacks =
            |field| Stop::Field(format!("physical volume {}: {field} is not there, or cannot be", Quoted(&key)));
        let id = id.ok_or_else(|| lacks("id"))?;
        let start = start.ok_or_else(|| lacks("pe_start"))?;
        if extents == NONE {
            return Err(lacks("pe_count"));
        }
        if self.physical.iter().any(|volume| volume.id == id) {
            return Err(Stop::Field(format!("physical volume {id} is there twice")));
        }
        push(&mut self.physical, Physical { id, start, extents, missing })?;
        self.keys.insert(key, self.physical.len() as u32 - 1);
        Ok(())
    }

    fn logical_value(&mut self, key: &str, value: Value<'_>) {
        let Some(volume) = self.logical.last_mut() else { return };
        match (key, value) {
            ("status", Value::Text("VISIBLE")) => volume.visible = true,
            ("status", Value::Text("WRITE")) => volume.writable = true,
            ("segment_count", value) => volume.segment_count = count(value),
            _ => {}
        }
    }

    fn segment_value(&mut self, key: &str, value: Value<'_>) -> Result<(), Stop> {
        match (key, value) {
            ("type", Value::Text("striped" | "linear")) => {}
            ("type", Value::Text(kind)) => {
                let kind = self.keep(kind)?;
                self.segment(|segment| segment.odd = Some(Odd::Kind(kind)));
            }
            ("start_extent", value) => self.segment(|segment| segment.start = count(value)),
            ("extent_count", value) => self.segment(|segment| segment.extents = count(value)),
            ("stripe_count", value) => self.segment(|segment| segment.stripe_count = count(value)),
            ("stripe_size", value) => self.segment(|segment| segment.stripe = count(value)),
            ("stripes", Value::Text(name)) => match self.keys.get(name) {
                Some(physical) => self.on = Some(*physical),
                None => {
                    self.on = None;
                    let name = self.keep(name)?;
                    // The type says more, if it is one that we do not know.
                    self.segment(|segment| {
                        segment.odd.get_or_insert(Odd::On(name));
                    });
                }
            },
            ("stripes", value) => {
                if let Some(physical) = self.on.take() {
                    bound(self.legs.len(), LEGS_MAX, "stripes")?;
                    push(&mut self.legs, Leg { physical, extent: count(value) })?;
                    self.segment(|segment| segment.legs.end += 1);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn segment(&mut self, change: impl FnOnce(&mut Segment)) {
        if let Some(segment) = self.segments.last_mut() {
            change(segment);
        }
    }

    fn keep(&mut self, name: &str) -> Result<Part, Stop> {
        let names = &mut self.names;
        names.try_reserve(name.len())?;
        let start = names.len() as u32;
        names.push_str(name);
        // No overflow: it is no longer than the text, which has 4 MiB.
        Ok(start..names.len() as u32)
    }

    /// The tables of the whole text.
    pub fn finish(mut self) -> Result<Tables, Stop> {
        let lacks = |field| Stop::Field(format!("{field} is not there, or cannot be"));
        let id = self.id.ok_or_else(|| lacks("id"))?;
        let seqno = self.seqno.ok_or_else(|| lacks("seqno"))?;
        if matches!(self.extent_sectors, 0 | NONE) {
            return Err(lacks("extent_size"));
        }
        let name = |volume: &Logical| &self.names[volume.name.start as usize..volume.name.end as usize];
        self.logical.sort_unstable_by(|one, other| name(one).cmp(name(other)));
        if let Some(two) = self.logical.windows(2).find(|two| name(&two[0]) == name(&two[1])) {
            return Err(Stop::Field(format!("logical volume {} is there twice", Quoted(name(&two[0])))));
        }
        Ok(Tables {
            id,
            seqno,
            extent_sectors: self.extent_sectors,
            exported: self.exported,
            writable: self.writable,
            physical: self.physical,
            logical: self.logical,
            segments: self.segments,
            legs: self.legs,
            names: self.names,
        })
    }
}

fn count(value: Value<'_>) -> u32 {
    match value {
        Value::Number(number) => u32::try_from(number).unwrap_or(NONE),
        Value::Text(_) | Value::Other => NONE,
    }
}

fn bound(now: usize, max: usize, what: &str) -> Result<(), Stop> {
    if now < max { Ok(()) } else { Err(Stop::Field(format!("more than {max} {what}"))) }
}

fn push<T>(list: &mut Vec<T>, item: T) -> Result<(), Stop> {
    list.try_reserve(1)?;
    list.push(item);
    Ok(())
}
