//! One disk of one guest: the handshake through xenstore, from the directory's first sight to its removal.
//!
//! What to do is decided by [`protocol::xenbus::Back`] from what the nodes say now; how it is done is here. Requests
//! go through [`queue`](crate::queue) meanwhile, in a task of their own.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::Poll;
use core::time::Duration;
use protocol::errno::Errno;

use drivers::disk::Device;
use drivers::disk::{Info, SECTOR_BYTES};
use drivers::target::{OpenError, Quoted};
use embassy_futures::select::select;
use log::Level;
use protocol::blkif::{INFO_CDROM, INFO_READONLY, Layout, keys};
use protocol::number;
use protocol::session::State as Stands;
use protocol::xenbus::{Back, Do, Phase, Seen, State};
use protocol::xenstore::{Reason, valid_path};
use xen::kept::Kept;
use xen::limits::{MEMORY_PER_RING, QUEUES, RING_ORDER, SEGMENTS_INDIRECT};
use xen::memory::Promise;
use xen::patience::Patience;
use xen::port::{Instant, Xen};
use xen::store::{Nodes, Store, Watch};
use xen::sync::Signal;
use xen::trace::{self, Event};

use crate::Shared;
use crate::attach::Key;
use crate::minor::{By, Minor, User};
use crate::queue::{self, Handle, NoRing, Offer, Ring, Whose};
use crate::quiet::Quiet;
use crate::request::Desk;
use crate::seat::{self, Terms};

/// How long a state stands that libxl waits for: InitWait of a new disk before Connected, Closed before the directory
/// goes. libxl reads our state some time after its watch fired, and takes a disk that it did not see in that state for a
/// failed one; nothing tells us when it has looked.
const DWELL: Duration = Duration::from_millis(500);

/// A disk.
pub struct Vbd<X: Xen> {
    shared: Rc<Shared<X>>,
    key: Key,
    /// Its directory, relative to our own home.
    home: String,
    /// The frontend's directory.
    front: String,
    back: Back,
    nodes: Nodes<X>,
    minor: Option<User<X>>,
    /// Its rings.
    queues: Vec<Rc<Handle>>,
    /// How many were offered.
    queues_max: u32,
    lines: Quiet,
    /// The toolstack has just made the directory, and waits for InitWait.
    begun: bool,
    /// Why we gave up, as long as xenstore has not taken it.
    untold: Option<OpenError>,
    /// Until when to say InitWait.
    dwell: Option<Instant>,
    /// The size the guest was told, while connected.
    sectors: u64,
}

/// What ended a step other than its success.
enum Trouble {
    /// Xenstore said no.
    Store(Reason),
    /// This disk cannot be served; the text goes to who asked for it.
    Fatal(OpenError),
}

impl From<Reason> for Trouble {
    fn from(reason: Reason) -> Self {
        Trouble::Store(reason)
    }
}

fn fatal(errno: Errno, text: impl Into<String>) -> Trouble {
    Trouble::Fatal(OpenError::new(errno, text))
}

fn refused(what: &str) -> Trouble {
    fatal(Errno::EINVAL, format!("the frontend's {what}"))
}

/// Serves the disk of this directory until the directory is gone. `changed` is raised when something below it changed.
pub async fn run<X: Xen>(shared: &Rc<Shared<X>>, key: Key, changed: &Signal) -> Result<(), Reason> {
    let mut vbd = Vbd {
        shared: shared.clone(),
        key,
        home: format!("{key}"),
        front: String::new(),
        back: Back::new(),
        nodes: Nodes::new(&shared.domain),
        minor: None,
        queues: Vec::new(),
        queues_max: 1,
        lines: Quiet::new(shared.domain.xen.now()),
        begun: false,
        untold: None,
        dwell: None,
        sectors: 0,
    };
    let result = vbd.live(changed).await;
    if let Err(reason) = result {
        let error = OpenError::new(Errno::EIO, format!("xenstore: {reason:?}"));
        log::error!("{key}: {error}");
        shared.errors.tell(&shared.store, key, &error).await;
        vbd.let_go().await;
    }
    result
}

