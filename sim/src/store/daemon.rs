//! What xenstored does with a request, whoever it comes from: payload in, payload out, as `io/xs_wire.h` lays it out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use xen::port::DomId;

use crate::fault::{Fault, SAID};
use crate::marks;
use crate::random::Random;
use crate::store::tree::{self, Errno, Node, Permission, Tree, Want};
use crate::world::{DOM0, World};

/// `enum xsd_sockmsg_type`.
#[allow(missing_docs)]
pub mod kind {
    pub const DIRECTORY: u32 = 1;
    pub const READ: u32 = 2;
    pub const GET_PERMS: u32 = 3;
    pub const WATCH: u32 = 4;
    pub const UNWATCH: u32 = 5;
    pub const TRANSACTION_START: u32 = 6;
    pub const TRANSACTION_END: u32 = 7;
    pub const GET_DOMAIN_PATH: u32 = 10;
    pub const WRITE: u32 = 11;
    pub const MKDIR: u32 = 12;
    pub const RM: u32 = 13;
    pub const SET_PERMS: u32 = 14;
    pub const WATCH_EVENT: u32 = 15;
    pub const ERROR: u32 = 16;
}

/// Watches of an unprivileged domain (`quota-watches`).
pub const WATCHES_MAX: usize = 128;
/// Open transactions of an unprivileged domain (`quota-transaction`).
pub const TRANSACTIONS_MAX: usize = 10;
/// Requests whose answer was not taken yet (`quota-req-outstanding`).
pub const OUTSTANDING_MAX: usize = 20;
/// The largest payload (`XENSTORE_PAYLOAD_MAX`).
pub const PAYLOAD_BYTES_MAX: usize = 4096;

/// A message on its way to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    /// The answer to a request.
    Reply {
        /// The request's kind, or [`kind::ERROR`].
        kind: u32,
        /// The request's own number.
        request: u32,
        /// The request's transaction.
        transaction: u32,
        /// What it says.
        payload: Vec<u8>,
    },
    /// A watch fired.
    Event {
        /// What changed, in the watch's own spelling.
        path: String,
        /// The watch's token.
        token: String,
    },
}

struct Watch {
    path: String,
    token: String,
    /// What is cut off an event's path, for a watch that was set with a relative one.
    home: Option<String>,
}

struct Transaction {
    base: Tree,
    work: Tree,
    seen: BTreeSet<String>,
    changes: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write(String, Option<Vec<u8>>),
    Remove(String),
    Permit(String, Vec<Permission>),
}

struct Peer {
    domain: DomId,
    out: VecDeque<Out>,
    watches: Vec<Watch>,
    transactions: BTreeMap<u32, Transaction>,
}

/// A node that changed: who may hear of it is decided by its permissions then.
struct Fired {
    path: String,
    gone: Option<Node>,
    /// Only for watches on this very node: what lay below a removed one.
    exact: bool,
}

/// The state of xenstored.
pub struct Daemon {
    world: World,
    random: Random,
    tree: Tree,
    peers: BTreeMap<u32, Peer>,
    next_peer: u32,
    next_transaction: u32,
    /// Nodes of which every value is noted, and those values. A watcher may miss one; this does not.
    witnessed: Vec<String>,
    pub(crate) witness: Vec<(String, Option<String>)>,
}

impl Daemon {
    pub(crate) fn new(world: &World, random: Random) -> Self {
        Daemon {
            world: world.clone(),
            random,
            tree: Tree::default(),
            peers: BTreeMap::new(),
            next_peer: 1,
            next_transaction: 1,
            witnessed: Vec::new(),
            witness: Vec::new(),
        }
    }

    /// Begins to note every value of these nodes, with those that they have now.
    pub(crate) fn begin_witness(&mut self, nodes: Vec<String>) {
        self.witness = nodes.iter().map(|node| (node.clone(), self.value(node))).collect();
        self.witnessed = nodes;
    }

    fn value(&self, path: &str) -> Option<String> {
        Some(String::from_utf8_lossy(&self.tree.get(path)?.value).into_owned())
    }

