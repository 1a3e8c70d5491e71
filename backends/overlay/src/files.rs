//! The provider: the tree behind the seam [`FileSystem`].

use std::sync::{Arc, RwLock};
use std::time::Duration;

use fuse::{
    Access, Cache, Context, Creation, Data, Entry, Errno, FileSystem, Gone, Handle, How, Listed, Listing,
    Name, NameChange, NodeId, OpenFlags, Opened, Opening, Result, SetAttributes, Sink, Source, Stat,
    Statistics, Sync, WriteHow, Xattr,
};
use vm_memory::VolatileSlice;

use crate::chunks::Chunks;
use crate::handles::{Handles, Open};
use crate::locks::{alone, shared};
use crate::node::{Birth, Body, Contents, NODE_COST, Node, file_type};
use crate::space::Space;
use crate::tree::{Spot, Tree};

/// How long the kernel may believe what it was told: nobody else changes the files.
const VALID: Duration = Duration::from_secs(3600);

/// The unit in which space is told.
const BLOCK_SIZE: u32 = 4096;

/// Longest name of a file.
const MAX_NAME_LEN: u32 = 255;

/// Largest offset in a file.
const MAX_OFFSET: u64 = i64::MAX as u64;

/// Bytes that are copied from file to file at once.
const COPY_LEN: usize = 64 << 10;

/// What a folder in memory is like.
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

/// Files that are in this process's memory only.
#[derive(Debug)]
pub struct Memory {
    space: Arc<Space>,
    tree: RwLock<Tree>,
    handles: Handles,
}

impl Memory {
    /// An empty folder. A limit that has no room even for the folder itself is an error.
    pub fn new(options: Options) -> Result<Self> {
        let space = Space::new(options.limit);
        let root = Birth { mode: options.mode & 0o7777, uid: options.uid, gid: options.gid };
        let tree = Tree::new(space.clone(), root)?;
        Ok(Self { space, tree: RwLock::new(tree), handles: Handles::default() })
    }

    fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        shared(&self.tree).node(id).cloned()
    }

    /// An empty regular file.
    fn empty_file(&self) -> Result<Body> {
        Ok(Body::File(Contents::new(Chunks::new(self.space.charge(0)?))))
    }

    fn make(&self, context: &Context<'_>, spot: Spot<'_>, body: Body, mode: u32) -> Result<Entry> {
        let node = alone(&self.tree).make(spot, body, mode, context)?;
        Ok(entry(&node))
    }

    /// Opens a regular file.
    fn open_file(&self, node: Arc<Node>, access: Access, flags: OpenFlags) -> Result<Opened> {
        let contents = node.contents()?;
        if flags.contains(OpenFlags::TRUNCATE) {
            contents.change(|chunks| chunks.set_len(0));
            let mut facts = node.facts();
            if flags.contains(OpenFlags::KILL_PRIVILEGES) {
                facts.kill_privileges();
            }
            facts.modified();
        }
        let handle = self.handles.keep(Open { node, is_writable: !matches!(access, Access::Read) })?;
        Ok(Opened { handle, cache: Cache::KEEP })
    }

    fn read(&self, open: &Open, offset: u64, into: &Sink<'_>) -> Result<u64> {
        let count = open.node.contents()?.look().read(offset, into);
        open.node.facts().accessed();
        Ok(count)
    }

    fn write(&self, open: &Open, offset: u64, from: &Source<'_>, how: WriteHow) -> Result<u64> {
        let wanted = u64::try_from(from.len()).map_err(|_| Errno::EINVAL)?;
        let count = open.writable()?.change(|chunks| {
            let offset = if how.contains(WriteHow::APPEND) { chunks.len() } else { offset };
            match offset.checked_add(wanted) {
                Some(end) if end <= MAX_OFFSET => chunks.write(offset, from),
                _ => Err(Errno::EFBIG),
            }
        })?;
        let mut facts = open.node.facts();
        if how.contains(WriteHow::KILL_PRIVILEGES) {
            facts.kill_privileges();
        }
        if count > 0 {
            facts.modified();
        }
        // A kernel that writes its pages later does not ask for the rest.
        if count < wanted && how.contains(WriteHow::DELAYED) { Err(Errno::ENOSPC) } else { Ok(count) }
    }

    fn copy(&self, from: &Open, mut offset: u64, to: &Open, mut to_offset: u64, len: u64) -> Result<u64> {
        let (from, into) = (from.node.contents()?, to.writable()?);
        let mut buffer = vec![0; usize::try_from(len).unwrap_or(COPY_LEN).min(COPY_LEN)];
        let slices = [VolatileSlice::from(&mut buffer[..])];
        let mut done = 0;
        while done < len {
            let wanted = usize::try_from(len - done).unwrap_or(COPY_LEN).min(COPY_LEN);
            let count = from.look().read(offset, &Sink::new(&slices, 0, wanted));
            let found = Source::new(&slices, 0, usize::try_from(count).unwrap_or(0));
            let stored = match into.change(|chunks| chunks.write(to_offset, &found)) {
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
            facts.modified();
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

impl FileSystem for Memory {
    fn entry(&self, context: &Context<'_>, parent: NodeId, name: Name<'_>, how: How<'_>) -> Result<Entry> {
        let spot = spot(parent, name);
        match how {
            How::Existing => {
                let tree = shared(&self.tree);
                let node = tree.find(spot)?;
                tree.refer(node.id);
                Ok(entry(node))
            }
            How::Directory { mode } => self.make(context, spot, Body::Directory, mode),
            How::Node { mode, device } => {
                let body = match mode & file_type::MASK {
                    file_type::REGULAR => self.empty_file()?,
                    kind => Body::Special(kind, device),
                };
                self.make(context, spot, body, mode & !file_type::MASK)
            }
            How::SymbolicLink { target } => {
                self.make(context, spot, Body::Link(target.as_c_str().to_bytes().into()), 0o777)
            }
            How::HardLink { node } => Ok(entry(&*alone(&self.tree).link(spot, node)?)),
        }
    }

    fn names(&self, _: &Context<'_>, parent: NodeId, change: NameChange<'_>) -> Result<()> {
        let mut tree = alone(&self.tree);
        let lost = match change {
            NameChange::Unlink(name) => tree.unlink(spot(parent, name)),
            NameChange::RemoveDirectory(name) => tree.remove_directory(spot(parent, name)),
            NameChange::Rename { from, to_parent, to, how } => {
                tree.rename(spot(parent, from), spot(to_parent, to), how)
            }
        };
        drop(tree);
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
            node.change(change)?;
        }
        Ok(stat(&node))
    }

    fn open(&self, _: &Context<'_>, node: NodeId, opening: Opening) -> Result<Opened> {
        let node = self.node(node)?;
        match opening {
            Opening::File { access, flags } => self.open_file(node, access, flags),
            Opening::Directory if node.is_directory() => {
                let handle = self.handles.keep(Open { node, is_writable: false })?;
                Ok(Opened { handle, cache: Cache::KEEP | Cache::DIRECTORY })
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
        let mut tree = alone(&self.tree);
        let node = match name {
            None => {
                let node = tree.make_nameless(parent, body, mode, context)?;
                node.facts().nameable = !exclusive;
                node
            }
            Some(name) => {
                let spot = spot(parent, name);
                match tree.find(spot) {
                    Ok(_) if exclusive => return Err(Errno::EEXIST),
                    Ok(node) => {
                        node.contents()?;
                        tree.refer(node.id);
                        node.clone()
                    }
                    Err(Errno::ENOENT) => tree.make(spot, body, mode, context)?,
                    Err(errno) => return Err(errno),
                }
            }
        };
        drop(tree);
        let opened = self.open_file(node.clone(), access, flags).inspect_err(|_| {
            self.let_go(node.id, Gone::Lookups(1));
        })?;
        Ok((entry(&node), opened))
    }

    fn data(&self, _: &Context<'_>, node: NodeId, handle: Handle, act: Data<'_>) -> Result<u64> {
        let open = self.handles.get(node, handle)?;
        match act {
            Data::Read { offset, into } => self.read(&open, offset, &into),
            Data::Write { offset, from, how } => self.write(&open, offset, &from, how),
            Data::Allocate { offset, len, how } => {
                open.writable()?.change(|chunks| chunks.allocate(offset, len, how))?;
                let mut facts = open.node.facts();
                facts.kill_privileges();
                facts.modified();
                Ok(0)
            }
            Data::Seek { offset, what } => open.node.contents()?.look().seek(offset, what),
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
        list(&shared(&self.tree), &open.node, cookie, listing)?;
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
        match act {
            Xattr::Get(name) => node.facts().xattr(name),
            Xattr::List => Ok(node.facts().xattrs()),
            Xattr::Set { name, value, how } => node.set_xattr(name, value, how).map(|()| Vec::new()),
            Xattr::Remove(name) => node.remove_xattr(name).map(|()| Vec::new()),
        }
    }

    fn statistics(&self, _: &Context<'_>, _: NodeId) -> Result<Statistics> {
        let (limit, free) = (self.space.limit(), self.space.free());
        let blocks = |bytes: u64| bytes / u64::from(BLOCK_SIZE);
        Ok(Statistics {
            block_size: BLOCK_SIZE,
            blocks: blocks(limit),
            free: blocks(free),
            available: blocks(free),
            files: limit / NODE_COST,
            free_files: free / NODE_COST,
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
            Gone::Lookups(count) => {
                let is_last = shared(&self.tree).forget(node, count);
                let lost = if is_last { alone(&self.tree).let_go(node) } else { None };
                drop(lost);
            }
            Gone::File(handle) | Gone::Directory(handle) => self.handles.close(handle),
            Gone::Everything => {
                self.handles.close_all();
                let lost = alone(&self.tree).let_all_go();
                drop(lost);
            }
        }
    }
}

/// Lists a directory's names, and for a kernel that wants them, their files, with a reference to each.
fn list(tree: &Tree, node: &Node, cookie: u64, listing: &mut Listing<'_>) -> Result<()> {
    const ITSELF: u64 = 1;
    const PARENT: u64 = 2;
    let Ok(directory) = tree.directory(node.id) else { return Ok(()) };
    let kind = |mode: u32| u8::try_from(mode >> 12).unwrap_or_default();
    let directory_kind = kind(file_type::DIRECTORY);
    for (place, name, ino) in [(ITSELF, &b"."[..], node.id.0), (PARENT, b"..", directory.parent.0)] {
        if cookie < place && !listing.add(&Listed { ino, cookie: place, kind: directory_kind, name }, None) {
            return Ok(());
        }
    }
    let Ok(place) = u32::try_from(cookie) else { return Ok(()) };
    for (place, name, id) in directory.behind(place) {
        if !listing.has_room(name.len()) {
            break;
        }
        let node = tree.node(id)?;
        let listed = Listed { ino: id.0, cookie: place.into(), kind: kind(node.body.kind()), name };
        let entry = listing.wants_nodes().then(|| entry(node));
        if listing.add(&listed, entry.as_ref()) && entry.is_some() {
            tree.refer(id);
        }
    }
    Ok(())
}

fn spot(parent: NodeId, name: Name<'_>) -> Spot<'_> {
    Spot { parent, name: name.as_bytes() }
}

fn stat(node: &Node) -> Stat {
    Stat { attributes: node.attributes(), valid: VALID }
}

fn entry(node: &Node) -> Entry {
    Entry { node: node.id, generation: 0, valid: VALID, stat: stat(node) }
}