impl<X: Xen> Vbd<X> {
    async fn live(&mut self, changed: &Signal) -> Result<(), Reason> {
        let Some(watch) = self.meet(changed).await? else { return Ok(()) };
        self.note(Event::Found);
        let patience = Patience::default();
        loop {
            match self.step(&watch, changed).await {
                Ok(true) => return Ok(()),
                Ok(false) => patience.reset(),
                // Every step is made again from what the nodes say then. The guest is served meanwhile: it is not to
                // blame, and its requests need no xenstore.
                Err(reason) => {
                    let error = OpenError::new(Errno::EIO, format!("xenstore: {reason:?}"));
                    self.say_log(Level::Error, format_args!("{error}"));
                    self.shared.errors.tell(&self.shared.store, self.key, &error).await;
                    let moved = poll_fn(|cx| match watch.poll(cx).is_ready() | changed.poll(cx).is_ready() {
                        true => Poll::Ready(()),
                        false => Poll::Pending,
                    });
                    select(moved, self.shared.domain.sleep(patience.next())).await;
                }
            }
        }
    }

    /// Does what is due; true once the disk is gone.
    async fn step(&mut self, watch: &Watch<X>, changed: &Signal) -> Result<bool, Reason> {
        let seen = self.look().await?;
        let step = self.back.step(seen);
        self.begun = seen.own == Some(State::Initialising);
        match step {
            Do::Nothing => match self.untold.take() {
                Some(error) => self.give_up(error).await?,
                None => self.wait(watch, changed).await?,
            },
            Do::Forget | Do::Remove => return self.leave(step == Do::Remove).await.map(|()| true),
            _ => {
                self.untold = None;
                let result = self.act(step).await;
                self.judge(result).await?
            }
        }
        Ok(false)
    }

    /// Waits until the directory is whole, and begins to watch the frontend; none if the directory went first.
    async fn meet(&mut self, changed: &Signal) -> Result<Option<Watch<X>>, Reason> {
        let store = self.shared.store.clone();
        loop {
            if store.read_if_there(&self.node(keys::STATE)).await?.is_none() {
                return Ok(None);
            }
            // Not every toolstack writes a directory in one transaction; without `online` it would look abandoned.
            let whole = store.read_if_there(&self.node(keys::ONLINE)).await?.is_some();
            if let Some(front) = store.read_if_there(&self.node(keys::FRONTEND)).await?.filter(|_| whole)
                && front.starts_with('/')
                && valid_path(&front)
            {
                // One watch for all the disks of a guest: xenstored allows a domain about a hundred.
                let (parent, _) =
                    front.rsplit_once('/').filter(|(parent, _)| !parent.is_empty()).ok_or(Reason::Invalid)?;
                let watch = store.watch(parent, &front).await?;
                self.front = front;
                return Ok(Some(watch));
            }
            changed.wait().await;
        }
    }

    fn node(&self, key: &str) -> String {
        format!("{}/{key}", self.home)
    }

    async fn look(&self) -> Result<Seen, Reason> {
        let store = &self.shared.store;
        let own = store.read_if_there(&self.node(keys::STATE)).await?.map(State::parse);
        let front = match store.read(&format!("{}/{}", self.front, keys::STATE)).await {
            Ok(text) => Some(State::parse(text)),
            // A frontend that hides its state, or writes nonsense into it, is as good as gone.
            Err(Reason::NoEntry | Reason::Access) => None,
            Err(Reason::Invalid) => Some(State::Unknown),
            Err(reason) => return Err(reason),
        };
        let online = store.read_if_there(&self.node(keys::ONLINE)).await?.as_deref() == Some("1");
        Ok(Seen { own, front, online })
    }

