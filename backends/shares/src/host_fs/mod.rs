//! A directory of the host, as a guest sees it.
//!
//! Names are walked one by one below the directory, and no symbolic link is followed, nor any device, FIFO or socket opened.
//! Owners, set-user-ID bits, device nodes and attributes with meaning stay here, as the host's user must not get them; contents,
//! names, times and permissions go to the host. The guest's kernel has checked what its programs may do.

mod attributes;
mod changes;
mod files;
mod list;
mod names;
#[cfg(test)]
mod tests;

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;

use fuse::{
    Attributes, Cache, Context, Creation, Data, Entry, Errno, FileSystem, Gone, Handle, How, Listing, Name,
    NameChange, NodeId, OpenFlags, Opened, Opening, Result, SetAttributes, Stat, Statistics, Sync, Xattr,
};

use crate::guest_attributes::Table;
use crate::nodes::{Node, Nodes, Numbered, Way, alone, shared};
use crate::specials::{Specials, is_special};
use crate::sys::{self, Directory, Found, Identity, Kind, OwnFiles};
use crate::watches::Watches;

pub use changes::{Act, Change, Made};

/// How a directory is shared.
#[derive(Debug, Clone)]
pub struct Options {
    /// Nothing is changed, whoever asks.
    pub readonly: bool,
    /// Owner that the guest sees of what it did not give an owner itself.
    pub owner_uid: Option<u32>,
    /// Group of the same.
    pub owner_gid: Option<u32>,
    /// The parts of the directory that the guest's kernel may keep.
    pub caching: Caching,
    /// How long the guest's kernel may believe what it was told, with [`Caching::Auto`].
    pub valid: Duration,
    /// Descriptors of this process that the directory may take.
    pub budget: Budget,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            readonly: false,
            owner_uid: None,
            owner_gid: None,
            caching: Caching::default(),
            valid: Duration::from_secs(1),
            budget: Budget::default(),
        }
    }
}

/// The parts of a directory that the guest's kernel keeps, and with them a promise of when it sees the host's changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Caching {
    /// None: at once.
    None,
    /// Contents, until a file that has changed is opened; names and attributes for [`Options::valid`].
    #[default]
    Auto,
    /// Everything, for an hour: nobody else changes the files.
    Always,
}

/// How long the guest's kernel may believe everything: the host changes nothing.
const ALWAYS_VALID: Duration = Duration::from_secs(3600);

impl Caching {
    fn of_directory(self) -> Cache {
        match self {
            Self::None | Self::Auto => Cache::empty(),
            Self::Always => Cache::KEEP | Cache::DIRECTORY,
        }
    }

    /// The same of a file that has just been made: the kernel has no page of it yet.
    fn of_new_file(self) -> Cache {
        match self {
            Self::None => Cache::DIRECT,
            Self::Auto => Cache::empty(),
            Self::Always => Cache::KEEP,
        }
    }
}

impl Options {
    /// How long the guest's kernel may believe names and attributes.
    fn validity(&self) -> Duration {
        match self.caching {
            Caching::None => Duration::ZERO,
            Caching::Auto => self.valid,
            Caching::Always => ALWAYS_VALID,
        }
    }
}

/// How many descriptors are open at most.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Descriptors that are kept to be quick, and as many again of files that have no name any more.
    pub nodes: usize,
    /// Descriptors of files that programs of the guest have open.
    pub handles: usize,
}

impl Default for Budget {
    /// A quarter of the process' limit for each kind, and a quarter for all else.
    fn default() -> Self {
        const MOST: usize = 64 << 10;
        let quarter = usize::try_from(sys::descriptor_limit() / 4).map_or(MOST, |quarter| quarter.min(MOST));
        Self { nodes: quarter, handles: quarter }
    }
}

/// Why a directory or a file cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The path could not be opened.
    #[error("cannot open it (error {})", .0.number())]
    Open(Errno),
    /// The path leads to no directory.
    #[error("not a directory")]
    NotADirectory,
    /// The path leads to no regular file.
    #[error("not a file")]
    NotAFile,
    /// This process cannot reach its own descriptors.
    #[error("cannot open /proc/self/fd (error {})", .0.number())]
    Proc(Errno),
}

