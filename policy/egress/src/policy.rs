//! The policy of one sandbox: made from lists of text, and changed while the sandbox runs.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::list::{self, Ask, Entry, List, MAX_PATTERNS, Peer};
use crate::pattern::{self, Hosts, PathGlob, Pattern, PatternError, Ports, Requests};
use crate::verdict::Reason;

/// Most secrets of a sandbox: each request is held against all of them.
pub const MAX_SECRETS: usize = 256;

/// The policy that is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedPolicy {
    /// Patterns that are allowed. Empty = the public internet. A name without a port is for 80 and 443; `*` and addresses
    /// are for all ports.
    pub allow: Vec<String>,
    /// Patterns that are denied whatever else is said; without a port, on all.
    pub deny: Vec<String>,
    /// Patterns of hosts whose TLS is not looked into; without a port, on 443.
    pub passthrough: Vec<String>,
    /// Secrets, without their values. Their hosts are added to what is allowed.
    pub secrets: Vec<WantedSecret>,
    /// Rules for requests, in their order.
    pub rules: Vec<WantedRule>,
    /// Whether HTTP and TLS are looked into though nothing else needs it.
    pub intercept: bool,
    /// Whether private networks are open, as far as the lists open them.
    pub private_open: bool,
    /// The addresses of the host.
    pub host_addresses: Vec<IpAddr>,
}

/// A secret, without its value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedSecret {
    /// Name.
    pub name: String,
    /// Patterns of hosts that get the value; without a port, on 443, and if `plain` on 80 too. Empty = all.
    pub hosts: Vec<String>,
    /// Whether it goes out without TLS.
    pub plain: bool,
}

/// A rule for requests, without what it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedRule {
    /// Name; empty = its number counts.
    pub name: String,
    /// When it acts.
    pub phase: Phase,
    /// Patterns of hosts; empty = all.
    pub hosts: Vec<String>,
    /// Methods; empty = all.
    pub methods: Vec<String>,
    /// A glob for the path, as Go's `path.Match` has it.
    pub path: Option<String>,
    /// Its effect.
    pub effect: Effect,
}

/// When a rule acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// On requests.
    #[default]
    Before,
    /// On responses.
    After,
}

/// The effect of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It denies.
    Block,
    /// It changes what rules do not look at.
    Change,
    /// It may change the path, too.
    Redirect,
}

/// A policy that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A pattern of a list.
    #[error("{0}: {1}")]
    Pattern(Place, PatternError),
    /// A list is too long.
    #[error("{0}: more than {1} entries")]
    TooMany(Place, usize),
    /// A rule's glob is malformed.
    #[error("{0}: {1:?} is no glob for paths")]
    Path(Place, String),
    /// A rule's method is none.
    #[error("{0}: {1:?} is no method")]
    Method(Place, String),
}

/// Where a fault is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Place {
    /// The allow list.
    #[error("allow list")]
    Allow,
    /// The deny list.
    #[error("deny list")]
    Deny,
    /// The passthrough list.
    #[error("passthrough list")]
    Passthrough,
    /// A secret, by name.
    #[error("secret {0:?}")]
    Secret(String),
    /// The list of secrets.
    #[error("secrets")]
    Secrets,
    /// A rule for requests, by name or number.
    #[error("rule {0:?}")]
    Rule(String),
    /// The list of rules.
    #[error("rules")]
    Rules,
}

/// A policy.
#[derive(Debug, Clone)]
pub struct Policy {
    pub(crate) allow: Arc<Patterns>,
    pub(crate) deny: Arc<Patterns>,
    pub(crate) passthrough: Arc<Patterns>,
    pub(crate) secrets: Arc<[Secret]>,
    pub(crate) rules: Arc<Rules>,
    /// Whether there ever was an allow list: if it is emptied, everything stays closed.
    pub(crate) is_closed: bool,
    pub(crate) intercept: bool,
    pub(crate) private_open: bool,
    /// Canonical.
    pub(crate) host_addresses: Arc<BTreeSet<IpAddr>>,
}

/// A change of the allow list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Patterns are added.
    Add(Vec<String>),
    /// Patterns are taken away, by their exact text.
    Delete(Vec<String>),
}

/// A list of patterns with its index.
#[derive(Debug, Default)]
pub(crate) struct Patterns {
    patterns: Vec<Pattern>,
    list: List,
    /// Patterns for certain requests on ports that they name.
    pub(crate) by_port: List,
    /// Whether names, or requests to them, are in the list: they cannot be told from the address alone.
    pub(crate) has_names: bool,
}

impl Patterns {
    fn new(patterns: Vec<Pattern>, usual_ports: impl Fn(&Pattern) -> Vec<Ports>) -> Self {
        let list = List::new(list::entries(&patterns, usual_ports));
        let requests = patterns.iter().filter(|pattern| pattern.requests.is_some());
        let by_port = List::new(requests.flat_map(|pattern| on_its_ports(pattern, 0)));
        let by_address = |pattern: &Pattern| {
            matches!(pattern.hosts, Hosts::Any | Hosts::Network(_)) && pattern.requests.is_none()
        };
        let has_names = !patterns.iter().all(by_address);
        Self { patterns, list, by_port, has_names }
    }

