//! Real Xen as a bench for the records: xl, xenstored, and Linux's blkfront in dom0 or in a guest.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use records::bench::{Bench, Change, DEVID, Ids, Node, Outcome, VDEV, Wish};
use records::text;

use super::backend::{Server, devid};
use super::domain::XL;
use super::exercise::Exercise;
use super::guest::TOOLS_DISK;
use super::lower::Lower;
use super::process::ask;
use super::scenarios::plugging::await_rounds;
use super::system::wait_until;
use super::wire::{History, Wire};
use super::world::{Side, World};
use super::{raw, store};

/// Both ends and the kernel's announcement; under emulation on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// What Linux says of a disk, below its folder in sysfs.
const LIMITS: [&str; 12] = [
    "size",
    "ro",
    "discard_alignment",
    "queue/logical_block_size",
    "queue/physical_block_size",
    "queue/discard_granularity",
    "queue/discard_max_bytes",
    "queue/max_segments",
    "queue/max_segment_size",
    "queue/max_hw_sectors_kb",
    "queue/write_cache",
    "queue/fua",
];

/// One backend, one frontend, one disk.
pub struct RealBench<'b, 'w> {
    world: &'b mut World<'w>,
    side: Side,
    ids: Ids,
    server: Server,
    /// dom0's own way to the lower disk.
    lower: Option<&'b Lower>,
    kind: &'static str,
    history: Option<History>,
    histories: u32,
}

impl<'b, 'w> RealBench<'b, 'w> {
    /// dom0 as the frontend of a backend whose first lower disk is this one.
    pub fn dom0(world: &'b mut World<'w>, server: &Server, lower: &'b Lower) -> Self {
        let ids = Ids { backend: server.id, frontend: 0 };
        let (side, server) = (Side::Dom0, server.clone());
        RealBench { world, side, ids, server, lower: Some(lower), kind: "backend", history: None, histories: 0 }
    }

    /// A guest as the frontend of the world's own backend.
    pub fn guest(world: &'b mut World<'w>, side: Side) -> Result<Self> {
        let ids = Ids { backend: world.server.id, frontend: world.id(side)? };
        let server = world.server.clone();
        Ok(RealBench { world, side, ids, server, lower: None, kind: "backend", history: None, histories: 0 })
    }

    fn directory(&self, name: &str) -> Result<String> {
        let known = text::directories(self.ids).into_iter().find(|(known, _)| *known == name);
        known.map(|(_, directory)| directory).with_context(|| format!("no directory {name}"))
    }

    fn await_node(&self, directory: &str, key: &str, wanted: &str) -> Result<()> {
        let node = format!("{}/{key}", self.directory(directory)?);
        store::wait_for(&node, &format!("{directory}/{key} is {wanted}"), SOON, |value| value == Some(wanted)).map(drop)
    }

    fn device(&self) -> String {
        format!("/dev/{VDEV}")
    }

    fn xl(&self, words: &[&str]) -> Result<bool> {
        let said = ask(words, XL)?;
        self.world.reporter.detail(&format!("{}: {:?}: {}", words.join(" "), said.code, said.words()));
        Ok(said.ok())
    }

    /// The frontend's directory as the toolstack made it, without what the guest wrote.
    fn place(&self, wire: &mut Wire, directory: &str, top: &Node, nodes: &[Node]) -> Result<()> {
        wire.make(directory, &top.permissions)?;
        for node in nodes {
            let key = node.path.rsplit_once('/').map_or("", |(_, key)| key);
            if !["event-channel", "ring-ref", "feature-persistent", "state"].contains(&key) {
                wire.write(&node.path, &node.value)?;
            }
        }
        // The kernel takes a directory for a device once it has a state.
        wire.write(&format!("{directory}/state"), "1")?;
        wait_until("the kernel knows the device", SOON, || self.kernel_knows())?;
        self.await_node("backend", "state", "2")
    }

    fn kernel_knows(&self) -> bool {
        Path::new(&format!("/sys/bus/xen/devices/vbd-{DEVID}")).exists()
    }
}

impl Bench for RealBench<'_, '_> {
    fn ids(&self) -> Ids {
        self.ids
    }

    fn attach(&mut self, wish: &Wish) -> Result<bool> {
        // What an earlier disk left for the operator stays until somebody takes it away.
        for name in ["error", "qdisk-error"] {
            store::remove(&self.directory(name)?)?;
        }
        self.kind = if wish.format == "raw" { "backend" } else { "qdisk" };
        self.histories += 1;
        self.history = Some(History::begin(text::watched(self.ids), self.histories)?);
        let Wish { format, access, target } = wish;
        let spec = format!("format={format},vdev={VDEV},access={access},backend={},target={target}", self.server.name);
        self.xl(&["xl", "block-attach", &self.ids.frontend.to_string(), &spec])
    }

