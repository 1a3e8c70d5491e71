//! Leases of kernels in the store: a leased kernel is not removed.
//!
//! The lock is on the kernel's directory itself, so that it moves with it, and it ends with its holder, in whatever
//! way that ends. Not here: the directory's content.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use waiting::CancellationToken;

use crate::{Error, Result};

/// A lease of a kernel: its directory stays where it is, as long as this lives.
#[derive(Debug)]
pub struct Lease {
    directory: PathBuf,
    _lock: File,
}

impl Lease {
    /// Takes a lease, waiting for a removal under way to end; `None` = there is no such kernel.
    pub(crate) fn take(directory: &Path, given_up: &CancellationToken) -> Result<Option<Self>> {
        loop {
            let lock = match File::open(directory) {
                Ok(lock) => lock,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(Error::io(directory)(error)),
            };
            let lock = waiting::lock_shared(lock, given_up).map_err(Error::io(directory))?;
            // The opened directory may have been removed before it was locked, and replaced by another.
            if is_at(&lock, directory).map_err(Error::io(directory))? {
                return Ok(Some(Self { directory: directory.to_owned(), _lock: lock }));
            }
        }
    }

    /// The lease, after the directory was renamed.
    pub(crate) fn renamed(self, directory: &Path) -> Self {
        Self { directory: directory.to_owned(), ..self }
    }

    /// The kernel's directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// Locks a kernel's directory that has no lease; `None` = it has one.
pub(crate) fn unused(directory: &Path) -> Result<Option<File>> {
    let lock = File::open(directory).map_err(Error::io(directory))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(Error::io(directory)(error)),
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let (opened, there) = match (file.metadata()?, fs::metadata(path)) {
        (opened, Ok(there)) => (opened, there),
        (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        (_, Err(error)) => return Err(error),
    };
    Ok((opened.dev(), opened.ino()) == (there.dev(), there.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_keeps_a_directory_and_follows_it() {
        let parent = tempfile::tempdir().unwrap();
        let (old, new) = (parent.path().join("old"), parent.path().join("new"));
        assert!(Lease::take(&old, &CancellationToken::new()).unwrap().is_none());
        fs::create_dir(&old).unwrap();
        assert!(unused(&old).unwrap().is_some());
        let first = Lease::take(&old, &CancellationToken::new()).unwrap().unwrap();
        let second = Lease::take(&old, &CancellationToken::new()).unwrap().unwrap();
        drop(first);
        fs::rename(&old, &new).unwrap();
        let second = second.renamed(&new);
        assert_eq!(second.directory(), new);
        assert!(unused(&new).unwrap().is_none());
        drop(second);
        assert!(unused(&new).unwrap().is_some());
    }

    /// A start has opened a kernel's directory and waits for its lock, while the kernel is replaced.
    #[test]
    fn whoever_waited_gets_what_is_there_now() {
        let parent = tempfile::tempdir().unwrap();
        let (place, removed) = (parent.path().join("place"), parent.path().join("removed"));
        fs::create_dir(&place).unwrap();
        let removing = unused(&place).unwrap().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| Lease::take(&place, &CancellationToken::new()).unwrap());
            while !is_waited_for(&removing) && !waiting.is_finished() {
                std::thread::yield_now();
            }
            fs::rename(&place, &removed).unwrap();
            fs::create_dir(&place).unwrap();
            let inode = fs::metadata(&place).unwrap().ino();
            drop(removing);
            let lease = waiting.join().unwrap().unwrap();
            assert_eq!(lease._lock.metadata().unwrap().ino(), inode);
        });
    }

    /// proc_locks(5): a lock with waiters has lines with "->" below its own.
    fn is_waited_for(lock: &File) -> bool {
        let inode = format!(":{} ", lock.metadata().unwrap().ino());
        let locks = fs::read_to_string("/proc/locks").unwrap();
        locks.lines().any(|line| line.contains("->") && line.contains(&inode))
    }
}
