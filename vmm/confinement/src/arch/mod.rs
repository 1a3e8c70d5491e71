//! Differences between processors: the number of the architecture and the system calls that only some have.

#[cfg(target_arch = "aarch64")]
mod arm64;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
pub(crate) use arm64::{AUDIT_ARCH, legacy};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{AUDIT_ARCH, legacy};
