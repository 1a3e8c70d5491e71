//! Restrictions of programs without privilege, even of root's: those of an unprivileged container.
//!
//! The virtual machine is the outer wall. This inner wall keeps programs from the guest's kernel and from the agent.
//! It has three parts: capabilities (here), system calls ([`super::filter`]), and files of the kernel
//! ([`crate::shield`]). Called between clone and execve: no allocation, no locks, no thread-locals.

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::filter::Filter;

/// Capabilities that root keeps: those of an unprivileged container.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// Takes all but [`KEPT`] out of the bounding, permitted and effective sets, and everything out of the inheritable and
/// ambient ones.
pub(super) fn drop_capabilities() -> Result<(), Errno> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if KEPT.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // prctl(2): there are no more capabilities.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    let held = rustix::thread::capabilities(None)?;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: held.effective.intersection(KEPT),
            permitted: held.permitted.intersection(KEPT),
            inheritable: CapabilitySet::empty(),
        },
    )
}

/// Installs the filter. Needs no_new_privs.
pub(super) fn install(filter: &Filter) -> Result<(), Errno> {
    let instructions = filter.instructions();
    let len = u16::try_from(instructions.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len, filter: instructions.as_ptr().cast_mut() };
    // SAFETY: the kernel only reads `program` and the instructions it points to, which were prepared before the clone.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    match result {
        0 => Ok(()),
        // With several threads in a filter, the call could return a thread id; there is only one thread here.
        _ => Err(Errno::INVAL),
    }
}
