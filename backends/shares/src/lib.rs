//! The host's files, as a guest sees them.
//!
//! [`HostFs`] is a directory of the host: a provider of the seam [`fuse::FileSystem`]. [`Mounted`] mounts any provider on
//! the host itself, through `/dev/fuse`, for people who want to look and for suites that want to be quick.
//!
//! Not here: the way from a guest to a provider, and what is allowed on it.

#![cfg(target_os = "linux")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod guest_attributes;
mod host_fs;
mod nodes;
mod specials;
mod sys;

pub use host_fs::{Budget, HostFs, Options, RootError};
pub use sys::{MountError, Mounted};
