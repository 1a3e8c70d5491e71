//! Differences between the host's architectures: the sign by which a processor says that it can run guests.

#[cfg(target_arch = "aarch64")]
mod arm64;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
pub(crate) use arm64::hardware_virtualization;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::hardware_virtualization;
