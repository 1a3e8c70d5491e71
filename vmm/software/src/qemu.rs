//! The system calls that QEMU may make: it computes, keeps time, and uses the descriptors that it was born with.
//!
//! Landlock keeps QEMU from opening files, but not from connecting to a socket that has a name, nor, on hosts whose
//! Landlock is older than signal scopes, from sending signals to its launcher. So QEMU may make no socket, connect
//! none, name no other process, and change no file. A call that is not listed fails with ENOSYS, as if the kernel did
//! not have it, because libraries that try a call are prepared for that. QEMU's signals to itself fail in the same way,
//! and abort(3) then ends QEMU by a fault. Newer QEMUs and C libraries make more calls than the version with which this
//! list was found, so harmless calls that this version did not make are listed, too.
//!
//! Not here: execve(2) after QEMU has begun, which QEMU forbids itself (`-sandbox on,spawn=deny`).

use confinement::calls::*;
use confinement::{Conditional, FIONBIO, Filter, Forbidden, Profile, Test};

/// Calls that QEMU may make with any arguments, besides those of every program.
const CALLS: &[Call] = &[
    // To become QEMU.
    EXECVE,
    ARCH_PRCTL,
    SET_TID_ADDRESS,
    SET_ROBUST_LIST,
    GET_ROBUST_LIST,
    RSEQ,
    UNAME,
    // Memory. TCG's translations of the guest's instructions are executable.
    MMAP,
    MPROTECT,
    MINCORE,
    MLOCK,
    MLOCK2,
    MUNLOCK,
    MSYNC,
    MEMFD_CREATE,
    // QEMU's threads.
    FUTEX_WAITV,
    MEMBARRIER,
    SCHED_GETAFFINITY,
    GETCPU,
    RT_SIGACTION,
    RT_SIGPENDING,
    RT_SIGSUSPEND,
    RT_SIGTIMEDWAIT,
    // Information about QEMU itself and its host.
    GETPPID,
    GETUID,
    GETEUID,
    GETGID,
    GETEGID,
    GETGROUPS,
    GETRESUID,
    GETRESGID,
    CAPGET,
    GETRUSAGE,
    GETRLIMIT,
    TIMES,
    SYSINFO,
    SECCOMP,
    // Time.
    CLOCK_GETRES,
    CLOCK_NANOSLEEP,
    NANOSLEEP,
    GETTIMEOFDAY,
    TIME,
    TIMERFD_CREATE,
    TIMERFD_SETTIME,
    TIMERFD_GETTIME,
    // Open descriptors, of whatever kind.
    READV,
    PREAD64,
    PREADV,
    PREADV2,
    WRITEV,
    PWRITE64,
    PWRITEV,
    PWRITEV2,
    LSEEK,
    CLOSE_RANGE,
    DUP,
    DUP2,
    DUP3,
    PIPE,
    PIPE2,
    EVENTFD2,
    SIGNALFD4,
    FALLOCATE,
    FTRUNCATE,
    FADVISE64,
    FSTATFS,
    // Waiting for descriptors.
    SELECT,
    PSELECT6,
    EPOLL_CREATE1,
    EPOLL_CTL,
    EPOLL_WAIT,
    EPOLL_PWAIT,
    EPOLL_PWAIT2,
    // Open sockets. All of them are streams, on which an address beside a message means nothing.
    SENDTO,
    RECVFROM,
    GETSOCKNAME,
    GETPEERNAME,
    GETSOCKOPT,
    SETSOCKOPT,
    SHUTDOWN,
    // Files. Landlock decides which of them QEMU may read.
    ACCESS,
    FACCESSAT,
    FACCESSAT2,
    STAT,
    LSTAT,
    FSTAT,
    NEWFSTATAT,
    STATX,
    STATFS,
    READLINK,
    READLINKAT,
    GETCWD,
    GETDENTS64,
];

