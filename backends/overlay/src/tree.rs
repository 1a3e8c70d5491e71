//! The names of all files, and what POSIX says of how they come and go.
//!
//! A tree knows nodes by number and directories' names. It does no input or output; one lock is around all of it, and the
//! lock of a node's facts is taken under that one, never the other way round.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use changes::{Base, Place};
use fuse::{Attributes, Context, Errno, NodeId, RenameHow, Result};

use crate::below::Below;
use crate::bytes::Home;
use crate::directory::{Directory, Loose, What};
use crate::node::{Birth, Body, Node, file_type};
use crate::origin::Origin;
use crate::space::{Charge, Space};

/// Most names of a file, and most directories in one.
const MAX_LINKS: u32 = 1 << 30;

/// Marks the numbers of files that are made over others: no file system has as many.
const OWN_INO: u64 = 1 << 63;

/// Bytes that each name below is charged for that leads to its file no more.
const LOSS_COST: u64 = 256;

/// All files.
#[derive(Debug)]
pub(crate) struct Tree {
    space: Arc<Space>,
    home: Home,
    nodes: HashMap<NodeId, Known>,
    /// Of those nodes that are directories.
    directories: HashMap<NodeId, Directory>,
    /// Numbers of nodes by those of the file system below.
    by_below: HashMap<NodeId, NodeId>,
    /// Numbers of nodes are never used again.
    next: u64,
    /// The bits that mark the numbers of files that are made here, as programs see them.
    mark: u64,
    /// Names below that lead to their files no more.
    losses: Vec<Loss>,
    /// How many more there are, whose paths are too long.
    untold: u64,
}

/// A name below that leads to its file no more.
#[derive(Debug)]
struct Loss {
    directory: Arc<Origin>,
    name: Arc<[u8]>,
    was: Base,
    _charge: Charge,
}

/// Everything that is other than below, by path.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    pub(crate) gone: Vec<(Place, Base)>,
    /// Each file's path here, and its path below if it came from there.
    pub(crate) there: Vec<(Place, Option<Place>, Arc<Node>)>,
    /// How many more there are, whose paths are too long.
    pub(crate) left_out: u64,
}

/// Where a file was found below: names in directories.
type FoundAt = Vec<(NodeId, Arc<[u8]>)>;

/// A file, and how many references to it the kernel has.
#[derive(Debug)]
struct Known {
    node: Arc<Node>,
    lookups: AtomicU64,
    /// Where the file was found below; nothing for a file that stays whether the kernel refers to it or not.
    found_at: Option<FoundAt>,
}

impl Known {
    /// Nobody has the file, if the kernel does not.
    fn is_loose(&self) -> bool {
        self.found_at.is_some() && self.node.id != NodeId::ROOT || self.node.facts().links == 0
    }
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spot<'a> {
    pub(crate) parent: NodeId,
    pub(crate) name: &'a [u8],
}

impl Tree {
    /// An empty root directory.
    pub(crate) fn new(space: Arc<Space>, home: Home, root: Birth) -> Result<Self> {
        let node = Node::new(NodeId::ROOT, NodeId::ROOT.0, Body::Directory, root, &space)?;
        let mut tree = Self::with(space, home, 0);
        tree.add(node, NodeId::ROOT);
        Ok(tree)
    }

    /// A root directory that is one of the file system below.
    pub(crate) fn over(space: Arc<Space>, home: Home, root: Below, told: &Attributes) -> Result<Self> {
        let root = (root, Some(Origin::root()));
        let node = Node::found(NodeId::ROOT, root, told, Box::default(), &space, &home)?;
        if !node.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        let mut tree = Self::with(space, home, OWN_INO);
        let known = Known { found_at: Some(Vec::new()), ..tree.learn(node, NodeId::ROOT) };
        tree.nodes.insert(NodeId::ROOT, known);
        Ok(tree)
    }

    fn with(space: Arc<Space>, home: Home, mark: u64) -> Self {
        Self {
            space,
            home,
            nodes: HashMap::new(),
            directories: HashMap::new(),
            by_below: HashMap::new(),
            next: NodeId::ROOT.0 + 1,
            mark,
            losses: Vec::new(),
            untold: 0,
        }
    }

    pub(crate) fn node(&self, id: NodeId) -> Result<&Arc<Node>> {
        self.nodes.get(&id).map(|known| &known.node).ok_or(Errno::ESTALE)
    }

    pub(crate) fn directory(&self, id: NodeId) -> Result<&Directory> {
        self.node(id)?;
        self.directories.get(&id).ok_or(Errno::ENOTDIR)
    }

