//! The provider: the tree behind the seam [`FileSystem`].

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use changes::{Gone as Lost, Record, Writer};
use fuse::{
    Access, Attributes, Cache, Context, Creation, Data, Entry, Errno, FileSystem, Gone, Handle, How, Listing,
    Name, NameChange, NodeId, OpenFlags, Opened, Opening, RenameHow, Result, SetAttributes, Sink, Source,
    Stat, Statistics, Sync, WriteHow, Xattr,
};
use vm_memory::VolatileSlice;

use crate::below::Below;
use crate::bytes::Home;
use crate::handles::{Handles, Open};
use crate::locks::{alone, shared};
use crate::node::{Birth, Body, Contents, Former, NODE_COST, Node, file_type};
use crate::space::Space;
use crate::store::Store;
use crate::tree::{Changed, Spot, Tree};

/// How long the kernel may believe what it was told: nobody else changes the files.
const VALID: Duration = Duration::from_secs(3600);

/// The same, of what is below, which others may change.
const VALID_BELOW: Duration = Duration::from_secs(1);

/// The unit in which space is told.
const BLOCK_SIZE: u32 = 4096;

/// Longest name of a file.
const MAX_NAME_LEN: u32 = 255;

/// Largest offset in a file.
const MAX_OFFSET: u64 = i64::MAX as u64;

/// Bytes that are copied from file to file at once.
const COPY_LEN: usize = 64 << 10;

/// The properties of a folder in memory.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Most bytes that its files may take, what is known about them included.
    pub limit: u64,
    /// Permissions of the folder itself.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// Most bytes that is known of files whose contents are elsewhere: of some 200,000.
const MAX_FACTS: u64 = 256 << 20;

/// Files whose changes stay here: in this process's memory, or contents in files of their own.
#[derive(Debug)]
pub struct Files {
    /// For what is known of files.
    space: Arc<Space>,
    home: Home,
    pub(crate) tree: RwLock<Tree>,
    handles: Handles,
    is_kept: AtomicBool,
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Some(store) = self.home.store().filter(|_| self.is_kept.load(Ordering::Acquire)) {
            store.outlive();
        }
    }
}

impl Files {
    /// An empty folder. A limit that has no room even for the folder itself is an error.
    pub fn in_memory(options: Options) -> Result<Self> {
        let space = Space::new(options.limit);
        let home = Home::new(space.clone(), None);
        let root = Birth { mode: options.mode & 0o7777, uid: options.uid, gid: options.gid };
        let tree = Tree::new(space.clone(), home.clone(), root)?;
        Ok(Self { space, home, tree: RwLock::new(tree), handles: Handles::default(), is_kept: false.into() })
    }

    /// The files of another file system, which is only read. The changes take at most `limit` bytes of memory.
    pub fn over(below: Arc<dyn FileSystem>, limit: u64) -> Result<Self> {
        let space = Space::new(limit);
        let home = Home::new(space.clone(), None);
        Self::over_with(below, space, home)
    }

    /// The same, with contents in files of `directory`, which is empty and nobody else's. They take at most `limit` bytes.
    pub fn over_kept(below: Arc<dyn FileSystem>, limit: u64, directory: OwnedFd) -> Result<Self> {
        let home = Home::new(Space::new(limit), Some(Store::new(directory)));
        Self::over_with(below, Space::new(MAX_FACTS), home)
    }

    fn over_with(below: Arc<dyn FileSystem>, space: Arc<Space>, home: Home) -> Result<Self> {
        let root = Below::root(below);
        let told = root.attributes()?;
        let tree = Tree::over(space.clone(), home.clone(), root, &told)?;
        Ok(Self { space, home, tree: RwLock::new(tree), handles: Handles::default(), is_kept: false.into() })
    }

