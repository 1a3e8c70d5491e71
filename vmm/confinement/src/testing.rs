//! The one list of attempts of a process that its guest has taken over, and the code that makes them.
//!
//! Each attempt is made in a process of its own: the test program, executed again, confines itself by the profile and
//! makes one call. A profile that allows a call of the list for a reason names it, and then the call must succeed.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

use landlock::{ABI, Access, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope};
use libc::c_long;

use crate::calls::{self, Call};
use crate::{Filter, Forbidden, Profile};

/// The environment variable that tells a process which call to make.
const WHICH: &str = "CONFINEMENT_ATTEMPT";
/// The statuses of a process whose call was made, and of one whose call looks absent.
const COULD: i32 = 77;
const ABSENT: i32 = 78;

const STREAM: libc::c_int = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
/// A kind of socket that, even as half of a pair, sends to any address.
const DATAGRAM: libc::c_int = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
const READ_EXEC: libc::c_int = libc::PROT_READ | libc::PROT_EXEC;

// Linux if_tun.h and sockios.h.
const TUNSETIFF: libc::c_int = 0x4004_54ca;
const TUNSETPERSIST: libc::c_int = 0x4004_54cb;
const TUNSETOWNER: libc::c_int = 0x4004_54cc;
const TUNGETIFF: u32 = 0x8004_54d2;
const TUNSETOFFLOAD: libc::c_int = 0x4004_54d0;
const TUNGETVNETHDRSZ: u32 = 0x8004_54d7;
const TUNSETVNETHDRSZ: libc::c_int = 0x4004_54d8;
const SIOCGSKNS: libc::c_int = 0x894c;

/// A system call that would succeed for another program, or do no harm if it did.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The name of the attempt.
    pub name: &'static str,
    number: c_long,
    arguments: [c_long; 5],
}

/// All attempts, some of them on the process `victim`. Every pointer is null.
#[must_use]
pub fn attempts(victim: u32) -> Vec<Attempt> {
    let victim = victim.cast_signed();
    let this = std::process::id().cast_signed();
    let table: &[(&str, Call, &[libc::c_int])] = &[
        ("open to read", calls::OPENAT, &[libc::AT_FDCWD, 0, 0]),
        ("open to write", calls::OPENAT, &[libc::AT_FDCWD, 0, libc::O_WRONLY]),
        ("create", calls::OPENAT, &[libc::AT_FDCWD, 0, libc::O_RDONLY | libc::O_CREAT]),
        ("open, the old way", calls::OPEN, &[]),
        ("stat", calls::NEWFSTATAT, &[libc::AT_FDCWD]),
        ("unlink", calls::UNLINKAT, &[libc::AT_FDCWD]),
        ("shorten a file", calls::FTRUNCATE, &[3]),
        ("permissions", calls::FCHMOD, &[3, 0o666]),
        ("working directory", calls::FCHDIR, &[3]),
        ("internet socket", calls::SOCKET, &[libc::AF_INET, libc::SOCK_STREAM]),
        ("unix socket", calls::SOCKET, &[libc::AF_UNIX, libc::SOCK_STREAM]),
        ("netlink socket", calls::SOCKET, &[libc::AF_NETLINK, libc::SOCK_RAW]),
        ("vsock socket", calls::SOCKET, &[libc::AF_VSOCK, libc::SOCK_STREAM]),
        ("netlink pair", calls::SOCKETPAIR, &[libc::AF_NETLINK, libc::SOCK_RAW]),
        ("datagram pair", calls::SOCKETPAIR, &[libc::AF_UNIX, DATAGRAM]),
        ("another family's pair", calls::SOCKETPAIR, &[libc::AF_TIPC, STREAM]),
        ("connect", calls::CONNECT, &[]),
        ("bind", calls::BIND, &[]),
        ("execve", calls::EXECVE, &[]),
        ("fork", calls::CLONE, &[libc::SIGCHLD]),
        ("fork, the old way", calls::FORK, &[]),
        ("clone3", calls::CLONE3, &[]),
        ("ptrace", calls::PTRACE, &[libc::PTRACE_ATTACH.cast_signed(), victim]),
        ("be traced", calls::PTRACE, &[libc::PTRACE_TRACEME.cast_signed()]),
        ("another's memory", calls::PROCESS_VM_READV, &[victim]),
        ("kill", calls::KILL, &[victim]),
        ("kill everybody", calls::KILL, &[-1]),
        ("another's thread", calls::TGKILL, &[victim, victim]),
        ("pidfd", calls::PIDFD_OPEN, &[victim]),
        ("another's limits", calls::PRLIMIT64, &[victim]),
        ("another's priority", calls::GETPRIORITY, &[libc::PRIO_USER.cast_signed()]),
        ("executable memory", calls::MMAP, &[0, 4096, READ_EXEC]),
        ("memory made executable", calls::MPROTECT, &[0, 0, READ_EXEC]),
        ("another ioctl", calls::IOCTL, &[0, 0x5412]),
        ("KVM_CREATE_VM", calls::IOCTL, &[0, 0xae01]),
        ("another interface", calls::IOCTL, &[0, TUNSETIFF]),
        ("a lasting interface", calls::IOCTL, &[0, TUNSETPERSIST]),
        ("another owner of an interface", calls::IOCTL, &[0, TUNSETOWNER]),
        ("the namespace of an interface", calls::IOCTL, &[0, SIOCGSKNS]),
        ("name of a TAP", calls::IOCTL, &[0, TUNGETIFF.cast_signed()]),
        ("offloads of a TAP", calls::IOCTL, &[0, TUNSETOFFLOAD]),
        ("header of a TAP", calls::IOCTL, &[0, TUNSETVNETHDRSZ]),
        ("header of a TAP, as it is", calls::IOCTL, &[0, TUNGETVNETHDRSZ.cast_signed()]),
        ("owner of a descriptor", calls::FCNTL, &[3, libc::F_SETOWN, this]),
        ("prctl", calls::PRCTL, &[libc::PR_GET_DUMPABLE]),
        ("survive its parent", calls::PRCTL, &[libc::PR_SET_PDEATHSIG]),
        ("setuid", calls::SETUID, &[]),
        ("namespaces", calls::UNSHARE, &[libc::CLONE_NEWUTS]),
        ("mount", calls::MOUNT, &[]),
        ("io_uring", calls::IO_URING_SETUP, &[1]),
        ("bpf", calls::BPF, &[]),
        ("userfaultfd", calls::USERFAULTFD, &[]),
        ("memfd", calls::MEMFD_CREATE, &[]),
        ("key ring", calls::KEYCTL, &[0, -3, 1]),
        ("shared memory", calls::SHMGET, &[0, 4096, 0o1600]),
        ("a number there is not", Call::number(4000), &[]),
        ("the x32 interface", Call::number(0x4000_0000), &[]),
    ];
    let there = table.iter().filter_map(|(name, call, given)| {
        let mut arguments = [0; 5];
        arguments.iter_mut().zip(*given).for_each(|(argument, given)| *argument = (*given).into());
        Some(Attempt { name, number: call.get()?.into(), arguments })
    });
    there.collect()
}

