//! A client's requests, in the order in which they come. Those that came together are answered together.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Result, bail, ensure};
use drivers::disk::{Device, Error, Op, SECTOR_BYTES, within};
use embassy_futures::block_on;
use vhd::disk;

use crate::wire;

/// Bytes of a request without its payload, and of an answer.
const REQUEST_BYTES: usize = 28;
const REPLY_BYTES: usize = 16;
/// Bytes of answers that are held back for others at most.
const ANSWERS_BYTES: usize = 256 << 10;
/// What is written for zeroes at once.
static ZEROES: [u8; 256 << 10] = [0; 256 << 10];

/// A client that has its disk.
pub struct Session<'a, D> {
    disk: &'a D,
    /// What the client was told: a file would grow.
    sectors: u64,
    input: BufReader<UnixStream>,
    output: UnixStream,
    /// Answers not sent yet: as many of its bytes as `filled` says. It keeps its length, for new bytes would be cleared.
    answers: Vec<u8>,
    filled: usize,
    payload: Vec<u8>,
}

struct Request {
    flags: u16,
    command: u16,
    cookie: [u8; 8],
    offset: u64,
    length: u32,
}

impl Request {
    fn parse(bytes: &[u8; REQUEST_BYTES]) -> Result<Request> {
        fn field<const N: usize>(bytes: &[u8; REQUEST_BYTES], at: usize) -> [u8; N] {
            std::array::from_fn(|i| bytes[at + i])
        }
        let magic = u32::from_be_bytes(field(bytes, 0));
        ensure!(magic == wire::REQUEST_MAGIC, "not a request: {magic:#x}");
        Ok(Request {
            flags: u16::from_be_bytes(field(bytes, 4)),
            command: u16::from_be_bytes(field(bytes, 6)),
            cookie: field(bytes, 8),
            offset: u64::from_be_bytes(field(bytes, 16)),
            length: u32::from_be_bytes(field(bytes, 24)),
        })
    }

    /// Its sectors, if they are whole ones of a disk that has so many.
    fn place(&self, disk: u64) -> Result<(u64, u64), u32> {
        let unit = SECTOR_BYTES as u64;
        if !self.offset.is_multiple_of(unit) || !u64::from(self.length).is_multiple_of(unit) {
            return Err(wire::EINVAL);
        }
        let (sector, sectors) = (self.offset / unit, u64::from(self.length) / unit);
        within(sector, sectors, disk).map_err(wire::number)?;
        Ok((sector, sectors))
    }
}

impl<'a, D: Device> Session<'a, D> {
    /// A client after the handshake.
    pub fn new(disk: &'a D, client: UnixStream) -> Result<Self> {
        let output = client.try_clone()?;
        let input = BufReader::with_capacity(ANSWERS_BYTES, client);
        Ok(Session {
            disk,
            sectors: disk.info().sectors,
            input,
            output,
            answers: Vec::new(),
            filled: 0,
            payload: Vec::new(),
        })
    }

    /// Serves until the client goes.
    pub fn run(mut self) -> Result<()> {
        loop {
            // Whoever waits for what was done already may not ask again before it hears of it.
            if self.input.buffer().len() < REQUEST_BYTES || self.filled >= ANSWERS_BYTES {
                self.output.write_all(&self.answers[..self.filled])?;
                self.filled = 0;
            }
            if self.input.fill_buf()?.is_empty() {
                return Ok(());
            }
            let mut bytes = [0; REQUEST_BYTES];
            self.input.read_exact(&mut bytes)?;
            let request = Request::parse(&bytes)?;
            if request.command == wire::CMD_DISC {
                return Ok(());
            }
            if request.command == wire::CMD_WRITE {
                let bytes = request.length as usize;
                ensure!(request.length <= wire::REQUEST_BYTES_MAX, "a write of {bytes} bytes");
                self.payload.resize(bytes.max(self.payload.len()), 0);
                self.input.read_exact(&mut self.payload[..bytes])?;
            }
            self.answer(&request)?;
        }
    }

    fn answer(&mut self, request: &Request) -> Result<()> {
        let is_read = request.command == wire::CMD_READ && request.length <= wire::REQUEST_BYTES_MAX;
        let data = self.filled + REPLY_BYTES;
        let end = data + if is_read { request.length as usize } else { 0 };
        self.answers.resize(end.max(self.answers.len()), 0);
        let result = request.place(self.sectors).and_then(|place| self.serve(request, place, data..end));
        let error = result.err().unwrap_or(0);
        let head = [wire::REPLY_MAGIC.to_be_bytes(), error.to_be_bytes()].concat();
        let head = [&head, &request.cookie[..]].concat();
        let Some(room) = self.answers.get_mut(self.filled..data) else { bail!("no room for an answer") };
        room.copy_from_slice(&head);
        self.filled = if error == 0 { end } else { data };
        Ok(())
    }

    /// Does it; what is read goes to `into` of the answers.
    fn serve(
        &mut self,
        request: &Request,
        (sector, sectors): (u64, u64),
        into: std::ops::Range<usize>,
    ) -> Result<(), u32> {
        match request.command {
            wire::CMD_READ if into.len() == request.length as usize => {
                return disk::read(self.disk, sector, &mut self.answers[into]).map_err(wire::number);
            }
            wire::CMD_WRITE => disk::write(self.disk, sector, &self.payload[..request.length as usize]),
            wire::CMD_WRITE_ZEROES => self.zero(sector, sectors),
            wire::CMD_TRIM => block_on(self.disk.submit(Op::Discard { sectors }, sector)),
            wire::CMD_FLUSH => disk::flush(self.disk),
            _ => return Err(wire::EINVAL),
        }
        .map_err(wire::number)?;
        match request.flags & wire::CMD_FLAG_FUA {
            0 => Ok(()),
            _ => disk::flush(self.disk).map_err(wire::number),
        }
    }

