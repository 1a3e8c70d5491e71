//! The seam between the protocol and whoever has the files: a provider, or a layer before one (rules, events, quotas).
//!
//! Twelve verbs; what answers with the same thing is one verb, so that a layer looks at an enum and passes it on.

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

    /// Takes a name from a directory, or gives it to another one.
    fn names(&self, context: &Context<'_>, parent: NodeId, change: NameChange<'_>) -> Result<()>;

    /// Tells a file's attributes, changed or as they are. `handle` is that of a file that the asking program has open.
    fn attributes(
        &self,
        context: &Context<'_>,
        node: NodeId,
        handle: Option<Handle>,
        change: Option<&SetAttributes>,
    ) -> Result<Stat>;

    /// Opens a file or a directory.
    fn open(&self, context: &Context<'_>, node: NodeId, opening: Opening) -> Result<Opened>;

    /// Makes and opens a file: under a name, or one that has no name yet.
    fn create(
        &self,
        context: &Context<'_>,
        parent: NodeId,
        name: Option<Name<'_>>,
        creation: Creation,
    ) -> Result<(Entry, Opened)>;

    /// Acts on the contents of an open file; returns how many bytes it moved, or where it found what it looked for.
    fn data(&self, context: &Context<'_>, node: NodeId, handle: Handle, act: Data<'_>) -> Result<u64>;

    /// Lists an open directory behind `cookie`: that of an entry listed before, or 0.
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

    /// Acts on extended attributes; returns a value or a list of names, each with its NUL, and for a change nothing.
    fn xattr(&self, context: &Context<'_>, node: NodeId, act: Xattr<'_>) -> Result<Vec<u8>>;

    /// The state of the file system that a node is on.
    fn statistics(&self, context: &Context<'_>, node: NodeId) -> Result<Statistics>;

    /// Has what was written stored for good.
    fn sync(&self, context: &Context<'_>, node: NodeId, what: Sync) -> Result<()>;

    /// Hears what the kernel no longer needs. It may say so of what it never had.
    fn let_go(&self, node: NodeId, gone: Gone);
}

/// A node's number, by which the kernel speaks of a file that it was told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root directory: there without having been looked up.
    pub const ROOT: Self = Self(fuse_abi::linux::FUSE_ROOT_ID);
}

/// The number of something open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u64);

/// On whose behalf the guest's kernel asks. It has checked what they may; these are for what they make.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Thread.
    pub pid: u32,
    /// More about the asker, and about what is made.
    pub extensions: Extensions<'a>,
}

/// How an entry comes to be.
#[derive(Debug, Clone, Copy)]
pub enum How<'a> {
    /// The name is there.
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
        /// Where it leads.
        target: LinkTarget<'a>,
    },
    /// A further name for a file that is there.
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

/// The fate of a file whose name another one gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameHow {
    /// The file loses the name.
    Replace,
    /// The file keeps the name: an error.
    Keep,
    /// The file gets the other one's name.
    Exchange,
}

/// The use that an open file may be put to.
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
    /// How a file is opened, besides its access.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct OpenFlags: u32 {
        /// The file's contents go.
        const TRUNCATE = 1;
        /// Each write goes to the end.
        const APPEND = 1 << 1;
        /// Each write is stored for good.
        const SYNC = 1 << 2;
        /// Each write is stored for good, but not the times.
        const DATA_SYNC = 1 << 3;
        /// With [`TRUNCATE`](Self::TRUNCATE): privileges of the file go, as with [`SetAttributes::kill_privileges`].
        const KILL_PRIVILEGES = 1 << 4;
    }
}

/// A file or a directory that is opened.
#[derive(Debug, Clone, Copy)]
pub enum Opening {
    /// A file that is there.
    File {
        /// For what.
        access: Access,
        /// How.
        flags: OpenFlags,
    },
    /// A directory, to be listed.
    Directory,
}

/// A file that is made and opened.
#[derive(Debug, Clone, Copy)]
pub struct Creation {
    /// Special bits and permissions, of which the umask's are gone. The handle is as writable as asked even if they
    /// forbid writing.
    pub mode: u32,
    /// For what it is opened.
    pub access: Access,
    /// How it is opened.
    pub flags: OpenFlags,
    /// A file that is there is an error.
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
        /// Where in the file.
        offset: u64,
        /// The room to fill.
        into: Sink<'a>,
    },
    /// Stores `from` at `offset`; returns how many bytes.
    Write {
        /// Where in the file.
        offset: u64,
        /// The bytes to store.
        from: Source<'a>,
        /// How.
        how: WriteHow,
    },
    /// Changes the space that a range of the file takes; returns nothing.
    Allocate {
        /// Where the range begins.
        offset: u64,
        /// Bytes of the range; never 0.
        len: u64,
        /// How.
        how: Allocation,
    },
    /// Returns the offset, from `offset` on, of what is looked for.
    Seek {
        /// Where to begin.
        offset: u64,
        /// The kind of place to look for.
        what: Seek,
    },
    /// Copies to another open file; returns how many bytes.
    Copy {
        /// Where from.
        offset: u64,
        /// The other file's node.
        to_node: NodeId,
        /// The other file.
        to: Handle,
        /// Where to.
        to_offset: u64,
        /// Bytes, at most as many as one request may move.
        len: u64,
    },
}

bitflags::bitflags! {
    /// How a write is done.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct WriteHow: u32 {
        /// To the file's end, wherever the kernel thinks that it is.
        const APPEND = 1;
        /// Privileges of the file go, as with [`SetAttributes::kill_privileges`].
        const KILL_PRIVILEGES = 1 << 1;
        /// From pages that the kernel kept: of no program in particular, and later than its write.
        const DELAYED = 1 << 2;
    }
}

/// The fate of the space of a range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// The space is taken.
    Reserve {
        /// The file stays as long as it is.
        keep_size: bool,
    },
    /// The space is given back, and the range reads as zeroes; the file stays as long as it is.
    Punch,
    /// The space is taken, and the range reads as zeroes.
    Zero {
        /// The file stays as long as it is.
        keep_size: bool,
    },
}

/// A kind of place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// Bytes that are stored.
    Data,
    /// A hole, such as the file's end.
    Hole,
}

/// Acts on the extended attributes of a file.
#[derive(Debug, Clone, Copy)]
pub enum Xattr<'a> {
    /// Tells a value.
    Get(XattrName<'a>),
    /// Tells the names.
    List,
    /// Sets a value.
    Set {
        /// Of this name.
        name: XattrName<'a>,
        /// To this: at most [`MAX_XATTR_LEN`](crate::MAX_XATTR_LEN) bytes.
        value: &'a [u8],
        /// Whether there may be one, or has to be.
        how: XattrSet,
    },
    /// Takes a value away.
    Remove(XattrName<'a>),
}

/// Whether an attribute that is set has to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrSet {
    /// The attribute may be there.
    Any,
    /// The attribute must not be there.
    Create,
    /// The attribute must be there.
    Replace,
}

/// A thing that is stored for good.
#[derive(Debug, Clone, Copy)]
pub enum Sync {
    /// An open file.
    File {
        /// The file's handle.
        handle: Handle,
        /// Times need not be.
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
