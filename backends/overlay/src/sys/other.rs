//! Space of files where the system gives none back from within a file.

use std::os::fd::BorrowedFd;

/// Has a range read as zeroes.
pub(crate) fn punch(file: BorrowedFd<'_>, offset: u64, len: u64) -> rustix::io::Result<()> {
    crate::store::clear(file, offset, len)
}

/// No space is kept.
pub(crate) fn reserve(_: BorrowedFd<'_>, _: u64, _: u64) -> rustix::io::Result<()> {
    Ok(())
}
