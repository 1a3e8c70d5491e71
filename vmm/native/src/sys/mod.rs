//! Differences between host systems: waiting, confinement, the clock, and the hypervisor.

#[cfg(target_os = "linux")]
mod confine;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use confine::{ConfineError, confine_process, confine_threads, limits};
#[cfg(target_os = "linux")]
pub use linux::{Host, Poller, frugal_allocator, hypervisor, ioctls, now_ns};
