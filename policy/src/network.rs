//! Checks of the network that a sandbox asks for.
//!
//! A front end fills a [`WantedNetwork`] from its own words, and names the member in its own words in an error. Not here:
//! the network itself.

use std::net::IpAddr;

use egress_policy::{Pattern, PatternError};

use crate::names::{self, NameError};

/// The requested network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedNetwork {
    /// Whether there is no network device.
    pub no_network: bool,
    /// Hosts that may be reached.
    pub allowed_hosts: Vec<String>,
    /// Placeholders of secrets, by the name of the secret; an empty placeholder stands for a random one.
    pub placeholders: Vec<(String, String)>,
    /// Whether every connection is inspected.
    pub intercept: bool,
    /// Whether there are rules for requests, or a callback.
    pub rules: bool,
    /// Lines for /etc/hosts, each `host:ip`.
    pub add_hosts: Vec<String>,
    /// Resolvers.
    pub dns_servers: Vec<String>,
    /// Host name; `None` = the sandbox's id.
    pub hostname: Option<String>,
    /// Largest packet; 0 = the default.
    pub mtu: i64,
}

/// An acceptable network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// Whether there is no network device.
    pub no_network: bool,
    /// Host name; `None` = the sandbox's id.
    pub hostname: Option<String>,
    /// Lines of /etc/hosts.
    pub add_hosts: Vec<(String, IpAddr)>,
    /// Resolvers.
    pub nameservers: Vec<IpAddr>,
}

/// A member of a [`WantedNetwork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as in the request")]
pub enum Member {
    AllowedHosts,
    Secrets,
    Intercept,
    Rules,
    AddHosts,
    DnsServers,
    Hostname,
    Mtu,
}

/// The fault of a member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// The member needs a network, and none is wanted.
    #[error("a sandbox without a network cannot have it")]
    NoNetwork,
    /// A name or mapping is not acceptable.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A pattern of hosts is not understood.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The text is no IP address.
    #[error("{0:?} is no IP address")]
    Address(String),
    /// No packet has this size.
    #[error("must be in 1..65535")]
    Size,
    /// Replacing one placeholder would break the other.
    #[error("the placeholders of {0} and {1} overlap")]
    Overlap(String, String),
}

/// A network that is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("network: {member:?}: {wrong}")]
pub struct NetworkError {
    /// The member.
    pub member: Member,
    /// The fault.
    pub wrong: Wrong,
}

fn wrong(member: Member) -> impl Fn(Wrong) -> NetworkError {
    move |wrong| NetworkError { member, wrong }
}

/// Checks the requested network; the error is about the first faulty member.
pub fn check(request: &WantedNetwork) -> Result<Network, NetworkError> {
    let needs_network = [
        (Member::AllowedHosts, !request.allowed_hosts.is_empty()),
        (Member::Secrets, !request.placeholders.is_empty()),
        (Member::Intercept, request.intercept),
        (Member::Rules, request.rules),
    ];
    if let Some((member, _)) = needs_network.into_iter().find(|(_, given)| *given && request.no_network) {
        return Err(wrong(member)(Wrong::NoNetwork));
    }
    for host in &request.allowed_hosts {
        Pattern::parse(host).map_err(Wrong::from).map_err(wrong(Member::AllowedHosts))?;
    }
    overlap(&request.placeholders).map_err(wrong(Member::Secrets))?;
    if !(0..=65_535).contains(&request.mtu) {
        return Err(wrong(Member::Mtu)(Wrong::Size));
    }
    let mapping = |mapping: &String| {
        let (host, ip) = names::add_host(mapping)?;
        Ok((host.to_owned(), ip))
    };
    let add_hosts = request.add_hosts.iter().map(mapping).collect::<Result<_, Wrong>>();
    let add_hosts = add_hosts.map_err(wrong(Member::AddHosts))?;
    if let Some(name) = &request.hostname {
        names::hostname(name).map_err(Wrong::from).map_err(wrong(Member::Hostname))?;
    }
    let server = |text: &String| text.trim().parse().map_err(|_| Wrong::Address(text.clone()));
    let nameservers = request.dns_servers.iter().map(server).collect::<Result<_, _>>();
    let nameservers = nameservers.map_err(wrong(Member::DnsServers))?;
    Ok(Network { no_network: request.no_network, hostname: request.hostname.clone(), add_hosts, nameservers })
}

