//! The questions that a policy answers: about a name, its addresses, a flow, its first bytes, a request, a secret and an
//! address that is dialled. (The eighth changes the policy: [`Policy::change`].)
//!
//! Deny rules come first, then closed classes of addresses, then the allow list, then the default.

use std::net::IpAddr;

use crate::address::{class_on, forms};
use crate::list::{Ask, Peer};
use crate::name::{Host, Name};
use crate::path::Path;
use crate::policy::{Effect, Phase, Policy, Secret};
use crate::verdict::{
    Answers, Dial, Flow, Forward, Hello, Look, Lookup, Placeholder, Reason, Refusal, Request, Status, Verdict,
};

/// Types of records that are asked for upstream: A, NS, CNAME, SOA, MX, TXT, AAAA, SRV, CAA. SVCB and HTTPS are not: they
/// carry addresses, and keys that hide a connection's name.
const ANSWERED: [u16; 9] = [1, 2, 5, 6, 15, 16, 28, 33, 257];

/// A connection of a guest's, or the first datagram of a flow.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// Where it goes.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
    /// The names for which the guest was given this address.
    pub names: &'a [Name],
}

/// A protocol below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

/// The first bytes of a connection.
#[derive(Debug, Clone, Copy)]
pub enum FirstBytes<'a> {
    /// A TLS `ClientHello`, with the server's name if it is there.
    Tls(Option<&'a Name>),
    /// The head of an HTTP request, with its authority.
    Http(&'a Host),
    /// One of the two, whose host is neither a name nor an address.
    NoHost,
    /// Something else, or nothing in time.
    Other,
}

/// The way in which requests come.
#[derive(Debug, Clone, Copy)]
pub enum Transport<'a> {
    /// As they are.
    Plain,
    /// In TLS, with the server's name if it was stated.
    Tls(Option<&'a Name>),
}

/// The head of a request.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// The authority's host.
    pub host: &'a Host,
    /// The method.
    pub method: &'a str,
    /// The path.
    pub path: &'a Path,
    /// Whether the connection is to become another one (`Upgrade`).
    pub upgrade: bool,
    /// Whether it came by HTTP/2.
    pub http2: bool,
    /// Whether rules for the request or for its response are asked for.
    pub phase: Phase,
    /// The number of the first rule that did not act yet.
    pub from: usize,
}

/// Where a placeholder of a secret was met.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// In the name of a DNS question.
    DnsQuestion,
    /// In a request.
    Request {
        /// Its connection.
        connection: Connection<'a>,
        /// Its way.
        transport: Transport<'a>,
        /// Its authority's host.
        host: &'a Host,
        /// Its part.
        part: Part,
    },
}

/// A part of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A value of a header.
    HeaderValue,
    /// `Basic` credentials, decoded.
    Basic,
    /// The query.
    Query,
    /// The path.
    Path,
    /// The name of a header.
    HeaderName,
    /// The body, or a trailer.
    Body,
    /// Bytes of an upgraded connection.
    Upgraded,
}

/// A host of a request that may be reached.
struct Reached {
    reason: Reason,
    /// Whether the name is the address's, as far as the guest was told.
    is_pinned: bool,
}

fn verdict<T>(decision: T, reason: Reason) -> Verdict<T> {
    Verdict { decision, reason }
}

impl Policy {
    /// Whether a name may be asked for, and records of this type.
    #[must_use]
    pub fn name(&self, name: &Name, record: u16) -> Verdict<Lookup> {
        if let Some(number) = self.deny.list().all_ports(Some(name), None) {
            return verdict(Lookup::Deny, self.deny.because(Reason::Denied, number));
        }
        let reason = match self.allow.list().any_port(Some(name), None) {
            Some(number) => self.allow.because(Reason::Allowed, number),
            None if self.is_closed => return verdict(Lookup::Deny, Reason::NotListed),
            None => Reason::Open,
        };
        if ANSWERED.contains(&record) {
            verdict(Lookup::Answer, reason)
        } else {
            verdict(Lookup::NoData, Reason::RecordType)
        }
    }

    /// The addresses of a name that the guest gets to know.
    #[must_use]
    pub fn answers(&self, name: &Name, addresses: &[IpAddr]) -> Verdict<Answers> {
        let lookup = self.name(name, ANSWERED[0]);
        let (mut kept, mut dropped) = (Vec::new(), Vec::new());
        for address in addresses.iter().copied() {
            let denied = forms(address).find_map(|form| self.deny.list().all_ports(None, Some(form)));
            let class = class_on(&self.host_addresses, address);
            if lookup.decision == Lookup::Deny {
                dropped.push((address, lookup.reason.clone()));
            } else if let Some(number) = denied {
                dropped.push((address, self.deny.because(Reason::Denied, number)));
            } else if self.is_class_closed(class) {
                dropped.push((address, Reason::Closed(class)));
            } else {
                kept.push((address, class));
            }
        }
        let first = dropped.first().filter(|_| kept.is_empty()).map(|(_, reason)| reason.clone());
        verdict(Answers { kept, dropped }, first.unwrap_or(lookup.reason))
    }

