//! EROFS images, written in one pass: file data goes to the output as it comes, and only names stay in memory.
//!
//! ```text
//! block 0      superblock at 1024, the root inode right after it (its number is 16 bits wide on disk)
//! block 1…     runs of file data, and between them metadata runs: inodes with extended attributes and short tails
//! last         directory inodes, then directory blocks
//! ```
//!
//! The format is that of the kernel's `fs/erofs/erofs_fs.h`: uncompressed, 4 KiB blocks, extended inodes, readable by
//! Linux 5.15 and later. The same calls make the same bytes. Blocks of zeroes are left as holes in the output file.
//!
//! Such an image can be read again ([`Image`]); tests read it whole (feature `reader`). Not here: compression, shared
//! extended attributes, extra devices, and any notion of a layer or a tar.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod directory;
mod error;
mod finish;
mod format;
mod image;
#[cfg(feature = "reader")]
pub mod reader;
mod sink;
mod tree;
mod writer;
mod xattr;

pub use error::{Error, Result};
pub use image::{Data, DirEntry, Image, Inode, InodeKind, Input, ReadError};
pub use sink::Output;
pub use tree::{DirId, Entry, NodeId, NodeKind, Tree};
pub use writer::{Extent, Options, Summary, Writer};

use std::collections::BTreeMap;

/// Size of a block, and the unit of an image's length.
pub const BLOCK_SIZE: usize = 4096;

/// Longest name of a directory entry (Linux `NAME_MAX`).
pub const MAX_NAME_LEN: usize = 255;

/// Longest symbolic link target (Linux `PATH_MAX`, less the terminating NUL).
pub const MAX_SYMLINK_LEN: usize = 4095;

/// Attributes that every inode has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with set-user-ID, set-group-ID and sticky: the low 12 bits of `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Timestamp,
    /// Extended attributes by full name, such as `user.comment`.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A point in time since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// Nanoseconds after the whole seconds, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// Inodes that are neither file, directory nor symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Character device.
    CharDevice {
        /// Major number, 12 bits.
        major: u32,
        /// Minor number, 20 bits.
        minor: u32,
    },
    /// Block device.
    BlockDevice {
        /// Major number, 12 bits.
        major: u32,
        /// Minor number, 20 bits.
        minor: u32,
    },
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
}

/// Whether an extended attribute of this name can be stored: EROFS has room for certain prefixes only.
pub fn can_store_xattr(name: &[u8]) -> bool {
    xattr::split_name(name).is_some()
}
