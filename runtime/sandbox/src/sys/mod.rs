//! Differences between operating systems: the host's facts, long socket paths, processes, changes in directories.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
mod process;
#[cfg(target_os = "linux")]
mod watch;

#[cfg(target_os = "linux")]
pub(crate) use linux::{SocketPath, facts, memory_mb};
#[cfg(target_os = "linux")]
pub(crate) use process::ProcessHandle;
#[cfg(target_os = "linux")]
pub(crate) use watch::DirectoryWatch;
