//! Room on the disk: enough to begin an import, and some left at its end.
//!
//! The length of a layer is known once it is unpacked, so a packed size only tells that it cannot fit. Not here: the
//! limits that hold on any disk (`layer`).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use erofs::Output;
use rustix::fs::StatVfs;

use crate::{Error, Result};

/// Bytes that are left free for others on a large disk.
const KEPT_FREE: u64 = 64 << 20;

/// The part of a small disk that is left free.
const KEPT_PART: u64 = 50;

/// Bytes that are written without checking the disk, so that small layers fit on a disk that is almost full.
const UNSEEN: u64 = 1 << 20;

/// Whether the file system of `directory` has room for `needed` bytes of `what`.
pub(crate) fn check_space(directory: &Path, needed: u64, what: impl Into<String>) -> Result<()> {
    let space = rustix::fs::statvfs(directory).map_err(|errno| Error::io(directory)(errno.into()))?;
    let free = free(&space);
    if needed > free {
        return Err(Error::Space { what: what.into(), path: directory.to_owned(), needed, free });
    }
    Ok(())
}

fn free(space: &StatVfs) -> u64 {
    space.f_bavail.saturating_mul(space.f_frsize)
}

/// The room for bytes on their way to a disk, which runs out before the disk is full.
#[derive(Debug)]
pub(crate) struct Space {
    /// Bytes that may be written before the disk is checked again.
    left: u64,
}

impl Default for Space {
    fn default() -> Self {
        Self { left: UNSEEN }
    }
}

impl Space {
    /// Takes room for bytes that are about to be written to this file.
    pub(crate) fn take(&mut self, file: impl AsFd, bytes: u64) -> io::Result<()> {
        if let Some(left) = self.left.checked_sub(bytes) {
            self.left = left;
            return Ok(());
        }
        let space = rustix::fs::fstatvfs(file)?;
        let kept = KEPT_FREE.min(space.f_blocks.saturating_mul(space.f_frsize) / KEPT_PART);
        let room = free(&space).saturating_sub(kept);
        if bytes > room {
            let why = format!("No space left on device but the {kept} bytes that are kept free");
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
        // Other processes write meanwhile.
        self.left = (room - bytes).min(kept / 4);
        Ok(())
    }
}

/// A layer's file.
pub(crate) struct LayerFile {
    file: File,
    space: Space,
}

impl LayerFile {
    pub(crate) fn new(file: File) -> Self {
        Self { file, space: Space::default() }
    }
}

impl Output for LayerFile {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.space.take(&self.file, bytes.len() as u64)?;
        Output::write_all_at(&mut self.file, bytes, offset)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        Output::set_len(&mut self.file, len)
    }
}
