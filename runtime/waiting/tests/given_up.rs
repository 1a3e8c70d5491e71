//! Each kind of wait, given up while there is nothing to end it otherwise.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs::{self, File};
use std::io::{self, Read};
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use waiting::{CancellationToken, Wanted, is_given_up};

/// Far below every limit that is counted in seconds, far above what a busy host takes to wake a thread.
const AT_ONCE: Duration = Duration::from_millis(500);

/// Gives up once `begun` returns, and returns how long `wait` went on after that, and its outcome.
fn give_up<T: Send>(
    begun: impl FnOnce(),
    wait: impl FnOnce(&CancellationToken) -> io::Result<T> + Send,
) -> (Duration, io::Result<T>) {
    let token = CancellationToken::new();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| wait(&token));
        begun();
        let given_up = Instant::now();
        token.cancel();
        let outcome = waiter.join().unwrap();
        (given_up.elapsed(), outcome)
    })
}

#[track_caller]
fn at_once<T>((after, outcome): (Duration, io::Result<T>)) {
    let error = outcome.map(drop).unwrap_err();
    assert!(is_given_up(&error) && after < AT_ONCE, "{error} after {after:?}");
}

/// Whether somebody waits for a lock, as the kernel tells it.
fn is_waited_for(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = format!(":{} ", file.metadata().unwrap().ino());
    let locks = fs::read_to_string("/proc/locks").unwrap();
    locks.lines().any(|line| line.contains("->") && line.contains(&inode))
}

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
        let waited_for = || while !is_waited_for(&held) {};
        at_once(give_up(waited_for, |token| wait(file, token)));
        // Whoever has given up does not begin.
        let token = CancellationToken::new();
        token.cancel();
        assert!(is_given_up(&wait(open(), &token).unwrap_err()));
    }
    // Those who were given up let it go as soon as they have it.
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
    let mut processes = Vec::new();
    let started = || {
        let pids = fs::read_to_string(&pipe).unwrap();
        let open = |pid: &str| pidfd_open(Pid::from_raw(pid.parse().unwrap()).unwrap(), PidfdFlags::empty());
        processes.extend(pids.split_whitespace().map(|pid| open(pid).unwrap()));
    };
    at_once(give_up(started, |token| waiting::output(&mut command, token)));
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
    at_once(give_up(
        || wait.recv().unwrap(),
        |token| {
            begun.send(()).unwrap();
            waiting::wait_for(token, std::future::pending::<()>())
        },
    ));
}

#[test]
fn an_endless_file() {
    let (begun, wait) = channel();
    at_once(give_up(
        || wait.recv().unwrap(),
        |token| {
            let mut zeros = Wanted::new(File::open("/dev/zero").unwrap(), token);
            zeros.read_exact(&mut [0; 8]).unwrap();
            begun.send(()).unwrap();
            io::copy(&mut zeros, &mut io::sink())
        },
    ));
}
