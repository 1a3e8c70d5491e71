//! System calls by name, and the sets of them that several profiles share.
//!
//! The numbers are the running architecture's. A call that the architecture does not have keeps its name, so that one
//! profile serves every architecture. Not here: which process may call what (each program's profile).

use crate::arch::legacy;

/// A system call, or the absence of one that only other architectures have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call(Option<u32>);

impl Call {
    /// A call that this architecture does not have.
    #[allow(dead_code, reason = "x86-64 has all of them")]
    pub(crate) const NONE: Self = Self(None);

    /// The call with a number of this architecture.
    #[must_use]
    #[allow(
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        reason = "numbers are small and positive"
    )]
    pub const fn number(number: libc::c_long) -> Self {
        Self(Some(number as u32))
    }

    pub(crate) const fn get(self) -> Option<u32> {
        self.0
    }
}

macro_rules! calls {
    ($($name:ident = $number:expr;)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`, see its page in section 2 of the manual.")]
            pub const $name: Call = Call::number($number);
        )*
    };
}

macro_rules! legacy {
    ($($name:ident)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`, where the architecture has it.")]
            pub const $name: Call = legacy::$name;
        )*
    };
}

legacy! {
    ACCESS ARCH_PRCTL DUP2 EPOLL_WAIT FORK GETRLIMIT LSTAT OPEN PIPE POLL READLINK SELECT STAT TIME
}

calls! {
    ACCEPT4 = libc::SYS_accept4;
    BPF = libc::SYS_bpf;
    BIND = libc::SYS_bind;
    BRK = libc::SYS_brk;
    CAPGET = libc::SYS_capget;
    CLOCK_GETRES = libc::SYS_clock_getres;
    CLOCK_GETTIME = libc::SYS_clock_gettime;
    CLOCK_NANOSLEEP = libc::SYS_clock_nanosleep;
    CLONE = libc::SYS_clone;
    CLONE3 = libc::SYS_clone3;
    CLOSE = libc::SYS_close;
    CLOSE_RANGE = libc::SYS_close_range;
    CONNECT = libc::SYS_connect;
    COPY_FILE_RANGE = libc::SYS_copy_file_range;
    DUP = libc::SYS_dup;
    DUP3 = libc::SYS_dup3;
    EPOLL_CREATE1 = libc::SYS_epoll_create1;
    EPOLL_CTL = libc::SYS_epoll_ctl;
    EPOLL_PWAIT = libc::SYS_epoll_pwait;
    EVENTFD2 = libc::SYS_eventfd2;
    EXECVE = libc::SYS_execve;
    EXIT = libc::SYS_exit;
    EXIT_GROUP = libc::SYS_exit_group;
    FACCESSAT = libc::SYS_faccessat;
    FADVISE64 = libc::SYS_fadvise64;
    FALLOCATE = libc::SYS_fallocate;
    FCHDIR = libc::SYS_fchdir;
    FCHMOD = libc::SYS_fchmod;
    FCHMODAT = libc::SYS_fchmodat;
    FCNTL = libc::SYS_fcntl;
    FDATASYNC = libc::SYS_fdatasync;
    FSTAT = libc::SYS_fstat;
    FSTATFS = libc::SYS_fstatfs;
    FSYNC = libc::SYS_fsync;
    FTRUNCATE = libc::SYS_ftruncate;
    FUTEX = libc::SYS_futex;
    GET_ROBUST_LIST = libc::SYS_get_robust_list;
    GETCPU = libc::SYS_getcpu;
    GETCWD = libc::SYS_getcwd;
    GETDENTS64 = libc::SYS_getdents64;
    GETEGID = libc::SYS_getegid;
    GETEUID = libc::SYS_geteuid;
    GETGID = libc::SYS_getgid;
    GETGROUPS = libc::SYS_getgroups;
    GETPEERNAME = libc::SYS_getpeername;
    GETPID = libc::SYS_getpid;
    GETPPID = libc::SYS_getppid;
    GETPRIORITY = libc::SYS_getpriority;
    GETRANDOM = libc::SYS_getrandom;
    GETRESGID = libc::SYS_getresgid;
    GETRESUID = libc::SYS_getresuid;
    GETRUSAGE = libc::SYS_getrusage;
    GETSOCKNAME = libc::SYS_getsockname;
    GETSOCKOPT = libc::SYS_getsockopt;
    GETTID = libc::SYS_gettid;
    GETTIMEOFDAY = libc::SYS_gettimeofday;
    GETUID = libc::SYS_getuid;
    INOTIFY_ADD_WATCH = libc::SYS_inotify_add_watch;
    INOTIFY_RM_WATCH = libc::SYS_inotify_rm_watch;
    IO_URING_SETUP = libc::SYS_io_uring_setup;
    IOCTL = libc::SYS_ioctl;
    KEYCTL = libc::SYS_keyctl;
    KILL = libc::SYS_kill;
    LANDLOCK_CREATE_RULESET = libc::SYS_landlock_create_ruleset;
    LANDLOCK_RESTRICT_SELF = libc::SYS_landlock_restrict_self;
    LINKAT = libc::SYS_linkat;
    LSEEK = libc::SYS_lseek;
    MADVISE = libc::SYS_madvise;
    MEMBARRIER = libc::SYS_membarrier;
    MEMFD_CREATE = libc::SYS_memfd_create;
    MINCORE = libc::SYS_mincore;
    MKDIRAT = libc::SYS_mkdirat;
    MLOCK = libc::SYS_mlock;
    MLOCK2 = libc::SYS_mlock2;
    MMAP = libc::SYS_mmap;
    MOUNT = libc::SYS_mount;
    MPROTECT = libc::SYS_mprotect;
    MREMAP = libc::SYS_mremap;
    MSYNC = libc::SYS_msync;
    MUNLOCK = libc::SYS_munlock;
    MUNMAP = libc::SYS_munmap;
    NANOSLEEP = libc::SYS_nanosleep;
    NEWFSTATAT = libc::SYS_newfstatat;
    OPENAT = libc::SYS_openat;
    PIDFD_OPEN = libc::SYS_pidfd_open;
    PIDFD_SEND_SIGNAL = libc::SYS_pidfd_send_signal;
    PIPE2 = libc::SYS_pipe2;
    PPOLL = libc::SYS_ppoll;
    PRCTL = libc::SYS_prctl;
    PREAD64 = libc::SYS_pread64;
    PREADV = libc::SYS_preadv;
    PREADV2 = libc::SYS_preadv2;
    PRLIMIT64 = libc::SYS_prlimit64;
    PROCESS_VM_READV = libc::SYS_process_vm_readv;
    PSELECT6 = libc::SYS_pselect6;
    PTRACE = libc::SYS_ptrace;
    PWRITE64 = libc::SYS_pwrite64;
    PWRITEV = libc::SYS_pwritev;
    PWRITEV2 = libc::SYS_pwritev2;
    READ = libc::SYS_read;
    READLINKAT = libc::SYS_readlinkat;
    READV = libc::SYS_readv;
    RECVFROM = libc::SYS_recvfrom;
    RECVMSG = libc::SYS_recvmsg;
    RENAMEAT2 = libc::SYS_renameat2;
    RESTART_SYSCALL = libc::SYS_restart_syscall;
    RSEQ = libc::SYS_rseq;
    RT_SIGACTION = libc::SYS_rt_sigaction;
    RT_SIGPENDING = libc::SYS_rt_sigpending;
    RT_SIGPROCMASK = libc::SYS_rt_sigprocmask;
    RT_SIGRETURN = libc::SYS_rt_sigreturn;
    RT_SIGSUSPEND = libc::SYS_rt_sigsuspend;
    RT_SIGTIMEDWAIT = libc::SYS_rt_sigtimedwait;
    SCHED_GETAFFINITY = libc::SYS_sched_getaffinity;
    SCHED_YIELD = libc::SYS_sched_yield;
    SECCOMP = libc::SYS_seccomp;
    SENDMSG = libc::SYS_sendmsg;
    SENDTO = libc::SYS_sendto;
    SET_ROBUST_LIST = libc::SYS_set_robust_list;
    SET_TID_ADDRESS = libc::SYS_set_tid_address;
    SETSOCKOPT = libc::SYS_setsockopt;
    SETUID = libc::SYS_setuid;
    SHMGET = libc::SYS_shmget;
    SHUTDOWN = libc::SYS_shutdown;
    SIGALTSTACK = libc::SYS_sigaltstack;
    SIGNALFD4 = libc::SYS_signalfd4;
    SOCKET = libc::SYS_socket;
    SOCKETPAIR = libc::SYS_socketpair;
    STATFS = libc::SYS_statfs;
    STATX = libc::SYS_statx;
    SYMLINKAT = libc::SYS_symlinkat;
    SYNCFS = libc::SYS_syncfs;
    SYSINFO = libc::SYS_sysinfo;
    TGKILL = libc::SYS_tgkill;
    TIMERFD_CREATE = libc::SYS_timerfd_create;
    TIMERFD_GETTIME = libc::SYS_timerfd_gettime;
    TIMERFD_SETTIME = libc::SYS_timerfd_settime;
    TIMES = libc::SYS_times;
    UNAME = libc::SYS_uname;
    UNLINKAT = libc::SYS_unlinkat;
    UNSHARE = libc::SYS_unshare;
    USERFAULTFD = libc::SYS_userfaultfd;
    UTIMENSAT = libc::SYS_utimensat;
    WAITID = libc::SYS_waitid;
    WRITE = libc::SYS_write;
    WRITEV = libc::SYS_writev;
    // The same numbers on every architecture: asm-generic/unistd.h and those since.
    OPENAT2 = 437;
    FACCESSAT2 = 439;
    EPOLL_PWAIT2 = 441;
    FUTEX_WAITV = 449;
}

