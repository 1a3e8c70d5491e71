//! pjdfstest and fsx against a directory of the host that is mounted on the host, so without a guest and at full speed: served by
//! root, and by a user without privilege.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Gid, Uid};
use shares::{HostFs, MountError, Mounted, Options};

/// Cases of pjdfstest 0.2.2 that pass: all 398 but one, which wants a limit of links that no call tells.
const PASS: usize = 397;

/// A user who has no privilege.
const USER: u32 = 1001;

/// The outcome of the cases.
#[derive(Debug, Default)]
struct Outcome {
    /// The complaint of fsx.
    contents: Option<String>,
    passed: BTreeSet<String>,
    failed: BTreeSet<String>,
}

/// Runs the suite on a directory, of the disk or of a file system in memory where devices do nothing.
fn run(program: &str, fsx: &str, served_by: Option<u32>, in_memory: bool) -> Option<Outcome> {
    let shared = tempfile::tempdir().unwrap();
    if in_memory {
        mount("none", shared.path(), "tmpfs", MountFlags::NODEV, None).unwrap();
    }
    let place = tempfile::tempdir().unwrap();
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
    let mounted = match Mounted::new(files, place.path(), 2, enter) {
        Ok(mounted) => mounted,
        Err(MountError::Device(error)) => {
            skip::skip("fuse", format!("/dev/fuse: {error}"));
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut outcome = Outcome { contents: exercise(fsx, place.path()), ..Outcome::default() };
    suite(program, place.path(), &[], &mut outcome);
    // These cases mount everything read-only, which the kernel refuses while other cases remove files.
    suite(program, place.path(), &["erofs"], &mut outcome);
    drop(mounted);
    if in_memory {
        unmount(shared.path(), UnmountFlags::DETACH).unwrap();
    }
    Some(outcome)
}

/// Reads, writes, maps, copies and cuts a file at random, against what it should contain.
fn exercise(fsx: &str, path: &Path) -> Option<String> {
    let output = Command::new(fsx).args(["-N", "5000", "-S", "7"]).arg(path.join("fsx")).output().unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs the cases whose name has one of these patterns, or all of them without remounting.
fn suite(program: &str, path: &Path, patterns: &[&str], outcome: &mut Outcome) {
    let directory = tempfile::tempdir().unwrap();
    let configuration = directory.path().join("pjdfstest.toml");
    let text = format!(
        "[features]\nposix_fallocate = {{}}\nutime_now = {{}}\nutimensat = {{}}\nrename_ctime = {{}}\n\
         [settings]\nnaptime = 0.01\nallow_remount = {}\n\
         [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n",
        !patterns.is_empty()
    );
    fs::write(&configuration, text).unwrap();
    let mut command = Command::new(program);
    command.arg("-c").arg(&configuration).arg("-p").arg(path).arg("-s").arg(directory.path()).args(patterns);
    let output = command.output().unwrap();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let name = line.split_whitespace().next().unwrap_or_default().to_owned();
        match () {
            () if line.ends_with(" ok") => drop(outcome.passed.insert(name)),
            () if line.ends_with(" FAILED") => drop(outcome.failed.insert(name)),
            () => {}
        }
    }
}

#[test]
fn files_behave_as_posix_says() {
    if !rustix::process::geteuid().is_root() {
        return skip::skip("root", "pjdfstest takes on users, and mounts need root");
    }
    let program = std::env::var("PJDFSTEST").unwrap_or_else(|_| "pjdfstest".to_owned());
    if let Err(error) = Command::new(&program).arg("--version").output() {
        return skip::skip("pjdfstest", format!("{program}: {error} (cargo install pjdfstest)"));
    }
    let fsx = std::env::var("FSX").unwrap_or_else(|_| "fsx".to_owned());
    if let Err(error) = Command::new(&fsx).arg("--version").output() {
        return skip::skip("fsx", format!("{fsx}: {error} (cargo install fsx)"));
    }
    for (served_by, in_memory) in [(None, false), (Some(USER), false), (Some(USER), true)] {
        let Some(outcome) = run(&program, &fsx, served_by, in_memory) else { return };
        println!(
            "served by {served_by:?}, in memory {in_memory}: {} passed, failed: {:?}",
            outcome.passed.len(),
            outcome.failed
        );
        assert_eq!(outcome.contents, None, "served by {served_by:?}");
        assert!(outcome.failed.is_empty(), "served by {served_by:?}: {:?}", outcome.failed);
        assert_eq!(outcome.passed.len(), PASS, "served by {served_by:?}");
    }
}
