//! Which sockets there are: one for every storage domain that is ready, as long as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use protocol::tapdisk::Dialect;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::relay::relay;
use crate::dom0::store::Store;
use crate::dom0::{HOMES, READY, domains};
use crate::failure::Failure;
use crate::host::Host;
use crate::markers::make_folder;
use crate::place::Domain;

/// How long a client may leave half a request, or an answer unread.
const PATIENCE: Duration = Duration::from_secs(10);

/// Clients at once; more wait in the socket's queue.
const CLIENTS_MAX: usize = 64;

/// What there is to be served, and how.
pub struct Setting {
    /// The way to storage domains.
    pub host: Arc<dyn Host + Send + Sync>,
    /// The channel.
    pub channel: String,
    /// Its dialect.
    pub dialect: Dialect,
    /// The folder of the sockets.
    pub control: PathBuf,
}

/// A socket and the domain that it leads to.
struct Served {
    domain: Domain,
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Served {
    fn drop(&mut self) {
        // Gone already is as well.
        let _ = fs::remove_file(&self.path);
    }
}

/// Runs until xenstore fails.
pub fn run(setting: &Arc<Setting>) -> Result<(), Failure> {
    make_folder(&setting.control)?;
    let mut store = Store::open()?;
    for path in ["@introduceDomain", "@releaseDomain"] {
        store.watch(path, "domains")?;
    }
    let mut here = Here::default();
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        while store.has_event() {
            store.event(None)?;
        }
        here.look(setting, &mut store)?;
        while !store.has_event() {
            let accepting = clients.load(Ordering::Relaxed) < CLIENTS_MAX;
            match wait(&store, &here.served, accepting)? {
                Woken::Store => break,
                Woken::Client(id) => {
                    if let Some(served) = here.served.get(&id) {
                        accept(setting, served, &clients);
                    }
                }
                Woken::Nobody => {}
            }
        }
        store.event(None)?;
    }
}

/// What the daemon has at the moment.
#[derive(Default)]
struct Here {
    served: BTreeMap<u16, Served>,
    /// The domains whose readiness is watched.
    watched: BTreeSet<u16>,
}

impl Here {
    /// Sees to it that exactly the domains that are ready have sockets.
    fn look(&mut self, setting: &Setting, store: &mut Store) -> Result<(), Failure> {
        let all = domains(store)?;
        let there: BTreeSet<u16> = all.iter().map(|domain| domain.id).collect();
        let node = |id: u16| format!("{HOMES}/{id}/{READY}");
        for id in there.difference(&self.watched) {
            store.watch(&node(*id), "ready")?;
        }
        for id in self.watched.difference(&there) {
            store.unwatch(&node(*id), "ready")?;
        }
        self.watched = there;
        self.served.retain(|_, kept| all.iter().any(|domain| domain.ready && *domain == kept.domain));
        for domain in all.into_iter().filter(|domain| domain.ready) {
            if self.served.contains_key(&domain.id) {
                continue;
            }
            let path = setting.control.join(format!("ctl{}", domain.id));
            match listen(&path) {
                Ok(listener) => {
                    eprintln!("tap-ctl: serve: {} is {}", path.display(), domain.title());
                    self.served.insert(domain.id, Served { domain, listener, path });
                }
                Err(why) => eprintln!("tap-ctl: serve: {}: {why}", path.display()),
            }
        }
        Ok(())
    }
}

/// A new socket. One that nobody answers at is left over and replaced.
fn listen(path: &Path) -> Result<UnixListener, Failure> {
    let listener = match UnixListener::bind(path) {
        Err(why) if why.kind() == ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Err(Failure::new(Errno::ADDRINUSE, "somebody serves this socket already"));
            }
            fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        bound => bound?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

enum Woken {
    Store,
    Client(u16),
    Nobody,
}

fn wait(store: &Store, served: &BTreeMap<u16, Served>, accepting: bool) -> Result<Woken, Failure> {
    let mut fds = vec![PollFd::from_borrowed_fd(store.fd(), PollFlags::IN)];
    let ids: Vec<u16> = served.keys().copied().filter(|_| accepting).collect();
    fds.extend(served.values().filter(|_| accepting).map(|served| PollFd::new(&served.listener, PollFlags::IN)));
    // Who is full looks again when somebody may have left; nobody tells.
    let soon = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    match poll(&mut fds, (!accepting).then_some(&soon)) {
        Err(Errno::INTR) => return Ok(Woken::Nobody),
        ready => ready?,
    };
    let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    if ready.first() == Some(&true) {
        return Ok(Woken::Store);
    }
    Ok(ids
        .into_iter()
        .zip(ready.into_iter().skip(1))
        .find(|(_, ready)| *ready)
        .map_or(Woken::Nobody, |(id, _)| Woken::Client(id)))
}

/// Gives a client a thread of its own: one that waits for a pause holds no other.
fn accept(setting: &Arc<Setting>, served: &Served, clients: &Arc<AtomicUsize>) {
    let Ok((client, _)) = served.listener.accept() else { return };
    let (setting, domain, clients) = (setting.clone(), served.domain.clone(), clients.clone());
    clients.fetch_add(1, Ordering::Relaxed);
    let leave = clients.clone();
    let started = thread::Builder::new().spawn(move || {
        let done = client
            .set_nonblocking(false)
            .map_err(Failure::from)
            .and_then(|()| setting.host.line(&domain, &setting.channel))
            .and_then(|line| relay(client, &line, setting.dialect, PATIENCE));
        if let Err(why) = done {
            eprintln!("tap-ctl: serve: {}: {why}", domain.title());
        }
        clients.fetch_sub(1, Ordering::Relaxed);
    });
    if let Err(why) = started {
        eprintln!("tap-ctl: serve: {why}");
        leave.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_socket_left_over_is_replaced_and_one_in_use_is_not() {
        let scratch = Scratch::new();
        let path = scratch.path().join("ctl5");
        let first = listen(&path).unwrap();
        assert_eq!(listen(&path).unwrap_err().errno(), Errno::ADDRINUSE);
        drop(first);
        assert!(path.exists());
        drop(listen(&path).unwrap());
    }
}
