//! Files of another provider that a layer before it holds on to, as a kernel would.

use std::sync::Arc;

use fuse::{Context, Entry, FileSystem, Gone, Handle, How, Name, NodeId, Opened, Opening, Result};

/// A file, with one reference to it.
pub(crate) struct Held {
    files: Arc<dyn FileSystem>,
    pub(crate) node: NodeId,
}

impl Held {
    /// The root directory, which is there without a reference.
    pub(crate) fn root(files: &Arc<dyn FileSystem>) -> Self {
        Self { files: files.clone(), node: NodeId::ROOT }
    }

    /// The file that a name in a directory leads to, with what is told of it.
    pub(crate) fn find(files: &Arc<dyn FileSystem>, parent: NodeId, name: Name<'_>) -> Result<(Self, Entry)> {
        let entry = files.entry(&Context::default(), parent, name, How::Existing)?;
        Ok((Self { files: files.clone(), node: entry.node }, entry))
    }

    pub(crate) fn open(
        self: &Arc<Self>,
        context: &Context<'_>,
        opening: Opening,
    ) -> Result<(HeldOpen, Opened)> {
        let opened = self.files.open(context, self.node, opening)?;
        Ok((HeldOpen { of: self.clone(), handle: opened.handle, opening }, opened))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.node != NodeId::ROOT {
            self.files.let_go(self.node, Gone::Lookups(1));
        }
    }
}

/// A file that is open.
pub(crate) struct HeldOpen {
    pub(crate) of: Arc<Held>,
    pub(crate) handle: Handle,
    /// How it was opened.
    pub(crate) opening: Opening,
}

impl Drop for HeldOpen {
    fn drop(&mut self) {
        let gone = match self.opening {
            Opening::File { .. } => Gone::File(self.handle),
            Opening::Directory => Gone::Directory(self.handle),
        };
        self.of.files.let_go(self.of.node, gone);
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Held").field(&self.node).finish()
    }
}

impl std::fmt::Debug for HeldOpen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("HeldOpen").field(&self.of).field(&self.handle).finish()
    }
}
