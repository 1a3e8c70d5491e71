//! The network that is wanted, in plain values: these travel to the process.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The network that is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// What may leave.
    pub lists: Lists,
    /// The DNS servers that are asked, in order ([`crate::resolvers`] has the host's). None: no name is known but those of
    /// `add_hosts`.
    pub resolvers: Vec<SocketAddr>,
    /// Entries of the guest's table of hosts.
    pub add_hosts: Vec<(String, IpAddr)>,
    /// The host's own addresses, which are closed ([`crate::host_addresses`]).
    pub host_addresses: Vec<IpAddr>,
    /// Whether the guest may be given addresses of IPv6.
    pub ipv6: bool,
}

/// What may leave a sandbox: the lists of an [`egress_policy::WantedPolicy`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lists {
    /// Patterns that are allowed. `None`: there never was a list, so the public internet is open. An empty list was
    /// emptied, so nothing is open.
    pub allow: Option<Vec<String>>,
    /// Patterns that are denied whatever else is said.
    pub deny: Vec<String>,
    /// Patterns of hosts whose TLS is not looked into.
    pub passthrough: Vec<String>,
    /// Whether HTTP and TLS are looked into though nothing else needs it.
    pub intercept: bool,
    /// Whether private networks are open, as far as the lists open them (`block_private_ips: false`).
    pub private_open: bool,
}
