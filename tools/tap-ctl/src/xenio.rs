//! The daemon that connects guests to VBDs (the RFC's xenio, blktap's tapback): it sees disks in xenstore, does the
//! backend's half of their handshake, and tells the storage domain which rings to serve.
//!
//! The layout that works with Linux's blkfront: the backend's directory may be dom0's, where this program writes it, as
//! long as the guest can read it. But the guest grants its ring, and offers its port, to the domain that `backend-id`
//! in its own directory names, and that has to be the storage domain: Xen lets nobody else map it. Since that node is
//! the guest's to write, it decides nothing; the image is what dom0's directory says it is.
//!
//! # Layout
//! - `keys`: the nodes of a disk, parsed
//! - `disk`: what to do next about one disk
//! - `daemon`: a thread for each disk, so that one whose store is slow holds no other

pub mod daemon;
mod disk;
mod keys;

use protocol::blkif::{INFO_CDROM, INFO_READONLY, keys as node};
use protocol::number;
use protocol::tapdisk::{Blkif, Dialect, Image, Text, Vdev};
use protocol::xenbus::State;
use protocol::xenstore::valid_path;
use rustix::io::Errno;
use xen::limits::SEGMENTS_INDIRECT;

use self::disk::{Disk, Plan, Snapshot};
use self::keys::{Named, Nodes, Ring};
use crate::conversation::Conversation;
use crate::failure::Failure;
use crate::host::Host;
use crate::line::Line;
use crate::place::{self, Domain};

/// The most pages of a ring, as a power of two: a message has 8 grant references.
const RING_ORDER: u32 = 3;

/// tapdisk's name for memory that nobody pools any more.
const POOL: &str = "td-xenio-default";

/// Steps that one change of nodes leads to at most; a handshake has three.
const STEPS_MAX: u32 = 16;

/// What this program needs of xenstore.
pub trait Tree {
    /// The value of a node; `None` if there is no such node, or nothing that we may read.
    fn read(&mut self, path: &str) -> Result<Option<String>, Failure>;
    /// Writes nodes at once if the node `path` still says `value`; whether they were written.
    fn write_if(&mut self, path: &str, value: &str, nodes: &[(String, String)]) -> Result<bool, Failure>;
    /// Begins to watch.
    fn watch(&mut self, path: &str, token: &str) -> Result<(), Failure>;
    /// Ends a watch.
    fn unwatch(&mut self, path: &str, token: &str) -> Result<(), Failure>;
}

/// How the daemon was asked to work.
pub struct Setting<'a> {
    /// The way to storage domains.
    pub host: &'a (dyn Host + Sync),
    /// `--domain`: the storage domain of disks that do not name theirs.
    pub asked: Option<&'a str>,
    /// The channel.
    pub channel: &'a str,
    /// Its dialect.
    pub dialect: Dialect,
    /// The directory of the disks.
    pub root: &'a str,
    /// Guests may flush.
    pub flush: bool,
    /// Tell every message.
    pub debug: bool,
}

/// Whose disk, and which.
pub type Key = (u16, u32);

/// One disk and all that is done about it.
pub struct Keeper<'a> {
    setting: &'a Setting<'a>,
    disk: Disk,
    /// The backend's directory.
    home: String,
    /// The frontend's directory that is watched.
    front: Option<String>,
}

/// What became of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Went {
    /// Nothing is to be done now.
    Still,
    /// Its directory is gone.
    Away,
}

