//! What a name opens: a leaf that moves bytes, and the format of the image on it.

use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Display;
use protocol::blkif::Way;
use protocol::errno::Errno;

use xen::limits::MEMORY_PER_IMAGE;
use xen::memory::Promise;
use xen::port::Xen;
use xen::sync::Listener;

use crate::claims::Claim;
use crate::device::blkfront::Blkfront;
use crate::device::lowers::Lowers;
use crate::device::ram::Ram;
use crate::disk::{Device, Error, Info, Op, Piece};
use crate::format::joined::Joined;
use crate::format::vhd::open::Place;
use crate::format::vhd::{Vhd, open};
use crate::format::{Format, Stay};
use crate::partition;
use crate::target::{Lower, OpenError, Quoted, Source, Target};
use crate::volume::group::Group;
use crate::volume::{Disks, Run, Volume};

/// The devices and formats that are compiled in.
enum Kind<X: Xen> {
    Ram(Ram),
    Raw(Volume<X>),
    Vhd(Box<Joined<Vhd<Volume<X>>>>),
}

/// An opened disk.
pub struct Stack<X: Xen> {
    kind: Kind<X>,
    /// The images that it is made of, claimed as long as anybody uses it.
    _claims: Vec<Claim>,
    /// For what it keeps of its metadata.
    _memory: Option<Promise>,
}

/// Where the parents of an image are looked for.
enum Around<X: Xen> {
    /// Nowhere: a lower disk or a partition holds one image.
    Nothing(Lower),
    /// In the volume group that the image is in.
    Group(Box<Group<Blkfront<X>>>),
}

/// Opens what an image lies on.
async fn volume<X: Xen>(lowers: &Lowers<X>, source: &Source) -> Result<(Volume<X>, Around<X>), OpenError> {
    match source {
        Source::Lower(lower) => Ok((part(lowers, lower).await?, Around::Nothing(*lower))),
        Source::Logical(name) => {
            let group = Group::open(lowers, name).await?;
            Ok((logical(&group, &name.volume)?, Around::Group(Box::new(group))))
        }
    }
}

/// A lower disk or a partition of it.
async fn part<X: Xen>(lowers: &Lowers<X>, lower: &Lower) -> Result<Volume<X>, OpenError> {
    let disk = lowers.find(lower).await?;
    if disk.info().sectors == 0 {
        return Err(OpenError::new(Errno::EINVAL, format!("{lower}: it has no sectors we can address")));
    }
    let Some(number) = lower.partition else { return Ok(Volume::whole(disk)) };
    let part = partition::find(&*disk, lower, number).await?;
    Ok(Volume::of(&(Rc::new([disk]) as Disks<X>), alloc::vec![Run::linear(0, part.start, part.sectors)]))
}

fn logical<X: Xen>(group: &Group<Blkfront<X>>, volume: &str) -> Result<Volume<X>, OpenError> {
    let found = group.find(volume)?;
    Ok(Volume::of(group.disks(), found.runs).read_only(found.read_only))
}

impl<X: Xen> Place for Around<X> {
    type Store = Volume<X>;

    async fn parent(&self, name: &str) -> Result<(Volume<X>, String), OpenError> {
        let refused =
            |place: &dyn Display| OpenError::new(Errno::ENOENT, format!("\"{}\" is not {place}", Quoted(name)));
        match self {
            Around::Nothing(lower) => Err(refused(&format_args!("on {lower}"))),
            Around::Group(group) => {
                let within = group.inside(name).ok_or_else(|| refused(&format_args!("in /dev/{}", group.name())))?;
                Ok((logical(group, &within)?, format!("/dev/{}/{within}", group.name())))
            }
        }
    }
}

impl<X: Xen> Stack<X> {
    /// Opens what `name` names. What is opened read-only writes nothing, not for itself either.
    pub async fn open(lowers: &Lowers<X>, name: &str, read_only: bool) -> Result<Self, OpenError> {
        let (mut claims, mut promise) = (Vec::new(), None);
        let kind = match Target::parse(name)? {
            Target::Ram { pages } => match Ram::new(pages) {
                Ok(ram) => Kind::Ram(ram),
                Err(_) => {
                    let text = format!("target \"{name}\": {pages} pages are more than this domain can spare");
                    return Err(OpenError::new(Errno::ENOMEM, text));
                }
            },
            Target::Raw(source) => Kind::Raw(volume(lowers, &source).await?.0),
            Target::Vhd(source) => {
                let memory = &lowers.domain.memory;
                let short = || OpenError::new(Errno::ENOMEM, format!("{source}: {memory}"));
                promise = Some(memory.promise(MEMORY_PER_IMAGE).ok_or_else(short)?);
                let (store, around) = volume(lowers, &source).await?;
                let format = open::open(&around, store, &source.to_string(), read_only).await?;
                let write = !format.info().read_only;
                for (layer, store) in format.stores().enumerate() {
                    let claim = lowers.claims.claim(store.place(), write && layer == 0);
                    let busy = || {
                        let what = if layer == 0 { "it" } else { "an image below it" };
                        OpenError::new(
                            Errno::EBUSY,
                            format!("{source}: {what} is open already, or a request is still at it"),
                        )
                    };
                    claims.push(claim.ok_or_else(busy)?);
                }
                Kind::Vhd(Box::new(Joined { format }))
            }
        };
        Ok(Stack { kind, _claims: claims, _memory: promise })
    }