    /// The nodes.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    pub(crate) fn open(&mut self, domain: DomId) -> u32 {
        let id = self.next_peer;
        self.next_peer += 1;
        let peer = Peer { domain, out: VecDeque::new(), watches: Vec::new(), transactions: BTreeMap::new() };
        self.peers.insert(id, peer);
        id
    }

    pub(crate) fn forget(&mut self, domain: DomId) {
        self.peers.retain(|_, peer| peer.domain != domain);
        self.tree.forget(domain);
        for peer in self.peers.values_mut().filter(|peer| peer.domain == DOM0) {
            for watch in peer.watches.iter().filter(|watch| watch.path == "@releaseDomain") {
                peer.out.push_back(Out::Event { path: watch.path.clone(), token: watch.token.clone() });
            }
        }
    }

    pub(crate) fn watches(&self, domain: DomId) -> usize {
        self.peers.values().filter(|peer| peer.domain == domain).map(|peer| peer.watches.len()).sum()
    }

    /// The next message for a client. A dead client has none.
    pub(crate) fn take(&mut self, peer: u32) -> Option<Out> {
        self.peers.get_mut(&peer)?.out.pop_front()
    }

    /// Whether a client has a message to take.
    pub(crate) fn has_output(&self, peer: u32) -> bool {
        self.peers.get(&peer).is_some_and(|peer| !peer.out.is_empty())
    }

    /// Whether a client has so many answers waiting that xenstored no longer listens to it.
    pub(crate) fn stalled(&self, peer: u32) -> bool {
        let replies = |out: &&Out| matches!(out, Out::Reply { .. });
        self.peers.get(&peer).is_none_or(|peer| peer.out.iter().filter(replies).count() >= OUTSTANDING_MAX)
    }

    /// A request from a ring: its answer is queued among the events, before or after those that it caused.
    pub(crate) fn queue(&mut self, peer: u32, kind: u32, request: u32, transaction: u32, payload: &[u8]) {
        let first = self.peers[&peer].out.len();
        let struck = if kind == kind::UNWATCH { None } else { self.world.faults().strikes(Fault::Store) };
        let answer = match struck {
            Some(verdict) => {
                // Whatever became of its end, a transaction is over then.
                if kind == kind::TRANSACTION_END {
                    self.peers.get_mut(&peer).expect("just spoke").transactions.remove(&transaction);
                }
                Err(verdict.word().to_string())
            }
            None => self.request(peer, kind, transaction, payload).map_err(|errno| {
                SAID.iter().filter(|row| row.ends_with(&format!(": {errno:?}"))).for_each(|row| marks::hit(row));
                format!("{errno:?}")
            }),
        };
        let (kind, payload) = match answer {
            Ok(payload) => (kind, payload),
            Err(word) => (kind::ERROR, format!("{word}\0").into_bytes()),
        };
        let reply = Out::Reply { kind, request, transaction, payload };
        // A watch is acknowledged before it fires for the first time; for the rest both orders are seen.
        let before = kind == kind::WATCH || self.random.one_in(2);
        let out = &mut self.peers.get_mut(&peer).expect("just spoke").out;
        let first = first.min(out.len());
        if before { out.insert(first, reply) } else { out.push_back(reply) }
    }

    /// A request and its answer.
    pub(crate) fn request(&mut self, peer: u32, kind: u32, tx: u32, payload: &[u8]) -> Result<Vec<u8>, Errno> {
        let who = self.peers.get(&peer).ok_or(Errno::EINVAL)?.domain;
        if tx != 0 && !self.peers[&peer].transactions.contains_key(&tx) {
            return Err(Errno::ENOENT);
        }
        match kind {
            kind::DIRECTORY => {
                let path = self.read(peer, tx, one(payload)?)?;
                let names = self.view(peer, tx).children(&path);
                let bytes: Vec<u8> = names.iter().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect();
                if bytes.len() > PAYLOAD_BYTES_MAX { Err(Errno::E2BIG) } else { Ok(bytes) }
            }
            kind::READ => {
                let path = self.read(peer, tx, one(payload)?)?;
                Ok(self.view(peer, tx).get(&path).expect("just seen").value.clone())
            }
            kind::GET_PERMS => {
                let path = self.read(peer, tx, one(payload)?)?;
                let list = &self.view(peer, tx).get(&path).expect("just seen").permissions;
                Ok(list.iter().flat_map(|permission| (permission.text() + "\0").into_bytes()).collect())
            }
            kind::WRITE => {
                let end = payload.iter().position(|byte| *byte == 0).ok_or(Errno::EINVAL)?;
                let path = absolute(who, text(&payload[..end])?)?;
                self.change(peer, tx, Change::Write(path, Some(payload[end + 1..].to_vec())))
            }
            kind::MKDIR => {
                let path = absolute(who, one(payload)?)?;
                self.change(peer, tx, Change::Write(path, None))
            }
            kind::RM => {
                let path = absolute(who, one(payload)?)?;
                self.change(peer, tx, Change::Remove(path))
            }
            kind::SET_PERMS => {
                let words = strings(payload)?;
                let (path, list) = words.split_first().ok_or(Errno::EINVAL)?;
                let list = list.iter().map(|word| permission(word)).collect::<Result<Vec<_>, _>>()?;
                let path = absolute(who, path)?;
                self.change(peer, tx, Change::Permit(path, list))
            }
            kind::GET_DOMAIN_PATH => {
                let id: u16 = one(payload)?.parse().map_err(|_| Errno::EINVAL)?;
                Ok(format!("/local/domain/{id}\0").into_bytes())
            }
            kind::WATCH => self.watch(peer, &strings(payload)?),
            kind::UNWATCH => self.unwatch(peer, &strings(payload)?),
            kind::TRANSACTION_START => self.begin(peer, tx),
            kind::TRANSACTION_END => self.end(peer, tx, one(payload)?),
            _ => Err(Errno::ENOSYS),
        }
    }

    fn view(&self, peer: u32, tx: u32) -> &Tree {
        self.peers[&peer].transactions.get(&tx).map_or(&self.tree, |transaction| &transaction.work)
    }

    /// Checks that the client may read the node, and notes it as something its transaction depends on.
    fn read(&mut self, peer: u32, tx: u32, path: &str) -> Result<String, Errno> {
        let who = self.peers[&peer].domain;
        let path = absolute(who, path)?;
        if let Some(transaction) = self.peers.get_mut(&peer).and_then(|peer| peer.transactions.get_mut(&tx)) {
            transaction.seen.insert(path.clone());
        }
        self.view(peer, tx).node(who, &path, Want::Read)?;
        Ok(path)
    }

    fn change(&mut self, peer: u32, tx: u32, change: Change) -> Result<Vec<u8>, Errno> {
        let who = self.peers[&peer].domain;
        let transactions = &mut self.peers.get_mut(&peer).expect("just spoke").transactions;
        if let Some(transaction) = transactions.get_mut(&tx) {
            apply(&mut transaction.work, who, &change)?;
            transaction.seen.extend(depends(&transaction.base, &change));
            transaction.changes.push(change);
        } else {
            let fired = apply(&mut self.tree, who, &change)?;
            self.fire(&fired);
        }
        Ok(b"OK\0".to_vec())
    }

    fn begin(&mut self, peer: u32, tx: u32) -> Result<Vec<u8>, Errno> {
        let who = self.peers[&peer].domain;
        let transactions = &mut self.peers.get_mut(&peer).expect("just spoke").transactions;
        if tx != 0 {
            return Err(Errno::EBUSY);
        }
        if who != DOM0 && transactions.len() >= TRANSACTIONS_MAX {
            return Err(Errno::ENOSPC);
        }
        let id = self.next_transaction;
        self.next_transaction += 1;
        let base = self.tree.clone();
        let work = base.clone();
        transactions.insert(id, Transaction { base, work, seen: BTreeSet::new(), changes: Vec::new() });
        Ok(format!("{id}\0").into_bytes())
    }

    fn end(&mut self, peer: u32, tx: u32, verdict: &str) -> Result<Vec<u8>, Errno> {
        let commit = match verdict {
            "T" => true,
            "F" => false,
            _ => return Err(Errno::EINVAL),
        };
        let from = self.peers.get_mut(&peer).expect("just spoke");
        let who = from.domain;
        let transaction = from.transactions.remove(&tx).ok_or(Errno::ENOENT)?;
        if !commit {
            return Ok(b"OK\0".to_vec());
        }
        if who != DOM0 && self.world.faults().strikes(Fault::Conflict).is_some() {
            return Err(Errno::EAGAIN);
        }
        let generation = |tree: &Tree, at: &str| tree.get(at).map(|node| node.generation);
        if transaction.seen.iter().any(|at| generation(&transaction.base, at) != generation(&self.tree, at)) {
            return Err(Errno::EAGAIN);
        }
        let mut fired = Vec::new();
        let mut tree = self.tree.clone();
        for change in &transaction.changes {
            fired.extend(apply(&mut tree, who, change)?);
        }
        self.tree = tree;
        self.fire(&fired);
        Ok(b"OK\0".to_vec())
    }

    fn watch(&mut self, peer: u32, words: &[&str]) -> Result<Vec<u8>, Errno> {
        let [path, token] = words else { return Err(Errno::EINVAL) };
        let who = self.peers[&peer].domain;
        let special = path.starts_with('@');
        let relative = !special && !path.starts_with('/');
        let path = if special { path.to_string() } else { absolute(who, path)? };
        let from = self.peers.get_mut(&peer).expect("just spoke");
        if from.watches.iter().any(|watch| watch.path == path && watch.token == *token) {
            return Err(Errno::EEXIST);
        }
        if who != DOM0 && from.watches.len() >= WATCHES_MAX {
            return Err(Errno::E2BIG);
        }
        let home = relative.then(|| format!("/local/domain/{}/", who.0));
        let spelt = spell(&path, home.as_deref());
        from.watches.push(Watch { path, token: token.to_string(), home });
        from.out.push_back(Out::Event { path: spelt, token: token.to_string() });
        Ok(b"OK\0".to_vec())
    }

    fn unwatch(&mut self, peer: u32, words: &[&str]) -> Result<Vec<u8>, Errno> {
        let [path, token] = words else { return Err(Errno::EINVAL) };
        let who = self.peers[&peer].domain;
        let path = if path.starts_with('@') { path.to_string() } else { absolute(who, path)? };
        let watches = &mut self.peers.get_mut(&peer).expect("just spoke").watches;
        let at = watches.iter().position(|watch| watch.path == path && watch.token == *token);
        watches.remove(at.ok_or(Errno::ENOENT)?);
        Ok(b"OK\0".to_vec())
    }

    fn fire(&mut self, fired: &[Fired]) {
        for change in fired {
            if self.witnessed.contains(&change.path) {
                self.witness.push((change.path.clone(), self.value(&change.path)));
            }
            for peer in self.peers.values_mut() {
                if !hears(&self.tree, peer.domain, change) {
                    continue;
                }
                for watch in &peer.watches {
                    let meant = change.path == watch.path;
                    if !meant && (change.exact || !tree::is_within(&change.path, &watch.path)) {
                        continue;
                    }
                    let path = spell(&change.path, watch.home.as_deref());
                    let event = Out::Event { path, token: watch.token.clone() };
                    let twice = peer.domain != DOM0 && self.world.faults().strikes(Fault::EventTwice).is_some();
                    if twice {
                        peer.out.push_back(event.clone());
                    }
                    // xenstored may merge what was not sent yet, and may not.
                    if !peer.out.contains(&event) || twice || self.random.one_in(2) {
                        peer.out.push_back(event);
                    }
                }
            }
        }
    }
}

