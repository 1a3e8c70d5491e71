//! What a program without privilege may not do, even as root: load modules, mount, trace, reboot, touch raw hardware.
//!
//! The outer wall is the virtual machine. This is the inner one, for the tools that would otherwise change the sandbox
//! under the agent's feet. Cgroups are read-only for it, see [`crate::mounts`]. Called between clone and execve: no
//! allocation, no locks, nothing that uses thread-locals.

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Capabilities that a program without privilege loses for good.
const DROPPED: [CapabilitySet; 5] = [
    CapabilitySet::SYS_PTRACE,
    CapabilitySet::SYS_ADMIN,
    CapabilitySet::SYS_MODULE,
    CapabilitySet::SYS_RAWIO,
    CapabilitySet::SYS_BOOT,
];

/// Takes [`DROPPED`] out of every set: bounding, inheritable, permitted, effective, ambient.
pub(super) fn drop_capabilities() -> Result<(), Errno> {
    for capability in DROPPED {
        rustix::thread::remove_capability_from_bounding_set(capability)?;
    }
    rustix::thread::clear_ambient_capability_set()?;
    let dropped = DROPPED.into_iter().fold(CapabilitySet::empty(), CapabilitySet::union);
    let held = rustix::thread::capabilities(None)?;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: held.effective.difference(dropped),
            permitted: held.permitted.difference(dropped),
            inheritable: held.inheritable.difference(dropped),
        },
    )
}

/// Installs [`FILTER`]. Needs no_new_privs.
pub(super) fn install_filter() -> Result<(), Errno> {
    let program = libc::sock_fprog { len: FILTER_LEN, filter: FILTER.as_ptr().cast_mut() };
    // SAFETY: the kernel only reads `program` and the instructions it points to, which are constants.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    match result {
        0 => Ok(()),
        // With several threads in a filter call a thread id would be returned; there is one thread here.
        _ => Err(Errno::INVAL),
    }
}

#[cfg(target_arch = "x86_64")]
mod arch {
    //! System call numbers as the kernel's tables for x86-64 and i386 have them.
    pub(super) const NATIVE: u32 = 0xc000_003e;
    pub(super) const COMPAT: u32 = 0x4000_0003;
    /// ptrace, process_vm_readv, process_vm_writev, kexec_load; i386 has no kexec_file_load, hence kexec_load again.
    pub(super) const COMPAT_DENIED: [u32; 5] = [26, 347, 348, 283, 283];
    /// Numbers from here on are the x32 calls, a third numbering of the same calls: refused as a whole.
    pub(super) const NATIVE_END: u32 = 0x4000_0000;
}

#[cfg(target_arch = "aarch64")]
mod arch {
    //! System call numbers as the kernel's tables for arm64 and its 32-bit mode have them.
    pub(super) const NATIVE: u32 = 0xc000_00b7;
    pub(super) const COMPAT: u32 = 0x4000_0028;
    /// ptrace, process_vm_readv, process_vm_writev, kexec_load, kexec_file_load.
    pub(super) const COMPAT_DENIED: [u32; 5] = [26, 376, 377, 347, 401];
    /// There is no second numbering of native calls.
    pub(super) const NATIVE_END: u32 = u32::MAX;
}

#[allow(clippy::cast_possible_truncation, reason = "system call numbers are small")]
const NATIVE_DENIED: [u32; 5] = [
    libc::SYS_ptrace as u32,
    libc::SYS_process_vm_readv as u32,
    libc::SYS_process_vm_writev as u32,
    libc::SYS_kexec_load as u32,
    libc::SYS_kexec_file_load as u32,
];

const FILTER_LEN: u16 = 18;

/// Classic BPF over `seccomp_data`. Refused calls return EPERM; unknown architectures are refused as a whole.
///
/// Jump offsets count from the next instruction; `DENY` is the last one, `ALLOW` the one before.
const FILTER: [libc::sock_filter; FILTER_LEN as usize] = {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const JUMP_IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const NUMBER: u32 = 0; // offset of seccomp_data.nr
    const ARCH: u32 = 4; // offset of seccomp_data.arch
    const ALLOW: u8 = 16;
    const DENY: u8 = 17;
    const fn op(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code, jt, jf, k }
    }
    /// Refuses the number `k`; the instruction stands at index `at`.
    const fn deny(at: u8, k: u32) -> libc::sock_filter {
        op(JUMP_IF_EQUAL, DENY - at - 1, 0, k)
    }
    [
        op(LOAD, 0, 0, ARCH),
        op(JUMP_IF_EQUAL, 7, 0, arch::NATIVE), // to 9
        op(JUMP_IF_EQUAL, 0, DENY - 2 - 1, arch::COMPAT),
        op(LOAD, 0, 0, NUMBER),
        deny(4, arch::COMPAT_DENIED[0]),
        deny(5, arch::COMPAT_DENIED[1]),
        deny(6, arch::COMPAT_DENIED[2]),
        deny(7, arch::COMPAT_DENIED[3]),
        op(JUMP_IF_EQUAL, DENY - 8 - 1, ALLOW - 8 - 1, arch::COMPAT_DENIED[4]),
        op(LOAD, 0, 0, NUMBER),
        op(JUMP_IF_AT_LEAST, DENY - 10 - 1, 0, arch::NATIVE_END),
        deny(11, NATIVE_DENIED[0]),
        deny(12, NATIVE_DENIED[1]),
        deny(13, NATIVE_DENIED[2]),
        deny(14, NATIVE_DENIED[3]),
        deny(15, NATIVE_DENIED[4]), // falls to ALLOW
        op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
    ]
};
