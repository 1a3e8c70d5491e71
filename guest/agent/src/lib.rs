//! The program inside the guest: PID 1, which assembles the root file system and then answers the host.
//!
//! ```text
//!  main ── boot ──▶ ready ──▶ control stream + orphans ──▶ shutdown     (one thread)
//!             └──▶ accept ──▶ one thread a service stream: ping, exec, act on files, connection
//! ```
//!
//! Everything below `service` works over any stream socket, so it is tested on an ordinary Linux host; `boot`
//! needs to be PID 1 of a virtual machine. Not here: anything of the host, an async runtime, configuration files.

#![allow(
    unsafe_code,
    reason = "PID 1 needs clone, ioctl and execve, which rustix does not offer as safe calls"
)]

pub mod added;
pub mod boot;
mod cgroups;
mod connection;
mod control;
mod disks;
pub mod exec;
mod file_service;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod host_changes;
mod log;
mod modules;
mod mounts;
mod network;
mod orphans;
mod root;
mod sending;
pub mod service;
mod shares;
pub mod shield;
mod shutdown;
mod signals;
mod stream;
mod system;
mod timer;
mod trim;
mod vsock;

use rustix::io::Errno;

/// An error number in plain words: lowercase, without the number.
fn words(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}
