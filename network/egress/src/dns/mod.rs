//! A guest's DNS: each name is judged before anybody outside is asked, each address before the guest gets it.
//!
//! Not here: sockets of the guest's. Datagrams come as bytes, connections as streams, whatever server they were meant for.

pub(crate) mod chain;
pub(crate) mod message;
mod resolvers;
mod serve;
mod upstream;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use egress_policy::{Lookup, Name, Policy, Reason};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::sync::Semaphore;

use crate::Shared;
use crate::audit::{self, DnsOutcome, Event};
use chain::Found;
use message::{Asked, Extended, Question, Reply};
pub use resolvers::resolvers;
use upstream::{Failure, Upstream};

/// The times to live that a guest is told, in seconds: pins live for longer than the longest.
const LEAST_TTL: u32 = 5;
const MOST_TTL: u32 = 300;

/// Most questions of a guest's that are worked on; more are dropped, which a guest takes for loss.
const MAX_IN_HAND: usize = 128;

/// How a guest is answered, beside its policy.
#[derive(Debug, Clone)]
pub struct DnsSettings {
    /// The servers that are asked, in order.
    pub servers: Vec<SocketAddr>,
    /// Whether the guest can use addresses of IPv6.
    pub ipv6: bool,
}

/// The way a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// In a datagram; the reply fits into one.
    Udp,
    /// By TCP.
    Tcp,
}

/// The DNS server of one guest.
#[derive(Debug)]
pub struct Dns {
    shared: Arc<Shared>,
    upstream: Upstream,
    ipv6: bool,
    in_hand: Semaphore,
    pub(crate) connections: Semaphore,
}

/// A reply, with what an audit has to say about it.
pub(crate) struct Judged {
    pub(crate) reply: Reply,
    outcome: DnsOutcome,
    reason: Reason,
    addresses: Vec<IpAddr>,
    dropped: Vec<(IpAddr, Reason)>,
}

impl Judged {
    fn new(reply: Reply, outcome: DnsOutcome, reason: Reason) -> Self {
        Self { reply, outcome, reason, addresses: Vec::new(), dropped: Vec::new() }
    }

    fn denied(reason: Reason) -> Self {
        let extended = Extended::Blocked(reason.clone());
        Self::new(Reply::error(ResponseCode::NXDomain, extended), DnsOutcome::Denied, reason)
    }

    fn failed(failure: Failure, reason: Reason) -> Self {
        let words = match failure {
            Failure::Silence | Failure::Refused => Extended::Network(failure.words()),
            Failure::Endless | Failure::TooMany => Extended::Other(failure.words()),
        };
        Self::new(Reply::error(ResponseCode::ServFail, words), DnsOutcome::Failed, reason)
    }
}

impl Dns {
    /// The server of a sandbox's guest.
    #[must_use]
    pub fn new(shared: Arc<Shared>, settings: DnsSettings) -> Self {
        Self {
            shared,
            upstream: Upstream::new(settings.servers),
            ipv6: settings.ipv6,
            in_hand: Semaphore::new(MAX_IN_HAND),
            connections: Semaphore::new(serve::MAX_CONNECTIONS),
        }
    }

    /// The reply to a message of the guest's; `None` if there is to be none.
    pub async fn reply(&self, bytes: &[u8], via: Via) -> Option<Vec<u8>> {
        let question = match message::asked(bytes) {
            Asked::Question(question) => question,
            Asked::Refused(reply) => return Some(reply),
            Asked::Nothing => return None,
        };
        let _permit = self.in_hand.try_acquire().ok()?;
        let host = question.host();
        let judged = match &host {
            Ok(name) => self.judge(&question, name).await,
            Err(_) => Judged::denied(Reason::NotAHost),
        };
        let most = match via {
            Via::Udp => question.datagram(),
            Via::Tcp => message::MAX_MESSAGE,
        };
        let reply = question.encode(&judged.reply, most);
        self.shared.audit.put(Event::Dns(audit::Dns {
            name: host.map_or_else(|_| question.name().to_ascii(), |name| name.to_string()),
            record: question.record().into(),
            outcome: judged.outcome,
            reason: judged.reason,
            addresses: judged.addresses,
            dropped: judged.dropped,
        }));
        reply
    }

