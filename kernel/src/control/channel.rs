//! Which channels there are, and the bytes on one connection.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::time::Duration;

use embassy_futures::select::{Either, select};
use embedded_io_async::{Read, Write};
use log::Level;
use protocol::number;
use protocol::tapdisk::{Arrived, Assembler, Dialect, MESSAGE_BYTES_MAX, Message, Reason};
use protocol::vchan::Orders;
use xen::exec::yield_now;
use xen::limits::{CONTROL_CLIENTS, CONTROL_SECONDS};
use xen::page::PAGE_BYTES;
use xen::port::{DomId, Instant, Xen};
use xen::sync::Signal;
use xen::vchan::{Broken, Connection, Server};

use super::commands::{Commands, Then};
use super::events;
use crate::Shared;
use crate::power;
use crate::quiet::Quiet;

/// What is spoken on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// Requests and answers of this dialect.
    Commands(Dialect),
    /// RUNTIME_ERROR messages, from us alone.
    Events,
}

/// One channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Where it is in xenstore, from our home or from the root.
    pub path: String,
    /// Who may open it.
    pub client: DomId,
    /// What is spoken.
    pub speaks: Speaks,
}

/// How long a client may leave half a request, or an answer unread.
const PATIENCE: Duration = Duration::from_secs(CONTROL_SECONDS);

impl Channel {
    /// Those that are there if nobody says otherwise, all of them for dom0.
    pub fn defaults() -> Vec<Channel> {
        let all = [
            ("data/tapdisk", Speaks::Commands(Dialect::Blktap)),
            ("data/tapdisk-rfc", Speaks::Commands(Dialect::Rfc)),
            ("data/tapdisk-events", Speaks::Events),
        ];
        all.into_iter().map(|(path, speaks)| Channel { path: path.to_string(), client: DomId(0), speaks }).collect()
    }

    /// The channels that the words `control=` of a command line ask for: `control=none` takes the defaults away,
    /// `control=blktap:PATH`, `rfc:PATH` and `events:PATH` each add one, for dom0 or with `@DOMID` for another domain.
    /// `Err` has the word that makes no sense.
    pub fn of_command_line(words: &str) -> Result<Vec<Channel>, &str> {
        let mut channels = Channel::defaults();
        for word in words.split_ascii_whitespace().filter_map(|word| word.strip_prefix("control=")) {
            match word {
                "none" => channels.retain(|channel| !Channel::defaults().contains(channel)),
                _ => channels.push(Channel::parse(word).ok_or(word)?),
            }
        }
        Ok(channels)
    }

    fn parse(word: &str) -> Option<Channel> {
        let (speaks, path) = word.split_once(':')?;
        let speaks = match speaks {
            "blktap" => Speaks::Commands(Dialect::Blktap),
            "rfc" => Speaks::Commands(Dialect::Rfc),
            "events" => Speaks::Events,
            _ => return None,
        };
        let (path, client) = path.rsplit_once('@').unwrap_or((path, "0"));
        let client = DomId(number::u16(client)?);
        Some(Channel { path: path.to_string(), client, speaks }).filter(|channel| !channel.path.is_empty())
    }
}

/// Offers a channel as long as the domain lives. One task runs this.
pub async fn run<X: Xen>(shared: Rc<Shared<X>>, channel: Channel) {
    let mut server = match Server::new(&shared.store, &channel.path, channel.client, Orders::ONE_PAGE_EACH) {
        Ok(server) => server,
        Err(no) => return log::error!("control channel {}: {no}", channel.path),
    };
    let seats = Rc::new(Seats::new(shared.domain.xen.now()));
    loop {
        let connection = server.accept().await;
        let seat = seats.take().await;
        let (shared, seats, speaks) = (shared.clone(), seats.clone(), channel.speaks);
        shared.domain.clone().exec.spawn(async move {
            let line = Line { shared: &shared, connection, seats: &seats, seat: &seat };
            let ended = match speaks {
                Speaks::Commands(dialect) => line.converse(dialect).await,
                Speaks::Events => events::tell(&line).await.map(|()| Then::GoOn),
            };
            // The client hears that we are done before the domain ends.
            drop(line);
            match ended {
                Ok(Then::Stop(stop)) => power::end(&shared, stop).await,
                Ok(Then::GoOn) => {}
                Err(broken) => log::debug!("control: {broken}"),
            }
            seats.free(&seat);
            shared.domain.changed.raise();
        });
    }
}

/// The clients of one channel.
struct Seats {
    taken: RefCell<Vec<Rc<Seat>>>,
    changed: Signal,
    /// What is logged of them: much of what is refused here was asked for by guests in the end.
    lines: Quiet,
}

/// One client's place.
#[derive(Default)]
struct Seat {
    /// Since when it has asked nothing and waits for nothing.
    idle_since: Cell<Option<Instant>>,
    /// Raised when somebody else needs the place.
    leave: Signal,
}

impl Seats {
    fn new(now: Instant) -> Self {
        Seats { taken: RefCell::default(), changed: Signal::default(), lines: Quiet::new(now) }
    }

    /// Waits for a place. When all are taken, the client that has been silent longest goes: some that were left connected
    /// must not lock out everybody.
    async fn take(&self) -> Rc<Seat> {
        while self.taken.borrow().len() >= CONTROL_CLIENTS {
            let silent = |seat: &&Rc<Seat>| seat.idle_since.get().is_some();
            if let Some(seat) = self.taken.borrow().iter().filter(silent).min_by_key(|seat| seat.idle_since.get()) {
                seat.leave.raise();
            }
            self.changed.wait().await;
        }
        let seat = Rc::<Seat>::default();
        self.taken.borrow_mut().push(seat.clone());
        seat
    }

