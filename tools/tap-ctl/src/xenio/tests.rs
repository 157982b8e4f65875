//! A disk's life against a store in memory and a storage domain that answers at once.

use std::collections::BTreeMap;

use super::*;
use crate::scripted::Scripted;

const HOME: &str = "/local/domain/0/backend/vbd3/7/51712";
const GUEST: &str = "/local/domain/7/device/vbd/51712";

/// xenstore in memory: nodes, and the paths that are watched.
#[derive(Default)]
struct Memory {
    nodes: BTreeMap<String, String>,
    watched: Vec<String>,
    /// All that was written here, and not set by others.
    written: Vec<String>,
    /// Before the next write, this happens.
    meanwhile: Option<(String, Option<String>)>,
}

impl Memory {
    fn with_disk() -> Memory {
        let mut tree = Memory::default();
        for (name, value) in [
            ("frontend", GUEST),
            ("frontend-id", "7"),
            ("online", "1"),
            ("mode", "w"),
            ("state", "1"),
            ("physical-device-path", "/run/blktap-control/nbd5.3"),
        ] {
            tree.set(&format!("{HOME}/{name}"), value);
        }
        tree.set(&format!("{GUEST}/state"), "1");
        tree.set(&format!("{GUEST}/backend-id"), "5");
        tree
    }

    fn set(&mut self, path: &str, value: &str) {
        self.nodes.insert(path.to_owned(), value.to_owned());
    }

    fn remove(&mut self, path: &str) {
        self.nodes.retain(|node, _| !node.starts_with(path));
    }

    fn guest_says(&mut self, state: &str) {
        for (name, value) in [("ring-ref", "8"), ("event-channel", "9"), ("protocol", "x86_64-abi"), ("state", state)] {
            self.set(&format!("{GUEST}/{name}"), value);
        }
    }

    fn back(&self, name: &str) -> &str {
        self.nodes.get(&format!("{HOME}/{name}")).map_or("", String::as_str)
    }
}

impl Tree for Memory {
    fn read(&mut self, path: &str) -> Result<Option<String>, Failure> {
        Ok(self.nodes.get(path).cloned())
    }
    fn write_if(&mut self, path: &str, value: &str, nodes: &[(String, String)]) -> Result<bool, Failure> {
        match self.meanwhile.take() {
            Some((path, Some(value))) => self.set(&path, &value),
            Some((path, None)) => self.remove(&path),
            None => {}
        }
        if self.nodes.get(path).map(String::as_str) != Some(value) {
            return Ok(false);
        }
        self.written.extend(nodes.iter().map(|(path, _)| path.clone()));
        self.nodes.extend(nodes.iter().cloned());
        Ok(true)
    }
    fn watch(&mut self, path: &str, _: &str) -> Result<(), Failure> {
        self.watched.push(path.to_owned());
        Ok(())
    }
    fn unwatch(&mut self, path: &str, _: &str) -> Result<(), Failure> {
        self.watched.retain(|watched| watched != path);
        Ok(())
    }
}

fn setting(host: &Scripted) -> Setting<'_> {
    Setting {
        host,
        asked: None,
        channel: "data/tapdisk",
        dialect: Dialect::Blktap,
        root: "/local/domain/0/backend/vbd3",
        flush: true,
        debug: false,
    }
}

