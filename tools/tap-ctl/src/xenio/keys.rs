//! What the nodes of a disk say, parsed: which image, which ring.
//!
//! The backend's directory is the toolstack's word. The frontend's is the guest's, all of it: what it says is an
//! allegation, and nothing that decides whose disk it gets is taken from there.

use std::collections::BTreeMap;

use protocol::blkif::keys;
use protocol::number;
use protocol::tapdisk::{Grefs, Poll, Protocol};
use protocol::xenbus::State;
use rustix::io::Errno;

use crate::failure::Failure;

/// tapback's node: tapdisk's socket, or the marker of the minor.
pub const PHYSICAL_DEVICE_PATH: &str = "physical-device-path";
/// Older toolstacks' node: major and minor in hexadecimal.
pub const PHYSICAL_DEVICE: &str = "physical-device";
/// xenopsd's: for how many microseconds to look at an empty ring.
pub const POLLING_DURATION: &str = "polling-duration";
/// xenopsd's: only while so many per cent of the processor are idle.
pub const POLLING_IDLE_THRESHOLD: &str = "polling-idle-threshold";
/// The hotplug script; who has one says in `hotplug-status` when it is done.
pub const SCRIPT: &str = "script";

/// The nodes of the backend's directory that are looked at.
pub const BACK: [&str; 13] = [
    keys::STATE,
    keys::FRONTEND,
    keys::FRONTEND_ID,
    keys::ONLINE,
    keys::MODE,
    keys::DEVICE_TYPE,
    keys::PARAMS,
    keys::HOTPLUG_STATUS,
    SCRIPT,
    PHYSICAL_DEVICE_PATH,
    PHYSICAL_DEVICE,
    POLLING_DURATION,
    POLLING_IDLE_THRESHOLD,
];

/// The nodes of the frontend's directory that are looked at.
pub const FRONT: [&str; 14] = [
    keys::STATE,
    keys::BACKEND_ID,
    keys::EVENT_CHANNEL,
    keys::PROTOCOL,
    keys::RING_PAGE_ORDER,
    keys::RING_REF,
    "ring-ref0",
    "ring-ref1",
    "ring-ref2",
    "ring-ref3",
    "ring-ref4",
    "ring-ref5",
    "ring-ref6",
    "ring-ref7",
];

/// Nodes of one directory, by name.
pub type Nodes = BTreeMap<&'static str, String>;

/// Which image a disk is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The storage domain, if it is named.
    pub domain: Option<u16>,
    /// Its minor.
    pub minor: u16,
}

/// A ring as the guest describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Its pages.
    pub grefs: Grefs,
    /// The guest's event channel.
    pub port: u32,
    /// Who laid its requests out.
    pub proto: Protocol,
}

/// The state that a directory says; `None` if it is not there.
pub fn state(nodes: &Nodes) -> Option<State> {
    nodes.get(keys::STATE).map(State::parse)
}

/// The image, once the toolstack has said all that it has to say; `None` until then.
pub fn named(back: &Nodes) -> Result<Option<Named>, Failure> {
    let status = back.get(keys::HOTPLUG_STATUS).map(String::as_str);
    if status.is_some_and(|status| status != "connected") || (status.is_none() && back.contains_key(SCRIPT)) {
        return Ok(None);
    }
    let wrong = |key: &str, value: &str| Failure::new(Errno::INVAL, format!("{key} \"{value}\" names no minor"));
    if let Some(path) = back.get(PHYSICAL_DEVICE_PATH) {
        return of_path(path).map(Some).ok_or_else(|| wrong(PHYSICAL_DEVICE_PATH, path));
    }
    if let Some(params) = back.get(keys::PARAMS).filter(|params| params.starts_with("minor:")) {
        let minor = params.strip_prefix("minor:").and_then(number::u16);
        return minor.map(|minor| Some(Named { domain: None, minor })).ok_or_else(|| wrong(keys::PARAMS, params));
    }
    if let Some(device) = back.get(PHYSICAL_DEVICE) {
        let minor = device.split_once(':').and_then(|(_, minor)| u16::from_str_radix(minor, 16).ok());
        return minor.map(|minor| Some(Named { domain: None, minor })).ok_or_else(|| wrong(PHYSICAL_DEVICE, device));
    }
    Ok(None)
}

/// `nbdDOMAIN.MINOR` or `tapdisk-MINOR`, in whatever folder.
fn of_path(path: &str) -> Option<Named> {
    let name = path.rsplit('/').next()?;
    if let Some(minor) = name.strip_prefix("tapdisk-") {
        return Some(Named { domain: None, minor: number::u16(minor)? });
    }
    let (domain, minor) = name.strip_prefix("nbd")?.split_once('.')?;
    Some(Named { domain: Some(number::u16(domain)?), minor: number::u16(minor)? })
}

/// How long to look at an empty ring.
pub fn poll(back: &Nodes) -> Poll {
    let number = |key| back.get(key).and_then(number::u32).unwrap_or(0);
    Poll { duration: number(POLLING_DURATION), idle_threshold: number(POLLING_IDLE_THRESHOLD) }
}

