//! arm64: has only the calls of asm-generic/unistd.h.

use crate::calls::Call;

/// `AUDIT_ARCH_AARCH64` of linux/audit.h: 64-bit, little-endian, the ELF machine.
pub(crate) const AUDIT_ARCH: u32 = 0xc000_00b7;

/// Calls of x86-64 that do not exist on arm64; in a profile they have no effect.
pub(crate) mod legacy {
    use super::Call;

    pub(crate) const ACCESS: Call = Call::NONE;
    pub(crate) const ARCH_PRCTL: Call = Call::NONE;
    pub(crate) const DUP2: Call = Call::NONE;
    pub(crate) const EPOLL_WAIT: Call = Call::NONE;
    pub(crate) const FORK: Call = Call::NONE;
    pub(crate) const GETRLIMIT: Call = Call::NONE;
    pub(crate) const LSTAT: Call = Call::NONE;
    pub(crate) const OPEN: Call = Call::NONE;
    pub(crate) const PIPE: Call = Call::NONE;
    pub(crate) const POLL: Call = Call::NONE;
    pub(crate) const READLINK: Call = Call::NONE;
    pub(crate) const SELECT: Call = Call::NONE;
    pub(crate) const STAT: Call = Call::NONE;
    pub(crate) const TIME: Call = Call::NONE;
}
