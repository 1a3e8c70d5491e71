//! Confinement on Linux: Landlock, then seccomp, before the first guest instruction.
//!
//! The process opens nothing, so Landlock denies it every path, port and abstract socket the host's kernel can deny.
//! seccomp then allows each kind of thread the few system calls its work takes, `ioctl` only with the hypervisor's own
//! requests, and kills the process at any other. Not here: namespaces and users, which are the supervisor's business.

use std::collections::BTreeMap;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// The newest Landlock this was written for; older kernels enforce what they know.
const LANDLOCK: ABI = ABI::V6;

/// Why confinement failed.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// `PR_SET_NO_NEW_PRIVS` was refused.
    #[error("no_new_privs: {0}")]
    NoNewPrivileges(#[source] std::io::Error),
    /// Landlock is there and refused.
    #[error("landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// The filter is malformed.
    #[error("seccomp filter: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// The kernel refused the filter.
    #[error("seccomp: {0}")]
    Seccomp(#[from] seccompiler::Error),
}

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Waits for events and serves devices.
    Events,
    /// Runs a vCPU.
    Vcpu,
}

/// Takes privileges and the file system from the calling thread and those it will start. Returns whether the kernel
/// has Landlock.
pub fn confine_process() -> Result<bool, ConfineError> {
    rustix::thread::set_no_new_privs(true).map_err(|error| ConfineError::NoNewPrivileges(error.into()))?;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// Leaves the calling thread only the system calls of its role. `ioctls` are the hypervisor's requests. Needs
/// [`confine_process`].
pub fn confine_thread(role: Role, ioctls: &[u32]) -> Result<(), ConfineError> {
    Ok(seccompiler::apply_filter(&filter(role, ioctls)?)?)
}

/// What every thread may call, with any arguments. None of them names a file, a process or an address.
const EVERYWHERE: &[i64] = &[
    // Descriptors it has: events, sockets, the console.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_epoll_ctl,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_ppoll,
    libc::SYS_poll,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Locks, time, random numbers.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    // Signals of its own, and the end.
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What the event thread may call besides: disks, streams, waiting.
const EVENTS: &[i64] = &[
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
];

fn filter(role: Role, ioctls: &[u32]) -> Result<BpfProgram, ConfineError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    rules.extend(EVERYWHERE.iter().map(|call| (*call, Vec::new())));
    if role == Role::Events {
        rules.extend(EVENTS.iter().map(|call| (*call, Vec::new())));
        // Streams of the guest become socket pairs.
        rules.insert(libc::SYS_socketpair, vec![only(&[(0, number(libc::AF_UNIX))])?]);
    }
    let ioctls = ioctls.iter().map(|request| only(&[(1, u64::from(*request))]));
    let nonblocking = only(&[(1, libc::FIONBIO)]);
    rules.insert(libc::SYS_ioctl, ioctls.chain([nonblocking]).collect::<Result<_, _>>()?);
    let fcntls = [libc::F_GETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC];
    let fcntls = fcntls.iter().map(|command| only(&[(1, number(*command))]));
    rules.insert(libc::SYS_fcntl, fcntls.collect::<Result<_, _>>()?);
    // Signals for its own threads: kicks, and abort().
    rules.insert(libc::SYS_tgkill, vec![only(&[(0, u64::from(std::process::id()))])?]);
    // No memory is ever executable.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let executable = Op::MaskedEq(number(libc::PROT_EXEC));
        rules.insert(
            call,
            vec![SeccompRule::new(vec![SeccompCondition::new(2, Len::Dword, executable, 0)?])?],
        );
    }
    let architecture = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, architecture)?;
    Ok(filter.try_into()?)
}

/// A rule: arguments with these numbers have these values, in their low 32 bits.
fn only(arguments: &[(u8, u64)]) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions = arguments
        .iter()
        .map(|(argument, value)| SeccompCondition::new(*argument, Len::Dword, Op::Eq, *value))
        .collect::<Result<_, _>>()?;
    SeccompRule::new(conditions)
}

fn number(value: libc::c_int) -> u64 {
    u64::from(value.cast_unsigned())
}
