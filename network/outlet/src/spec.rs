//! The network that is wanted, in plain values: these travel to the process.

use std::net::{IpAddr, SocketAddr};

use egress_policy::{Name, Policy, PolicyError, WantedPolicy};
use serde::{Deserialize, Serialize};

/// The network that is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Lists of what may leave.
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

/// Lists of what may leave a sandbox, as an [`egress_policy::WantedPolicy`] has them.
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

/// An entry of the table of hosts has no name of a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name of a host")]
pub struct NoHost(pub String);

impl Spec {
    /// The policy of these lists.
    pub(crate) fn policy(&self) -> Result<Policy, PolicyError> {
        let Lists { allow, deny, passthrough, intercept, private_open } = self.lists.clone();
        let was_emptied = allow.as_ref().is_some_and(Vec::is_empty);
        let wanted = WantedPolicy {
            allow: allow.unwrap_or_default(),
            deny,
            passthrough,
            intercept,
            private_open,
            host_addresses: self.host_addresses.clone(),
            ..WantedPolicy::default()
        };
        let policy = Policy::new(&wanted)?;
        Ok(if was_emptied { policy.closed() } else { policy })
    }

    /// The table of hosts.
    pub(crate) fn hosts(&self) -> Result<Vec<(Name, IpAddr)>, NoHost> {
        let entry = |(name, address): &(String, IpAddr)| {
            name.parse().map(|name| (name, *address)).map_err(|_| NoHost(name.clone()))
        };
        self.add_hosts.iter().map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use egress_policy::{Dial, Reason};

    use super::*;

    fn verdict(allow: Option<&[&str]>) -> (Dial, Reason) {
        let allow = allow.map(|list| list.iter().map(ToString::to_string).collect());
        let spec = Spec { lists: Lists { allow, ..Lists::default() }, ..Spec::default() };
        let verdict = spec.policy().unwrap().dial(None, [203, 0, 113, 7].into(), 7000);
        (verdict.decision, verdict.reason)
    }

    #[test]
    fn a_list_that_was_emptied_is_closed_and_none_is_open() {
        assert_eq!(verdict(None), (Dial::Allow, Reason::Open));
        assert_eq!(verdict(Some(&[])), (Dial::Deny, Reason::NotListed));
        assert_eq!(verdict(Some(&["203.0.113.7"])).0, Dial::Allow);
    }

    #[test]
    fn what_is_not_understood_is_shown() {
        let lists = Lists { deny: vec!["http://x".into()], ..Lists::default() };
        let spec = Spec { lists, add_hosts: vec![("a b".into(), [1, 2, 3, 4].into())], ..Spec::default() };
        assert!(spec.policy().unwrap_err().to_string().starts_with("deny list: "));
        assert_eq!(spec.hosts(), Err(NoHost("a b".into())));
    }
}