/// Whether a domain may know of the change: it may read the node, or list the directory it is in (XSA-115).
fn hears(tree: &Tree, who: DomId, change: &Fired) -> bool {
    let node = change.gone.as_ref().or_else(|| tree.get(&change.path));
    let above = tree::parent(&change.path).and_then(|up| tree.get(up));
    [node, above].into_iter().flatten().any(|node| node.allows(who, Want::Read))
}

/// An event's path as its watch was spelt.
fn spell(path: &str, home: Option<&str>) -> String {
    home.and_then(|home| path.strip_prefix(home)).unwrap_or(path).to_string()
}

fn apply(tree: &mut Tree, who: DomId, change: &Change) -> Result<Vec<Fired>, Errno> {
    match change {
        Change::Write(path, value) => {
            tree.write(who, path, value.as_deref())?;
            Ok(vec![Fired { path: path.clone(), gone: None, exact: false }])
        }
        Change::Permit(path, list) => {
            tree.permit(who, path, list.clone())?;
            Ok(vec![Fired { path: path.clone(), gone: None, exact: false }])
        }
        Change::Remove(path) => {
            let gone = tree.remove(who, path)?.into_iter();
            Ok(gone.map(|(at, node)| Fired { exact: at != *path, path: at, gone: Some(node) }).collect())
        }
    }
}