/// Calls that every program of this project may make. None of them opens, starts or changes anything outside the
/// process.
pub const RUNTIME: &[Call] = &[
    READ,
    WRITE,
    CLOSE,
    SENDMSG,
    RECVMSG,
    PPOLL,
    POLL, // descriptors it has
    BRK,
    MUNMAP,
    MREMAP,
    MADVISE, // memory
    FUTEX,
    SCHED_YIELD,
    CLOCK_GETTIME,
    GETRANDOM, // locks, time, random numbers
    RT_SIGRETURN,
    RT_SIGPROCMASK,
    SIGALTSTACK,
    RESTART_SYSCALL,
    GETPID,
    GETTID, // signals of its own
    EXIT,
    EXIT_GROUP,
];

/// Calls on descriptors by which a guest's devices are served: events, disks, and the guest's streams.
pub const DEVICES: &[Call] = &[
    EPOLL_CTL,
    EPOLL_WAIT,
    EPOLL_PWAIT, // events
    PREAD64,
    PWRITE64,
    PREADV,
    PWRITEV,
    FSYNC,
    FDATASYNC,
    FALLOCATE, // disks
    READV,
    WRITEV,
    SENDTO,
    RECVFROM,
    SHUTDOWN, // streams
];

/// Calls by which devices are served over vhost-user: threads, and the guest's memory as the front end shares it.
pub const BACK_END: &[Call] =
    &[ACCEPT4, EPOLL_CREATE1, EVENTFD2, FSTAT, RSEQ, RT_SIGACTION, SCHED_GETAFFINITY, SET_ROBUST_LIST];
