//! Which channels there are, and the bytes on one connection.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use embassy_futures::select::{Either, select};
use embedded_io_async::{Read, Write};
use protocol::number;
use protocol::tapdisk::{Arrived, Assembler, Dialect, MESSAGE_BYTES_MAX, Message, Reason};
use protocol::vchan::Orders;
use xen::limits::{CONTROL_CLIENTS, CONTROL_SECONDS};
use xen::port::{DomId, Xen};
use xen::sync::Credits;
use xen::vchan::{Broken, Connection, Server};

use super::commands::{Commands, Then};
use super::events;
use crate::Shared;

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
    let places = Rc::new(Credits::new(CONTROL_CLIENTS));
    loop {
        places.take(1).await;
        let connection = server.accept().await;
        let (shared, places, speaks) = (shared.clone(), places.clone(), channel.speaks);
        shared.domain.clone().exec.spawn(async move {
            let line = Line { shared: &shared, connection };
            let ended = match speaks {
                Speaks::Commands(dialect) => line.converse(dialect).await,
                Speaks::Events => events::tell(&line).await.map(|()| Then::GoOn),
            };
            // The client hears that we are done before the domain ends.
            drop(line);
            match ended {
                Ok(Then::Stop(stop)) => shared.stop.set(Some(stop)),
                Ok(Then::GoOn) => {}
                Err(broken) => log::debug!("control: {broken}"),
            }
            places.put(1);
            shared.held_changed.raise();
        });
    }
}

/// A connection and the domain at our end of it.
pub struct Line<'a, X: Xen> {
    /// The domain.
    pub shared: &'a Rc<Shared<X>>,
    connection: Connection<X>,
}

impl<X: Xen> Line<'_, X> {
    async fn converse(&self, dialect: Dialect) -> Result<Then, Broken> {
        let mut assembler = Box::new(Assembler::new(dialect));
        loop {
            let idle = assembler.is_idle();
            let mut connection = &self.connection;
            let read = connection.read(assembler.room());
            let bytes = if idle { read.await? } else { self.within(read).await? };
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

    /// Sends bytes, as long as the client takes some in time.
    pub async fn send_bytes(&self, mut bytes: &[u8]) -> Result<(), Broken> {
        let mut connection = &self.connection;
        while !bytes.is_empty() {
            let written = self.within(connection.write(bytes)).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Waits until the client is gone.
    pub async fn gone(&self) {
        self.connection.gone().await
    }

    async fn within<T>(&self, step: impl Future<Output = Result<T, Broken>>) -> Result<T, Broken> {
        match select(step, self.shared.domain.sleep(PATIENCE)).await {
            Either::First(done) => done,
            Either::Second(()) => {
                log::warn!("control: a client left a message half done for {CONTROL_SECONDS} s");
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