    /// How many places are noted where a file was found.
    #[cfg(test)]
    pub(crate) fn places_found(&self, id: NodeId) -> usize {
        self.nodes.get(&id).and_then(|known| known.found_at.as_ref()).map_or(0, Vec::len)
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
        before <= count && known.is_loose() && !self.is_on_the_way(id)
    }

    /// Whether a file that is only below was found in this directory, and is known: what becomes of the file is told by the
    /// directory's path.
    fn is_on_the_way(&self, id: NodeId) -> bool {
        self.directories.get(&id).is_some_and(Directory::has_below)
    }

    /// Takes a file out that the kernel does not refer to, and that has no name or is only below; then those directories that
    /// were on the way to it alone. Returns all of them.
    pub(crate) fn let_go(&mut self, id: NodeId) -> Vec<Arc<Node>> {
        let (mut todo, mut gone) = (vec![id], Vec::new());
        while let Some(id) = todo.pop() {
            if !self.is_on_the_way(id)
                && let Some((node, found_at)) = self.take_out(id)
            {
                gone.push(node);
                todo.extend(found_at.into_iter().map(|(parent, _)| parent));
            }
        }
        gone
    }

    /// Takes a file out that nobody has. Returns also where it was found.
    fn take_out(&mut self, id: NodeId) -> Option<(Arc<Node>, FoundAt)> {
        let known = self.nodes.get(&id)?;
        if known.lookups.load(Ordering::Relaxed) > 0 || !known.is_loose() {
            return None;
        }
        let Known { node, found_at, .. } = self.nodes.remove(&id)?;
        let found_at = found_at.unwrap_or_default();
        for (parent, name) in &found_at {
            if let Some(directory) = self.directories.get_mut(parent)
                && directory.what(name) == Some(What::Below(id))
            {
                directory.forget_below(name);
            }
        }
        if let Some(below) = &node.below
            && self.by_below.get(&below.id()) == Some(&id)
        {
            self.by_below.remove(&below.id());
        }
        self.directories.remove(&id);
        Some((node, found_at))
    }

    /// A file that was found below under a name. The kernel has a reference to it.
    ///
    /// The name may have been given away, kept or hidden meanwhile: then that counts.
    pub(crate) fn find_below(
        &mut self,
        spot: Spot<'_>,
        below: Below,
        told: &Attributes,
        target: Box<[u8]>,
    ) -> Result<Arc<Node>> {
        match self.directory(spot.parent)?.what(spot.name) {
            Some(What::Hidden) => return Err(Errno::ENOENT),
            Some(What::Here { node, .. } | What::Kept(node)) => {
                self.refer(node);
                return self.node(node).cloned();
            }
            Some(What::Below(_)) | None => {}
        }
        let name = Arc::<[u8]>::from(spot.name);
        let node = self.learn_below((spot.parent, &name), below, told, target)?;
        if self.directory(spot.parent)?.what(&name) != Some(What::Below(node.id)) {
            let nothing = self.space.charge(0)?;
            self.names(spot.parent)?.note_below(&name, node.id, nothing);
            match self.nodes.get_mut(&node.id).and_then(|known| known.found_at.as_mut()) {
                Some(found_at) => note_found(&self.directories, found_at, node.id, (spot.parent, name)),
                // The file stays, and so does each of its names.
                None => self.keep_name(spot.parent, &name)?,
            }
        }
        Ok(node)
    }

    /// A file that was found below, with a reference that the kernel has to it.
    fn learn_below(
        &mut self,
        (parent, name): (NodeId, &Arc<[u8]>),
        below: Below,
        told: &Attributes,
        target: Box<[u8]>,
    ) -> Result<Arc<Node>> {
        let known = self.by_below.get(&below.id()).and_then(|id| self.nodes.get(id));
        if let Some(known) = known.filter(|known| known.node.body.kind() == told.mode & file_type::MASK) {
            known.lookups.fetch_add(1, Ordering::Relaxed);
            return Ok(known.node.clone());
        }
        let (id, below_id) = (NodeId(self.next), below.id());
        let origin = self.node(parent)?.origin.as_ref().and_then(|origin| origin.join(name));
        let node = Node::found(id, (below, origin), told, target, &self.space, &self.home)?;
        self.next += 1;
        self.by_below.insert(below_id, id);
        let node = self.add(node, parent);
        if let Some(known) = self.nodes.get_mut(&id) {
            known.found_at = Some(Vec::new());
        }
        Ok(node)
    }

    /// A name is no longer below. Returns what nobody has any more.
    pub(crate) fn lose_below(&mut self, spot: Spot<'_>) -> Vec<Arc<Node>> {
        if let Some(directory) = self.directories.get_mut(&spot.parent) {
            directory.forget_below(spot.name);
        }
        self.let_go(spot.parent)
    }