/// A directory of the host.
#[derive(Debug)]
pub struct HostFs {
    nodes: Nodes,
    handles: RwLock<Numbered<Handle, Arc<OpenFile>>>,
    next_handle: AtomicU64,
    table: Table,
    specials: RwLock<Specials>,
    proc: OwnFiles,
    /// The file system of the root: its files keep their numbers.
    device: u64,
    /// The root is mounted so that devices do nothing.
    nodev: bool,
    /// The one name of the root that is shared, if only one is.
    only: Option<CString>,
    options: Options,
    /// The folder's number among those that are watched, if it is.
    watching: OnceLock<(usize, Arc<Watches>)>,
}

/// Something that the guest has open.
#[derive(Debug)]
struct OpenFile {
    node: Arc<Node>,
    what: OpenKind,
}

#[derive(Debug)]
enum OpenKind {
    File(Arc<OwnedFd>),
    Directory(Mutex<Directory>),
}

impl HostFs {
    /// The directory at `path`, which is followed if it is a link.
    pub fn new(path: &Path, options: Options) -> std::result::Result<Self, RootError> {
        let root = match sys::open_root(path) {
            Ok(root) => root,
            Err(Errno::ENOTDIR) => return Err(RootError::NotADirectory),
            Err(errno) => return Err(RootError::Open(errno)),
        };
        Self::of(root, OwnFiles::new().map_err(RootError::Proc)?, options)
    }

    /// The directory that a descriptor is of, for a process in which it may have no path any more.
    pub fn of(root: OwnedFd, own: OwnFiles, options: Options) -> std::result::Result<Self, RootError> {
        let found = sys::stat(root.as_fd()).map_err(RootError::Open)?;
        if found.kind() != Kind::Directory {
            return Err(RootError::NotADirectory);
        }
        let identity = found.identity;
        let nodev = sys::is_without_devices(root.as_fd()).map_err(RootError::Open)?;
        Ok(Self {
            nodes: Nodes::new(root, identity, options.budget.nodes),
            handles: RwLock::default(),
            next_handle: AtomicU64::new(1),
            table: Table::default(),
            specials: RwLock::default(),
            proc: own,
            device: identity.device,
            nodev,
            only: None,
            options,
            watching: OnceLock::new(),
        })
    }

