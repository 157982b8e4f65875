//! Images that a storage domain has open: refused, or snapshotted under it. The storage domain is a thread behind a socket
//! that holds, opens and exchanges real images.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use protocol::tapdisk::{Body, Dialect, Listed, MESSAGE_BYTES_MAX, Message, Response, Text};
use vhd::disk;
use vhd::store::{Access, FileStore};

use crate::judges::{Folder, Load, Numbers, assert_clean, assert_same, by_engine, by_libvhdi, open, play, vhd};

const PAUSED: u32 = 0x2a;

/// What a server does with a RESUME onto another image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Does,
    Refuses,
    /// It refuses every RESUME.
    RefusesAll,
    /// It does it, and its answer is lost.
    DoesUnheard,
    /// It does not, and its answer is lost.
    RefusesUnheard,
    /// It closes the VBD, and its answer is lost.
    ClosesUnheard,
}

/// A storage domain with one VBD, of minor 7.
struct Served {
    name: String,
    state: u32,
    way: Way,
    asked: Vec<String>,
}

struct Server {
    socket: PathBuf,
    served: Arc<Mutex<Served>>,
}

impl Server {
    fn new(folder: &Folder, name: String, way: Way) -> Server {
        let socket = folder.file("ctl");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let served = Arc::new(Mutex::new(Served { name, state: 0, way, asked: Vec::new() }));
        let shared = served.clone();
        // It ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = shared.lock().unwrap().talk(stream.unwrap());
            }
        });
        Server { socket, served }
    }

    fn vhd(&self, words: &[&str]) -> Result<String, (i32, String)> {
        vhd(&[&["--socket", self.socket.to_str().unwrap()], words].concat())
    }

    fn now(&self) -> (String, u32) {
        let served = self.served.lock().unwrap();
        (served.name.clone(), served.state)
    }

    /// What it was asked since this was last called, LIST apart.
    fn asked(&self) -> Vec<String> {
        let mut asked = std::mem::take(&mut self.served.lock().unwrap().asked);
        asked.retain(|asked| !asked.starts_with("LIST"));
        asked
    }
}

impl Served {
    fn talk(&mut self, mut stream: UnixStream) -> std::io::Result<()> {
        let mut bytes = vec![0; Dialect::Blktap.message_bytes()];
        stream.read_exact(&mut bytes)?;
        let message = Message::decode(Dialect::Blktap, &bytes).unwrap();
        for body in self.answer(&message) {
            let mut bytes = [0; MESSAGE_BYTES_MAX];
            let answer = Message { cookie: message.cookie, body };
            stream.write_all(answer.encode(Dialect::Blktap, &mut bytes).unwrap())?;
        }
        Ok(())
    }

