//! The host's files, as a guest sees them.
//!
//! [`HostFs`] is a directory of the host: a provider of the seam [`fuse::FileSystem`]. Three layers go before any provider:
//! [`OneFile`] is a file of it, [`Places`] makes room in it for mounts, and [`Router`] makes several of them one file system.
//! [`Mounted`] mounts any of these on the host itself, through `/dev/fuse`, for people who want to look and for suites that
//! want to be quick.
//!
//! Not here: the way from a guest to a provider, and what is allowed on it.

#![cfg(target_os = "linux")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod guest_attributes;
mod host_fs;
mod nodes;
mod one_file;
mod places;
mod reenacted;
mod router;
mod specials;
mod sys;
mod watches;

pub use host_fs::{Act, Budget, Caching, Change, HostFs, Made, Options, RootError};
pub use one_file::OneFile;
pub use places::{Place, Places};
pub use reenacted::{Reenacted, Stage};
pub use router::Router;
pub use sys::{MountError, Mounted, OwnFiles};
pub use watches::{Batch, Watches};