    /// Waits until one of those moves whose word the next step depends on.
    async fn wait(&mut self, watch: &Watch<X>, changed: &Signal) -> Result<(), Reason> {
        let connected = self.back.phase() == Phase::Connected;
        let (queues, minor) =
            (self.queues.clone(), self.minor.as_ref().filter(|_| connected).map(|user| Rc::clone(user)));
        let mut moved = minor.as_ref().map(|minor| minor.changed.listen());
        let life = queues.first().map(|queue| queue.life);
        if let Some(minor) = minor.as_ref().filter(|minor| life.is_some_and(|life| life != minor.life())) {
            // Its ring stays for the guest to close in order; what it asks meanwhile gets errors.
            return self.give_up(OpenError::new(Errno::ENODEV, format!("minor {} was closed", minor.number()))).await;
        }
        let stack = minor.as_ref().zip(life).and_then(|(minor, life)| minor.stack(life));
        let mut changes = stack.as_ref().and_then(|stack| stack.changes());
        if let Some(stack) = &stack
            && stack.info().sectors != self.sectors
        {
            return self.resize(stack.info()).await;
        }
        // Who waits holds no image: another may be opened in its place.
        drop(stack);
        let broken = poll_fn(|cx| {
            // All are asked: each must know whom to wake.
            if queues.iter().filter(|queue| queue.broken.poll(cx).is_ready()).count() > 0 {
                return Poll::Ready(true);
            }
            let nodes = watch.poll(cx).is_ready() | changed.poll(cx).is_ready();
            let image = moved.as_mut().is_some_and(|moved| moved.poll(cx).is_ready());
            let store = changes.as_mut().is_some_and(|changes| changes.poll(cx).is_ready());
            if nodes || image || store { Poll::Ready(false) } else { Poll::Pending }
        })
        .await;
        if broken {
            self.note(Event::Overrun);
            let result = Err(fatal(Errno::EINVAL, "the ring's index is more than a ring ahead"));
            return self.judge(result).await;
        }
        let stack = minor.as_ref().zip(life).and_then(|(minor, life)| minor.stack(life));
        if stack.is_some_and(|stack| stack.is_over()) {
            self.say_log(Level::Error, format_args!("the disk below is gone; requests fail from now on"));
        }
        Ok(())
    }

    async fn act(&mut self, step: Do) -> Result<(), Trouble> {
        match step {
            Do::Nothing | Do::Remove | Do::Forget => Ok(()),
            Do::Publish => self.publish().await,
            Do::Connect => self.connect().await,
            Do::Reconnect => {
                self.let_go().await;
                self.connect().await
            }
            Do::Restart => {
                self.let_go().await;
                // What a message closed may be used elsewhere now: a message opens it again, or a toolstack that makes
                // the directory anew, and no guest.
                let is_closed = self.minor.as_ref().is_some_and(|minor| minor.state() == Stands::Closed);
                if self.begun || !is_closed {
                    self.minor = None;
                }
                self.publish().await
            }
            Do::AnswerClosing => {
                self.say(State::Closing, Vec::new()).await?;
                self.back.closing();
                Ok(())
            }
            Do::Close => {
                self.let_go().await;
                self.say(State::Closed, Vec::new()).await?;
                self.back.closed();
                Ok(())
            }
        }
    }

    /// A step that failed for good is told and ends in Closing while there is a frontend to answer that, else in
    /// Closed. That the directory went in the middle of a step is no failure.
    async fn judge(&mut self, result: Result<(), Trouble>) -> Result<(), Reason> {
        match result {
            Ok(()) | Err(Trouble::Store(Reason::NoEntry)) => Ok(()),
            Err(Trouble::Store(reason @ (Reason::NoSpace | Reason::Quota | Reason::TooBig))) => {
                let text = format!("xenstore quota of this domain: {reason:?}; see the quotas of xenstored");
                self.refuse(OpenError::new(Errno::ENOSPC, text)).await
            }
            Err(Trouble::Store(reason)) => Err(reason),
            Err(Trouble::Fatal(error)) => self.refuse(error).await,
        }
    }

    async fn refuse(&mut self, error: OpenError) -> Result<(), Reason> {
        self.let_go().await;
        self.give_up(error).await
    }

    /// Says that the disk cannot be served any more, and why.
    async fn give_up(&mut self, error: OpenError) -> Result<(), Reason> {
        self.note(Event::Refused);
        self.say_log(Level::Error, format_args!("{error}"));
        self.shared.errors.tell(&self.shared.store, self.key, &error).await;
        let closing = self.back.phase() == Phase::Connected;
        let state = if closing { State::Closing } else { State::Closed };
        // The text goes first, so that who wakes by the state finds it; but the state is what must be said, also when
        // the quota leaves no room for a text.
        let text = vec_of([(keys::HOTPLUG_ERROR, error.text.clone())]);
        for (state, nodes) in [(None, text), (Some(state), Vec::new())] {
            match self.say(state, nodes).await {
                Ok(_) | Err(Reason::NoEntry | Reason::NoSpace | Reason::Quota | Reason::TooBig) => {}
                Err(reason) => {
                    self.untold = Some(error);
                    return Err(reason);
                }
            }
        }
        if closing {
            self.back.closing()
        } else {
            self.back.closed()
        }
        Ok(())
    }

