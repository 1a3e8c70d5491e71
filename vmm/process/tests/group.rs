//! A program of others, and its own children, when its parent is killed and when it is done.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use process::Group;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The variable that tells the child the name of its pipe.
const PIPE: &str = "MATCHLOCK_TEST_PIPE";

fn output_in_group(command: &mut Command) -> std::io::Result<Output> {
    let group = Group::start()?;
    group.place(command)?.output()
}

fn pipe(directory: &Path) -> PathBuf {
    let path = directory.join("pipe");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    path
}

/// The processes whose ids come through the pipe, and that still run.
fn told(pipe: &Path) -> Vec<OwnedFd> {
    let pids = fs::read_to_string(pipe).unwrap();
    let open = |pid: &str| pidfd_open(Pid::from_raw(pid.parse().unwrap()).unwrap(), PidfdFlags::empty());
    pids.split_whitespace().filter_map(|pid| open(pid).ok()).collect()
}

fn wait_for_end(pidfd: &OwnedFd) {
    let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&limit)).unwrap(), 1, "it goes on");
}

#[test]
#[ignore = "the child's side of another test"]
fn in_the_child() {
    let script = format!("sleep 1000 & echo $$ $! > {}; wait", std::env::var(PIPE).unwrap());
    output_in_group(Command::new("sh").args(["-c", &script])).unwrap();
}

#[test]
fn nothing_of_a_program_outlives_a_parent_that_was_killed() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = pipe(directory.path());
    let mut parent = Command::new(std::env::current_exe().unwrap());
    parent.args(["--exact", "in_the_child", "--ignored"]).env(PIPE, &pipe).stdout(Stdio::null());
    let mut parent = parent.spawn().unwrap();
    let processes = told(&pipe);
    assert_eq!(processes.len(), 2);
    parent.kill().unwrap();
    parent.wait().unwrap();
    processes.iter().for_each(wait_for_end);
}

#[test]
fn nothing_of_a_program_outlives_it() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = pipe(directory.path());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || told(&pipe)
    });
    // The script prints the id of its child, and ends.
    let script = format!("sleep 1000 > /dev/null 2>&1 & echo $! > {}; echo done; exit 3", pipe.display());
    let output = output_in_group(Command::new("sh").args(["-c", &script])).unwrap();
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"done\n"[..], Some(3)));
    reader.join().unwrap().iter().for_each(wait_for_end);
}