    fn zero(&self, mut sector: u64, mut sectors: u64) -> Result<(), Error> {
        while sectors > 0 {
            let here = sectors.min((ZEROES.len() / SECTOR_BYTES) as u64);
            disk::write(self.disk, sector, &ZEROES[..here as usize * SECTOR_BYTES])?;
            (sector, sectors) = (sector + here, sectors - here);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::{env, fs, thread};

    use vhd::store::{Access, FileStore};

    fn request(command: u16, flags: u16, cookie: u64, offset: u64, length: u32, payload: &[u8]) -> Vec<u8> {
        let head = [&0x2560_9513u32.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes()].concat();
        let place = [&cookie.to_be_bytes()[..], &offset.to_be_bytes(), &length.to_be_bytes()].concat();
        [&head, &place, payload].concat()
    }

    /// Sends all at once to a disk of 8 KiB of ones, and returns the answers, whether it ended well, and the disk.
    fn asked(access: Access, requests: &[Vec<u8>]) -> (Vec<u8>, bool, Vec<u8>) {
        let name = format!("nbd-session-{}-{:?}", std::process::id(), thread::current().id());
        let path = env::temp_dir().join(name);
        fs::write(&path, [1; 8192]).unwrap();
        let (client, server) = UnixStream::pair().unwrap();
        let serving = thread::spawn({
            let path = path.clone();
            move || Session::new(&FileStore::open(&path, access).unwrap(), server)?.run()
        });
        (&client).write_all(&requests.concat()).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answers = Vec::new();
        (&client).read_to_end(&mut answers).unwrap();
        let well = serving.join().unwrap().is_ok();
        let disk = fs::read(&path).unwrap();
        fs::remove_file(path).unwrap();
        (answers, well, disk)
    }

    fn answer(error: u32, cookie: u64, data: &[u8]) -> Vec<u8> {
        [&0x6744_6698u32.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes(), data].concat()
    }

    #[test]
    fn requests_sent_together_are_done_in_order() {
        let requests = [
            request(0, 0, 7, 0, 512, &[]),
            request(1, 0, 8, 512, 1024, &[2; 1024]),
            request(0, 0, u64::MAX, 0, 2048, &[]),
            request(6, 1, 9, 0, 512, &[]),
            request(3, 0, 10, 0, 0, &[]),
            request(0, 0, 11, 0, 1024, &[]),
        ];
        let (answers, well, disk) = asked(Access::Write, &requests);
        let wanted = [
            answer(0, 7, &[1; 512]),
            answer(0, 8, &[]),
            answer(0, u64::MAX, &[[1; 512], [2; 512], [2; 512], [1; 512]].concat()),
            answer(0, 9, &[]),
            answer(0, 10, &[]),
            answer(0, 11, &[[0; 512], [2; 512]].concat()),
        ];
        assert!(well && answers == wanted.concat());
        assert!(disk[..512] == [0; 512] && disk[512..1536] == [2; 1024] && disk[1536..] == [1; 6656]);
    }

    #[test]
    fn what_cannot_be_is_refused_and_the_next_request_is_served() {
        let requests = [
            request(0, 0, 1, 1, 512, &[]),
            request(0, 0, 2, 0, 511, &[]),
            request(0, 0, 3, 8192, 512, &[]),
            request(0, 0, 4, u64::MAX - 511, 1024, &[]),
            request(0, 0, 5, 0, 33 << 20, &[]),
            request(9, 0, 6, 0, 0, &[]),
            request(4, 0, 7, 7680, 1024, &[]),
            request(1, 0, 8, 8192, 512, &[3; 512]),
            request(0, 0, 9, 7680, 512, &[]),
        ];
        let (answers, well, disk) = asked(Access::Write, &requests);
        assert_eq!(disk.len(), 8192);
        let refused = (1..9).flat_map(|cookie| answer(22, cookie, &[]));
        let wanted: Vec<u8> = refused.chain(answer(0, 9, &[1; 512])).collect();
        assert!(well && answers == wanted);
    }

    #[test]
    fn a_disk_that_is_only_read_stays_as_it_is() {
        let requests =
            [request(1, 0, 1, 0, 512, &[3; 512]), request(6, 0, 2, 0, 512, &[]), request(0, 0, 3, 0, 512, &[])];
        let (answers, well, disk) = asked(Access::Read, &requests);
        assert!(well && disk == [1; 8192]);
        assert_eq!(answers, [answer(1, 1, &[]), answer(1, 2, &[]), answer(0, 3, &[1; 512])].concat());
    }

    #[test]
    fn what_is_no_request_ends_the_conversation() {
        let cut = request(1, 0, 1, 0, 512, &[3; 200]);
        for requests in [vec![0; 28], request(1, 0, 1, 0, 33 << 20, &[]), cut] {
            assert_eq!(asked(Access::Write, &[requests]), (Vec::new(), false, vec![1; 8192]));
        }
        assert!(asked(Access::Write, &[request(2, 0, 1, 0, 0, &[]), vec![0; 28]]).1);
    }
}
