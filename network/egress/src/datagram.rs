//! Datagrams of a guest's: questions about names are answered, all else is judged by flow and relayed.
//!
//! A flow is a source and a destination; it has a socket of its own that hears its destination alone. Not here: where
//! datagrams come from, and how answers get back.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use egress_policy::{Connection, Flow as Judged, Protocol};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time;

use crate::audit::{self, End, Event, Fault, FlowOutcome};
use crate::flow::DNS_PORT;
use crate::{Dns, Shared, Via, udp};

/// Most flows; where there are more, the one for which the guest was silent for longest makes room.
const MAX_FLOWS: usize = 64;

/// Most datagrams of a flow that wait to be sent; more are lost.
const MAX_WAITING: usize = 32;

/// Largest datagram (RFC 768, with the header of IPv4).
const MAX_DATAGRAM: usize = 65_507;

/// How long a flow may be silent until something came back.
const IDLE: Duration = Duration::from_secs(30);

/// How long a flow may be silent once something came back (RFC 4787 §4.3).
const IDLE_ANSWERED: Duration = Duration::from_secs(300);

/// A datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// The sender.
    pub source: SocketAddr,
    /// The receiver.
    pub destination: SocketAddr,
    /// The content.
    pub bytes: Vec<u8>,
}

/// The guest is to be told that this is prohibited (ICMP: administratively prohibited).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prohibited;

/// Source and destination of a flow.
type Key = (SocketAddr, SocketAddr);

/// The datagrams of one guest.
#[derive(Debug)]
pub struct Datagrams {
    shared: Arc<Shared>,
    dns: Arc<Dns>,
    answers: mpsc::Sender<Datagram>,
    flows: Mutex<BTreeMap<Key, Held>>,
}

/// A flow. It ends when this value is gone.
#[derive(Debug)]
struct Held {
    waiting: mpsc::Sender<Vec<u8>>,
    number: u64,
    last: Instant,
}

impl Datagrams {
    /// The datagrams of a sandbox's guest. Answers for it go into a queue, from their servers' addresses to the guest's;
    /// those that find no room are lost.
    #[must_use]
    pub fn new(shared: Arc<Shared>, dns: Arc<Dns>, answers: mpsc::Sender<Datagram>) -> Self {
        Self { shared, dns, answers, flows: Mutex::default() }
    }

    /// The number of flows.
    #[must_use]
    pub fn count(&self) -> usize {
        self.flows().len()
    }

    /// Takes a datagram of the guest's. Called within a runtime, on which what it leads to is done.
    ///
    /// # Errors
    ///
    /// If it goes nowhere.
    pub fn take(self: &Arc<Self>, datagram: Datagram) -> Result<(), Prohibited> {
        let Datagram { source, destination, bytes } = datagram;
        if destination.port() == DNS_PORT {
            tokio::spawn(self.clone().look_up(source, destination, bytes));
            return Ok(());
        }
        let key = (source, destination);
        if let Some(held) = self.flows().get_mut(&key) {
            held.last = Instant::now();
            // One that finds no room is lost, as on any way.
            let _ = held.waiting.try_send(bytes);
            return Ok(());
        }
        let flow = self.judge(source, destination)?;
        let (waiting, queue) = mpsc::channel(MAX_WAITING);
        let _ = waiting.try_send(bytes);
        let held = Held { waiting, number: flow.number, last: Instant::now() };
        let mut flows = self.flows();
        if flows.len() >= MAX_FLOWS {
            let silent = flows.iter().min_by_key(|(_, held)| held.last).map(|(key, _)| *key);
            silent.map(|key| flows.remove(&key));
        }
        flows.insert(key, held);
        tokio::spawn(self.clone().relay(key, flow, queue));
        Ok(())
    }

    async fn look_up(self: Arc<Self>, source: SocketAddr, destination: SocketAddr, bytes: Vec<u8>) {
        if let Some(bytes) = self.dns.reply(&bytes, Via::Udp).await {
            self.answer((source, destination), bytes);
        }
    }

    /// The flow for an audit, if it is allowed.
    fn judge(&self, source: SocketAddr, destination: SocketAddr) -> Result<audit::Flow, Prohibited> {
        let address = destination.ip().to_canonical();
        let names = self.shared.pins().names(address, Instant::now());
        let connection = Connection { address, port: destination.port(), names: &names };
        let verdict = self.shared.policy().flow(Protocol::Udp, connection);
        let flow = audit::Flow {
            number: self.shared.next_flow(),
            protocol: Protocol::Udp,
            source,
            destination: SocketAddr::new(address, destination.port()),
            names,
            host: None,
            outcome: FlowOutcome::Denied,
            reason: verdict.reason,
        };
        match verdict.decision {
            Judged::Direct => Ok(flow),
            Judged::Deny(_) | Judged::Look(_) => {
                self.shared.audit.put(Event::Flow(flow));
                Err(Prohibited)
            }
        }
    }

    /// Carries a flow until it ends, and takes it off the list.
    async fn relay(self: Arc<Self>, key: Key, mut flow: audit::Flow, queue: mpsc::Receiver<Vec<u8>>) {
        let tell = |flow: &audit::Flow, outcome| {
            self.shared.audit.put(Event::Flow(audit::Flow { outcome, ..flow.clone() }));
        };
        let _held = self.shared.hold(flow.destination.ip());
        match udp::connected(flow.destination) {
            Err(_) => tell(&flow, FlowOutcome::Unreachable(Fault::NoWay)),
            Ok(socket) => {
                tell(&flow, FlowOutcome::Opened);
                let mut counts = (0, 0);
                let (end, denial) = tokio::select! {
                    biased;
                    denial = self.shared.denial(flow.destination, &flow.names, None) => (End::Policy, Some(denial)),
                    end = self.carry(key, &socket, queue, &mut counts) => (end, None),
                };
                // The socket is closed before the denial is gone, for which a change of the policy waits.
                drop(socket);
                flow.reason = denial.map_or(flow.reason, |denial| denial.reason);
                tell(&flow, FlowOutcome::Ended { end, sent: counts.0, received: counts.1 });
            }
        }
        let mut flows = self.flows();
        if flows.get(&key).is_some_and(|held| held.number == flow.number) {
            flows.remove(&key);
        }
    }

    async fn carry(
        &self,
        key: Key,
        socket: &UdpSocket,
        mut queue: mpsc::Receiver<Vec<u8>>,
        counts: &mut (u64, u64),
    ) -> End {
        let mut idle = IDLE;
        loop {
            tokio::select! {
                datagram = queue.recv() => {
                    let Some(bytes) = datagram else { return End::Reclaimed };
                    let Ok(sent) = udp::send(socket, &bytes).await else { return End::Reset };
                    counts.0 += sent as u64;
                    continue;
                }
                heard = udp::heard(socket) => if heard.is_err() {
                    return End::Reset;
                },
                () = time::sleep(idle) => return End::Idle,
            }
            // The buffer is there only while there is something to hear.
            let mut buffer = vec![0; MAX_DATAGRAM];
            match socket.try_recv(&mut buffer) {
                Ok(len) => {
                    buffer.truncate(len);
                    idle = IDLE_ANSWERED;
                    counts.1 += len as u64;
                    self.answer(key, buffer);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return End::Reset,
            }
        }
    }

    fn answer(&self, (source, destination): Key, bytes: Vec<u8>) {
        // A guest that does not take its answers loses them.
        let _ = self.answers.try_send(Datagram { source: destination, destination: source, bytes });
    }

    fn flows(&self) -> MutexGuard<'_, BTreeMap<Key, Held>> {
        // Nothing panics while the flows are locked.
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
