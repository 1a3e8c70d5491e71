//! The way from the tree to the file system below: what is there is looked at when it is asked for, with no lock held.

use std::sync::Arc;

use fuse::{Attributes, Errno, Name, NodeId, Result};

use crate::below::Below;
use crate::directory::What;
use crate::files::Files;
use crate::locks::{alone, shared};
use crate::node::{Node, file_type};
use crate::tree::Spot;

/// A file with a reference like the kernel's, so that it is not let go.
pub(crate) struct Held<'a> {
    files: &'a Files,
    pub(crate) node: Arc<Node>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.files.forget(self.node.id, 1);
    }
}

/// The tree's answer about a name.
enum Step {
    Known(Arc<Node>),
    /// The directory below is asked; there may be a file that it had before.
    Ask(Below, Option<Arc<Node>>),
}

impl Files {
    /// Finds the file that has a name. The kernel has a reference to it. Attributes are told if they are at hand.
    pub(crate) fn look_up(&self, parent: NodeId, name: Name<'_>) -> Result<(Arc<Node>, Option<Attributes>)> {
        let spot = Spot { parent, name: name.as_bytes() };
        let (below, before) = match self.step(spot)? {
            Step::Known(node) => return Ok((node, None)),
            Step::Ask(below, before) => (below, before),
        };
        let (found, told) = match below.find(name) {
            Ok(found) => found,
            Err(errno) => {
                if errno == Errno::ENOENT && before.is_some() {
                    let lost = alone(&self.tree).lose_below(spot);
                    drop(lost);
                }
                return Err(errno);
            }
        };
        // Most files are where they were.
        if let Some(before) = before.filter(|before| is_same(before, &found, &told)) {
            let tree = shared(&self.tree);
            if tree.directory(parent)?.what(spot.name) == Some(What::Below(before.id)) {
                tree.refer(before.id);
                return Ok((before, Some(told)));
            }
        }
        let is_link = told.mode & file_type::MASK == file_type::LINK;
        let target = if is_link { found.read_link()?.into() } else { Box::default() };
        let node = alone(&self.tree).find_below(spot, found, &told, target)?;
        Ok((node, None))
    }

    fn step(&self, spot: Spot<'_>) -> Result<Step> {
        let tree = shared(&self.tree);
        let directory = tree.directory(spot.parent)?;
        let below =
            || tree.node(spot.parent)?.below.clone().filter(|_| !directory.is_removed).ok_or(Errno::ENOENT);
        match directory.what(spot.name) {
            Some(What::Here { node, .. } | What::Kept(node)) => {
                tree.refer(node);
                tree.node(node).cloned().map(Step::Known)
            }
            Some(What::Hidden) => Err(Errno::ENOENT),
            Some(What::Below(node)) => Ok(Step::Ask(below()?, tree.node(node).ok().cloned())),
            None => Ok(Step::Ask(below()?, None)),
        }
    }

    /// Has the tree know the file that has a name, if there is one, for an act on that name.
    pub(crate) fn hold(&self, parent: NodeId, name: Name<'_>) -> Result<Option<Held<'_>>> {
        match self.look_up(parent, name) {
            Ok((node, _)) => Ok(Some(Held { files: self, node })),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Prepares a change of a file's facts: from now on they are kept here, and the file with them.
    pub(crate) fn touch(&self, node: &Arc<Node>) -> Result<()> {
        let Some(below) = node.live().cloned() else { return Ok(()) };
        let (told, xattrs) = (below.attributes()?, below.xattrs()?);
        alone(&self.tree).keep(node.id)?;
        node.settle(&told, xattrs)
    }

    /// [Touches](Self::touch) a directory in which a name is about to change.
    pub(crate) fn touch_directory(&self, id: NodeId) -> Result<()> {
        let node = self.node(id)?;
        if node.is_directory() { self.touch(&node) } else { Err(Errno::ENOTDIR) }
    }

    /// Refuses a directory in which something is left of the one below.
    pub(crate) fn check_nothing_below(&self, node: &Arc<Node>) -> Result<()> {
        let Some(below) = node.below.as_ref().filter(|_| node.is_directory()) else { return Ok(()) };
        let (open, mut cookie) = (below.open(true)?, 0);
        loop {
            let names = open.list(cookie)?;
            let Some(last) = names.last() else { return Ok(()) };
            cookie = last.cookie;
            let tree = shared(&self.tree);
            let directory = tree.directory(node.id)?;
            let is_left =
                |name: &[u8]| !matches!(name, b"." | b"..") && directory.what(name) != Some(What::Hidden);
            if names.iter().any(|one| is_left(&one.name)) {
                return Err(Errno::ENOTEMPTY);
            }
        }
    }
}

/// Whether what was found is the file that was found before.
fn is_same(before: &Node, found: &Below, told: &Attributes) -> bool {
    let id = before.below.as_ref().map(|below| below.id());
    id == Some(found.id()) && before.body.kind() == told.mode & file_type::MASK && before.live().is_some()
}
