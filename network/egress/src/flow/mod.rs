//! TCP connections of a guest's: judged, connected to the address that the guest chose, and carried.
//!
//! Not here: where connections come from, and what is said on those that are looked into beyond their first bytes.

mod carry;
pub(crate) mod first;
mod inspect;
mod refuse;
mod table;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use egress_policy::{
    Connection, FirstBytes, Flow as Judged, Hello, Host, Name, Policy, Protocol, Reason, Refusal,
};
use tokio::net::TcpStream;

use crate::audit::{self, End, Event, FlowOutcome};
use crate::dial::Dialer;
use crate::http::Proxy;
use crate::tls::Interception;
use crate::{Dns, Shared};
use first::First;
pub(crate) use table::Clock;
use table::{Full, Table};

/// The port of DNS.
pub(crate) const DNS_PORT: u16 = 53;

/// A connection of a guest's, accepted in place of the address that it is for.
#[derive(Debug)]
pub struct Flow {
    /// The guest's end.
    pub stream: TcpStream,
    /// The guest's address.
    pub source: SocketAddr,
    /// The address that the guest connects to.
    pub destination: SocketAddr,
}

/// The connections of one guest.
#[derive(Debug)]
pub struct Flows {
    shared: Arc<Shared>,
    dns: Arc<Dns>,
    table: Table,
    dialer: Arc<Dialer>,
    proxy: Arc<Proxy>,
}

/// A connection that is being judged: what an audit says about it, each time.
struct Case<'a> {
    shared: &'a Shared,
    flow: audit::Flow,
}

impl Case<'_> {
    fn tell(&self, outcome: FlowOutcome, reason: &Reason) {
        let flow = audit::Flow { outcome, reason: reason.clone(), ..self.flow.clone() };
        self.shared.audit.put(Event::Flow(flow));
    }
}

/// A connection whose first bytes were judged.
enum Looked {
    Passed(Opening),
    /// Its requests are judged one by one.
    Into(First, Reason),
    Denied(First, Reason),
}

/// A connection that may be opened, and what it is to begin with.
struct Opening {
    /// The name under which it is allowed, as far as its first bytes told.
    name: Option<Name>,
    first: Vec<u8>,
    reason: Reason,
}

impl Flows {
    /// The connections of a sandbox's guest, whose DNS is answered here whatever server it is meant for.
    #[must_use]
    pub fn new(shared: Arc<Shared>, dns: Arc<Dns>) -> Self {
        Self::intercepting(shared, dns, None)
    }

    /// The same, of which TLS is looked into too.
    #[must_use]
    pub fn intercepting(shared: Arc<Shared>, dns: Arc<Dns>, tls: Option<Arc<Interception>>) -> Self {
        let dialer = Arc::new(Dialer::new());
        let proxy = Proxy::new(shared.clone(), dialer.clone(), tls);
        Self { shared, dns, table: Table::new(), dialer, proxy }
    }

    /// The number of connections.
    #[must_use]
    pub fn count(&self) -> usize {
        self.table.len()
    }

    /// Judges a connection, and carries it to its end.
    pub async fn carry(&self, flow: Flow) {
        let Flow { stream, source, destination } = flow;
        at_once(&stream);
        let address = destination.ip().to_canonical();
        let destination = SocketAddr::new(address, destination.port());
        if destination.port() == DNS_PORT {
            return self.dns.serve(stream).await;
        }
        let names = self.shared.pins().names(address, Instant::now());
        let case = Case {
            shared: &self.shared,
            flow: audit::Flow {
                number: self.shared.next_flow(),
                protocol: Protocol::Tcp,
                source,
                destination,
                names: names.clone(),
                host: None,
                outcome: FlowOutcome::Denied,
                reason: Reason::NotListed,
            },
        };
        let policy = self.shared.policy();
        let verdict =
            policy.flow(Protocol::Tcp, Connection { address, port: destination.port(), names: &names });
        let seat = match self.table.seat() {
            Ok(seat) => seat,
            Err(Full) => {
                case.tell(FlowOutcome::TooMany, &verdict.reason);
                return refuse::reset(stream);
            }
        };
        self.judged(stream, case, verdict.decision, &verdict.reason, &seat).await;
    }

