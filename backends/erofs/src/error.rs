//! Why an image could not be written.

use std::io;

/// Result of writing an image.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The data of a file could not be read.
    #[error("reading file data: {0}")]
    Read(#[source] io::Error),
    /// The data of a file ended early.
    #[error("file data ends {missing} bytes early")]
    ShortData {
        /// How many bytes are missing.
        missing: u64,
    },
    /// The output could not be written.
    #[error("writing the image: {0}")]
    Write(#[source] io::Error),
    /// A name that no directory entry can have.
    #[error("{:?} is not a file name", String::from_utf8_lossy(.0))]
    Name(Vec<u8>),
    /// A symbolic link's target is empty, too long, or contains a NUL.
    #[error("symbolic link target of {0} bytes is not valid")]
    SymlinkTarget(usize),
    /// A device number does not fit into the format.
    #[error("device {major}:{minor} is out of range")]
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// An extended attribute of a kind that EROFS cannot store.
    #[error("extended attribute {:?} cannot be stored", String::from_utf8_lossy(.0))]
    XattrName(Vec<u8>),
    /// An extended attribute's value is over 65535 bytes.
    #[error("extended attribute value of {0} bytes is too long")]
    XattrValue(usize),
    /// The extended attributes of one inode together are too long.
    #[error("extended attributes of {0} bytes are too long for one inode")]
    XattrTotal(usize),
    /// Extents of a file overlap, are out of order or out of bounds.
    #[error("the extents of a sparse file are not ordered within its size")]
    Extents,
    /// A file is over the size that the format or the caller allows.
    #[error("a file of {0} bytes is too large")]
    FileSize(u64),
    /// The image would become larger than the caller allows.
    #[error("the image is over its limit of {limit} bytes")]
    ImageSize {
        /// The limit.
        limit: u64,
    },
    /// There are more inodes than are supported.
    #[error("more than {} inodes", crate::tree::MAX_INODES)]
    Inodes,
}
