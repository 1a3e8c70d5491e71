//! Preparing an image or a disk is given up at each lock of the store that another process may hold.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use images::{Error, Quiet, Store};
use waiting::CancellationToken;
use waiting::testing::{given_up_at_once, is_waited_for};

/// Gives `act` up as soon as it waits for the lock at `path`.
#[track_caller]
fn given_up<T: Send>(path: &Path, act: impl FnOnce(CancellationToken) -> images::Result<T> + Send) -> Error {
    // As good as another process, since locks are between open files.
    let held = File::open(path).unwrap();
    held.lock().unwrap();
    given_up_at_once(|| is_waited_for(&held), |token| act(token.clone()))
}

#[test]
fn the_built_in_image() {
    let cache = tempfile::tempdir().unwrap();
    drop(Store::open(cache.path()).unwrap());
    fs::create_dir(cache.path().join("apt")).unwrap();
    for lock in ["images/builtin.lock", "images/lock", "apt"] {
        let path = cache.path().join(lock);
        if lock != "apt" {
            File::create(&path).unwrap();
        }
        let resolve = |token| Store::open_until(cache.path(), token)?.resolve("busybox", &Quiet);
        let error = given_up(&path, resolve);
        let package = |error: &Error| matches!(error, Error::Package { source: debian::Error::GivenUp, .. });
        assert!(matches!(error, Error::GivenUp) || package(&error), "{error}");
        assert!(Store::open(cache.path()).unwrap().get("busybox").unwrap().is_none());
        assert_eq!(fs::read_dir(cache.path().join("images/tmp")).unwrap().count(), 0);
    }
}

#[test]
fn a_store_of_the_version_before() {
    let cache = tempfile::tempdir().unwrap();
    fs::create_dir(cache.path().join("images")).unwrap();
    let path = cache.path().join("images/metadata.lock");
    File::create(&path).unwrap();
    let error = given_up(&path, |token| Store::open_until(cache.path(), token).map(drop));
    assert!(matches!(error, Error::GivenUp), "{error}");
    assert_eq!(Store::open(cache.path()).unwrap().list().unwrap(), []);
}

fn disk(cache: &Path, token: &CancellationToken) -> images::Result<File> {
    images::upper_disk(cache, cache, 64, token)
}

#[test]
fn a_disk_of_which_another_makes_the_template() {
    let cache = tempfile::tempdir().unwrap();
    let uppers = cache.path().join("uppers");
    fs::create_dir(&uppers).unwrap();
    let error = given_up(&uppers, |token| disk(cache.path(), &token));
    assert!(matches!(error, Error::GivenUp), "{error}");
    disk(cache.path(), &CancellationToken::new()).unwrap();
}

/// The variable that names the child's directory.
const DIRECTORY: &str = "MATCHLOCK_TEST_DIRECTORY";

#[test]
#[ignore = "the child's side of another test"]
fn make_a_disk_until_it_is_given_up() {
    let cache = PathBuf::from(std::env::var(DIRECTORY).unwrap());
    let begun = || cache.join("begun").exists();
    let error = given_up_at_once(begun, |token| disk(&cache, token));
    assert!(matches!(error, Error::GivenUp), "{error}");
}

#[test]
fn a_disk_that_is_being_formatted() {
    let cache = tempfile::tempdir().unwrap();
    let begun = cache.path().join("begun");
    let bin = cache.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let script = format!("#!/bin/sh\n: > {}\nexec /bin/sleep 1000\n", begun.display());
    fs::write(bin.join("mke2fs"), script).unwrap();
    fs::set_permissions(bin.join("mke2fs"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "make_a_disk_until_it_is_given_up", "--ignored"]).stdout(Stdio::null());
    assert!(child.env("PATH", &bin).env(DIRECTORY, cache.path()).status().unwrap().success());
    assert_eq!(fs::read_dir(cache.path().join("uppers")).unwrap().count(), 0);
    disk(cache.path(), &CancellationToken::new()).unwrap();
}