    /// A disk that is all in our own memory.
    pub fn resident_in(disk: Ram) -> Self {
        Stack { kind: Kind::Ram(disk), _claims: Vec::new(), _memory: None }
    }

    /// Makes durable all that it knows, before it is let go of. A stack that was only dropped is as after a power cut.
    pub async fn close(&self) -> Result<(), Error> {
        match &self.kind {
            Kind::Vhd(image) if !image.info().read_only => image.submit(Op::Flush, 0).await,
            Kind::Ram(_) | Kind::Raw(_) | Kind::Vhd(_) => Ok(()),
        }
    }

    /// What it lies on; none if that is our own memory.
    fn volume(&self) -> Option<&Volume<X>> {
        match &self.kind {
            Kind::Ram(_) => None,
            Kind::Raw(volume) => Some(volume),
            Kind::Vhd(image) => Some(image.format.leaf()),
        }
    }

    /// Hears when its size or its life changes from now on; none if they never do.
    pub fn changes(&self) -> Option<Listener> {
        self.volume().map(Volume::changes)
    }

    /// Whether its content is gone when it is closed.
    pub fn is_volatile(&self) -> bool {
        matches!(self.kind, Kind::Ram(_))
    }

    /// The memory that it is all of, if it is.
    pub fn resident(&self) -> Option<&Ram> {
        match &self.kind {
            Kind::Ram(ram) => Some(ram),
            Kind::Raw(_) | Kind::Vhd(_) => None,
        }
    }

    /// The lower disk on which these sectors lie as they are and together, and where: a transfer of them has only to be handed
    /// on, by somebody who [stays](Stack::stay). None where there is more to it, or something is wrong with it.
    pub fn straight(&self, way: Way, sector: u64, sectors: u64) -> Option<(&Rc<Blkfront<X>>, u64)> {
        match &self.kind {
            Kind::Ram(_) => None,
            Kind::Raw(volume) => volume.straight(way, sector, sectors),
            Kind::Vhd(image) => {
                let (layer, at) = image.together(way == Way::Write, sector, sectors)?;
                image.format.store(layer).straight(way, at, sectors)
            }
        }
    }

    /// What is held while sectors are used that [`straight`](Stack::straight) has told of: the image and its claims, and room in
    /// it that is freed meanwhile. Nothing where that is all the lower disk's affair.
    pub fn stay(self: &Rc<Self>) -> Option<Guest<X>> {
        let Kind::Vhd(image) = &self.kind else { return None };
        Some(Guest { stay: Some(image.format.stay()), stack: self.clone() })
    }

    /// Whether the store below went away for good.
    pub fn is_over(&self) -> bool {
        self.volume().is_some_and(Volume::is_over)
    }
}

/// One who uses sectors of an image; see [`Stack::stay`].
pub struct Guest<X: Xen> {
    stack: Rc<Stack<X>>,
    stay: Option<Stay>,
}

impl<X: Xen> Drop for Guest<X> {
    fn drop(&mut self) {
        if let (Kind::Vhd(image), Some(stay)) = (&self.stack.kind, self.stay.take()) {
            image.format.leave(stay);
        }
    }
}

impl<X: Xen> Device for Stack<X> {
    fn info(&self) -> Info {
        match &self.kind {
            Kind::Ram(disk) => disk.info(),
            Kind::Raw(disk) => disk.info(),
            Kind::Vhd(disk) => disk.info(),
        }
    }

    async fn take(&self, sector: u64, shape: impl ExactSizeIterator<Item = (u8, u8)>, into: &mut Vec<Piece>) {
        match &self.kind {
            Kind::Ram(disk) => disk.take(sector, shape, into).await,
            Kind::Raw(disk) => disk.take(sector, shape, into).await,
            Kind::Vhd(disk) => disk.take(sector, shape, into).await,
        }
    }

    fn give(&self, pieces: &mut Vec<Piece>) {
        match &self.kind {
            Kind::Ram(disk) => disk.give(pieces),
            Kind::Raw(disk) => disk.give(pieces),
            Kind::Vhd(disk) => disk.give(pieces),
        }
    }

    async fn submit(&self, op: Op<'_>, sector: u64) -> Result<(), Error> {
        match &self.kind {
            Kind::Ram(disk) => disk.submit(op, sector).await,
            Kind::Raw(disk) => disk.submit(op, sector).await,
            Kind::Vhd(disk) => disk.submit(op, sector).await,
        }
    }
}
