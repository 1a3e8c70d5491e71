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

use crate::confine::{Condition, Conditional};

/// What it calls with any arguments.
pub(crate) const CALLS: &[i64] = &[
    // To become QEMU.
    libc::SYS_execve,
    libc::SYS_arch_prctl,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_uname,
    // Memory. What TCG makes of the guest's instructions is executable.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_msync,
    libc::SYS_memfd_create,
    // Its threads.
    libc::SYS_futex,
    FUTEX_WAITV,
    libc::SYS_membarrier,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    // Itself and its host.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_capget,
    libc::SYS_getrusage,
    libc::SYS_getrlimit,
    libc::SYS_times,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
    libc::SYS_seccomp,
    // Time.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_time,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    // Descriptors it has, of whatever kind.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_pipe,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fadvise64,
    libc::SYS_fstatfs,
    // Waiting for them.
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    EPOLL_PWAIT2,
    // Sockets it has. They are streams, and for those an address beside a message means nothing.
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Files: which of them it reads is Landlock's business.
    libc::SYS_access,
    libc::SYS_faccessat,
    FACCESSAT2,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
];

// The same numbers on every architecture: asm-generic/unistd.h and those since.
const FACCESSAT2: i64 = 439;
const EPOLL_PWAIT2: i64 = 441;
const FUTEX_WAITV: i64 = 449;

/// What it calls with some arguments.
pub(crate) const CALLS_IF: &[Conditional] = &[
    // Threads, not processes; nor in other namespaces, which a thread of the same process cannot be. clone3(2), whose
    // flags no filter can see, is not there.
    (libc::SYS_clone, &[(0, Condition::With(libc::CLONE_THREAD))]),
    // To read, on hosts without Landlock too.
    (libc::SYS_open, &[(1, Condition::Without(CHANGING))]),
    (libc::SYS_openat, &[(2, Condition::Without(CHANGING))]),
    // Limits of its own, not of others.
    (libc::SYS_prlimit64, &[(0, Condition::Is(0))]),
    // F_SETOWN and F_SETSIG would be a way to send signals.
    (libc::SYS_fcntl, &[(1, Condition::Is(libc::F_DUPFD))]),
    (libc::SYS_fcntl, &[(1, Condition::Is(libc::F_DUPFD_CLOEXEC))]),
    (libc::SYS_fcntl, &[(1, Condition::Is(libc::F_GETFD))]),
    (libc::SYS_fcntl, &[(1, Condition::Is(libc::F_SETFD))]),
    (libc::SYS_fcntl, &[(1, Condition::Is(libc::F_GETFL))]),
    (libc::SYS_fcntl, &[(1, Condition::Is(libc::F_SETFL))]),
    (libc::SYS_fcntl, &[(1, Condition::Is(libc::F_ADD_SEALS))]),
    (libc::SYS_fcntl, &[(1, Condition::Is(libc::F_GET_SEALS))]),
    // The console is asked whether it is a terminal.
    (libc::SYS_ioctl, &[(1, Condition::Is(TCGETS))]),
    (libc::SYS_ioctl, &[(1, Condition::Is(TCGETS2))]),
    (libc::SYS_ioctl, &[(1, Condition::Is(FIONBIO))]),
    (libc::SYS_ioctl, &[(1, Condition::Is(FIONREAD))]),
    // PR_SET_PDEATHSIG ends it with its launcher.
    (libc::SYS_prctl, &[(0, Condition::Is(libc::PR_SET_NAME))]),
    (libc::SYS_prctl, &[(0, Condition::Is(libc::PR_GET_NAME))]),
    (libc::SYS_prctl, &[(0, Condition::Is(libc::PR_MCE_KILL))]),
    (libc::SYS_prctl, &[(0, Condition::Is(libc::PR_SET_TIMERSLACK))]),
    (libc::SYS_prctl, &[(0, Condition::Is(libc::PR_SET_NO_NEW_PRIVS))]),
    (libc::SYS_prctl, &[(0, Condition::Is(libc::PR_GET_NO_NEW_PRIVS))]),
    (libc::SYS_prctl, &[(0, Condition::Is(libc::PR_GET_SECCOMP))]),
    (libc::SYS_prctl, &[(0, Condition::Is(libc::PR_SET_SECCOMP))]),
    (libc::SYS_prctl, &[(0, Condition::Is(libc::PR_CAPBSET_READ))]),
    (libc::SYS_prctl, &[(0, Condition::Is(libc::PR_SET_VMA))]),
];

/// open(2) for more than reading.
const CHANGING: i32 = libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;

// Linux asm-generic/ioctls.h
const TCGETS: i32 = 0x5401;
const TCGETS2: i32 = 0x802c_542a_u32.cast_signed();
const FIONREAD: i32 = 0x541b;
const FIONBIO: i32 = 0x5421;