    async fn judged(
        &self,
        mut stream: TcpStream,
        mut case: Case<'_>,
        decision: Judged,
        reason: &Reason,
        seat: &table::Seat<'_>,
    ) {
        let opening = match decision {
            Judged::Deny(refusal) => {
                let first = match refusal {
                    // The refusal answers what the guest says.
                    Refusal::Forbidden | Refusal::Alert => first::read(&mut stream).await,
                    Refusal::Reset | Refusal::Prohibited => First::default(),
                };
                case.flow.host = first.host();
                case.tell(FlowOutcome::Denied, reason);
                return refuse::answer(stream, &first, reason).await;
            }
            Judged::Direct => Opening { name: None, first: Vec::new(), reason: reason.clone() },
            Judged::Look(_) => {
                let first = first::read(&mut stream).await;
                case.flow.host = first.host();
                // The policy may have changed while the bytes were waited for.
                match self.look(&self.shared.policy(), &case, first) {
                    Looked::Passed(opening) => opening,
                    Looked::Into(first, reason) => {
                        return self.inspect(stream, &case, first, reason, seat).await;
                    }
                    Looked::Denied(first, reason) => {
                        case.tell(FlowOutcome::Denied, &reason);
                        return refuse::answer(stream, &first, &reason).await;
                    }
                }
            }
        };
        self.open(stream, &case, opening, seat).await;
    }

    /// Judges the first bytes of a connection.
    fn look(&self, policy: &Policy, case: &Case<'_>, first: First) -> Looked {
        let audit::Flow { destination, names, .. } = &case.flow;
        let connection = Connection { address: destination.ip(), port: destination.port(), names };
        let own;
        let (bytes, name) = match &first.kind {
            first::Kind::Tls(name) => (FirstBytes::Tls(name.as_ref()), name.clone()),
            first::Kind::Http(Some(host)) => (FirstBytes::Http(host), host.name().cloned()),
            first::Kind::Http(None) => {
                own = Host::Address(destination.ip());
                (FirstBytes::Http(&own), None)
            }
            first::Kind::NoHost(_) | first::Kind::TooLarge => (FirstBytes::NoHost, None),
            first::Kind::Other => (FirstBytes::Other, None),
        };
        let verdict = policy.hello(connection, bytes);
        match verdict.decision {
            Hello::Deny => Looked::Denied(first, verdict.reason),
            Hello::Intercept => Looked::Into(first, verdict.reason),
            Hello::Pass => {
                let name = name.filter(|name| names.contains(name));
                Looked::Passed(Opening { name, first: first.bytes, reason: verdict.reason })
            }
        }
    }

    /// Connects to the address that the guest chose, and carries, for as long as the policy allows that.
    async fn open(&self, mut stream: TcpStream, case: &Case<'_>, opening: Opening, seat: &table::Seat<'_>) {
        let Opening { name, first, reason } = opening;
        let audit::Flow { destination, names, .. } = &case.flow;
        let _held = self.shared.hold(destination.ip());
        let mut denied = pin!(self.shared.denial(*destination, names, name.as_ref()));
        let connected = tokio::select! {
            biased;
            denial = &mut denied => {
                case.tell(FlowOutcome::Denied, &denial.reason);
                return refuse::reset(stream);
            }
            connected = self.dialer.connect(*destination) => connected,
        };
        let mut server = match connected {
            Ok(server) => server,
            Err(fault) => {
                case.tell(FlowOutcome::Unreachable(fault), &reason);
                return refuse::reset(stream);
            }
        };
        case.tell(FlowOutcome::Opened, &reason);
        let counts = carry::Counts::default();
        let (end, denial) = tokio::select! {
            biased;
            denial = &mut denied => (End::Policy, Some(denial)),
            () = seat.cut() => (End::Reclaimed, None),
            end = carry::both(&mut stream, &mut server, first, &counts, seat) => (end, None),
        };
        if end != End::Closed {
            refuse::reset(stream);
            refuse::reset(server);
        }
        let reason = denial.as_ref().map_or(&reason, |denial| &denial.reason);
        case.tell(FlowOutcome::Ended { end, sent: counts.sent(), received: counts.received() }, reason);
    }
}

/// Has the kernel send small pieces without waiting for more.
fn at_once(stream: &TcpStream) {
    // Where this fails, the connection is gone already.
    let _ = stream.set_nodelay(true);
}
