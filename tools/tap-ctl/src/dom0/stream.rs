//! One side of a vchan as a blocking byte stream, whoever's pages it is on.

use std::io::{self, Read, Write};
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use protocol::ring::Overrun;
use protocol::vchan::{Endpoint, Moved, Peer};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use xen::page::{Page, Span};

use super::store::Store;
use super::wait::timespec;
use crate::line::Channel;

/// Events to the other side and from it.
pub trait Bell {
    /// Sends one.
    fn notify(&self) -> Result<(), Errno>;
    /// Readable when one came.
    fn fd(&self) -> BorrowedFd<'_>;
    /// Takes what came, and lets the next one come.
    fn take(&self) -> Result<(), Errno>;
}

/// A connection. The pages go before the port: that they go is told through it.
pub struct Stream<P: Deref<Target = Page>, B: Bell> {
    end: Endpoint<Span<P>>,
    events: B,
    /// What tells of the end of a domain, and which.
    store: Option<(Store, u16)>,
    /// The domain has ended, whatever its page says.
    gone: bool,
    until: Option<Instant>,
}

impl<P: Deref<Target = Page>, B: Bell> Stream<P, B> {
    /// Over an endpoint that was just connected.
    pub fn new(end: Endpoint<Span<P>>, events: B) -> Self {
        Stream { end, events, store: None, gone: false, until: None }
    }

    /// Tells the other side that we are there, whatever it asked for.
    pub fn hello(&self) -> Result<(), Errno> {
        self.events.notify()
    }

    /// The stream ends with this domain. A domain that dies says nothing in its page; the store watches for ends.
    pub fn end_with(&mut self, store: Store, domain: u16) {
        self.store = Some((store, domain));
    }

    fn moved(&self, moved: Moved) -> io::Result<usize> {
        if moved.notify {
            self.events.notify()?;
        }
        Ok(moved.bytes)
    }

    fn is_there(&mut self) -> bool {
        !self.gone && self.end.peer() == Peer::Here
    }

    /// Waits for an event of the server, or for its end.
    fn wait(&mut self) -> io::Result<()> {
        let (events, store) =
            (PollFd::from_borrowed_fd(self.events.fd(), PollFlags::IN), self.store.as_ref().map(|(store, _)| store));
        let mut fds = vec![events];
        fds.extend(store.map(|store| PollFd::from_borrowed_fd(store.fd(), PollFlags::IN)));
        let waiting = store.is_some_and(Store::has_event);
        let until = if waiting { Some(Instant::now()) } else { self.until };
        match poll(&mut fds, timespec(until).as_ref()) {
            Ok(0) if !waiting => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(why) => return Err(why.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.revents().contains(PollFlags::IN)).collect();
        if ready.first() == Some(&true) {
            self.events.take()?;
        }
        let told = waiting || ready.get(1) == Some(&true);
        if let Some((store, domain)) = self.store.as_mut().filter(|_| told) {
            let ended = store.event(Some(Instant::now())).and_then(|event| match event {
                Some(_) => store.knows(*domain).map(|knows| !knows),
                None => Ok(false),
            });
            self.gone |= ended.map_err(|why| io::Error::other(why.to_string()))?;
        }
        Ok(())
    }
}

impl<P: Deref<Target = Page>, B: Bell> Read for Stream<P, B> {
    /// Waits for bytes; 0 when the server is gone and everything it sent was read.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            // Before the bytes: what a server writes before it closes is there when it has closed.
            let there = self.is_there();
            let moved = self.end.read(into).map_err(overrun)?;
            let bytes = self.moved(moved)?;
            if bytes > 0 || into.is_empty() || !there {
                return Ok(bytes);
            }
            if !self.end.ask_data().map_err(overrun)? {
                self.wait()?;
            }
        }
    }
}

impl<P: Deref<Target = Page>, B: Bell> Write for Stream<P, B> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        loop {
            if !self.is_there() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let moved = self.end.write(from).map_err(overrun)?;
            let bytes = self.moved(moved)?;
            if bytes > 0 || from.is_empty() {
                return Ok(bytes);
            }
            if !self.end.ask_room().map_err(overrun)? {
                self.wait()?;
            }
        }
    }

    /// What is written is on its way at once.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<P: Deref<Target = Page>, B: Bell> Channel for Stream<P, B> {
    fn limit(&mut self, until: Option<Instant>) {
        self.until = until;
    }
}

impl<P: Deref<Target = Page>, B: Bell> Drop for Stream<P, B> {
    fn drop(&mut self) {
        self.end.close();
        // Who cannot be told sees it in the page.
        let _ = self.events.notify();
    }
}

