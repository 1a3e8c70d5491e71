//! pjdfstest and fsx against providers that are mounted on the host, so without a guest and at full speed: a directory of the
//! host, served by root and by a user without privilege, a folder in memory, and files over a directory of the host.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub, reason = "tests")]

mod suite;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;

use fuse::Coherence;
use overlay::Files;
use rustix::process::{Gid, Uid};
use shares::{Caching, HostFs, Options};
use suite::{Suites, USER, is_long};

/// Most bytes of files that stay with a sandbox.
const LIMIT: u64 = 1 << 30;

/// Makes a thread a user's.
fn become_user(user: Option<u32>) {
    let Some(user) = user else { return };
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    rustix::thread::set_thread_groups(&[]).unwrap();
    rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
    rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
}

/// A directory of one user.
fn directory_of(user: Option<u32>) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    chown(directory.path(), user, user).unwrap();
    directory
}

/// Runs the suites on a directory of the one who serves it.
fn run(suites: &Suites, what: &str, served_by: Option<u32>, caching: Caching) {
    run_in(suites, what, directory_of(served_by).path(), served_by, caching);
}

fn run_in(suites: &Suites, what: &str, shared: &Path, served_by: Option<u32>, caching: Caching) {
    let options = Options { owner_uid: Some(0), owner_gid: Some(0), caching, ..Options::default() };
    let files = HostFs::new(shared, options).unwrap();
    suites.hold(what, files, Coherence::Shared, move || become_user(served_by));
}

#[test]
fn files_behave_as_posix_says() {
    let Some(suites) = Suites::found() else { return };
    run(&suites, "a directory, served by root", None, Caching::Auto);
    run(&suites, "a directory, served by a user", Some(USER), Caching::Auto);
}

/// On a file system where devices do nothing, files are opened by their names.
#[test]
fn files_that_are_opened_by_their_names_behave_as_posix_says() {
    let Some(suites) = Suites::found() else { return };
    let shared = suite::Tmpfs::new();
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o755)).unwrap();
    chown(shared.path(), Some(USER), Some(USER)).unwrap();
    run_in(
        &suites,
        "a directory on tmpfs without devices, served by a user",
        shared.path(),
        Some(USER),
        Caching::Auto,
    );
}

fn run_in_memory(suites: &Suites, what: &str, coherence: Coherence) {
    let options = overlay::Options { limit: LIMIT, mode: 0o755, uid: 0, gid: 0 };
    suites.hold(what, Files::in_memory(options).unwrap(), coherence, || become_user(Some(USER)));
}

/// The kernel writes later and by times of its own, as sandboxes have it.
#[test]
fn files_in_memory_behave_as_posix_says() {
    let Some(suites) = Suites::found() else { return };
    run_in_memory(&suites, "a folder in memory, served by a user", Coherence::Exclusive);
}

/// Runs the suites on files over a directory of another user's, which is as it was in the end.
fn run_over(suites: &Suites, what: &str, served_by: Option<u32>, over: impl FnOnce(Arc<HostFs>) -> Files) {
    let shared = directory_of(None);
    let host = HostFs::new(shared.path(), Options { readonly: true, ..Options::default() }).unwrap();
    suites.hold(what, over(Arc::new(host)), Coherence::Shared, move || become_user(served_by));
    assert_eq!(fs::read_dir(shared.path()).unwrap().count(), 0, "the directory is as it was");
}

/// Contents are in files of their own, as sandboxes have it.
#[test]
fn files_over_others_behave_as_posix_says() {
    let Some(suites) = Suites::found() else { return };
    for (who, served_by) in [("root", None), ("a user", Some(USER))] {
        let contents = directory_of(served_by);
        let directory = fs::File::open(contents.path()).unwrap().into();
        run_over(&suites, &format!("files over a directory, served by {who}"), served_by, |host| {
            Files::over_kept(host, LIMIT, directory).unwrap()
        });
        assert_eq!(fs::read_dir(contents.path()).unwrap().count(), 0, "files that nobody removes");
    }
}

#[test]
fn files_behave_as_posix_says_in_further_settings() {
    let Some(suites) = Suites::found().filter(|_| is_long()) else { return };
    run(&suites, "a directory, caching `none`, served by a user", Some(USER), Caching::None);
    run(&suites, "a directory, caching `always`, served by a user", Some(USER), Caching::Always);
    run_in_memory(&suites, "a folder in memory, written at once, served by a user", Coherence::Shared);
    run_over(&suites, "files over a directory, contents in memory, served by a user", Some(USER), |host| {
        Files::over(host, LIMIT).unwrap()
    });
}

/// The host changes other files with the same suite while the guest changes its own.
#[test]
fn a_guest_and_its_host_change_files_at_once() {
    let Some(suites) = Suites::found() else { return };
    let shared = directory_of(None);
    let still: Vec<_> = (0..1000).map(|number| shared.path().join(format!("still-{number}"))).collect();
    still.iter().for_each(|path| fs::write(path, path.as_os_str().as_encoded_bytes()).unwrap());
    let files = HostFs::new(shared.path(), Options::default()).unwrap();
    let Some(place) = suite::mounted(files, Coherence::Shared, || ()) else { return };
    std::thread::scope(|scope| {
        let host = scope.spawn(|| suites.exercise(&shared.path().join("of the host")));
        assert_eq!(suites.exercise(&place.path().join("of the guest")), None);
        assert_eq!(host.join().unwrap(), None);
    });
    for path in still {
        let seen = fs::read(place.path().join(path.file_name().unwrap())).unwrap();
        assert_eq!(seen, path.as_os_str().as_encoded_bytes());
    }
}
