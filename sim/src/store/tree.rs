//! The tree: nodes, owners, permissions, and who pays for what.
//!
//! As C xenstored 4.17 has it (`tools/xenstore/xenstored_core.c`): the first permission names the owner and what
//! everybody may do, the others name domains; a new node takes its parent's list with its creator as owner.

use std::collections::BTreeMap;
use std::ops::Bound;

use xen::port::DomId;

use crate::world::DOM0;

/// The errors xenstored tells by name; `{:?}` is the name on the wire.
#[allow(missing_docs, clippy::upper_case_acronyms)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    EINVAL,
    EACCES,
    EEXIST,
    ENOENT,
    ENOSPC,
    ENOSYS,
    EAGAIN,
    E2BIG,
    EBUSY,
}

/// What a permission allows (`XS_PERM_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// May read.
    pub read: bool,
    /// May write.
    pub write: bool,
}

/// One entry of a node's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    /// Whom it names. The first entry names the owner.
    pub domain: DomId,
    /// What that domain may do; in the first entry, what all that are not named may do.
    pub rights: Rights,
}

impl Permission {
    /// From the letter of the wire: `n`, `r`, `w`, `b`.
    pub fn new(letter: char, domain: DomId) -> Option<Self> {
        let (read, write) = match letter {
            'n' => (false, false),
            'r' => (true, false),
            'w' => (false, true),
            'b' => (true, true),
            _ => return None,
        };
        Some(Permission { domain, rights: Rights { read, write } })
    }

    /// As on the wire.
    pub fn text(&self) -> String {
        let letter = match (self.rights.read, self.rights.write) {
            (false, false) => 'n',
            (true, false) => 'r',
            (false, true) => 'w',
            (true, true) => 'b',
        };
        format!("{letter}{}", self.domain.0)
    }
}

/// What a caller is about to do to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Read it.
    Read,
    /// Write it.
    Write,
    /// Change its permissions.
    Own,
}

/// One node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its value.
    pub value: Vec<u8>,
    /// Its permissions, never empty.
    pub permissions: Vec<Permission>,
    /// Changes with every change of the node or of the list of its children.
    pub generation: u64,
}

impl Node {
    /// Whether `who` may do that.
    pub fn allows(&self, who: DomId, want: Want) -> bool {
        let owner = self.permissions[0];
        if who == DOM0 || who == owner.domain {
            return true;
        }
        let named = self.permissions[1..].iter().find(|permission| permission.domain == who);
        let rights = named.map_or(owner.rights, |permission| permission.rights);
        match want {
            Want::Read => rights.read,
            Want::Write => rights.write,
            Want::Own => false,
        }
    }
}

/// The largest number of nodes a domain may own (`quota-nodes`).
pub const NODES_MAX: usize = 1000;
/// The largest value (`quota-entry-size`).
pub const NODE_BYTES_MAX: usize = 2048;
/// The longest absolute path (`XENSTORE_ABS_PATH_MAX`).
pub const PATH_BYTES_MAX: usize = 3072;

/// The nodes by their absolute paths; the root is "/".
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
    generation: u64,
}

/// The path one up; the root has none.
pub fn parent(path: &str) -> Option<&str> {
    match path.rfind('/')? {
        0 if path.len() == 1 => None,
        0 => Some("/"),
        at => Some(&path[..at]),
    }
}

/// Whether `path` is `above` or lies below it.
pub fn is_within(path: &str, above: &str) -> bool {
    above == "/" || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether it is a path at all.
pub fn is_valid(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte);
    !path.is_empty()
        && path.len() < PATH_BYTES_MAX
        && path.bytes().all(plain)
        && !path.contains("//")
        && (path == "/" || !path.ends_with('/'))
}

impl Default for Tree {
    fn default() -> Self {
        let root = Node {
            value: Vec::new(),
            permissions: vec![Permission { domain: DOM0, rights: Rights { read: true, write: false } }],
            generation: 0,
        };
        Tree { nodes: BTreeMap::from([("/".into(), root)]), generation: 0 }
    }
}

impl Tree {
    /// The node, without a look at permissions.
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// The node, for one who may do that.
    pub fn node(&self, who: DomId, path: &str, want: Want) -> Result<&Node, Errno> {
        match self.nodes.get(path) {
            Some(node) if node.allows(who, want) => Ok(node),
            Some(_) => Err(Errno::EACCES),
            // Whether a node exists is a secret of those who may read its parent.
            None if self.nearest(path).allows(who, want) => Err(Errno::ENOENT),
            None => Err(Errno::EACCES),
        }
    }

