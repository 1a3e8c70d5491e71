//! Files on Linux.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, chmodat, openat, statx};

use crate::host::Facts;
use crate::{Base, Time};

/// The facts of a file: the one of a name in a directory, or with no name the directory itself.
pub(crate) fn facts(directory: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Facts> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    let found = statx(directory, name, flags, StatxFlags::BASIC_STATS)?;
    let time = |time: rustix::fs::StatxTimestamp| Time { seconds: time.tv_sec, nanoseconds: time.tv_nsec };
    let base = Base {
        mode: found.stx_mode.into(),
        ino: found.stx_ino,
        size: found.stx_size,
        mtime: time(found.stx_mtime),
        ctime: time(found.stx_ctime),
    };
    Ok(Facts { base, device: u64::from(found.stx_dev_major) << 32 | u64::from(found.stx_dev_minor) })
}

/// Has an empty file share the blocks of another one, if the file system can.
pub(crate) fn clone(from: &File, to: &File) -> bool {
    rustix::fs::ioctl_ficlone(to, from).is_ok()
}

/// Takes hold of the file of a name in a directory, whatever it is and whoever may read it.
pub(crate) fn pin(directory: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Sets the mode of a file that is [held](pin).
pub(crate) fn set_mode(file: BorrowedFd<'_>, mode: Mode) -> rustix::io::Result<()> {
    // `fchmod` wants a file that is open, and `fchmodat2` a kernel of 2023.
    chmodat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), mode, AtFlags::empty())
}

/// Writes the file system of a file to its disk.
pub(crate) fn sync(file: BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::fs::syncfs(file)
}

/// Takes from this thread what root may do to files beyond others, for tests.
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
pub(crate) fn give_up_rights_of_root() {
    let mut sets = rustix::thread::capabilities(None).unwrap();
    sets.effective = rustix::thread::CapabilitySet::empty();
    rustix::thread::set_capabilities(None, sets).unwrap();
}