impl<'a> Keeper<'a> {
    /// A disk that was not heard of before.
    pub fn new(setting: &'a Setting<'a>, key: Key) -> Keeper<'a> {
        let (domid, devid) = key;
        let home = format!("{}/{domid}/{devid}", setting.root);
        Keeper { setting, disk: Disk::new(Vdev { domid, devid }), home, front: None }
    }

    /// The backend's directory.
    pub fn home(&self) -> &str {
        &self.home
    }

    /// Does what is to be done, as things are now.
    pub fn turn(&mut self, tree: &mut dyn Tree) -> Result<Went, Failure> {
        for _ in 0..STEPS_MAX {
            let seen = snapshot(tree, &self.home)?;
            self.follow(tree, front_of(&seen.back))?;
            match self.disk.plan(&seen) {
                Plan::Nothing => return Ok(Went::Still),
                Plan::Forget => {
                    self.let_go();
                    self.follow(tree, None)?;
                    return Ok(Went::Away);
                }
                plan => self.perform(tree, &seen, plan)?,
            }
        }
        // A guest that does nothing else than to change its state: the next change goes on here.
        Ok(Went::Still)
    }

    fn perform(&mut self, tree: &mut dyn Tree, seen: &Snapshot, plan: Plan) -> Result<(), Failure> {
        match plan {
            Plan::Nothing | Plan::Forget => {}
            Plan::Publish(named) => {
                // A wrong name is told now, not when the guest is booting.
                if let Err(why) = self.storage(named) {
                    return self.refuse(tree, seen, why);
                }
                let nodes = [
                    (node::MAX_RING_PAGE_ORDER, RING_ORDER.to_string()),
                    (node::FEATURE_MAX_INDIRECT_SEGMENTS, SEGMENTS_INDIRECT.to_string()),
                ];
                if self.say(tree, seen, State::InitWait, &nodes)? {
                    self.disk.back.published();
                }
            }
            Plan::Connect(named, ring, granted_to) => match self.connect(seen, named, ring, granted_to) {
                Ok(nodes) => {
                    if self.say(tree, seen, State::Connected, &nodes)? {
                        self.disk.back.connected();
                        self.tell("connected");
                    }
                }
                Err(why) => return self.refuse(tree, seen, why),
            },
            Plan::LetGo => self.let_go(),
            Plan::AnswerClosing => {
                if self.say(tree, seen, State::Closing, &[])? {
                    self.disk.back.closing();
                }
            }
            Plan::Close | Plan::Leave => {
                self.let_go();
                if self.say(tree, seen, State::Closed, &[])? {
                    self.disk.back.closed();
                    self.tell("closed");
                }
            }
            Plan::Refuse(why) => return self.refuse(tree, seen, why),
        }
        Ok(())
    }

    /// The storage domain of an image.
    fn storage(&self, named: Named) -> Result<Domain, Failure> {
        let domains = self.setting.host.domains()?;
        let asked = if named.domain.is_some() { None } else { self.setting.asked };
        place::choose(&domains, asked, named.domain.map(u32::from)).cloned()
    }

    fn talk(&self, domain: &Domain) -> Result<Conversation<Box<dyn Line>>, Failure> {
        let line = self.setting.host.line(domain, self.setting.channel)?;
        Ok(Conversation::new(line, self.setting.dialect, self.setting.debug))
    }

    /// Has the ring served, and gives what the guest is to know of the disk.
    fn connect(
        &mut self,
        seen: &Snapshot,
        named: Named,
        ring: Ring,
        granted_to: Option<u16>,
    ) -> Result<Vec<(&'static str, String)>, Failure> {
        let domain = self.storage(named)?;
        if granted_to != Some(domain.id) {
            let text =
                format!("the frontend's backend-id is not {}, so {} cannot map its ring", domain.id, domain.title());
            return Err(Failure::new(Errno::INVAL, text));
        }
        let named_here = |why: Failure| why.while_doing(format!("{}, minor {}", domain.title(), named.minor));
        let mut talk = self.talk(&domain)?;
        let image = talk.info(named.minor).map_err(named_here)?;
        let read_only = seen.back.get(node::MODE).is_none_or(|mode| mode != "w");
        if read_only && image.info & INFO_READONLY == 0 {
            let text = format!("mode is r, but minor {} is open for writing: open it with -R", named.minor);
            return Err(Failure::new(Errno::ROFS, text));
        }
        let blkif = Blkif {
            vdev: self.disk.vdev,
            grefs: ring.grefs,
            proto: ring.proto,
            pool: Text::cut(POOL),
            port: ring.port,
            poll: match self.setting.dialect {
                Dialect::Blktap => keys::poll(&seen.back),
                Dialect::Rfc => Default::default(),
            },
        };
        match talk.connect(named.minor, blkif) {
            // It is ours, from before we were started anew.
            Err(why) if why.errno() == served_already(self.setting.dialect) => {}
            connected => connected.map_err(named_here)?,
        }
        self.disk.served = Some((domain.id, named.minor));
        let cdrom = seen.back.get(node::DEVICE_TYPE).is_some_and(|kind| kind == "cdrom");
        Ok(self.properties(image, cdrom))
    }

    fn properties(&self, image: Image, cdrom: bool) -> Vec<(&'static str, String)> {
        // The node `sectors` counts 512 bytes whatever the size of a sector is.
        let sectors = image.sectors.saturating_mul((image.sector_size / 512).max(1).into());
        let info = image.info | if cdrom { INFO_CDROM } else { 0 };
        vec![
            (node::SECTORS, sectors.to_string()),
            (node::SECTOR_SIZE, image.sector_size.to_string()),
            (node::INFO, info.to_string()),
            (node::FEATURE_FLUSH_CACHE, u32::from(self.setting.flush).to_string()),
            (node::FEATURE_BARRIER, "0".to_owned()),
        ]
    }

    /// Has the ring let go. Whatever the answer, the guest's side goes on: a domain that is gone has let go.
    fn let_go(&mut self) {
        let Some((domain, _)) = self.disk.served.take() else { return };
        let gone = self.storage(Named { domain: Some(domain), minor: 0 }).and_then(|domain| {
            // Draining may take as long as the store below takes.
            self.talk(&domain)?.disconnect(0, self.disk.vdev, None)
        });
        if let Err(why) = gone {
            self.tell(&why.to_string());
        }
    }

    fn refuse(&mut self, tree: &mut dyn Tree, seen: &Snapshot, why: Failure) -> Result<(), Failure> {
        self.let_go();
        self.tell(&why.to_string());
        let state = self.disk.refusal();
        let text = format!("{} {why}", why.errno().raw_os_error());
        if self.say(tree, seen, state, &[(node::HOTPLUG_ERROR, text)])? {
            match state {
                State::Closing => self.disk.back.closing(),
                _ => self.disk.back.closed(),
            }
        }
        Ok(())
    }

    fn tell(&self, what: &str) {
        eprintln!("tap-ctl: xenio: device {} of guest {}: {what}", self.disk.vdev.devid, self.disk.vdev.domid);
    }

    /// Watches the frontend that the disk has now, and no other.
    fn follow(&mut self, tree: &mut dyn Tree, front: Option<&str>) -> Result<(), Failure> {
        if self.front.as_deref() == front {
            return Ok(());
        }
        if let Some(old) = self.front.take() {
            tree.unwatch(&format!("{old}/{}", node::STATE), FRONT)?;
        }
        if let Some(new) = front {
            tree.watch(&format!("{new}/{}", node::STATE), FRONT)?;
            self.front = Some(new.to_owned());
        }
        Ok(())
    }

    /// Writes nodes and our state in one go, if our state is still the one that was seen: the toolstack may have asked
    /// us to close since, or removed the directory.
    fn say(
        &self,
        tree: &mut dyn Tree,
        seen: &Snapshot,
        state: State,
        nodes: &[(&str, String)],
    ) -> Result<bool, Failure> {
        let Some(own) = seen.back.get(node::STATE) else { return Ok(false) };
        let own_node = format!("{}/{}", self.home, node::STATE);
        let mut all: Vec<(String, String)> =
            nodes.iter().map(|(name, value)| (format!("{}/{name}", self.home), value.clone())).collect();
        // A state that is said twice is news to the frontend.
        if own != state.text() {
            all.push((own_node.clone(), state.text().to_owned()));
        }
        tree.write_if(&own_node, own, &all)
    }
}

