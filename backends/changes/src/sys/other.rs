//! Files on other systems.

use std::fs::File;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Stat};

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
