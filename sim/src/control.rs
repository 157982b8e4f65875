//! A client of the control plane, in dom0: tapdisk's messages as blktap's C structures lay them out on x86-64, read a
//! second time, over a vchan.

use std::time::Duration;

use xen::port::DomId;

use crate::run::{DRIVER, Run};
use crate::vchan::client::Client;
use crate::world::DOM0;

/// Which structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// The RFC's: 536 bytes.
    Rfc,
    /// blktap's: 544 bytes.
    Blktap,
}

/// Ids that both dialects share, and those that they do not.
#[allow(missing_docs)]
pub mod id {
    pub const ERROR: u16 = 1;
    pub const RUNTIME_ERROR: u16 = 2;
    pub const PID: u16 = 3;
    pub const ATTACH: u16 = 5;
    pub const OPEN: u16 = 7;
    pub const PAUSE: u16 = 9;
    pub const RESUME: u16 = 11;
    pub const CLOSE: u16 = 13;
    pub const DETACH: u16 = 15;
    pub const LIST_MINORS: u16 = 17;
    pub const LIST: u16 = 19;
    pub const STATS: u16 = 21;
    pub const FORCE_SHUTDOWN: u16 = 23;
    pub const EXIT: u16 = 30;
}

impl Dialect {
    /// Bytes of a message.
    pub fn bytes(self) -> usize {
        if self == Dialect::Rfc { 536 } else { 544 }
    }

    /// Where it is offered.
    pub fn path(self) -> &'static str {
        if self == Dialect::Rfc { "/local/domain/1/data/tapdisk-rfc" } else { "/local/domain/1/data/tapdisk" }
    }

    /// XENBLKIF_CONNECT.
    pub fn connect(self) -> u16 {
        if self == Dialect::Rfc { 26 } else { 24 }
    }

    /// XENBLKIF_DISCONNECT.
    pub fn disconnect(self) -> u16 {
        if self == Dialect::Rfc { 28 } else { 26 }
    }

    /// DISK_INFO.
    pub fn info(self) -> u16 {
        if self == Dialect::Rfc { 24 } else { 28 }
    }
}

/// A message's bytes, of either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message(pub Vec<u8>);

/// Where the union begins.
const UNION: usize = 8;

impl Message {
    /// A message with nothing in its union.
    pub fn new(dialect: Dialect, id: u16, cookie: u16) -> Self {
        let mut bytes = vec![0; dialect.bytes()];
        bytes[..2].copy_from_slice(&id.to_le_bytes());
        bytes[2..4].copy_from_slice(&cookie.to_le_bytes());
        Message(bytes)
    }

    /// OPEN or RESUME: flags and path; no parent.
    pub fn params(dialect: Dialect, id: u16, cookie: u16, flags: u32, path: &str) -> Self {
        Message::new(dialect, id, cookie).put(0, &flags.to_le_bytes()).put(12, path.as_bytes()).put(268, &[0xff; 4])
    }

    /// XENBLKIF_CONNECT of a ring of one, two, four or eight pages.
    pub fn blkif(
        dialect: Dialect,
        cookie: u16,
        guest: DomId,
        devid: u32,
        grefs: &[u32],
        proto: u32,
        port: u32,
    ) -> Self {
        let grefs_bytes: Vec<u8> = grefs.iter().flat_map(|gref| gref.to_le_bytes()).collect();
        Message::new(dialect, dialect.connect(), cookie)
            .put(0, &u32::from(guest.0).to_le_bytes())
            .put(4, &devid.to_le_bytes())
            .put(8, &grefs_bytes)
            .put(40, &grefs.len().ilog2().to_le_bytes())
            .put(44, &proto.to_le_bytes())
            .put(304, &port.to_le_bytes())
    }

    /// XENBLKIF_DISCONNECT.
    pub fn gone(dialect: Dialect, guest: DomId, devid: u32) -> Self {
        Message::new(dialect, dialect.disconnect(), 0)
            .put(0, &u32::from(guest.0).to_le_bytes())
            .put(4, &devid.to_le_bytes())
    }

