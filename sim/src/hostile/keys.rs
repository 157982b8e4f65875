//! A hostile guest's offers: a ring that can be served, or keys with one thing wrong.

use protocol::mem::Memory;
use xen::port::DomId;

use crate::blkif::Layout;
use crate::hostile::pages::NOBODY;
use crate::hostile::ring::Ring;
use crate::hostile::rows::{Abi, Key};
use crate::random::Random;
use crate::store::{Client, Errno};
use crate::world::World;

/// What must come of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is served.
    Served,
    /// It is refused: state 6, and a text that says why.
    Refused,
    /// Either, and nobody is hurt.
    Whatever,
}

/// Who offers, and to whom.
pub struct Offerer<'a> {
    /// The hypervisor.
    pub world: &'a World,
    /// Its connection to xenstore.
    pub client: &'a Client,
    /// The guest.
    pub guest: DomId,
    /// Who serves it.
    pub backend: DomId,
    /// Its directory.
    pub dir: &'a str,
    /// How it says its layout.
    pub abi: Abi,
    /// The backend may keep pages mapped.
    pub keeps: bool,
}

/// The keys an offer may consist of, to be taken back before another.
const KEYS: &[&str] =
    &["ring-ref", "ring-page-order", "event-channel", "protocol", "multi-queue-num-queues", "feature-persistent"];

impl Abi {
    /// The layout a backend is to read.
    pub fn layout(self) -> Layout {
        if self == Abi::Wide { Layout::X86_64 } else { Layout::X86_32 }
    }
}

