//! x86-64: has every call of the oldest numbering.

use crate::calls::Call;

/// `AUDIT_ARCH_X86_64` of linux/audit.h: 64-bit, little-endian, the ELF machine.
pub(crate) const AUDIT_ARCH: u32 = 0xc000_003e;

/// Calls that newer architectures leave out, because a later call does the same.
pub(crate) mod legacy {
    use super::Call;

    pub(crate) const ACCESS: Call = Call::number(libc::SYS_access);
    pub(crate) const ARCH_PRCTL: Call = Call::number(libc::SYS_arch_prctl);
    pub(crate) const DUP2: Call = Call::number(libc::SYS_dup2);
    pub(crate) const EPOLL_WAIT: Call = Call::number(libc::SYS_epoll_wait);
    pub(crate) const FORK: Call = Call::number(libc::SYS_fork);
    pub(crate) const GETRLIMIT: Call = Call::number(libc::SYS_getrlimit);
    pub(crate) const LSTAT: Call = Call::number(libc::SYS_lstat);
    pub(crate) const OPEN: Call = Call::number(libc::SYS_open);
    pub(crate) const PIPE: Call = Call::number(libc::SYS_pipe);
    pub(crate) const POLL: Call = Call::number(libc::SYS_poll);
    pub(crate) const READLINK: Call = Call::number(libc::SYS_readlink);
    pub(crate) const SELECT: Call = Call::number(libc::SYS_select);
    pub(crate) const STAT: Call = Call::number(libc::SYS_stat);
    pub(crate) const TIME: Call = Call::number(libc::SYS_time);
}