    /// Other bytes at this place of the union.
    pub fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[UNION + at..][..bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Its type.
    pub fn id(&self) -> u16 {
        u16::from_le_bytes([self.0[0], self.0[1]])
    }

    /// Its cookie.
    pub fn cookie(&self) -> u16 {
        u16::from_le_bytes([self.0[2], self.0[3]])
    }

    /// A word of its union.
    pub fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[UNION + at..][..4].try_into().expect("four bytes"))
    }

    /// A long word of its union.
    pub fn long(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[UNION + at..][..8].try_into().expect("eight bytes"))
    }

    /// A text of its union, 256 bytes.
    pub fn text(&self, at: usize) -> String {
        let bytes = &self.0[UNION + at..][..256];
        let end = bytes.iter().position(|byte| *byte == 0).expect("a text that ends");
        String::from_utf8(bytes[..end].to_vec()).expect("a text that is one")
    }

    /// `u.response.error` and `u.response.message`.
    pub fn response(&self) -> (i32, String) {
        (self.word(0) as i32, self.text(4))
    }
}

/// A connected client.
pub struct Control {
    client: Client,
    /// How it speaks.
    pub dialect: Dialect,
}

impl Control {
    /// Waits until a channel is offered that nobody took yet, and takes it.
    pub fn join(run: &mut Run, dialect: Dialect) -> Self {
        Control { client: join(run, dialect.path()), dialect }
    }

    /// Writes bytes as they fit, and lets the world run meanwhile.
    pub fn send(&self, run: &mut Run, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let written = self.client.write(bytes);
            bytes = &bytes[written..];
            if written == 0 {
                let there = run.until(Duration::from_secs(60), |_| self.client.buffer_space() > 0);
                assert!(there, "the server takes nothing\n{}", run.scene());
            }
        }
    }

    /// Reads that many bytes.
    pub fn receive(&self, run: &mut Run, bytes: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < bytes {
            all.extend(self.client.read(bytes - all.len()));
            if all.len() < bytes {
                let there = run.until(Duration::from_secs(60), |_| self.client.data_ready() > 0);
                assert!(there, "{} of {bytes} bytes\n{}", all.len(), run.scene());
            }
        }
        all
    }

    /// The next message.
    pub fn answer(&self, run: &mut Run) -> Message {
        Message(self.receive(run, self.dialect.bytes()))
    }

    /// Sends a message and waits for its answer.
    pub fn ask(&self, run: &mut Run, message: &Message) -> Message {
        self.send(run, &message.0);
        self.answer(run)
    }

    /// A request with nothing in it.
    pub fn plain(&self, run: &mut Run, id: u16, cookie: u16) -> Message {
        self.ask(run, &Message::new(self.dialect, id, cookie))
    }

    /// A request that has to be done.
    pub fn done(&self, run: &mut Run, message: &Message) -> Message {
        let answer = self.ask(run, message);
        assert_eq!(answer.id(), message.id() + 1, "{:?}\n{}", answer.response(), run.scene());
        assert_eq!(answer.cookie(), message.cookie());
        answer
    }

    /// ATTACH and OPEN.
    pub fn create(&self, run: &mut Run, minor: u16, path: &str) {
        self.done(run, &Message::new(self.dialect, id::ATTACH, minor));
        self.done(run, &Message::params(self.dialect, id::OPEN, minor, 0, path));
    }

    /// Closes properly.
    pub fn close(self) {
        self.client.close();
    }

    /// Closes but keeps its mappings: their handles.
    pub fn close_mapped(self) -> Vec<u64> {
        self.client.close_mapped()
    }

    /// The process is killed.
    pub fn kill(self) {
        self.client.kill(true);
    }

    /// Whether the server is still there.
    pub fn is_open(&self) -> bool {
        self.client.is_open()
    }
}

fn join(run: &mut Run, path: &str) -> Client {
    let (world, store) = (run.world.clone(), run.store.client(DOM0));
    let mut joined = None;
    run.until(Duration::from_secs(60), |_| {
        joined = Client::connect(&world, &store, (DOM0, DRIVER), path, true).ok();
        joined.is_some()
    });
    joined.unwrap_or_else(|| panic!("nothing can be opened at {path}\n{}", run.scene()))
}

/// A client of the events channel.
pub fn events(run: &mut Run) -> Control {
    Control { client: join(run, "/local/domain/1/data/tapdisk-events"), dialect: Dialect::Blktap }
}
