//! Names: directories in memory, and the inodes to which their entries refer.
//!
//! Directories are numbered, not nested, so that deep directories cannot exhaust the stack.

use std::collections::BTreeMap;

use crate::{Attributes, Error, MAX_NAME_LEN, Result};

/// Most inodes of one image.
pub(crate) const MAX_INODES: usize = 1 << 26;

/// A directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DirId(u32);

/// An inode that is not a directory, and is already in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

/// The inode to which a name refers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A directory, which has one name only.
    Dir(DirId),
    /// Any other inode; if it has several names, they are hard links.
    Node(NodeId),
}

/// The kind of an inode, as directory entries record it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum NodeKind {
    /// Regular file.
    File = 1,
    /// Character device.
    CharDevice = 3,
    /// Block device.
    BlockDevice = 4,
    /// Named pipe.
    Fifo = 5,
    /// Unix socket.
    Socket = 6,
    /// Symbolic link.
    Symlink = 7,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) nid: u64,
    pub(crate) kind: NodeKind,
}

#[derive(Debug, Default)]
pub(crate) struct Dir {
    pub(crate) attributes: Attributes,
    pub(crate) entries: BTreeMap<Box<[u8]>, Entry>,
}

/// The directory tree of an image while it is written.
#[derive(Debug)]
pub struct Tree {
    dirs: Vec<Dir>,
    nodes: Vec<Node>,
}

impl Tree {
    pub(crate) fn new() -> Self {
        let attributes = Attributes { mode: 0o755, ..Attributes::default() };
        Self { dirs: vec![Dir { attributes, ..Dir::default() }], nodes: Vec::new() }
    }

    /// The root directory, which exists from the start, with mode 0755 and owner root.
    pub fn root(&self) -> DirId {
        DirId(0)
    }

    /// The inode to which `name` in `dir` refers.
    pub fn entry(&self, dir: DirId, name: &[u8]) -> Option<Entry> {
        self.dir(dir).entries.get(name).copied()
    }

    /// The entries of `dir`, in byte order of the names.
    pub fn entries(&self, dir: DirId) -> impl Iterator<Item = (&[u8], Entry)> {
        self.dir(dir).entries.iter().map(|(name, entry)| (&**name, *entry))
    }

    /// The kind of a node.
    pub fn kind(&self, node: NodeId) -> NodeKind {
        self.node(node).kind
    }

    /// A directory's attributes, which may change until the image is finished.
    pub fn attributes_mut(&mut self, dir: DirId) -> &mut Attributes {
        &mut self.dir_mut(dir).attributes
    }

    /// A directory's attributes.
    pub fn attributes(&self, dir: DirId) -> &Attributes {
        &self.dir(dir).attributes
    }

    /// Makes an empty directory, in place of anything that had the name.
    pub fn make_dir(&mut self, parent: DirId, name: &[u8], attributes: Attributes) -> Result<DirId> {
        check_name(name)?;
        let id = u32::try_from(self.dirs.len()).map_err(|_| Error::Inodes)?;
        if self.dirs.len() >= MAX_INODES {
            return Err(Error::Inodes);
        }
        self.remove(parent, name);
        self.dirs.push(Dir { attributes, ..Dir::default() });
        self.dir_mut(parent).entries.insert(name.into(), Entry::Dir(DirId(id)));
        Ok(DirId(id))
    }

    /// Gives `node` a further name, in place of anything that had the name.
    pub fn link(&mut self, parent: DirId, name: &[u8], node: NodeId) -> Result<()> {
        check_name(name)?;
        self.remove(parent, name);
        self.dir_mut(parent).entries.insert(name.into(), Entry::Node(node));
        Ok(())
    }

    /// Removes a name, and everything below it. Returns whether there was one.
    pub fn remove(&mut self, parent: DirId, name: &[u8]) -> bool {
        let Some(removed) = self.dir_mut(parent).entries.remove(name) else { return false };
        let mut pending = vec![removed];
        while let Some(entry) = pending.pop() {
            if let Entry::Dir(dir) = entry {
                pending.extend(std::mem::take(self.dir_mut(dir)).entries.into_values());
            }
        }
        true
    }

    pub(crate) fn add_node(&mut self, nid: u64, kind: NodeKind) -> Result<NodeId> {
        let id = u32::try_from(self.nodes.len()).map_err(|_| Error::Inodes)?;
        if self.nodes.len() >= MAX_INODES {
            return Err(Error::Inodes);
        }
        self.nodes.push(Node { nid, kind });
        Ok(NodeId(id))
    }

    pub(crate) fn dir_count(&self) -> usize {
        self.dirs.len()
    }

    pub(crate) fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Every node, in order of the ids.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    // Ids come from this tree and are never taken back, so they are valid indexes.
    pub(crate) fn dir(&self, id: DirId) -> &Dir {
        &self.dirs[id.index()]
    }

    fn dir_mut(&mut self, id: DirId) -> &mut Dir {
        &mut self.dirs[id.index()]
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }
}

impl DirId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

impl NodeId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

fn check_name(name: &[u8]) -> Result<()> {
    let valid = !name.is_empty()
        && name.len() <= MAX_NAME_LEN
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
    if valid { Ok(()) } else { Err(Error::Name(name.iter().copied().take(MAX_NAME_LEN).collect())) }
}
