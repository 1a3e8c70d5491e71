//! Getting a kernel is given up at each lock of the store that another process may hold.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kernels::{Architecture, Error, Kernel, Store};
use machine::KernelFormat;
use registry::{Registries, Trust};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use waiting::CancellationToken;
use waiting::testing::{given_up_at_once, is_waited_for};

/// Gives `act` up as soon as it waits for the lock at `path`.
#[track_caller]
fn given_up<T: Send>(path: &Path, act: impl FnOnce(&CancellationToken) -> Result<T, Error> + Send) {
    // As good as another process, since locks are between open files.
    let held = File::open(path).unwrap();
    held.lock().unwrap();
    let error = given_up_at_once(|| is_waited_for(&held), act);
    assert!(matches!(error, Error::GivenUp | Error::Package(debian::Error::GivenUp)), "{error}");
}

fn get(cache: &Path, reference: &str, token: &CancellationToken) -> Result<Kernel, Error> {
    let trust = Trust {
        certificates: Vec::new(),
        docker_config: None,
        registries_conf: None,
        registries_conf_d: Vec::new(),
        policy: None,
        silence: Duration::from_secs(5),
    };
    Store::open_until(cache, token.clone())?.get(reference, &Registries::new(trust), &|_| {})
}

#[test]
fn a_kernel_that_another_fetches_or_removes() {
    let cache = tempfile::tempdir().unwrap();
    let kernels = cache.path().join("kernels");
    fs::create_dir(&kernels).unwrap();
    fs::create_dir(cache.path().join("apt")).unwrap();
    // Nothing listens on this port.
    let elsewhere = "127.0.0.1:1/a/b:1";
    for (lock, reference) in [("lock", ""), ("../apt", ""), ("oci.lock", elsewhere), ("list.lock", elsewhere)]
    {
        let path = kernels.join(lock);
        if !path.exists() {
            File::create(&path).unwrap();
        }
        given_up(&path, |token| get(cache.path(), reference, token));
        assert!(Store::open(cache.path()).unwrap().list().unwrap().is_empty());
    }
    assert!(matches!(get(cache.path(), elsewhere, &CancellationToken::new()), Err(Error::Registry { .. })));

    let directory = kernels.join(format!("debian-{}", Architecture::host().name()));
    let kernel = directory.join("6.1");
    fs::create_dir_all(&kernel).unwrap();
    std::os::unix::fs::symlink("6.1", directory.join("current")).unwrap();
    given_up(&kernel, |token| get(cache.path(), "", token));
}

#[test]
fn an_initramfs_that_another_makes() {
    let cache = tempfile::tempdir().unwrap();
    let archives = cache.path().join("kernels/initramfs");
    fs::create_dir_all(&archives).unwrap();
    let agent = cache.path().join("agent");
    fs::write(&agent, "agent").unwrap();
    let (release, path, format) = ("1".into(), "/k".into(), KernelFormat::Elf);
    let kernel = Kernel { release, path, format, modules: None, lease: None };
    let extras = kernels::Extras::default();
    let make = |token: &CancellationToken| kernels::initramfs(cache.path(), &kernel, &agent, extras, token);
    given_up(&archives, make);
    assert!(make(&CancellationToken::new()).unwrap().exists());
}

/// The variable that names the child's directory.
const DIRECTORY: &str = "MATCHLOCK_TEST_DIRECTORY";

#[test]
#[ignore = "the child's side of another test"]
fn fetch_until_apt_downloads() {
    let cache = PathBuf::from(std::env::var(DIRECTORY).unwrap());
    let begun = || fs::read(cache.join("pipe")).is_ok();
    let error = given_up_at_once(begun, |token| get(&cache, "", token));
    assert!(matches!(error, Error::Package(debian::Error::GivenUp)), "{error}");
    assert!(!cache.join("kernels/fetching").exists());
    assert_eq!(fs::read_dir(cache.join("apt")).unwrap().count(), 0);
}

#[test]
fn a_package_that_apt_downloads() {
    let cache = tempfile::tempdir().unwrap();
    let (pipe, bin) = (cache.path().join("pipe"), cache.path().join("bin"));
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    fs::create_dir(&bin).unwrap();
    let download = format!("> linux-image-1_1_amd64.deb; : > {}; exec /bin/sleep 1000", pipe.display());
    let record = format!("Version: 1\\nSHA256: {}\\nDepends: linux-image-1 (= 1)\\n", "0".repeat(64));
    for (name, script) in [
        ("apt-get", format!("case $1 in download) {download};; esac")),
        ("apt-cache", format!("printf '{record}'")),
    ] {
        fs::write(bin.join(name), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "fetch_until_apt_downloads", "--ignored"]).stdout(Stdio::null());
    child.env("PATH", &bin).env(DIRECTORY, cache.path()).env_remove("MATCHLOCK_DEBIAN_MIRROR");
    assert!(child.status().unwrap().success());
}