    /// The names of a node's children, in order.
    pub fn children(&self, path: &str) -> Vec<String> {
        let prefix = if path == "/" { "/".into() } else { format!("{path}/") };
        let below = self.nodes.range::<String, _>((Bound::Excluded(&prefix), Bound::Unbounded));
        below
            .map_while(|(at, _)| at.strip_prefix(&prefix))
            .filter(|name| !name.contains('/'))
            .map(str::to_string)
            .collect()
    }

    /// The node and all below it, parents first.
    pub fn subtree(&self, path: &str) -> Vec<String> {
        self.nodes.keys().filter(|at| is_within(at, path)).cloned().collect()
    }

    /// How many nodes the domain pays for.
    pub fn owned(&self, who: DomId) -> usize {
        self.nodes.values().filter(|node| node.permissions[0].domain == who).count()
    }

    /// Writes a value, creating the node and its parents; `None` only creates.
    pub fn write(&mut self, who: DomId, path: &str, value: Option<&[u8]>) -> Result<(), Errno> {
        if value.is_some_and(|value| value.len() > NODE_BYTES_MAX) {
            return Err(Errno::ENOSPC);
        }
        if self.nodes.contains_key(path) {
            self.node(who, path, Want::Write)?;
            let generation = self.step();
            let node = self.nodes.get_mut(path).expect("just seen");
            if let Some(value) = value {
                node.value = value.to_vec();
                node.generation = generation;
            }
            return Ok(());
        }
        self.create(who, path)?;
        self.nodes.get_mut(path).expect("just made").value = value.unwrap_or_default().to_vec();
        Ok(())
    }

    fn create(&mut self, who: DomId, path: &str) -> Result<(), Errno> {
        let above = self.nearest(path);
        if !above.allows(who, Want::Write) {
            return Err(Errno::EACCES);
        }
        let mut permissions = above.permissions.clone();
        if who != DOM0 {
            permissions[0].domain = who;
        }
        let mut missing = vec![path];
        while let Some(up) = parent(missing[missing.len() - 1])
            && !self.nodes.contains_key(up)
        {
            missing.push(up);
        }
        if who != DOM0 && self.owned(who) + missing.len() > NODES_MAX {
            return Err(Errno::ENOSPC);
        }
        for path in missing.into_iter().rev() {
            self.touch_parent(path);
            let generation = self.step();
            let node = Node { value: Vec::new(), permissions: permissions.clone(), generation };
            self.nodes.insert(path.into(), node);
        }
        Ok(())
    }

    /// Removes a node and all below it: write permission on the node itself suffices. Returns what is gone, with the
    /// permissions it had. A node that is not there is no error if its parent is.
    pub fn remove(&mut self, who: DomId, path: &str) -> Result<Vec<(String, Node)>, Errno> {
        let Some(up) = parent(path) else { return Err(Errno::EINVAL) };
        match self.node(who, path, Want::Write) {
            Err(Errno::ENOENT) if self.nodes.contains_key(up) => return Ok(Vec::new()),
            found => found?,
        };
        let gone = self.subtree(path);
        let gone = gone.into_iter().map(|at| self.nodes.remove_entry(&at).expect("just listed")).collect();
        self.touch_parent(path);
        Ok(gone)
    }

    /// Sets the permissions.
    pub fn permit(&mut self, who: DomId, path: &str, permissions: Vec<Permission>) -> Result<(), Errno> {
        let owner = self.node(who, path, Want::Own)?.permissions[0].domain;
        let first = permissions.first().ok_or(Errno::EINVAL)?;
        if who != DOM0 && first.domain != owner {
            return Err(Errno::EACCES);
        }
        let generation = self.step();
        let node = self.nodes.get_mut(path).expect("just seen");
        node.permissions = permissions;
        node.generation = generation;
        Ok(())
    }

    /// A domain is gone: another that gets its number must not inherit (XSA-322).
    pub fn forget(&mut self, who: DomId) {
        for node in self.nodes.values_mut() {
            if node.permissions[0].domain == who {
                node.permissions[0].domain = DOM0;
            }
            let owner = node.permissions[0];
            node.permissions.retain(|permission| permission.domain != who);
            if node.permissions.is_empty() {
                node.permissions.push(owner);
            }
        }
    }

