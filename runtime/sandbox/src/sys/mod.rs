//! What differs between operating systems: the host's facts, and long socket paths.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::{SocketPath, facts, memory_mb};
