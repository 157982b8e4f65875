//! LVM2's volume groups on the lower disks, read only: a name becomes runs of sectors.
//!
//! The metadata is read anew for every open, so what dom0's lvcreate, lvextend and lvrename did is seen, and is kept as
//! long as the open lasts, which may look up a thousand volumes of one group. What it says is checked when a volume is
//! asked for: what is wrong with one volume is no matter of the others.
//!
//! # Layout
//! - [`scan`]: labels and metadata areas of all disks; the newest text that is whole
//! - [`tables`]: the text as tables
//! - here: a volume's segments as runs, each checked against its physical volume and its disk

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;

use protocol::errno::Errno;
use protocol::lvm::{LABEL_SECTORS, Name, Span, is_name};
use xen::port::Xen;

use self::scan::Member;
use self::tables::{Logical, Odd, Physical, Segment, Tables};
use super::Run;
use crate::device::blkfront::Blkfront;
use crate::device::lowers::Lowers;
use crate::disk::{SECTORS_MAX, Store};
use crate::target::{Lower, OpenError, Quoted};

mod scan;
mod tables;

/// Stripes of a segment at most, as lvm2 has it.
const LEGS_MAX: usize = 128;

/// A group as its metadata is now.
pub struct Group<S> {
    name: String,
    tables: Tables,
    /// The disks of the group that are there, home first.
    disks: Rc<[Rc<S>]>,
    /// For each physical volume of the tables.
    places: Vec<Place>,
}

/// Where a physical volume is.
enum Place {
    /// On no disk that is ready.
    Missing,
    /// On two disks: one is a copy, and nothing says which.
    Twice(Lower, Lower),
    /// Where its data would be is its own metadata.
    Overlap(Lower),
    /// There.
    At {
        /// In the group's disks.
        disk: usize,
        lower: Lower,
    },
}

/// A volume that was found.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// Its sectors, on the disks of the group; at least one run.
    pub runs: Vec<Run>,
    /// The volume or its group may not be written (`lvchange -p r`).
    pub read_only: bool,
}

impl<X: Xen> Group<Blkfront<X>> {
    /// Reads the group of `name`. The disk with most of that volume becomes the home of all its volumes.
    pub async fn open(lowers: &Lowers<X>, name: &Name) -> Result<Self, OpenError> {
        Group::read(&lowers.ready(name).await?, name).await
    }
}

impl<S: Store> Group<S> {
    /// As `open`, from these disks.
    pub async fn read(disks: &[(Lower, Rc<S>)], name: &Name) -> Result<Self, OpenError> {
        let (tables, members) = scan::newest(disks, &name.group).await?;
        let (mut places, mut used): (Vec<_>, Vec<Rc<S>>) = Default::default();
        for volume in &tables.physical {
            let mut of_it = members.iter().filter(|member| member.label.id == volume.id);
            let place = match (of_it.next(), of_it.next()) {
                (None, _) => Place::Missing,
                (Some(one), Some(other)) => Place::Twice(disks[one.disk].0, disks[other.disk].0),
                (Some(one), None) if overlaps(one, volume, &tables) => Place::Overlap(disks[one.disk].0),
                (Some(one), None) => {
                    let (lower, disk) = &disks[one.disk];
                    used.push(disk.clone());
                    Place::At { disk: used.len() - 1, lower: *lower }
                }
            };
            places.push(place);
        }
        let mut group = Group { name: String::from(name.group.as_str()), tables, disks: Rc::new([]), places };
        group.disks = used.into();
        group.settle(&name.volume);
        Ok(group)
    }

