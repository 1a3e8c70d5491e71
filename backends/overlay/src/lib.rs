//! Shared folders whose changes stay with the sandbox.
//!
//! ```text
//! Files ─▶ Tree: names, links, references of the kernel ─▶ Node: facts ─▶ Contents: in memory, in a file of the host's,
//!   │        one lock, no input or output                   a lock each    or those below; a lock each
//!   └────▶ Below: another file system, looked at with no lock held
//! ```
//!
//! [`Files`] are a folder in memory, or lie over another file system. The relation to the file system below is in
//! fields: a name that is hidden, a directory that has one below it or none, a file whose contents are still there. So
//! nothing is marked by files or names of its own, and a directory is renamed by moving one name.
//!
//! The lock of the tree comes before that of facts; contents are read, written and copied with none of the two.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod below;
mod bytes;
mod chunks;
mod directory;
mod extents;
mod files;
mod flat;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod handles;
mod list;
mod locks;
mod node;
mod origin;
mod reach;
mod space;
mod store;
mod sys;
#[cfg(test)]
mod tests;
mod tree;

pub use files::{Files, Options};
