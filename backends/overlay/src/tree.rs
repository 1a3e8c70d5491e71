//! The names of all files, and what POSIX says of how they come and go.
//!
//! A tree knows nodes by number and directories' names. It does no input or output; one lock is around all of it, and the
//! lock of a node's facts is taken under that one, never the other way round.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fuse::{Context, Errno, NodeId, RenameHow, Result};

use crate::directory::{Directory, Loose};
use crate::node::{Birth, Body, Node};
use crate::space::Space;

/// Most names of a file, and most directories in one.
const MAX_LINKS: u32 = 1 << 30;

/// All files.
#[derive(Debug)]
pub(crate) struct Tree {
    space: Arc<Space>,
    nodes: HashMap<NodeId, Known>,
    /// Of those nodes that are directories.
    directories: HashMap<NodeId, Directory>,
    /// Numbers of nodes are never used again.
    next: u64,
}

/// A file, and how many references to it the kernel has.
#[derive(Debug)]
struct Known {
    node: Arc<Node>,
    lookups: AtomicU64,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spot<'a> {
    pub(crate) parent: NodeId,
    pub(crate) name: &'a [u8],
}

impl Tree {
    /// An empty root directory.
    pub(crate) fn new(space: Arc<Space>, root: Birth) -> Result<Self> {
        let node = Node::new(NodeId::ROOT, Body::Directory, root, &space)?;
        let mut tree =
            Self { space, nodes: HashMap::new(), directories: HashMap::new(), next: NodeId::ROOT.0 + 1 };
        tree.learn(node, NodeId::ROOT, 0);
        Ok(tree)
    }

    pub(crate) fn node(&self, id: NodeId) -> Result<&Arc<Node>> {
        self.nodes.get(&id).map(|known| &known.node).ok_or(Errno::ESTALE)
    }

    pub(crate) fn directory(&self, id: NodeId) -> Result<&Directory> {
        self.node(id)?;
        self.directories.get(&id).ok_or(Errno::ENOTDIR)
    }

    /// The file that has a name.
    pub(crate) fn find(&self, spot: Spot<'_>) -> Result<&Arc<Node>> {
        self.node(self.directory(spot.parent)?.get(spot.name).ok_or(Errno::ENOENT)?)
    }