    pub(crate) fn list(&self) -> &List {
        &self.list
    }

    /// A reason with the pattern of this number.
    pub(crate) fn because(&self, reason: fn(Arc<str>) -> Reason, number: usize) -> Reason {
        reason(self.patterns[number].text())
    }
}

/// A secret's hosts.
#[derive(Debug)]
pub(crate) struct Secret {
    pub(crate) name: Arc<str>,
    pub(crate) hosts: List,
    pub(crate) plain: bool,
}

/// Rules for requests.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub(crate) rules: Vec<Rule>,
    list: List,
    /// Rules on ports that they name.
    pub(crate) by_port: List,
}

/// A rule, without what it matches.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) name: Arc<str>,
    pub(crate) phase: Phase,
    pub(crate) effect: Effect,
}

impl Policy {
    /// Makes a policy.
    ///
    /// # Errors
    ///
    /// If a part of it is not understood.
    pub fn new(wanted: &WantedPolicy) -> Result<Self, PolicyError> {
        let mut allow = parse(&wanted.allow, &Place::Allow)?;
        for secret in &wanted.secrets {
            let hosts = parse(&secret.hosts, &Place::Secret(secret.name.clone()))?;
            // A secret for all hosts is one for all that are allowed.
            allow.extend(hosts.into_iter().filter(|pattern| pattern.hosts != Hosts::Any));
        }
        let allow = distinct(allow);
        bounded(allow.len(), MAX_PATTERNS, Place::Allow)?;
        bounded(wanted.secrets.len(), MAX_SECRETS, Place::Secrets)?;
        let deny = parse(&wanted.deny, &Place::Deny)?;
        let passthrough = hosts_only(&wanted.passthrough, &Place::Passthrough)?;
        let is_closed = !allow.is_empty();
        Ok(Self {
            allow: Arc::new(Patterns::new(allow, allowed_ports)),
            deny: Arc::new(Patterns::new(deny, |_| vec![Ports::ALL])),
            passthrough: Arc::new(Patterns::new(passthrough, |_| vec![Ports::HTTPS])),
            secrets: wanted.secrets.iter().map(Secret::new).collect::<Result<_, _>>()?,
            rules: Arc::new(Rules::new(&wanted.rules)?),
            is_closed,
            intercept: wanted.intercept,
            private_open: wanted.private_open,
            host_addresses: canonical(&wanted.host_addresses),
        })
    }

    /// The patterns of the allow list, as they were written.
    pub fn allowed(&self) -> impl Iterator<Item = &str> {
        self.allow.patterns.iter().map(Pattern::as_str)
    }

    /// The domains that hold each name that the allow list can allow, if it has nothing but names, and names below others.
    #[must_use]
    pub fn domains<'a>(&'a self) -> Option<BTreeSet<&'a str>> {
        let domain = |pattern: &'a Pattern| match &pattern.hosts {
            Hosts::Name(name) => Some(name.as_str()),
            Hosts::Below(domain) => Some(domain.as_str()),
            Hosts::Any | Hosts::Before(_) | Hosts::Pieces(_) | Hosts::Network(_) => None,
        };
        if self.is_closed { self.allow.patterns.iter().map(domain).collect() } else { None }
    }

    /// The policy after a change of its allow list, and the patterns that were not there before, or were.
    ///
    /// # Errors
    ///
    /// If a pattern that is to be added is not understood.
    pub fn change(&self, change: &Change) -> Result<(Self, Vec<String>), PolicyError> {
        let known: BTreeSet<&str> = self.allowed().collect();
        let (allow, changed) = match change {
            Change::Add(texts) => {
                let added = distinct(parse(texts, &Place::Allow)?);
                let added: Vec<_> =
                    added.into_iter().filter(|pattern| !known.contains(pattern.as_str())).collect();
                let changed = added.iter().map(|pattern| pattern.as_str().to_owned()).collect();
                ([self.allow.patterns.as_slice(), &added].concat(), changed)
            }
            Change::Delete(texts) => {
                let named: BTreeSet<&str> = texts.iter().map(|text| text.trim()).collect();
                let kept = self.allow.patterns.iter().filter(|pattern| !named.contains(pattern.as_str()));
                let changed = named.intersection(&known).map(|text| (*text).to_owned()).collect();
                (kept.cloned().collect(), changed)
            }
        };
        bounded(allow.len(), MAX_PATTERNS, Place::Allow)?;
        let is_closed = self.is_closed || !allow.is_empty();
        let allow = Arc::new(Patterns::new(allow, allowed_ports));
        Ok((Self { allow, is_closed, ..self.clone() }, changed))
    }

    /// The policy as if there had been an allow list before: what is not on the list is closed.
    #[must_use]
    pub fn closed(self) -> Self {
        Self { is_closed: true, ..self }
    }

    /// The policy on a host whose addresses are now these.
    #[must_use]
    pub fn on_host(&self, addresses: &[IpAddr]) -> Self {
        Self { host_addresses: canonical(addresses), ..self.clone() }
    }
}

