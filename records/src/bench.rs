//! What a world must be able to do for a scenario.

use anyhow::Result;

/// What a disk is made of, in the words of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// `format=`.
    pub format: &'static str,
    /// `access=`.
    pub access: &'static str,
    /// `target=`.
    pub target: &'static str,
}

/// The device name that all disks of the scenarios have in their guest, and its number in xenstore.
pub const VDEV: &str = "xvda";
/// As xenstore knows it.
pub const DEVID: u32 = 51712;

/// The lower disk of a guest that is destroyed, which the backend has as its /dev/xvdd: so many bytes, whatever they are.
pub const PLAIN_BYTES: u64 = 64 << 20;

/// The lower disk of the others, which the backend has as its /dev/xvda: a GPT as sfdisk makes it, with a first partition of
/// this many bytes and a second one of what is left.
pub const LOWER_BYTES: u64 = 8 << 20;
/// The first partition.
pub const FIRST_BYTES: u64 = 2 << 20;

/// Who the numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The domain under test.
    pub backend: u32,
    /// The domain whose disk it is. 0 is dom0, which is also a frontend like any other.
    pub frontend: u32,
}

/// A node of xenstore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its whole path.
    pub path: String,
    /// Its value; what is no UTF-8 is replaced.
    pub value: String,
    /// Its permissions as on the wire: the owner first.
    pub permissions: Vec<String>,
}

/// A value that a watched node had, or that it was gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The node's whole path.
    pub path: String,
    /// Its value; none if it is not there.
    pub value: Option<String>,
}

/// How a request ended for the program that asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// The frontend's own kernel would not ask the backend for it.
    Forbidden,
    /// The backend answered with an error.
    Failed,
}

/// A world with one backend under test, one lower disk and one frontend.
pub trait Bench {
    /// The numbers of those who take part. Those of a guest are known once it is there.
    fn ids(&self) -> Ids;

    /// `xl block-attach`; whether xl was content. The history begins here.
    fn attach(&mut self, wish: &Wish) -> Result<bool>;

    /// `xl block-detach`; whether xl was content.
    fn detach(&mut self) -> Result<bool>;

    /// Waits until both ends say that they are connected and the frontend's kernel has announced its disk.
    fn connected(&mut self) -> Result<()>;

    /// Waits until the backend has refused the disk and the frontend has followed: both say Closed.
    fn refused(&mut self) -> Result<()>;

    /// Every node of a directory, parents first, by name.
    fn nodes(&mut self, directory: &str) -> Result<Vec<Node>>;

    /// What the frontend's kernel makes of the disk: the names are those of Linux's sysfs.
    fn limits(&mut self) -> Result<Vec<(&'static str, String)>>;

    /// Writes, past all caches, and flushes.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<Outcome>;

    /// Reads, past all caches; empty if it was not done.
    fn read(&mut self, offset: u64, length: usize) -> Result<(Outcome, Vec<u8>)>;

    /// Reads the lower disk past the backend.
    fn below(&mut self, offset: u64, length: usize) -> Result<Vec<u8>>;

    /// The lower disk gets this size, and the frontend hears of it.
    fn grow(&mut self, bytes: u64) -> Result<()>;

    /// The frontend closes the disk, forgets it, and is born again beside the same backend directory: state 6, its own
    /// directory gone, then state 1 in a new one. Returns when it is connected again.
    fn reconnect(&mut self) -> Result<()>;

    /// The guest writes without end; returns when some writes have been answered.
    fn load(&mut self) -> Result<()>;

    /// `xl destroy` of the guest; whether xl was content.
    fn destroy(&mut self) -> Result<bool>;

    /// Whether the backend, once it has settled, holds more than before the first disk, by its own counters.
    fn held(&mut self) -> Result<bool>;

    /// All that a watcher in dom0 saw since the attach, in order.
    fn history(&mut self) -> Result<Vec<Change>>;
}
