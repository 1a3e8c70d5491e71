//! Several file systems as one: a directory that cannot be changed, in which each has an entry, its number.
//!
//! Each entry that is a directory is a mount of its own for the kernel that asks, so nothing is renamed or linked from one to
//! another; an entry may be a file, too ([`crate::OneFile`]). The file systems' own numbers of nodes are kept; that of the
//! file system comes in front.

use std::time::Duration;

use fuse::{
    Attributes, Cache, Context, Creation, Data, Entry, Errno, FileSystem, Gone, Handle, How, Listed, Listing,
    Name, NameChange, NodeId, Opened, Opening, Result, SetAttributes, Stat, Statistics, Sync, Xattr,
};

use crate::sys::Kind;

/// Bits of a node's number that are its file system's own.
const OWN_BITS: u32 = 48;

/// Type and permissions of the directory.
const ROOT_MODE: u32 = 0o040_555;

/// How long the kernel may believe what it was told of the directory, which never changes.
const ROOT_VALID: Duration = Duration::from_secs(3600);

/// See the module.
pub struct Router {
    mounts: Vec<Box<dyn FileSystem>>,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").field("mounts", &self.mounts.len()).finish()
    }
}

/// The meaning of a node's number.
enum Place<'a> {
    /// The directory itself.
    Root,
    /// A node of a file system.
    In(Mount<'a>),
}

/// A node of a file system.
struct Mount<'a> {
    number: usize,
    files: &'a dyn FileSystem,
    node: NodeId,
}

impl Mount<'_> {
    /// The bits in front of the numbers of a directory's nodes.
    fn bits(&self) -> u64 {
        u64::try_from(self.number + 1).unwrap_or(u64::MAX) << OWN_BITS
    }

    /// The number by which the kernel knows a node of the same file system.
    fn number_of(&self, node: NodeId) -> Result<NodeId> {
        if node.0 >> OWN_BITS == 0 { Ok(NodeId(self.bits() | node.0)) } else { Err(Errno::ENOSPC) }
    }

    /// An entry as the kernel is told of it.
    fn told(&self, entry: Entry) -> Result<Entry> {
        let mut told = entry;
        told.node = self.number_of(entry.node).inspect_err(|_| {
            // The kernel will not know that it has a reference.
            self.files.let_go(entry.node, Gone::Lookups(1));
        })?;
        Ok(told)
    }

    /// A node that has to be of the same file system.
    fn sibling(&self, router: &Router, node: NodeId) -> Result<NodeId> {
        match router.place(node)? {
            Place::In(other) if other.number == self.number => Ok(other.node),
            Place::In(_) | Place::Root => Err(Errno::EXDEV),
        }
    }
}

impl Router {
    /// A directory with these entries, from 0 on.
    #[must_use]
    pub fn new(mounts: Vec<Box<dyn FileSystem>>) -> Self {
        Self { mounts }
    }

    fn place(&self, node: NodeId) -> Result<Place<'_>> {
        if node == NodeId::ROOT {
            return Ok(Place::Root);
        }
        let number = usize::try_from(node.0 >> OWN_BITS).ok().and_then(|number| number.checked_sub(1));
        let number = number.ok_or(Errno::ESTALE)?;
        let files = self.mounts.get(number).ok_or(Errno::ESTALE)?.as_ref();
        Ok(Place::In(Mount { number, files, node: NodeId(node.0 & ((1 << OWN_BITS) - 1)) }))
    }

    /// A node that is not the directory; for that the answer is `errno`.
    fn in_mount(&self, node: NodeId, errno: Errno) -> Result<Mount<'_>> {
        match self.place(node)? {
            Place::Root => Err(errno),
            Place::In(mount) => Ok(mount),
        }
    }

    /// The root of the file system that has this name.
    fn named(&self, context: &Context<'_>, name: Name<'_>) -> Result<Entry> {
        let named = |number: &usize| number.to_string().as_bytes() == name.as_bytes();
        let number = (0..self.mounts.len()).find(named).ok_or(Errno::ENOENT)?;
        let files = self.mounts.get(number).ok_or(Errno::ENOENT)?.as_ref();
        let mut stat = files.attributes(context, NodeId::ROOT, None, None)?;
        stat.attributes.submount = Kind::of_mode(stat.attributes.mode) == Kind::Directory;
        let mount = Mount { number, files, node: NodeId::ROOT };
        Ok(Entry { node: mount.number_of(NodeId::ROOT)?, generation: 0, valid: ROOT_VALID, stat })
    }

    fn root(&self) -> Stat {
        let links = u32::try_from(self.mounts.len()).unwrap_or(u32::MAX).saturating_add(2);
        let attributes =
            Attributes { ino: 1, mode: ROOT_MODE, links, block_size: 4096, ..Attributes::default() };
        Stat { attributes, valid: ROOT_VALID }
    }

    /// Lists the directory; a cookie is the number of the next entry.
    fn list_root(&self, context: &Context<'_>, cookie: u64, listing: &mut Listing<'_>) {
        let first = usize::try_from(cookie).unwrap_or(usize::MAX);
        for (number, files) in self.mounts.iter().enumerate().skip(first) {
            let next = u64::try_from(number + 1).unwrap_or(u64::MAX);
            let name = number.to_string();
            // An entry that cannot tell its type is listed without one.
            let stat = files.attributes(context, NodeId::ROOT, None, None);
            let kind = stat.map_or(0, |stat| stat.attributes.kind());
            let listed = Listed { ino: next + 1, cookie: next, kind, name: name.as_bytes() };
            if !listing.add(&listed, None) {
                return;
            }
        }
    }
}

