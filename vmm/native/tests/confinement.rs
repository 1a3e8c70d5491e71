//! What a VMM process that its guest has taken over could still do: nothing that is tried here.
//!
//! Each try happens in a process of its own, confined by the same calls as `matchlock-vmm`. That the program makes
//! these calls, and when, is in the tests of the process. Not here: what devices need, which their tests show.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs::File;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use landlock::{ABI, Access, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr};
use libc::c_long;
use process::Spawn;
use vmm::sys::{IOCTLS, confine_process, confine_threads};

const STREAM: libc::c_int = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
/// A socket that sends to whichever address it is told, though it is half of a pair.
const DATAGRAM: libc::c_int = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;

/// What may be tried besides: a lifeline.
const LIFELINE: &str = "lifeline";

/// Calls that kill, with arguments that would do no harm.
fn forbidden() -> Vec<(&'static str, c_long, [c_long; 3])> {
    let parent = rustix::process::getppid().unwrap().as_raw_nonzero().get().into();
    let exec = (libc::PROT_READ | libc::PROT_EXEC).into();
    vec![
        ("open", libc::SYS_openat, [libc::AT_FDCWD.into(), 0, 0]),
        ("open, the old way", libc::SYS_open, [0; 3]),
        ("stat", libc::SYS_newfstatat, [libc::AT_FDCWD.into(), 0, 0]),
        ("unlink", libc::SYS_unlinkat, [libc::AT_FDCWD.into(), 0, 0]),
        ("internet socket", libc::SYS_socket, [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0]),
        ("unix socket", libc::SYS_socket, [libc::AF_UNIX.into(), libc::SOCK_STREAM.into(), 0]),
        ("netlink pair", libc::SYS_socketpair, [libc::AF_NETLINK.into(), libc::SOCK_RAW.into(), 0]),
        ("datagram pair", libc::SYS_socketpair, [libc::AF_UNIX.into(), DATAGRAM.into(), 0]),
        ("another family's pair", libc::SYS_socketpair, [libc::AF_TIPC.into(), STREAM.into(), 0]),
        ("connect", libc::SYS_connect, [0; 3]),
        ("execve", libc::SYS_execve, [0; 3]),
        ("fork", libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0]),
        ("thread", libc::SYS_clone3, [0; 3]),
        ("ptrace", libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), parent, 0]),
        ("another's memory", libc::SYS_process_vm_readv, [parent, 0, 0]),
        ("kill", libc::SYS_kill, [parent, 0, 0]),
        ("another's thread", libc::SYS_tgkill, [parent, parent, 0]),
        ("pidfd", libc::SYS_pidfd_open, [parent, 0, 0]),
        ("executable memory", libc::SYS_mmap, [0, 4096, exec]),
        ("memory made executable", libc::SYS_mprotect, [0, 0, exec]),
        ("another ioctl", libc::SYS_ioctl, [0, 0x5412, 0]),
        ("KVM_CREATE_VM", libc::SYS_ioctl, [0, 0xae01, 0]),
        ("another fcntl", libc::SYS_fcntl, [0, libc::F_SETOWN.into(), 0]),
        ("prctl", libc::SYS_prctl, [libc::PR_GET_DUMPABLE.into(), 0, 0]),
        ("setuid", libc::SYS_setuid, [0; 3]),
        ("namespaces", libc::SYS_unshare, [0; 3]),
        ("mount", libc::SYS_mount, [0; 3]),
        ("io_uring", libc::SYS_io_uring_setup, [0; 3]),
        ("bpf", libc::SYS_bpf, [0; 3]),
        ("userfaultfd", libc::SYS_userfaultfd, [0; 3]),
        ("memfd", libc::SYS_memfd_create, [0; 3]),
        ("a number there is not", 4000, [0; 3]),
        ("the x32 interface", 0x4000_0000, [0; 3]),
    ]
}

#[allow(unsafe_code, reason = "calls that no safe wrapper would make")]
fn call(number: c_long, [a, b, c]: [c_long; 3]) -> c_long {
    // SAFETY: every pointer in the table is null, so the kernel writes nowhere.
    unsafe { libc::syscall(number, a, b, c) }
}

#[test]
#[ignore = "the process that other tests confine"]
fn confined() {
    let channel = process::parent_channel().unwrap();
    let (what, _) = channel.recv::<String>().unwrap().unwrap();
    confine_process().unwrap();
    if what == "without seccomp" {
        assert_eq!(File::open("/etc/passwd").unwrap_err().kind(), ErrorKind::PermissionDenied);
        let denied = TcpStream::connect("127.0.0.1:9").unwrap_err().kind();
        assert_eq!(denied, ErrorKind::PermissionDenied);
        assert!(rustix::thread::capabilities(None).unwrap().permitted.is_empty());
    } else {
        let tries = forbidden();
        if what == LIFELINE {
            process::exit_on_hang_up(&channel, 0).unwrap();
        }
        confine_threads(IOCTLS).unwrap();
        match tries.iter().find(|(name, ..)| *name == what) {
            Some((_, number, arguments)) => drop(call(*number, *arguments)),
            None => what_it_may(),
        }
    }
    channel.send(&"did it", &[]).unwrap();
    if what == LIFELINE {
        assert!(channel.recv::<String>().unwrap().is_none());
    }
    std::process::exit(0);
}

/// Memory, random numbers, streams.
fn what_it_may() {
    let large: Vec<u8> = vec![1; 4 << 20];
    assert_eq!(large.iter().map(|byte| usize::from(*byte)).sum::<usize>(), large.len());
    let mut random = [0; 16];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).unwrap();
    let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
    a.set_nonblocking(true).unwrap();
    b.shutdown(std::net::Shutdown::Both).unwrap();
}

/// How a confined process fares, and whether it could say that it did what it was told.
fn fate(what: &str) -> (ExitStatus, bool) {
    let mut spawn = Spawn::new(&std::env::current_exe().unwrap());
    spawn.args = ["--exact", "confined", "--ignored", "--test-threads=1"].map(Into::into).into();
    let (mut child, channel) = process::spawn(spawn).unwrap();
    channel.send(&what, &[]).unwrap();
    let did_it = channel.recv::<String>().unwrap().is_some();
    drop(channel);
    (child.wait().unwrap(), did_it)
}

#[test]
fn forbidden_calls_kill_the_process() {
    assert_eq!(fate("nothing forbidden"), (ExitStatus::from_raw(0), true));
    for (what, ..) in forbidden() {
        let (status, did_it) = fate(what);
        assert_eq!((status.signal(), did_it), (Some(libc::SIGSYS), false), "{what}: {status}");
    }
}

/// Starting a thread takes calls that are not on the list, and so does ending the process on two threads at once.
#[test]
fn a_lifeline_keeps_to_the_list_from_its_start_to_its_end() {
    for _ in 0..30 {
        assert_eq!(fate(LIFELINE), (ExitStatus::from_raw(0), true));
    }
}

#[test]
fn landlock_and_capabilities_hold_without_seccomp() {
    // Its network rules came with ABI 4.
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    if ruleset.handle_access(AccessNet::from_all(ABI::V4)).is_err() {
        skip::skip("landlock", "this kernel's Landlock is too old or switched off");
        return;
    }
    assert_eq!(fate("without seccomp"), (ExitStatus::from_raw(0), true));
}
