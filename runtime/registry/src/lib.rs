//! Images and other artifacts from OCI registries: names, requests, and the pull itself.
//!
//! The protocol is the OCI distribution specification 1.1, of which only pulling is here. Data from a registry is
//! bounded before it is held, and believed only if it has its digest, which the store checks. Not here: the store and
//! the conversion of layers (`images`).

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod artifact;
mod auth;
mod body;
mod client;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod mirrors;
mod name;
mod pull;
mod signatures;
mod trust;

pub use artifact::Artifact;
pub use error::Error;
pub use name::{Name, NameError};
pub use pull::Registries;
pub use trust::Trust;
