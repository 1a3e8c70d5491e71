//! The calls of apt, which go to a stand-in that a child process of the test finds in its PATH.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::cell::OnceCell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use debian::{Archive, Error};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use waiting::CancellationToken;
use waiting::testing::given_up_at_once;

/// The variable that names the child's directory.
const DIRECTORY: &str = "MATCHLOCK_TEST_DIRECTORY";

/// Runs one test of this program again, with programs of these names and scripts, and no others, in its PATH.
fn child(test: &str, directory: &Path, programs: &[(&str, &str)]) -> Command {
    let path = directory.join("bin");
    fs::create_dir_all(&path).unwrap();
    for (name, script) in programs {
        let program = path.join(name);
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--ignored"]).stdout(Stdio::null());
    child.env("PATH", path).env(DIRECTORY, directory).env_remove("MATCHLOCK_DEBIAN_MIRROR");
    child
}

/// The lists' directory, in the child.
fn lists() -> PathBuf {
    Path::new(&std::env::var(DIRECTORY).unwrap()).join("lists")
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().next().is_none()
}

#[test]
#[ignore = "the child's side of another test"]
fn update() {
    Archive::update(&lists(), &CancellationToken::new()).unwrap();
}

#[test]
fn apt_ends_with_whoever_asked_it_and_the_next_one_clears_up() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let script = format!("echo $$ > {}; exec /bin/sleep 1000", pipe.display());
    let mut parent = child("update", directory.path(), &[("apt-get", &script)]).spawn().unwrap();
    let pid = fs::read_to_string(&pipe).unwrap();
    let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    let apt = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let lists = directory.path().join("lists");
    fs::write(lists.join("lists/partial/half"), "").unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&apt, PollFlags::IN)], Some(&limit)).unwrap(), 1, "it goes on");

    let here = directory.path().display();
    let script = format!("echo $* > {here}/asked; PATH=/usr/bin:/bin find {here}/lists > {here}/seen");
    let mut next = child("update", directory.path(), &[("apt-get", &script)]);
    assert!(next.status().unwrap().success());
    let seen = fs::read_to_string(directory.path().join("seen")).unwrap();
    assert!(seen.contains("lists/partial") && !seen.contains("half"), "{seen}");
    assert!(is_empty(&lists));
    let asked = fs::read_to_string(directory.path().join("asked")).unwrap();
    for option in ["Acquire::http::Timeout=", "Acquire::https::Timeout=", "Acquire::Retries="] {
        assert!(asked.contains(option), "a mirror that says nothing is given up: {asked}");
    }
}

#[test]
#[ignore = "the child's side of another test"]
fn update_four_times_at_once_and_once_more() {
    let lists = lists();
    let archives: Vec<Archive> = std::thread::scope(|scope| {
        let first = Archive::update(&lists, &CancellationToken::new()).unwrap();
        let others: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| Archive::update(&lists, &CancellationToken::new()).unwrap()))
            .collect();
        [first].into_iter().chain(others.into_iter().map(|other| other.join().unwrap())).collect()
    });
    for archive in archives {
        assert!(!is_empty(&lists));
        let error = archive.dependency("meta", "x-").map(drop).unwrap_err();
        assert!(
            matches!(&error, Error::UnknownIn { complaint, .. } if complaint == "cannot reach it"),
            "{error}"
        );
    }
    assert!(is_empty(&lists));
    Archive::update(&lists, &CancellationToken::new()).unwrap();
}

#[test]
#[ignore = "the child's side of another test"]
fn which_mirror_is_asked() {
    let error = Archive::update(&lists(), &CancellationToken::new())
        .and_then(|archive| archive.dependency("meta", "x-"))
        .unwrap_err();
    let Error::Mirror { host, .. } = error else { panic!("{error}") };
    fs::write(lists().with_file_name("host"), host).unwrap();
}

/// No server is reached: the mirror's URL leads nowhere.
#[test]
fn a_mirror_is_asked_where_apt_is_not_or_knows_nothing() {
    let knows_nothing = [("apt-get", "exit 0"), ("apt-cache", "exit 100")];
    let fails = [("apt-get", "exit 1")];
    for (programs, chosen, host) in [
        (&[][..], "", "deb.debian.org"),
        (&knows_nothing, "", "deb.debian.org"),
        (&fails, "https://mirror.invalid:99/debian", "mirror.invalid:99"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let mut child = child("which_mirror_is_asked", directory.path(), programs);
        child.env("MATCHLOCK_DEBIAN_MIRROR", chosen);
        child.env("https_proxy", "http://127.0.0.1:1").env_remove("no_proxy").env_remove("NO_PROXY");
        assert!(child.status().unwrap().success());
        assert_eq!(fs::read_to_string(directory.path().join("host")).unwrap(), host);
    }
}

#[test]
fn lists_are_read_once_for_all_who_want_them_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let script =
        format!("echo x >> {}/asked; echo 'W: cannot reach it\nW: ignored' >&2", directory.path().display());
    let programs = [("apt-get", script.as_str()), ("apt-cache", "exit 100")];
    let mut child = child("update_four_times_at_once_and_once_more", directory.path(), &programs);
    assert!(child.status().unwrap().success());
    assert_eq!(fs::read_to_string(directory.path().join("asked")).unwrap(), "x\nx\n");
}

#[test]
#[ignore = "the child's side of another test"]
fn update_until_it_is_given_up_and_once_more() {
    let lists = lists();
    let apt = OnceCell::new();
    let begun = || {
        let pid = fs::read_to_string(lists.with_file_name("pipe")).unwrap();
        let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        apt.set(pidfd_open(pid, PidfdFlags::empty()).unwrap()).unwrap();
        fs::write(lists.join("lists/partial/half"), "").unwrap();
        true
    };
    let error = given_up_at_once(begun, |token| Archive::update(&lists, token));
    assert!(matches!(error, Error::GivenUp), "{error}");
    let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
    let apt = apt.into_inner().unwrap();
    assert_eq!(poll(&mut [PollFd::new(&apt, PollFlags::IN)], Some(&limit)).unwrap(), 1, "it goes on");
    let archive = Archive::update(&lists, &CancellationToken::new()).unwrap();
    assert!(!lists.join("lists/partial/half").exists());
    drop(archive);
    assert!(is_empty(&lists));
}

#[test]
fn apt_ends_when_it_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let (here, pipe) = (directory.path().display(), pipe.display());
    let script =
        format!("[ -e {here}/again ] && exit 0; : > {here}/again; echo $$ > {pipe}; exec /bin/sleep 1000");
    let test = "update_until_it_is_given_up_and_once_more";
    assert!(child(test, directory.path(), &[("apt-get", &script)]).status().unwrap().success());
}