/// The ring, of as many pages as were offered at most.
pub fn ring(front: &Nodes) -> Result<Ring, Failure> {
    let wrong = |what: &str| Failure::new(Errno::INVAL, format!("the frontend's {what}"));
    let number = |key: &str| -> Result<Option<u32>, Failure> {
        let value = front.get(key);
        let number = value.map(|value| number::u32(value).ok_or_else(|| wrong(&format!("{key} is no number"))));
        number.transpose()
    };
    let missing = |key: &str| wrong(&format!("{key} is missing"));
    let grefs = match number(keys::RING_PAGE_ORDER)? {
        // Some write order 0 and the plain key.
        Some(0) if front.contains_key("ring-ref0") => vec![number("ring-ref0")?.ok_or_else(|| missing("ring-ref0"))?],
        None | Some(0) => vec![number(keys::RING_REF)?.ok_or_else(|| missing(keys::RING_REF))?],
        Some(order @ 1..=3) => {
            let page = |page| {
                let key = keys::ring_ref(page);
                number(&key)?.ok_or_else(|| missing(&key))
            };
            (0..1 << order).map(page).collect::<Result<_, _>>()?
        }
        Some(_) => return Err(wrong("ring-page-order is more than was offered")),
    };
    let proto = match front.get(keys::PROTOCOL).map(String::as_str) {
        None | Some("x86_32-abi") => Protocol::X86_32,
        Some("x86_64-abi") => Protocol::X86_64,
        Some(_) => return Err(wrong("protocol is not known")),
    };
    Ok(Ring {
        grefs: Grefs::new(&grefs).ok_or_else(|| wrong("ring has no size that a ring may have"))?,
        port: number(keys::EVENT_CHANNEL)?.ok_or_else(|| missing(keys::EVENT_CHANNEL))?,
        proto,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(text: &'static str) -> Nodes {
        text.split_whitespace().filter_map(|word| word.split_once('=')).map(|(k, v)| (k, v.to_owned())).collect()
    }

    #[test]
    fn every_way_to_name_an_image() {
        let named = |text| named(&nodes(text)).map_err(|why| why.to_string());
        let minor = |domain, minor| Ok(Some(Named { domain, minor }));
        for (text, expected) in [
            ("physical-device-path=/run/blktap-control/nbd5.3", minor(Some(5), 3)),
            ("physical-device-path=/run/blktap-control/tapdisk/tapdisk-12", minor(None, 12)),
            ("physical-device-path=nbd5.3 hotplug-status=connected script=x", minor(Some(5), 3)),
            ("params=minor:7", minor(None, 7)),
            ("physical-device=fd:1f", minor(None, 31)),
            // Named twice: the more precise one counts.
            ("params=minor:7 physical-device-path=nbd5.3 physical-device=fd:9", minor(Some(5), 3)),
            // Not yet.
            ("", Ok(None)),
            ("params=aio:/dev/xvda", Ok(None)),
            ("params=minor:7 script=/etc/xen/scripts/block-tap", Ok(None)),
            ("params=minor:7 hotplug-status=error", Ok(None)),
            ("physical-device-path=/dev/loop0", Err("physical-device-path \"/dev/loop0\" names no minor".into())),
            ("physical-device-path=nbd5", Err("physical-device-path \"nbd5\" names no minor".into())),
            ("physical-device-path=nbd70000.1", Err("physical-device-path \"nbd70000.1\" names no minor".into())),
            ("params=minor:70000", Err("params \"minor:70000\" names no minor".into())),
            ("physical-device=7", Err("physical-device \"7\" names no minor".into())),
        ] {
            assert_eq!(named(text), expected, "{text}");
        }
        assert_eq!(poll(&nodes("polling-duration=1000 polling-idle-threshold=x")).duration, 1000);
        assert_eq!(poll(&nodes("")), Poll::default());
    }

    #[test]
    fn rings_of_every_order() {
        let good = |text, grefs: &[u32], proto| {
            let expected = Ring { grefs: Grefs::new(grefs).unwrap(), port: 9, proto };
            assert_eq!(ring(&nodes(text)), Ok(expected), "{text}");
        };
        good("ring-ref=8 event-channel=9", &[8], Protocol::X86_32);
        good("ring-ref=8 event-channel=9 protocol=x86_64-abi", &[8], Protocol::X86_64);
        good("ring-ref=8 ring-page-order=0 event-channel=9 protocol=x86_32-abi", &[8], Protocol::X86_32);
        good("ring-ref0=8 ring-page-order=0 event-channel=9", &[8], Protocol::X86_32);
        good("ring-page-order=1 ring-ref0=8 ring-ref1=7 event-channel=9", &[8, 7], Protocol::X86_32);
        let refs = "ring-page-order=3 ring-ref0=1 ring-ref1=2 ring-ref2=3 ring-ref3=4 ring-ref4=5 ring-ref5=6 \
                    ring-ref6=7 ring-ref7=8 event-channel=9";
        good(refs, &[1, 2, 3, 4, 5, 6, 7, 8], Protocol::X86_32);
        for (text, why) in [
            ("", "ring-ref is missing"),
            ("event-channel=9", "ring-ref is missing"),
            ("ring-ref=8", "event-channel is missing"),
            ("ring-ref=-1 event-channel=9", "ring-ref is no number"),
            ("ring-ref=4294967296 event-channel=9", "ring-ref is no number"),
            ("ring-ref=8 event-channel=x", "event-channel is no number"),
            ("ring-page-order=1 ring-ref0=8 event-channel=9", "ring-ref1 is missing"),
            ("ring-page-order=4 ring-ref=8 event-channel=9", "ring-page-order is more than was offered"),
            ("ring-page-order=4294967295 event-channel=9", "ring-page-order is more than was offered"),
            ("ring-page-order=x event-channel=9", "ring-page-order is no number"),
            ("ring-ref=8 event-channel=9 protocol=arm-abi", "protocol is not known"),
        ] {
            let refused = ring(&nodes(text)).unwrap_err();
            assert_eq!((refused.status(), refused.to_string()), (22, format!("the frontend's {why}")), "{text}");
        }
    }
}