impl FileSystem for Router {
    fn entry(&self, context: &Context<'_>, parent: NodeId, name: Name<'_>, how: How<'_>) -> Result<Entry> {
        match (self.place(parent)?, how) {
            (Place::Root, How::Existing) => self.named(context, name),
            (Place::Root, _) => Err(Errno::EROFS),
            (Place::In(mount), how) => {
                let how = match how {
                    How::HardLink { node } => How::HardLink { node: mount.sibling(self, node)? },
                    other => other,
                };
                mount.told(mount.files.entry(context, mount.node, name, how)?)
            }
        }
    }

    fn names(&self, context: &Context<'_>, parent: NodeId, change: NameChange<'_>) -> Result<()> {
        let mount = self.in_mount(parent, Errno::EROFS)?;
        let change = match change {
            NameChange::Rename { from, to_parent, to, how } => {
                NameChange::Rename { from, to_parent: mount.sibling(self, to_parent)?, to, how }
            }
            other => other,
        };
        mount.files.names(context, mount.node, change)
    }

    fn attributes(
        &self,
        context: &Context<'_>,
        node: NodeId,
        handle: Option<Handle>,
        change: Option<&SetAttributes>,
    ) -> Result<Stat> {
        match self.place(node)? {
            Place::Root if change.is_some() => Err(Errno::EROFS),
            Place::Root => Ok(self.root()),
            Place::In(mount) => mount.files.attributes(context, mount.node, handle, change),
        }
    }

    fn open(&self, context: &Context<'_>, node: NodeId, opening: Opening) -> Result<Opened> {
        match (self.place(node)?, opening) {
            (Place::Root, Opening::File { .. }) => Err(Errno::EISDIR),
            (Place::Root, Opening::Directory) => Ok(Opened { handle: Handle(0), cache: Cache::empty() }),
            (Place::In(mount), opening) => mount.files.open(context, mount.node, opening),
        }
    }

    fn create(
        &self,
        context: &Context<'_>,
        parent: NodeId,
        name: Option<Name<'_>>,
        creation: Creation,
    ) -> Result<(Entry, Opened)> {
        let mount = self.in_mount(parent, Errno::EROFS)?;
        let (entry, opened) = mount.files.create(context, mount.node, name, creation)?;
        Ok((mount.told(entry)?, opened))
    }

    fn data(&self, context: &Context<'_>, node: NodeId, handle: Handle, act: Data<'_>) -> Result<u64> {
        let mount = self.in_mount(node, Errno::EBADF)?;
        let act = match act {
            Data::Copy { offset, to_node, to, to_offset, len } => {
                Data::Copy { offset, to_node: mount.sibling(self, to_node)?, to, to_offset, len }
            }
            other => other,
        };
        mount.files.data(context, mount.node, handle, act)
    }

    fn list(
        &self,
        context: &Context<'_>,
        node: NodeId,
        handle: Handle,
        cookie: u64,
        listing: &mut Listing<'_>,
    ) -> Result<()> {
        match self.place(node)? {
            Place::Root => {
                self.list_root(context, cookie, listing);
                Ok(())
            }
            Place::In(mount) => {
                listing.mark_nodes(mount.bits());
                mount.files.list(context, mount.node, handle, cookie, listing)
            }
        }
    }

    fn read_link(&self, context: &Context<'_>, node: NodeId) -> Result<Vec<u8>> {
        let mount = self.in_mount(node, Errno::EINVAL)?;
        mount.files.read_link(context, mount.node)
    }

    fn xattr(&self, context: &Context<'_>, node: NodeId, act: Xattr<'_>) -> Result<Vec<u8>> {
        match (self.place(node)?, act) {
            (Place::Root, Xattr::Get(_)) => Err(Errno::ENODATA),
            (Place::Root, Xattr::List) => Ok(Vec::new()),
            (Place::Root, Xattr::Set { .. } | Xattr::Remove(_)) => Err(Errno::EROFS),
            (Place::In(mount), act) => mount.files.xattr(context, mount.node, act),
        }
    }

    fn statistics(&self, context: &Context<'_>, node: NodeId) -> Result<Statistics> {
        match self.place(node)? {
            Place::Root => Ok(Statistics { block_size: 4096, name_len: 255, ..Statistics::default() }),
            Place::In(mount) => mount.files.statistics(context, mount.node),
        }
    }

    fn sync(&self, context: &Context<'_>, node: NodeId, what: Sync) -> Result<()> {
        match (self.place(node)?, what) {
            (Place::Root, Sync::All) => {
                self.mounts.iter().try_for_each(|files| files.sync(context, NodeId::ROOT, what))
            }
            (Place::Root, Sync::Directory { .. }) => Ok(()),
            (Place::Root, Sync::File { .. }) => Err(Errno::EBADF),
            (Place::In(mount), what) => mount.files.sync(context, mount.node, what),
        }
    }

    fn let_go(&self, node: NodeId, gone: Gone) {
        match (self.place(node), gone) {
            (_, Gone::Everything) => self.mounts.iter().for_each(|files| files.let_go(NodeId::ROOT, gone)),
            (Ok(Place::In(mount)), gone) => mount.files.let_go(mount.node, gone),
            (Ok(Place::Root) | Err(_), _) => {}
        }
    }
}
