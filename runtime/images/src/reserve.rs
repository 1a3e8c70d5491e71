//! Some blocks kept in reserve, so that commands that make room on a full disk have room to begin with.
//!
//! SQLite cannot even read without room for its log. Not here: the commands.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

/// The log of a few transactions, and its index.
const BYTES: u64 = 512 << 10;

/// Runs `act`. If it fails, the reserve in `directory` is given up and `act` runs once more; the next success makes a
/// new reserve.
pub fn with_reserve<T, E>(directory: &Path, act: impl Fn() -> Result<T, E>) -> Result<T, E> {
    let reserve = directory.join("reserve");
    match act() {
        Ok(done) => {
            // A disk without room for the reserve does not keep one.
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