impl Offerer<'_> {
    /// Writes what `ring` needs to be served, with `wrong` about it if there is something wrong.
    pub fn offer(&self, ring: &Ring, wrong: Option<Key>, random: &mut Random) -> Result<Outcome, Errno> {
        let order = ring.grants.len().ilog2();
        let mut nodes: Vec<(String, String)> = vec![("event-channel".into(), ring.port.0.to_string())];
        if order == 0 && random.one_in(2) {
            nodes.push(("ring-ref".into(), ring.grants[0].0.to_string()));
        } else {
            nodes.push(("ring-page-order".into(), order.to_string()));
            let refs = ring.grants.iter().enumerate();
            nodes.extend(refs.map(|(i, grant)| (format!("ring-ref{i}"), grant.0.to_string())));
        }
        match self.abi {
            Abi::Wide => nodes.push(("protocol".into(), "x86_64-abi".into())),
            Abi::Narrow => nodes.push(("protocol".into(), "x86_32-abi".into())),
            Abi::Unsaid => {}
        }
        if self.keeps {
            nodes.push(("feature-persistent".into(), "1".into()));
        }
        let outcome = wrong.map_or(Outcome::Served, |key| self.spoil(key, ring, &mut nodes, random));
        self.take_back();
        self.client.together(|store| {
            nodes.iter().try_for_each(|(key, value)| store.write(&format!("{}/{key}", self.dir), value))
        })?;
        if wrong == Some(Key::Hidden) {
            let hidden = random.pick(&nodes).0;
            self.client.permit(&format!("{}/{hidden}", self.dir), &[&format!("n{}", self.guest.0)])?;
        }
        if wrong == Some(Key::PortClosed) {
            ring.close();
        }
        Ok(outcome)
    }

    /// Removes all keys that an offer wrote: the numbers in them will soon mean other things.
    pub fn take_back(&self) {
        let names = self.client.directory(self.dir).unwrap_or_default();
        let offered = |name: &str| KEYS.contains(&name) || name.starts_with("ring-ref") || name.starts_with("queue-");
        for name in names.iter().filter(|name| offered(name)) {
            let _gone = self.client.remove(&format!("{}/{name}", self.dir));
        }
    }

    fn spoil(&self, key: Key, ring: &Ring, nodes: &mut Vec<(String, String)>, random: &mut Random) -> Outcome {
        let first = nodes.iter().position(|(key, _)| key.starts_with("ring-ref") && key != "ring-page-order");
        let first = first.expect("every offer names a ring");
        let with = |nodes: &mut Vec<(String, String)>, key: &str, value: String| {
            nodes.retain(|(old, _)| old != key);
            nodes.push((key.into(), value));
        };
        match key {
            Key::RingRefBad => nodes[first].1 = random.pick(&["20000", "0", "1", "4294967295"]).into(),
            Key::RingRefReadOnly => {
                let page = xen::page::PageRef::alone().expect("memory for a test");
                let lent = self.world.lend(self.guest, &page, self.backend, xen::port::Access::ReadOnly);
                nodes[first].1 = lent.expect("a guest's table is large").0.to_string();
            }
            Key::RingRefTwice => {
                if ring.grants.len() < 2 {
                    nodes.retain(|(key, _)| !key.starts_with("ring-"));
                    with(nodes, "ring-page-order", "1".into());
                }
                with(nodes, "ring-ref0", ring.grants[0].0.to_string());
                with(nodes, "ring-ref1", ring.grants[0].0.to_string());
                return Outcome::Whatever;
            }
            Key::RingRefText => nodes[first].1 = random.pick(&["abc", "8x", " 8", "8\n", "0x8"]).into(),
            Key::RingRefNegative => nodes[first].1 = "-1".into(),
            Key::RingRefOverflows => nodes[first].1 = random.pick(&["4294967296", "99999999999999999999999"]).into(),
            Key::RingRefEmpty => nodes[first].1 = String::new(),
            Key::RingRefMissing => nodes.retain(|(key, _)| !key.starts_with("ring-ref")),
            Key::RingRefNMissing => {
                nodes.retain(|(key, _)| key != "ring-ref");
                with(nodes, "ring-page-order", order_of(ring).max(1).to_string());
                nodes.retain(|(key, _)| *key != format!("ring-ref{}", (1 << order_of(ring).max(1)) - 1));
            }
            Key::Order5 => with(nodes, "ring-page-order", "5".into()),
            Key::OrderMost => with(nodes, "ring-page-order", "4294967295".into()),
            Key::Queues0 => with(nodes, "multi-queue-num-queues", "0".into()),
            Key::Queues1 => {
                with(nodes, "multi-queue-num-queues", "1".into());
                return Outcome::Served;
            }
            Key::Queues2 => {
                with(nodes, "multi-queue-num-queues", "2".into());
                for (key, value) in nodes.clone() {
                    for queue in 0..2 {
                        with(nodes, &format!("queue-{queue}/{key}"), value.clone());
                    }
                }
            }
            Key::QueuesWild | Key::QueuesBad => {
                let page = xen::page::PageRef::alone().expect("memory for a test");
                let mut content = [0; xen::page::PAGE_BYTES];
                content.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.next().to_le_bytes()));
                page.write(0, &content);
                let lent = self.world.lend(self.guest, &page, self.backend, xen::port::Access::ReadWrite);
                let port = self.world.alloc_unbound(self.guest, self.backend).expect("a guest has ports");
                let (first, order) = (nodes.clone(), order_of(ring));
                let whole = |key: &str| key == "protocol" || key == "ring-page-order" || key.starts_with("feature");
                nodes.retain(|(key, _)| whole(key));
                with(nodes, "multi-queue-num-queues", "2".into());
                for (key, value) in first.into_iter().filter(|(key, _)| !whole(key)) {
                    with(nodes, &format!("queue-0/{key}"), value);
                }
                let bad = key == Key::QueuesBad;
                let grant = if bad { 20_000 } else { lent.expect("a guest's table is large").0 };
                match nodes.iter().any(|(key, _)| key == "ring-page-order") {
                    true => {
                        (0..1 << order).for_each(|at| with(nodes, &format!("queue-1/ring-ref{at}"), grant.to_string()))
                    }
                    false => with(nodes, "queue-1/ring-ref", grant.to_string()),
                }
                with(nodes, "queue-1/event-channel", port.0.to_string());
                return if bad { Outcome::Refused } else { Outcome::Whatever };
            }
            Key::QueueNMissing => {
                *nodes = vec![("multi-queue-num-queues".into(), random.pick(&["2", "4", "4294967295"]).into())];
            }
            Key::PortOther => {
                let port = self.world.alloc_unbound(self.guest, NOBODY).expect("a guest has ports");
                with(nodes, "event-channel", port.0.to_string());
            }
            Key::Port0 => with(nodes, "event-channel", "0".into()),
            Key::PortText => with(nodes, "event-channel", random.pick(&["", "-3", "abc", "4294967296"]).into()),
            Key::PortMissing => nodes.retain(|(key, _)| key != "event-channel"),
            Key::PortClosed => return Outcome::Whatever,
            Key::ProtocolNative => with(nodes, "protocol", "native".into()),
            Key::ProtocolUnknown => with(nodes, "protocol", random.pick(&["arm-abi", "", "x86_64-abi\n"]).into()),
            Key::Hidden => {}
            // Not of an offer but of a connection.
            Key::RingRefIsData | Key::Rewritten => return Outcome::Served,
        }
        Outcome::Refused
    }
}

fn order_of(ring: &Ring) -> u32 {
    ring.grants.len().ilog2()
}
