//! The way out of a sandbox: all that its guest sends outside is carried as the policy ([`egress_policy`]) decides, word for
//! word.
//!
//! Packets become flows and datagrams elsewhere, in one of several ways; here nobody knows in which, nor on what platform.
//! So far: DNS ([`Dns`]), the addresses that a guest was given for names, and events for an audit ([`audit`]). Not here:
//! decisions.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

pub mod audit;
mod dns;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod pins;
mod shared;

pub use dns::{Dns, DnsSettings, Via, resolvers};
pub use shared::Shared;
