//! For tests: a disk that is full soon.
//!
//! A failure panics. Not here: the tests on the disk.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The variable that names the disk for the test that runs on it.
const DISK: &str = "MATCHLOCK_TEST_SMALL_DISK";

/// The directory of a disk of `mib` MiB, for a test that is called `test`. The first call runs that test again in a
/// mount namespace that has such a disk, and returns `None`.
#[must_use]
pub fn small_disk(test: &str, mib: u32) -> Option<PathBuf> {
    if let Some(disk) = std::env::var_os(DISK) {
        return Some(disk.into());
    }
    let disk = tempfile::tempdir().expect("a directory");
    let script = format!(r#"mount -t tmpfs -o size={mib}m none "$0" && exec "$@""#);
    let done = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", &script])
        .arg(disk.path())
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test])
        .env(DISK, disk.path())
        .output()
        .expect("unshare");
    let said = String::from_utf8_lossy(&done.stdout);
    // A run in which no test has this name succeeds too.
    let ran = done.status.success() && said.contains("1 passed");
    assert!(ran, "{test}, on a small disk: {said}{}", String::from_utf8_lossy(&done.stderr));
    None
}

/// Writes to the end of a file, in pieces of this length, until the disk is full.
pub fn fill(filler: &Path, piece: usize) {
    let mut file = File::options().create(true).append(true).open(filler).expect("a file");
    let full = std::iter::repeat_with(|| file.write_all(&vec![1; piece])).find_map(Result::err);
    assert_eq!(full.map(|error| error.kind()), Some(io::ErrorKind::StorageFull));
}