#[test]
fn a_whole_life() {
    let host = Scripted::new();
    let setting = setting(&host);
    let (mut tree, mut keeper) = (Memory::with_disk(), Keeper::new(&setting, (7, 51712)));
    assert_eq!(keeper.turn(&mut tree), Ok(Went::Still));
    assert_eq!((tree.back("state"), tree.back("max-ring-page-order")), ("2", "3"));
    assert_eq!(tree.watched, [format!("{GUEST}/state")]);
    assert_eq!(host.asked(), [""; 0]);
    tree.guest_says("3");
    assert_eq!(keeper.turn(&mut tree), Ok(Went::Still));
    assert_eq!(host.asked(), ["disk info 3", "blkif connect 3"]);
    let said = ["state", "sectors", "sector-size", "info", "feature-flush-cache", "feature-barrier"];
    assert_eq!(said.map(|name| tree.back(name)), ["4", "24576", "512", "0", "1", "0"]);
    tree.guest_says("4");
    assert_eq!(keeper.turn(&mut tree), Ok(Went::Still));
    assert_eq!(host.asked(), [""; 0]);
    tree.guest_says("5");
    assert_eq!(keeper.turn(&mut tree), Ok(Went::Still));
    assert_eq!((tree.back("state"), host.asked()), ("5", vec![]));
    tree.guest_says("6");
    assert_eq!(keeper.turn(&mut tree), Ok(Went::Still));
    assert_eq!((tree.back("state"), host.asked()), ("6", vec!["blkif disconnect 0".to_owned()]));
    // Once more by the same guest.
    tree.guest_says("1");
    assert_eq!(keeper.turn(&mut tree), Ok(Went::Still));
    tree.guest_says("3");
    assert_eq!(keeper.turn(&mut tree), Ok(Went::Still));
    assert_eq!((tree.back("state"), host.world.lock().unwrap().rings.len()), ("4", 1));
    tree.remove(HOME);
    assert_eq!(keeper.turn(&mut tree), Ok(Went::Away));
    assert!(tree.watched.is_empty() && host.world.lock().unwrap().rings.is_empty());
}

#[test]
fn a_toolstack_takes_the_disk_away() {
    let host = Scripted::new();
    let setting = setting(&host);
    let (mut tree, mut keeper) = (Memory::with_disk(), Keeper::new(&setting, (7, 51712)));
    tree.guest_says("3");
    assert_eq!(keeper.turn(&mut tree), Ok(Went::Still));
    tree.guest_says("4");
    tree.set(&format!("{HOME}/online"), "0");
    tree.set(&format!("{HOME}/state"), "5");
    assert_eq!(keeper.turn(&mut tree), Ok(Went::Still));
    assert_eq!(host.world.lock().unwrap().rings.len(), 1);
    tree.guest_says("6");
    assert_eq!(keeper.turn(&mut tree), Ok(Went::Still));
    assert_eq!((tree.back("state"), host.world.lock().unwrap().rings.len()), ("6", 0));
    // Its own word wakes it and leads to nothing.
    host.asked();
    assert_eq!(keeper.turn(&mut tree), Ok(Went::Still));
    assert_eq!((tree.back("state"), host.asked()), ("6", vec![]));
}

#[test]
fn a_state_is_not_said_twice() {
    let host = Scripted::new();
    let setting = setting(&host);
    let (mut tree, mut keeper) = (Memory::with_disk(), Keeper::new(&setting, (7, 51712)));
    tree.guest_says("3");
    assert_eq!(keeper.turn(&mut tree), Ok(Went::Still));
    tree.guest_says("4");
    // The toolstack ends it by itself.
    tree.set(&format!("{HOME}/state"), "6");
    tree.written.clear();
    assert_eq!(keeper.turn(&mut tree), Ok(Went::Still));
    assert_eq!((tree.written.len(), host.world.lock().unwrap().rings.len()), (0, 0));
}

#[test]
fn started_anew_under_a_guest_that_is_connected() {
    for dialect in Dialect::ALL {
        let host = Scripted::new();
        let setting = Setting { dialect, ..setting(&host) };
        host.world.lock().unwrap().rfc = dialect == Dialect::Rfc;
        let mut tree = Memory::with_disk();
        tree.guest_says("4");
        tree.set(&format!("{HOME}/state"), "4");
        host.world.lock().unwrap().rings.push((Vdev { domid: 7, devid: 51712 }, 3));
        let mut keeper = Keeper::new(&setting, (7, 51712));
        assert_eq!(keeper.turn(&mut tree), Ok(Went::Still));
        assert_eq!((tree.back("state"), tree.back("sectors")), ("4", "24576"));
        // The ring is known for ours, and let go with the directory.
        tree.remove(HOME);
        assert_eq!(keeper.turn(&mut tree), Ok(Went::Away));
        assert!(host.world.lock().unwrap().rings.is_empty());
    }
}

