//! Contents of files in files of the host's: flat, in a directory that nobody else uses, named by numbers.
//!
//! No name of the guest's is there, and no more descriptors are open than the store has room for, whatever the guest opens.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use fuse::{Errno, Result};
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::locks::lock;
use crate::space::{Charge, Space};
use crate::sys;

/// Most files that stay open without being in use.
const MAX_OPEN: usize = 256;

/// Bytes of small files that stay in memory.
const MAX_SMALL: u64 = 64 << 20;

static ZEROES: [u8; 16 << 10] = [0; 16 << 10];

/// The files.
#[derive(Debug)]
pub(crate) struct Store {
    directory: OwnedFd,
    next: AtomicU64,
    open: Mutex<Recent>,
    /// The space for contents of small files that are not files of the host's.
    small: Arc<Space>,
    /// The files outlive the store.
    outlives: AtomicBool,
}

/// Files that are open, and when each was last used.
#[derive(Debug, Default)]
struct Recent {
    files: HashMap<u64, (Arc<OwnedFd>, u64)>,
    by_use: BTreeMap<u64, u64>,
    clock: u64,
}

impl Recent {
    fn get(&mut self, number: u64) -> Option<Arc<OwnedFd>> {
        let (file, used) = self.files.get_mut(&number)?;
        self.clock += 1;
        self.by_use.remove(used);
        self.by_use.insert(self.clock, number);
        *used = self.clock;
        Some(file.clone())
    }

    /// Keeps a file open; returns the one that is closed for it.
    fn keep(&mut self, number: u64, file: Arc<OwnedFd>) -> Option<Arc<OwnedFd>> {
        let oldest = if self.files.len() < MAX_OPEN { None } else { self.by_use.pop_first() };
        let closed = oldest.and_then(|(_, number)| self.files.remove(&number));
        self.clock += 1;
        if let Some((_, used)) = self.files.insert(number, (file, self.clock)) {
            self.by_use.remove(&used);
        }
        self.by_use.insert(self.clock, number);
        closed.map(|(file, _)| file)
    }

    fn forget(&mut self, number: u64) -> Option<Arc<OwnedFd>> {
        let (file, used) = self.files.remove(&number)?;
        self.by_use.remove(&used);
        Some(file)
    }
}

impl Store {
    /// A store in a directory that is empty.
    pub(crate) fn new(directory: OwnedFd) -> Arc<Self> {
        Arc::new(Self {
            directory,
            next: AtomicU64::new(1),
            open: Mutex::default(),
            small: Space::new(MAX_SMALL),
            outlives: AtomicBool::new(false),
        })
    }

    pub(crate) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// From now on no file is removed.
    pub(crate) fn outlive(&self) {
        self.outlives.store(true, Ordering::Release);
    }

    /// A charge of nothing for the contents of a small file.
    pub(crate) fn small(&self) -> Result<Charge> {
        self.small.charge(0)
    }

    /// A new file.
    pub(crate) fn create(self: &Arc<Self>) -> Result<Stored> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&self.directory, name(number), flags, mode).map_err(told)?;
        let closed = lock(&self.open).keep(number, Arc::new(file));
        drop(closed);
        Ok(Stored { store: self.clone(), number })
    }

    fn file(&self, number: u64) -> Result<Arc<OwnedFd>> {
        if let Some(file) = lock(&self.open).get(number) {
            return Ok(file);
        }
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, name(number), flags, Mode::empty()).map_err(told)?;
        let file = Arc::new(file);
        let closed = lock(&self.open).keep(number, file.clone());
        drop(closed);
        Ok(file)
    }
}

fn name(number: u64) -> String {
    number.to_string()
}

/// Writes zeroes over what a file has of a range.
pub(crate) fn clear(file: BorrowedFd<'_>, offset: u64, len: u64) -> rustix::io::Result<()> {
    let size = u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0);
    let (mut at, end) = (offset, offset.saturating_add(len).min(size));
    while at < end {
        let count = usize::try_from(end - at).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
        let done = rustix::io::pwrite(file, ZEROES.get(..count).unwrap_or_default(), at)?;
        at = at.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
    }
    Ok(())
}

/// Answers with the number of an error of the host's. A shortage of the host's is none of the guest's.
fn told(errno: rustix::io::Errno) -> Errno {
    match errno {
        rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT => Errno::ENOSPC,
        rustix::io::Errno::FBIG => Errno::EFBIG,
        _ => Errno::EIO,
    }
}

/// A file of the store's, which goes when this does.
#[derive(Debug)]
pub(crate) struct Stored {
    store: Arc<Store>,
    number: u64,
}

impl Stored {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Fills the buffer from `offset` on, with zeroes behind the file's end.
    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let file = self.store.file(self.number)?;
        let mut done = 0;
        while done < buffer.len() {
            let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            let rest = buffer.get_mut(done..).unwrap_or_default();
            match rustix::io::retry_on_intr(|| rustix::io::pread(&file, &mut *rest, at)).map_err(told)? {
                0 => {
                    rest.fill(0);
                    break;
                }
                count => done += count,
            }
        }
        Ok(())
    }

    /// Stores all of `bytes` at `offset`.
    pub(crate) fn write(&self, mut bytes: &[u8], mut offset: u64) -> Result<()> {
        let file = self.store.file(self.number)?;
        while !bytes.is_empty() {
            let count =
                rustix::io::retry_on_intr(|| rustix::io::pwrite(&file, bytes, offset)).map_err(told)?;
            if count == 0 {
                return Err(Errno::EIO);
            }
            bytes = bytes.get(count..).unwrap_or_default();
            offset = offset.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// Cuts the file.
    pub(crate) fn cut(&self, len: u64) -> Result<()> {
        rustix::fs::ftruncate(self.store.file(self.number)?, len).map_err(told)
    }

    /// Has a range read as zeroes, and its space given back where the host can.
    pub(crate) fn punch(&self, offset: u64, len: u64) -> Result<()> {
        sys::punch(self.store.file(self.number)?.as_fd(), offset, len).map_err(told)
    }

    /// Has the host keep space for a range, where it can. The file on the host may become longer.
    pub(crate) fn reserve(&self, offset: u64, len: u64) -> Result<()> {
        sys::reserve(self.store.file(self.number)?.as_fd(), offset, len).map_err(told)
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        let closed = lock(&self.store.open).forget(self.number);
        drop(closed);
        if self.store.outlives.load(Ordering::Acquire) {
            return;
        }
        // A file that cannot be removed goes with the directory.
        let _ = rustix::fs::unlinkat(&self.store.directory, name(self.number), AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_descriptors_are_open_however_many_files_there_are() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(std::fs::File::open(directory.path()).unwrap().into());
        let all: Vec<Stored> = (0..MAX_OPEN * 2).map(|_| store.create().unwrap()).collect();
        for round in 0..2u8 {
            for (number, stored) in all.iter().enumerate() {
                stored.write(&[round, u8::try_from(number % 251).unwrap()], 4096).unwrap();
            }
        }
        for (number, stored) in all.iter().enumerate().rev() {
            let mut buffer = [7; 4];
            stored.read(&mut buffer, 4095).unwrap();
            assert_eq!(buffer, [0, 1, u8::try_from(number % 251).unwrap(), 0]);
        }
        let recent = lock(&store.open);
        assert_eq!((recent.files.len(), recent.by_use.len()), (MAX_OPEN, MAX_OPEN));
        drop(recent);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), all.len());
        drop(all);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(lock(&store.open).files.is_empty());
    }
}
