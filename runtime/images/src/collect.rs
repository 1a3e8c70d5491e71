//! Garbage of the store: layer files that no image has, and files of writers that died.
//!
//! A writer holds the store's lock shared; deleting takes it exclusively. A layer of a failed pull is kept for a day
//! for the next try. Not here: the list of images.

use std::collections::HashSet;
use std::fs::{self, TryLockError};
use std::path::Path;
use std::time::Duration;

use crate::store::{blob_name, now};
use crate::{Error, Result, Store};

/// How long a layer is kept for an image whose other layers have not come.
const PENDING_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// The sum of deletions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layer files.
    pub blobs: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

impl Store {
    /// Deletes every file that no image needs, layers of failed pulls included.
    pub fn gc(&self) -> Result<Collected> {
        self.delete(u64::MAX)?.ok_or_else(|| Error::Busy { path: self.root.clone() })
    }

    /// Deletes the files of writers that died.
    pub(crate) fn repair(&self) -> Result<()> {
        let tmp = self.tmp();
        let left = fs::read_dir(&tmp).map_err(Error::io(&tmp))?.next().is_some();
        if left || self.metadata.has_orphans(kept_since())? { self.collect().map(drop) } else { Ok(()) }
    }

    /// Deletes files that belong to no image. While another process writes, nothing is deleted, and the next writer
    /// collects.
    pub(crate) fn collect(&self) -> Result<Collected> {
        Ok(self.delete(kept_since())?.unwrap_or_default())
    }

    /// Deletes files that belong to no image; `None` if another process is writing.
    fn delete(&self, kept_since: u64) -> Result<Option<Collected>> {
        let lock = self.lock_file("lock")?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(Error::io(self.root.join("lock"))(error)),
        }
        let mut collected = Collected::default();
        let kept: HashSet<String> = self.metadata.collect(kept_since)?.iter().map(blob_name).collect();
        let blobs = self.root.join("blobs");
        for entry in fs::read_dir(&blobs).map_err(Error::io(&blobs))? {
            let path = entry.map_err(Error::io(&blobs))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !kept.contains(&*name) {
                collected.bytes += remove(&path)?;
                collected.blobs += 1;
            }
        }
        let tmp = self.tmp();
        for entry in fs::read_dir(&tmp).map_err(Error::io(&tmp))? {
            collected.bytes += remove(&entry.map_err(Error::io(&tmp))?.path())?;
        }
        Ok(Some(collected))
    }
}

/// The time since when a layer without an image is kept.
fn kept_since() -> u64 {
    now().saturating_sub(PENDING_LIMIT.as_secs())
}

/// Removes a file or a directory, and returns the file's length.
fn remove(path: &Path) -> Result<u64> {
    let metadata = fs::symlink_metadata(path).map_err(Error::io(path))?;
    if metadata.is_dir() {
        return fs::remove_dir_all(path).map(|()| 0).map_err(Error::io(path));
    }
    fs::remove_file(path).map_err(Error::io(path))?;
    Ok(metadata.len())
}
