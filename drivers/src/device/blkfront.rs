//! A lower disk: a frontend of our own, as the toolstack gave it to this domain (`disk=` of its configuration).
//!
//! It connects when its backend is there, follows the backend when the disk grows, and lets go in the order that
//! keeps pages out of a backend's hands: nothing new, what is in flight answered, Closed said on both sides, then the
//! ring ends.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, OnceCell, RefCell};
use core::time::Duration;

use embassy_futures::select::{Either, select};
use protocol::blkif::{INFO_READONLY, Way, keys};
use protocol::mem::Memory;
use protocol::number;
use protocol::xenbus::{Front, FrontDo, FrontSeen, State};
use protocol::xenstore::Reason;
use xen::domain::Domain;
use xen::limits::{MEMORY_FOR_RINGS, PAGES_PER_LOWER, PAGES_RESERVED_PER_LOWER, RING_ORDER, SEGMENTS_INDIRECT};
use xen::page::PAGE_BYTES;
use xen::patience::Patience;
use xen::pool::{NoPool, Pool};
use xen::port::{DomId, Xen};
use xen::store;
use xen::sync::Bell;

use super::link::{Link, Offer};
use crate::disk::{
    Device, Discard, End, Error, Info, Op, Piece, SECTOR_BYTES, SECTORS_MAX, SECTORS_PER_PAGE, Store, within,
};

/// Refusals in a row after which a backend that may not be seen is none.
const HIDDEN: u32 = 3;

/// How long a closing backend may take to answer what is in flight before we say Closed all the same.
const DRAIN: Duration = Duration::from_secs(30);

/// Where a lower disk is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// The backend is not there yet.
    Connecting,
    /// It works.
    Ready,
    /// It is over; a disk of the same name that comes later is another one.
    Over,
}

/// The disk.
pub struct Blkfront<X: Xen> {
    domain: Rc<Domain<X>>,
    store: store::Store<X>,
    device: u32,
    /// Our directory, relative to our own home.
    home: String,
    link: RefCell<Option<Rc<Link<X>>>>,
    pool: OnceCell<Rc<Pool<X>>>,
    info: Cell<Info>,
    life: Cell<Life>,
    ended: Cell<bool>,
    /// Times in a row that xenstored refused to tell the backend's state.
    hidden: Cell<u32>,
    /// Rung when its life or its size changed.
    pub changed: Bell,
}

impl<X: Xen> Blkfront<X> {
    /// A disk that is not connected yet; [`run`](Blkfront::run) does that.
    pub fn new(domain: &Rc<Domain<X>>, store: &store::Store<X>, device: u32) -> Rc<Self> {
        let info = Info {
            sectors: 0,
            physical_bytes: SECTOR_BYTES as u32,
            read_only: true,
            flush: false,
            discard: None,
            grows: false,
        };
        Rc::new(Blkfront {
            domain: domain.clone(),
            store: store.clone(),
            device,
            home: format!("device/vbd/{device}"),
            link: RefCell::default(),
            pool: OnceCell::new(),
            info: Cell::new(info),
            life: Cell::new(Life::Connecting),
            ended: Cell::new(false),
            hidden: Cell::new(0),
            changed: Bell::default(),
        })
    }

    /// Its device number.
    pub fn device(&self) -> u32 {
        self.device
    }

    /// Where it is in its life.
    pub fn life(&self) -> Life {
        self.life.get()
    }

    /// Whether it has let go of everything, so that another disk of its name may begin.
    pub fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Waits until it is ready or over.
    pub async fn settled(&self) {
        let mut changed = self.changed.listen();
        while self.life() == Life::Connecting {
            changed.wait().await;
        }
    }

    fn set_life(&self, life: Life) {
        self.life.set(life);
        self.changed.ring();
    }

    /// Looks after the disk as long as it lives. One task runs this.
    pub async fn run(self: Rc<Self>) {
        let patience = Patience::default();
        if let Some((backend, id)) = self.meet(&patience).await {
            let mut front = Front::new();
            while let Err(reason) = self.live(&backend, id, &mut front, &patience).await {
                // What is under way goes on: it needs no xenstore, and the backend may still write to its pages.
                log::error!("lower disk {}: xenstore: {reason:?}", self.device);
                self.domain.sleep(patience.next()).await;
            }
        }
        self.let_go();
        self.ended.set(true);
        self.set_life(Life::Over);
        log::info!("lower disk {} is gone", self.device);
    }

