//! The way out of a sandbox: all that its guest sends outside is carried as the policy ([`egress_policy`]) decides, word for
//! word.
//!
//! Packets become flows and datagrams elsewhere, in one of several ways; here nobody knows in which, nor on what platform.
//! So far: DNS ([`Dns`]), connections ([`Flows`]), datagrams ([`Datagrams`]), and events for an audit ([`audit`]). Not yet:
//! requests that have to be judged one by one, which are refused. Not here: decisions.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

pub mod audit;
mod datagram;
mod dns;
mod flow;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod pins;
mod shared;
mod udp;

pub use datagram::{Datagram, Datagrams, Prohibited};
pub use dns::{Dns, DnsSettings, Via, resolvers};
pub use flow::{Flow, Flows};
pub use shared::Shared;
