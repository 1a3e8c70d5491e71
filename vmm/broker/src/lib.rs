//! The acts that take root under sudo: a process that stays root's and does them on request, `matchlock-broker`, and the
//! requests of the supervisor, which is the user's.
//!
//! ```text
//! supervisor, while it is root's           matchlock-broker
//!   Begin: whose user, what for  ────────▶
//!                                ◀──────── it has given up what it does not need
//! supervisor, the user's from here on
//!   a request of a closed list   ────────▶
//!                                ◀──────── the answer, with descriptors
//! ```
//!
//! Each function of this crate does its work in this process, unless the process has a broker ([`become_user`]). The
//! supervisor handles what guests and clients send, so the broker takes it for one that they have taken over: a request
//! names no path, no user and no argument, and is worth no more than the command that was called with sudo. When the
//! supervisor ends, the broker ends too, and kills the processes that it started; only the process of shared folders
//! has a minute for its last list of changes. When the broker ends, the supervisor ends too. Not here: what the
//! programs do, and what they are told.

#![cfg(target_os = "linux")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod acts;
mod child;
mod client;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod requests;
mod server;

use std::io;

pub use acts::interface;
pub use child::Child;
pub use client::{become_user, delete_interface, kvm_api_version, listen, open_kvm, start};
pub use confinement::User;
pub use requests::{Powers, Program};
pub use server::serve;

/// The vCPU engine of the software machine, which one of this project's programs starts.
pub const QEMU: &str = "qemu-system-x86_64";

/// Why this process could not become the user's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker's program is not there.
    #[error("matchlock-broker not found beside matchlock")]
    NoProgram,
    /// The broker could not be started, or does not answer.
    #[error("matchlock-broker: {0}")]
    Broker(#[source] io::Error),
    /// A system call was refused.
    #[error("becoming the user whose home this is: {0}")]
    User(#[source] io::Error),
}
