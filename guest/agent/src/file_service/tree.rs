//! The tree of files: making directories, removing, renaming.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{
    Act, CHECK_EVERY, PATH_LIMIT, Stop, Trying, guest_path, make_parents, permissions, refused, split,
};
use crate::stream::Stream;

/// Deepest tree that is removed at once. A path cannot name a deeper one (PATH_MAX), and each level takes a descriptor.
const DEPTH_LIMIT: usize = 2048;

/// Makes a directory.
pub(super) fn make_directory(path: &str, mode: u32, parents: bool) -> Act {
    let path = guest_path(path)?;
    if parents {
        make_parents(&path)?;
    }
    match rustix::fs::mkdir(path.as_c_str(), permissions(mode)) {
        Err(Errno::EXIST) if parents && is_directory(&path) => Ok(()),
        made => made.trying("make directory", &path),
    }
}

fn is_directory(path: &CStr) -> bool {
    let status = rustix::fs::stat(path);
    status.is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Directory)
}

/// Renames a file.
pub(super) fn rename(from: &str, to: &str) -> Act {
    let (from, to) = (guest_path(from)?, guest_path(to)?);
    rustix::fs::rename(from.as_c_str(), to.as_c_str()).map_err(|errno| {
        let (from, to) = (from.to_string_lossy(), to.to_string_lossy());
        refused(format_args!("rename {from} to {to}"), errno)
    })
}

/// Removes a file, a link, or a directory.
pub(super) fn remove(stream: Stream<'_>, path: &str, recursive: bool) -> Act {
    let path = guest_path(path)?;
    if !recursive {
        return remove_one(CWD, &path).trying("remove", &path);
    }
    let (above, name) = split(&path);
    // rm(1): such a directory would be emptied before the kernel refused to remove it.
    let refusal = match name {
        b"" => Some(Errno::BUSY),
        b"." | b".." => Some(Errno::INVAL),
        _ => None,
    };
    if let Some(errno) = refusal {
        return Err(errno).trying("remove", &path);
    }
    let (above, name) = (c_string(above), c_string(name));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::open(above.as_c_str(), flags, Mode::empty()).trying("remove", &path)?;
    // POSIX.1-2024 §4.16: a slash after a name means a directory; after a symbolic link, one that rmdir(2) refuses.
    if path.to_bytes().ends_with(b"/") {
        let status = rustix::fs::statat(&parent, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW);
        match FileType::from_raw_mode(status.trying("remove", &path)?.st_mode) {
            FileType::Directory => {}
            _ => return Err(Errno::NOTDIR).trying("remove", &path),
        }
    }
    match rustix::fs::unlinkat(&parent, name.as_c_str(), AtFlags::empty()) {
        Err(Errno::ISDIR) => Removal { stream, path: &path, parent, levels: Vec::new(), count: 0 }.run(name),
        removed => removed.trying("remove", &path),
    }
}

/// Removes a file or an empty directory.
fn remove_one(directory: impl AsFd, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => rustix::fs::unlinkat(&directory, name, AtFlags::REMOVEDIR),
        removed => removed,
    }
}

/// Bytes of a path that was a C string before.
fn c_string(bytes: &[u8]) -> CString {
    CString::new(bytes).unwrap_or_default()
}

/// The removal of a directory: depth first, from descriptor to descriptor, so that a directory that is moved or
/// replaced by a symbolic link meanwhile does not lead out of it.
struct Removal<'a> {
    stream: Stream<'a>,
    /// The path of the directory, for messages.
    path: &'a CStr,
    /// The directory's parent.
    parent: OwnedFd,
    /// The levels from the directory down to the current one.
    levels: Vec<Level>,
    count: usize,
}

struct Level {
    name: CString,
    entries: Dir,
    /// Whether an entry was removed since the directory was last read from its start.
    progress: bool,
}

impl Removal<'_> {
    fn run(mut self, name: CString) -> Act {
        self.descend(name)?;
        while let Some(level) = self.levels.last_mut() {
            match level.entries.read() {
                Some(entry) => {
                    let name = entry.map_err(|errno| self.refused(c"", errno))?.file_name().to_owned();
                    if name.as_c_str() != c"." && name.as_c_str() != c".." {
                        self.remove_entry(name)?;
                    }
                }
                None => self.ascend()?,
            }
        }
        Ok(())
    }

    /// Removes an entry of the lowest level, or goes down into it.
    fn remove_entry(&mut self, name: CString) -> Act {
        if self.count.is_multiple_of(CHECK_EVERY) {
            self.stream.check()?;
        }
        self.count += 1;
        let unlink = |directory| rustix::fs::unlinkat(directory, name.as_c_str(), AtFlags::empty());
        match self.lowest().and_then(unlink) {
            Ok(()) | Err(Errno::NOENT) => {
                self.progress();
                Ok(())
            }
            Err(Errno::ISDIR) => self.descend(name),
            Err(errno) => Err(self.refused(&name, errno)),
        }
    }

    fn descend(&mut self, name: CString) -> Act {
        if self.levels.len() >= DEPTH_LIMIT {
            return Err(self.refused(&name, Errno::NAMETOOLONG));
        }
        match self.lowest().and_then(|directory| open_directory(directory, &name)) {
            Ok(entries) => {
                self.levels.push(Level { name, entries, progress: false });
                Ok(())
            }
            // Another process was faster.
            Err(Errno::NOENT) => Ok(()),
            // A mount point cannot be removed, so the file system there is not emptied first.
            Err(Errno::XDEV) => Err(self.refused(&name, Errno::BUSY)),
            Err(errno) => Err(self.refused(&name, errno)),
        }
    }

    /// Removes the lowest level, now that it is empty.
    fn ascend(&mut self) -> Act {
        let Some(mut level) = self.levels.pop() else { return Ok(()) };
        let remove = |above| rustix::fs::unlinkat(above, level.name.as_c_str(), AtFlags::REMOVEDIR);
        match self.lowest().and_then(remove) {
            Ok(()) | Err(Errno::NOENT) => {
                self.progress();
                Ok(())
            }
            // readdir(3) does not define the entries of a directory that changes: it is read again, unless that led
            // nowhere.
            Err(Errno::NOTEMPTY | Errno::EXIST) if level.progress => {
                level.progress = false;
                level.entries.rewind();
                self.levels.push(level);
                Ok(())
            }
            Err(errno) => Err(self.refused(&level.name, errno)),
        }
    }

    fn lowest(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.levels.last().map_or(Ok(self.parent.as_fd()), |level| level.entries.fd())
    }

    fn progress(&mut self) {
        if let Some(level) = self.levels.last_mut() {
            level.progress = true;
        }
    }

    /// A failure about an entry of the lowest level; of the first level, about the directory itself.
    fn refused(&self, name: &CStr, errno: Errno) -> Stop {
        let mut text = self.path.to_string_lossy().trim_end_matches('/').to_owned();
        let inner = self.levels.iter().skip(1).map(|level| level.name.as_c_str());
        let last = Some(name).filter(|name| !self.levels.is_empty() && !name.is_empty());
        for part in inner.chain(last) {
            if text.len() > PATH_LIMIT {
                break;
            }
            text.push('/');
            text.push_str(&part.to_string_lossy());
        }
        refused(format_args!("remove {text}"), errno)
    }
}

/// Opens a directory in a directory, but neither a symbolic link nor a mount point.
fn open_directory(directory: BorrowedFd<'_>, name: &CStr) -> Result<Dir, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    Dir::new(rustix::fs::openat2(directory, name, flags, Mode::empty(), resolve)?)
}
