//! Some blocks kept back, so that what makes room on a full disk has the room to begin with.
//!
//! SQLite cannot even read without room for its log. Not here: what makes room.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

/// The log of a few transactions, and its index.
const BYTES: u64 = 512 << 10;

/// Does this. If it fails, the blocks that `directory` has in reserve are given back, and it is done once more; they are
/// kept back again the next time that it succeeds.
pub fn with_reserve<T, E>(directory: &Path, act: impl Fn() -> Result<T, E>) -> Result<T, E> {
    let reserve = directory.join("reserve");
    match act() {
        Ok(done) => {
            // A disk that has no room for this has none to keep back.
            let _ = keep_back(&reserve);
            Ok(done)
        }
        Err(error) => match fs::remove_file(&reserve) {
            Ok(()) => act(),
            Err(_) => Err(error),
        },
    }
}

fn keep_back(reserve: &Path) -> io::Result<()> {
    let file = match File::options().write(true).create_new(true).open(reserve) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        file => file?,
    };
    let kept = fallocate(&file, FallocateFlags::empty(), 0, BYTES);
    if kept.is_err() {
        fs::remove_file(reserve)?;
    }
    Ok(kept?)
}