    /// The backend's directory and its domain; none if our own directory does not say, or is gone already.
    async fn meet(&self, patience: &Patience) -> Option<(String, DomId)> {
        loop {
            let names = async {
                let backend = self.store.read(&format!("{}/backend", self.home)).await?;
                Ok::<_, Reason>((backend, self.store.read(&format!("{}/backend-id", self.home)).await?))
            };
            match names.await {
                Ok((backend, id)) => return number::u16(&id).map(|id| (backend, DomId(id))),
                Err(Reason::NoEntry | Reason::Invalid) => return None,
                Err(reason) => log::error!("lower disk {}: xenstore: {reason:?}", self.device),
            }
            self.domain.sleep(patience.next()).await;
        }
    }

    /// Follows both ends through their states. An error of xenstore ends this, and it is to be called again with `front`
    /// as it is.
    async fn live(
        self: &Rc<Self>,
        backend: &str,
        id: DomId,
        front: &mut Front,
        patience: &Patience,
    ) -> Result<(), Reason> {
        let state = format!("{backend}/state");
        let watch = self.store.watch(&state, &state).await?;
        loop {
            let own = self.state(&format!("{}/state", self.home)).await?;
            let back = self.theirs(&state).await?;
            match front.step(FrontSeen { own, back }) {
                FrontDo::Nothing => {}
                FrontDo::Connect => match self.connect(backend, id).await? {
                    true => front.offered(),
                    false => return self.say(State::Closed).await,
                },
                FrontDo::Connected => {
                    self.info.set(self.read_info(backend).await?);
                    self.say(State::Connected).await?;
                    front.connected();
                    self.set_life(Life::Ready);
                    log::info!("lower disk {} is ready: {}", self.device, self.info.get());
                }
                FrontDo::Resized => {
                    self.info.set(self.read_info(backend).await?);
                    self.changed.ring();
                }
                FrontDo::Close => {
                    // A backend that has begun anew has forgotten our ring and answers nothing more.
                    let forgotten = matches!(back, Some(State::Initialising | State::InitWait));
                    return self.close(&state, forgotten).await;
                }
                // The directory is another disk's already; its own task begins once this one is over.
                FrontDo::Restart => return Ok(()),
            }
            patience.reset();
            let link = self.link.borrow().clone();
            match link {
                // The signal was heard, but the close met an error.
                Some(link) if link.is_distrusted() => return self.close(&state, true).await,
                Some(link) => {
                    if let Either::Second(()) = select(watch.next(), link.broken.wait()).await {
                        return self.close(&state, true).await;
                    }
                }
                None => drop(watch.next().await),
            }
        }
    }

    /// Says our state, unless our directory is gone: writing there would bring half of it back.
    async fn say(&self, state: State) -> Result<(), Reason> {
        let node = format!("{}/state", self.home);
        match self.state(&node).await? {
            Some(_) => self.store.write(&node, state.text()).await,
            None => Ok(()),
        }
    }

    async fn state(&self, node: &str) -> Result<Option<State>, Reason> {
        Ok(self.store.read_if_there(node).await?.map(State::parse))
    }

    /// The backend's state. Where a directory is gone whose parent we may not read, xenstored does not say so: it refuses to
    /// tell. That is what an error that passes looks like too, so it has to say it some times in a row.
    async fn theirs(&self, node: &str) -> Result<Option<State>, Reason> {
        let hidden = self.hidden.take();
        match self.state(node).await {
            Err(Reason::Access) if hidden + 1 < HIDDEN => {
                self.hidden.set(hidden + 1);
                Err(Reason::Access)
            }
            Err(Reason::Access) => {
                self.hidden.set(hidden);
                Ok(None)
            }
            state => state,
        }
    }

    /// A number in the backend's directory; absent or nonsense is `None`.
    async fn number(&self, backend: &str, key: &str) -> Result<Option<u64>, Reason> {
        let text = self.store.read_if_there(&format!("{backend}/{key}")).await?;
        Ok(text.and_then(number::u64))
    }

