//! Differences between operating systems: the host's facts, long socket paths, network interfaces, processes, changes
//! in directories.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
mod process;
#[cfg(target_os = "linux")]
mod watch;

#[cfg(target_os = "linux")]
pub(crate) use linux::{SocketPath, delete_interface, facts, memory_mb};
#[cfg(target_os = "linux")]
pub(crate) use process::ProcessHandle;
#[cfg(target_os = "linux")]
pub(crate) use watch::DirectoryWatch;
