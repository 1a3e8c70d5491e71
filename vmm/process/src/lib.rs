//! Child processes that end with their parent, and the channel between the two.
//!
//! Every process of a sandbox is started by [`spawn()`]: it inherits one end of a [`Channel`] and nothing else. The
//! channel carries messages with descriptors, and it is the lifeline: when the parent ends, however that happens, the
//! child's end hangs up and the child ends too. That holds across `sudo` and after SIGKILL, where a parent-death
//! signal does not.
//!
//! Not here: what the messages mean, and what a child may do (`confinement`).

#![allow(unsafe_code, reason = "what happens between fork and exec, and taking over an inherited descriptor")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod find;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod group;
mod sys;

pub use find::{find_own_program, find_program};
pub use group::Group;
pub use sys::*;

/// Why a process could not be started or talked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be started.
    #[error("{program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A system call on a channel was refused.
    #[error("process channel: {0}")]
    Channel(#[from] std::io::Error),
    /// A message cannot be encoded, or not decoded as the expected type.
    #[error("process channel message: {0}")]
    Message(#[from] postcard::Error),
    /// A message is longer than [`MAX_MESSAGE`].
    #[error("process channel message of {0} bytes is too long")]
    TooLong(usize),
    /// A message has more than [`MAX_DESCRIPTORS`] descriptors.
    #[error("process channel message with {0} descriptors has too many")]
    TooManyDescriptors(usize),
    /// The peer sent packets that make no message.
    #[error("process channel: {0}")]
    Malformed(&'static str),
    /// This process was not started by [`spawn()`].
    #[error("no channel to a parent at descriptor {CHANNEL_FD}")]
    NoParent,
    /// Two inherited descriptors want the same number.
    #[error("two inherited descriptors want number {0}")]
    Collision(i32),
}

/// Result of this crate's calls.
pub type Result<T> = std::result::Result<T, Error>;
