//! Disk contents: a list of [`Segment`]s as one disk, and the composite disk that shows many layer files as one
//! partitioned disk.
//!
//! ```text
//! composite::plan(lengths) ──▶ Plan ──with the files──▶ Vec<Segment> ──▶ Disk (virtio::blk::Blocks)
//! ```
//!
//! Not here: the virtio protocol (`virtio::blk`), the contents of files, and opening them.

pub mod composite;
mod segments;

use std::io;
use std::os::fd::OwnedFd;

pub use segments::{Disk, DiskError};

/// A run of a disk's contents. A disk is a list of segments, in order.
#[derive(Debug)]
pub enum Segment {
    /// A part of a file.
    File {
        /// The file, open for the operations that the disk allows.
        file: OwnedFd,
        /// First byte of the part.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Literal bytes, read-only (partition tables).
    Bytes(Vec<u8>),
    /// Zeroes, read-only (padding).
    Zeroes(u64),
}

impl Segment {
    /// The same segment for another disk, which shares the open file.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::File { file, offset, len } => {
                Self::File { file: file.try_clone()?, offset: *offset, len: *len }
            }
            Self::Bytes(bytes) => Self::Bytes(bytes.clone()),
            Self::Zeroes(len) => Self::Zeroes(*len),
        })
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } | Self::Zeroes(len) => *len,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Whether the segment adds nothing to a disk.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