    /// Whether a flow may be opened, and whether its first bytes have to be seen.
    #[must_use]
    pub fn flow(&self, protocol: Protocol, connection: Connection<'_>) -> Verdict<Flow> {
        let Connection { address, port, names } = connection;
        let mut allowed = None;
        let mut refused = None;
        let mut is_denied = false;
        let nameless = names.is_empty().then_some(None);
        for name in names.iter().map(Some).chain(nameless) {
            match self.decide(name, address, port, None) {
                Ok(reason) => allowed = allowed.or(Some(reason)),
                Err(reason) => {
                    // A rule that denies says more than that nothing allows.
                    let denies = matches!(reason, Reason::Denied(_));
                    refused = if denies && !is_denied { Some(reason) } else { refused.or(Some(reason)) };
                    is_denied |= denies;
                }
            }
        }
        // Which of several names is meant, only first bytes tell.
        let is_unclear = is_denied && allowed.is_some();
        let look = self.look(connection).or(is_unclear.then_some(Look::Either));
        match (allowed, protocol, look) {
            (None, ..) => verdict(Flow::Deny(refusal(protocol, port)), refused.unwrap_or(Reason::NotListed)),
            (Some(_), Protocol::Udp, Some(_)) => verdict(Flow::Deny(Refusal::Prohibited), Reason::NotTcp),
            (Some(reason), Protocol::Tcp, Some(look)) => verdict(Flow::Look(look), reason),
            (Some(reason), _, None) => verdict(Flow::Direct, reason),
        }
    }

    /// Whether a connection goes on once its first bytes are known, and whether its requests are judged.
    #[must_use]
    pub fn hello(&self, connection: Connection<'_>, bytes: FirstBytes<'_>) -> Verdict<Hello> {
        let expected = self.look(connection).unwrap_or(Look::Either);
        let name = match bytes {
            FirstBytes::Other => {
                let reached = self.reach(connection, None, None);
                return verdict(Hello::Deny, reached.err().unwrap_or(Reason::Opaque));
            }
            FirstBytes::Tls(_) if expected == Look::Http => return verdict(Hello::Deny, Reason::Opaque),
            FirstBytes::Http(_) if expected == Look::Tls => return verdict(Hello::Deny, Reason::Opaque),
            FirstBytes::NoHost => return verdict(Hello::Deny, Reason::NotAHost),
            FirstBytes::Tls(name) => name,
            FirstBytes::Http(host) if !is_there(host, connection.address) => {
                return verdict(Hello::Deny, Reason::Misdirected);
            }
            FirstBytes::Http(host) => host.name(),
        };
        let reached = match self.reach(connection, name, None) {
            Ok(reached) => reached,
            Err(reason) => return verdict(Hello::Deny, reason),
        };
        let name = name.filter(|_| reached.is_pinned);
        let peer = peer(name, connection);
        // Where only certain requests are allowed, or some are denied, each has to be seen.
        let may_pass = matches!(bytes, FirstBytes::Tls(_))
            && self.is_whole(name, connection)
            && self.deny.list().some_requests(peer).is_none();
        let passed = self.passthrough.list().whole(peer).filter(|_| may_pass);
        match passed {
            Some(number) => verdict(Hello::Pass, self.passthrough.because(Reason::Passthrough, number)),
            None => verdict(Hello::Intercept, reached.reason),
        }
    }

    /// Whether a request is sent on, which rules change it or its response, and which secrets it may carry.
    #[must_use]
    pub fn request(
        &self,
        connection: Connection<'_>,
        transport: Transport<'_>,
        head: Head<'_>,
    ) -> Verdict<Request> {
        let deny = |status, reason| verdict(Request::Deny(status), reason);
        if !is_directed(connection, transport, head.host) {
            let status = if head.http2 { Status::Misdirected } else { Status::Forbidden };
            return deny(status, Reason::Misdirected);
        }
        let name = head.host.name();
        let reached = match self.reach(connection, name, Some(head)) {
            Ok(reached) => reached,
            Err(reason) => return deny(Status::Forbidden, reason),
        };
        let mut forward = Forward::default();
        for number in self.rules.matching(peer(name, connection), ask(head)).range(head.from..) {
            let rule = &self.rules.rules[*number];
            match rule.effect {
                _ if rule.phase != head.phase => {}
                Effect::Block => return deny(Status::Forbidden, Reason::Rule(rule.name.clone())),
                Effect::Change => forward.rules.push(*number),
                Effect::Redirect => {
                    forward.rules.push(*number);
                    break;
                }
            }
        }
        if head.phase == Phase::Before {
            let may = |secret: &Secret| self.carries(secret, connection, transport, head.host).is_ok();
            forward.secrets =
                (0..).zip(self.secrets.iter()).filter(|(_, own)| may(own)).map(|(at, _)| at).collect();
        }
        verdict(Request::Forward(forward), reached.reason)
    }