    /// Writes down what was changed, beside the contents: where they have [files of their own](Self::over_kept). Then contents
    /// outlive these files.
    pub fn keep(&self) -> changes::Result<()> {
        let Some(store) = self.home.store() else { return Ok(()) };
        let Changed { gone, there, left_out } = shared(&self.tree).changed();
        let mut list = Writer::new(store.directory())?;
        gone.into_iter().try_for_each(|(place, was)| list.add(&Record::Gone(Lost { place, was })))?;
        for (place, origin, node) in there {
            list.add(&Record::There(node.record(place, origin)))?;
        }
        if left_out > 0 {
            list.add(&Record::LeftOut(left_out))?;
        }
        list.end()?;
        self.is_kept.store(true, Ordering::Release);
        Ok(())
    }

    pub(crate) fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        shared(&self.tree).node(id).cloned()
    }

    /// An empty regular file.
    fn empty_file(&self) -> Result<Body> {
        Ok(Body::File(Contents::new(self.home.empty()?)))
    }

    fn make(
        &self,
        context: &Context<'_>,
        parent: NodeId,
        name: Name<'_>,
        body: Body,
        mode: u32,
    ) -> Result<Entry> {
        self.make_room(parent, name)?;
        let node = alone(&self.tree).make(spot(parent, name), body, mode, context)?;
        self.tell(node, None)
    }

    /// Refuses a name that is taken, and has its directory ready for it.
    fn make_room(&self, parent: NodeId, name: Name<'_>) -> Result<()> {
        match self.hold(parent, name)? {
            Some(_) => Err(Errno::EEXIST),
            None => self.touch_directory(parent),
        }
    }

    fn link(&self, parent: NodeId, name: Name<'_>, id: NodeId) -> Result<Entry> {
        let node = self.node(id)?;
        if node.is_directory() {
            return Err(Errno::EPERM);
        }
        self.make_room(parent, name)?;
        self.touch(&node)?;
        let node = alone(&self.tree).link(spot(parent, name), id)?;
        self.tell(node, None)
    }

    fn rename(
        &self,
        from: (NodeId, Name<'_>),
        to: (NodeId, Name<'_>),
        how: RenameHow,
    ) -> Result<Vec<Arc<Node>>> {
        let moved = self.hold(from.0, from.1)?.ok_or(Errno::ENOENT)?;
        let other = self.hold(to.0, to.1)?;
        self.touch_directory(from.0)?;
        self.touch_directory(to.0)?;
        self.touch(&moved.node)?;
        if let Some(other) = &other {
            self.touch(&other.node)?;
        }
        // Whether the directory may be replaced at all is the tree's to say, and then whether it is empty.
        let replaced =
            other.filter(|other| how == RenameHow::Replace && !Arc::ptr_eq(&other.node, &moved.node));
        let left = match &replaced {
            Some(replaced) if moved.node.is_directory() => self.check_nothing_below(&replaced.node),
            _ => Ok(()),
        };
        let mut tree = alone(&self.tree);
        let (from, to) = (spot(from.0, from.1), spot(to.0, to.1));
        if left.is_err() {
            tree.check_rename(from, to)?;
            return left.map(|()| Vec::new());
        }
        tree.rename(from, to, how)
    }

    fn remove(&self, parent: NodeId, name: Name<'_>, is_directory: bool) -> Result<Vec<Arc<Node>>> {
        let found = self.hold(parent, name)?.ok_or(Errno::ENOENT)?;
        match (is_directory, found.node.is_directory()) {
            (true, false) => return Err(Errno::ENOTDIR),
            (false, true) => return Err(Errno::EISDIR),
            (true, true) => self.check_nothing_below(&found.node)?,
            (false, false) => {}
        }
        self.touch_directory(parent)?;
        self.touch(&found.node)?;
        let mut tree = alone(&self.tree);
        let spot = spot(parent, name);
        if is_directory { tree.remove_directory(spot) } else { tree.unlink(spot) }
    }

    /// Finds a name for the kernel.
    pub(crate) fn find(&self, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        let (node, told) = self.look_up(parent, name)?;
        self.tell(node, told)
    }

    /// Tells the kernel of a file to which it has a reference, or takes the reference back.
    fn tell(&self, node: Arc<Node>, told: Option<Attributes>) -> Result<Entry> {
        let told = match told {
            Some(told) => Ok(Stat { attributes: Attributes { ino: node.ino, ..told }, valid: VALID_BELOW }),
            None => stat(&node),
        };
        let stat = told.inspect_err(|_| self.forget(node.id, 1))?;
        Ok(Entry { node: node.id, generation: 0, valid: stat.valid, stat })
    }

    pub(crate) fn forget(&self, id: NodeId, count: u64) {
        let is_last = shared(&self.tree).forget(id, count);
        let lost = if is_last { alone(&self.tree).let_go(id) } else { Vec::new() };
        drop(lost);
    }

    /// Opens a regular file.
    fn open_file(&self, node: Arc<Node>, access: Access, flags: OpenFlags) -> Result<Opened> {
        let contents = node.contents()?;
        if flags.contains(OpenFlags::TRUNCATE) {
            self.touch(&node)?;
            contents.change(Former::Dropped, |bytes| bytes.set_len(0))??;
            let mut facts = node.facts();
            if flags.contains(OpenFlags::KILL_PRIVILEGES) {
                facts.kill_privileges();
            }
            facts.written();
        }
        let beneath = node.below.as_ref().filter(|_| contents.is_below());
        let below = beneath.map(|below| below.open(false)).transpose()?;
        let cache = if below.is_some() { Cache::empty() } else { Cache::KEEP };
        let handle = self.handles.keep(Open { node, is_writable: !matches!(access, Access::Read), below })?;
        Ok(Opened { handle, cache })
    }

    fn read(&self, open: &Open, offset: u64, into: &Sink<'_>) -> Result<u64> {
        let count = open.node.contents()?.read(open.below.as_ref(), offset, into)?;
        open.node.facts().accessed();
        Ok(count)
    }

    fn write(&self, open: &Open, offset: u64, from: &Source<'_>, how: WriteHow) -> Result<u64> {
        let wanted = u64::try_from(from.len()).map_err(|_| Errno::EINVAL)?;
        let contents = open.writable()?;
        self.touch(&open.node)?;
        let count = contents.change(Former::Needed, |bytes| {
            let offset = if how.contains(WriteHow::APPEND) { bytes.len() } else { offset };
            match offset.checked_add(wanted) {
                Some(end) if end <= MAX_OFFSET => bytes.write(offset, from),
                _ => Err(Errno::EFBIG),
            }
        })??;
        let mut facts = open.node.facts();
        if how.contains(WriteHow::KILL_PRIVILEGES) {
            facts.kill_privileges();
        }
        if count > 0 {
            facts.written();
        }
        // A kernel that writes its pages later does not ask for the rest.
        if count < wanted && how.contains(WriteHow::DELAYED) { Err(Errno::ENOSPC) } else { Ok(count) }
    }

    fn copy(&self, from: &Open, mut offset: u64, to: &Open, mut to_offset: u64, len: u64) -> Result<u64> {
        let into = to.writable()?;
        self.touch(&to.node)?;
        let mut buffer = vec![0; usize::try_from(len).unwrap_or(COPY_LEN).min(COPY_LEN)];
        let slices = [VolatileSlice::from(&mut buffer[..])];
        let mut done = 0;
        while done < len {
            let wanted = usize::try_from(len - done).unwrap_or(COPY_LEN).min(COPY_LEN);
            let into_buffer = Sink::new(&slices, 0, wanted);
            let count = from.node.contents()?.read(from.below.as_ref(), offset, &into_buffer)?;
            let found = Source::new(&slices, 0, usize::try_from(count).unwrap_or(0));
            let stored = match into.change(Former::Needed, |bytes| bytes.write(to_offset, &found)).flatten() {
                Ok(stored) => stored,
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            };
            (offset, to_offset, done) = (offset + stored, to_offset + stored, done + stored);
            if stored < u64::try_from(wanted).unwrap_or(u64::MAX) {
                break;
            }
        }
        if done > 0 {
            let mut facts = to.node.facts();
            facts.kill_privileges();
            facts.written();
        }
        Ok(done)
    }
}

impl Open {
    /// The contents, if the guest opened the file to change them.
    fn writable(&self) -> Result<&Contents> {
        if self.is_writable { self.node.contents() } else { Err(Errno::EBADF) }
    }
}

impl FileSystem for Files {
    fn entry(&self, context: &Context<'_>, parent: NodeId, name: Name<'_>, how: How<'_>) -> Result<Entry> {
        match how {
            How::Existing => self.find(parent, name),
            How::Directory { mode } => self.make(context, parent, name, Body::Directory, mode),
            How::Node { mode, device } => {
                let body = match mode & file_type::MASK {
                    file_type::REGULAR => self.empty_file()?,
                    kind => Body::Special(kind, device),
                };
                self.make(context, parent, name, body, mode & !file_type::MASK)
            }
            How::SymbolicLink { target } => {
                self.make(context, parent, name, Body::Link(target.as_c_str().to_bytes().into()), 0o777)
            }
            How::HardLink { node } => self.link(parent, name, node),
        }
    }

    fn names(&self, _: &Context<'_>, parent: NodeId, change: NameChange<'_>) -> Result<()> {
        let lost = match change {
            NameChange::Unlink(name) => self.remove(parent, name, false),
            NameChange::RemoveDirectory(name) => self.remove(parent, name, true),
            NameChange::Rename { from, to_parent, to, how } => {
                self.rename((parent, from), (to_parent, to), how)
            }
        };
        lost.map(drop)
    }

    fn attributes(
        &self,
        _: &Context<'_>,
        node: NodeId,
        _: Option<Handle>,
        change: Option<&SetAttributes>,
    ) -> Result<Stat> {
        let node = self.node(node)?;
        if let Some(change) = change {
            self.touch(&node)?;
            node.change(change)?;
        }
        stat(&node)
    }

    fn open(&self, _: &Context<'_>, node: NodeId, opening: Opening) -> Result<Opened> {
        let node = self.node(node)?;
        match opening {
            Opening::File { access, flags } => self.open_file(node, access, flags),
            Opening::Directory if node.is_directory() => {
                let below = node.below.as_ref().map(|below| below.open(true)).transpose()?;
                let cache = if below.is_some() { Cache::empty() } else { Cache::KEEP | Cache::DIRECTORY };
                let handle = self.handles.keep(Open { node, is_writable: false, below })?;
                Ok(Opened { handle, cache })
            }
            Opening::Directory => Err(Errno::ENOTDIR),
        }
    }

    fn create(
        &self,
        context: &Context<'_>,
        parent: NodeId,
        name: Option<Name<'_>>,
        creation: Creation,
    ) -> Result<(Entry, Opened)> {
        let Creation { mode, access, flags, exclusive } = creation;
        self.handles.check_room()?;
        let body = self.empty_file()?;
        let node = match name {
            None => {
                let node = alone(&self.tree).make_nameless(parent, body, mode, context)?;
                node.facts().nameable = !exclusive;
                node
            }
            Some(name) => match self.look_up(parent, name) {
                Ok((node, _)) if exclusive => {
                    self.forget(node.id, 1);
                    return Err(Errno::EEXIST);
                }
                Ok((node, _)) => node,
                Err(Errno::ENOENT) => {
                    self.touch_directory(parent)?;
                    alone(&self.tree).make(spot(parent, name), body, mode, context)?
                }
                Err(errno) => return Err(errno),
            },
        };
        let opened = self.open_file(node.clone(), access, flags).inspect_err(|_| self.forget(node.id, 1))?;
        Ok((self.tell(node, None)?, opened))
    }

    fn data(&self, _: &Context<'_>, node: NodeId, handle: Handle, act: Data<'_>) -> Result<u64> {
        let open = self.handles.get(node, handle)?;
        match act {
            Data::Read { offset, into } => self.read(&open, offset, &into),
            Data::Write { offset, from, how } => self.write(&open, offset, &from, how),
            Data::Allocate { offset, len, how } => {
                let contents = open.writable()?;
                self.touch(&open.node)?;
                contents.change(Former::Needed, |bytes| bytes.allocate(offset, len, how))??;
                let mut facts = open.node.facts();
                facts.kill_privileges();
                facts.written();
                Ok(0)
            }
            Data::Seek { offset, what } => open.node.contents()?.seek(open.below.as_ref(), offset, what),
            Data::Copy { offset, to_node, to, to_offset, len } => {
                self.copy(&open, offset, &*self.handles.get(to_node, to)?, to_offset, len)
            }
        }
    }

    fn list(
        &self,
        _: &Context<'_>,
        node: NodeId,
        handle: Handle,
        cookie: u64,
        listing: &mut Listing<'_>,
    ) -> Result<()> {
        let open = self.handles.get(node, handle)?;
        self.list_directory(&open, cookie, listing)?;
        open.node.facts().accessed();
        Ok(())
    }

    fn read_link(&self, _: &Context<'_>, node: NodeId) -> Result<Vec<u8>> {
        match &self.node(node)?.body {
            Body::Link(target) => Ok(target.to_vec()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn xattr(&self, _: &Context<'_>, node: NodeId, act: Xattr<'_>) -> Result<Vec<u8>> {
        let node = self.node(node)?;
        if let Some(below) = node.live().filter(|_| matches!(act, Xattr::Get(_) | Xattr::List)) {
            return below.xattr(act);
        }
        self.touch(&node)?;
        match act {
            Xattr::Get(name) => node.facts().xattr(name),
            Xattr::List => Ok(node.facts().xattrs()),
            Xattr::Set { name, value, how } => node.set_xattr(name, value, how).map(|()| Vec::new()),
            Xattr::Remove(name) => node.remove_xattr(name).map(|()| Vec::new()),
        }
    }

    fn statistics(&self, _: &Context<'_>, _: NodeId) -> Result<Statistics> {
        let (limit, free) = (self.home.space().limit(), self.home.space().free());
        let blocks = |bytes: u64| bytes / u64::from(BLOCK_SIZE);
        Ok(Statistics {
            block_size: BLOCK_SIZE,
            blocks: blocks(limit),
            free: blocks(free),
            available: blocks(free),
            files: self.space.limit() / NODE_COST,
            free_files: self.space.free() / NODE_COST,
            name_len: MAX_NAME_LEN,
        })
    }

    fn sync(&self, _: &Context<'_>, node: NodeId, what: Sync) -> Result<()> {
        match what {
            Sync::File { handle, .. } | Sync::Directory { handle } => {
                self.handles.get(node, handle).map(drop)
            }
            Sync::All => Ok(()),
        }
    }

    fn let_go(&self, node: NodeId, gone: Gone) {
        match gone {
            Gone::Lookups(count) => self.forget(node, count),
            Gone::File(handle) | Gone::Directory(handle) => self.handles.close(handle),
            Gone::Everything => {
                self.handles.close_all();
                let lost = alone(&self.tree).let_all_go();
                drop(lost);
            }
        }
    }
}

fn spot(parent: NodeId, name: Name<'_>) -> Spot<'_> {
    Spot { parent, name: name.as_bytes() }
}

/// A file's attributes, and how long they are valid: others may change the file system below.
fn stat(node: &Node) -> Result<Stat> {
    let valid = if node.is_asked_below() { VALID_BELOW } else { VALID };
    Ok(Stat { attributes: node.attributes()?, valid })
}
