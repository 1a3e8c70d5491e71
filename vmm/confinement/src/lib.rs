//! The remaining powers of a process that handles a guest's bytes, once it has everything for its work.
//!
//! A program declares a [`Profile`] of system calls, the [`Reachable`] files and the [`Limits`] that it needs.
//! [`enter`] takes everything but system calls, which the profile's [`Filter`] takes last. A child that runs another
//! project's program gets the same from its parent, between fork(2) and execve(2): [`ChildDomain`], [`Limits`],
//! [`Filter`].
//!
//! Not here: which program needs which powers, and starting processes (`process`).

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "seccomp, Landlock of a child, and namespaces have no safe wrapper")]

mod arch;
pub mod calls;
mod filter;
mod limits;
mod namespaces;
mod paths;
mod profile;
mod root;
#[cfg(feature = "testing")]
pub mod testing;
mod user;

pub use filter::{Filter, Forbidden, Test};
pub use limits::deny_core;
pub use namespaces::{isolate, isolate_children, isolate_children_as_user};
pub use paths::{ChildDomain, Domain, Landlock, Reachable};
pub use profile::{
    BACK_END_IF, Conditional, Error, Limits, OWN_FCNTLS, Profile, RUNTIME_IF, Report, STREAM_PAIRS, enter,
    enter_as_is, enter_with_nothing,
};
pub use root::{Shared, enter_root, enter_shared, own_descriptors};
pub use user::{User, become_user, keep_capabilities, take_own_user, take_user};

/// ioctl(2): makes a descriptor non-blocking, or not (Linux asm-generic/ioctls.h).
pub const FIONBIO: u32 = 0x5421;
