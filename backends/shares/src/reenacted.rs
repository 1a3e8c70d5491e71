//! The other half of a guest's agent that repeats what the host did (inotify of Linux tells of nothing else): its acts are
//! answered as if they were done, and change nothing.
//!
//! ```text
//! host removes f ─▶ Watches ─▶ Stage: "the agent removes f" ─▶ the agent's UNLINK of f ─▶ answered, not done
//!                                                           └─▶ any other change by it ─▶ refused
//! ```
//!
//! The agent's thread changes nothing, whatever it asks for: a name that the host has given to another file since would
//! otherwise be taken from that one. Not here: which changes are repeated (`host_fs::changes`).

use std::ffi::CStr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fuse::{
    Attributes, Context, Creation, Data, Entry, Errno, FileSystem, Gone, Handle, How, Listing, Name,
    NameChange, NodeId, Opened, Opening, RenameHow, Result, SetAttributes, Stat, Statistics, Sync, Xattr,
};

use crate::host_fs::{Act, Change, HostFs, Made};
use crate::nodes::lock;
use crate::places::{DIRECTORY_MODE, FILE_MODE};

/// Nodes of files that are gone, and that the kernel knows for a moment only. No file system has as many nodes.
const GHOSTS: u64 = 1 << 46;

/// The change that the agent is to repeat: one at a time, of all folders.
#[derive(Debug, Default)]
pub struct Stage {
    /// The agent's thread; 0 is nobody.
    thread: AtomicU32,
    change: Mutex<Option<Change>>,
    ghosts: AtomicU64,
}

impl Stage {
    /// Notes the thread that repeats changes, by the number that the guest's kernel gives it. Nothing
    /// that the thread asks for changes anything.
    pub fn admit(&self, thread: u32) {
        self.thread.store(thread, Ordering::Release);
    }

    /// The thread is about to repeat a change.
    pub fn expect(&self, change: Change) {
        *lock(&self.change) = Some(change);
    }

    /// The thread has repeated the change, or given it up.
    pub fn done(&self) {
        lock(&self.change).take();
    }

    fn is_agent(&self, context: &Context<'_>) -> bool {
        context.pid != 0 && context.pid == self.thread.load(Ordering::Acquire)
    }

    fn ghost(&self, directory: bool) -> Entry {
        let number = self.ghosts.fetch_add(1, Ordering::Relaxed) % GHOSTS;
        let mode = if directory { DIRECTORY_MODE } else { FILE_MODE };
        let attributes = Attributes { ino: GHOSTS | number, mode, links: 1, ..Attributes::default() };
        let valid = Duration::ZERO;
        Entry { node: NodeId(GHOSTS | number), generation: 0, valid, stat: Stat { attributes, valid } }
    }
}

/// A folder with this layer in front.
pub struct Reenacted {
    folder: usize,
    files: Box<dyn FileSystem>,
    host: Arc<HostFs>,
    stage: Arc<Stage>,
}

impl std::fmt::Debug for Reenacted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reenacted").field("folder", &self.folder).field("host", &self.host).finish()
    }
}

/// The answer to the agent's look-up of a name.
enum Answer {
    /// The file that is there.
    Itself,
    /// There is nothing.
    Nothing,
    /// The file that was there for the guest, or else some file.
    Former { directory: Option<bool> },
    /// The file that has another name by now.
    Other(NodeId, std::ffi::CString),
}

impl Reenacted {
    /// The folder with this number: `files` leads to the files of `host`.
    #[must_use]
    pub fn new(folder: usize, files: Box<dyn FileSystem>, host: Arc<HostFs>, stage: Arc<Stage>) -> Self {
        Self { folder, files, host, stage }
    }

    /// The change that the agent is to repeat in this folder.
    fn expected(&self) -> Option<Change> {
        lock(&self.stage.change).as_ref().filter(|change| change.folder == self.folder).cloned()
    }

    fn answer(&self, parent: NodeId, name: &CStr) -> Answer {
        let Some(change) = self.expected() else { return Answer::Itself };
        let is_first = change.is_at(parent, name);
        match change.act {
            Act::Appeared(_) if is_first => Answer::Nothing,
            Act::Vanished { directory } if is_first => Answer::Former { directory: Some(directory) },
            Act::Moved { to_directory, to, .. } if is_first => Answer::Other(to_directory, to),
            Act::Moved { to_directory, to, .. } if to_directory == parent && *to == *name => {
                Answer::Former { directory: None }
            }
            _ => Answer::Itself,
        }
    }

