//! The directory of the host's that a sandbox had an overlay of.
//!
//! Every path is walked name by name, and no symbolic link is followed: what a path leads to is in the directory.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::judge::is_same_file;
use crate::{Base, Error, Place, Result, Time};

/// A directory.
#[derive(Debug)]
pub struct Host {
    root: OwnedFd,
    /// The file system that it is on.
    device: u64,
}

/// The facts of a file that are compared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    pub(crate) base: Base,
    pub(crate) device: u64,
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Host {
    /// The directory of this path.
    pub fn open(path: &std::path::Path) -> Result<Self> {
        let at = || Error::at(&path.display());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(at())?;
        let device = crate::sys::facts(root.as_fd(), b"").map_err(at())?.device;
        Ok(Self { root, device })
    }

    /// Opens the directory of a path, or this one.
    fn directory(&self, place: Option<&Place>) -> rustix::io::Result<OwnedFd> {
        let mut directory = rustix::fs::openat(&self.root, c".", DIRECTORY, Mode::empty())?;
        for name in place.into_iter().flat_map(Place::names) {
            directory = rustix::fs::openat(&directory, name, DIRECTORY, Mode::empty())?;
        }
        Ok(directory)
    }

    fn parent(&self, place: &Place) -> rustix::io::Result<OwnedFd> {
        self.directory(place.parent().as_ref())
    }

    /// The file of a path, if there is one.
    pub(crate) fn look(&self, place: &Place) -> Result<Option<Facts>> {
        let found = self.parent(place).and_then(|parent| crate::sys::facts(parent.as_fd(), place.name()));
        match found {
            Ok(facts) => Ok(Some(facts)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(Error::at(place)(errno)),
        }
    }

    /// Whether a file is on the directory's own file system.
    pub(crate) fn is_own(&self, facts: &Facts) -> bool {
        facts.device == self.device
    }

    /// A name in a directory that is none of these.
    pub(crate) fn other_name(&self, place: &Place, names: &BTreeSet<&[u8]>) -> Result<Option<Vec<u8>>> {
        let directory = self.directory(Some(place)).map_err(Error::at(place))?;
        for entry in Dir::new(directory).map_err(Error::at(place))? {
            let entry = entry.map_err(Error::at(place))?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") && !names.contains(name) {
                return Ok(Some(name.to_vec()));
            }
        }
        Ok(None)
    }

    pub(crate) fn read_link(&self, place: &Place) -> Result<Vec<u8>> {
        let parent = self.parent(place).map_err(Error::at(place))?;
        let target = rustix::fs::readlinkat(parent, place.name(), Vec::new()).map_err(Error::at(place))?;
        Ok(target.into_bytes())
    }

    /// Opens a regular file to be read.
    pub(crate) fn open_file(&self, place: &Place) -> io::Result<File> {
        crate::contents::open(&self.parent(place)?, place.name())
    }

    /// Reads a regular file as it is now, at most `most` bytes; nothing if there is none, or it has more.
    pub fn read(&self, place: &Place, most: u64) -> io::Result<Option<Vec<u8>>> {
        use io::Read;
        let mut bytes = Vec::new();
        match self.open_file(place) {
            Ok(file) => file.take(most.saturating_add(1)).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(bytes).filter(|bytes| u64::try_from(bytes.len()).is_ok_and(|len| len <= most)))
    }

    /// Makes a file.
    pub(crate) fn create(&self, place: &Place) -> Result<File> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let made =
            self.parent(place).and_then(|parent| rustix::fs::openat(parent, place.name(), flags, mode));
        made.map(File::from).map_err(Error::at(place))
    }

    /// Makes a directory that is its owner's alone, and returns it.
    pub(crate) fn make_directory(&self, place: &Place) -> Result<Base> {
        let made = self.parent(place).and_then(|parent| {
            rustix::fs::mkdirat(&parent, place.name(), Mode::RWXU)?;
            crate::sys::facts(parent.as_fd(), place.name())
        });
        made.map(|made| made.base).map_err(Error::at(place))
    }

    pub(crate) fn make_link(&self, place: &Place, target: &[u8]) -> Result<()> {
        let made = self.parent(place).and_then(|parent| rustix::fs::symlinkat(target, parent, place.name()));
        made.map_err(Error::at(place))
    }

    /// Gives a file one more name.
    pub(crate) fn link(&self, from: &Place, to: &Place) -> Result<()> {
        let linked = self.parent(from).and_then(|parent| {
            rustix::fs::linkat(parent, from.name(), self.parent(to)?, to.name(), AtFlags::empty())
        });
        linked.map_err(Error::at(to))
    }

    /// Moves a file to a path that no other has.
    pub(crate) fn rename(&self, from: &Place, to: &Place) -> Result<()> {
        let (old, new) =
            (self.parent(from).map_err(Error::at(from))?, self.parent(to).map_err(Error::at(to))?);
        let how = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(&old, from.name(), &new, to.name(), how) {
            // A file system that cannot look and move at once.
            Err(Errno::INVAL | Errno::NOSYS) if self.look(to)?.is_none() => {
                rustix::fs::renameat(&old, from.name(), &new, to.name()).map_err(Error::at(to))
            }
            result => result.map_err(Error::at(to)),
        }
    }

    pub(crate) fn remove(&self, place: &Place, is_directory: bool) -> Result<()> {
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let gone = self.parent(place).and_then(|parent| rustix::fs::unlinkat(parent, place.name(), flags));
        gone.map_err(Error::at(place))
    }

    /// Changes the mode of a file or a directory if it is this one, and returns the one before.
    pub(crate) fn set_mode(
        &self,
        place: &Place,
        file: &Base,
        mode: impl FnOnce(u32) -> u32,
    ) -> Result<Option<u32>> {
        let done = self.parent(place).and_then(|parent| {
            let held = crate::sys::pin(parent.as_fd(), place.name())?;
            let found = crate::sys::facts(held.as_fd(), b"")?.base;
            if !is_same_file(&found, file) {
                return Ok(None);
            }
            let mode = mode(found.mode);
            if mode & 0o7777 != found.mode & 0o7777 {
                crate::sys::set_mode(held.as_fd(), Mode::from_bits_truncate((mode & 0o7777) as _))?;
            }
            Ok(Some(found.mode))
        });
        done.map_err(Error::at(place))
    }

    /// Returns when all that the directory's file system was given is on its disk.
    pub(crate) fn sync(&self) -> Result<()> {
        let synced = crate::sys::sync(self.root.as_fd());
        #[cfg(test)]
        let synced = synced.and_then(|()| crate::tests::at_sync());
        synced.map_err(Error::at("."))
    }
}

/// Finishes a file that was made: when its contents were changed, and its permissions, without special bits, as nothing of a
/// guest's runs as somebody else.
pub(crate) fn finish(file: &File, mode: u32, mtime: Time) -> io::Result<()> {
    rustix::fs::fchmod(file, Mode::from_bits_truncate((mode & 0o777) as _))?;
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() };
    Ok(rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time })?)
}
