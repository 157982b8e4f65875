//! xenstore, over its wire: the kernel's device, or xenstored's socket where the device is missing.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use protocol::xenstore::{Event, HEADER_BYTES, Header, Kind, PAYLOAD_BYTES, Reason, names, parts, valid_path};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::wait::timespec;
use crate::failure::Failure;
use crate::xenio::Tree;

const DEVICE: &str = "/dev/xen/xenbus";
const SOCKET: &str = "/run/xenstored/socket";

/// xenstored answers at once, or is gone.
const PROMPT: Duration = Duration::from_secs(20);

/// A transaction that collides is tried so often.
const TRIES: u32 = 50;

/// Why the store did not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum No {
    /// It said no.
    Reason(Reason),
    /// The connection does not work.
    Broken(Failure),
}

impl No {
    /// As a failure to do something with a node.
    pub fn with(self, doing: &str, path: &str) -> Failure {
        match self {
            No::Reason(reason) => {
                Failure::of_number(reason.errno(), format!("xenstore: {doing} {path}: {}", reason.name()))
            }
            No::Broken(failure) => failure.while_doing(format!("xenstore: {doing} {path}")),
        }
    }
}

impl From<Failure> for No {
    fn from(failure: Failure) -> No {
        No::Broken(failure)
    }
}

/// Whether there is a way to a store.
pub fn is_here() -> bool {
    [DEVICE, SOCKET].iter().any(|path| Path::new(path).exists())
}

/// A connection to the store.
pub struct Store {
    link: File,
    next: u32,
    /// The transaction that requests are part of; 0: none.
    transaction: u32,
    events: VecDeque<(String, String)>,
    /// The connection failed: what comes next is no answer to anything.
    broken: bool,
}

impl Store {
    /// Connects.
    pub fn open() -> Result<Store, Failure> {
        match OpenOptions::new().read(true).write(true).open(DEVICE) {
            Ok(device) => Ok(Store::on(device)),
            Err(why) => match UnixStream::connect(SOCKET) {
                Ok(socket) => Ok(Store::on(File::from(OwnedFd::from(socket)))),
                Err(_) => Err(Failure::from(why).while_doing(format!("opening {DEVICE}"))),
            },
        }
    }

    /// On a stream that leads to a store.
    pub fn on(link: File) -> Store {
        Store { link, next: 0, transaction: 0, events: VecDeque::new(), broken: false }
    }

