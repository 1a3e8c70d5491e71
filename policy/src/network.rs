//! Checks of the network that a sandbox asks for.
//!
//! A front end fills a [`WantedNetwork`] from its own words, and names the member in its own words in an error. Not here:
//! the network itself.

use std::net::IpAddr;
use std::str::FromStr;

use egress_policy::{MAX_PATTERNS, Pattern, PatternError, Policy, PolicyError, WantedPolicy};

use crate::names::{self, NameError};

/// The default MTU.
pub const DEFAULT_MTU: u16 = 1500;

/// The least MTU that IPv4 works with (RFC 791).
const MIN_MTU: u16 = 68;

/// The greatest: a frame of the longest packet has 65,535 bytes.
const MAX_MTU: u16 = 65_521;

/// The way in which a guest's packets are to reach what carries them on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WantedArrival {
    /// The first that this host gives.
    #[default]
    Auto,
    /// A TAP in a network namespace of the sandbox's own.
    Tap,
    /// A network stack in the machine's own process. Not built yet.
    Nat,
    /// No network device.
    None,
}

impl WantedArrival {
    /// The way's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tap => "tap",
            Self::Nat => "nat",
            Self::None => "none",
        }
    }
}

impl FromStr for WantedArrival {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Auto, Self::Tap, Self::Nat, Self::None];
        let found = all.into_iter().find(|arrival| arrival.name() == text);
        found.ok_or_else(|| format!("{text:?} is none of {}", all.map(Self::name).join(", ")))
    }
}

/// The way in which a guest's packets reach what carries them on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Arrival {
    /// The first that this host gives; without any, a sandbox that needs no network has none.
    #[default]
    Auto,
    /// A TAP in a network namespace of the sandbox's own, or no sandbox.
    Tap,
    /// No network device.
    None,
}

impl Arrival {
    /// The way's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tap => "tap",
            Self::None => "none",
        }
    }
}

/// The requested network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedNetwork {
    /// The way of packets.
    pub arrival: WantedArrival,
    /// Whether there is no network device.
    pub no_network: bool,
    /// Hosts that may be reached.
    pub allowed_hosts: Vec<String>,
    /// Hosts that may not be reached, whatever else is said.
    pub denied_hosts: Vec<String>,
    /// Hosts whose TLS is not looked into.
    pub passthrough: Vec<String>,
    /// Whether private addresses are open, as far as the lists open them.
    pub private_open: bool,
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
    /// Largest packet; `None` = the default.
    pub mtu: Option<i64>,
}

/// An acceptable network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The way of packets.
    pub arrival: Arrival,
    /// The traffic that may leave.
    pub access: Access,
    /// Host name; `None` = the sandbox's id.
    pub hostname: Option<String>,
    /// Lines of /etc/hosts.
    pub add_hosts: Vec<(String, IpAddr)>,
    /// Resolvers; none = the host's.
    pub nameservers: Vec<IpAddr>,
    /// Largest packet.
    pub mtu: u16,
}

/// The traffic that may leave a sandbox, in patterns that are known to be understood.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Hosts that may be reached; none = the public internet.
    pub allowed: Vec<String>,
    /// Hosts that may not be reached, whatever else is said.
    pub denied: Vec<String>,
    /// Hosts whose TLS is not looked into.
    pub passthrough: Vec<String>,
    /// Whether every connection is inspected.
    pub intercept: bool,
    /// Whether private addresses are open, as far as the lists open them.
    pub private_open: bool,
}

impl Default for Network {
    fn default() -> Self {
        let access = Access::default();
        let (add_hosts, nameservers) = (Vec::new(), Vec::new());
        Self { arrival: Arrival::Auto, access, hostname: None, add_hosts, nameservers, mtu: DEFAULT_MTU }
    }
}

impl Network {
    /// Whether a sandbox is not to start on a host that gives no network: one is asked for, or something that is nothing
    /// without one.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        let Access { allowed, denied, passthrough, intercept, private_open: _ } = &self.access;
        let has_list = [allowed, denied, passthrough].iter().any(|list| !list.is_empty());
        self.arrival == Arrival::Tap || has_list || *intercept
    }
}