/// Calls that QEMU may make with some arguments only.
const CONDITIONAL: &[Conditional] = &[
    // Threads, not processes; nor new namespaces, which a thread of the same process cannot have. clone3(2), whose
    // flags no filter can see, is not allowed.
    (CLONE, &[Test::has(0, libc::CLONE_THREAD)]),
    // Opening to read only, on hosts without Landlock too.
    (OPEN, &[Test::lacks(1, CHANGING)]),
    (OPENAT, &[Test::lacks(2, CHANGING)]),
    // QEMU's own limits, not those of others.
    (PRLIMIT64, &[Test::is(0, 0)]),
    // PR_SET_PDEATHSIG ends QEMU with its launcher.
    (PRCTL, &[Test::is(0, libc::PR_SET_NAME)]),
    (PRCTL, &[Test::is(0, libc::PR_GET_NAME)]),
    (PRCTL, &[Test::is(0, libc::PR_MCE_KILL)]),
    (PRCTL, &[Test::is(0, libc::PR_SET_TIMERSLACK)]),
    (PRCTL, &[Test::is(0, libc::PR_SET_NO_NEW_PRIVS)]),
    (PRCTL, &[Test::is(0, libc::PR_GET_NO_NEW_PRIVS)]),
    (PRCTL, &[Test::is(0, libc::PR_GET_SECCOMP)]),
    (PRCTL, &[Test::is(0, libc::PR_SET_SECCOMP)]),
    (PRCTL, &[Test::is(0, libc::PR_CAPBSET_READ)]),
    (PRCTL, &[Test::is(0, libc::PR_SET_VMA)]),
];

/// F_SETOWN and F_SETSIG are missing: by them QEMU could send signals.
const FCNTLS: &[i32] = &[
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
];

/// Flags of open(2) for more than reading.
const CHANGING: i32 = libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;

// Linux asm-generic/ioctls.h. TCGETS asks whether the console is a terminal.
const TCGETS: u32 = 0x5401;
const TCGETS2: u32 = 0x802c_542a;
const FIONREAD: u32 = 0x541b;

const IOCTLS: &[u32] = &[TCGETS, TCGETS2, FIONBIO, FIONREAD];

// Linux if_tun.h: the form of packets. Those that make an interface, or give it to somebody, are missing.
const TUNGETIFF: u32 = 0x8004_54d2;
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
const TUNGETVNETHDRSZ: u32 = 0x8004_54d7;
const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;

/// Requests of a QEMU with a TAP, besides the others.
const TAP_IOCTLS: &[u32] = &[TUNGETIFF, TUNSETOFFLOAD, TUNGETVNETHDRSZ, TUNSETVNETHDRSZ];

/// The filter for QEMU, which may have a TAP among its descriptors.
pub(crate) fn filter(has_tap: bool) -> Filter {
    let tap = if has_tap { TAP_IOCTLS } else { &[] };
    let profile = Profile {
        calls: &[RUNTIME, CALLS],
        conditional: &[CONDITIONAL],
        ioctls: &[IOCTLS, tap].concat(),
        fcntls: FCNTLS,
        absent: &[],
        otherwise: Forbidden::Absent,
    };
    profile.filter()
}

#[cfg(test)]
mod tests {
    use confinement::testing::{Fate, asked, try_everything};

    use super::*;

    #[allow(clippy::unwrap_used, reason = "tests")]
    fn confined_with(has_tap: bool) -> ! {
        let asked = asked();
        confinement::enter_with_nothing(confinement::Limits::default()).unwrap();
        filter(has_tap).install().unwrap();
        asked.end(|| drop(vec![1u8; 1 << 20]));
    }

    #[test]
    #[ignore = "the process that another test confines"]
    fn confined() {
        confined_with(false);
    }

    #[test]
    #[ignore = "the process that another test confines"]
    fn confined_with_a_tap() {
        confined_with(true);
    }

    #[test]
    fn forbidden_calls_look_absent() {
        let allowed = [
            "open to read",      // its libraries and firmware; Landlock has the say
            "open, the old way", // the same
            "stat",              // the same
            "execve",            // how it begins
            "executable memory", // what TCG makes of the guest's instructions
            "memory made executable",
            "memfd",          // the guest's memory
            "shorten a file", // how the guest's memory gets its length
        ];
        let tap = ["name of a TAP", "offloads of a TAP", "header of a TAP", "header of a TAP, as it is"];
        for (test, with_a_tap) in [("confined", &[][..]), ("confined_with_a_tap", &tap)] {
            let could = allowed.iter().chain(with_a_tap).map(|name| (*name, Fate::Could));
            let test = format!("qemu::tests::{test}");
            try_everything(&test, &could.collect::<Vec<_>>(), &Fate::Absent);
        }
    }
}
