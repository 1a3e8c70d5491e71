//! The seam between the protocol and the owner of the files: a provider, or a layer before one (rules, events, quotas).
//!
//! The trait has twelve verbs; calls with the same kind of answer are one verb, so that a layer looks at an enum and
//! passes it on.

use crate::{
    Attributes, Device, Entry, Extensions, LinkTarget, Listing, Name, Result, SetAttributes, Sink, Source,
    Stat, Statistics, XattrName,
};

/// Serves files. Several threads call at once.
///
/// Nodes, handles and cookies may be any number: of those that do not exist the answer is an error. No verb
/// has a default, so that a layer forgets none.
pub trait FileSystem: Send + std::marker::Sync {
    /// Finds or makes a name in a directory. The kernel then has one reference more to the entry's node.
    fn entry(&self, context: &Context<'_>, parent: NodeId, name: Name<'_>, how: How<'_>) -> Result<Entry>;

    /// Takes a name from a directory, or moves it to another one.
    fn names(&self, context: &Context<'_>, parent: NodeId, change: NameChange<'_>) -> Result<()>;

    /// Returns a file's attributes, after a change or as they are. `handle` is that of a file that the asking program
    /// has open.
    fn attributes(
        &self,
        context: &Context<'_>,
        node: NodeId,
        handle: Option<Handle>,
        change: Option<&SetAttributes>,
    ) -> Result<Stat>;

    /// Opens a file or a directory.
    fn open(&self, context: &Context<'_>, node: NodeId, opening: Opening) -> Result<Opened>;

    /// Makes and opens a file, under a name or without one.
    fn create(
        &self,
        context: &Context<'_>,
        parent: NodeId,
        name: Option<Name<'_>>,
        creation: Creation,
    ) -> Result<(Entry, Opened)>;

    /// Acts on the contents of an open file; returns the number of bytes that the act moved, or the place that it
    /// found.
    fn data(&self, context: &Context<'_>, node: NodeId, handle: Handle, act: Data<'_>) -> Result<u64>;

    /// Lists an open directory from `cookie` on: the cookie of an entry listed before, or 0.
    fn list(
        &self,
        context: &Context<'_>,
        node: NodeId,
        handle: Handle,
        cookie: u64,
        listing: &mut Listing<'_>,
    ) -> Result<()>;

    /// The target of a symbolic link.
    fn read_link(&self, context: &Context<'_>, node: NodeId) -> Result<Vec<u8>>;

    /// Acts on extended attributes; returns a value, or a list of names, each with its NUL, or for a change nothing.
    fn xattr(&self, context: &Context<'_>, node: NodeId, act: Xattr<'_>) -> Result<Vec<u8>>;

    /// The state of the file system that a node is on.
    fn statistics(&self, context: &Context<'_>, node: NodeId) -> Result<Statistics>;

    /// Stores written data for good.
    fn sync(&self, context: &Context<'_>, node: NodeId, what: Sync) -> Result<()>;

    /// Takes note of things that the kernel no longer needs. The kernel may name things that it never had.
    fn let_go(&self, node: NodeId, gone: Gone);
}

/// A node's number, by which the kernel speaks of a file that it was told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root directory, which the kernel has without a lookup.
    pub const ROOT: Self = Self(fuse_abi::linux::FUSE_ROOT_ID);
}

/// The number of an open file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u64);

/// The asker on whose behalf the guest's kernel makes a request. The kernel has checked the asker's permissions; these
/// fields serve for the files that the asker makes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Thread.
    pub pid: u32,
    /// More about the asker, and about the file that is made.
    pub extensions: Extensions<'a>,
}

/// The way in which an entry comes to be.
#[derive(Debug, Clone, Copy)]
pub enum How<'a> {
    /// The entry of an existing name.
    Existing,
    /// A new directory.
    Directory {
        /// Special bits and permissions.
        mode: u32,
    },
    /// A new file of any type but directory and link.
    Node {
        /// Type, special bits and permissions.
        mode: u32,
        /// The device that a device node stands for.
        device: Device,
    },
    /// A new symbolic link.
    SymbolicLink {
        /// The link's target.
        target: LinkTarget<'a>,
    },
    /// A further name for an existing file.
    HardLink {
        /// The file.
        node: NodeId,
    },
}

/// A change of names.
#[derive(Debug, Clone, Copy)]
pub enum NameChange<'a> {
    /// Takes the name of a file that is no directory.
    Unlink(Name<'a>),
    /// Takes the name of an empty directory.
    RemoveDirectory(Name<'a>),
    /// Gives a name away.
    Rename {
        /// The name.
        from: Name<'a>,
        /// The directory that the new name is in.
        to_parent: NodeId,
        /// The new name.
        to: Name<'a>,
        /// The fate of a file that has the new name.
        how: RenameHow,
    },
}

/// The fate of a file whose name another file gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameHow {
    /// The file loses the name.
    Replace,
    /// The file keeps the name: an error.
    Keep,
    /// The file gets the other one's name.
    Exchange,
}

/// The kind of access that an open file allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Reading and writing.
    ReadWrite,
}

bitflags::bitflags! {
    /// The ways in which a file is opened, besides its access.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct OpenFlags: u32 {
        /// The file's contents are dropped.
        const TRUNCATE = 1;
        /// Each write goes to the end.
        const APPEND = 1 << 1;
        /// Each write is stored for good.
        const SYNC = 1 << 2;
        /// Each write is stored for good, but the times need not be.
        const DATA_SYNC = 1 << 3;
        /// With [`TRUNCATE`](Self::TRUNCATE): the file's privileges are cleared, as with
        /// [`SetAttributes::kill_privileges`].
        const KILL_PRIVILEGES = 1 << 4;
    }
}