    /// Makes the disk with most of a volume the home.
    fn settle(&mut self, volume: &str) {
        let Ok(found) = self.find(volume) else { return };
        let mut shares = alloc::vec![0; self.disks.len()];
        for run in &found.runs {
            let share = run.sectors / run.legs.len() as u64;
            run.legs.iter().for_each(|leg| shares[leg.0] += share);
        }
        let most = shares.iter().max().copied().unwrap_or(0);
        let home = shares.iter().position(|share| *share == most).unwrap_or(0);
        let mut disks = self.disks.to_vec();
        disks.swap(0, home);
        self.disks = disks.into();
        for place in &mut self.places {
            if let Place::At { disk, .. } = place {
                *disk = match *disk {
                    0 => home,
                    disk if disk == home => 0,
                    disk => disk,
                };
            }
        }
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The volume of this group that a name means when it stands in an image of the group: the bare name, with `./`, or a
    /// path of the group's own. None for what is elsewhere: an image does not choose what is opened.
    pub fn inside(&self, name: &str) -> Option<String> {
        if let Some(name) = Name::parse(name) {
            return (*name.group == self.name).then(|| String::from(name.volume.as_str()));
        }
        let bare = name.strip_prefix("./").unwrap_or(name);
        is_name(bare).then(|| String::from(bare))
    }

    /// The disks that the runs of [`find`](Group::find) are on, home first.
    pub fn disks(&self) -> &Rc<[Rc<S>]> {
        &self.disks
    }

    /// Where the sectors of a volume are.
    pub fn find(&self, volume: &str) -> Result<Found, OpenError> {
        self.look(volume)
            .map_err(|(errno, why)| OpenError::new(errno, format!("/dev/{}/{}: {why}", self.name, Quoted(volume))))
    }

    fn look(&self, volume: &str) -> Result<Found, (Errno, String)> {
        let Some(logical) = self.tables.find(volume) else {
            return Err((Errno::ENOENT, String::from("the volume group has no such logical volume")));
        };
        if self.tables.exported {
            return Err(wrong("the volume group is exported"));
        }
        if !logical.visible {
            return Err(wrong("it is a hidden part of another logical volume"));
        }
        let runs = self.runs(logical)?;
        Ok(Found { runs, read_only: !(logical.writable && self.tables.writable) })
    }

    fn runs(&self, logical: &Logical) -> Result<Vec<Run>, (Errno, String)> {
        let segments = self.tables.segments(logical);
        if segments.is_empty() || segments.len() != logical.segment_count as usize {
            let (said, are) = (logical.segment_count, segments.len());
            return Err(wrong(format_args!("segment_count is {said}, and there are {are}")));
        }
        let (mut runs, mut extents, mut sectors) = (Vec::<Run>::new(), 0u64, 0u64);
        for (index, segment) in segments.iter().enumerate() {
            let number = index + 1;
            let run = self.run(segment, number)?;
            if u64::from(segment.start) != extents {
                return Err(wrong(format_args!("segment {number}: start_extent is not {extents}")));
            }
            extents += u64::from(segment.extents);
            // No overflow: each run lies on a disk, so 2^20 of them can be counted.
            sectors = sectors.saturating_add(run.sectors);
            if sectors > SECTORS_MAX {
                return Err(wrong("it is larger than any disk may be"));
            }
            match (runs.last_mut(), &run.legs[..]) {
                (Some(Run { sectors, stripe, legs }), [(disk, start)])
                    if legs[..] == [(*disk, start.wrapping_sub(*sectors))] =>
                {
                    *sectors += run.sectors;
                    *stripe = *sectors;
                }
                _ => runs.push(run),
            }
        }
        Ok(runs)
    }

    /// A segment's run.
    fn run(&self, segment: &Segment, number: usize) -> Result<Run, (Errno, String)> {
        let wrong = |why: &dyn Display| wrong(format_args!("segment {number}: {why}"));
        match &segment.odd {
            None => {}
            Some(Odd::Kind(kind)) => {
                let why = format!(
                    "segment {number}: the segment type \"{}\" is not supported",
                    Quoted(self.tables.text(kind))
                );
                return Err((Errno::EOPNOTSUPP, why));
            }
            Some(Odd::On(name)) => {
                let name = Quoted(self.tables.text(name));
                let why = format!("segment {number}: it lies on \"{name}\", which is no physical volume");
                return Err((Errno::EOPNOTSUPP, why));
            }
        }
        let legs = self.tables.legs(segment);
        if legs.is_empty() || legs.len() > LEGS_MAX || legs.len() != segment.stripe_count as usize {
            let (said, are) = (segment.stripe_count, legs.len());
            return Err(wrong(&format_args!("stripe_count is {said}, and there are {are} stripes")));
        }
        let each = segment.extents / legs.len() as u32;
        if each == 0 || segment.extents != each * legs.len() as u32 {
            return Err(wrong(&format_args!("extent_count {} for {} stripes", segment.extents, legs.len())));
        }
        let extent = u64::from(self.tables.extent_sectors);
        let (sectors_each, stripe) = (u64::from(each) * extent, u64::from(segment.stripe));
        if legs.len() > 1 && (stripe == 0 || !sectors_each.is_multiple_of(stripe)) {
            return Err(wrong(&format_args!("stripe_size {stripe} for stripes of {sectors_each} sectors")));
        }
        let mut places = Vec::with_capacity(legs.len());
        for leg in legs {
            let (physical, place) = (&self.tables.physical[leg.physical as usize], &self.places[leg.physical as usize]);
            let (disk, lower) = self.place(physical, place, number)?;
            if u64::from(leg.extent) + u64::from(each) > u64::from(physical.extents) {
                let (id, first, end) = (physical.id, leg.extent, physical.extents);
                return Err(wrong(&format_args!("{each} extents from {first} on of {end} on physical volume {id}")));
            }
            // No overflow: both factors have 32 bits.
            let start = physical.start.checked_add(u64::from(leg.extent) * extent);
            let end = start.and_then(|start| start.checked_add(sectors_each));
            let there = self.disks[disk].info().sectors;
            match (start, end) {
                (Some(start), Some(end)) if end <= there => places.push((disk, start)),
                _ => return Err(wrong(&format_args!("it ends behind the end of {lower} ({there} sectors)"))),
            }
        }
        // No overflow: each leg lies on a disk, and there are at most 128.
        let sectors = sectors_each.saturating_mul(places.len() as u64);
        Ok(Run { sectors, stripe: if places.len() == 1 { sectors } else { stripe }, legs: places })
    }

    fn place(&self, physical: &Physical, place: &Place, number: usize) -> Result<(usize, Lower), (Errno, String)> {
        let id = physical.id;
        match place {
            Place::At { .. } if physical.missing => {
                let why = "is marked as missing: vgextend --restoremissing, or vgreduce";
                Err(wrong(format_args!("segment {number}: physical volume {id} {why}")))
            }
            Place::At { disk, lower } => Ok((*disk, *lower)),
            Place::Missing => {
                let why =
                    format!("segment {number}: physical volume {id} is missing: it is on no lower disk that works");
                Err((Errno::ENODEV, why))
            }
            Place::Twice(one, other) => {
                Err(wrong(format_args!("segment {number}: physical volume {id} is on both {one} and {other}")))
            }
            Place::Overlap(lower) => Err(wrong(format_args!(
                "segment {number}: the extents of physical volume {id} ({lower}) overlap its metadata"
            ))),
        }
    }
}

fn wrong(why: impl Display) -> (Errno, String) {
    (Errno::EINVAL, format!("{why}"))
}

/// Whether the extents of a physical volume reach into its label or its metadata.
fn overlaps(member: &Member, volume: &Physical, tables: &Tables) -> bool {
    let label = Span { sector: 0, sectors: LABEL_SECTORS };
    // No overflow: both factors have 32 bits.
    let end = volume.start.saturating_add(u64::from(volume.extents) * u64::from(tables.extent_sectors));
    member.label.areas().chain([label]).any(|area| volume.start < area.end() && area.sector < end)
}
