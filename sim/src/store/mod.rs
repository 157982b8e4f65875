//! xenstored: clients, their watches and transactions, over one [`tree`].
//!
//! The domain under test speaks to it through its ring ([`ring`]); everybody else is a [`Client`] in the same process,
//! with the same rules.

pub mod client;
pub mod daemon;
pub mod ring;
pub mod tree;

use std::cell::RefCell;
use std::rc::Rc;

pub use client::Client;
pub use tree::Errno;
use xen::page::PageRef;
use xen::port::DomId;

use crate::random::Random;
use crate::store::daemon::Daemon;
use crate::store::ring::Connection;
use crate::world::{DOM0, World};

/// One xenstored; clones mean the same.
#[derive(Clone)]
pub struct Store {
    world: World,
    daemon: Rc<RefCell<Daemon>>,
    connections: Rc<RefCell<Vec<Connection>>>,
    random: Rc<RefCell<Random>>,
}

impl Store {
    /// An empty store.
    pub fn new(world: &World, mut random: Random) -> Self {
        Store {
            world: world.clone(),
            daemon: Rc::new(RefCell::new(Daemon::new(world, random.fork()))),
            connections: Rc::default(),
            random: Rc::new(RefCell::new(random)),
        }
    }

    /// A client that acts for `domain`, without a ring of its own.
    pub fn client(&self, domain: DomId) -> Client {
        let id = self.daemon.borrow_mut().open(domain);
        Client::new(self, id)
    }

    /// Makes the domain's ring: the page and port that it finds in its HVM parameters. Its first port is this one, its
    /// second the console's, as the domain builder has it.
    pub fn introduce(&self, domain: DomId) {
        let page = PageRef::alone().expect("memory for a test");
        let port = self.world.alloc_unbound(domain, DOM0).expect("a new domain has ports");
        self.world.alloc_unbound(domain, DOM0).expect("a new domain has ports");
        let ours = self.world.bind(DOM0, domain, port).expect("just made");
        self.world.set_store(domain, page.clone(), port);
        let client = self.daemon.borrow_mut().open(domain);
        let random = self.random.borrow_mut().fork();
        self.connections.borrow_mut().push(Connection::new(domain, client, page, ours, random));
    }

    /// The domain is gone: its clients, watches and transactions with it, and its name from every permission.
    pub fn forget(&self, domain: DomId) {
        self.connections.borrow_mut().retain(|connection| {
            let stays = connection.domain != domain;
            if !stays {
                self.world.close(DOM0, connection.port);
            }
            stays
        });
        self.daemon.borrow_mut().forget(domain);
        self.world.stir();
    }

    /// Serves the rings for a while. Returns whether there was anything to do.
    pub fn turn(&self) -> bool {
        let mut busy = false;
        for connection in self.connections.borrow_mut().iter_mut() {
            busy |= connection.turn(&self.world, &self.daemon);
        }
        busy
    }

    /// How many nodes the domain pays for.
    pub fn owned(&self, domain: DomId) -> usize {
        self.daemon.borrow().tree().owned(domain)
    }

    /// How many watches the domain has.
    pub fn watches(&self, domain: DomId) -> usize {
        self.daemon.borrow().watches(domain)
    }

    /// Notes every value of these nodes from now on.
    pub fn begin_witness(&self, nodes: Vec<String>) {
        self.daemon.borrow_mut().begin_witness(nodes);
    }

    /// The values so far, each with its node, in order; none where the node was gone.
    pub fn witness(&self) -> Vec<(String, Option<String>)> {
        self.daemon.borrow().witness.clone()
    }

    /// A directory with all below it, parents first, by name: path, value, and permissions as on the wire.
    pub fn nodes(&self, path: &str) -> Vec<(String, String, Vec<String>)> {
        let daemon = self.daemon.borrow();
        let tree = daemon.tree();
        let paths = tree.subtree(path).into_iter();
        let node = paths.filter_map(|at| {
            let node = tree.get(&at)?;
            let permissions = node.permissions.iter().map(tree::Permission::text).collect();
            Some((at, String::from_utf8_lossy(&node.value).into_owned(), permissions))
        });
        node.collect()
    }

    /// A whole directory as lines `path = value`, sorted; for messages of tests and comparisons with a real store.
    pub fn list(&self, path: &str) -> Vec<String> {
        let daemon = self.daemon.borrow();
        let tree = daemon.tree();
        let value = |at: &str| String::from_utf8_lossy(&tree.get(at).expect("just listed").value).into_owned();
        tree.subtree(path).iter().map(|at| format!("{at} = {}", value(at))).collect()
    }
}