    /// The value of a node; `None` if there is no such node.
    pub fn read(&mut self, path: &str) -> Result<Option<String>, Failure> {
        match self.path_request(Kind::Read, path, b"") {
            Ok(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
            Err(No::Reason(Reason::NoEntry)) => Ok(None),
            Err(no) => Err(no.with("reading", path)),
        }
    }

    /// Writes a node.
    pub fn write(&mut self, path: &str, value: &str) -> Result<(), Failure> {
        self.try_write(path, value).map_err(|no| no.with("writing", path))
    }

    fn try_write(&mut self, path: &str, value: &str) -> Result<(), No> {
        self.path_request(Kind::Write, path, value.as_bytes()).map(drop)
    }

    /// The names of a node's children; a node that is not there has none.
    pub fn list(&mut self, path: &str) -> Result<Vec<String>, Failure> {
        match self.path_request(Kind::Directory, path, b"") {
            Ok(payload) => Ok(names(&payload).map(str::to_owned).collect()),
            Err(No::Reason(Reason::NoEntry)) => Ok(Vec::new()),
            Err(no) => Err(no.with("listing", path)),
        }
    }

    /// Begins to watch a path. The first event comes at once, so no change between a look and the watch is lost.
    pub fn watch(&mut self, path: &str, token: &str) -> Result<(), Failure> {
        match self.request(Kind::Watch, &[path.as_bytes(), b"\0", token.as_bytes(), b"\0"]) {
            Ok(_) | Err(No::Reason(Reason::Exists)) => Ok(()),
            Err(no) => Err(no.with("watching", path)),
        }
    }

    /// Ends a watch; one that is not there is ended.
    pub fn unwatch(&mut self, path: &str, token: &str) -> Result<(), Failure> {
        match self.request(Kind::Unwatch, &[path.as_bytes(), b"\0", token.as_bytes(), b"\0"]) {
            Ok(_) | Err(No::Reason(Reason::NoEntry)) => Ok(()),
            Err(no) => Err(no.with("no longer watching", path)),
        }
    }

    /// Whether the store knows a domain: it does from its start to its end.
    pub fn knows(&mut self, domain: u16) -> Result<bool, Failure> {
        let payload = self.request(Kind::IsDomainIntroduced, &[domain.to_string().as_bytes(), b"\0"]);
        let payload = payload.map_err(|no| no.with("asking for domain", &domain.to_string()))?;
        Ok(parts(&payload).next().flatten() == Some("T"))
    }

    /// Writes nodes all at once, unless `allowed` looks at the store as it is in that moment and forbids it; whether
    /// they were written.
    pub fn write_all(
        &mut self,
        nodes: &[(String, String)],
        mut allowed: impl FnMut(&mut Store) -> Result<bool, Failure>,
    ) -> Result<bool, Failure> {
        for _ in 0..TRIES {
            let begun =
                self.request(Kind::TransactionStart, &[b"\0"]).map_err(|no| no.with("beginning to", "write"))?;
            let id = parts(&begun).next().flatten().and_then(protocol::number::u32).filter(|id| *id != 0);
            self.transaction =
                id.ok_or_else(|| Failure::new(Errno::PROTO, "xenstore: a transaction without number"))?;
            let done = allowed(self).and_then(|allowed| {
                let mut wanted = nodes.iter().filter(|_| allowed);
                wanted.try_for_each(|(path, value)| self.write(path, value)).map(|()| allowed)
            });
            let end: &[u8] = if matches!(done, Ok(true)) { b"T\0" } else { b"F\0" };
            let ended = self.request(Kind::TransactionEnd, &[end]);
            self.transaction = 0;
            match (done, ended) {
                (Err(why), _) => return Err(why),
                (Ok(false), _) => return Ok(false),
                (Ok(true), Ok(_)) => return Ok(true),
                (Ok(true), Err(No::Reason(Reason::Again))) => {}
                (Ok(true), Err(no)) => return Err(no.with("writing", "in one go")),
            }
        }
        Err(Failure::new(Errno::AGAIN, "xenstore: a transaction collided again and again"))
    }

    /// The next watch event, path and token; `None` if there is none until then.
    pub fn event(&mut self, until: Option<Instant>) -> Result<Option<(String, String)>, Failure> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if !self.readable(until)? {
                return Ok(None);
            }
            self.receive()?;
        }
    }

    /// Readable when something came, if nothing [waits](Store::has_event) already.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    /// Whether an event came beside an answer.
    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    fn path_request(&mut self, kind: Kind, path: &str, value: &[u8]) -> Result<Vec<u8>, No> {
        // xenstored would cut at a NUL, and refuse the rest.
        if !valid_path(path) {
            return Err(No::Reason(Reason::Invalid));
        }
        self.request(kind, &[path.as_bytes(), b"\0", value])
    }

    fn request(&mut self, kind: Kind, payload: &[&[u8]]) -> Result<Vec<u8>, No> {
        if self.broken {
            return Err(Failure::new(Errno::NOTCONN, "the connection was lost").into());
        }
        let bytes: usize = payload.iter().map(|part| part.len()).sum();
        if bytes > PAYLOAD_BYTES {
            return Err(No::Reason(Reason::TooBig));
        }
        self.next = self.next.wrapping_add(1);
        let request = self.next;
        let header = Header { kind: kind as u32, request, transaction: self.transaction, bytes: bytes as u32 };
        // In one piece, as the device wants it.
        let mut message = header.encode().to_vec();
        payload.iter().for_each(|part| message.extend_from_slice(part));
        self.link.write_all(&message).map_err(|why| self.lost(why.into()))?;
        let until = Instant::now().checked_add(PROMPT);
        loop {
            if !self.readable(until)? {
                return Err(self.lost(Failure::new(Errno::TIMEDOUT, "xenstored does not answer")).into());
            }
            let Some((header, payload)) = self.receive()? else { continue };
            return match Kind::of(header.kind) {
                _ if header.request != request => Err(self.lost(Errno::PROTO.into()).into()),
                Some(Kind::Error) => Err(No::Reason(Reason::of(&payload))),
                Some(answered) if answered == kind => Ok(payload),
                _ => Err(self.lost(Errno::PROTO.into()).into()),
            };
        }
    }

    /// Receives one message: an answer, or an event, which is kept.
    fn receive(&mut self) -> Result<Option<(Header, Vec<u8>)>, Failure> {
        let mut header = [0; HEADER_BYTES];
        self.link.read_exact(&mut header).map_err(|why| self.lost(why.into()))?;
        let Ok(header) = Header::decode(&header) else { return Err(self.lost(Errno::PROTO.into())) };
        let mut payload = vec![0; header.bytes as usize];
        self.link.read_exact(&mut payload).map_err(|why| self.lost(why.into()))?;
        if Kind::of(header.kind) != Some(Kind::WatchEvent) {
            return Ok(Some((header, payload)));
        }
        // One that makes no sense says nothing.
        if let Ok(Event { path, token }) = Event::parse(&payload) {
            self.events.push_back((path.to_owned(), token.to_owned()));
        }
        Ok(None)
    }

    fn readable(&self, until: Option<Instant>) -> Result<bool, Failure> {
        let mut fds = [PollFd::new(&self.link, PollFlags::IN)];
        loop {
            match poll(&mut fds, timespec(until).as_ref()) {
                Err(Errno::INTR) => {}
                Err(why) => return Err(why.into()),
                Ok(ready) => return Ok(ready > 0),
            }
        }
    }

    fn lost(&mut self, why: Failure) -> Failure {
        self.broken = true;
        why.while_doing("the connection to xenstored")
    }
}

impl Tree for Store {
    fn read(&mut self, path: &str) -> Result<Option<String>, Failure> {
        match self.path_request(Kind::Read, path, b"") {
            // What is no path, or not for us, is as good as not there.
            Err(No::Reason(Reason::Invalid | Reason::Access | Reason::TooBig)) => Ok(None),
            Err(No::Reason(Reason::NoEntry)) => Ok(None),
            Ok(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
            Err(no) => Err(no.with("reading", path)),
        }
    }

    fn write_if(&mut self, path: &str, value: &str, nodes: &[(String, String)]) -> Result<bool, Failure> {
        self.write_all(nodes, |store| Ok(Store::read(store, path)?.as_deref() == Some(value)))
    }

    fn watch(&mut self, path: &str, token: &str) -> Result<(), Failure> {
        Store::watch(self, path, token)
    }

    fn unwatch(&mut self, path: &str, token: &str) -> Result<(), Failure> {
        Store::unwatch(self, path, token)
    }
}

#[cfg(test)]
mod tests;
