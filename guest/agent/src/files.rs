//! Files of an untrusted root, read and written with limits and without being led into devices or pipes.

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

/// The contents of a regular file of at most `limit` bytes.
pub(crate) fn read_regular(path: &str, limit: usize) -> Result<Vec<u8>, Errno> {
    // O_NONBLOCK: opening a FIFO must not wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let status = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(status.st_size).unwrap_or(0).min(limit) + 1);
    loop {
        if bytes.len() > limit {
            return Err(Errno::FBIG);
        }
        if bytes.len() == bytes.capacity() {
            bytes.reserve(4096);
        }
        if rustix::io::retry_on_intr(|| rustix::io::read(&file, rustix::buffer::spare_capacity(&mut bytes)))?
            == 0
        {
            return Ok(bytes);
        }
    }
}

/// Replaces `path` by a new regular file, mode 0644. What was there (a symbolic link, a FIFO) is not followed.
pub(crate) fn replace(path: &str, contents: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?;
    write_all(&file, contents)
}

/// Writes to a file that is there already (of procfs, sysfs, cgroupfs).
pub(crate) fn write_existing(path: &str, contents: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    write_all(&file, contents)
}

fn write_all(file: impl std::os::fd::AsFd, mut contents: &[u8]) -> Result<(), Errno> {
    while !contents.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, contents))?;
        contents = contents.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// Makes a directory unless there is one. A symbolic link does not count as one.
pub(crate) fn make_directory(path: &str, mode: u32) -> Result<(), Errno> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => {
            let status = rustix::fs::statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(status.st_mode) {
                FileType::Directory => Ok(()),
                FileType::Symlink => Err(Errno::LOOP),
                _ => Err(Errno::NOTDIR),
            }
        }
        Err(errno) => Err(errno),
    }
}
