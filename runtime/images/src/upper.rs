//! The writable disk of one sandbox.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::{Error, Result};

/// Makes `<dest_dir>/upper.ext4`, an empty ext4 of `size_mb` MiB, sparse, opened for reading and writing.
///
/// Takes milliseconds: a template of each size is made once below `cache` and copied. The caller owns the file and
/// removes it.
pub fn upper_disk(cache: &Path, dest_dir: &Path, size_mb: u64) -> Result<File> {
    let _ = (cache, size_mb);
    let path = dest_dir.join("upper.ext4");
    Err(Error::Io { path, source: io::ErrorKind::Unsupported.into() })
}
