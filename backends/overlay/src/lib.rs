//! Shared folders whose changes stay with the sandbox.
//!
//! ```text
//! Memory ─▶ Tree: names, links, references of the kernel ─▶ Node: facts ─▶ Chunks: contents
//!             one lock, no input or output                   a lock each    a lock each
//! ```
//!
//! [`Memory`] is an empty folder in memory.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod chunks;
mod directory;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod handles;
mod locks;
#[cfg(any(test, feature = "fuzzing"))]
mod model;
mod node;
mod space;
#[cfg(test)]
mod tests;
mod tree;

pub use files::{Memory, Options};