    /// The file at `path`, which is followed if it is a link: the only name in a directory. A file that the host
    /// puts in its place has the name from then on.
    pub fn of_file(path: &Path, options: Options) -> std::result::Result<Self, RootError> {
        let number = |error: std::io::Error| Errno::from_number(error.raw_os_error().unwrap_or_default());
        let path = path.canonicalize().map_err(|error| RootError::Open(number(error)))?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(RootError::NotAFile);
        };
        let name = CString::new(name.as_bytes()).map_err(|_| RootError::NotAFile)?;
        Self::new(parent, options)?.only(name)
    }

    /// The same directory with no other name but this one, which a file has.
    pub fn only(self, name: CString) -> std::result::Result<Self, RootError> {
        let files = Self { only: Some(name.clone()), ..self };
        let (_, directory) = files.directory(NodeId::ROOT).map_err(RootError::Open)?;
        match sys::stat_at(directory.as_fd(), &name).map_err(RootError::Open)?.kind() {
            Kind::File => Ok(files),
            _ => Err(RootError::NotAFile),
        }
    }

    /// Whether a name is shared, if the host has it.
    fn is_shared(&self, parent: &Node, name: Name<'_>) -> bool {
        parent.id != NodeId::ROOT || self.only.as_deref().is_none_or(|only| only == name.as_c_str())
    }

    /// Refuses to make a name that would not be shared.
    fn may_make(&self, parent: &Node, name: Option<Name<'_>>) -> Result<()> {
        self.writable()?;
        let shared = match name {
            Some(name) => self.is_shared(parent, name),
            None => parent.id != NodeId::ROOT || self.only.is_none(),
        };
        if shared { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// Refuses to take or give the one name that is shared: it is where the guest has a mount.
    fn may_change(&self, parent: &Node, name: Name<'_>) -> Result<()> {
        match &self.only {
            Some(_) if parent.id == NodeId::ROOT && self.is_shared(parent, name) => Err(Errno::EBUSY),
            Some(_) if parent.id == NodeId::ROOT => Err(Errno::ENOENT),
            _ => Ok(()),
        }
    }

    fn writable(&self) -> Result<()> {
        if self.options.readonly { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// A directory that names are looked for in.
    fn directory(&self, id: NodeId) -> Result<(Arc<Node>, Arc<OwnedFd>)> {
        let node = self.nodes.get(id)?;
        if node.kind != Kind::Directory {
            return Err(Errno::ENOTDIR);
        }
        let file = self.nodes.descriptor(&node)?;
        Ok((node, file))
    }

    /// The attributes that the host has for a node.
    fn found(&self, node: &Arc<Node>) -> Result<Found> {
        match self.found_by(node, node.way()) {
            // The file may have lost its place on this way, and has another one then.
            Err(Errno::ESTALE) => self.found_by(node, node.way()),
            found => found,
        }
    }

    fn found_by(&self, node: &Arc<Node>, way: Way) -> Result<Found> {
        let place = match way {
            // The descriptor is of the node, even if its file system gives it another number: an overlay does when a file
            // is changed for the first time.
            Way::File(file) => return Ok(Found { identity: node.identity, ..sys::stat(file.as_fd())? }),
            Way::Remembered(found) => return Ok(*found),
            Way::Lost => return Err(Errno::ESTALE),
            Way::Place(place) => place,
        };
        let found = sys::stat_at(self.nodes.descriptor(&place.parent)?.as_fd(), &place.name);
        let found = found.map_err(|errno| if errno == Errno::ENOENT { Errno::ESTALE } else { errno })?;
        if found.identity == node.identity && found.kind() == node.kind {
            Ok(found)
        } else {
            Err(Errno::ESTALE)
        }
    }

    /// The attributes that the guest is told for a node.
    fn attributes_of(&self, node: &Arc<Node>) -> Result<Attributes> {
        if is_special(node.identity) {
            return shared(&self.specials).attributes(node.identity);
        }
        Ok(self.seen(node, &self.found(node)?))
    }

    /// The attributes that the guest is told for those of the host.
    fn seen(&self, node: &Node, found: &Found) -> Attributes {
        let mut attributes = found.attributes;
        attributes.uid = self.options.owner_uid.unwrap_or(attributes.uid);
        attributes.gid = self.options.owner_gid.unwrap_or(attributes.gid);
        self.table.over(found.identity, &mut attributes);
        attributes.ino = self.number(found);
        attributes.submount = found.is_mount && node.id != NodeId::ROOT;
        node.tell(attributes.mode, attributes.gid);
        attributes
    }

    /// The number of a file, as the guest sees it.
    fn number(&self, found: &Found) -> u64 {
        let identity = found.identity;
        // Numbers of another file system may be those of files of this one.
        if identity.device == self.device {
            identity.ino
        } else {
            identity.ino ^ identity.device.rotate_left(40)
        }
    }

    fn stat(&self, attributes: Attributes) -> Stat {
        Stat { attributes, valid: self.options.validity() }
    }

    /// Tells the kernel of what was found under a name.
    fn learn(&self, parent: &Arc<Node>, name: &CStr, found: &Found) -> Result<Entry> {
        let node = self.nodes.learn(Some((parent, name)), found.identity, found.kind())?;
        Ok(self.entry_of(&node, self.seen(&node, found)))
    }

    fn entry_of(&self, node: &Node, attributes: Attributes) -> Entry {
        Entry { node: node.id, generation: 0, valid: self.options.validity(), stat: self.stat(attributes) }
    }

    /// Keeps what was opened for the guest.
    fn keep(&self, node: Arc<Node>, what: OpenKind, cache: Cache) -> Result<Opened> {
        let handle = Handle(self.next_handle.fetch_add(1, Ordering::Relaxed));
        // Before anybody can let go of the handle.
        if let OpenKind::File(file) = &what {
            node.opened(handle, file);
        }
        let mut handles = alone(&self.handles);
        if handles.len() >= self.options.budget.handles {
            node.closed(handle);
            return Err(Errno::EMFILE);
        }
        handles.insert(handle, Arc::new(OpenFile { node, what }));
        Ok(Opened { handle, cache })
    }

    /// Refuses to open one more before it is done, so that nothing is made that cannot be told.
    fn room_for_handle(&self) -> Result<()> {
        if shared(&self.handles).len() >= self.options.budget.handles { Err(Errno::EMFILE) } else { Ok(()) }
    }

    /// The kernel no longer has a node: what was kept for it goes, if nobody can find it again.
    fn forgotten(&self, node: &Arc<Node>) {
        if let Some((_, watches)) = self.watching.get() {
            watches.forget(node);
        }
        let gone = if is_special(node.identity) {
            alone(&self.specials).forget(node.identity)
        } else {
            node.is_gone() || self.has_vanished(node)
        };
        if gone {
            self.table.remove(node.identity);
            self.leave(node.identity);
        }
        // Last, as another file may get the number of one that is gone as soon as nothing holds it.
        self.nodes.close(node);
    }

    /// Whether the host has removed a file of which something is kept here that would stay for ever. While there is much
    /// room for such things, nobody looks: the host may have moved the file.
    fn has_vanished(&self, node: &Arc<Node>) -> bool {
        let keeps = self.table.is_crowded() && self.table.has(node.identity) || {
            let specials = shared(&self.specials);
            specials.is_crowded() && specials.any_in(node.identity)
        };
        if !keeps || node.place().is_none() && !node.has_descriptor() {
            return false;
        }
        match self.found(node) {
            Ok(found) => found.attributes.links == 0,
            Err(errno) => errno == Errno::ESTALE,
        }
    }

    /// A directory is no more, and so are the names in it that only the guest has.
    fn leave(&self, directory: Identity) {
        let names = shared(&self.specials).list(directory, 0);
        for (_, name) in names {
            self.unlink_special(directory, &name);
        }
    }

    /// Takes back what was kept of a file that is gone, and that the kernel forgot before it was kept.
    fn settle(&self, node: &Node) {
        let gone = if is_special(node.identity) {
            shared(&self.specials).attributes(node.identity).is_err()
        } else {
            node.is_gone()
        };
        if gone && self.nodes.known(node.identity).is_none() {
            self.table.remove(node.identity);
        }
    }

    /// Panics if anything is kept but for the root, although the kernel has forgotten all else.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn keeps_nothing(&self) {
        assert!(self.table.len() <= 1, "attributes of no file: {:?}", self.table);
        assert!(self.nodes.pinned() == 0 && shared(&self.handles).is_empty(), "descriptors of no file");
        let specials = shared(&self.specials);
        assert!(specials.keeps_nothing(), "{specials:?}");
    }

    fn handle(&self, node: NodeId, handle: Handle) -> Result<Arc<OpenFile>> {
        let open = shared(&self.handles).get(&handle).cloned();
        open.filter(|open| open.node.id == node).ok_or(Errno::EBADF)
    }

    fn file(&self, node: NodeId, handle: Handle) -> Result<Arc<OwnedFd>> {
        match &self.handle(node, handle)?.what {
            OpenKind::File(file) => Ok(file.clone()),
            OpenKind::Directory(_) => Err(Errno::EBADF),
        }
    }
}

impl FileSystem for HostFs {
    fn entry(&self, context: &Context<'_>, parent: NodeId, name: Name<'_>, how: How<'_>) -> Result<Entry> {
        let (parent, directory) = self.directory(parent)?;
        match how {
            How::Existing if !self.is_shared(&parent, name) => Err(Errno::ENOENT),
            How::Existing => self.look_up(&parent, directory.as_fd(), name),
            _ => {
                self.may_make(&parent, Some(name))?;
                let _act = self.acting(&parent, name);
                self.make(context, &Spot { node: &parent, directory: directory.as_fd(), name }, how)
            }
        }
    }

    fn names(&self, _: &Context<'_>, parent: NodeId, change: NameChange<'_>) -> Result<()> {
        self.writable()?;
        let (parent, directory) = self.directory(parent)?;
        let spot = |name| Spot { node: &parent, directory: directory.as_fd(), name };
        let (NameChange::Unlink(name)
        | NameChange::RemoveDirectory(name)
        | NameChange::Rename { from: name, .. }) = change;
        self.may_change(&parent, name)?;
        let _act = self.acting(&parent, name);
        match change {
            NameChange::Unlink(name) => self.remove(&spot(name), false),
            NameChange::RemoveDirectory(name) => self.remove(&spot(name), true),
            NameChange::Rename { from, to_parent, to, how } => {
                let (to_parent, to_directory) = self.directory(to_parent)?;
                self.may_change(&to_parent, to)?;
                let _act = self.acting(&to_parent, to);
                let to = Spot { node: &to_parent, directory: to_directory.as_fd(), name: to };
                self.rename(&spot(from), &to, how)
            }
        }
    }

    fn attributes(
        &self,
        _: &Context<'_>,
        node: NodeId,
        handle: Option<Handle>,
        change: Option<&SetAttributes>,
    ) -> Result<Stat> {
        let node = self.nodes.get(node)?;
        let Some(change) = change else { return Ok(self.stat(self.attributes_of(&node)?)) };
        self.writable()?;
        if node.id == NodeId::ROOT && self.only.is_some() {
            return Err(Errno::EPERM);
        }
        let _change = self.changing(&node);
        let changed = self.set_attributes(&node, handle, change);
        self.settle(&node);
        changed?;
        Ok(self.stat(self.attributes_of(&node)?))
    }

    fn open(&self, _: &Context<'_>, node: NodeId, opening: Opening) -> Result<Opened> {
        let node = self.nodes.get(node)?;
        let cuts = matches!(opening, Opening::File { flags, .. } if flags.contains(OpenFlags::TRUNCATE));
        let _change = if cuts { self.changing(&node) } else { None };
        self.open_node(&node, opening)
    }

    fn create(
        &self,
        context: &Context<'_>,
        parent: NodeId,
        name: Option<Name<'_>>,
        creation: Creation,
    ) -> Result<(Entry, Opened)> {
        let (parent, directory) = self.directory(parent)?;
        self.may_make(&parent, name)?;
        let _act = name.and_then(|name| self.acting(&parent, name));
        let directory = directory.as_fd();
        match name {
            Some(name) => self.create_file(context, &Spot { node: &parent, directory, name }, creation),
            None => self.create_nameless(context, &parent, directory, creation),
        }
    }

    fn data(&self, _: &Context<'_>, node: NodeId, handle: Handle, act: Data<'_>) -> Result<u64> {
        self.act(node, handle, act)
    }

    fn list(
        &self,
        _: &Context<'_>,
        node: NodeId,
        handle: Handle,
        cookie: u64,
        listing: &mut Listing<'_>,
    ) -> Result<()> {
        self.list_directory(node, handle, cookie, listing)
    }

    fn read_link(&self, _: &Context<'_>, node: NodeId) -> Result<Vec<u8>> {
        let node = self.nodes.get(node)?;
        if node.kind != Kind::SymbolicLink {
            return Err(Errno::EINVAL);
        }
        sys::read_link(self.nodes.descriptor(&node)?.as_fd())
    }

    fn xattr(&self, _: &Context<'_>, node: NodeId, act: Xattr<'_>) -> Result<Vec<u8>> {
        let node = self.nodes.get(node)?;
        let changes = matches!(act, Xattr::Set { .. });
        let done = self.extended_attribute(&node, act);
        if changes {
            self.settle(&node);
        }
        done
    }

    fn statistics(&self, _: &Context<'_>, node: NodeId) -> Result<Statistics> {
        let node = self.nodes.get(node)?;
        // A special file is on no file system of the host's.
        let node = if is_special(node.identity) { self.nodes.root() } else { &node };
        sys::statistics(self.nodes.descriptor(node)?.as_fd())
    }

    fn sync(&self, _: &Context<'_>, node: NodeId, what: Sync) -> Result<()> {
        match what {
            Sync::File { handle, data_only } => sys::sync(self.file(node, handle)?.as_fd(), data_only),
            Sync::Directory { handle } => self.sync_directory(node, handle),
            Sync::All => {
                let (_, root) = self.directory(NodeId::ROOT)?;
                sys::sync_all(self.proc.open_directory(root.as_fd())?.as_fd())
            }
        }
    }

    fn let_go(&self, node: NodeId, gone: Gone) {
        match gone {
            Gone::Lookups(count) => {
                if let Some(node) = self.nodes.forget(node, count) {
                    self.forgotten(&node);
                }
            }
            Gone::File(handle) | Gone::Directory(handle) => {
                let open = alone(&self.handles).remove(&handle);
                if let Some(open) = open
                    && open.node.closed(handle)
                    && open.node.is_gone()
                    && let OpenKind::File(file) = &open.what
                {
                    // The kernel may ask for the file until it forgets the file. Without room for a descriptor, the file
                    // is remembered as it was.
                    let _ = self.nodes.pin(&open.node, file);
                }
            }
            Gone::Everything => {
                let forgotten = self.nodes.forget_all();
                // A file that only the guest has is gone when it has no name.
                let lost = forgotten.iter().filter(|node| node.is_gone() && !is_special(node.identity));
                let lost = lost.map(|node| node.identity).chain(alone(&self.specials).forget_all());
                lost.for_each(|identity| self.table.remove(identity));
                let handles = std::mem::take(&mut *alone(&self.handles));
                drop(handles);
            }
        }
    }
}

/// A name in a directory.
#[derive(Clone, Copy)]
struct Spot<'a> {
    node: &'a Arc<Node>,
    directory: BorrowedFd<'a>,
    name: Name<'a>,
}
