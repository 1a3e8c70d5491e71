//! Acts that other shared folders are known to fail at, on providers that are mounted on the host, in each mode of caching.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub, reason = "tests")]

#[expect(dead_code, reason = "shared with the tests by suites of others, which say more")]
mod suite;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fuse::{Coherence, FileSystem};
use overlay::Files;
use rustix::mount::{MountFlags, mount_remount};
use share_cases::{ALONE, BOTH, Local, READ_ONLY, Setting};
use shares::{Caching, HostFs, Options};

/// Most bytes of files that stay with a sandbox.
const LIMIT: u64 = 1 << 30;

/// The promise of `auto`, and time for a busy machine to keep it.
const SOON: Duration = Duration::from_millis(1500);

/// The other side of a folder.
enum Host<'a> {
    None,
    /// Its directory, whose changes are seen within a time.
    Of(&'a Path, Duration),
    ReadOnly,
}

/// Mounts files, or gives a reason why the test is skipped.
fn mounted<F: FileSystem + 'static>(files: F, coherence: Coherence) -> Option<suite::Place> {
    if !rustix::process::geteuid().is_root() {
        skip::skip("root", "mounts need root");
        return None;
    }
    suite::mounted(files, coherence, || ())
}

/// Holds a mounted folder to the cases.
fn hold<F: FileSystem + 'static>(what: &str, files: F, coherence: Coherence, host: &Host<'_>) {
    let Some(place) = mounted(files, coherence) else { return };
    let (mut ran, mut failed) = (0, Vec::new());
    let mut local = Local(match host {
        Host::Of(path, _) => path.to_path_buf(),
        Host::None | Host::ReadOnly => "/nowhere".into(),
    });
    let (setting, count) = match host {
        Host::None => (Setting::Alone, ALONE),
        Host::Of(_, patience) => (Setting::Shared(&mut local, *patience), ALONE + BOTH),
        Host::ReadOnly => (Setting::ReadOnly, READ_ONLY),
    };
    share_cases::run(place.path(), setting, |number, name, complaint| {
        ran += 1;
        failed.extend(complaint.map(|why| format!("{number} {name}: {why}")));
    });
    drop(place);
    assert!(failed.is_empty(), "{what}: {failed:#?}");
    assert_eq!(ran, count, "{what}");
}

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

fn hold_cached(what: &str, caching: Caching, host: impl Fn(&Path) -> Host<'_>) {
    let shared = directory();
    let files = HostFs::new(shared.path(), Options { caching, ..Options::default() }).unwrap();
    hold(what, files, Coherence::Shared, &host(shared.path()));
}

#[test]
fn a_directory_of_the_host() {
    hold_cached("caching auto", Caching::Auto, |host| Host::Of(host, SOON));
    hold_cached("caching none", Caching::None, |host| Host::Of(host, Duration::ZERO));
    hold_cached("caching always", Caching::Always, |_| Host::None);
}

#[test]
fn a_folder_in_memory() {
    let options = overlay::Options { limit: LIMIT, mode: 0o755, uid: 0, gid: 0 };
    for coherence in [Coherence::Exclusive, Coherence::Shared] {
        hold(&format!("{coherence:?}"), Files::in_memory(options).unwrap(), coherence, &Host::None);
    }
}

#[test]
fn files_over_a_directory() {
    let (shared, contents) = (directory(), directory());
    let below = HostFs::new(shared.path(), Options { readonly: true, ..Options::default() }).unwrap();
    let kept = fs::File::open(contents.path()).unwrap().into();
    let files = Files::over_kept(Arc::new(below), LIMIT, kept).unwrap();
    hold("over a directory", files, Coherence::Shared, &Host::Of(shared.path(), SOON));
}

#[test]
fn what_is_only_read() {
    let shared = directory();
    fs::write(shared.path().join("file"), "text").unwrap();
    let files = || HostFs::new(shared.path(), Options { readonly: true, ..Options::default() }).unwrap();
    hold("a directory", files(), Coherence::Shared, &Host::ReadOnly);
}

#[test]
fn a_file_system_that_is_read_only_is_shared() {
    if !rustix::process::geteuid().is_root() {
        return skip::skip("root", "mounts need root");
    }
    let tmpfs = suite::Tmpfs::new();
    let place = tmpfs.path();
    fs::write(place.join("file"), "text").unwrap();
    mount_remount(place, MountFlags::NODEV | MountFlags::RDONLY, "").unwrap();
    // Nobody says that it is read-only.
    let files = HostFs::new(place, Options::default()).unwrap();
    let Some(mounted) = mounted(files, Coherence::Shared) else { return };
    let at = |name: &str| mounted.path().join(name);
    assert_eq!(fs::read(at("file")).unwrap(), b"text");
    for refused in [fs::write(at("file"), ""), fs::write(at("new"), ""), fs::remove_file(at("file"))] {
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(30));
    }
}
