//! One request of a control client, from its verdict to its answer.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use protocol::errno::Errno;

use drivers::disk::{Error, Info, SECTOR_BYTES};
use drivers::target::OpenError;
use embassy_futures::select::{Either, select};
use log::Level;
use protocol::blkif::INFO_READONLY;
use protocol::session::{Refusal, State, Verdict, ring_verdict, verdict};
use protocol::tapdisk::{
    Blkif, Body, Dialect, EVERY_MINOR, Flags, Image, Kind, Listed, MINORS_MAX, Message, Minors, Params, Request,
    Response, Text,
};
use xen::port::{Stop, Xen};
use xen::vchan::Broken;

use super::channel::Line;
use super::{figures, rings};
use crate::minor::{By, Minor};

/// What follows an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The next request.
    GoOn,
    /// The domain's end.
    Stop(Stop),
}

/// A request that was not done, and why the client is to know.
enum Failed {
    /// It gets this answer.
    Answer(OpenError),
    /// It is not there any more.
    Gone(Broken),
}

impl From<OpenError> for Failed {
    fn from(error: OpenError) -> Self {
        Failed::Answer(error)
    }
}

impl From<Broken> for Failed {
    fn from(broken: Broken) -> Self {
        Failed::Gone(broken)
    }
}

fn failed(errno: Errno, text: impl Into<String>) -> Failed {
    Failed::Answer(OpenError::new(errno, text))
}

/// A client's requests.
pub struct Commands<'a, X: Xen> {
    /// To whom.
    pub line: &'a Line<'a, X>,
    /// How it speaks.
    pub dialect: Dialect,
}

