//! Files of an untrusted root, read and written with limits, and without opening devices or pipes.

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

/// Suffix for a directory that had to make way for a file.
const KEPT: &str = ".of-the-image";

/// Bytes read at once from a file of unknown length.
const LEAST_ROOM: usize = 4095;

/// The contents of a regular file of at most `limit` bytes.
pub(crate) fn read_regular(path: &str, limit: usize) -> Result<Vec<u8>, Errno> {
    // O_NONBLOCK: opening a FIFO must not wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let status = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    // Files of procfs have no length, and some of them give all their content in the first read or never.
    let length = usize::try_from(status.st_size).unwrap_or(0).min(limit).max(LEAST_ROOM);
    let mut bytes = Vec::with_capacity(length + 1);
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

/// Replaces `path` by a new regular file, mode 0644. A symbolic link or FIFO in its place is not followed.
pub(crate) fn replace(path: &str, contents: &[u8]) -> Result<(), Errno> {
    clear(path)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?;
    write_all(&file, contents)
}

/// Removes the file at `path`. A directory that is not empty, and may hold any number of files, is renamed instead.
fn clear(path: &str) -> Result<(), Errno> {
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno),
    }
    match rustix::fs::rmdir(path) {
        Err(Errno::NOTEMPTY) => {
            rustix::fs::renameat_with(CWD, path, CWD, format!("{path}{KEPT}"), RenameFlags::NOREPLACE)
        }
        removed => removed,
    }
}

/// Writes to an existing file (of procfs, sysfs, cgroupfs).
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

/// Whether `path` is a directory, or symbolic links lead from it to one.
pub(crate) fn leads_to_directory(path: &str) -> bool {
    let status = rustix::fs::stat(path);
    status.is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Directory)
}

/// Whether `path` is a symbolic link, and it leads to a directory.
pub(crate) fn is_link_to_directory(path: &str) -> bool {
    let status = rustix::fs::lstat(path);
    let link = status.is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Symlink);
    link && leads_to_directory(path)
}

/// Makes a directory unless there is one; a file of another type is replaced, a symbolic link too.
pub(crate) fn put_directory(path: &str, mode: u32) -> Result<(), Errno> {
    match make_directory(path, mode) {
        Err(Errno::LOOP | Errno::NOTDIR) => {
            rustix::fs::unlink(path)?;
            make_directory(path, mode)
        }
        made => made,
    }
}

/// Makes a directory unless there is one. A symbolic link does not count as one.
pub(crate) fn make_directory(path: &str, mode: u32) -> Result<(), Errno> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => {
            let status = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(status.st_mode) {
                FileType::Directory => Ok(()),
                FileType::Symlink => Err(Errno::LOOP),
                _ => Err(Errno::NOTDIR),
            }
        }
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn directories_take_the_place_of_anything_else() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        fs::create_dir(root.join("directory")).unwrap();
        fs::write(root.join("directory/file"), "").unwrap();
        symlink("directory", root.join("link")).unwrap();
        symlink("nothing", root.join("dangling")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        for (name, leads) in [
            ("directory", true),
            ("link", true),
            ("dangling", false),
            ("loop", false),
            ("file", false),
            ("new", false),
        ] {
            let path = root.join(name);
            let path = path.to_str().unwrap();
            assert_eq!(leads_to_directory(path), leads, "{name}");
            assert_eq!(is_link_to_directory(path), name == "link", "{name}");
            put_directory(path, 0o755).unwrap();
            assert!(fs::symlink_metadata(path).unwrap().is_dir(), "{name}");
        }
        assert!(root.join("directory/file").exists(), "what a link led to is left alone");
    }

    #[test]
    fn files_take_the_place_of_anything_else() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        fs::create_dir(root.join("empty")).unwrap();
        fs::create_dir_all(root.join("full/below")).unwrap();
        fs::write(root.join("file"), "old, and longer").unwrap();
        symlink("file", root.join("link")).unwrap();
        for name in ["empty", "full", "file", "link", "new"] {
            let path = root.join(name);
            replace(path.to_str().unwrap(), name.as_bytes()).unwrap();
            assert!(fs::symlink_metadata(&path).unwrap().is_file(), "{name}");
            assert_eq!(fs::read_to_string(&path).unwrap(), name);
        }
        assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "file", "a link is not followed");
        assert!(root.join("full.of-the-image/below").exists());
    }
}
