//! Attempts of a VMM process that its guest has taken over: none of them succeeds.
//!
//! Each attempt is made in a process of its own, confined by the same calls as `matchlock-vmm`. The tests of the
//! process show that the program makes these calls, and when. Not here: the system calls that devices need, which their
//! own tests show.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs::File;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use confinement::Limits;
use confinement::testing::{self, Fate, asked, try_everything};
use process::Spawn;
use vmm::sys::{confine_process, confine_threads, ioctls};

/// Most bytes that the process may map.
const OWN: u64 = 1 << 30;

/// The tasks of a process of this test.
const LIFELINE: &str = "lifeline";
const LANDLOCK: &str = "without seccomp";

fn confined_with(has_network: bool) -> ! {
    let asked = asked();
    confine_process().unwrap();
    confine_threads(&ioctls(has_network), Limits::new(0, 0, OWN)).unwrap();
    asked.end(what_it_may);
}

#[test]
#[ignore = "the process that another test confines"]
fn confined() {
    confined_with(false);
}

#[test]
#[ignore = "the process that another test confines"]
fn confined_with_a_network() {
    confined_with(true);
}

#[test]
fn forbidden_calls_kill_the_process() {
    try_everything("confined", &[], &Fate::Killed);
}

#[test]
fn a_network_device_changes_its_taps_offloads_and_nothing_else() {
    try_everything("confined_with_a_network", &[("offloads of a TAP", Fate::Could)], &Fate::Killed);
}

#[test]
#[ignore = "the process that other tests confine"]
fn confined_with_a_channel() {
    let channel = process::parent_channel().unwrap();
    let (what, _) = channel.recv::<String>().unwrap().unwrap();
    confine_process().unwrap();
    if what == LANDLOCK {
        assert_eq!(File::open("/etc/passwd").unwrap_err().kind(), ErrorKind::PermissionDenied);
        let denied = TcpStream::connect("127.0.0.1:9").unwrap_err().kind();
        assert_eq!(denied, ErrorKind::PermissionDenied);
        assert!(rustix::thread::capabilities(None).unwrap().permitted.is_empty());
        channel.send(&"did it", &[]).unwrap();
    } else {
        process::exit_on_hang_up(&channel, 0).unwrap();
        confine_threads(&ioctls(false), Limits::new(0, 0, OWN)).unwrap();
        channel.send(&"did it", &[]).unwrap();
        assert!(channel.recv::<String>().unwrap().is_none());
    }
    std::process::exit(0);
}

/// Uses memory, random numbers and streams, which the process may.
fn what_it_may() {
    let large: Vec<u8> = vec![1; 4 << 20];
    assert_eq!(large.iter().map(|byte| usize::from(*byte)).sum::<usize>(), large.len());
    let mut random = [0; 16];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).unwrap();
    let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
    a.set_nonblocking(true).unwrap();
    b.shutdown(std::net::Shutdown::Both).unwrap();
}

/// How a confined process ends, and whether it reported that it had done its task.
fn fate(what: &str) -> (ExitStatus, bool) {
    let mut spawn = Spawn::new(&std::env::current_exe().unwrap());
    let args = ["--exact", "confined_with_a_channel", "--ignored", "--test-threads=1"];
    spawn.args = args.map(Into::into).into();
    let (mut child, channel) = process::spawn(spawn).unwrap();
    channel.send(&what, &[]).unwrap();
    let did_it = channel.recv::<String>().unwrap().is_some();
    drop(channel);
    (child.wait().unwrap(), did_it)
}

/// Starting a thread takes calls that are not on the list, and so does ending the process while two threads run.
#[test]
fn a_lifeline_keeps_to_the_list_from_its_start_to_its_end() {
    for _ in 0..30 {
        assert_eq!(fate(LIFELINE), (ExitStatus::from_raw(0), true));
    }
}

#[test]
fn landlock_and_capabilities_hold_without_seccomp() {
    if !testing::has_landlock_of_networks() {
        skip::skip("landlock", "this kernel's Landlock is too old or switched off");
        return;
    }
    assert_eq!(fate(LANDLOCK), (ExitStatus::from_raw(0), true));
}
