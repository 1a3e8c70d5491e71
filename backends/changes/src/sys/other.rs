//! Files on other systems.

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, Stat};

use crate::host::Facts;
use crate::{Base, Time};

/// The facts of a file: the one of a name in a directory, or with no name the directory itself.
pub(crate) fn facts(directory: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Facts> {
    let found: Stat = if name.is_empty() {
        rustix::fs::fstat(directory)?
    } else {
        rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?
    };
    let time = |seconds, nanoseconds: i64| Time {
        seconds,
        nanoseconds: u32::try_from(nanoseconds).unwrap_or_default(),
    };
    let base = Base {
        mode: found.st_mode.into(),
        ino: found.st_ino,
        size: u64::try_from(found.st_size).unwrap_or_default(),
        mtime: time(found.st_mtime, found.st_mtime_nsec),
        ctime: time(found.st_ctime, found.st_ctime_nsec),
    };
    Ok(Facts { base, device: u64::from(found.st_dev.unsigned_abs()) })
}

/// No file shares blocks with another one.
pub(crate) fn clone(_: &File, _: &File) -> bool {
    false
}

/// Takes hold of the file of a name in a directory, if it may be read.
pub(crate) fn pin(directory: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

/// Sets the mode of a file that is [held](pin).
pub(crate) fn set_mode(file: BorrowedFd<'_>, mode: Mode) -> rustix::io::Result<()> {
    rustix::fs::fchmod(file, mode)
}

/// Writes every file system to its disk: there is no request for one.
pub(crate) fn sync(_: BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::fs::sync();
    Ok(())
}

/// Does nothing: tests run as an ordinary user here.
#[cfg(test)]
pub(crate) fn give_up_rights_of_root() {}