    /// Opens the disk and says what we offer.
    async fn publish(&mut self) -> Result<(), Trouble> {
        if self.minor.is_none() {
            self.minor = Some(self.open().await?);
        }
        let mut nodes = vec_of([
            (keys::MAX_RING_PAGE_ORDER, RING_ORDER.to_string()),
            (keys::FEATURE_MAX_INDIRECT_SEGMENTS, SEGMENTS_INDIRECT.to_string()),
        ]);
        // A vCPU each; where all rings would be served by one, several are of no use.
        let shared_out = self.minor.as_ref().is_some_and(|minor| minor.disk().is_some());
        self.queues_max = if shared_out { self.shared.crew.vcpus().min(QUEUES) as u32 } else { 1 };
        // Also where it is one: another image may have been offered in this directory before.
        if self.shared.crew.vcpus() > 1 {
            nodes.push((keys::MULTI_QUEUE_MAX_QUEUES, self.queues_max.to_string()));
        }
        if self.say(State::InitWait, nodes).await? {
            self.back.published();
            self.note(Event::Published);
            self.say_log(Level::Info, format_args!("offered to its guest"));
            self.dwell = self.begun.then(|| self.shared.domain.xen.now() + DWELL);
        }
        Ok(())
    }

    /// Opens the image that the directory names, under a minor of its own; or finds the minor that it names.
    async fn open(&self) -> Result<User<X>, Trouble> {
        let store = &self.shared.store;
        let id = store.read_if_there(&self.node(keys::FRONTEND_ID)).await?;
        if id.as_deref().and_then(number::u16) != Some(self.key.domain.0) {
            return Err(fatal(Errno::EINVAL, "frontend-id is not the domain of the directory's name"));
        }
        let name = match store.read(&self.node(keys::PARAMS)).await {
            Ok(name) => name,
            Err(Reason::NoEntry) => return Err(fatal(Errno::EINVAL, "no target: the node params is missing")),
            Err(Reason::Invalid) => return Err(fatal(Errno::EINVAL, "target: not text")),
            Err(reason) => return Err(reason.into()),
        };
        let minors = &self.shared.minors;
        let user = match name.strip_prefix("minor:") {
            Some(number) => {
                let minor = number::u16(number).and_then(|number| minors.get(number));
                let none = || fatal(Errno::ENODEV, format!("target \"{}\": there is no such minor", Quoted(&name)));
                minor.ok_or_else(none)?.used()
            }
            None => {
                let user = minors.attach(None, By::Directory(self.key)).map_err(Trouble::Fatal)?.used();
                user.open(&self.shared.lowers, &name, false).await.map_err(Trouble::Fatal)?;
                user
            }
        };
        while user.state() == Stands::Opening {
            user.moved(Stands::Opening).await;
        }
        let Some(info) = user.info().filter(|_| user.is_servable()) else {
            let text = format!("target \"{}\": no image is open under this minor", Quoted(&name));
            return Err(fatal(Errno::ENODEV, text));
        };
        self.note(Event::Opened(info.sectors));
        self.say_log(Level::Info, format_args!("\"{}\" opened: {} sectors", Quoted(&name), info.sectors));
        Ok(user)
    }

