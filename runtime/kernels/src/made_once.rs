//! Files that the first process to need them makes, and that all later ones find.

use std::fs;
use std::path::Path;

use waiting::CancellationToken;

use crate::{Error, Result};

/// Extension of files that are not finished.
const UNFINISHED: &str = "tmp";

/// Sees to it that `path` is there and whole: `make` writes the file under another name, which is then changed. Files in
/// the directory of `path` are made this way only. Waiting for another process that makes one ends at once when it is
/// given up.
pub(crate) fn file(
    path: &Path,
    is_whole: impl Fn(&Path) -> bool,
    make: impl FnOnce(&Path) -> Result<()>,
    given_up: &CancellationToken,
) -> Result<()> {
    if is_whole(path) {
        return Ok(());
    }
    let directory = path.parent().unwrap_or(path);
    fs::create_dir_all(directory).map_err(Error::io(directory))?;
    // One process makes files, the others wait; an unfinished one that it finds is of a process that has ended.
    let lock = fs::File::open(directory).and_then(|lock| waiting::lock(lock, given_up));
    let _lock = lock.map_err(Error::io(directory))?;
    if is_whole(path) {
        return Ok(());
    }
    for entry in fs::read_dir(directory).map_err(Error::io(directory))? {
        let unfinished = entry.map_err(Error::io(directory))?.path();
        if unfinished.extension().is_some_and(|extension| extension == UNFINISHED) {
            fs::remove_file(&unfinished).map_err(Error::io(&unfinished))?;
        }
    }
    let staged = path.with_extension(UNFINISHED);
    make(&staged)?;
    fs::rename(&staged, path).map_err(Error::io(path))
}
