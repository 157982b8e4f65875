//! A client of xenstored in the same process: libxl in dom0, or a guest whose own xenbus driver is not under test.

use crate::store::daemon::{Out, kind};
use crate::store::{Errno, Store};

/// A connection, or a transaction of one.
#[derive(Clone)]
pub struct Client {
    store: Store,
    id: u32,
    transaction: u32,
}

impl Client {
    pub(crate) fn new(store: &Store, id: u32) -> Self {
        Client { store: store.clone(), id, transaction: 0 }
    }

    fn request(&self, kind: u32, payload: &[u8]) -> Result<Vec<u8>, Errno> {
        let answer = self.store.daemon.borrow_mut().request(self.id, kind, self.transaction, payload);
        // A look wakes nobody: a test that waits for a node by looking must not keep the clock from moving.
        if !matches!(kind, kind::READ | kind::DIRECTORY | kind::GET_PERMS) {
            self.store.world.stir();
        }
        answer
    }

    /// A node's value; bytes that are no UTF-8 are replaced.
    pub fn read(&self, path: &str) -> Result<String, Errno> {
        let value = self.request(kind::READ, format!("{path}\0").as_bytes())?;
        Ok(String::from_utf8_lossy(&value).into_owned())
    }

    /// A node's value as a number; `None` if it is not there or no number.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.read(path).ok()?.parse().ok()
    }

    /// Writes a value.
    pub fn write(&self, path: &str, value: &str) -> Result<(), Errno> {
        self.request(kind::WRITE, format!("{path}\0{value}").as_bytes()).map(drop)
    }

    /// Creates an empty node.
    pub fn mkdir(&self, path: &str) -> Result<(), Errno> {
        self.request(kind::MKDIR, format!("{path}\0").as_bytes()).map(drop)
    }

    /// Removes a node and what is below it.
    pub fn remove(&self, path: &str) -> Result<(), Errno> {
        self.request(kind::RM, format!("{path}\0").as_bytes()).map(drop)
    }

    /// Whether the node is there (and readable).
    pub fn exists(&self, path: &str) -> bool {
        self.read(path).is_ok()
    }

    /// The names of a node's children.
    pub fn directory(&self, path: &str) -> Result<Vec<String>, Errno> {
        let names = self.request(kind::DIRECTORY, format!("{path}\0").as_bytes())?;
        let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
    }

    /// Sets permissions, each spelt as on the wire: `["n1", "r5"]`.
    pub fn permit(&self, path: &str, permissions: &[&str]) -> Result<(), Errno> {
        let list: String = permissions.iter().map(|permission| format!("{permission}\0")).collect();
        self.request(kind::SET_PERMS, format!("{path}\0{list}").as_bytes()).map(drop)
    }

    /// Sets a watch.
    pub fn watch(&self, path: &str, token: &str) -> Result<(), Errno> {
        self.request(kind::WATCH, format!("{path}\0{token}\0").as_bytes()).map(drop)
    }

    /// Ends a watch.
    pub fn unwatch(&self, path: &str, token: &str) -> Result<(), Errno> {
        self.request(kind::UNWATCH, format!("{path}\0{token}\0").as_bytes()).map(drop)
    }

    /// The next event: path and token.
    pub fn event(&self) -> Option<(String, String)> {
        match self.store.daemon.borrow_mut().take(self.id)? {
            Out::Event { path, token } => Some((path, token)),
            Out::Reply { .. } => unreachable!("answers are returned, not queued, in the same process"),
        }
    }

    /// A transaction: what is done through the returned client is done in it.
    pub fn begin(&self) -> Result<Client, Errno> {
        let id = self.request(kind::TRANSACTION_START, b"\0")?;
        let id = String::from_utf8_lossy(&id).trim_end_matches('\0').parse().expect("xenstored gives numbers");
        Ok(Client { transaction: id, ..self.clone() })
    }

    /// Ends the transaction.
    pub fn commit(self) -> Result<(), Errno> {
        self.request(kind::TRANSACTION_END, b"T\0").map(drop)
    }

    /// Does `what` in transactions until one meets no conflict, as libxl and Linux do.
    pub fn together<T>(&self, what: impl Fn(&Client) -> Result<T, Errno>) -> Result<T, Errno> {
        loop {
            let transaction = self.begin()?;
            let done = what(&transaction);
            let ended = if done.is_ok() { transaction.commit() } else { transaction.abort() };
            match ended {
                Err(Errno::EAGAIN) => continue,
                Err(errno) => return Err(errno),
                Ok(()) => return done,
            }
        }
    }

    fn abort(self) -> Result<(), Errno> {
        self.request(kind::TRANSACTION_END, b"F\0").map(drop)
    }
}