    /// The fate of a placeholder; `None` if there is no secret of this number.
    #[must_use]
    pub fn secret(&self, number: usize, place: Place<'_>) -> Option<Verdict<Placeholder>> {
        let secret = self.secrets.get(number)?;
        let elsewhere = || verdict(Placeholder::Block, Reason::SecretElsewhere(secret.name.clone()));
        let Place::Request { connection, transport, host, part } = place else { return Some(elsewhere()) };
        let stays = || verdict(Placeholder::Leave, Reason::SecretStays(secret.name.clone()));
        let is_put = matches!(part, Part::HeaderValue | Part::Basic | Part::Query);
        Some(match self.carries(secret, connection, transport, host) {
            Ok(reason) if is_put => verdict(Placeholder::Put, reason),
            Ok(_) => stays(),
            Err(_) if part == Part::Upgraded => stays(),
            Err(Reason::SecretPlain(_)) if matches!(part, Part::Body | Part::HeaderName) => stays(),
            Err(reason) => verdict(Placeholder::Block, reason),
        })
    }

    /// Whether an address may be dialled for a name: asked about the address itself, just before.
    #[must_use]
    pub fn dial(&self, name: Option<&Name>, address: IpAddr, port: u16) -> Verdict<Dial> {
        match self.decide(name, address, port, None) {
            Ok(reason) => verdict(Dial::Allow, reason),
            Err(reason) => verdict(Dial::Deny, reason),
        }
    }

    /// Whether an address may be reached on a port under a name, and with a request if there is one yet: otherwise a
    /// pattern for some requests is enough.
    fn decide(
        &self,
        name: Option<&Name>,
        address: IpAddr,
        port: u16,
        head: Option<Head<'_>>,
    ) -> Result<Reason, Reason> {
        if let Some(reason) = self.denial(name, address, port, head) {
            return Err(reason);
        }
        let class = class_on(&self.host_addresses, address);
        if self.is_class_closed(class) {
            return Err(Reason::Closed(class));
        }
        let peer = Peer { name, address: Some(address.to_canonical()), port };
        let list = self.allow.list();
        let allowed = |number| Ok(self.allow.because(Reason::Allowed, number));
        if let Some(number) = list.whole(peer) {
            return allowed(number);
        }
        match (list.some_requests(peer), head) {
            (Some(number), None) => allowed(number),
            (Some(_), Some(head)) => {
                // A server may see any of the forms.
                let has_all = |requests: &crate::pattern::Requests| {
                    head.path.forms().all(|path| requests.has_path(path))
                };
                let found = list.requests(peer, ask(head), head.path.sent(), |requests, number| {
                    has_all(requests).then_some(number)
                });
                match found {
                    Some(_) if head.upgrade => Err(Reason::Upgrade),
                    Some(number) => allowed(number),
                    None => Err(Reason::RequestNotListed),
                }
            }
            (None, _) if self.is_closed => Err(Reason::NotListed),
            (None, _) => Ok(Reason::Open),
        }
    }

    /// The deny rule for an address in any of its forms, or for a name.
    fn denial(
        &self,
        name: Option<&Name>,
        address: IpAddr,
        port: u16,
        head: Option<Head<'_>>,
    ) -> Option<Reason> {
        let list = self.deny.list();
        let number = forms(address).find_map(|form| {
            let peer = Peer { name, address: Some(form), port };
            list.whole(peer).or_else(|| {
                let head = head.filter(|_| list.some_requests(peer).is_some())?;
                head.path
                    .forms()
                    .find_map(|path| list.requests(peer, ask(head), path, |_, number| Some(number)))
            })
        });
        number.map(|number| self.deny.because(Reason::Denied, number))
    }

    /// Whether a connection's host may be reached, as it is stated.
    fn reach(
        &self,
        connection: Connection<'_>,
        name: Option<&Name>,
        head: Option<Head<'_>>,
    ) -> Result<Reached, Reason> {
        let Connection { address, port, names } = connection;
        if let Some(name) = name.filter(|name| names.contains(name)) {
            let reason = self.decide(Some(name), address, port, head)?;
            return Ok(Reached { reason, is_pinned: true });
        }
        // No name, or one that is not the address's: the address counts, and whatever is denied of what it may be.
        let denial =
            name.into_iter().chain(names).find_map(|name| self.denial(Some(name), address, port, head));
        if let Some(reason) = denial {
            return Err(reason);
        }
        match self.decide(None, address, port, head) {
            Ok(reason) => Ok(Reached { reason, is_pinned: false }),
            Err(Reason::NotListed) if self.is_named(name, port) => Err(Reason::NotPinned),
            Err(reason) => Err(reason),
        }
    }

