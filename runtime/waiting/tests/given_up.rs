//! Each kind of wait, given up while nothing else would end it.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::cell::OnceCell;
use std::fs::{self, File};
use std::io::{self, Read};
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use waiting::testing::{given_up_at_once, is_waited_for};
use waiting::{CancellationToken, Wanted, is_given_up};

#[test]
fn a_lock_that_another_holds() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lock");
    let open = || File::create(&path).unwrap();
    let held = open();
    held.lock().unwrap();
    let kinds: [fn(File, &CancellationToken) -> io::Result<File>; 2] = [waiting::lock, waiting::lock_shared];
    for wait in kinds {
        let file = open();
        assert!(is_given_up(&given_up_at_once(|| is_waited_for(&held), |token| wait(file, token))));
        // A wait that was given up before does not begin.
        let token = CancellationToken::new();
        token.cancel();
        assert!(is_given_up(&wait(open(), &token).unwrap_err()));
    }
    // Threads that were left behind unlock the file as soon as they have the lock.
    drop(held);
    let token = CancellationToken::new();
    let held = waiting::lock(open(), &token).unwrap();
    assert!(open().try_lock_shared().is_err());
    drop(held);
    let together = [(); 2].map(|()| waiting::lock_shared(open(), &token).unwrap());
    assert!(open().try_lock().is_err());
    drop(together);
}

#[test]
fn a_lock_that_comes_free() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lock");
    let held = File::create(&path).unwrap();
    held.lock().unwrap();
    let (sender, released) = channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_waited_for(&held) {}
            sender.send(()).unwrap();
            held.unlock().unwrap();
        });
        let locked = waiting::lock(File::open(&path).unwrap(), &CancellationToken::new()).unwrap();
        released.try_recv().unwrap();
        assert!(File::open(&path).unwrap().try_lock().is_err());
        drop(locked);
    });
    File::open(&path).unwrap().try_lock().unwrap();
}

#[test]
fn a_program_and_what_it_has_started() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let script = format!("sleep 1000 & echo $$ $! > {}; wait", pipe.display());
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    let processes = OnceCell::new();
    let started = || {
        let pids = fs::read_to_string(&pipe).unwrap();
        let open = |pid: &str| pidfd_open(Pid::from_raw(pid.parse().unwrap()).unwrap(), PidfdFlags::empty());
        processes.set(pids.split_whitespace().map(|pid| open(pid).unwrap()).collect::<Vec<_>>()).unwrap();
        true
    };
    assert!(is_given_up(&given_up_at_once(started, |token| waiting::output(&mut command, token))));
    let processes = processes.into_inner().unwrap();
    assert_eq!(processes.len(), 2);
    let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
    for process in processes {
        assert_eq!(poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)).unwrap(), 1, "it goes on");
    }
}

#[test]
fn a_program_that_nobody_gives_up() {
    let token = CancellationToken::new();
    let output = waiting::output(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]), &token);
    let output = output.unwrap();
    let said = (output.stdout.as_slice(), output.stderr.as_slice(), output.status.code());
    assert_eq!(said, (&b"out\n"[..], &b"err\n"[..], Some(3)));
    let error = waiting::output(&mut Command::new("/nonexistent/program"), &token).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    token.cancel();
    assert!(is_given_up(&waiting::output(&mut Command::new("/nonexistent/program"), &token).unwrap_err()));
}

#[test]
fn another_thread() {
    let (begun, wait) = channel();
    let error = given_up_at_once(
        || wait.recv().is_ok(),
        |token| {
            begun.send(()).unwrap();
            waiting::wait_for(token, std::future::pending::<()>())
        },
    );
    assert!(is_given_up(&error));
}

#[test]
fn an_endless_file() {
    let (begun, wait) = channel();
    let error = given_up_at_once(
        || wait.recv().is_ok(),
        |token| {
            let mut zeros = Wanted::new(File::open("/dev/zero").unwrap(), token);
            zeros.read_exact(&mut [0; 8]).unwrap();
            begun.send(()).unwrap();
            io::copy(&mut zeros, &mut io::sink())
        },
    );
    assert!(is_given_up(&error));
}
