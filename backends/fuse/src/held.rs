//! Files of another file system that a layer before it holds on to, as a kernel would.

use std::sync::Arc;

use crate::file_system::{Context, FileSystem, Gone, Handle, How, NodeId, Opened, Opening};
use crate::{Entry, Name, Result};

/// A file, with one reference to it.
pub struct Held {
    files: Arc<dyn FileSystem>,
    node: NodeId,
}

impl Held {
    /// The root directory, which is there without a reference.
    #[must_use]
    pub fn root(files: Arc<dyn FileSystem>) -> Self {
        Self { files, node: NodeId::ROOT }
    }

    /// The file system that the file is in.
    #[must_use]
    pub fn files(&self) -> &dyn FileSystem {
        &*self.files
    }

    /// The file's node there.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The file that a name in this directory leads to, and the answer to the lookup.
    pub fn find(&self, name: Name<'_>) -> Result<(Self, Entry)> {
        let entry = self.files.entry(&Context::default(), self.node, name, How::Existing)?;
        Ok((Self { files: self.files.clone(), node: entry.node }, entry))
    }

    /// Opens the file.
    pub fn open(self: &Arc<Self>, context: &Context<'_>, opening: Opening) -> Result<(HeldOpen, Opened)> {
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
pub struct HeldOpen {
    of: Arc<Held>,
    handle: Handle,
    opening: Opening,
}

impl HeldOpen {
    /// The file system that the file is in.
    #[must_use]
    pub fn files(&self) -> &dyn FileSystem {
        self.of.files()
    }

    /// The file's node there.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.of.node
    }

    /// The handle there.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// The way in which the file was opened.
    #[must_use]
    pub fn opening(&self) -> Opening {
        self.opening
    }
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