    /// Takes the frontend's rings, tells the disk's properties, says Connected.
    async fn connect(&mut self) -> Result<(), Trouble> {
        let minor = match &self.minor {
            Some(user) => Rc::clone(user),
            None => return self.publish().await,
        };
        let offers = self.read_rings().await?;
        let memory = &self.shared.domain.memory;
        let promises: Option<Vec<_>> = offers.iter().map(|_| memory.promise(MEMORY_PER_RING)).collect();
        let promises = promises.ok_or_else(|| fatal(Errno::ENOMEM, format!("{memory}")))?;
        let persistent = self.front_text(keys::FEATURE_PERSISTENT).await?.as_deref() == Some("1");
        let closed = || fatal(Errno::ENODEV, format!("minor {} has no image", minor.number()));
        // What is told now is true of this life; that the image is closed while we tell it is seen later by that.
        let (info, life) = (minor.info().filter(|_| minor.is_servable()).ok_or_else(closed)?, minor.life());
        let store = &self.shared.store;
        let mode = store.read_if_there(&self.node(keys::MODE)).await?;
        let read_only = info.read_only || minor.is_read_only() || mode.as_deref() != Some("w");
        let wanted = store.read_if_there(&self.node(keys::DISCARD_ENABLE)).await?.as_deref() != Some("0");
        let info = Info { discard: info.discard.filter(|_| wanted && !read_only), ..info };
        let cdrom = store.read_if_there(&self.node(keys::DEVICE_TYPE)).await?.as_deref() == Some("cdrom");
        let nodes = properties(info, read_only, cdrom);
        let terms = Terms { read_only, discard: info.discard.is_some(), persistent };
        let mut here = Vec::new();
        let mut taken = Ok(());
        for (offer, memory) in offers.into_iter().zip(promises) {
            self.note(Event::Connected(offer.grants.len() as u32));
            taken = self.take_ring(&minor, life, offer, terms, memory, &mut here).await;
            if taken.is_err() {
                break;
            }
        }
        if let Some(dwell) = self.dwell.take().filter(|_| taken.is_ok()) {
            self.shared.domain.timers.sleep(dwell).await;
        }
        let said = match taken {
            Ok(()) => self.say(State::Connected, nodes).await.map_err(Trouble::from),
            Err(no) => Err(refused(&format!("{no}"))),
        };
        if !matches!(said, Ok(true)) {
            // What is served here has not begun; what is served elsewhere has.
            for (handle, ..) in here {
                self.queues.retain(|other| !Rc::ptr_eq(other, &handle));
            }
            self.end_queues().await;
            return said.map(drop);
        }
        let domain = &self.shared.domain;
        for (handle, ring, desk) in here {
            domain.exec.spawn(queue::start(domain.clone(), Rc::new(desk), ring, handle));
        }
        self.sectors = info.sectors;
        self.back.connected();
        let (rings, mode) = (self.queues.len(), if read_only { ", read-only" } else { "" });
        let rings = if rings > 1 { format!(", {rings} rings") } else { String::new() };
        self.say_log(Level::Info, format_args!("connected{mode}{rings}"));
        self.shared.domain.changed.raise();
        Ok(())
    }

    /// Takes a ring, here or on the vCPU whose turn it is. What is taken here is put into `here`, to be served once the
    /// frontend was told.
    async fn take_ring(
        &mut self,
        minor: &Rc<Minor<X>>,
        life: u64,
        offer: Offer,
        terms: Terms,
        memory: Promise,
        here: &mut Vec<(Rc<Handle>, Ring<X>, Desk<X>)>,
    ) -> Result<(), NoRing> {
        let Key { domain: guest, device, .. } = self.key;
        let whose = Whose { guest, device, queue: self.queues.len() as u16, by_message: false, life };
        let handle = Handle::new(whose, offer.grants.len() as u32);
        let shared = &self.shared;
        match if minor.disk().is_some() { shared.rota.next(&shared.crew) } else { 0 } {
            0 => {
                let ring = Ring::take(&shared.domain, guest, &offer.grants, offer.port, offer.layout)?;
                let kept = terms.persistent.then(|| Kept::new(&shared.domain, guest));
                let Terms { read_only, discard, .. } = terms;
                let desk = Desk::new(minor.clone(), handle.clone(), memory, read_only, discard, kept);
                here.push((handle.clone(), ring, desk));
            }
            vcpu => seat::begin(shared, vcpu, minor, &handle, offer, (terms, memory)).await?,
        }
        self.queues.push(handle);
        Ok(())
    }