    /// The pages of all requests to this disk: no other disk's requests wait for them, and none ever uses a page that
    /// this disk's backend may still write to. Fewer where they would leave too little memory for rings: a disk that nobody
    /// can use is not faster.
    fn lend(&self, backend: DomId) -> Result<Rc<Pool<X>>, NoPool> {
        let mut pages = PAGES_PER_LOWER;
        let is_short = || self.domain.memory.promise(MEMORY_FOR_RINGS).is_none();
        loop {
            match Pool::new(&self.domain, backend, pages, PAGES_RESERVED_PER_LOWER) {
                Ok(_) if is_short() && pages / 2 >= usize::from(SEGMENTS_INDIRECT) => pages /= 2,
                Err(NoPool::Memory) if pages / 2 >= usize::from(SEGMENTS_INDIRECT) => pages /= 2,
                pool => return Ok(Rc::new(pool?)),
            }
        }
    }

    /// Lays out a ring and offers it; false if there is no memory or no grant for it.
    async fn connect(self: &Rc<Self>, backend: &str, id: DomId) -> Result<bool, Reason> {
        if self.link.borrow().is_some() {
            // All was written but our state.
            self.say(State::Initialised).await?;
            return Ok(true);
        }
        let order = self.number(backend, keys::MAX_RING_PAGE_ORDER).await?.unwrap_or(0).min(u64::from(RING_ORDER));
        let indirect = self.number(backend, keys::FEATURE_MAX_INDIRECT_SEGMENTS).await?.unwrap_or(0);
        let offer = Offer {
            backend: id,
            // The device number's low half, as Linux sends it; a backend knows the disk by its ring.
            handle: self.device as u16,
            pages: 1 << order,
            segments_indirect: indirect.min(u64::from(u32::MAX)) as u32,
        };
        let link = self.lend(id).and_then(|pool| Ok((Link::new(&self.domain, pool.clone(), offer)?, pool)));
        let (link, pool) = match link {
            Ok((link, pool)) => (Rc::new(link), pool),
            Err(no) => {
                log::error!("lower disk {}: no ring: {no:?}", self.device);
                return Ok(false);
            }
        };
        let refs: Vec<u32> = link.ring_refs().collect();
        let write = async |store: &store::Store<X>| {
            if let [only] = refs[..] {
                store.write(&format!("{}/{}", self.home, keys::RING_REF), &number::text(only.into())).await?;
            } else {
                for (i, ring_ref) in refs.iter().enumerate() {
                    let key = format!("{}/{}{i}", self.home, keys::RING_REF);
                    store.write(&key, &number::text((*ring_ref).into())).await?;
                }
                let key = format!("{}/{}", self.home, keys::RING_PAGE_ORDER);
                store.write(&key, &number::text(order)).await?;
            }
            let key = format!("{}/{}", self.home, keys::EVENT_CHANNEL);
            store.write(&key, &number::text(link.port().into())).await?;
            store.write(&format!("{}/{}", self.home, keys::PROTOCOL), keys::PROTOCOL_X86_64).await?;
            store.write(&format!("{}/{}", self.home, keys::FEATURE_PERSISTENT), "1").await
        };
        self.store.transaction(write).await?;
        assert!(self.pool.set(pool).is_ok(), "a lower disk connects once in its life");
        self.link.replace(Some(link.clone()));
        let task = link.clone();
        self.domain.exec.spawn(async move { task.run().await });
        self.say(State::Initialised).await?;
        Ok(true)
    }