/// A member of a [`WantedNetwork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as in the request")]
pub enum Member {
    Arrival,
    AllowedHosts,
    DeniedHosts,
    Passthrough,
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
    /// There is no such part yet.
    #[error("{0}: not built yet")]
    NotBuilt(&'static str),
    /// A name or mapping is not acceptable.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A pattern of hosts is not understood.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// Too many patterns.
    #[error("more than {MAX_PATTERNS} patterns")]
    TooMany,
    /// The text is no IP address.
    #[error("{0:?} is no IP address")]
    Address(String),
    /// No packet has this size.
    #[error("must be in {MIN_MTU}..{MAX_MTU}")]
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
    let arrival = arrival(request)?;
    patterns(&request.allowed_hosts).map_err(wrong(Member::AllowedHosts))?;
    patterns(&request.denied_hosts).map_err(wrong(Member::DeniedHosts))?;
    hosts(&request.passthrough).map_err(wrong(Member::Passthrough))?;
    overlap(&request.placeholders).map_err(wrong(Member::Secrets))?;
    let mtu = mtu(request.mtu).ok_or(Wrong::Size).map_err(wrong(Member::Mtu))?;
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
    let access = Access {
        allowed: request.allowed_hosts.clone(),
        denied: request.denied_hosts.clone(),
        passthrough: request.passthrough.clone(),
        intercept: request.intercept,
        private_open: request.private_open,
    };
    Ok(Network { arrival, access, hostname: request.hostname.clone(), add_hosts, nameservers, mtu })
}

/// The way of packets, if the members that need one have it.
fn arrival(request: &WantedNetwork) -> Result<Arrival, NetworkError> {
    let is_wanted = matches!(request.arrival, WantedArrival::Tap | WantedArrival::Nat);
    let is_none = request.no_network || request.arrival == WantedArrival::None;
    let needs_network = [
        (Member::Arrival, is_wanted),
        (Member::AllowedHosts, !request.allowed_hosts.is_empty()),
        (Member::DeniedHosts, !request.denied_hosts.is_empty()),
        (Member::Passthrough, !request.passthrough.is_empty()),
        (Member::Secrets, !request.placeholders.is_empty()),
        (Member::Intercept, request.intercept),
        (Member::Rules, request.rules),
    ];
    match needs_network.into_iter().find(|(_, given)| *given && is_none) {
        Some((member, _)) => Err(wrong(member)(Wrong::NoNetwork)),
        None if is_none => Ok(Arrival::None),
        None => match request.arrival {
            WantedArrival::Tap => Ok(Arrival::Tap),
            WantedArrival::Nat => Err(wrong(Member::Arrival)(Wrong::NotBuilt(WantedArrival::Nat.name()))),
            WantedArrival::Auto | WantedArrival::None => Ok(Arrival::Auto),
        },
    }
}

/// Checks that every pattern of a list is understood.
pub fn patterns(list: &[String]) -> Result<(), Wrong> {
    if list.len() > MAX_PATTERNS {
        return Err(Wrong::TooMany);
    }
    list.iter().try_for_each(|text| Pattern::parse(text).map(drop).map_err(Wrong::from))
}

/// Checks that every pattern of a list is understood, and says nothing about requests.
fn hosts(list: &[String]) -> Result<(), Wrong> {
    let request = WantedPolicy { passthrough: list.to_vec(), ..WantedPolicy::default() };
    match Policy::new(&request) {
        Ok(_) => Ok(()),
        Err(PolicyError::Pattern(_, error)) => Err(error.into()),
        Err(_) => Err(Wrong::TooMany),
    }
}

fn mtu(wanted: Option<i64>) -> Option<u16> {
    let Some(wanted) = wanted else { return Some(DEFAULT_MTU) };
    u16::try_from(wanted).ok().filter(|mtu| (MIN_MTU..=MAX_MTU).contains(mtu))
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
            mtu: Some(65_521),
            arrival: WantedArrival::Tap,
            denied_hosts: vec!["evil.test".into()],
            passthrough: vec!["pinned.test".into()],
            private_open: true,
            no_network: false,
        };
        let network = Network {
            arrival: Arrival::Tap,
            access: Access {
                allowed: vec!["*.example.org".into()],
                denied: vec!["evil.test".into()],
                passthrough: vec!["pinned.test".into()],
                intercept: true,
                private_open: true,
            },
            mtu: 65_521,
            hostname: Some("box".into()),
            add_hosts: vec![("db".into(), [10, 0, 0, 1].into()), ("six".into(), "fe80::1".parse().unwrap())],
            nameservers: vec![[1, 1, 1, 1].into()],
        };
        assert_eq!(check(&request), Ok(network));
        assert_eq!(check(&WantedNetwork::default()), Ok(Network::default()));
    }

    #[test]
    fn what_says_something_of_a_network_needs_one() {
        let needed = |request: WantedNetwork| check(&request).unwrap().is_needed();
        let default = WantedNetwork::default;
        assert!(!needed(default()));
        let rest = WantedNetwork { dns_servers: vec!["1.1.1.1".into()], mtu: Some(1400), ..default() };
        assert!(!needed(WantedNetwork { private_open: true, ..rest }));
        for request in [
            WantedNetwork { arrival: WantedArrival::Tap, ..default() },
            WantedNetwork { allowed_hosts: vec!["a".into()], ..default() },
            WantedNetwork { denied_hosts: vec!["a".into()], ..default() },
            WantedNetwork { passthrough: vec!["a".into()], ..default() },
            WantedNetwork { intercept: true, ..default() },
        ] {
            assert!(needed(request.clone()), "{request:?}");
        }
    }

    #[test]
    fn ways_have_names() {
        for arrival in [WantedArrival::Auto, WantedArrival::Tap, WantedArrival::Nat, WantedArrival::None] {
            assert_eq!(arrival.name().parse(), Ok(arrival));
        }
        let error = "slirp".parse::<WantedArrival>().unwrap_err();
        assert_eq!(error, "\"slirp\" is none of auto, tap, nat, none");
    }

    #[test]
    fn without_a_network_nothing_that_needs_one() {
        let without = || WantedNetwork { no_network: true, ..WantedNetwork::default() };
        let secret = || vec![("A".into(), String::new())];
        for (request, member) in [
            (WantedNetwork { arrival: WantedArrival::Tap, ..without() }, Member::Arrival),
            (WantedNetwork { arrival: WantedArrival::Nat, ..without() }, Member::Arrival),
            (WantedNetwork { allowed_hosts: vec!["a".into()], ..without() }, Member::AllowedHosts),
            (WantedNetwork { denied_hosts: vec!["a".into()], ..without() }, Member::DeniedHosts),
            (WantedNetwork { passthrough: vec!["a".into()], ..without() }, Member::Passthrough),
            (WantedNetwork { placeholders: secret(), ..without() }, Member::Secrets),
            (WantedNetwork { intercept: true, ..without() }, Member::Intercept),
            (WantedNetwork { rules: true, ..without() }, Member::Rules),
        ] {
            assert_eq!(refused(request.clone()), (member, Wrong::NoNetwork));
            let none = WantedNetwork { no_network: false, arrival: WantedArrival::None, ..request.clone() };
            let by_name = check(&none).map_err(|error| error.member);
            assert_eq!(by_name.is_err(), request.arrival == WantedArrival::Auto, "{request:?}");
        }
        let rest = WantedNetwork {
            hostname: Some("h".into()),
            dns_servers: vec!["::1".into()],
            mtu: Some(1400),
            ..without()
        };
        let network = check(&rest).unwrap();
        assert_eq!((network.arrival, network.mtu, network.is_needed()), (Arrival::None, 1400, false));
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
            (WantedNetwork { mtu: Some(0), ..default() }, Member::Mtu),
            (WantedNetwork { mtu: Some(-1), ..default() }, Member::Mtu),
            (WantedNetwork { mtu: Some(67), ..default() }, Member::Mtu),
            (WantedNetwork { mtu: Some(65_522), ..default() }, Member::Mtu),
            (WantedNetwork { mtu: Some(65_536 + 1500), ..default() }, Member::Mtu),
            (WantedNetwork { arrival: WantedArrival::Nat, ..default() }, Member::Arrival),
            (WantedNetwork { denied_hosts: vec!["http://a".into()], ..default() }, Member::DeniedHosts),
            (WantedNetwork { passthrough: vec!["a b".into()], ..default() }, Member::Passthrough),
            (WantedNetwork { passthrough: vec!["GET a.test".into()], ..default() }, Member::Passthrough),
            (
                WantedNetwork { allowed_hosts: vec!["a".into(); MAX_PATTERNS + 1], ..default() },
                Member::AllowedHosts,
            ),
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
