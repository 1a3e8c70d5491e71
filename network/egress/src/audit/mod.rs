//! Events for an audit, in a bounded queue: putting one in never waits, and each that finds no room is counted.
//!
//! Not here: decisions and their words, which are the policy's.

mod log;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use egress_policy::{Name, Protocol, Reason};
use tokio::sync::mpsc;

pub use log::{Log, MAX_FILE};

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A guest asked for a name.
    Dns(Dns),
    /// A flow of a guest's was judged, opened, or has ended.
    Flow(Flow),
    /// A request of a guest's has its end.
    Request(Request),
}

/// A flow of a guest's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Its number, which all of its events have.
    pub number: u64,
    /// Its protocol.
    pub protocol: Protocol,
    /// The guest's address.
    pub source: SocketAddr,
    /// The address that it is for.
    pub destination: SocketAddr,
    /// The names for which the guest was given that address.
    pub names: Vec<Name>,
    /// The host that its first bytes state.
    pub host: Option<String>,
    /// The outcome.
    pub outcome: FlowOutcome,
    /// The policy's reason.
    pub reason: Reason,
}

/// The news of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowOutcome {
    /// Denied.
    Denied,
    /// Refused: its requests would have to be judged one by one, for which there is no certificate.
    NotLookedInto,
    /// Its requests are judged one by one from now on, each with an event of its own.
    LookedInto,
    /// Refused: there are too many.
    TooMany,
    /// Allowed, but its server was not reached.
    Unreachable(Fault),
    /// Carried from now on.
    Opened,
    /// Ended.
    Ended {
        /// The cause.
        end: End,
        /// Bytes that the server got; where requests are judged, those that came from the guest.
        sent: u64,
        /// Bytes that the guest got.
        received: u64,
    },
}

/// The reason why a server is not reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It refuses connections.
    Refused,
    /// It does not answer.
    Silent,
    /// There is no way to its address.
    NoWay,
    /// No place became free among the connections that are being opened, to it or altogether.
    TooMany,
}

/// The end of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both sides have ended it.
    Closed,
    /// One side has reset it.
    Reset,
    /// It was silent for too long.
    Idle,
    /// It was silent, and another needed its room.
    Reclaimed,
    /// The policy has changed, and denies it.
    Policy,
    /// The guest's TLS does not take the sandbox's own certificate authority.
    Distrusted,
    /// The guest's TLS failed otherwise.
    Handshake,
    /// The guest sent something that is no request.
    Malformed,
}

/// A request of a guest's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The number of its flow.
    pub flow: u64,
    /// Whether it came in TLS.
    pub tls: bool,
    /// Whether it came by HTTP/2.
    pub http2: bool,
    /// The method, or its beginning.
    pub method: String,
    /// The host, as far as it can be made out, with its port if that was said.
    pub host: String,
    /// The path without the query, or its beginning.
    pub path: String,
    /// The outcome.
    pub outcome: RequestOutcome,
    /// The status that the guest was sent, if it was sent any.
    pub status: Option<u16>,
    /// The policy's reason.
    pub reason: Reason,
    /// Other words for what went wrong, if it was not the policy.
    pub fault: Option<String>,
    /// Bytes of its body that the server got.
    pub sent: u64,
    /// Bytes of the response's body that the guest got.
    pub received: u64,
    /// How long it took.
    pub duration: Duration,
}

/// The outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestOutcome {
    /// The server's response was carried to its end.
    Answered,
    /// It was broken off, by the guest, the server or a change of the policy.
    BrokenOff,
    /// Denied.
    Denied,
    /// Refused, since it is no request that can be judged.
    Malformed,
    /// Allowed, but the server was not reached or did not answer.
    Failed,
    /// Refused, since too many are under way.
    TooMany,
}

/// A question of a guest's about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// The name as it was judged; one that is none of a host's is shown with what is unusual in it escaped.
    pub name: String,
    /// The type of the records.
    pub record: u16,
    /// The outcome.
    pub outcome: DnsOutcome,
    /// The policy's reason.
    pub reason: Reason,
    /// Addresses that the guest was given.
    pub addresses: Vec<IpAddr>,
    /// Addresses that servers gave and the policy kept from the guest, each with the reason.
    pub dropped: Vec<(IpAddr, Reason)>,
}

/// The outcome of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsOutcome {
    /// Records, or the news that there are none.
    Answered,
    /// The policy's denial; nobody else was asked.
    Denied,
    /// The policy's denial, since it kept every address from the guest.
    Filtered,
    /// An error: no server answered, or too much was asked.
    Failed,
}

/// An event, and when it was put into the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The time.
    pub time: SystemTime,
    /// The event.
    pub event: Event,
}

/// The end of the queue that takes events.
#[derive(Debug, Clone)]
pub struct Queue {
    events: mpsc::Sender<Told>,
    lost: Arc<AtomicU64>,
}

/// The end of the queue that gives events.
#[derive(Debug)]
pub struct Events {
    events: mpsc::Receiver<Told>,
    lost: Arc<AtomicU64>,
}

/// Makes a queue for a number of events.
///
/// # Panics
///
/// If the number is zero.
#[must_use]
pub fn queue(room: usize) -> (Queue, Events) {
    let (sender, receiver) = mpsc::channel(room);
    let lost = Arc::new(AtomicU64::new(0));
    (Queue { events: sender, lost: lost.clone() }, Events { events: receiver, lost })
}

impl Queue {
    /// Puts an event in, or counts it as lost.
    pub fn put(&self, event: Event) {
        if self.events.try_send(Told { time: SystemTime::now(), event }).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Events {
    /// The next event; `None` once every other end is gone.
    pub async fn next(&mut self) -> Option<Told> {
        self.events.recv().await
    }

    /// Waits for events, on a thread without a runtime, and takes up to `most` of them; `false` once every other end is gone.
    pub fn take(&mut self, events: &mut Vec<Told>, most: usize) -> bool {
        self.events.blocking_recv_many(events, most) > 0
    }

    /// The number of events that were lost since this was asked last.
    pub fn lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_finds_no_room_is_counted_once() {
        let (queue, mut events) = queue(2);
        let event = |record| {
            let (outcome, reason) = (DnsOutcome::Denied, Reason::NotListed);
            let (addresses, dropped) = (Vec::new(), Vec::new());
            Event::Dns(Dns { name: "a.test".into(), record, outcome, reason, addresses, dropped })
        };
        for record in 0..5 {
            queue.put(event(record));
        }
        assert_eq!((events.lost(), events.lost()), (3, 0));
        assert_eq!(events.next().await.map(|told| told.event), Some(event(0)));
        assert_eq!(events.next().await.map(|told| told.event), Some(event(1)));
        queue.put(event(5));
        drop(queue);
        assert_eq!(events.next().await.map(|told| told.event), Some(event(5)));
        assert_eq!(events.next().await, None);
    }
}