    async fn read_info(&self, backend: &str) -> Result<Info, Reason> {
        let number = async |key, absent| Ok::<_, Reason>(self.number(backend, key).await?.unwrap_or(absent));
        // What no disk can have is as little a size as a word would be.
        let sectors = Some(number(keys::SECTORS, 0).await?).filter(|sectors| *sectors <= SECTORS_MAX).unwrap_or(0);
        let sector_bytes = number(keys::SECTOR_SIZE, 512).await?;
        let physical = number(keys::PHYSICAL_SECTOR_SIZE, sector_bytes).await?;
        let discard = match number(keys::FEATURE_DISCARD, 0).await? {
            0 => None,
            _ => Some(Discard {
                granularity_bytes: number(keys::DISCARD_GRANULARITY, sector_bytes).await?.try_into().unwrap_or(0),
                alignment_bytes: number(keys::DISCARD_ALIGNMENT, 0).await?.try_into().unwrap_or(0),
            }),
        };
        let discard = discard.filter(|d| d.granularity_bytes >= 512 && d.granularity_bytes.is_power_of_two());
        if sector_bytes != SECTOR_BYTES as u64 {
            log::error!("lower disk {}: blocks of {sector_bytes} bytes are not supported, only 512", self.device);
        }
        Ok(Info {
            // A disk whose blocks we cannot address is shown as empty, and cannot be opened.
            sectors: if sector_bytes == SECTOR_BYTES as u64 { sectors } else { 0 },
            physical_bytes: u32::try_from(physical).ok().filter(|n| n.is_power_of_two() && *n >= 512).unwrap_or(512),
            read_only: number(keys::INFO, 0).await? & u64::from(INFO_READONLY) != 0,
            flush: number(keys::FEATURE_FLUSH_CACHE, 0).await? != 0,
            discard,
            grows: false,
        })
    }

    /// Lets go in order, see the head of this file. From a hopeless backend no answer to what is in flight is awaited
    /// before it is told that we go; that fails once the backend has gone too.
    async fn close(&self, their_state: &str, hopeless: bool) -> Result<(), Reason> {
        self.set_life(Life::Over);
        let link = self.link.borrow().clone();
        let Some(link) = link else { return self.say(State::Closed).await };
        link.stop();
        self.say(State::Closing).await?;
        let watch = self.store.watch(their_state, their_state).await?;
        let (mut said, patience) = (false, self.domain.xen.now() + DRAIN);
        loop {
            // Our own directory made anew is the next disk's; what we say is not for it.
            let own = self.state(&format!("{}/state", self.home)).await?;
            let theirs = self.theirs(their_state).await?;
            if matches!(theirs, None | Some(State::Closed)) || own == Some(State::Initialising) {
                return match own {
                    Some(State::Initialising) => Ok(()),
                    _ => self.say(State::Closed).await,
                };
            }
            let late = self.domain.xen.now() >= patience;
            if !said && (link.in_flight() == 0 || hopeless || link.is_distrusted() || late) {
                said = true;
                self.say(State::Closed).await?;
            }
            // Answers come by event, not by xenstore: while some are due the clock looks.
            let due = async {
                match said {
                    true => core::future::pending().await,
                    false => self.domain.sleep(Duration::from_millis(20)).await,
                }
            };
            select(watch.next(), due).await;
        }
    }

    fn let_go(&self) {
        if let Some(link) = self.link.take() {
            link.end();
        }
    }

    /// The pages for a transfer that [`begin`](Blkfront::begin) can begin here and now, one for each of `shape` as with
    /// [`take`](Device::take), `sectors` in all. False, and none is taken, where something has to be waited for, or is wrong.
    pub fn take_now(
        &self,
        way: Way,
        sector: u64,
        sectors: u64,
        mut shape: impl ExactSizeIterator<Item = (u8, u8)>,
        into: &mut Vec<Piece>,
    ) -> bool {
        let info = self.info.get();
        let allowed = within(sector, sectors, info.sectors).is_ok() && !(way == Way::Write && info.read_only);
        let free = self.link.borrow().as_ref().is_some_and(|link| link.is_free(shape.len()));
        allowed
            && free
            && self.pool().take_now(shape.len(), |page| {
                let (first, sectors) = shape.next().expect("as many as it said");
                into.push(Piece { page, first, sectors });
            })
    }

    /// Begins to move the pieces of [`take_now`](Blkfront::take_now), in the same moment and for the same place. Until its end
    /// is told the backend may own them.
    pub fn begin(&self, way: Way, pieces: &[Piece], sector: u64, end: End) {
        let link = self.link.borrow();
        link.as_ref().expect("it was free just now").begin(way, pieces, sector, end)
    }

    fn pool(&self) -> &Pool<X> {
        self.pool.get().expect("a disk is opened only after it was connected")
    }
}

impl<X: Xen> Device for Blkfront<X> {
    fn info(&self) -> Info {
        self.info.get()
    }