    fn look_up(&self, context: &Context<'_>, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        match self.answer(parent, name.as_c_str()) {
            Answer::Itself => self.files.entry(context, parent, name, How::Existing),
            Answer::Nothing => Err(Errno::ENOENT),
            Answer::Former { directory } => {
                let former = self.host.former_entry(parent, name);
                former.or_else(|| Some(self.stage.ghost(directory?))).ok_or(Errno::ENOENT)
            }
            Answer::Other(directory, name) => {
                let name = Name::new(&name).map_err(|_| Errno::EIO)?;
                self.files.entry(context, directory, name, How::Existing)
            }
        }
    }

    /// Answers with a file that the host made as if the agent had made it.
    fn made(&self, context: &Context<'_>, parent: NodeId, name: Name<'_>, made: Made) -> Result<Entry> {
        let change = self.expected().filter(|change| change.is_at(parent, name.as_c_str()));
        if !matches!(change, Some(Change { act: Act::Appeared(what), .. }) if what == made) {
            return Err(Errno::EIO);
        }
        let entry = self.files.entry(context, parent, name, How::Existing)?;
        if made.is(entry.stat.attributes.mode) {
            return Ok(entry);
        }
        // The host has put something else there, of which it tells next.
        self.files.let_go(entry.node, Gone::Lookups(1));
        Err(Errno::EIO)
    }

    /// Whether the agent is to repeat this change of names.
    fn expects(&self, parent: NodeId, change: NameChange<'_>) -> bool {
        let Some(expected) = self.expected() else { return false };
        let (NameChange::Unlink(name)
        | NameChange::RemoveDirectory(name)
        | NameChange::Rename { from: name, .. }) = change;
        expected.is_at(parent, name.as_c_str())
            && match (change, expected.act) {
                (NameChange::Unlink(_) | NameChange::RemoveDirectory(_), Act::Vanished { .. }) => true,
                (
                    NameChange::Rename { to_parent, to, how: RenameHow::Replace, .. },
                    Act::Moved { to_directory, to: wanted, .. },
                ) => to_parent == to_directory && *to.as_c_str() == *wanted,
                _ => false,
            }
    }

    /// Refuses a request of the agent's thread that it never makes.
    fn not_agent(&self, context: &Context<'_>) -> Result<()> {
        if self.stage.is_agent(context) { Err(Errno::EIO) } else { Ok(()) }
    }
}

impl Change {
    fn is_at(&self, parent: NodeId, name: &CStr) -> bool {
        self.directory == parent && *self.name == *name
    }
}

impl FileSystem for Reenacted {
    fn entry(&self, context: &Context<'_>, parent: NodeId, name: Name<'_>, how: How<'_>) -> Result<Entry> {
        if !self.stage.is_agent(context) {
            return self.files.entry(context, parent, name, how);
        }
        match how {
            How::Existing => self.look_up(context, parent, name),
            How::Directory { .. } => self.made(context, parent, name, Made::Directory),
            How::SymbolicLink { .. } => self.made(context, parent, name, Made::Link),
            How::Node { mode, .. } if Made::File.is(mode) => self.made(context, parent, name, Made::File),
            How::Node { .. } | How::HardLink { .. } => Err(Errno::EIO),
        }
    }

    fn names(&self, context: &Context<'_>, parent: NodeId, change: NameChange<'_>) -> Result<()> {
        if !self.stage.is_agent(context) {
            return self.files.names(context, parent, change);
        }
        if self.expects(parent, change) { Ok(()) } else { Err(Errno::EIO) }
    }

    fn attributes(
        &self,
        context: &Context<'_>,
        node: NodeId,
        handle: Option<Handle>,
        change: Option<&SetAttributes>,
    ) -> Result<Stat> {
        if !self.stage.is_agent(context) {
            return self.files.attributes(context, node, handle, change);
        }
        self.files.attributes(context, node, handle, None)
    }

    fn open(&self, context: &Context<'_>, node: NodeId, opening: Opening) -> Result<Opened> {
        self.not_agent(context)?;
        self.files.open(context, node, opening)
    }

    fn create(
        &self,
        context: &Context<'_>,
        parent: NodeId,
        name: Option<Name<'_>>,
        creation: Creation,
    ) -> Result<(Entry, Opened)> {
        self.not_agent(context)?;
        self.files.create(context, parent, name, creation)
    }

    fn data(&self, context: &Context<'_>, node: NodeId, handle: Handle, act: Data<'_>) -> Result<u64> {
        self.not_agent(context)?;
        self.files.data(context, node, handle, act)
    }

    fn list(
        &self,
        context: &Context<'_>,
        node: NodeId,
        handle: Handle,
        cookie: u64,
        listing: &mut Listing<'_>,
    ) -> Result<()> {
        self.files.list(context, node, handle, cookie, listing)
    }

    fn read_link(&self, context: &Context<'_>, node: NodeId) -> Result<Vec<u8>> {
        self.files.read_link(context, node)
    }

    fn xattr(&self, context: &Context<'_>, node: NodeId, act: Xattr<'_>) -> Result<Vec<u8>> {
        if matches!(act, Xattr::Set { .. } | Xattr::Remove(_)) {
            self.not_agent(context)?;
        }
        self.files.xattr(context, node, act)
    }

    fn statistics(&self, context: &Context<'_>, node: NodeId) -> Result<Statistics> {
        self.files.statistics(context, node)
    }

    fn sync(&self, context: &Context<'_>, node: NodeId, what: Sync) -> Result<()> {
        self.files.sync(context, node, what)
    }

    fn let_go(&self, node: NodeId, gone: Gone) {
        // Ghosts have no references that are counted.
        if gone == Gone::Everything || node.0 & GHOSTS == 0 {
            self.files.let_go(node, gone);
        }
    }
}