fn overrun(_: Overrun) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the domain's ring index makes no sense")
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::Duration;

    use protocol::mem::Memory;
    use protocol::vchan::{Orders, Place, Rings};
    use xen::page::{PageRef, Run};

    use super::*;

    /// Events over a socket: as with event channels, several may become one.
    struct Wire(UnixStream);

    impl Bell for Wire {
        fn notify(&self) -> Result<(), Errno> {
            match (&self.0).write(&[1]) {
                // The other side has more than it can hear, or is gone.
                Err(why) if matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::BrokenPipe) => Ok(()),
                sent => sent.map(drop).map_err(|_| Errno::IO),
            }
        }
        fn fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
        fn take(&self) -> Result<(), Errno> {
            (&self.0).read(&mut [0; 64]).map(drop).map_err(|_| Errno::IO)
        }
    }

    type End = Stream<PageRef, Wire>;

    /// Two ends of one vchan, and its page.
    fn pair(orders: Orders) -> (End, End, PageRef) {
        let run = Run::new(1 + orders.grants()).unwrap();
        let rings = || {
            let left = 1 + orders.left().pages();
            let ring = |place: Place, first: usize| match place {
                Place::InPage(_) => Span(vec![run.page(0)]),
                Place::Pages(pages) => Span((first..first + pages).map(|index| run.page(index)).collect()),
            };
            Rings { left: ring(orders.left(), 1), right: ring(orders.right(), left) }
        };
        let page = || Span(vec![run.page(0)]);
        let (ours, theirs) = UnixStream::pair().unwrap();
        for end in [&ours, &theirs] {
            end.set_nonblocking(true).unwrap();
        }
        let server = Endpoint::serve(page(), rings(), orders, std::iter::repeat(1));
        let client = Endpoint::connect(page(), rings(), orders);
        (Stream::new(server, Wire(theirs)), Stream::new(client, Wire(ours)), run.page(0))
    }

    /// More than any ring here, of no period that divides one.
    fn pattern() -> Vec<u8> {
        (0..200_000u32).map(|at| (at % 251) as u8).collect()
    }

    #[test]
    fn every_byte_goes_through_rings_of_every_kind() {
        for (left, right) in [(10, 11), (11, 10), (12, 12), (10, 13)] {
            let (mut server, mut client, _page) = pair(Orders::new(left, right).unwrap());
            let echo = thread::spawn(move || {
                let mut bytes = [0; 700];
                loop {
                    match server.read(&mut bytes).unwrap() {
                        0 => return,
                        read => server.write_all(&bytes[..read]).unwrap(),
                    }
                }
            });
            // What was sent comes back while more is sent: no ring may be full for ever.
            let mut back = Vec::new();
            for part in pattern().chunks(900) {
                client.write_all(part).unwrap();
                let mut bytes = vec![0; part.len()];
                client.read_exact(&mut bytes).unwrap();
                back.extend(bytes);
            }
            assert!(back == pattern(), "{left}, {right}");
            drop(client);
            echo.join().unwrap();
        }
    }

    #[test]
    fn what_was_sent_before_the_end_is_read() {
        let (mut server, mut client, _page) = pair(Orders::ONE_PAGE_EACH);
        assert!(server.is_there());
        server.write_all(b"last words").unwrap();
        drop(server);
        let mut words = Vec::new();
        client.read_to_end(&mut words).unwrap();
        assert_eq!(words, b"last words");
        assert_eq!(client.write(b"too late").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_limit_ends_the_wait_and_loses_nothing() {
        let (mut server, mut client, _page) = pair(Orders::ONE_PAGE_EACH);
        assert!(server.is_there());
        client.limit(Some(Instant::now() + Duration::from_millis(20)));
        let mut bytes = [0; 4];
        assert_eq!(client.read(&mut bytes).unwrap_err().kind(), io::ErrorKind::TimedOut);
        client.limit(None);
        server.write_all(b"late").unwrap();
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"late");
        // Nobody reads: the ring fills, and then it waits.
        client.limit(Some(Instant::now() + Duration::from_millis(20)));
        assert_eq!(client.write_all(&[0; 5000]).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn an_index_that_makes_no_sense_is_an_error() {
        let (mut server, mut client, page) = pair(Orders::ONE_PAGE_EACH);
        assert!(server.is_there());
        // right.prod, the server's.
        page.store(12, 5000);
        assert_eq!(client.read(&mut [0; 4]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(crate::failure::Failure::from(overrun(Overrun)).status(), 71);
    }
}
