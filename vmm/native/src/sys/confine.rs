//! Confinement on Linux: a user of its own, Landlock, then seccomp, before the first guest instruction.
//!
//! The process opens nothing, so Landlock denies it every path, port and abstract socket the host's kernel can deny.
//! seccomp then allows the few system calls that its work takes, `ioctl` only with the hypervisor's own requests, and
//! kills the process at any other. All threads have one filter: they share their memory, so that whoever controls one
//! controls them all. Not here: namespaces, which would hide nothing that Landlock and seccomp leave in sight.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope,
};

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::filter::{Rule, Test, program};

/// The newest Landlock this was written for; older kernels enforce what they know.
const LANDLOCK: ABI = ABI::V6;

/// Why confinement failed.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// `PR_SET_NO_NEW_PRIVS` was refused.
    #[error("no_new_privs: {0}")]
    NoNewPrivileges(#[source] std::io::Error),
    /// Capabilities could not be given up.
    #[error("capabilities: {0}")]
    Capabilities(#[source] std::io::Error),
    /// Landlock is there and refused.
    #[error("landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// The kernel refused the filter.
    #[error("seccomp: {0}")]
    Seccomp(#[from] seccompiler::Error),
}

/// Takes root, privileges, capabilities and the file system from the calling thread, the only one, and those it will
/// start. Returns whether the kernel has Landlock.
pub fn confine_process() -> Result<bool, ConfineError> {
    if let Err(error) = process::take_own_user() {
        tracing::warn!("still root's, without a user of its own ({error})");
    }
    rustix::thread::set_no_new_privs(true).map_err(|error| ConfineError::NoNewPrivileges(error.into()))?;
    let none = CapabilitySet::empty();
    let nothing = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, nothing)
        .map_err(|error| ConfineError::Capabilities(error.into()))?;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// Leaves all threads only the system calls of a running machine. `ioctls` are the hypervisor's requests. Needs
/// [`confine_process`].
pub fn confine_threads(ioctls: &[u32]) -> Result<(), ConfineError> {
    Ok(seccompiler::apply_filter_all_threads(&program(&rules(ioctls)))?)
}

/// What may be called with any arguments. None of them names a file or a process; an address only for sockets that take
/// one, and the process neither has nor makes such a socket.
const CALLS: &[libc::c_long] = &[
    // Descriptors it has: events, sockets, the console.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_shutdown,
    libc::SYS_ppoll,
    libc::SYS_poll,
    // Disks.
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
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

pub(super) fn rules(ioctls: &[u32]) -> Vec<Rule> {
    let mut rules: Vec<Rule> = CALLS.iter().map(|call| Rule::new(*call, Vec::new())).collect();
    // Streams of the guest become socket pairs. Only of a kind that takes no address: a datagram socket, though half of
    // a pair, sends to any other on the host (sendto(2), sendmsg(2)).
    let stream = number(libc::SOCK_STREAM | libc::SOCK_CLOEXEC);
    let pair = vec![Test::equal(0, number(libc::AF_UNIX)), Test::equal(1, stream)];
    rules.push(Rule::any_of(libc::SYS_socketpair, vec![pair]));
    let mut requests: Vec<Test> = ioctls.iter().map(|request| Test::equal(1, *request)).collect();
    requests.push(Test::equal(1, FIONBIO));
    rules.push(Rule::new(libc::SYS_ioctl, requests));
    let commands = [libc::F_GETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC];
    rules.push(Rule::new(libc::SYS_fcntl, commands.map(|command| Test::equal(1, number(command))).to_vec()));
    // Signals for its own threads: kicks, and abort().
    rules.push(Rule::new(libc::SYS_tgkill, vec![Test::equal(0, std::process::id())]));
    // No memory is ever executable.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.push(Rule::new(call, vec![Test::clear(2, number(libc::PROT_EXEC))]));
    }
    rules
}

/// Makes a descriptor non-blocking, or not.
const FIONBIO: u32 = 0x5421;

const fn number(value: libc::c_int) -> u32 {
    value.cast_unsigned()
}