/// What CONNECT of a ring is answered with that is served already.
fn served_already(dialect: Dialect) -> Errno {
    match dialect {
        Dialect::Rfc => Errno::EXIST,
        Dialect::Blktap => Errno::ALREADY,
    }
}

/// The token of the watch of a frontend.
const FRONT: &str = "front";

/// `GUEST/DEVICE` and what is below.
pub fn key(path: &str) -> Option<Key> {
    let mut parts = path.split('/');
    Some((number::u16(parts.next()?)?, number::u32(parts.next()?)?))
}

/// The frontend's directory, if it can be one.
fn front_of(back: &Nodes) -> Option<&str> {
    back.get(node::FRONTEND).map(String::as_str).filter(|front| front.starts_with('/') && valid_path(front))
}

fn snapshot(tree: &mut dyn Tree, home: &str) -> Result<Snapshot, Failure> {
    let mut read = |folder: &str, names: &[&'static str]| -> Result<Nodes, Failure> {
        let mut nodes = Nodes::new();
        for name in names {
            if let Some(value) = tree.read(&format!("{folder}/{name}"))? {
                nodes.insert(name, value);
            }
        }
        Ok(nodes)
    };
    let back = read(home, &keys::BACK)?;
    let front = front_of(&back).map(|front| read(front, &keys::FRONT)).transpose()?;
    Ok(Snapshot { front: front.unwrap_or_default(), back })
}

#[cfg(test)]
mod tests;
