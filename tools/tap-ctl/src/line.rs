//! Ways to a server: a byte stream with a time limit, and who opens it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::failure::Failure;

/// A connected byte stream. Reads and writes wait, until the limit at most.
pub trait Channel: Read + Write {
    /// From now on reads and writes fail with `TimedOut` at this moment; `None`: they wait for ever.
    fn limit(&mut self, until: Option<Instant>);
}

/// A way to a server.
pub trait Line {
    /// Connects.
    fn open(&self, until: Option<Instant>) -> Result<Box<dyn Channel>, Failure>;
    /// Whether a connection carries more than one request. tapdisk's socket does not.
    fn lasts(&self) -> bool;
    /// How errors name the server.
    fn name(&self) -> String;
}

impl<L: Line + ?Sized> Line for Box<L> {
    fn open(&self, until: Option<Instant>) -> Result<Box<dyn Channel>, Failure> {
        (**self).open(until)
    }
    fn lasts(&self) -> bool {
        (**self).lasts()
    }
    fn name(&self) -> String {
        (**self).name()
    }
}

/// tapdisk's own socket, or one that `tap-ctl serve` or vchan-socket-proxy offers.
#[derive(Clone, Debug)]
pub struct Socket(pub PathBuf);

impl Line for Socket {
    fn open(&self, _: Option<Instant>) -> Result<Box<dyn Channel>, Failure> {
        let stream = UnixStream::connect(&self.0).map_err(|why| Failure::from(why).while_doing("connecting"))?;
        Ok(Box::new(Timed::new(stream)))
    }

    fn lasts(&self) -> bool {
        false
    }

    fn name(&self) -> String {
        self.0.display().to_string()
    }
}

/// A socket whose waits end at one moment, however many there are.
#[derive(Debug)]
pub struct Timed {
    stream: UnixStream,
    until: Option<Instant>,
}

impl Timed {
    /// Without a limit.
    pub fn new(stream: UnixStream) -> Timed {
        Timed { stream, until: None }
    }

    /// What is left of the time; none left is an error.
    fn left(&self) -> io::Result<Option<Duration>> {
        let Some(until) = self.until else { return Ok(None) };
        match until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Timed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(into)
    }
}

impl Write for Timed {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Channel for Timed {
    fn limit(&mut self, until: Option<Instant>) {
        self.until = until;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_has_passed_ends_every_wait() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut ours = Timed::new(ours);
        theirs.write_all(b"ab").unwrap();
        let mut byte = [0];
        ours.read_exact(&mut byte).unwrap();
        ours.limit(Some(Instant::now()));
        assert_eq!(ours.read(&mut byte).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(ours.write(b"c").unwrap_err().kind(), io::ErrorKind::TimedOut);
        ours.limit(None);
        ours.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"b");
    }

    #[test]
    fn a_socket_that_is_not_there_is_named() {
        let line = Socket("/nonexistent/ctl7".into());
        let failure = line.open(None).err().unwrap();
        assert_eq!(failure.to_string(), "connecting: No such file or directory");
        assert_eq!(failure.status(), 2);
    }
}