    /// A file that was found below stays from now on, with its names and the directories that it is in.
    pub(crate) fn keep(&mut self, id: NodeId) -> Result<()> {
        // Directories first: where space ends, nothing is kept that is in none. Where others move directories below, two may have
        // been found in each other.
        let (mut todo, mut seen, mut order) = (vec![(id, false)], HashSet::new(), Vec::new());
        while let Some((id, is_behind_its_directories)) = todo.pop() {
            if is_behind_its_directories {
                order.push(id);
            } else if let Some(found_at) = self.nodes.get(&id).and_then(|known| known.found_at.as_ref())
                && seen.insert(id)
            {
                todo.push((id, true));
                todo.extend(found_at.iter().map(|(parent, _)| (*parent, false)));
            }
        }
        for id in order {
            let Some(known) = self.nodes.get_mut(&id) else { continue };
            let Some(found_at) = &known.found_at else { continue };
            for (parent, name) in found_at {
                if let Some(directory) = self.directories.get_mut(parent)
                    && directory.what(name) == Some(What::Below(id))
                {
                    directory.keep(name)?;
                }
            }
            known.node.facts().charge_for_keeping()?;
            known.found_at = None;
        }
        Ok(())
    }

    /// A name that was found below stays from now on, with the directories that it is in.
    fn keep_name(&mut self, parent: NodeId, name: &[u8]) -> Result<()> {
        self.keep(parent)?;
        self.names(parent)?.keep(name)
    }