impl Attempt {
    /// Makes the call. Returns false if the call looks absent, and true otherwise; a filter may also kill the process.
    #[must_use]
    pub fn make(&self) -> bool {
        let [a, b, c, d, e] = self.arguments;
        // SAFETY: every pointer of the list is null, so the kernel writes nowhere; a mapping is a new one. A fork(2)
        // that is wrongly allowed makes a process that at once reports its success.
        let result = unsafe { libc::syscall(self.number, a, b, c, d, e) };
        result >= 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
    }
}

/// The attempt that this process is to make. A process asks for it before it confines itself, and then calls
/// [`Asked::end`].
#[derive(Debug)]
pub struct Asked(Option<Attempt>);

/// The attempt that the environment asks of this process.
#[must_use]
pub fn asked() -> Asked {
    let which = std::env::var(WHICH).unwrap_or_default();
    let parent = std::os::unix::process::parent_id();
    Asked(attempts(parent).into_iter().find(|attempt| attempt.name == which))
}

impl Asked {
    /// Makes the attempt, and ends the process with its outcome. A process that was asked for no attempt does what it
    /// `may`.
    pub fn end(self, may: impl FnOnce()) -> ! {
        let could = match self.0 {
            Some(attempt) => attempt.make(),
            None => {
                may();
                true
            }
        };
        // SAFETY: `_exit` does not return, runs no handler, and touches no memory.
        unsafe { libc::_exit(if could { COULD } else { ABSENT }) }
    }
}

/// The outcome of an attempt.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    /// The call was made.
    Could,
    /// The call looks absent.
    Absent,
    /// The process was killed by its filter.
    Killed,
    /// The process ended before the attempt.
    Other(ExitStatus),
}

/// The outcome of this attempt in a process of its own. `test` is the ignored test that confines itself.
fn fate(test: &str, which: &str) -> Fate {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--test-threads=1"]).env(WHICH, which);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
    match (status.code(), status.signal()) {
        (Some(COULD), _) => Fate::Could,
        (Some(ABSENT), _) => Fate::Absent,
        (_, Some(libc::SIGSYS)) => Fate::Killed,
        _ => Fate::Other(status),
    }
}

/// Makes all attempts against the profile with which the ignored test `test` confines itself. `exceptions` are the
/// attempts that have another outcome there, for a reason; all others must have the outcome `forbidden`.
///
/// # Panics If an attempt has another outcome, or if an exception names no attempt.
pub fn try_everything(test: &str, exceptions: &[(&str, Fate)], forbidden: &Fate) {
    assert_eq!(fate(test, "nothing forbidden"), Fate::Could, "what it may");
    let attempts = attempts(std::process::id());
    for (name, _) in exceptions {
        assert!(attempts.iter().any(|attempt| attempt.name == *name), "{name}: no such try");
    }
    for Attempt { name, .. } in attempts {
        let exception = exceptions.iter().find(|(exception, _)| *exception == name);
        let expected = exception.map_or(forbidden, |(_, fate)| fate);
        assert_eq!(&fate(test, name), expected, "{name}");
    }
}

/// Makes these calls look absent to the calling thread and those that it starts, as on an older kernel.
///
/// # Panics If the kernel refuses the filter.
pub fn pretend_absent(absent: &[Call]) {
    pretend_absent_filter(absent).install().unwrap();
}

/// The filter of [`pretend_absent`], for a child. The filter needs no_new_privs, which this function sets for the
/// calling thread.
///
/// # Panics If the kernel refuses no_new_privs.
pub fn pretend_absent_filter(absent: &[Call]) -> Filter {
    rustix::thread::set_no_new_privs(true).unwrap();
    let otherwise = Forbidden::Allow;
    Profile { calls: &[], conditional: &[], ioctls: &[], fcntls: &[], absent, otherwise }.filter()
}

/// Whether the kernel's Landlock covers networks, as it does since ABI 4.
#[must_use]
pub fn has_landlock_of_networks() -> bool {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    ruleset.handle_access(AccessNet::from_all(ABI::V4)).is_ok()
}

/// Whether the kernel's Landlock covers signals, as it does since ABI 6.
#[must_use]
pub fn has_landlock_of_signals() -> bool {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    ruleset.scope(Scope::from_all(ABI::V6)).is_ok()
}