    /// Counts a reference that the kernel gets.
    pub(crate) fn refer(&self, id: NodeId) {
        if let Some(known) = self.nodes.get(&id) {
            known.lookups.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes references back, fewer if the kernel has fewer. Returns whether the file is to be [let go](Self::let_go).
    pub(crate) fn forget(&self, id: NodeId, count: u64) -> bool {
        let Some(known) = self.nodes.get(&id) else { return false };
        let less = |lookups: u64| Some(lookups.saturating_sub(count));
        let before =
            known.lookups.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).unwrap_or_default();
        before <= count && known.node.facts().links == 0
    }

    /// Takes a file out that has no name and that the kernel does not refer to.
    pub(crate) fn let_go(&mut self, id: NodeId) -> Option<Arc<Node>> {
        let known = self.nodes.get(&id)?;
        if known.lookups.load(Ordering::Relaxed) > 0 || known.node.facts().links > 0 {
            return None;
        }
        self.directories.remove(&id);
        self.nodes.remove(&id).map(|known| known.node)
    }

    /// Takes all references back, and files out that have no name.
    pub(crate) fn let_all_go(&mut self) -> Vec<Arc<Node>> {
        self.nodes.values().for_each(|known| known.lookups.store(0, Ordering::Relaxed));
        let all: Vec<NodeId> = self.nodes.keys().copied().collect();
        all.into_iter().filter_map(|id| self.let_go(id)).collect()
    }

    /// Makes a file under a name that is free. The kernel has a reference to it.
    pub(crate) fn make(
        &mut self,
        spot: Spot<'_>,
        body: Body,
        mode: u32,
        maker: &Context<'_>,
    ) -> Result<Arc<Node>> {
        self.check_free(spot)?;
        let parent = self.node(spot.parent)?.clone();
        let is_directory = matches!(body, Body::Directory);
        if is_directory && parent.facts().links >= MAX_LINKS {
            return Err(Errno::EMLINK);
        }
        let node = self.bear(&parent, body, mode, maker)?;
        let loose = Loose::new(spot.name, node.id, &self.space)?;
        let node = self.learn(node, spot.parent, 1);
        self.names(spot.parent)?.put(spot.name, loose);
        if is_directory {
            parent.facts().links += 1;
        } else {
            node.facts().links = 1;
        }
        parent.facts().modified();
        Ok(node)
    }

    /// Makes a file that has no name, in a directory's file system. The kernel has a reference to it.
    pub(crate) fn make_nameless(
        &mut self,
        parent: NodeId,
        body: Body,
        mode: u32,
        maker: &Context<'_>,
    ) -> Result<Arc<Node>> {
        self.directory(parent)?;
        let parent = self.node(parent)?.clone();
        let node = self.bear(&parent, body, mode, maker)?;
        Ok(self.learn(node, parent.id, 1))
    }

    /// Gives a file one more name. The kernel has one more reference to it.
    pub(crate) fn link(&mut self, spot: Spot<'_>, id: NodeId) -> Result<Arc<Node>> {
        let node = self.node(id)?.clone();
        if node.is_directory() {
            return Err(Errno::EPERM);
        }
        self.check_free(spot)?;
        let mut facts = node.facts();
        match facts.links {
            0 if !facts.nameable => return Err(Errno::ENOENT),
            MAX_LINKS.. => return Err(Errno::EMLINK),
            _ => {}
        }
        let loose = Loose::new(spot.name, id, &self.space)?;
        self.names(spot.parent)?.put(spot.name, loose);
        facts.links += 1;
        facts.nameable = false;
        facts.changed();
        drop(facts);
        self.node(spot.parent)?.facts().modified();
        self.refer(id);
        Ok(node)
    }

    /// Takes the name of a file that is no directory. Returns the file if nobody has it any more.
    pub(crate) fn unlink(&mut self, spot: Spot<'_>) -> Result<Option<Arc<Node>>> {
        let node = self.find(spot)?.clone();
        if node.is_directory() {
            return Err(Errno::EISDIR);
        }
        drop(self.names(spot.parent)?.take(spot.name)?);
        self.node(spot.parent)?.facts().modified();
        Ok(self.lose(&node, spot.parent))
    }

    /// Takes the name of an empty directory. Returns the directory if nobody has it any more.
    pub(crate) fn remove_directory(&mut self, spot: Spot<'_>) -> Result<Option<Arc<Node>>> {
        let node = self.find(spot)?.clone();
        if !self.directory(node.id)?.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        drop(self.names(spot.parent)?.take(spot.name)?);
        self.node(spot.parent)?.facts().modified();
        Ok(self.lose(&node, spot.parent))
    }

    /// Moves a name. Returns a file that had the new one if nobody has the file any more.
    pub(crate) fn rename(
        &mut self,
        from: Spot<'_>,
        to: Spot<'_>,
        how: RenameHow,
    ) -> Result<Option<Arc<Node>>> {
        let moved = self.find(from)?.clone();
        let found = match self.find(to) {
            Ok(node) => Some(node.clone()),
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(errno),
        };
        self.check_living(to.parent)?;
        if moved.is_directory() && self.is_within(to.parent, moved.id) {
            return Err(Errno::EINVAL);
        }
        match (how, found) {
            (RenameHow::Exchange, Some(other)) => self.exchange((from, &moved), (to, &other)).map(|()| None),
            (RenameHow::Exchange, None) => Err(Errno::ENOENT),
            (RenameHow::Keep, Some(_)) => Err(Errno::EEXIST),
            // Both are names of one file, and stay.
            (RenameHow::Replace, Some(other)) if Arc::ptr_eq(&moved, &other) => Ok(None),
            (RenameHow::Replace, Some(other)) => {
                self.check_replaceable(&moved, &other)?;
                self.shift(from, to, &moved, Some(&other))?;
                Ok(self.lose(&other, to.parent))
            }
            (_, None) => self.shift(from, to, &moved, None).map(|()| None),
        }
    }

    /// Moves the name of a file. One that has the new name loses it.
    fn shift(
        &mut self,
        from: Spot<'_>,
        to: Spot<'_>,
        moved: &Arc<Node>,
        lost: Option<&Arc<Node>>,
    ) -> Result<()> {
        let goes_elsewhere = moved.is_directory() && from.parent != to.parent;
        let makes_room = lost.is_some_and(|lost| lost.is_directory());
        if goes_elsewhere && !makes_room && self.node(to.parent)?.facts().links >= MAX_LINKS {
            return Err(Errno::EMLINK);
        }
        if lost.is_none() {
            self.names(to.parent)?.check_room()?;
        }
        let loose = self.names(from.parent)?.take(from.name)?;
        self.names(to.parent)?.put(to.name, loose);
        if goes_elsewhere {
            self.move_directory(moved, from.parent, to.parent);
        }
        self.moved(moved, from, to)
    }

    /// Gives two files each other's name.
    fn exchange(&mut self, a: (Spot<'_>, &Arc<Node>), b: (Spot<'_>, &Arc<Node>)) -> Result<()> {
        let ((from, moved), (to, other)) = (a, b);
        self.check_living(from.parent)?;
        if other.is_directory() && self.is_within(from.parent, other.id) {
            return Err(Errno::EINVAL);
        }
        self.names(from.parent)?.lead(from.name, other.id);
        self.names(to.parent)?.lead(to.name, moved.id);
        if from.parent != to.parent {
            self.move_directory(moved, from.parent, to.parent);
            self.move_directory(other, to.parent, from.parent);
        }
        self.moved(other, to, from)?;
        self.moved(moved, from, to)
    }

    /// A directory, if the node is one, has another parent.
    fn move_directory(&mut self, node: &Node, from: NodeId, to: NodeId) {
        let Some(directory) = self.directories.get_mut(&node.id) else { return };
        directory.parent = to;
        for (parent, more) in [(from, -1), (to, 1)] {
            if let Ok(parent) = self.node(parent) {
                let mut facts = parent.facts();
                facts.links = facts.links.saturating_add_signed(more);
            }
        }
    }

    /// Notes when a file was moved.
    fn moved(&self, node: &Node, from: Spot<'_>, to: Spot<'_>) -> Result<()> {
        self.node(from.parent)?.facts().modified();
        self.node(to.parent)?.facts().modified();
        node.facts().changed();
        Ok(())
    }

    /// A file has lost a name in `parent`. Returns the file if nobody has it any more.
    fn lose(&mut self, node: &Arc<Node>, parent: NodeId) -> Option<Arc<Node>> {
        if let Some(directory) = self.directories.get_mut(&node.id) {
            directory.is_removed = true;
            node.facts().links = 0;
            if let Ok(parent) = self.node(parent) {
                let mut facts = parent.facts();
                facts.links = facts.links.saturating_sub(1);
            }
        } else {
            let mut facts = node.facts();
            facts.links = facts.links.saturating_sub(1);
        }
        node.facts().changed();
        self.let_go(node.id)
    }

    fn check_replaceable(&self, moved: &Node, other: &Node) -> Result<()> {
        match (moved.is_directory(), other.is_directory()) {
            (true, false) => Err(Errno::ENOTDIR),
            (false, true) => Err(Errno::EISDIR),
            (true, true) if !self.directory(other.id)?.is_empty() => Err(Errno::ENOTEMPTY),
            _ => Ok(()),
        }
    }

    /// Refuses a name that is taken, or that is in no directory.
    fn check_free(&self, spot: Spot<'_>) -> Result<()> {
        let directory = self.directory(spot.parent)?;
        if directory.get(spot.name).is_some() {
            return Err(Errno::EEXIST);
        }
        self.check_living(spot.parent)?;
        directory.check_room()
    }

    /// Refuses a directory that has no name any more.
    fn check_living(&self, id: NodeId) -> Result<()> {
        if self.directory(id)?.is_removed { Err(Errno::ENOENT) } else { Ok(()) }
    }

    /// Whether a directory is `above`, or somewhere in it.
    fn is_within(&self, mut id: NodeId, above: NodeId) -> bool {
        while id != above && id != NodeId::ROOT {
            match self.directories.get(&id) {
                Some(directory) => id = directory.parent,
                None => return false,
            }
        }
        id == above
    }

    fn names(&mut self, id: NodeId) -> Result<&mut Directory> {
        self.directories.get_mut(&id).ok_or(Errno::ENOTDIR)
    }

    /// A file that is made in a directory, and that nobody knows yet.
    fn bear(&mut self, parent: &Node, body: Body, mode: u32, maker: &Context<'_>) -> Result<Node> {
        let id = NodeId(self.next);
        let birth = parent.facts().birth(maker, mode, matches!(body, Body::Directory));
        let node = Node::new(id, body, birth, &self.space)?;
        for label in maker.extensions.labels() {
            node.set_xattr(label.name, label.value, fuse::XattrSet::Any)?;
        }
        self.next += 1;
        Ok(node)
    }

    fn learn(&mut self, node: Node, parent: NodeId, lookups: u64) -> Arc<Node> {
        let node = Arc::new(node);
        if node.is_directory() {
            self.directories.insert(node.id, Directory::new(parent));
        }
        let known = Known { node: node.clone(), lookups: AtomicU64::new(lookups) };
        self.nodes.insert(node.id, known);
        node
    }
}
