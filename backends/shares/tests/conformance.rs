//! pjdfstest and fsx against providers that are mounted on the host, so without a guest and at full speed: a directory of the
//! host, served by root and by a user without privilege, a folder in memory, and files over a directory of the host.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub, reason = "tests")]

mod suite;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::sync::Arc;

use fuse::Coherence;
use overlay::Files;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Gid, Uid};
use shares::{HostFs, Options};

/// Most bytes of files that stay with a sandbox.
const LIMIT: u64 = 1 << 30;

/// A user who has no privilege.
const USER: u32 = 1001;

/// Runs the suites on a directory, of the disk or of a file system in memory where devices do nothing.
fn run(suites: &suite::Suites, served_by: Option<u32>, in_memory: bool) {
    let shared = tempfile::tempdir().unwrap();
    if in_memory {
        mount("none", shared.path(), "tmpfs", MountFlags::NODEV, None).unwrap();
    }
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o755)).unwrap();
    chown(shared.path(), served_by, served_by).unwrap();
    let enter = move || {
        if let Some(user) = served_by {
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(Gid::from_raw(user), Gid::from_raw(user), Gid::from_raw(user))
                .unwrap();
            rustix::thread::set_thread_res_uid(Uid::from_raw(user), Uid::from_raw(user), Uid::from_raw(user))
                .unwrap();
        }
    };
    let files =
        HostFs::new(shared.path(), Options { owner_uid: Some(0), owner_gid: Some(0), ..Options::default() })
            .unwrap();
    suites.hold(&format!("served by {served_by:?}, in memory {in_memory}"), files, Coherence::Shared, enter);
    if in_memory {
        unmount(shared.path(), UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn files_behave_as_posix_says() {
    let Some(suites) = suite::Suites::found() else { return };
    for (served_by, in_memory) in [(None, false), (Some(USER), false), (Some(USER), true)] {
        run(&suites, served_by, in_memory);
    }
}

#[test]
fn files_in_memory_behave_as_posix_says() {
    let Some(suites) = suite::Suites::found() else { return };
    let options = overlay::Options { limit: LIMIT, mode: 0o755, uid: 0, gid: 0 };
    // The kernel writes at once, or later and by times of its own.
    for coherence in [Coherence::Shared, Coherence::Exclusive] {
        let files = Files::in_memory(options).unwrap();
        suites.hold(&format!("in memory, {coherence:?}"), files, coherence, || ());
    }
}

/// Runs the suites on files over a directory, which is as it was in the end.
fn run_over(suites: &suite::Suites, what: &str, over: impl FnOnce(Arc<HostFs>) -> Files) {
    let shared = tempfile::tempdir().unwrap();
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let host = HostFs::new(shared.path(), Options { readonly: true, ..Options::default() }).unwrap();
    suites.hold(what, over(Arc::new(host)), Coherence::Shared, || ());
    assert_eq!(fs::read_dir(shared.path()).unwrap().count(), 0, "the directory is as it was");
}

#[test]
fn files_over_others_behave_as_posix_says() {
    let Some(suites) = suite::Suites::found() else { return };
    run_over(&suites, "over a directory", |host| Files::over(host, LIMIT).unwrap());
}

#[test]
fn files_over_others_with_contents_in_files_behave_as_posix_says() {
    let Some(suites) = suite::Suites::found() else { return };
    let contents = tempfile::tempdir().unwrap();
    let directory = fs::File::open(contents.path()).unwrap().into();
    run_over(&suites, "over a directory, contents in files", |host| {
        Files::over_kept(host, LIMIT, directory).unwrap()
    });
    assert_eq!(fs::read_dir(contents.path()).unwrap().count(), 0, "files that nobody removes");
}