    fn detach(&mut self) -> Result<bool> {
        self.xl(&["xl", "block-detach", &self.ids.frontend.to_string(), VDEV])
    }

    fn connected(&mut self) -> Result<()> {
        self.await_node(self.kind, "state", "4")?;
        self.await_node("frontend", "state", "4")?;
        self.world.ask(self.side, &Exercise::Appear { disk: self.device() }).map(drop)
    }

    fn refused(&mut self) -> Result<()> {
        self.await_node(self.kind, "state", "6")?;
        self.await_node("frontend", "state", "6")
    }

    fn nodes(&mut self, directory: &str) -> Result<Vec<Node>> {
        Wire::open()?.tree(directory)
    }

    fn limits(&mut self) -> Result<Vec<(&'static str, String)>> {
        ensure!(self.side == Side::Dom0, "only dom0's own kernel is asked");
        let read = |name| -> Result<(&'static str, String)> {
            let path = format!("/sys/block/{VDEV}/{name}");
            Ok((name, fs::read_to_string(&path).with_context(|| path.clone())?.trim().to_owned()))
        };
        LIMITS.into_iter().map(read).collect()
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<Outcome> {
        outcome(raw::put(&self.device(), offset, bytes)).map(|(outcome, ())| outcome)
    }

    fn read(&mut self, offset: u64, length: usize) -> Result<(Outcome, Vec<u8>)> {
        outcome(raw::get(&self.device(), offset, length))
    }

    fn below(&mut self, offset: u64, length: usize) -> Result<Vec<u8>> {
        self.lower.context("a lower disk")?.look(|device| Ok(raw::get(device, offset, length)?))
    }

    fn grow(&mut self, bytes: u64) -> Result<()> {
        self.lower.context("a lower disk")?.grow(bytes >> 20)?;
        self.world.ask(self.side, &Exercise::Grow { disk: self.device(), bytes }).map(drop)
    }

    fn reconnect(&mut self) -> Result<()> {
        let directory = self.directory("frontend")?;
        let device = format!("vbd-{DEVID}");
        let mut wire = Wire::open()?;
        let nodes: Vec<Node> = wire.tree(&directory)?;
        let Some((top, nodes)) = nodes.split_first() else { bail!("{directory} is not there") };
        fs::write("/sys/bus/xen/drivers/vbd/unbind", &device).context("unbinding blkfront")?;
        self.await_node("frontend", "state", "6")?;
        self.await_node("backend", "state", "6")?;
        store::remove(&directory)?;
        wait_until("the kernel forgets the device", SOON, || !self.kernel_knows())?;
        // As Linux does after a kexec, the driver shall look when the backend is ready for it, and not find what the last
        // connection left: it takes a backend in Closed for one that wants to close.
        fs::write("/sys/bus/xen/drivers_autoprobe", "0").context("stopping the probe")?;
        let placed = self.place(&mut wire, &directory, top, nodes);
        fs::write("/sys/bus/xen/drivers_autoprobe", "1").context("allowing the probe")?;
        placed?;
        fs::write("/sys/bus/xen/drivers/vbd/bind", &device).context("binding blkfront")?;
        self.connected()
    }

    fn load(&mut self) -> Result<()> {
        self.world.ask(self.side, &Exercise::Load { disk: self.device(), seed: 121 })?;
        await_rounds(self.world, self.side, 2)
    }

    fn destroy(&mut self) -> Result<bool> {
        let Side::Guest(name) = self.side else { bail!("dom0 is not destroyed") };
        self.world.destroy(name).map(|_| true)
    }

    fn held(&mut self) -> Result<bool> {
        let nothing = self.server.demand_nothing_left(&devid(TOOLS_DISK).to_string());
        if let Err(error) = &nothing {
            self.world.reporter.detail(&format!("{error:#}"));
        }
        Ok(nothing.is_err())
    }

    fn history(&mut self) -> Result<Vec<Change>> {
        self.history.take().context("a history that began")?.end()
    }
}

/// What a failure of the system call says of the request.
fn outcome<T: Default>(done: std::io::Result<T>) -> Result<(Outcome, T)> {
    match done.as_ref().map_err(std::io::Error::raw_os_error) {
        Ok(_) => Ok((Outcome::Done, done?)),
        Err(Some(EIO)) => Ok((Outcome::Failed, T::default())),
        Err(Some(EPERM | EACCES | EROFS)) => Ok((Outcome::Forbidden, T::default())),
        Err(_) => Err(done.err().context("a failure")?.into()),
    }
}

const EPERM: i32 = 1;
const EIO: i32 = 5;
const EACCES: i32 = 13;
const EROFS: i32 = 30;
