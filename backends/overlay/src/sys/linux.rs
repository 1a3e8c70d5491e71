//! Space of files on Linux.

use std::os::fd::BorrowedFd;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// Has a range read as zeroes, and its space given back.
pub(crate) fn punch(file: BorrowedFd<'_>, offset: u64, len: u64) -> rustix::io::Result<()> {
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, how, offset, len) {
        Err(Errno::OPNOTSUPP) => crate::store::clear(file, offset, len),
        result => result,
    }
}

/// Has space kept for a range, where the file system can. The file may become longer.
pub(crate) fn reserve(file: BorrowedFd<'_>, offset: u64, len: u64) -> rustix::io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), offset, len) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        result => result,
    }
}