/// The nodes whose change by somebody else makes a conflict with this one.
fn depends(base: &Tree, change: &Change) -> Vec<String> {
    match change {
        Change::Permit(path, _) => vec![path.clone()],
        Change::Remove(path) => vec![path.clone(), tree::parent(path).unwrap_or("/").into()],
        Change::Write(path, _) => {
            let mut all = vec![path.clone()];
            let mut at = path.as_str();
            while base.get(at).is_none() {
                at = tree::parent(at).unwrap_or("/");
                all.push(at.into());
            }
            all
        }
    }
}

fn absolute(who: DomId, path: &str) -> Result<String, Errno> {
    let full = if path.starts_with('/') { path.into() } else { format!("/local/domain/{}/{path}", who.0) };
    if tree::is_valid(path) && tree::is_valid(&full) { Ok(full) } else { Err(Errno::EINVAL) }
}

fn text(bytes: &[u8]) -> Result<&str, Errno> {
    std::str::from_utf8(bytes).map_err(|_| Errno::EINVAL)
}

/// The payload as strings, each with its NUL.
fn strings(payload: &[u8]) -> Result<Vec<&str>, Errno> {
    let body = payload.strip_suffix(b"\0").ok_or(Errno::EINVAL)?;
    body.split(|byte| *byte == 0).map(text).collect()
}

/// The payload as one string with its NUL.
fn one(payload: &[u8]) -> Result<&str, Errno> {
    match strings(payload)?[..] {
        [only] => Ok(only),
        _ => Err(Errno::EINVAL),
    }
}

fn permission(word: &str) -> Result<Permission, Errno> {
    let letter = word.chars().next().ok_or(Errno::EINVAL)?;
    let id: u16 = word[letter.len_utf8()..].parse().map_err(|_| Errno::EINVAL)?;
    Permission::new(letter, DomId(id)).ok_or(Errno::EINVAL)
}