    fn answer<'a>(&'a mut self, message: &Message<'_>) -> Vec<Body<'a>> {
        let refused = || vec![Body::Error(Response { error: 5, message: Text::cut("so it is written") })];
        match &message.body {
            Body::List => {
                self.asked.push("LIST".into());
                let vbd = Listed { count: 1, minor: 7, state: self.state, path: Text::new(&self.name).unwrap() };
                vec![Body::ListRsp(vbd), Body::ListRsp(Listed::END)]
            }
            Body::Pause => {
                self.asked.push("PAUSE".into());
                self.state = PAUSED;
                vec![Body::PauseRsp(Response::DONE)]
            }
            Body::Resume(params) => {
                let name = params.path.to_string();
                self.asked.push(format!("RESUME {name}"));
                let other = name != self.name;
                let way = if other || self.way == Way::RefusesAll { self.way } else { Way::Does };
                match way {
                    Way::Refuses | Way::RefusesAll => return refused(),
                    Way::RefusesUnheard => return Vec::new(),
                    Way::ClosesUnheard => {
                        self.state = 2;
                        return Vec::new();
                    }
                    Way::Does | Way::DoesUnheard => {}
                }
                // Nobody may have it open for writing meanwhile.
                match name.split_once(':').expect("a type") {
                    ("vhd", path) => drop(disk::open(Path::new(path), Access::Write, Access::Read).expect("an image")),
                    (_, path) => drop(FileStore::open(Path::new(path), Access::Write).expect("a file")),
                }
                (self.name, self.state) = (name, 0);
                if way == Way::DoesUnheard { Vec::new() } else { vec![Body::ResumeRsp(Response::DONE)] }
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A base and a leaf on it, of which the leaf is served.
fn served(test: &str, way: Way) -> (Folder, Server, [PathBuf; 3]) {
    let folder = Folder::new(test);
    let files = ["base.vhd", "leaf.vhd", "new.vhd"].map(|name| folder.file(name));
    let [base, leaf, _] = files.each_ref().map(|path| path.to_str().unwrap());
    vhd(&["create", base, "8M"]).unwrap();
    vhd(&["snapshot", leaf, base]).unwrap();
    let server = Server::new(&folder, format!("vhd:{leaf}"), way);
    (folder, server, files)
}

#[test]
fn a_snapshot_under_a_minor_holds_it_and_lets_it_go_on_there() {
    for way in [Way::Does, Way::DoesUnheard] {
        let (_folder, server, [_, leaf, new]) = served(&format!("under-{way:?}"), way);
        let (leaf, new) = (leaf.to_str().unwrap(), new.to_str().unwrap());
        server.vhd(&["snapshot", new, leaf, "--minor", "7"]).unwrap();
        assert_eq!(server.asked(), ["PAUSE".to_owned(), format!("RESUME vhd:{new}")], "{way:?}");
        assert_eq!(server.now(), (format!("vhd:{new}"), 0));
        assert_eq!(vhd(&["read", new, "parent"]).unwrap().trim(), "./leaf.vhd");
        assert_clean(Path::new(new));
    }
}

#[test]
fn what_cannot_be_done_is_undone() {
    // It does not open the new image.
    for (way, status) in [(Way::Refuses, 5), (Way::RefusesUnheard, 104)] {
        let (_folder, server, [_, leaf, new]) = served(&format!("undone-{way:?}"), way);
        let (leaf, name) = (leaf.to_str().unwrap(), new.to_str().unwrap());
        let (number, text) = server.vhd(&["snapshot", name, leaf, "--minor", "7"]).unwrap_err();
        assert_eq!((number, text.contains("; and ")), (status, false), "{text}");
        let asked = ["PAUSE".to_owned(), format!("RESUME vhd:{name}"), format!("RESUME vhd:{leaf}")];
        assert_eq!(server.asked(), asked, "{way:?}");
        assert_eq!(server.now(), (format!("vhd:{leaf}"), 0));
        assert!(!new.exists(), "{way:?}: nobody's image stays");
    }
    // The image cannot be made.
    let (folder, server, [_, leaf, new]) = served("undone-made", Way::Does);
    let (leaf, name) = (leaf.to_str().unwrap(), new.to_str().unwrap());
    std::fs::write(&new, [7; 1024]).unwrap();
    let (number, text) = server.vhd(&["snapshot", name, leaf, "--minor", "7"]).unwrap_err();
    assert_eq!((number, text.contains("is there already")), (17, true), "{text}");
    assert_eq!(server.asked(), ["PAUSE".to_owned(), format!("RESUME vhd:{leaf}")]);
    assert_eq!(server.now(), (format!("vhd:{leaf}"), 0));
    assert_eq!(std::fs::read(&new).unwrap(), [7; 1024], "it is somebody else's");
    drop(folder);
}

#[test]
fn what_cannot_be_undone_is_told() {
    let (_folder, server, [_, leaf, new]) = served("held", Way::RefusesAll);
    let (leaf, name) = (leaf.to_str().unwrap(), new.to_str().unwrap());
    let (number, text) = server.vhd(&["snapshot", name, leaf, "--minor", "7"]).unwrap_err();
    assert_eq!((number, text.contains("minor 7 is still held")), (5, true), "{text}");
    assert_eq!(server.now(), (format!("vhd:{leaf}"), PAUSED));
    assert!(!new.exists());

    // Another client was at it: whatever it did, the new image may be in use.
    let (_folder, server, [_, leaf, new]) = served("unknown", Way::ClosesUnheard);
    let (leaf, name) = (leaf.to_str().unwrap(), new.to_str().unwrap());
    let (number, text) = server.vhd(&["snapshot", name, leaf, "--minor", "7"]).unwrap_err();
    assert_eq!((number, text.contains("nothing was undone")), (104, true), "{text}");
    assert_eq!(server.asked().len(), 2);
    assert!(new.exists());
}

#[test]
fn other_work_holds_a_minor_and_lets_it_go_on_where_it_was() {
    let (_folder, server, [_, leaf, _]) = served("work", Way::Does);
    let leaf = leaf.to_str().unwrap();
    let held = ["PAUSE".to_owned(), format!("RESUME vhd:{leaf}")];
    for words in [
        &["repair", leaf][..],
        &["resize", leaf, "16M"],
        &["set", leaf, "hidden", "1"],
        &["set", leaf, "parent", "base.vhd"],
        &["check", leaf],
        &["check", "--chain", leaf],
    ] {
        let (number, text) = server.vhd(words).unwrap_err();
        assert_eq!((number, text.contains("minor 7 has it open")), (16, true), "{words:?}: {text}");
        assert_eq!(server.asked(), [""; 0]);
        server.vhd(&[words, &["--minor", "7"]].concat()).unwrap_or_else(|(_, text)| panic!("{words:?}: {text}"));
        assert_eq!(server.asked(), held, "{words:?}");
        assert_eq!(server.now(), (format!("vhd:{leaf}"), 0), "{words:?}");
    }
    assert_eq!(vhd(&["read", leaf, "size"]).unwrap().trim(), (16 << 20).to_string());
    // What fails lets it go on too.
    assert_eq!(server.vhd(&["resize", leaf, "8M", "--minor", "7"]).unwrap_err().0, 22);
    assert_eq!(server.asked(), held);
    assert_eq!(server.vhd(&["repair", leaf, "--minor", "8"]).unwrap_err().0, 19);
    assert_eq!(server.asked(), [""; 0]);
    assert_eq!(server.now(), (format!("vhd:{leaf}"), 0));
}

/// A minor's leaf, with something in all of its images, and what it holds.
fn filled(test: &str, way: Way) -> (Folder, Server, [PathBuf; 3], Vec<u8>) {
    let (folder, server, files) = served(test, way);
    let (mut numbers, mut model) = (Numbers::new(71), vec![0; 8 << 20]);
    play(&open(&files[0]), &mut model, &mut numbers, Load::Writes, 20);
    play(&open(&files[1]), &mut model, &mut numbers, Load::Pages, 20);
    (folder, server, files, model)
}

#[test]
fn a_leaf_is_coalesced_under_its_minor_which_goes_on_on_the_parent() {
    for way in [Way::Does, Way::DoesUnheard] {
        let (_folder, server, [base, leaf, _], model) = filled(&format!("coalesced-{way:?}"), way);
        let name = base.canonicalize().unwrap();
        server.vhd(&["coalesce", leaf.to_str().unwrap(), "--minor", "7"]).unwrap();
        assert_eq!(server.asked(), ["PAUSE".to_owned(), format!("RESUME vhd:{}", name.display())], "{way:?}");
        assert_eq!(server.now(), (format!("vhd:{}", name.display()), 0));
        assert_same("libvhdi", &by_libvhdi(std::slice::from_ref(&base)), &model);
        assert_clean(&base);
    }
    // One that is no VHD.
    let (folder, server, [_, leaf, _]) = served("coalesced-raw", Way::Does);
    let (raw, leaf) = (folder.file("raw"), leaf.to_str().unwrap());
    std::fs::write(&raw, vec![5; 8 << 20]).unwrap();
    std::fs::remove_file(leaf).unwrap();
    vhd(&["snapshot", leaf, raw.to_str().unwrap(), "--raw"]).unwrap();
    server.vhd(&["coalesce", leaf, "--minor", "7"]).unwrap();
    let name = raw.canonicalize().unwrap();
    assert_eq!(server.now(), (format!("aio:{}", name.display()), 0));
}

#[test]
fn a_minor_stays_on_its_leaf_where_that_cannot_be_coalesced_or_the_parent_not_opened() {
    let (_folder, server, [base, leaf, _], model) = filled("not-coalesced", Way::Refuses);
    let (base, name) = (base.canonicalize().unwrap(), leaf.to_str().unwrap());
    assert_eq!(server.vhd(&["coalesce", name, "--minor", "7"]).unwrap_err().0, 5);
    let asked = ["PAUSE".to_owned(), format!("RESUME vhd:{}", base.display()), format!("RESUME vhd:{name}")];
    assert_eq!(server.asked(), asked);
    assert_same("the leaf has all of it", &by_engine(&leaf), &model);
    vhd(&["resize", name, "16M"]).unwrap();
    let (number, text) = server.vhd(&["coalesce", name, "--minor", "7"]).unwrap_err();
    assert_eq!((number, text.contains("make that larger first")), (22, true), "{text}");
    assert_eq!(server.asked(), ["PAUSE".to_owned(), format!("RESUME vhd:{name}")]);
    assert_eq!(server.now(), (format!("vhd:{name}"), 0));
}

/// What a child has may go into its parent under whoever reads through that child, and under nobody else.
#[test]
fn a_parent_that_another_child_shows_is_not_coalesced_into() {
    let (folder, server, [base, leaf, new]) = served("sibling", Way::Does);
    let [base, leaf, new] = [&base, &leaf, &new].map(|path| path.to_str().unwrap());
    let other = folder.file("other.vhd");
    let other = other.to_str().unwrap();
    vhd(&["snapshot", other, base]).unwrap();
    let (number, text) = server.vhd(&["coalesce", other]).unwrap_err();
    assert_eq!((number, text.contains("base.vhd: ")), (16, true), "{text}");
    vhd(&["snapshot", new, leaf]).unwrap();
    server.served.lock().unwrap().name = format!("vhd:{new}");
    server.vhd(&["coalesce", leaf]).unwrap();
    assert_eq!(server.vhd(&["coalesce", other]).unwrap_err().0, 16);
    assert_eq!(server.asked(), [""; 0]);
}

#[test]
fn only_what_a_minor_has_open_is_snapshotted_under_it() {
    let (_folder, server, [base, leaf, new]) = served("other", Way::Does);
    let [base, leaf, new] = [&base, &leaf, &new].map(|path| path.to_str().unwrap());
    for (words, status) in [
        (["snapshot", new, base, "--minor", "7"], 22),
        (["snapshot", new, leaf, "--minor", "8"], 19),
        (["snapshot", leaf, base, "--minor", "7"], 16),
    ] {
        let (number, text) = server.vhd(&words).unwrap_err();
        assert_eq!(number, status, "{words:?}: {text}");
    }
    assert_eq!(server.vhd(&["snapshot", new, leaf, "--minor", "7", "--raw"]).unwrap_err().0, 22);
    server.served.lock().unwrap().state = PAUSED;
    assert_eq!(server.vhd(&["snapshot", new, leaf, "--minor", "7"]).unwrap_err().0, 22, "somebody else holds it");
    assert_eq!(server.asked(), [""; 0]);
    assert!(!Path::new(new).exists());
    // Nobody is there to be asked.
    assert_eq!(vhd(&["snapshot", new, leaf, "--minor", "7"]).unwrap_err().0, 19);
}

#[test]
fn what_a_storage_domain_has_open_is_left_alone() {
    let (_folder, server, [base, leaf, new]) = served("open", Way::Does);
    let [base, leaf, new] = [&base, &leaf, &new].map(|path| path.to_str().unwrap());
    vhd(&["snapshot", new, leaf]).unwrap();
    let written: &[&[&str]] = &[
        &["repair", leaf],
        &["resize", leaf, "16M"],
        &["resize", base, "16M"],
        &["coalesce", leaf],
        &["coalesce", new],
        &["set", leaf, "hidden", "1"],
        &["set", leaf, "parent", "base.vhd"],
        &["check", leaf],
        &["check", "--chain", new],
    ];
    for words in written {
        let (number, text) = server.vhd(words).unwrap_err();
        assert_eq!((number, text.contains("minor 7 has it open")), (16, true), "{words:?}: {text}");
    }
    // What is below may be read, and marked; what is beside it, anything.
    for words in [&["set", base, "hidden", "1"][..], &["check", base], &["check", "--share", leaf], &["check", new]] {
        server.vhd(words).unwrap_or_else(|(_, text)| panic!("{words:?}: {text}"));
    }
    // While it is held, nobody has it.
    server.served.lock().unwrap().state = PAUSED;
    for words in written {
        server.vhd(words).unwrap_or_else(|(_, text)| panic!("{words:?}: {text}"));
    }
    // Who cannot be asked may have it.
    std::fs::remove_file(&server.socket).unwrap();
    let (number, text) = server.vhd(&["repair", leaf]).unwrap_err();
    assert_eq!((number, text.contains("cannot be known")), (16, true), "{text}");
}