/// Checks that no placeholder is part of another one.
fn overlap(placeholders: &[(String, String)]) -> Result<(), Wrong> {
    let given: Vec<_> = placeholders.iter().filter(|(_, placeholder)| !placeholder.is_empty()).collect();
    for (index, (name, placeholder)) in given.iter().enumerate() {
        let others = given.iter().skip(index + 1);
        let mut parts =
            others.filter(|(_, other)| placeholder.contains(other) || other.contains(placeholder));
        if let Some((other, _)) = parts.next() {
            return Err(Wrong::Overlap(name.clone(), other.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(request: WantedNetwork) -> (Member, Wrong) {
        let error = check(&request).unwrap_err();
        (error.member, error.wrong)
    }

    #[test]
    fn an_acceptable_network() {
        let request = WantedNetwork {
            allowed_hosts: vec!["*.example.org".into()],
            placeholders: vec![
                ("A".into(), "xx".into()),
                ("B".into(), String::new()),
                ("C".into(), "y".into()),
            ],
            intercept: true,
            rules: true,
            add_hosts: vec!["db:10.0.0.1".into(), "six:fe80::1".into()],
            dns_servers: vec![" 1.1.1.1 ".into()],
            hostname: Some("box".into()),
            mtu: 65_535,
            no_network: false,
        };
        let network = Network {
            no_network: false,
            hostname: Some("box".into()),
            add_hosts: vec![("db".into(), [10, 0, 0, 1].into()), ("six".into(), "fe80::1".parse().unwrap())],
            nameservers: vec![[1, 1, 1, 1].into()],
        };
        assert_eq!(check(&request), Ok(network));
        assert_eq!(check(&WantedNetwork::default()), Ok(Network::default()));
    }

    #[test]
    fn without_a_network_nothing_that_needs_one() {
        let without = || WantedNetwork { no_network: true, ..WantedNetwork::default() };
        let secret = || vec![("A".into(), String::new())];
        for (request, member) in [
            (WantedNetwork { allowed_hosts: vec!["a".into()], ..without() }, Member::AllowedHosts),
            (WantedNetwork { placeholders: secret(), ..without() }, Member::Secrets),
            (WantedNetwork { intercept: true, ..without() }, Member::Intercept),
            (WantedNetwork { rules: true, ..without() }, Member::Rules),
        ] {
            assert_eq!(refused(request), (member, Wrong::NoNetwork));
        }
        let rest = WantedNetwork {
            hostname: Some("h".into()),
            dns_servers: vec!["::1".into()],
            mtu: 1400,
            ..without()
        };
        assert!(check(&rest).unwrap().no_network);
    }

    #[test]
    fn members_that_are_wrong() {
        let default = WantedNetwork::default;
        let names = |list: &[(&str, &str)]| list.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect();
        for (request, member) in [
            (
                WantedNetwork { allowed_hosts: vec!["a".into(), "b c".into()], ..default() },
                Member::AllowedHosts,
            ),
            (WantedNetwork { mtu: -1, ..default() }, Member::Mtu),
            (WantedNetwork { mtu: 65_536, ..default() }, Member::Mtu),
            (WantedNetwork { hostname: Some("-".into()), ..default() }, Member::Hostname),
            (WantedNetwork { hostname: Some(String::new()), ..default() }, Member::Hostname),
            (WantedNetwork { add_hosts: vec!["a".into()], ..default() }, Member::AddHosts),
            (WantedNetwork { dns_servers: vec!["dns.example".into()], ..default() }, Member::DnsServers),
            (WantedNetwork { placeholders: names(&[("A", "xx"), ("B", "x")]), ..default() }, Member::Secrets),
            (WantedNetwork { placeholders: names(&[("A", "x"), ("B", "x")]), ..default() }, Member::Secrets),
        ] {
            assert_eq!(refused(request).0, member);
        }
        let overlapping =
            WantedNetwork { placeholders: names(&[("A", "q"), ("B", "x"), ("C", "axb")]), ..default() };
        assert_eq!(refused(overlapping).1, Wrong::Overlap("B".into(), "C".into()));
    }
}
