//! The way out of a sandbox: all that its guest sends outside is carried as the policy ([`egress_policy`]) decides, word for
//! word.
//!
//! Packets become flows and datagrams elsewhere, in one of several ways; here nobody knows in which, nor on what platform.
//! DNS ([`Dns`]), connections ([`Flows`]), those whose requests are judged one by one (`http`, and with certificates of the
//! sandbox's own [`Interception`]), datagrams ([`Datagrams`]), and events for an audit ([`audit`]). Not here: decisions.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

pub mod audit;
mod datagram;
mod dial;
mod dns;
mod flow;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod http;
mod pins;
mod shared;
mod tls;
mod udp;

pub use datagram::{Datagram, Datagrams, Prohibited};
pub use dns::{Dns, DnsSettings, Via, resolvers};
pub use flow::{Flow, Flows};
pub use shared::Shared;
pub use tls::{Interception, TlsError};