#[test]
fn what_is_refused_says_why_and_is_not_tried_again() {
    let told = |change: &dyn Fn(&mut Memory, &Scripted)| {
        let host = Scripted::new();
        let setting = setting(&host);
        let mut tree = Memory::with_disk();
        tree.guest_says("3");
        change(&mut tree, &host);
        let mut keeper = Keeper::new(&setting, (7, 51712));
        for _ in 0..3 {
            assert_eq!(keeper.turn(&mut tree), Ok(Went::Still));
        }
        assert!(host.world.lock().unwrap().rings.is_empty());
        (tree.back("state").to_owned(), tree.back("hotplug-error").to_owned(), host.asked())
    };
    let state = |(state, text, _): (String, String, Vec<String>)| (state, text);
    let set = |name: &'static str, value: &'static str| {
        move |tree: &mut Memory, _: &Scripted| tree.set(&format!("{HOME}/{name}"), value)
    };
    assert_eq!(
        state(told(&|tree, _| tree.set(&format!("{GUEST}/backend-id"), "0"))),
        ("5".into(), "22 the frontend's backend-id is not 5, so tapdom (domain 5) cannot map its ring".into())
    );
    assert_eq!(
        state(told(&set("physical-device-path", "/run/blktap-control/nbd9.3"))),
        ("6".into(), "19 there is no domain 9".into())
    );
    assert_eq!(
        state(told(&set("mode", "r"))),
        ("5".into(), "30 mode is r, but minor 3 is open for writing: open it with -R".into())
    );
    assert_eq!(
        state(told(&set("frontend-id", "8"))),
        ("6".into(), "22 frontend-id is not the domain of the directory's name".into())
    );
    let (own, text, asked) = told(&|_, host| host.world.lock().unwrap().refuses = Some(("blkif connect", 19)));
    assert_eq!((own.as_str(), text.as_str()), ("5", "19 tapdom (domain 5), minor 3: blkif connect: so it is written"));
    assert_eq!(asked, ["disk info 3", "blkif connect 3"]);
}

#[test]
fn a_read_only_disk_is_told_as_one() {
    let host = Scripted::new();
    let setting = setting(&host);
    host.world.lock().unwrap().info = INFO_READONLY;
    let (mut tree, mut keeper) = (Memory::with_disk(), Keeper::new(&setting, (7, 51712)));
    tree.set(&format!("{HOME}/mode"), "r");
    tree.set(&format!("{HOME}/device-type"), "cdrom");
    tree.guest_says("3");
    assert_eq!(keeper.turn(&mut tree), Ok(Went::Still));
    assert_eq!((tree.back("state"), tree.back("info")), ("4", "5"));
}

#[test]
fn what_the_toolstack_does_meanwhile_is_not_written_over() {
    let host = Scripted::new();
    let setting = setting(&host);
    let (mut tree, mut keeper) = (Memory::with_disk(), Keeper::new(&setting, (7, 51712)));
    assert_eq!(keeper.turn(&mut tree), Ok(Went::Still));
    // Between our look and our write the directory goes: it must not come back as a torso.
    tree.guest_says("3");
    tree.meanwhile = Some((HOME.to_owned(), None));
    assert_eq!(keeper.turn(&mut tree), Ok(Went::Away));
    assert!(!tree.nodes.keys().any(|node| node.starts_with(HOME)));
    assert!(host.world.lock().unwrap().rings.is_empty());
    // Or it asks us to close.
    let (mut tree, mut keeper) = (Memory::with_disk(), Keeper::new(&setting, (7, 51712)));
    assert_eq!(keeper.turn(&mut tree), Ok(Went::Still));
    tree.guest_says("3");
    tree.meanwhile = Some((format!("{HOME}/state"), Some("5".to_owned())));
    assert_eq!(keeper.turn(&mut tree), Ok(Went::Still));
    assert_eq!((tree.back("state"), host.world.lock().unwrap().rings.len()), ("6", 0));
}

#[test]
fn keys_of_paths() {
    assert_eq!(key("7/51712"), Some((7, 51712)));
    assert_eq!(key("7/51712/state"), Some((7, 51712)));
    for other in ["", "7", "7/", "x/1", "70000/1", "7/x"] {
        assert_eq!(key(other), None, "{other}");
    }
}