    /// Takes all references back, and files out that have no name.
    pub(crate) fn let_all_go(&mut self) -> Vec<Arc<Node>> {
        self.nodes.values().for_each(|known| known.lookups.store(0, Ordering::Relaxed));
        let all: Vec<NodeId> = self.nodes.keys().copied().collect();
        all.into_iter().filter_map(|id| self.take_out(id)).map(|(node, _)| node).collect()
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
        let node = self.add(node, spot.parent);
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
        Ok(self.add(node, parent.id))
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

    /// Takes the name of a file that is no directory. Returns what nobody has any more.
    pub(crate) fn unlink(&mut self, spot: Spot<'_>) -> Result<Vec<Arc<Node>>> {
        let node = self.find(spot)?.clone();
        if node.is_directory() {
            return Err(Errno::EISDIR);
        }
        self.note_loss(spot)?;
        drop(self.names(spot.parent)?.take(spot.name)?);
        self.node(spot.parent)?.facts().modified();
        Ok(self.lose(&node, spot.parent))
    }

    /// Takes the name of an empty directory. Returns what nobody has any more.
    pub(crate) fn remove_directory(&mut self, spot: Spot<'_>) -> Result<Vec<Arc<Node>>> {
        let node = self.find(spot)?.clone();
        if !self.directory(node.id)?.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.note_loss(spot)?;
        drop(self.names(spot.parent)?.take(spot.name)?);
        self.node(spot.parent)?.facts().modified();
        Ok(self.lose(&node, spot.parent))
    }

    /// Moves a name. Returns what nobody has any more.
    pub(crate) fn rename(&mut self, from: Spot<'_>, to: Spot<'_>, how: RenameHow) -> Result<Vec<Arc<Node>>> {
        let moved = self.find(from)?.clone();
        let found = match self.find(to) {
            Ok(node) => Some(node.clone()),
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(errno),
        };
        match (how, &found) {
            (RenameHow::Exchange, None) => return Err(Errno::ENOENT),
            (RenameHow::Keep, Some(_)) => return Err(Errno::EEXIST),
            _ => self.check_living(to.parent)?,
        }
        if moved.is_directory() && self.is_within(to.parent, moved.id) {
            return Err(Errno::EINVAL);
        }
        match (how, found) {
            (RenameHow::Exchange, Some(other)) => {
                self.exchange((from, &moved), (to, &other)).map(|()| Vec::new())
            }
            // Both are names of one file, and stay.
            (RenameHow::Replace, Some(other)) if Arc::ptr_eq(&moved, &other) => Ok(Vec::new()),
            (_, Some(other)) => {
                self.check_replaceable((from.parent, &moved), &other)?;
                self.shift(from, to, &moved, Some(&other))?;
                Ok(self.lose(&other, to.parent))
            }
            (_, None) => self.shift(from, to, &moved, None).map(|()| Vec::new()),
        }
    }

    /// Refuses what could not be renamed even if the directory that has the new name were empty.
    pub(crate) fn check_rename(&self, from: Spot<'_>, to: Spot<'_>) -> Result<()> {
        let (moved, other) = (self.find(from)?, self.find(to)?);
        self.check_living(to.parent)?;
        if moved.is_directory() && self.is_within(to.parent, moved.id) {
            return Err(Errno::EINVAL);
        }
        if moved.is_directory() && !other.is_directory() { Err(Errno::ENOTDIR) } else { Ok(()) }
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
        self.note_loss(from)?;
        self.note_loss(to)?;
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
        self.note_loss(from)?;
        self.note_loss(to)?;
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

    /// A file has lost a name in `parent`. Returns what nobody has any more.
    fn lose(&mut self, node: &Arc<Node>, parent: NodeId) -> Vec<Arc<Node>> {
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

    /// Refuses to let a file in a directory `place` have the name of another one.
    fn check_replaceable(&self, (place, moved): (NodeId, &Node), other: &Node) -> Result<()> {
        match (moved.is_directory(), other.is_directory()) {
            (true, false) => Err(Errno::ENOTDIR),
            (false, true) if self.is_within(place, other.id) => Err(Errno::ENOTEMPTY),
            (false, true) => Err(Errno::EISDIR),
            (true, true) if !self.directory(other.id)?.is_empty() => Err(Errno::ENOTEMPTY),
            _ => Ok(()),
        }
    }

    /// Notes that a name is about to lead to another file than below, if it is the first time.
    fn note_loss(&mut self, spot: Spot<'_>) -> Result<()> {
        let Some(What::Below(id) | What::Kept(id)) = self.directory(spot.parent)?.what(spot.name) else {
            return Ok(());
        };
        let (directory, was) = (self.node(spot.parent)?.origin.clone(), self.node(id)?.base());
        match (directory, was) {
            (Some(directory), Some(was)) => {
                // Names can be taken away whether there is space or not.
                let mut charge = self.space.charge(0)?;
                charge.become_amount(LOSS_COST);
                self.losses.push(Loss { directory, name: spot.name.into(), was, _charge: charge });
            }
            _ => self.untold += 1,
        }
        Ok(())
    }

    /// Everything that is other than below.
    pub(crate) fn changed(&self) -> Changed {
        let mut changed = Changed { left_out: self.untold, ..Changed::default() };
        for loss in &self.losses {
            match loss.directory.place_of(&loss.name) {
                Some(place) => changed.gone.push((place, loss.was)),
                None => changed.left_out += 1,
            }
        }
        let mut directories = vec![(NodeId::ROOT, None::<Place>)];
        while let Some((id, at)) = directories.pop() {
            let (Ok(parent), Some(directory)) = (self.node(id), self.directories.get(&id)) else { continue };
            for (_, name, what) in directory.behind(0) {
                let Some(node) = what.node().and_then(|id| self.nodes.get(&id)).map(|known| &known.node)
                else {
                    continue;
                };
                let place = match &at {
                    Some(at) => at.join(name),
                    None => Place::new(name),
                };
                let origin = match what {
                    What::Kept(_) => parent.origin.as_ref().and_then(|origin| origin.place_of(name)),
                    _ => node.origin.as_ref().and_then(|origin| origin.place()),
                };
                match place {
                    Some(place) if origin.is_some() || node.below.is_none() => {
                        if node.is_directory() {
                            directories.push((node.id, Some(place.clone())));
                        }
                        changed.there.push((place, origin, node.clone()));
                    }
                    _ => changed.left_out += 1,
                }
            }
        }
        changed
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
        let node = Node::new(id, self.mark | id.0, body, birth, &self.space)?;
        for label in maker.extensions.labels() {
            node.set_xattr(label.name, label.value, fuse::XattrSet::Any)?;
        }
        self.next += 1;
        Ok(node)
    }

    /// A file that was not known, to which the kernel has a reference.
    fn add(&mut self, node: Node, parent: NodeId) -> Arc<Node> {
        let known = self.learn(node, parent);
        let node = known.node.clone();
        self.nodes.insert(node.id, known);
        node
    }

    fn learn(&mut self, node: Node, parent: NodeId) -> Known {
        if node.is_directory() {
            self.directories.insert(node.id, Directory::new(parent));
        }
        Known { node: Arc::new(node), lookups: AtomicU64::new(1), found_at: None }
    }
}

/// Notes one more place where a file was found. Where there is no room, places that lead to the file no more go first: so there
/// are at most about twice as many as names that lead to it.
fn note_found(
    directories: &HashMap<NodeId, Directory>,
    found_at: &mut FoundAt,
    id: NodeId,
    place: (NodeId, Arc<[u8]>),
) {
    if found_at.len() == found_at.capacity() {
        found_at.sort_unstable();
        found_at.dedup();
        found_at.retain(|(parent, name)| {
            directories.get(parent).is_some_and(|directory| directory.what(name) == Some(What::Below(id)))
        });
        found_at.reserve(found_at.len().max(1));
    }
    found_at.push(place);
}