/// A file or a directory that is opened.
#[derive(Debug, Clone, Copy)]
pub enum Opening {
    /// An existing file.
    File {
        /// The kind of access.
        access: Access,
        /// Further flags.
        flags: OpenFlags,
    },
    /// A directory, to be listed.
    Directory,
}

/// The way in which a file is made and opened.
#[derive(Debug, Clone, Copy)]
pub struct Creation {
    /// Special bits and permissions, after the umask has been applied. The handle is as writable as asked even if the
    /// permissions forbid writing.
    pub mode: u32,
    /// The kind of access.
    pub access: Access,
    /// Further flags.
    pub flags: OpenFlags,
    /// Whether a file that already exists is an error.
    pub exclusive: bool,
}

bitflags::bitflags! {
    /// The parts of an open file that the kernel may keep; a bit is the wire's.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct Cache: u32 {
        /// The kernel keeps nothing: each read and write arrives here.
        const DIRECT = fuse_abi::linux::FOPEN_DIRECT_IO;
        /// The kernel keeps the pages of an earlier opening.
        const KEEP = fuse_abi::linux::FOPEN_KEEP_CACHE;
        /// The kernel keeps a directory's list.
        const DIRECTORY = fuse_abi::linux::FOPEN_CACHE_DIR;
    }
}

/// Something that is open until it is [let go](FileSystem::let_go).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// The handle's number.
    pub handle: Handle,
    /// The parts of the file that the kernel may keep.
    pub cache: Cache,
}

/// Acts on the contents of an open file. No offset is over 2^63 - 1, nor is the end of a range.
#[derive(Debug, Clone, Copy)]
pub enum Data<'a> {
    /// Fills `into` from `offset` on, up to the file's end; returns how many bytes.
    Read {
        /// Offset in the file.
        offset: u64,
        /// The room to fill.
        into: Sink<'a>,
    },
    /// Stores `from` at `offset`; returns how many bytes.
    Write {
        /// Offset in the file.
        offset: u64,
        /// The bytes to store.
        from: Source<'a>,
        /// Further flags.
        how: WriteHow,
    },
    /// Changes the space that a range of the file takes; returns nothing.
    Allocate {
        /// Start of the range.
        offset: u64,
        /// Bytes of the range; never 0.
        len: u64,
        /// The kind of change.
        how: Allocation,
    },
    /// Returns the offset of the next such place, from `offset` on.
    Seek {
        /// The offset at which to begin.
        offset: u64,
        /// The kind of place to look for.
        what: Seek,
    },
    /// Copies to another open file; returns how many bytes.
    Copy {
        /// Offset in this file.
        offset: u64,
        /// The other file's node.
        to_node: NodeId,
        /// The other file's handle.
        to: Handle,
        /// Offset in the other file.
        to_offset: u64,
        /// Bytes, at most as many as one request may move.
        len: u64,
    },
}

bitflags::bitflags! {
    /// The ways in which a write is done.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct WriteHow: u32 {
        /// The write goes to the file's end, wherever the kernel thinks that is.
        const APPEND = 1;
        /// The file's privileges are cleared, as with [`SetAttributes::kill_privileges`].
        const KILL_PRIVILEGES = 1 << 1;
        /// The data come from pages that the kernel cached, not from a particular program, and later than the program's
        /// write.
        const DELAYED = 1 << 2;
    }
}

/// The fate of the space of a range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// The space is taken.
    Reserve {
        /// Whether the file keeps its length.
        keep_size: bool,
    },
    /// The space is given back, and the range reads as zeroes; the file keeps its length.
    Punch,
    /// The space is taken, and the range reads as zeroes.
    Zero {
        /// Whether the file keeps its length.
        keep_size: bool,
    },
}

/// A kind of place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// Bytes that are stored.
    Data,
    /// A hole, which includes the file's end.
    Hole,
}

/// Acts on the extended attributes of a file.
#[derive(Debug, Clone, Copy)]
pub enum Xattr<'a> {
    /// Returns a value.
    Get(XattrName<'a>),
    /// Returns the names.
    List,
    /// Sets a value.
    Set {
        /// The attribute's name.
        name: XattrName<'a>,
        /// The new value: at most [`MAX_XATTR_LEN`](crate::MAX_XATTR_LEN) bytes.
        value: &'a [u8],
        /// Whether the attribute may or must already exist.
        how: XattrSet,
    },
    /// Removes an attribute.
    Remove(XattrName<'a>),
}

/// Whether an attribute that is set may or must already exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrSet {
    /// The attribute may exist.
    Any,
    /// The attribute must not exist.
    Create,
    /// The attribute must exist.
    Replace,
}

/// A thing that is stored for good.
#[derive(Debug, Clone, Copy)]
pub enum Sync {
    /// An open file.
    File {
        /// The file's handle.
        handle: Handle,
        /// Whether times need not be stored.
        data_only: bool,
    },
    /// An open directory.
    Directory {
        /// The directory's handle.
        handle: Handle,
    },
    /// Everything of the mount.
    All,
}

/// A thing that the kernel no longer needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// References to the node, as many as this.
    Lookups(u64),
    /// An open file.
    File(Handle),
    /// An open directory.
    Directory(Handle),
    /// Everything but the root: the mount is gone. Requests that other threads are serving may still end.
    Everything,
}

impl Attributes {
    /// The type of file, as a directory's entry has it (`DT_*`).
    pub fn kind(&self) -> u8 {
        (self.mode >> 12 & 0xf) as u8
    }
}