impl Secret {
    fn new(wanted: &WantedSecret) -> Result<Self, PolicyError> {
        let mut hosts = hosts_only(&wanted.hosts, &Place::Secret(wanted.name.clone()))?;
        if hosts.is_empty() {
            hosts = parse(&["*".to_owned()], &Place::Secrets)?;
        }
        let ports = if wanted.plain { vec![Ports::HTTPS, Ports::HTTP] } else { vec![Ports::HTTPS] };
        let hosts = List::new(list::entries(&hosts, |_| ports.clone()));
        Ok(Self { name: wanted.name.as_str().into(), hosts, plain: wanted.plain })
    }
}

impl Rules {
    fn new(wanted: &[WantedRule]) -> Result<Self, PolicyError> {
        bounded(wanted.len(), MAX_PATTERNS, Place::Rules)?;
        let (mut rules, mut entries, mut by_port) = (Vec::new(), Vec::new(), Vec::new());
        for (number, rule) in wanted.iter().enumerate() {
            let name = if rule.name.is_empty() { (number + 1).to_string() } else { rule.name.clone() };
            let place = || Place::Rule(name.clone());
            let method =
                |text: &String| pattern::method(text).map_err(|_| PolicyError::Method(place(), text.clone()));
            let path = |text: &String| {
                PathGlob::of_rule(text).ok_or_else(|| PolicyError::Path(place(), text.clone()))
            };
            let methods = rule.methods.iter().map(method).collect::<Result<Vec<_>, _>>()?;
            let path = rule.path.as_ref().filter(|path| !path.is_empty()).map(path).transpose()?;
            let requests = Requests { methods, path };
            let mut hosts = hosts_only(&rule.hosts, &place())?;
            if hosts.is_empty() {
                hosts = parse(&["*".to_owned()], &place())?;
            }
            by_port.extend(hosts.iter().filter_map(|pattern| on_its_ports(pattern, number)));
            entries.extend(hosts.into_iter().map(|pattern| Entry {
                hosts: pattern.hosts,
                ports: vec![pattern.ports.unwrap_or(Ports::ALL)],
                requests: Some(requests.clone()),
                number,
            }));
            bounded(entries.len(), MAX_PATTERNS, Place::Rules)?;
            rules.push(Rule { name: name.into(), phase: rule.phase, effect: rule.effect });
        }
        Ok(Self { rules, list: List::new(entries), by_port: List::new(by_port) })
    }

    /// Numbers of the rules for a request, in their order. A path that a server may see in two ways is blocked for
    /// either, and changed for the one that was sent.
    pub(crate) fn matching(&self, peer: Peer<'_>, ask: Ask<'_>) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        for (form, path) in ask.path.forms().enumerate() {
            self.list.requests(peer, ask, path, |_, number| -> Option<()> {
                if form == 0 || self.rules[number].effect == Effect::Block {
                    found.insert(number);
                }
                None
            });
        }
        found
    }
}

fn parse(texts: &[String], place: &Place) -> Result<Vec<Pattern>, PolicyError> {
    bounded(texts.len(), MAX_PATTERNS, place.clone())?;
    let parse =
        |text: &String| Pattern::parse(text).map_err(|error| PolicyError::Pattern(place.clone(), error));
    texts.iter().map(parse).collect()
}

/// An entry for a pattern's hosts on the ports that it names, if it names any.
fn on_its_ports(pattern: &Pattern, number: usize) -> Option<Entry> {
    let ports = vec![pattern.ports?];
    Some(Entry { hosts: pattern.hosts.clone(), ports, requests: None, number })
}

/// Patterns that say nothing about requests.
fn hosts_only(texts: &[String], place: &Place) -> Result<Vec<Pattern>, PolicyError> {
    let whole = |pattern: Pattern| {
        pattern.without_requests().map_err(|error| PolicyError::Pattern(place.clone(), error))
    };
    parse(texts, place)?.into_iter().map(whole).collect()
}

/// The patterns without those whose text was there before.
fn distinct(patterns: Vec<Pattern>) -> Vec<Pattern> {
    let mut seen = BTreeSet::new();
    patterns.into_iter().filter(|pattern| seen.insert(pattern.text())).collect()
}

fn bounded(count: usize, most: usize, place: Place) -> Result<(), PolicyError> {
    if count > most { Err(PolicyError::TooMany(place, most)) } else { Ok(()) }
}

/// Ports that an allowed pattern without any is for: requests, and names of hosts, are known on those of HTTP and TLS
/// alone.
fn allowed_ports(pattern: &Pattern) -> Vec<Ports> {
    match pattern.hosts {
        Hosts::Any | Hosts::Network(_) if pattern.requests.is_none() => vec![Ports::ALL],
        _ => vec![Ports::HTTP, Ports::HTTPS],
    }
}

fn canonical(addresses: &[IpAddr]) -> Arc<BTreeSet<IpAddr>> {
    Arc::new(addresses.iter().map(IpAddr::to_canonical).collect())
}

#[cfg(test)]
mod tests;