    /// Whether the allow list has a name on a port, whatever its addresses.
    fn is_named(&self, name: Option<&Name>, port: u16) -> bool {
        let peer = Peer { name, address: None, port };
        self.allow.list().whole(peer).or_else(|| self.allow.list().some_requests(peer)).is_some()
    }

    /// Whether all traffic with an address under a name is allowed, and not only certain requests.
    fn is_whole(&self, name: Option<&Name>, connection: Connection<'_>) -> bool {
        let is_listed = !self.is_closed || self.allow.list().whole(peer(name, connection)).is_some();
        is_listed && self.decide(name, connection.address, connection.port, None).is_ok()
    }

    /// Whether the first bytes of a connection have to be seen: where its address alone does not allow all of it, or
    /// something is to be found inside. On ports that are not those of HTTP and TLS a pattern has to name the port for
    /// that, and any name of the address that allows all of it is enough.
    fn look(&self, connection: Connection<'_>) -> Option<Look> {
        let look = match connection.port {
            80 => Look::Http,
            443 => Look::Tls,
            _ => {
                let names = || std::iter::once(None).chain(connection.names.iter().map(Some));
                let is_inside = names().any(|name| self.is_looked_into(name, connection));
                let is_looked = is_inside || !names().any(|name| self.is_whole(name, connection));
                return is_looked.then_some(Look::Either);
            }
        };
        let is_inside =
            self.intercept || !self.secrets.is_empty() || !self.rules.rules.is_empty() || self.deny.has_names;
        (is_inside || !self.is_whole(None, connection)).then_some(look)
    }

    /// Whether a secret, a rule or a deny rule for requests names this port of the host's.
    fn is_looked_into(&self, name: Option<&Name>, connection: Connection<'_>) -> bool {
        let peer = peer(name, connection);
        self.secrets.iter().any(|secret| secret.hosts.whole(peer).is_some())
            || self.rules.by_port.whole(peer).is_some()
            || self.deny.by_port.whole(peer).is_some()
    }

    /// Whether a request may carry a secret's value.
    fn carries(
        &self,
        secret: &Secret,
        connection: Connection<'_>,
        transport: Transport<'_>,
        host: &Host,
    ) -> Result<Reason, Reason> {
        let address = connection.address.to_canonical();
        let (name, address, is_pinned) = match host {
            Host::Name(name) => (Some(name), None, connection.names.contains(name)),
            Host::Address(own) => (None, Some(address), *own == address),
        };
        let is_meant = is_pinned && is_directed(connection, transport, host);
        let is_plain = matches!(transport, Transport::Plain);
        if is_meant && is_plain && !secret.plain && secret.hosts.any_port(name, address).is_some() {
            return Err(Reason::SecretPlain(secret.name.clone()));
        }
        if is_meant && secret.hosts.whole(Peer { name, address, port: connection.port }).is_some() {
            Ok(Reason::Secret(secret.name.clone()))
        } else {
            Err(Reason::SecretElsewhere(secret.name.clone()))
        }
    }

    fn is_class_closed(&self, class: crate::address::Class) -> bool {
        class != crate::address::Class::Public && !(self.private_open && class.is_private())
    }
}

fn peer<'a>(name: Option<&'a Name>, connection: Connection<'_>) -> Peer<'a> {
    Peer { name, address: Some(connection.address.to_canonical()), port: connection.port }
}

fn ask(head: Head<'_>) -> Ask<'_> {
    Ask { method: head.method, path: head.path }
}

/// Whether a host, if it is stated as an address, is this one.
fn is_there(host: &Host, address: IpAddr) -> bool {
    !matches!(host, Host::Address(own) if *own != address.to_canonical())
}

/// Whether a request's host is its connection's.
fn is_directed(connection: Connection<'_>, transport: Transport<'_>, host: &Host) -> bool {
    match transport {
        Transport::Plain => is_there(host, connection.address),
        Transport::Tls(Some(server)) => host.name() == Some(server),
        Transport::Tls(None) => host.name().is_none() && is_there(host, connection.address),
    }
}

fn refusal(protocol: Protocol, port: u16) -> Refusal {
    match (protocol, port) {
        (Protocol::Udp, _) => Refusal::Prohibited,
        (Protocol::Tcp, 80) => Refusal::Forbidden,
        (Protocol::Tcp, 443) => Refusal::Alert,
        (Protocol::Tcp, _) => Refusal::Reset,
    }
}

#[cfg(test)]
mod tests;