    /// The node itself or the nearest one above it that exists.
    fn nearest(&self, path: &str) -> &Node {
        let mut path = path;
        loop {
            if let Some(node) = self.nodes.get(path) {
                return node;
            }
            path = parent(path).expect("the root always exists");
        }
    }

    fn touch_parent(&mut self, path: &str) {
        let generation = self.step();
        if let Some(up) = parent(path).and_then(|up| self.nodes.get_mut(up)) {
            up.generation = generation;
        }
    }

    fn step(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRIVER: DomId = DomId(1);
    const GUEST: DomId = DomId(5);

    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.write(DOM0, "/back/vbd", Some(b"x")).unwrap();
        let list = vec![Permission::new('n', DRIVER).unwrap(), Permission::new('r', GUEST).unwrap()];
        tree.permit(DOM0, "/back/vbd", list).unwrap();
        tree
    }

    #[test]
    fn a_child_takes_its_parents_list_and_its_creator_owns_it() {
        let mut tree = tree();
        tree.write(DRIVER, "/back/vbd/state", Some(b"2")).unwrap();
        let list = &tree.get("/back/vbd/state").unwrap().permissions;
        assert_eq!(list.iter().map(Permission::text).collect::<Vec<_>>(), ["n1", "r5"]);
        assert!(tree.node(GUEST, "/back/vbd/state", Want::Read).is_ok());
        assert_eq!(tree.write(GUEST, "/back/vbd/state", Some(b"6")), Err(Errno::EACCES));
        assert_eq!(tree.node(DomId(6), "/back/vbd/state", Want::Read).err(), Some(Errno::EACCES));
    }

    #[test]
    fn the_owner_removes_its_directory_though_not_its_parent() {
        let mut tree = tree();
        tree.write(DRIVER, "/back/vbd/a/b", Some(b"")).unwrap();
        assert_eq!(tree.remove(DRIVER, "/back").err(), Some(Errno::EACCES));
        let gone: Vec<String> = tree.remove(DRIVER, "/back/vbd").unwrap().into_iter().map(|(at, _)| at).collect();
        assert_eq!(gone, ["/back/vbd", "/back/vbd/a", "/back/vbd/a/b"]);
        assert_eq!(tree.write(DRIVER, "/back/vbd/state", Some(b"6")), Err(Errno::EACCES), "it cannot come back");
        assert!(tree.remove(DOM0, "/back/vbd").unwrap().is_empty());
        assert_eq!(tree.remove(DOM0, "/none/vbd").err(), Some(Errno::ENOENT));
    }

    #[test]
    fn nodes_are_charged_to_their_owner_and_dom0_is_never_refused() {
        let mut tree = tree();
        for i in 1..NODES_MAX {
            tree.write(DRIVER, &format!("/back/vbd/{i}"), Some(b"")).unwrap();
        }
        assert_eq!(tree.owned(DRIVER), NODES_MAX);
        assert_eq!(tree.write(DRIVER, "/back/vbd/more", Some(b"")), Err(Errno::ENOSPC));
        assert_eq!(tree.write(DOM0, "/back/vbd/more", Some(b"")), Ok(()));
        assert_eq!(tree.owned(DRIVER), NODES_MAX + 1);
    }

    #[test]
    fn children_are_listed_by_name_and_one_level_deep() {
        let mut tree = Tree::default();
        for path in ["/a/b/c", "/a/d", "/ab"] {
            tree.write(DOM0, path, Some(b"")).unwrap();
        }
        assert_eq!(tree.children("/a"), ["b", "d"]);
        assert_eq!(tree.children("/"), ["a", "ab"]);
    }

    #[test]
    fn a_dead_domains_number_inherits_nothing() {
        let mut tree = tree();
        tree.forget(GUEST);
        tree.forget(DRIVER);
        assert_eq!(tree.get("/back/vbd").unwrap().permissions, [Permission::new('n', DOM0).unwrap()]);
    }

    #[test]
    fn odd_paths_are_no_paths() {
        for bad in ["", "/a/", "/a//b", "/a b", "/\u{e9}", "/a\0"] {
            assert!(!is_valid(bad), "{bad:?}");
        }
        assert!(is_valid("/") && is_valid("@releaseDomain") && is_valid("backend/vbd-1_x"));
    }
}
