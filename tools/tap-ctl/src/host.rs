//! What commands need of the machine that they run on. Real is [`Dom0`](crate::dom0::Dom0), tests have their own.

use std::path::PathBuf;

use crate::failure::Failure;
use crate::line::{Line, Socket};
use crate::place::{self, Domain};

/// Domains, and ways to them.
pub trait Host {
    /// All domains of the host.
    fn domains(&self) -> Result<Vec<Domain>, Failure>;
    /// The way to a channel of a domain.
    fn line(&self, domain: &Domain, channel: &str) -> Result<Box<dyn Line>, Failure>;
    /// The way to a channel on which a domain speaks unasked.
    fn events(&self, domain: &Domain, channel: &str) -> Result<Box<dyn Line>, Failure>;
}

/// Where requests go: a domain that was chosen, or a socket that somebody named.
pub enum Target<'a> {
    /// A channel of a domain, and which of them.
    Domains {
        /// The host.
        host: &'a dyn Host,
        /// `--domain`.
        asked: Option<&'a str>,
        /// The channel.
        channel: &'a str,
    },
    /// The socket.
    Socket(PathBuf),
}

/// A server to speak to.
pub struct Server {
    /// How texts name it.
    pub title: String,
    /// Its number, where it is known without asking.
    pub id: Option<i32>,
    /// The way to it.
    pub line: Box<dyn Line>,
}

impl Target<'_> {
    /// The one server that is meant.
    pub fn one(&self, pid: Option<u32>) -> Result<Server, Failure> {
        match self {
            Target::Domains { host, asked, channel } => {
                let domains = host.domains()?;
                server(*host, place::choose(&domains, *asked, pid)?, channel)
            }
            Target::Socket(path) => {
                let line = Socket(path.clone());
                Ok(Server { title: line.name(), id: None, line: Box::new(line) })
            }
        }
    }

    /// The channel of failures of the one server that is meant; a socket has none beside it.
    pub fn events(&self, pid: Option<u32>, channel: &str) -> Result<Option<Box<dyn Line>>, Failure> {
        let Target::Domains { host, asked, .. } = self else { return Ok(None) };
        let domains = host.domains()?;
        host.events(place::choose(&domains, *asked, pid)?, channel).map(Some)
    }

    /// All servers that may be meant: with a number or a name one, else every storage domain's.
    pub fn all(&self, pid: Option<u32>) -> Result<Vec<Server>, Failure> {
        match self {
            Target::Domains { host, asked: None, channel } if pid.is_none() => {
                let domains = host.domains()?;
                place::ready(&domains).map(|domain| server(*host, domain, channel)).collect()
            }
            _ => Ok(vec![self.one(pid)?]),
        }
    }

    /// Whether a server was named.
    pub fn is_named(&self) -> bool {
        !matches!(self, Target::Domains { asked: None, .. })
    }
}

fn server(host: &dyn Host, domain: &Domain, channel: &str) -> Result<Server, Failure> {
    Ok(Server { title: domain.title(), id: Some(domain.id.into()), line: host.line(domain, channel)? })
}
