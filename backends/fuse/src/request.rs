//! A decoded request.

use zerocopy::FromBytes;

use crate::file_system::{
    Context, Creation, Data, Gone, Handle, How, NameChange, NodeId, Opening, Sync, WriteHow, Xattr,
};
use crate::negotiate::Init;
use crate::{Errno, Name, SetAttributes};

/// A valid request, whose nodes and handles may still not exist.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) node: NodeId,
    pub(crate) context: Context<'a>,
    pub(crate) operation: Operation<'a>,
}

/// The act that is asked for.
#[derive(Debug)]
pub(crate) enum Operation<'a> {
    Init(Init),
    Destroy,
    ForgetMany(Forgets<'a>),
    Entry { name: Name<'a>, how: How<'a> },
    Names(NameChange<'a>),
    Stat { handle: Option<Handle>, form: StatForm },
    Change { handle: Option<Handle>, change: SetAttributes },
    Open(Opening),
    Create { name: Option<Name<'a>>, creation: Creation },
    Use { handle: Handle, act: Act<'a> },
    ReadLink,
    SetXattr(Xattr<'a>),
    GetXattr { act: Xattr<'a>, room: usize },
    Statistics,
    Sync(Sync),
    LetGo(Gone),
    NotifyReply,
    Unserved(Unserved),
}

/// The act that is asked for on something open.
#[derive(Debug)]
pub(crate) enum Act<'a> {
    Read {
        offset: u64,
        len: usize,
    },
    Write {
        offset: u64,
        len: usize,
        how: WriteHow,
    },
    /// An act that moves no byte through the request or its reply.
    Contents(Data<'a>),
    List {
        cookie: u64,
        len: usize,
        nodes: bool,
    },
}

/// The form in which attributes are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatForm {
    /// The form of GETATTR's reply.
    Plain,
    /// The form of STATX's reply.
    Extended,
}

/// Requests that no file system is asked to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unserved {
    /// FLUSH, at each close(2): nothing waits for it while locks are the guest kernel's own, and it saves a request in
    /// ten.
    Flush,
    /// ACCESS: the guest's kernel checks permissions.
    Access,
    /// GETLK, SETLK, SETLKW: locks are the guest kernel's own. A wait could not be interrupted over virtio-fs.
    Lock,
    /// INTERRUPT: no request waits.
    Interrupt,
    /// IOCTL: a file here has none.
    Ioctl,
    /// POLL: a file here is always ready.
    Poll,
    /// BMAP: a file here has no blocks.
    Blocks,
    /// SETUPMAPPING, REMOVEMAPPING: there is no window of shared memory.
    Mapping,
    /// A request of another protocol, or of a later version.
    Unknown,
}

impl Unserved {
    /// The answer; after ENOSYS the kernel asks no more.
    pub(crate) fn errno(self) -> Errno {
        match self {
            Self::Ioctl => Errno::ENOTTY,
            Self::Flush
            | Self::Access
            | Self::Lock
            | Self::Interrupt
            | Self::Poll
            | Self::Blocks
            | Self::Mapping
            | Self::Unknown => Errno::ENOSYS,
        }
    }
}

/// Nodes to which the kernel gives up references, with the number of references.
#[derive(Clone, Copy)]
pub(crate) struct Forgets<'a>(pub(crate) &'a [u8]);

impl Forgets<'_> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (NodeId, u64)> {
        let size = size_of::<fuse_abi::linux::fuse_forget_one>();
        let one = |bytes| fuse_abi::linux::fuse_forget_one::read_from_bytes(bytes).ok();
        self.0.chunks_exact(size).filter_map(one).map(|one| (NodeId(one.nodeid), one.nlookup))
    }
}

impl std::fmt::Debug for Forgets<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
