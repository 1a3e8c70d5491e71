//! The fuzz body of what a guest may do with files of the host's: the same acts on a directory and on a model of POSIX,
//! compared step by step.
//!
//! `cargo test` runs it a fixed number of times with fixed seeds; `fuzz/` has the target for libFuzzer.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use modelled::{Model, Run};
use tempfile::TempDir;

use crate::{HostFs, Options};

/// A file system that gives no number twice, so that a new file is none that the guest still knows.
const IN_MEMORY: &str = "/dev/shm";

/// Acts on a directory of the host.
pub fn host_fs(data: &[u8]) {
    let directory = directory();
    let options = Options { owner_uid: Some(0), owner_gid: Some(0), ..Options::default() };
    let Ok(files) = HostFs::new(directory.path(), options) else { panic!("a directory is there") };
    let mut run = Run::of_host(&files, Model::default());
    run.script(data);
    run.compare();
    run.leave_nothing();
    assert_eq!(
        fs::read_dir(directory.path()).map(Iterator::count).ok(),
        Some(0),
        "names that nobody removes"
    );
    files.keeps_nothing();
}

fn directory() -> TempDir {
    let place = Path::new(IN_MEMORY);
    let made = if place.is_dir() { tempfile::tempdir_in(place) } else { tempfile::tempdir() };
    let Ok(directory) = made else { panic!("no temporary directory") };
    let mode = fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755));
    assert!(mode.is_ok(), "{mode:?}");
    directory
}

#[cfg(test)]
mod tests {
    use modelled::{WORDS, examples};

    #[test]
    fn host_fs() {
        fuzzed::run("shares_host_fs", 600, &examples(), &WORDS, super::host_fs);
    }
}
