//! What QEMU may call: it computes, keeps time, and uses the descriptors it was born with.
//!
//! Landlock keeps QEMU from opening files, not from connecting to a socket that has a name, nor from a signal to its
//! launcher on hosts whose Landlock is older than signal scopes. So it makes no socket, connects none, names no other
//! process, and changes no file. A call that is not listed does not exist for it (ENOSYS), because that is what
//! libraries that try one are prepared for; so is a signal to itself, and abort(3) then ends it by a fault. Newer
//! QEMUs and C libraries call more than the one this was found with, so what is harmless is listed though that one did
//! not call it.
//!
//! Not here: execve(2) after QEMU has begun, which QEMU forbids itself (`-sandbox on,spawn=deny`).

use confinement::calls::*;
use confinement::{Conditional, FIONBIO, Forbidden, Profile, Test};

/// What it calls with any arguments besides what every program does.
const CALLS: &[Call] = &[
    // To become QEMU.
    EXECVE,
    ARCH_PRCTL,
    SET_TID_ADDRESS,
    SET_ROBUST_LIST,
    GET_ROBUST_LIST,
    RSEQ,
    UNAME,
    // Memory. What TCG makes of the guest's instructions is executable.
    MMAP,
    MPROTECT,
    MINCORE,
    MLOCK,
    MLOCK2,
    MUNLOCK,
    MSYNC,
    MEMFD_CREATE,
    // Its threads.
    FUTEX_WAITV,
    MEMBARRIER,
    SCHED_GETAFFINITY,
    GETCPU,
    RT_SIGACTION,
    RT_SIGPENDING,
    RT_SIGSUSPEND,
    RT_SIGTIMEDWAIT,
    // Itself and its host.
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
    // Descriptors it has, of whatever kind.
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
    // Waiting for them.
    SELECT,
    PSELECT6,
    EPOLL_CREATE1,
    EPOLL_CTL,
    EPOLL_WAIT,
    EPOLL_PWAIT,
    EPOLL_PWAIT2,
    // Sockets it has. They are streams, and for those an address beside a message means nothing.
    SENDTO,
    RECVFROM,
    GETSOCKNAME,
    GETPEERNAME,
    GETSOCKOPT,
    SETSOCKOPT,
    SHUTDOWN,
    // Files: which of them it reads is Landlock's business.
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

/// What it calls with some arguments.
const CONDITIONAL: &[Conditional] = &[
    // Threads, not processes; nor in other namespaces, which a thread of the same process cannot be. clone3(2), whose
    // flags no filter can see, is not there.
    (CLONE, &[Test::has(0, libc::CLONE_THREAD)]),
    // To read, on hosts without Landlock too.
    (OPEN, &[Test::lacks(1, CHANGING)]),
    (OPENAT, &[Test::lacks(2, CHANGING)]),
    // Limits of its own, not of others.
    (PRLIMIT64, &[Test::is(0, 0)]),
    // PR_SET_PDEATHSIG ends it with its launcher.
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

/// F_SETOWN and F_SETSIG would be a way to send signals.
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

/// open(2) for more than reading.
const CHANGING: i32 = libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;

// Linux asm-generic/ioctls.h. The console is asked whether it is a terminal.
const TCGETS: u32 = 0x5401;
const TCGETS2: u32 = 0x802c_542a;
const FIONREAD: u32 = 0x541b;

/// All of it.
pub(crate) const PROFILE: Profile<'_> = Profile {
    calls: &[RUNTIME, CALLS],
    conditional: &[CONDITIONAL],
    ioctls: &[TCGETS, TCGETS2, FIONBIO, FIONREAD],
    fcntls: FCNTLS,
    absent: &[],
    otherwise: Forbidden::Absent,
};

#[cfg(test)]
mod tests {
    use confinement::testing::{Fate, asked, try_everything};

    use super::*;

    #[test]
    #[ignore = "the process that the other test confines"]
    #[allow(clippy::unwrap_used, reason = "tests")]
    fn confined() {
        let asked = asked();
        confinement::enter_with_nothing(confinement::Limits::default()).unwrap();
        PROFILE.filter().install().unwrap();
        asked.end(|| drop(vec![1u8; 1 << 20]));
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
        try_everything("qemu::tests::confined", &allowed.map(|name| (name, Fate::Could)), &Fate::Absent);
    }
}
