//! Children of this project's programs and the channel to them, made of each system's own parts. Only Linux has its
//! part yet.

#[cfg(target_os = "linux")]
mod linux;

use std::os::fd::RawFd;

#[cfg(target_os = "linux")]
pub use linux::*;

/// The descriptor at which a child finds its channel.
pub const CHANNEL_FD: RawFd = 3;