    /// Reads what the frontend says of its rings.
    async fn read_rings(&self) -> Result<Vec<Offer>, Trouble> {
        let protocol = self.front_text(keys::PROTOCOL).await?;
        let layout = Layout::of_protocol(protocol.as_deref()).ok_or_else(|| refused("protocol is not known"))?;
        let order = self.front_number(keys::RING_PAGE_ORDER).await?;
        if order.is_some_and(|order| order > RING_ORDER) {
            return Err(refused("ring-page-order is more than was offered"));
        }
        let queues = self.front_number(keys::MULTI_QUEUE_NUM_QUEUES).await?.unwrap_or(1);
        if queues == 0 || queues > self.queues_max {
            let text =
                format!("multi-queue-num-queues is not from 1 to {}, the most that was offered", self.queues_max);
            return Err(refused(&text));
        }
        let mut offers = Vec::new();
        for queue in 0..queues {
            let place = if queues == 1 { String::new() } else { format!("queue-{queue}/") };
            offers.push(self.read_ring(&place, layout, order).await?);
        }
        Ok(offers)
    }

    async fn read_ring(&self, place: &str, layout: Layout, order: Option<u32>) -> Result<Offer, Trouble> {
        let port = self.front_number(&format!("{place}{}", keys::EVENT_CHANNEL)).await?;
        let port = port.ok_or_else(|| refused(&format!("{place}event-channel is missing or no number")))?;
        let plain = format!("{place}{}", keys::RING_REF);
        let mut refs = Vec::new();
        match order {
            Some(order) => {
                for page in 0..1 << order {
                    refs.push(self.front_number(&format!("{place}{}", keys::ring_ref(page))).await?);
                }
            }
            None => refs.push(self.front_number(&plain).await?),
        }
        // Linux writes the order only with more than one page, others write order 0 with the plain key.
        if refs == [None] {
            refs = alloc::vec![self.front_number(&plain).await?];
        }
        let grants: Option<Vec<_>> = refs.into_iter().collect();
        let grants = grants.ok_or_else(|| refused(&format!("{place}ring-ref is missing or no number")))?;
        Ok(Offer { grants, port, layout })
    }

    async fn front_text(&self, key: &str) -> Result<Option<String>, Trouble> {
        match self.shared.store.read_if_there(&format!("{}/{key}", self.front)).await {
            Err(Reason::Access | Reason::Invalid) => {
                Err(fatal(Errno::EINVAL, format!("the frontend's {key} cannot be read")))
            }
            text => Ok(text?),
        }
    }

    async fn front_number(&self, key: &str) -> Result<Option<u32>, Trouble> {
        match self.front_text(key).await? {
            None => Ok(None),
            Some(text) => match number::u32(&text) {
                Some(number) => Ok(Some(number)),
                None => Err(fatal(Errno::EINVAL, format!("the frontend's {key} is \"{}\", no number", Quoted(&text)))),
            },
        }
    }

    /// Tells a new size: Linux reads `sectors` again when Connected is said again.
    async fn resize(&mut self, info: Info) -> Result<(), Reason> {
        self.say_log(Level::Info, format_args!("{} sectors instead of {}", info.sectors, self.sectors));
        match self.say(State::Connected, vec_of([(keys::SECTORS, info.sectors.to_string())])).await {
            Ok(_) | Err(Reason::NoEntry) => {}
            Err(reason) => return Err(reason),
        }
        self.sectors = info.sectors;
        Ok(())
    }