    async fn judge(&self, question: &Question, name: &Name) -> Judged {
        let policy = self.shared.policy();
        if let Some(judged) = self.pointer(question, &policy) {
            return judged;
        }
        let verdict = policy.name(name, question.record().into());
        let no_data = |reason| Judged::new(Reply::no_data(), DnsOutcome::Answered, reason);
        match verdict.decision {
            Lookup::Deny => return Judged::denied(verdict.reason),
            Lookup::NoData => return no_data(verdict.reason),
            Lookup::Answer => {}
        }
        if question.record() == RecordType::AAAA && !self.ipv6 {
            return no_data(verdict.reason);
        }
        if let Some(found) = self.table(question, name) {
            return self.given(question, name, found);
        }
        // The question outside is for the name that was judged, and not the guest's bytes.
        let Some(asked) = message::name(name) else { return Judged::denied(Reason::NotAHost) };
        match self.upstream.find(&asked, question.record()).await {
            Ok(found) => self.given(question, name, found),
            Err(failure) => Judged::failed(failure, verdict.reason),
        }
    }

    /// The names of an address, if that is the question: of one that the guest was given, and of no other.
    fn pointer(&self, question: &Question, policy: &Policy) -> Option<Judged> {
        let network = question.name().parse_arpa_name().ok()?;
        let is_address = network.prefix_len() == network.max_prefix_len();
        if question.record() != RecordType::PTR || !is_address {
            return None;
        }
        let names = self.shared.pins().names(network.addr(), Instant::now());
        let known = names.iter().filter_map(|name| {
            let verdict = policy.name(name, RecordType::PTR.into());
            (verdict.decision != Lookup::Deny).then(|| (message::name(name), verdict.reason))
        });
        let (records, reasons): (Vec<_>, Vec<_>) = known
            .filter_map(|(name, reason)| {
                let data = RData::PTR(PTR(name?));
                Some((Record::from_rdata(question.name().clone(), LEAST_TTL, data), reason))
            })
            .unzip();
        let reason = reasons.into_iter().next()?;
        let reply = Reply { answers: records, ..Reply::no_data() };
        Some(Judged::new(reply, DnsOutcome::Answered, reason))
    }

    /// The entries of the guest's table of hosts.
    fn table(&self, question: &Question, name: &Name) -> Option<Found> {
        let entries = || self.shared.hosts.iter().filter(|(own, _)| own == name).map(|(_, address)| *address);
        entries().next()?;
        let data = entries().filter_map(|address| match (question.record(), address.to_canonical()) {
            (RecordType::A, IpAddr::V4(address)) => Some(RData::A(A(address))),
            (RecordType::AAAA, IpAddr::V6(address)) => Some(RData::AAAA(AAAA(address))),
            _ => None,
        });
        let owner = question.name();
        let records = data.map(|data| Record::from_rdata(owner.clone(), MOST_TTL, data)).collect();
        Some(Found { links: Vec::new(), records, exists: true, negative: None })
    }

    /// The reply with what was found, without addresses that the policy keeps from the guest. The rest is pinned.
    pub(crate) fn given(&self, question: &Question, name: &Name, mut found: Found) -> Judged {
        // The policy may have changed while a server was asked.
        let policy = self.shared.policy();
        let addresses: Vec<IpAddr> = found.records.iter().filter_map(message::address).collect();
        let answers = policy.answers(name, &addresses);
        let kept: Vec<IpAddr> = answers.decision.kept.iter().map(|(address, _)| *address).collect();
        let dropped = answers.decision.dropped;
        let lookup = policy.name(name, question.record().into());
        if lookup.decision == Lookup::Deny {
            return Judged::denied(lookup.reason);
        }
        if kept.is_empty() && !dropped.is_empty() {
            let extended = Extended::Filtered(answers.reason.clone());
            let reply = Reply::error(ResponseCode::NXDomain, extended);
            return Judged { dropped, ..Judged::new(reply, DnsOutcome::Filtered, answers.reason) };
        }
        let is_given = |record: &Record| message::address(record).is_none_or(|own| kept.contains(&own));
        found.records.retain(is_given);
        self.pin(name, &found);
        let code = if found.exists { ResponseCode::NoError } else { ResponseCode::NXDomain };
        let mut answers: Vec<Record> = found.links.into_iter().chain(found.records).collect();
        if let Some(first) = answers.first().map(|record| record.name.clone()) {
            // The guest's own spelling of the name.
            for record in answers.iter_mut().filter(|record| record.name == first) {
                record.name = question.name().clone();
            }
        }
        for record in answers.iter_mut().chain(&mut found.negative) {
            record.ttl = record.ttl.clamp(LEAST_TTL, MOST_TTL);
        }
        let reply = Reply { code, answers, authority: found.negative, extended: None };
        Judged { addresses: kept, dropped, ..Judged::new(reply, DnsOutcome::Answered, lookup.reason) }
    }

    fn pin(&self, name: &Name, found: &Found) {
        let now = Instant::now();
        let mut pins = self.shared.pins();
        for record in &found.records {
            if let Some(address) = message::address(record) {
                pins.add(name, address, Duration::from_secs(record.ttl.into()), now);
            }
        }
    }
}