impl<X: Xen> Commands<'_, X> {
    /// Does a request and answers it.
    pub async fn serve(&self, request: &Request<'_>) -> Result<Then, Broken> {
        let Message { cookie, body } = &request.message;
        let (cookie, kind) = (*cookie, body.kind());
        match self.perform(request).await {
            Ok(Some(body)) => {
                let sent = self.line.send(self.dialect, &Message { cookie, body }).await;
                // EXIT is decided, whether its client heard of it or not: nothing can be attached any more.
                if kind != Kind::Exit {
                    sent?;
                }
            }
            Ok(None) => {}
            Err(Failed::Gone(broken)) => return Err(broken),
            Err(Failed::Answer(OpenError { errno, text })) => {
                let line = format_args!("{} of minor {cookie}: {} {text}", kind.name(), errno.number());
                self.line.log(Level::Info, line);
                let response = Response::failed(errno, Text::cut(&text));
                let refusal = Message::refusal(self.dialect, cookie, Some(kind), response);
                self.line.send(self.dialect, &refusal).await?;
                return Ok(Then::GoOn);
            }
        }
        Ok(if kind == Kind::Exit { Then::Stop(Stop::Poweroff) } else { Then::GoOn })
    }

    /// Waits until the request's turn has come at its minor, and says whether it is to be done at all.
    async fn admit(&self, kind: Kind, cookie: u16) -> Result<bool, Failed> {
        let minors = &self.line.shared.minors;
        loop {
            let minor = match kind {
                Kind::Exit => minors.all().into_iter().next(),
                _ => minors.get(cookie),
            };
            let state = minor.as_ref().map_or(State::Absent, |minor| minor.state());
            match (verdict(kind, state), minor) {
                (Verdict::Wait, Some(minor)) => self.while_there(minor.moved(state)).await?,
                // Nobody is at work on a minor that is not there.
                (Verdict::Do | Verdict::Wait, _) => return Ok(true),
                (Verdict::Done, _) => return Ok(false),
                (Verdict::Refuse(Refusal { errno, why }), _) => {
                    let text = match kind {
                        Kind::Exit | Kind::Commit | Kind::QueryCommitJob | Kind::CancelCommitJob => why.into(),
                        _ => format!("minor {cookie}: {why}"),
                    };
                    return Err(failed(errno, text));
                }
            }
        }
    }

    /// Waits for something as long as the client waits too.
    async fn while_there<T>(&self, step: impl Future<Output = T>) -> Result<T, Failed> {
        match select(step, self.line.gone()).await {
            Either::First(done) => Ok(done),
            Either::Second(()) => Err(Failed::Gone(Broken::Gone)),
        }
    }

    /// Does what must be done to its end. It begins here and now, and goes on in a task of its own: a client that goes
    /// frees its place on the channel. Otherwise a few requests to a store that is stuck would lock everybody out.
    async fn apart<T: 'static>(&self, step: impl Future<Output = T> + 'static) -> Result<T, Failed> {
        self.while_there(self.line.shared.domain.apart(step)).await
    }

    fn minor(&self, cookie: u16) -> Result<Rc<Minor<X>>, Failed> {
        self.line
            .shared
            .minors
            .get(cookie)
            .ok_or_else(|| failed(Errno::ENODEV, format!("minor {cookie}: no such minor")))
    }

    /// The answer, unless it was sent already.
    async fn perform(&self, request: &Request<'_>) -> Result<Option<Body<'static>>, Failed> {
        let (shared, cookie) = (self.line.shared, request.message.cookie);
        let body = &request.message.body;
        let kind = body.kind();
        let of_all = kind == Kind::Stats && cookie == EVERY_MINOR;
        let to_do = of_all || self.admit(kind, cookie).await?;
        if to_do {
            let minors = &shared.minors;
            match body {
                Body::Pid => return Ok(Some(Body::PidRsp(self.pid().await?))),
                Body::List => return self.list(cookie).await.map(|()| None),
                Body::ListMinors => return self.list_minors(cookie).await.map(|()| None),
                Body::Stats => return self.stats(cookie).await.map(|()| None),
                Body::DiskInfo => return Ok(Some(Body::DiskInfoRsp(image(&*self.minor(cookie)?)?))),
                Body::Attach => drop(minors.attach(Some(cookie), By::Message)?),
                Body::Detach => self.detach(cookie)?,
                Body::Open(params) => {
                    let read_only = self.allow_open(params, request)?;
                    let minor = self.minor(cookie)?;
                    let (opened, lowers, name) = (minor.clone(), shared.lowers.clone(), String::from(&*params.path));
                    self.apart(async move { opened.open(&lowers, &name, read_only).await }).await??;
                    return Ok(Some(Body::OpenRsp(image(&minor)?)));
                }
                Body::Pause => {
                    let paused = self.while_there(self.minor(cookie)?.pause(&shared.domain)).await?;
                    let not = |error: Error| failed(error.errno(), format!("minor {cookie}: its image: {error}"));
                    if !paused.map_err(not)? {
                        return Err(failed(Errno::EBUSY, format!("minor {cookie}: it was closed meanwhile")));
                    }
                }
                Body::Resume(params) => {
                    // blktap's clients leave `prt_devnum` 0 here, and tapdisk does not look at it.
                    self.allow(Flags::NONE, params.flags, false, params.secondary)?;
                    let name = Some(&*params.path).filter(|path| !path.is_empty()).map(String::from);
                    let (minor, lowers) = (self.minor(cookie)?, shared.lowers.clone());
                    self.apart(async move { minor.resume(&lowers, name.as_deref()).await }).await??;
                }
                Body::Close | Body::ForceShutdown => self.close(cookie, kind == Kind::ForceShutdown).await?,
                Body::XenblkifConnect(blkif) => self.connect(cookie, blkif).await?,
                Body::XenblkifDisconnect(vdev) => {
                    let ring = rings::find(shared, *vdev);
                    self.ring(kind, ring.is_some(), vdev.domid)?;
                    if let Some(ring) = ring {
                        ring.let_go().await;
                    }
                }
                Body::Exit => {
                    minors.close();
                    return Ok(Some(Body::Exit));
                }
                _ => return Err(failed(Errno::EINVAL, "not a request")),
            }
        }
        Ok(done(kind))
    }

    /// Our number, which must be that of the channel a client found. A toolstack that does not write it gets 0.
    async fn pid(&self) -> Result<i32, Failed> {
        let number = crate::report::number(self.line.shared).await;
        Ok(number.map_err(|reason| failed(Errno::EIO, format!("domid: xenstore: {reason:?}")))?.into())
    }

    async fn connect(&self, cookie: u16, blkif: &Blkif<'_>) -> Result<(), Failed> {
        let (shared, vdev, kind) = (self.line.shared, blkif.vdev, Kind::XenblkifConnect);
        loop {
            let minor = self.minor(cookie)?;
            let served = rings::find(shared, vdev).or_else(|| rings::of(&minor, vdev)).is_some();
            self.ring(kind, served, vdev.domid)?;
            // What the guest wrote by the ring before must not reach the store after what it writes by this one.
            let Some(ending) = rings::ending(&minor, vdev) else { return Ok(rings::connect(shared, &minor, blkif)?) };
            self.while_there(ending.ended()).await?;
            self.admit(kind, cookie).await?;
        }
    }

    fn ring(&self, kind: Kind, served: bool, domain: u16) -> Result<(), Failed> {
        match ring_verdict(self.dialect, kind, served) {
            Verdict::Refuse(Refusal { errno, why }) => Err(failed(errno, format!("domain {domain}: {why}"))),
            _ => Ok(()),
        }
    }

    fn detach(&self, cookie: u16) -> Result<(), Failed> {
        let minor = self.minor(cookie)?;
        match (minor.users(), minor.by()) {
            (0, _) => self.line.shared.minors.detach(cookie),
            (1, By::Directory(key)) => return Err(failed(Errno::EBUSY, format!("minor {cookie}: {key} has it"))),
            (n, _) => return Err(failed(Errno::EBUSY, format!("minor {cookie}: {n} rings or directories use it"))),
        }
        Ok(())
    }

    async fn close(&self, cookie: u16, force: bool) -> Result<(), Failed> {
        let minor = self.minor(cookie)?;
        let close = async move {
            minor.close(force).await;
            let by_message: Vec<_> = minor.rings.borrow().iter().filter(|ring| ring.by_message).cloned().collect();
            for ring in by_message.into_iter().filter(|ring| ring.life != minor.life()) {
                // Without `force` nothing is in flight.
                if force {
                    ring.let_go().await;
                } else {
                    ring.end().await;
                }
            }
        };
        self.apart(close).await
    }

    /// Whether OPEN is to be read-only; or which of its wishes cannot be had.
    fn allow_open(&self, params: &Params<'_>, request: &Request<'_>) -> Result<bool, Failed> {
        let known = Flags::RDONLY | Flags::SHARED;
        self.allow(known, params.flags, params.prt_devnum.is_some(), params.secondary)?;
        if params.flags.contains(Flags::SHARED) && params.path.starts_with("ram:") {
            return Err(failed(Errno::EOPNOTSUPP, "SHARED: a RAM disk is one minor's own"));
        }
        // The assembler reads them only where a flag announced them, which was refused above.
        debug_assert!(request.log.is_none() && request.key.is_none());
        if params.req_timeout > 0 {
            // Nothing is tried again here, so there is nothing for it to end.
            log::debug!("control: req_timeout {} s of an OPEN is not needed", params.req_timeout);
        }
        Ok(params.flags.contains(Flags::RDONLY))
    }

    /// Refuses flags that are not in `known`, by their names.
    fn allow(&self, known: Flags, flags: Flags, parent: bool, secondary: Text<'_>) -> Result<(), Failed> {
        let unknown = flags.unknown(self.dialect);
        if !unknown.is_empty() {
            return Err(failed(Errno::EINVAL, format!("flags {:#x} mean nothing", unknown.bits())));
        }
        let name = flags.without(known).each().find_map(|flag| flag.name(self.dialect));
        // Without its flag the field alone decides in tapdisk, and silence would be worse.
        let name = name.or(parent.then_some("REUSE_PRT")).or((!secondary.is_empty()).then_some("SECONDARY"));
        match name {
            Some(name) => Err(failed(Errno::EOPNOTSUPP, format!("{name}: not offered"))),
            None => Ok(()),
        }
    }

    /// One LIST_RSP for every minor, whatever the cookie is, and one that ends the list.
    async fn list(&self, cookie: u16) -> Result<(), Failed> {
        let listed = self.line.shared.minors.all();
        // As it is now: what changes while a slow client reads is not half of it.
        let listed: Vec<_> = listed.iter().map(|minor| (minor.number(), minor.state(), minor.name())).collect();
        let all = listed.len() as u32;
        for (at, (number, state, name)) in (0..).zip(&listed) {
            let (minor, state, path) = (i32::from(*number), state.bits().bits(), Text::cut(name));
            self.say(cookie, Body::ListRsp(Listed { count: all - at, minor, state, path })).await?;
        }
        Ok(self.say(cookie, Body::ListRsp(Listed::END)).await?)
    }

    async fn list_minors(&self, cookie: u16) -> Result<(), Failed> {
        let all = self.line.shared.minors.all();
        let numbers: Vec<_> = all.iter().take(MINORS_MAX).map(|m| i32::from(m.number()).to_le_bytes()).collect();
        let minors = Minors::new(&numbers).ok_or_else(|| failed(Errno::EINVAL, "too many minors"))?;
        Ok(self.say(cookie, Body::ListMinorsRsp(minors)).await?)
    }

    /// STATS_RSP and the JSON it announces.
    async fn stats(&self, cookie: u16) -> Result<(), Failed> {
        let shared = self.line.shared;
        let json = match cookie {
            EVERY_MINOR => figures::all(shared).await,
            _ => figures::one(shared, &*self.minor(cookie)?).await,
        };
        let json = json.map_err(|_| failed(Errno::ENOMEM, "not enough memory for the statistics"))?;
        self.say(cookie, Body::StatsRsp { bytes: json.len() as u64 }).await?;
        Ok(self.line.send_bytes(json.as_bytes()).await?)
    }

    async fn say(&self, cookie: u16, body: Body<'_>) -> Result<(), Broken> {
        self.line.send(self.dialect, &Message { cookie, body }).await
    }
}

/// What OPEN and DISK_INFO tell of an image, open or not.
fn image<X: Xen>(minor: &Minor<X>) -> Result<Image, Failed> {
    let none = || failed(Errno::ENODEV, format!("minor {}: no image was opened", minor.number()));
    let Info { sectors, read_only, .. } = minor.info().ok_or_else(none)?;
    let info = if read_only || minor.is_read_only() { INFO_READONLY } else { 0 };
    Ok(Image { sectors, sector_size: SECTOR_BYTES as u32, info })
}

/// The response that says no more than that it is done.
fn done(kind: Kind) -> Option<Body<'static>> {
    let done = Response::DONE;
    Some(match kind.response()? {
        Kind::AttachRsp => Body::AttachRsp(done),
        Kind::PauseRsp => Body::PauseRsp(done),
        Kind::ResumeRsp => Body::ResumeRsp(done),
        Kind::CloseRsp => Body::CloseRsp(done),
        Kind::DetachRsp => Body::DetachRsp(done),
        Kind::XenblkifConnectRsp => Body::XenblkifConnectRsp(done),
        Kind::XenblkifDisconnectRsp => Body::XenblkifDisconnectRsp(done),
        _ => return None,
    })
}
