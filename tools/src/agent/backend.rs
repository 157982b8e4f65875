//! The backend under test: tapdom, or dom0's blkback in its place.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::lower::Lower;
use super::{domain, store};
use crate::report::Backend;

/// A PVH domain of ours is up in 3 to 8 s of wall time; a busy host doubles that.
const READY: Duration = Duration::from_secs(30);

/// The counters are written after the last directory is gone; the write is all that is waited for.
const SETTLES: Duration = Duration::from_secs(10);

/// What a disk of the backend is made of.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// The VHD at this path, named as xl's own format: libxl chooses the kind qdisk and puts `vhd:` before it.
    Qdisk(&'static str),
    /// The same, named by the type within a raw disk's target.
    Image(&'static str),
    /// A whole lower disk.
    Disk(usize),
    /// A partition of a lower disk.
    Partition(usize, u32),
    /// Memory of the backend, in mebibytes.
    Ram(u32),
    /// The VHD on a whole lower disk.
    Vhd(usize),
    /// A VBD that messages made, by its minor.
    Minor(u16),
}

/// A backend at work.
#[derive(Clone)]
pub struct Server {
    /// Which of the two.
    pub kind: Backend,
    /// The domain's name, as disk configurations say it.
    pub name: String,
    /// The domain's id.
    pub id: u32,
    baseline: Option<String>,
}

impl Server {
    /// Starts the backend of this kind on these lower disks.
    pub fn start(kind: Backend, lower: &[Lower]) -> Result<Server> {
        match kind {
            Backend::Dom0 => Ok(Server { kind, name: "Domain-0".to_owned(), id: 0, baseline: None }),
            Backend::Tapdom => Server::start_tapdom("tapdom", None, lower),
        }
    }

    /// Starts tapdom from the example that users are shown.
    pub fn start_tapdom(name: &str, memory_mib: Option<u32>, lower: &[Lower]) -> Result<Server> {
        Server::create_tapdom(name, memory_mib, lower, &[])?;
        Server::await_tapdom(name)
    }

    /// Creates it; `more` are further words for xl.
    pub fn create_tapdom(name: &str, memory_mib: Option<u32>, lower: &[Lower], more: &[&str]) -> Result<()> {
        let disks: Vec<String> = lower
            .iter()
            .enumerate()
            .map(|(at, disk)| {
                format!("\"format=raw,vdev={},access=rw,backendtype=phy,target={}\"", letter(at), disk.device)
            })
            .collect();
        let mut settings = vec![
            format!("name=\"{name}\""),
            "kernel=\"/boot/domain.elf\"".to_owned(),
            // A crash shall be seen, and its console kept.
            "on_crash=\"preserve\"".to_owned(),
            format!("disk=[{}]", disks.join(",")),
        ];
        settings.extend(memory_mib.map(|memory| format!("memory={memory}")));
        settings.extend(more.iter().map(|word| (*word).to_owned()));
        domain::create("tapdom.cfg", &settings)
    }

    /// Waits until it is ready.
    pub fn await_tapdom(name: &str) -> Result<Server> {
        let id = domain::id(name)?;
        let ready = format!("/local/domain/{id}/data/ready");
        store::wait_for(&ready, &format!("{name} is ready"), READY, |value| {
            value.is_some_and(|value| value.starts_with("tapdom "))
        })?;
        let counters = store::wait_for(&counters(id), &format!("{name} writes its counters"), SETTLES, |value| {
            value.is_some_and(|value| !value.is_empty())
        })?;
        Ok(Server { kind: Backend::Tapdom, name: name.to_owned(), id, baseline: counters })
    }

    /// The disk configuration for a frontend.
    pub fn disk(&self, vdev: &str, access: &str, source: Source) -> String {
        let format = if matches!(source, Source::Qdisk(_)) { "vhd" } else { "raw" };
        let head = format!("format={format},vdev={vdev},access={access}");
        match self.kind {
            Backend::Tapdom => format!("{head},backend={},target={}", self.name, tapdom_target(source)),
            Backend::Dom0 => format!("{head},backendtype=phy,target={}", dom0_target(source)),
        }
    }

    /// Demands that the backend holds nothing for anybody: no directory in xenstore, every counter as at the start.
    /// dom0 serves the guests' tools under one number, which does not count.
    pub fn demand_nothing_left(&self, except_devid: &str) -> Result<()> {
        let home = format!("/local/domain/{}/backend", self.id);
        for kind in ["vbd", "vbd3", "qdisk"] {
            for frontend in store::list(&format!("{home}/{kind}"))? {
                for devid in store::list(&format!("{home}/{kind}/{frontend}"))? {
                    let directory = format!("{home}/{kind}/{frontend}/{devid}");
                    ensure!(devid == except_devid, "left in xenstore: {}", store::tree(&directory));
                }
            }
        }
        let Some(baseline) = &self.baseline else { return Ok(()) };
        store::wait_for(&counters(self.id), &format!("tapdom's counters are back at {baseline:?}"), SETTLES, |value| {
            value == Some(baseline.as_str())
        })
        .map(drop)
    }

    /// What the backend says about a disk that it could not serve.
    pub fn error_text(&self, kind: &str, frontend: u32, devid: u32, limit: Duration) -> Result<String> {
        let node = format!("/local/domain/{}/error/backend/{kind}/{frontend}/{devid}/error", self.id);
        store::wait_for(&node, "the backend says why", limit, |value| value.is_some_and(|value| !value.is_empty()))?
            .with_context(|| format!("{node} is empty"))
    }

    /// The counters when nobody was served yet.
    pub fn baseline(&self) -> Result<&str> {
        match &self.baseline {
            Some(baseline) => Ok(baseline),
            None => bail!("only tapdom keeps counters"),
        }
    }
}

fn counters(id: u32) -> String {
    format!("/local/domain/{id}/data/counters")
}

fn tapdom_target(source: Source) -> String {
    match source {
        Source::Qdisk(path) => path.to_owned(),
        Source::Image(path) => format!("vhd:{path}"),
        Source::Disk(index) => format!("aio:/dev/{}", letter(index)),
        Source::Partition(index, number) => format!("aio:/dev/{}{number}", letter(index)),
        Source::Vhd(index) => format!("vhd:/dev/{}", letter(index)),
        Source::Ram(mebibytes) => format!("ram:{mebibytes}M"),
        Source::Minor(minor) => format!("minor:{minor}"),
    }
}

fn dom0_target(source: Source) -> String {
    match source {
        Source::Disk(index) => format!("/dev/loop{index}"),
        Source::Partition(index, number) => format!("/dev/loop{index}p{number}"),
        Source::Qdisk(_) | Source::Image(_) | Source::Ram(_) | Source::Vhd(_) | Source::Minor(_) => {
            "/dev/ram0".to_owned()
        }
    }
}

/// The name of virtual disk number `index`: xvda, xvdb and so on.
pub fn letter(index: usize) -> String {
    format!("xvd{}", char::from(b'a' + index as u8))
}

/// The number by which xenstore knows one of the sixteen classic names (xen-vbd-interface: major 202, 16 minors each).
pub fn devid(vdev: &str) -> u32 {
    let letter = vdev.as_bytes().get(3).copied().unwrap_or(b'a');
    (202 << 8) | (u32::from(letter.saturating_sub(b'a')) << 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(kind: Backend) -> Server {
        Server { kind, name: "tapdom".into(), id: 3, baseline: None }
    }

    #[test]
    fn each_backend_is_told_the_same_disk_in_its_own_words() {
        let tapdom = server(Backend::Tapdom);
        assert_eq!(
            tapdom.disk("xvdb", "rw", Source::Partition(1, 2)),
            "format=raw,vdev=xvdb,access=rw,backend=tapdom,target=aio:/dev/xvdb2"
        );
        assert!(tapdom.disk("xvdb", "rw", Source::Ram(64)).ends_with("target=ram:64M"));
        for (source, expected) in [
            (Source::Qdisk("/dev/vg/lv"), "format=vhd,vdev=xvda,access=rw,backend=tapdom,target=/dev/vg/lv"),
            (Source::Image("/dev/vg/lv"), "format=raw,vdev=xvda,access=rw,backend=tapdom,target=vhd:/dev/vg/lv"),
        ] {
            assert_eq!(tapdom.disk("xvda", "rw", source), expected);
        }
        assert_eq!(
            server(Backend::Dom0).disk("xvdb", "r", Source::Disk(0)),
            "format=raw,vdev=xvdb,access=r,backendtype=phy,target=/dev/loop0"
        );
    }

    #[test]
    fn classic_numbers() {
        assert_eq!((devid("xvda"), devid("xvdb"), devid("xvdp")), (51712, 51728, 51952));
    }
}