    /// Writes nodes and our state, if it changes, in one go. Not done, and false, if the toolstack asked us to close meanwhile and
    /// this would be to go on, or if it made the directory anew, which is another disk; an error if the directory is gone, which a write would bring back as a torso.
    async fn say(&self, state: impl Into<Option<State>>, nodes: Vec<(&'static str, String)>) -> Result<bool, Reason> {
        let state = state.into();
        let node = self.node(keys::STATE);
        let write = async |store: &Store<X>| {
            let own = State::parse(store.read(&node).await?);
            let on = matches!(state, Some(State::InitWait | State::Connected));
            let anew = own == State::Initialising && !self.begun;
            if anew || own == State::Closing && on && !self.closing_is_ours(store).await? {
                return Ok(false);
            }
            for (key, value) in &nodes {
                store.write(&self.node(key), value).await?;
            }
            if let Some(state) = state {
                store.write(&node, state.text()).await?;
            }
            Ok(true)
        };
        let said = self.shared.store.transaction(write).await?;
        if said {
            nodes.iter().for_each(|(key, _)| self.nodes.wrote(key));
        }
        Ok(said)
    }

    /// Whether the Closing in our node is our own word and not the toolstack's: a frontend that begins anew may end it, or
    /// we would begin with it again and again. libxl's comes with `online` 0.
    async fn closing_is_ours(&self, store: &Store<X>) -> Result<bool, Reason> {
        let online = store.read_if_there(&self.node(keys::ONLINE)).await?;
        Ok(self.back.phase() == Phase::Closing && online.as_deref() == Some("1"))
    }

    /// Ends the queues: rings and ports at once, then what is in flight.
    async fn end_queues(&mut self) -> bool {
        self.queues.iter().for_each(|queue| queue.stop());
        for queue in &self.queues {
            queue.ended().await;
        }
        let any = !self.queues.is_empty();
        self.queues.clear();
        any
    }

    async fn let_go(&mut self) {
        if self.end_queues().await {
            self.note(Event::Disconnected(0));
            if let Some(minor) = &self.minor {
                self.say_log(Level::Info, format_args!("disconnected: {}", minor.stats));
                // Whoever hears Closed may open the image elsewhere.
                if let Err(error) = minor.settle().await {
                    self.say_log(Level::Error, format_args!("what was not flushed is lost: {error}"));
                }
            }
            self.shared.domain.changed.raise();
        }
    }

    async fn leave(&mut self, remove: bool) -> Result<(), Reason> {
        self.let_go().await;
        // Whoever hears Closed may want the image.
        self.minor = None;
        if remove {
            // libxl waits for Closed, and takes a directory that is gone when it looks for a failure.
            match self.say(State::Closed, Vec::new()).await {
                Ok(_) | Err(Reason::NoEntry) => {}
                Err(reason) => return Err(reason),
            }
            self.shared.domain.sleep(DWELL).await;
            let remove = async |store: &Store<X>| {
                // A directory that the toolstack made anew meanwhile is another disk.
                match State::parse(store.read(&self.node(keys::STATE)).await?) {
                    State::Closed => store.remove(&self.home).await,
                    _ => Ok(()),
                }
            };
            match self.shared.store.transaction(remove).await {
                Ok(()) | Err(Reason::NoEntry) => {}
                Err(reason) => return Err(reason),
            }
        }
        self.note(Event::Gone);
        self.say_log(Level::Info, format_args!("gone"));
        Ok(())
    }

    fn say_log(&self, level: Level, line: core::fmt::Arguments<'_>) {
        self.lines.say(self.shared.domain.xen.now(), level, format_args!("{}: {line}", self.key));
    }

    fn note(&self, event: Event) {
        let (at, Key { domain, device, .. }) = (self.shared.domain.xen.now(), self.key);
        trace::note(trace::Entry { at, domain, device: device.into(), event });
    }
}

/// What a frontend must know of a disk; nodes that would only say the default are left out, for xenstored counts them.
fn properties(info: Info, read_only: bool, cdrom: bool) -> Vec<(&'static str, String)> {
    let bits = if read_only { INFO_READONLY } else { 0 } | if cdrom { INFO_CDROM } else { 0 };
    let mut nodes = vec_of([
        (keys::SECTORS, info.sectors.to_string()),
        (keys::SECTOR_SIZE, SECTOR_BYTES.to_string()),
        (keys::INFO, bits.to_string()),
        (keys::FEATURE_PERSISTENT, 1.to_string()),
    ]);
    if info.physical_bytes != SECTOR_BYTES as u32 {
        nodes.push((keys::PHYSICAL_SECTOR_SIZE, info.physical_bytes.to_string()));
    }
    if info.flush {
        nodes.push((keys::FEATURE_FLUSH_CACHE, 1.to_string()));
    }
    if let Some(discard) = info.discard {
        nodes.push((keys::FEATURE_DISCARD, 1.to_string()));
        nodes.push((keys::DISCARD_GRANULARITY, discard.granularity_bytes.to_string()));
        nodes.push((keys::DISCARD_ALIGNMENT, discard.alignment_bytes.to_string()));
    }
    nodes
}

fn vec_of<const N: usize>(nodes: [(&'static str, String); N]) -> Vec<(&'static str, String)> {
    nodes.into_iter().collect()
}
