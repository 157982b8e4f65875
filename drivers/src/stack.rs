//! What a name opens: a leaf that moves bytes, and where on it the disk lies.

use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;
use protocol::errno::Errno;

use xen::port::Xen;
use xen::sync::Listener;

use crate::device::blkfront::{Blkfront, Life};
use crate::device::lowers::Lowers;
use crate::device::ram::Ram;
use crate::disk::{Device, Error, Info, Op, Piece, within};
use crate::partition::{self, Extent};
use crate::target::{OpenError, Target};

/// The devices that are compiled in.
enum Leaf<X: Xen> {
    Ram(Ram),
    Lower(Rc<Blkfront<X>>),
}

/// An opened disk.
pub struct Stack<X: Xen> {
    leaf: Leaf<X>,
    /// A part of the leaf; none means all of it, also what it grows by.
    part: Option<Extent>,
}

impl<X: Xen> Stack<X> {
    /// Opens what `name` names.
    pub async fn open(lowers: &Lowers<X>, name: &str) -> Result<Self, OpenError> {
        match Target::parse(name)? {
            Target::Ram { pages } => match Ram::new(pages) {
                Ok(ram) => Ok(Stack { leaf: Leaf::Ram(ram), part: None }),
                Err(_) => {
                    let text = format!("target \"{name}\": {pages} pages are more than this domain can spare");
                    Err(OpenError::new(Errno::ENOMEM, text))
                }
            },
            Target::Raw(lower) => {
                let disk = lowers.find(&lower).await?;
                if disk.info().sectors == 0 {
                    return Err(OpenError::new(Errno::EINVAL, format!("{lower}: it has no sectors we can address")));
                }
                let part = match lower.partition {
                    Some(number) => Some(partition::find(&*disk, &lower, number).await?),
                    None => None,
                };
                Ok(Stack { leaf: Leaf::Lower(disk), part })
            }
        }
    }

    /// Hears when its size or its life changes from now on; none if they never do.
    pub fn changes(&self) -> Option<Listener> {
        match &self.leaf {
            Leaf::Ram(_) => None,
            Leaf::Lower(disk) => Some(disk.changed.listen()),
        }
    }

    /// Whether its content is gone when it is closed.
    pub fn is_volatile(&self) -> bool {
        matches!(self.leaf, Leaf::Ram(_))
    }

    /// Whether the store below went away for good.
    pub fn is_over(&self) -> bool {
        matches!(&self.leaf, Leaf::Lower(disk) if disk.life() == Life::Over)
    }

    fn start(&self) -> u64 {
        self.part.map_or(0, |part| part.start)
    }
}

impl<X: Xen> Device for Stack<X> {
    fn info(&self) -> Info {
        let info = match &self.leaf {
            Leaf::Ram(disk) => disk.info(),
            Leaf::Lower(disk) => disk.info(),
        };
        Info { sectors: self.part.map_or(info.sectors, |part| part.sectors), ..info }
    }

    async fn take(&self, sector: u64, shape: impl ExactSizeIterator<Item = (u8, u8)>, into: &mut Vec<Piece>) {
        let sector = self.start() + sector;
        match &self.leaf {
            Leaf::Ram(disk) => disk.take(sector, shape, into).await,
            Leaf::Lower(disk) => disk.take(sector, shape, into).await,
        }
    }

    fn give(&self, pieces: &mut Vec<Piece>) {
        match &self.leaf {
            Leaf::Ram(disk) => disk.give(pieces),
            Leaf::Lower(disk) => disk.give(pieces),
        }
    }

    async fn submit(&self, op: Op<'_>, sector: u64) -> Result<(), Error> {
        within(sector, op.sectors(), self.info().sectors)?;
        let sector = self.start() + sector;
        match &self.leaf {
            Leaf::Ram(disk) => disk.submit(op, sector).await,
            Leaf::Lower(disk) => disk.submit(op, sector).await,
        }
    }
}
