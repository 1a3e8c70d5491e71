//! The parts of KVM that belong to one architecture: the chips around the vCPUs, a vCPU's first state, and its ports.

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Chip, MAX_VCPUS, NEEDED, hardware, place, ports};
#[cfg(target_arch = "x86_64")]
pub use x86::{IOCTLS_AFTER_CREATE, RESERVED};
