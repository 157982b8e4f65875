//! xenstored, spoken to over its socket as `io/xs_wire.h` has it: for looks that must be quicker than the start of a
//! program, and for what Xen's programs do not print.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use records::bench::{Change, Node};

const SOCKET: &str = "/run/xenstored/socket";

/// xenstored answers at once or something is badly wrong.
const PROMPT: Duration = Duration::from_secs(20);

/// `XENSTORE_PAYLOAD_MAX`.
const PAYLOAD_BYTES_MAX: usize = 4096;

/// `enum xsd_sockmsg_type`.
mod kind {
    pub const DIRECTORY: u32 = 1;
    pub const READ: u32 = 2;
    pub const GET_PERMS: u32 = 3;
    pub const WATCH: u32 = 4;
    pub const WRITE: u32 = 11;
    pub const MKDIR: u32 = 12;
    pub const SET_PERMS: u32 = 14;
    pub const WATCH_EVENT: u32 = 15;
    pub const ERROR: u32 = 16;
}

/// A connection.
pub struct Wire {
    socket: UnixStream,
    events: VecDeque<String>,
}

impl Wire {
    /// Connects.
    pub fn open() -> Result<Wire> {
        let socket = UnixStream::connect(SOCKET).with_context(|| format!("connecting to {SOCKET}"))?;
        Ok(Wire { socket, events: VecDeque::new() })
    }

    /// A node's value; none if it is not there.
    pub fn look(&mut self, path: &str) -> Result<Option<String>> {
        let value = self.request(kind::READ, format!("{path}\0").as_bytes())?;
        Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
    }

    /// A directory with all below it, parents first, by name.
    pub fn tree(&mut self, path: &str) -> Result<Vec<Node>> {
        let mut nodes = Vec::new();
        self.gather(path, &mut nodes)?;
        Ok(nodes)
    }

    fn gather(&mut self, path: &str, into: &mut Vec<Node>) -> Result<()> {
        let zero = format!("{path}\0");
        let Some(value) = self.look(path)? else { return Ok(()) };
        let permissions = words(&self.request(kind::GET_PERMS, zero.as_bytes())?.unwrap_or_default());
        into.push(Node { path: path.to_owned(), value, permissions });
        let mut children = words(&self.request(kind::DIRECTORY, zero.as_bytes())?.unwrap_or_default());
        children.sort();
        children.iter().try_for_each(|child| self.gather(&format!("{path}/{child}"), into))
    }

    /// Makes an empty directory with these permissions.
    pub fn make(&mut self, path: &str, permissions: &[String]) -> Result<()> {
        let list: String = permissions.iter().map(|word| format!("{word}\0")).collect();
        for (kind, payload) in [(kind::MKDIR, format!("{path}\0")), (kind::SET_PERMS, format!("{path}\0{list}"))] {
            self.request(kind, payload.as_bytes())?.with_context(|| format!("{path} vanished"))?;
        }
        Ok(())
    }

    /// Writes a node.
    pub fn write(&mut self, path: &str, value: &str) -> Result<()> {
        let done = self.request(kind::WRITE, format!("{path}\0{value}").as_bytes())?;
        done.with_context(|| format!("{path} has no parent")).map(drop)
    }

    /// From now on who waits for an event or an answer waits so long at most.
    pub fn limit(&self, limit: Duration) -> Result<()> {
        self.socket.set_read_timeout(Some(limit)).context("a limit for xenstored")
    }

    /// Watches a node and all below it.
    pub fn watch(&mut self, path: &str) -> Result<()> {
        let done = self.request(kind::WATCH, format!("{path}\0w\0").as_bytes())?;
        done.with_context(|| format!("watching {path}")).map(drop)
    }

    /// The path of the next event.
    pub fn event(&mut self) -> Result<String> {
        loop {
            if let Some(path) = self.events.pop_front() {
                return Ok(path);
            }
            let (kind, payload) = self.receive()?;
            ensure!(kind == kind::WATCH_EVENT, "an answer of kind {kind} that nobody asked for");
            self.note(&payload);
        }
    }

    fn note(&mut self, payload: &[u8]) {
        self.events.extend(words(payload).into_iter().next());
    }

    /// One request and its answer; none for ENOENT.
    fn request(&mut self, kind: u32, payload: &[u8]) -> Result<Option<Vec<u8>>> {
        let length = u32::try_from(payload.len())?;
        let header: Vec<u8> = [kind, 0, 0, length].iter().flat_map(|word| word.to_le_bytes()).collect();
        self.socket.write_all(&[&header, payload].concat())?;
        loop {
            match self.receive()? {
                (kind::WATCH_EVENT, event) => self.note(&event),
                (kind::ERROR, errno) if errno.starts_with(b"ENOENT") => return Ok(None),
                (kind::ERROR, errno) => bail!("xenstored answers {} with {}", kind, String::from_utf8_lossy(&errno)),
                (answered, payload) if answered == kind => return Ok(Some(payload)),
                (other, _) => bail!("xenstored answers {kind} with {other}"),
            }
        }
    }

    fn receive(&mut self) -> Result<(u32, Vec<u8>)> {
        let mut header = [0; 16];
        self.socket.read_exact(&mut header)?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let length = word(12) as usize;
        ensure!(length <= PAYLOAD_BYTES_MAX, "a message of {length} bytes");
        let mut payload = vec![0; length];
        self.socket.read_exact(&mut payload)?;
        Ok((word(0), payload))
    }
}

fn words(payload: &[u8]) -> Vec<String> {
    let words = payload.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// The node whose write ends a history: events come in order, so all before it has been seen then.
const MARK: &str = "/tool/history";

/// Notes every value of some nodes, from now on. xenstored tells of a change before it takes its next request, and
/// each change of a state needs several, so a look right after the event comes in time.
pub struct History {
    told: Receiver<Result<Vec<Change>>>,
    marks: u32,
}

impl History {
    /// Begins.
    pub fn begin(nodes: Vec<String>, marks: u32) -> Result<History> {
        let mut wire = Wire::open()?;
        Wire::open()?.write(MARK, "begin")?;
        wire.watch(MARK)?;
        let directories: std::collections::BTreeSet<&str> =
            nodes.iter().filter_map(|node| Some(node.rsplit_once('/')?.0)).collect();
        for directory in &directories {
            wire.watch(directory)?;
        }
        let (tell, told) = mpsc::channel();
        let mark = format!("end {marks}");
        thread::spawn(move || {
            // Nobody listens any more when a scenario failed before its end.
            let _ = tell.send(follow(&mut wire, &nodes, &mark));
        });
        Ok(History { told, marks })
    }

    /// Ends it: all that was seen.
    pub fn end(self) -> Result<Vec<Change>> {
        Wire::open()?.write(MARK, &format!("end {}", self.marks))?;
        self.told.recv_timeout(PROMPT).context("the watcher of xenstore")?
    }
}

fn follow(wire: &mut Wire, nodes: &[String], mark: &str) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    loop {
        let path = wire.event()?;
        if path == MARK {
            if wire.look(MARK)?.as_deref() == Some(mark) {
                return Ok(changes);
            }
            continue;
        }
        // Of a directory that comes or goes only the directory itself is told.
        for node in nodes.iter().filter(|node| **node == path || node.starts_with(&format!("{path}/"))) {
            changes.push(Change { path: node.clone(), value: wire.look(node)? });
        }
    }
}
