//! A storage domain that answers at once, for tests.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use protocol::tapdisk::{Body, Dialect, Image, Listed, MESSAGE_BYTES_MAX, Message, Response, Text, Vdev};

use crate::failure::Failure;
use crate::host::Host;
use crate::line::{Channel, Line};
use crate::place::Domain;

/// What it was asked and what it serves.
#[derive(Debug, Default)]
pub struct World {
    /// The dialect of its channel is the RFC's.
    pub rfc: bool,
    /// The rings that are connected, and to which minor.
    pub rings: Vec<(Vdev, u16)>,
    /// The requests, in the words of the message's names.
    pub asked: Vec<String>,
    /// Requests of this name are refused with this number.
    pub refuses: Option<(&'static str, i32)>,
    /// What DISK_INFO says.
    pub info: u32,
}

/// A host with these domains; each of them is the same world.
#[derive(Clone)]
pub struct Scripted {
    /// The domains.
    pub domains: Vec<Domain>,
    /// What they are.
    pub world: Arc<Mutex<World>>,
}

impl Scripted {
    /// A host with one storage domain, of number 5.
    pub fn new() -> Scripted {
        let domain = |id, name: &str, ready| Domain { id, name: name.to_owned(), ready };
        Scripted {
            domains: vec![domain(0, "Domain-0", false), domain(5, "tapdom", true), domain(7, "guest", false)],
            world: Arc::default(),
        }
    }

    /// What it was asked since this was last called.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.world.lock().unwrap().asked)
    }
}

impl Host for Scripted {
    fn domains(&self) -> Result<Vec<Domain>, Failure> {
        Ok(self.domains.clone())
    }
    fn line(&self, _: &Domain, _: &str) -> Result<Box<dyn Line>, Failure> {
        Ok(Box::new(self.clone()))
    }
    fn events(&self, _: &Domain, _: &str) -> Result<Box<dyn Line>, Failure> {
        Ok(Box::new(self.clone()))
    }
}

impl Line for Scripted {
    fn open(&self, _: Option<Instant>) -> Result<Box<dyn Channel>, Failure> {
        Ok(Box::new(Ear { world: self.world.clone(), request: Vec::new(), answer: VecDeque::new() }))
    }
    fn lasts(&self) -> bool {
        true
    }
    fn name(&self) -> String {
        "scripted".to_owned()
    }
}

struct Ear {
    world: Arc<Mutex<World>>,
    request: Vec<u8>,
    answer: VecDeque<u8>,
}

impl Read for Ear {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.answer.read(into)
    }
}

impl Write for Ear {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.request.extend_from_slice(from);
        let dialect = if self.world.lock().unwrap().rfc { Dialect::Rfc } else { Dialect::Blktap };
        let size = dialect.message_bytes();
        while self.request.len() >= size {
            let request: Vec<u8> = self.request.drain(..size).collect();
            let message = Message::decode(dialect, &request).unwrap();
            for body in self.world.lock().unwrap().answer(&message) {
                let mut bytes = [0; MESSAGE_BYTES_MAX];
                let answer = Message { cookie: message.cookie, body };
                self.answer.extend(answer.encode(dialect, &mut bytes).unwrap().iter());
            }
        }
        Ok(from.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Channel for Ear {
    fn limit(&mut self, _: Option<Instant>) {}
}

impl World {
    fn answer(&mut self, message: &Message<'_>) -> Vec<Body<'static>> {
        let name = message.body.kind().name();
        self.asked.push(format!("{name} {}", message.cookie));
        let fail = |error| vec![Body::Error(Response { error, message: Text::cut("so it is written") })];
        if let Some((_, error)) = self.refuses.filter(|(refused, _)| *refused == name) {
            return fail(error);
        }
        let done = Response::DONE;
        match message.body {
            Body::Pid => vec![Body::PidRsp(5)],
            Body::DiskInfo => vec![Body::DiskInfoRsp(Image { sectors: 24576, sector_size: 512, info: self.info })],
            Body::XenblkifConnect(blkif) => {
                if self.rings.iter().any(|(vdev, _)| *vdev == blkif.vdev) {
                    let served = Response { error: if self.rfc { 17 } else { 114 }, message: Text::EMPTY };
                    return vec![if self.rfc { Body::XenblkifConnectRsp(served) } else { Body::Error(served) }];
                }
                self.rings.push((blkif.vdev, message.cookie));
                vec![Body::XenblkifConnectRsp(done)]
            }
            Body::XenblkifDisconnect(gone) => {
                let before = self.rings.len();
                self.rings.retain(|(vdev, _)| *vdev != gone);
                if self.rings.len() == before { fail(19) } else { vec![Body::XenblkifDisconnectRsp(done)] }
            }
            Body::List => vec![Body::ListRsp(Listed::END)],
            _ => fail(22),
        }
    }
}
