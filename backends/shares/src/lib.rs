//! The host's files, as a guest sees them.
//!
//! [`HostFs`] is a directory of the host: a provider of the seam [`fuse::FileSystem`]. [`Router`] makes several providers one
//! file system. [`Mounted`] mounts any provider on
//! the host itself, through `/dev/fuse`, for people who want to look and for suites that want to be quick.
//!
//! Not here: the way from a guest to a provider, and what is allowed on it.

#![cfg(target_os = "linux")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod guest_attributes;
mod host_fs;
mod nodes;
mod router;
mod specials;
mod sys;

pub use host_fs::{Budget, HostFs, Options, RootError};
pub use router::Router;
pub use sys::{MountError, Mounted, OwnFiles};
