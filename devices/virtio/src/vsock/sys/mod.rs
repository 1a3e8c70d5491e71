//! Differences between platforms: watching many sockets through one descriptor.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(super) use linux::{Arrival, Watch};
