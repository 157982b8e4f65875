//! dom0: its xenstore, and its doors to other domains.
//!
//! # Layout
//! - `devices`: the kernel's devices for grants and events; the only unsafe code of the tools
//! - `store`: xenstore's wire as a client
//! - `vchan`: connecting to a channel of a domain
//! - `stream`: a connection as a byte stream
//! - `wait`: time limits as the kernel takes them

mod devices;
pub mod store;
mod stream;
mod vchan;
mod wait;

use protocol::tapdisk::Dialect;
use protocol::{number, vchan as page};
use rustix::io::Errno;

use self::store::Store;
use self::vchan::Vchan;
use crate::failure::Failure;
use crate::host::Host;
use crate::line::Line;
use crate::place::Domain;

/// Where the homes of all domains are.
pub const HOMES: &str = "/local/domain";

/// This machine's dom0.
pub struct Dom0 {
    /// What its domains speak.
    pub dialect: Dialect,
}

impl Dom0 {
    fn vchan(&self, domain: &Domain, channel: &str, greeting: Option<Dialect>) -> Result<Box<dyn Line>, Failure> {
        if !page::fits(channel) {
            let text = format!("--channel {channel}: no path that a vchan may have, of {} bytes", page::PATH_BYTES);
            return Err(Failure::new(Errno::INVAL, text));
        }
        let path = match channel.starts_with('/') {
            true => channel.to_owned(),
            false => format!("{HOMES}/{}/{channel}", domain.id),
        };
        Ok(Box::new(Vchan { domain: domain.id, path, greeting }))
    }
}

impl Host for Dom0 {
    fn domains(&self) -> Result<Vec<Domain>, Failure> {
        domains(&mut Store::open()?)
    }

    fn line(&self, domain: &Domain, channel: &str) -> Result<Box<dyn Line>, Failure> {
        self.vchan(domain, channel, Some(self.dialect))
    }

    fn events(&self, domain: &Domain, channel: &str) -> Result<Box<dyn Line>, Failure> {
        self.vchan(domain, channel, None)
    }
}

/// Whether this is a machine with a xenstore to be asked.
pub fn is_here() -> bool {
    store::is_here()
}

/// All domains that xenstore knows, in the order of their numbers.
pub fn domains(store: &mut Store) -> Result<Vec<Domain>, Failure> {
    let mut ids: Vec<u16> = store.list(HOMES)?.iter().filter_map(number::u16).collect();
    ids.sort_unstable();
    let mut domains = Vec::new();
    for id in ids {
        let mut text = |node: &str| store.read(&format!("{HOMES}/{id}/{node}"));
        let name = text("name")?.unwrap_or_default();
        let ready = text(READY)?.is_some_and(|says| says.starts_with("tapdom"));
        domains.push(Domain { id, name, ready });
    }
    Ok(domains)
}

/// What a storage domain says of itself, below its home.
pub const READY: &str = "data/ready";
