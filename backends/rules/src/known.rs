//! The paths of nodes, from the names by which the guest found them.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use fuse::{Errno, Name, NodeId, Result};

/// Longest path, in bytes (Linux `PATH_MAX`, less the terminating NUL). The layer reaches nothing deeper.
const MAX_PATH_LEN: usize = 4095;

/// Most nodes that are known at a time; each takes some 100 bytes, and its name.
const MAX_NODES: usize = 1 << 20;

/// An absolute path of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path {
    bytes: Vec<u8>,
    /// Bytes of the root's own path.
    root: usize,
}

impl Path {
    /// All of it.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All of it, for keeps.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The part behind the root's path, without a slash in front.
    pub(crate) fn below_root(&self) -> &[u8] {
        self.bytes.get(self.root + 1..).unwrap_or_default()
    }

    /// The path of a name in a directory that has this path.
    pub(crate) fn child(&self, name: &[u8]) -> Self {
        Self { bytes: [&self.bytes[..], b"/", name].concat(), root: self.root }
    }
}

/// Nodes that the kernel has references to.
#[derive(Debug)]
pub(crate) struct Known {
    /// The root's path, without a slash at its end.
    root: Vec<u8>,
    nodes: RwLock<HashMap<NodeId, Place>>,
}

/// Where a node was found last.
#[derive(Debug)]
struct Place {
    parent: NodeId,
    name: Box<[u8]>,
    lookups: u64,
}

impl Known {
    /// Just the root, which the guest has at `place`.
    pub(crate) fn new(place: &str) -> Self {
        Self { root: place.trim_end_matches('/').as_bytes().to_vec(), nodes: RwLock::default() }
    }

    /// A node's path. Where the kernel has forgotten a directory before what is in it, there is none.
    pub(crate) fn path(&self, node: NodeId) -> Result<Path> {
        let nodes = self.shared();
        let (mut names, mut len, mut next) = (Vec::new(), self.root.len(), node);
        // Each round makes the path longer, so that even a circle ends.
        while next != NodeId::ROOT {
            let place = nodes.get(&next).ok_or(Errno::ESTALE)?;
            len += 1 + place.name.len();
            if len > MAX_PATH_LEN {
                return Err(Errno::ENAMETOOLONG);
            }
            names.push(&place.name);
            next = place.parent;
        }
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(&self.root);
        for name in names.into_iter().rev() {
            bytes.push(b'/');
            bytes.extend_from_slice(name);
        }
        Ok(Path { bytes, root: self.root.len() })
    }

    /// The path of a name in a directory.
    pub(crate) fn named(&self, parent: NodeId, name: Name<'_>) -> Result<Path> {
        let path = self.path(parent)?.child(name.as_bytes());
        if path.as_bytes().len() > MAX_PATH_LEN { Err(Errno::ENAMETOOLONG) } else { Ok(path) }
    }

    /// Whether there is room for one more.
    pub(crate) fn has_room(&self) -> bool {
        self.shared().len() < MAX_NODES
    }

    /// The kernel is about to have one reference more to a node, by this name. Whether there was room to note that.
    pub(crate) fn learn(&self, node: NodeId, parent: NodeId, name: &[u8]) -> bool {
        if node == NodeId::ROOT {
            return true;
        }
        let mut nodes = self.alone();
        if nodes.len() >= MAX_NODES && !nodes.contains_key(&node) {
            return false;
        }
        let place = nodes.entry(node).or_insert_with(|| Place { parent, name: name.into(), lookups: 0 });
        place.lookups = place.lookups.saturating_add(1);
        place.be_at(parent, name);
        true
    }

    /// A node has another name now.
    pub(crate) fn moved(&self, node: NodeId, parent: NodeId, name: &[u8]) {
        if let Some(place) = self.alone().get_mut(&node) {
            place.be_at(parent, name);
        }
    }

    /// The kernel gives references back; what it never had is not missed.
    pub(crate) fn forget(&self, node: NodeId, count: u64) {
        let mut nodes = self.alone();
        let Some(place) = nodes.get_mut(&node) else { return };
        place.lookups = place.lookups.saturating_sub(count);
        if place.lookups == 0 {
            nodes.remove(&node);
        }
    }

    /// The kernel has nothing any more.
    pub(crate) fn forget_all(&self) {
        let nodes = std::mem::take(&mut *self.alone());
        drop(nodes);
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.shared().len()
    }

    fn shared(&self) -> RwLockReadGuard<'_, HashMap<NodeId, Place>> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, HashMap<NodeId, Place>> {
        self.nodes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn be_at(&mut self, parent: NodeId, name: &[u8]) {
        self.parent = parent;
        if *self.name != *name {
            self.name = name.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(known: &Known, node: u64) -> Result<String> {
        known.path(NodeId(node)).map(|path| String::from_utf8(path.into_bytes()).unwrap())
    }

    fn learn(known: &Known, node: u64, parent: u64, name: &str) {
        assert!(known.learn(NodeId(node), NodeId(parent), name.as_bytes()));
    }

    #[test]
    fn the_last_name_counts() {
        let known = Known::new("/w/");
        assert_eq!(path(&known, 1).as_deref(), Ok("/w"));
        assert_eq!(known.path(NodeId::ROOT).unwrap().below_root(), b"");
        learn(&known, 5, 1, "d");
        learn(&known, 6, 5, "f");
        learn(&known, 6, 1, "link");
        assert_eq!(path(&known, 6).as_deref(), Ok("/w/link"));
        known.moved(NodeId(6), NodeId(5), b"g");
        known.moved(NodeId(5), NodeId(1), b"e");
        assert_eq!(path(&known, 6).as_deref(), Ok("/w/e/g"));
        assert_eq!(known.path(NodeId(6)).unwrap().below_root(), b"e/g");
        known.forget(NodeId(6), 1);
        assert_eq!(path(&known, 6).as_deref(), Ok("/w/e/g"));
        // The directory first: then there is no path, but no harm.
        known.forget(NodeId(5), 9);
        assert_eq!(path(&known, 6), Err(Errno::ESTALE));
        known.forget(NodeId(6), 1);
        known.forget(NodeId(6), 1);
        learn(&known, 1, 1, "root");
        assert_eq!((known.count(), path(&known, 6)), (0, Err(Errno::ESTALE)));
    }

    #[test]
    fn circles_and_depths_end() {
        let known = Known::new("/w");
        learn(&known, 5, 6, "a");
        learn(&known, 6, 5, "b");
        assert_eq!(path(&known, 5), Err(Errno::ENAMETOOLONG));
        known.forget_all();
        let name = "n".repeat(255);
        for node in 2..18 {
            learn(&known, node, node - 1, &name);
        }
        assert_eq!(path(&known, 16).unwrap().len(), 2 + 15 * 256);
        assert_eq!(path(&known, 17), Err(Errno::ENAMETOOLONG));
    }
}
