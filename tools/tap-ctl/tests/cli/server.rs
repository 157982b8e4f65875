//! A tapdisk that answers from a script, on a socket of its own. It shares no code with what it judges: messages are
//! bytes at offsets here.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

/// `sizeof(tapdisk_message_t)` of blktap on x86-64.
pub const BYTES: usize = 544;

/// Ids of blktap's header.
pub mod id {
    pub const ERROR: u16 = 1;
    pub const PID: u16 = 3;
    pub const ATTACH: u16 = 5;
    pub const OPEN: u16 = 7;
    pub const PAUSE: u16 = 9;
    pub const RESUME: u16 = 11;
    pub const CLOSE: u16 = 13;
    pub const DETACH: u16 = 15;
    pub const LIST: u16 = 19;
    pub const STATS: u16 = 21;
    pub const FORCE_SHUTDOWN: u16 = 23;
    pub const CONNECT: u16 = 24;
    pub const DISCONNECT: u16 = 26;
    pub const DISK_INFO: u16 = 28;
    pub const EXIT: u16 = 30;
}

/// A request as it came, with what followed it.
#[derive(Clone)]
pub struct Asked {
    pub bytes: Vec<u8>,
}

impl Asked {
    pub fn id(&self) -> u16 {
        u16::from_le_bytes([self.bytes[0], self.bytes[1]])
    }
    pub fn cookie(&self) -> u16 {
        u16::from_le_bytes([self.bytes[2], self.bytes[3]])
    }
    /// A word of the union, which begins at 8.
    pub fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[8 + at..12 + at].try_into().unwrap())
    }
    /// A text of the union.
    pub fn text(&self, at: usize) -> String {
        let field = &self.bytes[8 + at..];
        let end = field.iter().position(|byte| *byte == 0).unwrap();
        String::from_utf8(field[..end].to_vec()).unwrap()
    }
}

/// What the server does about a request.
pub enum Answer {
    /// These bytes.
    Bytes(Vec<u8>),
    /// These bytes, one by one.
    Split(Vec<u8>),
    /// Nothing, and the connection stays.
    Silence,
    /// Nothing, and the connection ends.
    Hangup,
}

/// A message of this id, with bytes in its union.
pub fn message(id: u16, cookie: u16, union: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; BYTES];
    bytes[..2].copy_from_slice(&id.to_le_bytes());
    bytes[2..4].copy_from_slice(&cookie.to_le_bytes());
    for (at, part) in union {
        bytes[8 + at..8 + at + part.len()].copy_from_slice(part);
    }
    bytes
}

/// The response of a request that was done.
pub fn done(asked: &Asked) -> Vec<u8> {
    let id = if asked.id() == id::FORCE_SHUTDOWN { id::CLOSE } else { asked.id() };
    message(id + 1, asked.cookie(), &[])
}

/// ERROR.
pub fn refused(asked: &Asked, errno: i32, text: &str) -> Vec<u8> {
    message(id::ERROR, asked.cookie(), &[(0, &errno.to_le_bytes()), (4, text.as_bytes())])
}

/// One LIST_RSP.
pub fn listed(cookie: u16, count: i32, minor: i32, state: u32, path: &str) -> Vec<u8> {
    let union: [(usize, &[u8]); 4] =
        [(0, &count.to_le_bytes()), (4, &minor.to_le_bytes()), (8, &state.to_le_bytes()), (12, path.as_bytes())];
    message(id::LIST + 1, cookie, &union)
}

/// The server.
pub struct Server {
    folder: PathBuf,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// Answers every request by `script`.
    pub fn new(name: &str, script: impl Fn(&Asked) -> Answer + Send + 'static) -> Server {
        let folder = std::env::temp_dir().join(format!("tap-ctl-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let listener = UnixListener::bind(folder.join("ctl")).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = asked.clone();
        thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                silent.extend(serve(stream, &heard, &script));
            }
        });
        Server { folder, asked }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Runs tap-ctl against it.
    pub fn run(&self, words: &[&str]) -> Said {
        let socket = self.folder.join("ctl");
        let mut all = vec!["--socket", socket.to_str().unwrap()];
        all.extend(words);
        run(&all, b"", &self.folder)
    }

    /// As [`run`](Server::run), with something on standard input.
    pub fn run_with(&self, words: &[&str], input: &[u8]) -> Said {
        let socket = self.folder.join("ctl");
        let mut all = vec!["--socket", socket.to_str().unwrap()];
        all.extend(words);
        run(&all, input, &self.folder)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// One connection, as tapdisk has them: one request, one answer, the end. A silent one is given back, to stay open.
fn serve(mut stream: UnixStream, heard: &Mutex<Vec<Asked>>, script: &impl Fn(&Asked) -> Answer) -> Option<UnixStream> {
    let mut bytes = vec![0; BYTES];
    stream.read_exact(&mut bytes).ok()?;
    let asked = Asked { bytes: bytes.clone() };
    let flags = asked.word(0);
    if matches!(asked.id(), id::OPEN | id::RESUME) && flags & 0x010 != 0 {
        bytes.resize(BYTES + 256, 0);
        stream.read_exact(&mut bytes[BYTES..]).ok()?;
    }
    if asked.id() == id::OPEN && flags & 0x400 != 0 {
        let mut length = [0];
        stream.read_exact(&mut length).ok()?;
        bytes.push(length[0]);
        let mut key = vec![0; length[0].into()];
        stream.read_exact(&mut key).ok()?;
        bytes.extend(key);
    }
    let asked = Asked { bytes };
    heard.lock().unwrap().push(asked.clone());
    match script(&asked) {
        Answer::Bytes(bytes) => drop(stream.write_all(&bytes)),
        Answer::Split(bytes) => bytes.iter().for_each(|byte| drop(stream.write_all(&[*byte]))),
        Answer::Silence => return Some(stream),
        Answer::Hangup => {}
    }
    None
}

/// What the program said and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    pub status: i32,
    pub out: String,
    pub err: String,
}

/// Runs tap-ctl.
pub fn run(words: &[&str], input: &[u8], control: &Path) -> Said {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tap-ctl"))
        .arg("--control")
        .arg(control)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does not read its input may have closed it.
    let _ = child.stdin.take().unwrap().write_all(input);
    let said = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { status: said.status.code().unwrap(), out: text(said.stdout), err: text(said.stderr) }
}