    async fn take(&self, _: u64, shape: impl ExactSizeIterator<Item = (u8, u8)>, into: &mut Vec<Piece>) {
        let n = shape.len();
        let mut shape = shape;
        self.pool()
            .take(n, |page| {
                let (first, sectors) = shape.next().expect("as many as it said");
                into.push(Piece { page, first, sectors });
            })
            .await
    }

    fn give(&self, pieces: &mut Vec<Piece>) {
        let pool = self.pool();
        pieces.iter().for_each(|piece| pool.put(&piece.page));
        pieces.clear();
    }

    async fn submit(&self, op: Op<'_>, sector: u64) -> Result<(), Error> {
        let info = self.info.get();
        within(sector, op.sectors(), info.sectors)?;
        match op {
            Op::Write(_) | Op::Discard { .. } if info.read_only => return Err(Error::ReadOnly),
            Op::Discard { .. } if info.discard.is_none() => return Err(Error::Unsupported),
            // Without a cache every answered write is durable.
            Op::Flush if !info.flush => return Ok(()),
            _ => {}
        }
        let link = self.link.borrow().clone();
        link.ok_or(Error::Gone)?.submit(op, sector).await
    }
}

/// Pages of the reserve that one request of metadata uses at most.
const PAGES_AT_ONCE: usize = PAGES_RESERVED_PER_LOWER / 4;

impl<X: Xen> Blkfront<X> {
    /// Pages of the reserve for that many sectors.
    async fn reserve(&self, sectors: usize) -> Vec<Piece> {
        let (mut pieces, mut left) = (Vec::new(), sectors);
        let page = usize::from(SECTORS_PER_PAGE);
        let each = |page_ref| {
            let here = left.min(page);
            left -= here;
            pieces.push(Piece { page: page_ref, first: 0, sectors: here as u8 });
        };
        self.pool().take_reserved(sectors.div_ceil(page), each).await;
        pieces
    }
}

impl<X: Xen> Store for Blkfront<X> {
    async fn load(&self, mut sector: u64, bytes: &mut [u8]) -> Result<(), Error> {
        for part in bytes.chunks_mut(PAGES_AT_ONCE * PAGE_BYTES) {
            let mut pieces = self.reserve(part.len() / SECTOR_BYTES).await;
            let result = self.submit(Op::Read(&pieces), sector).await;
            if result.is_ok() {
                pieces.iter().zip(part.chunks_mut(PAGE_BYTES)).for_each(|(piece, bytes)| piece.page.read(0, bytes));
            }
            self.give(&mut pieces);
            result?;
            sector += (part.len() / SECTOR_BYTES) as u64;
        }
        Ok(())
    }

    async fn save(&self, mut sector: u64, bytes: &[u8]) -> Result<(), Error> {
        for part in bytes.chunks(PAGES_AT_ONCE * PAGE_BYTES) {
            let mut pieces = self.reserve(part.len() / SECTOR_BYTES).await;
            pieces.iter().zip(part.chunks(PAGE_BYTES)).for_each(|(piece, bytes)| piece.page.write(0, bytes));
            let result = self.submit(Op::Write(&pieces), sector).await;
            self.give(&mut pieces);
            result?;
            sector += (part.len() / SECTOR_BYTES) as u64;
        }
        Ok(())
    }

    async fn zero(&self, mut sector: u64, mut sectors: u64) -> Result<(), Error> {
        within(sector, sectors, self.info.get().sectors)?;
        // A few pages of zeroes are as good as many, but not one: Xen maps a grant no more than some 128 times at once, and a
        // backend maps each segment.
        let mut pages = self.reserve(PAGES_AT_ONCE * usize::from(SECTORS_PER_PAGE)).await;
        pages.iter().for_each(|piece| piece.page.zero(0, PAGE_BYTES));
        let mut result = Ok(());
        while sectors > 0 && result.is_ok() {
            let (mut pieces, begin) = (Vec::new(), sectors);
            for page in pages.iter().cycle().take(SEGMENTS_INDIRECT.into()) {
                let here = sectors.min(u64::from(SECTORS_PER_PAGE));
                if here > 0 {
                    pieces.push(Piece { sectors: here as u8, ..page.clone() });
                }
                sectors -= here;
            }
            result = self.submit(Op::Write(&pieces), sector).await;
            sector += begin - sectors;
        }
        self.give(&mut pages);
        result
    }
}
