//! Disk contents: raw files, and the composite disk that shows many layer files as one partitioned disk.

use std::os::fd::OwnedFd;

/// A run of a disk's contents. A disk is a list of them, in order.
#[derive(Debug)]
pub enum Segment {
    /// A part of a file.
    File {
        /// Open for what the disk allows.
        file: OwnedFd,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// These bytes, read-only (partition tables).
    Bytes(Vec<u8>),
    /// Zeroes, read-only (padding).
    Zeroes(u64),
}