    fn free(&self, seat: &Rc<Seat>) {
        self.taken.borrow_mut().retain(|other| !Rc::ptr_eq(other, seat));
        self.changed.raise();
    }
}

/// A connection and the domain at our end of it.
pub struct Line<'a, X: Xen> {
    /// The domain.
    pub shared: &'a Rc<Shared<X>>,
    connection: Connection<X>,
    seats: &'a Seats,
    seat: &'a Seat,
}

impl<X: Xen> Line<'_, X> {
    async fn converse(&self, dialect: Dialect) -> Result<Then, Broken> {
        let mut assembler = Box::new(Assembler::new(dialect));
        let mut whole_by = Instant::default();
        loop {
            let idle = assembler.is_idle();
            let mut connection = &self.connection;
            let read = connection.read(assembler.room());
            let bytes = match idle {
                true => self.unless_asked_to_leave(read).await?,
                false => self.before(whole_by, read).await?,
            };
            if idle {
                // For all of the request: single bytes in time would hold the place for hours.
                whole_by = self.shared.domain.xen.now() + PATIENCE;
            }
            if bytes == 0 {
                return Ok(Then::GoOn);
            }
            match assembler.filled(bytes) {
                None => {}
                Some(Arrived::Request(request)) => match (Commands { line: self, dialect }).serve(&request).await? {
                    Then::GoOn => {}
                    stop => return Ok(stop),
                },
                Some(Arrived::Refused(rejected)) => {
                    self.send(dialect, &rejected.answer(dialect, Reason::of(rejected.why).text())).await?;
                }
                Some(Arrived::OutOfStep(rejected)) => {
                    self.send(dialect, &rejected.answer(dialect, Reason::of(rejected.why).text())).await?;
                    return Ok(Then::GoOn);
                }
            }
        }
    }

    /// The bytes of the next request; 0 if there will be none.
    async fn unless_asked_to_leave(&self, read: impl Future<Output = Result<usize, Broken>>) -> Result<usize, Broken> {
        self.seat.idle_since.set(Some(self.shared.domain.xen.now()));
        self.seats.changed.raise();
        let read = select(read, self.seat.leave.wait()).await;
        self.seat.idle_since.set(None);
        match read {
            Either::First(read) => {
                self.seat.leave.lower();
                read
            }
            Either::Second(()) => {
                self.log(Level::Info, format_args!("a client that was silent makes room for another"));
                Ok(0)
            }
        }
    }

    /// Logs a line, within limits.
    pub fn log(&self, level: Level, line: fmt::Arguments<'_>) {
        self.seats.lines.say(self.shared.domain.xen.now(), level, format_args!("control: {line}"));
    }

    /// Sends a message.
    pub async fn send(&self, dialect: Dialect, message: &Message<'_>) -> Result<(), Broken> {
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        match message.encode(dialect, &mut bytes) {
            Ok(bytes) => self.send_bytes(bytes).await,
            Err(malformed) => {
                // Our own words always fit, but for a kind of the other dialect: which is our bug, and hurts nobody.
                log::error!("control: an answer cannot be said: {malformed}");
                Err(Broken::Gone)
            }
        }
    }

    /// Sends bytes, as long as the client takes them in time, a ring's worth at once.
    pub async fn send_bytes(&self, bytes: &[u8]) -> Result<(), Broken> {
        for mut some in bytes.chunks(PAGE_BYTES) {
            let whole_by = self.shared.domain.xen.now() + PATIENCE;
            while !some.is_empty() {
                let mut connection = &self.connection;
                let written = self.before(whole_by, connection.write(some)).await?;
                some = &some[written..];
                // A client that asks and reads as fast as it is answered must not keep all others waiting.
                yield_now().await;
            }
        }
        Ok(())
    }

    /// Waits until the client is gone.
    pub async fn gone(&self) {
        self.connection.gone().await
    }

    async fn before<T>(&self, moment: Instant, step: impl Future<Output = Result<T, Broken>>) -> Result<T, Broken> {
        match select(step, self.shared.domain.timers.sleep(moment)).await {
            Either::First(done) => done,
            Either::Second(()) => {
                self.log(Level::Warn, format_args!("a client left a message half done for {CONTROL_SECONDS} s"));
                Err(Broken::Gone)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_adds_channels_and_takes_the_defaults_away() {
        assert_eq!(Channel::of_command_line("loglevel=debug").unwrap(), Channel::defaults());
        assert_eq!(Channel::of_command_line("control=none"), Ok(Vec::new()));
        let all = Channel::of_command_line("control=rfc:data/vchan/7/tap@7 control=none control=events:/x").unwrap();
        let other =
            Channel { path: "data/vchan/7/tap".to_string(), client: DomId(7), speaks: Speaks::Commands(Dialect::Rfc) };
        assert_eq!(all, [other, Channel { path: "/x".to_string(), client: DomId(0), speaks: Speaks::Events }]);
        for word in ["blktap", "tap:x", "rfc:", "rfc:x@", "rfc:x@70000", "events:@3"] {
            let line = alloc::format!("control={word}");
            assert_eq!(Channel::of_command_line(&line), Err(word));
        }
    }
}