#[cfg(test)]
mod tests {
    use xen::port::DomId;

    use super::*;
    use crate::random::Random;
    use crate::store::daemon::{TRANSACTIONS_MAX, WATCHES_MAX};
    use crate::world::{DOM0, World};

    fn store() -> Store {
        let world = World::new(Random::new(7));
        Store::new(&world, Random::new(7))
    }

    fn drain(client: &Client) -> Vec<(String, String)> {
        std::iter::from_fn(|| client.event()).collect()
    }

    #[test]
    fn a_relative_watch_tells_relative_paths_and_fires_at_once() {
        let store = store();
        let (dom0, driver) = (store.client(DOM0), store.client(DomId(1)));
        driver.watch("backend", "b").unwrap();
        assert_eq!(drain(&driver), [("backend".into(), "b".into())]);
        dom0.write("/local/domain/1/backend/vbd/5/state", "1").unwrap();
        assert_eq!(drain(&driver), [("backend/vbd/5/state".into(), "b".into())]);
        driver.watch("/local/domain/1/backend", "abs").unwrap();
        drain(&driver);
        dom0.write("/local/domain/1/backend/vbd", "").unwrap();
        assert!(drain(&driver).contains(&("/local/domain/1/backend/vbd".into(), "abs".into())));
    }

    #[test]
    fn removal_fires_above_at_and_below() {
        let store = store();
        let dom0 = store.client(DOM0);
        dom0.write("/a/b/c", "").unwrap();
        for path in ["/a", "/a/b", "/a/b/c"] {
            dom0.watch(path, path).unwrap();
        }
        drain(&dom0);
        dom0.remove("/a/b").unwrap();
        let mut got = drain(&dom0);
        got.sort();
        let fired = |path: &str, token: &str| (path.to_string(), token.to_string());
        assert_eq!(got, [fired("/a/b", "/a"), fired("/a/b", "/a/b"), fired("/a/b/c", "/a/b/c")]);
    }

    #[test]
    fn what_one_may_not_read_one_does_not_hear_of() {
        let store = store();
        let (dom0, driver) = (store.client(DOM0), store.client(DomId(1)));
        dom0.write("/local/domain/5", "").unwrap();
        dom0.permit("/local", &["n0"]).unwrap();
        dom0.permit("/local/domain/5", &["n5"]).unwrap();
        driver.watch("/local/domain/5", "w").unwrap();
        drain(&driver);
        dom0.write("/local/domain/5/secret/a", "").unwrap();
        assert_eq!(drain(&driver), []);
        dom0.write("/local/domain/5/device", "").unwrap();
        dom0.permit("/local/domain/5/device", &["n5", "r1"]).unwrap();
        assert!(!drain(&driver).is_empty());
    }

    #[test]
    fn transactions_are_isolated_and_conflict() {
        let store = store();
        let dom0 = store.client(DOM0);
        dom0.write("/a", "1").unwrap();
        let one = dom0.begin().unwrap();
        assert_eq!(one.read("/a").unwrap(), "1");
        one.write("/b", "x").unwrap();
        assert!(!dom0.exists("/b"));
        dom0.write("/a", "2").unwrap();
        assert_eq!(one.read("/a").unwrap(), "1");
        assert_eq!(one.commit(), Err(Errno::EAGAIN));
        assert!(!dom0.exists("/b"));
        let two = dom0.begin().unwrap();
        two.write("/b/c", "y").unwrap();
        dom0.write("/elsewhere/x", "").unwrap_or_default();
        dom0.write("/a", "3").unwrap();
        // The root gained a child, which is what creating "/b" depends on; "/a" alone would not matter.
        assert_eq!(two.commit(), Err(Errno::EAGAIN));
        let three = dom0.begin().unwrap();
        three.write("/b/c", "y").unwrap();
        dom0.write("/a", "4").unwrap();
        assert_eq!(three.commit(), Ok(()));
        assert_eq!(dom0.read("/b/c").unwrap(), "y");
    }

    #[test]
    fn quotas_hold_for_guests() {
        let store = store();
        let guest = store.client(DomId(5));
        for i in 0..WATCHES_MAX {
            guest.watch("data", &i.to_string()).unwrap();
        }
        assert_eq!(guest.watch("data", "more"), Err(Errno::E2BIG));
        let open: Vec<Client> = (0..TRANSACTIONS_MAX).map(|_| guest.begin().unwrap()).collect();
        assert_eq!(guest.begin().err(), Some(Errno::ENOSPC));
        drop(open);
        store.forget(DomId(5));
        assert_eq!(store.watches(DomId(5)), 0);
    }
}
