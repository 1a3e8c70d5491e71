//! Datagrams of a guest's to servers in a network namespace of each test's own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use egress::audit::{self, End, Event, Events, FlowOutcome};
use egress::{Datagram, Datagrams, Dns, DnsSettings, Prohibited, Shared};
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::guest::policy;
use crate::namespace::within;

/// A guest that sends datagrams.
struct Guest {
    datagrams: Arc<Datagrams>,
    shared: Arc<Shared>,
    answers: mpsc::Receiver<Datagram>,
    events: Events,
}

impl Guest {
    fn new(allow: &[&str], hosts: &[(&str, &str)]) -> Self {
        let (queue, events) = audit::queue(1000);
        let entry = |(name, address): &(&str, &str)| (name.parse().unwrap(), address.parse().unwrap());
        let shared = Shared::new(policy(allow, &[]), hosts.iter().map(entry).collect(), queue);
        let settings = DnsSettings { servers: Vec::new(), ipv6: true };
        let dns = Arc::new(Dns::new(shared.clone(), settings));
        let (sender, answers) = mpsc::channel(1000);
        let datagrams = Arc::new(Datagrams::new(shared.clone(), dns, sender));
        Self { datagrams, shared, answers, events }
    }

    fn send(&self, port: u16, destination: SocketAddr, bytes: &[u8]) -> Result<(), Prohibited> {
        let source = ([198, 18, 0, 2], port).into();
        self.datagrams.take(Datagram { source, destination, bytes: bytes.to_vec() })
    }

    async fn answer(&mut self) -> Datagram {
        timeout(Duration::from_secs(60), self.answers.recv()).await.unwrap().unwrap()
    }

    async fn event(&mut self) -> audit::Flow {
        let event = timeout(Duration::from_secs(60), self.events.next()).await.unwrap();
        let Some(audit::Told { event: Event::Flow(event), .. }) = event else { panic!("{event:?}") };
        event
    }
}

async fn server(address: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(address).await.unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[test]
fn an_allowed_flow_is_relayed_both_ways() {
    within("datagrams::an_allowed_flow_is_relayed_both_ways", async {
        let mut guest = Guest::new(&[], &[]);
        let (socket, address) = server("203.0.113.10:7000").await;
        let mut buffer = vec![0; 65_507];
        let mut last = None;
        for size in [1, 1400, 60_000] {
            let bytes = vec![7; size];
            assert_eq!(guest.send(4000, address, &bytes), Ok(()));
            let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..len], bytes);
            // One flow has one port.
            assert_eq!(*last.get_or_insert(from), from);
            socket.send_to(&bytes, from).await.unwrap();
            let destination = ([198, 18, 0, 2], 4000).into();
            assert_eq!(guest.answer().await, Datagram { source: address, destination, bytes });
        }
        assert_eq!((guest.datagrams.count(), guest.event().await.outcome), (1, FlowOutcome::Opened));

        // Nobody else is heard.
        let stranger = UdpSocket::bind("203.0.113.20:7000").await.unwrap();
        let heard = stranger.send_to(b"x", last.unwrap()).await;
        assert!(heard.is_ok() && timeout(Duration::from_millis(50), guest.answers.recv()).await.is_err());

        guest.shared.set_policy(policy(&["ok.test"], &[]));
        let event = guest.event().await;
        assert_eq!(event.outcome, FlowOutcome::Ended { end: End::Policy, sent: 61_401, received: 61_401 });
        assert_eq!(event.reason.to_string(), "host not in allowlist [default:closed]");
        assert_eq!(guest.datagrams.count(), 0);
    });
}

#[test]
fn denied_datagrams_go_nowhere() {
    within("datagrams::denied_datagrams_go_nowhere", async {
        let mut guest = Guest::new(&["ok.test", "ok.test:7000"], &[("ok.test", "203.0.113.10")]);
        let (socket, _) = server("203.0.113.20:7000").await;
        for (address, reason) in [
            ("203.0.113.20:7000", "host not in allowlist [default:closed]"),
            ("127.0.0.1:7000", "addresses of this class are closed [class:loopback]"),
            // The name is allowed for what can be looked into.
            ("203.0.113.10:443", "only TCP can be looked into [look:tcp]"),
        ] {
            assert_eq!(guest.send(4000, address.parse().unwrap(), b"x"), Err(Prohibited), "{address}");
            let event = guest.event().await;
            assert_eq!((event.outcome, event.reason.to_string().as_str()), (FlowOutcome::Denied, reason));
        }
        assert_eq!(guest.datagrams.count(), 0);
        assert!(timeout(Duration::from_millis(50), socket.recv(&mut [0])).await.is_err());
    });
}

#[test]
fn dns_is_answered_whatever_server_is_meant() {
    within("datagrams::dns_is_answered_whatever_server_is_meant", async {
        let mut guest = Guest::new(&["ok.test"], &[("ok.test", "203.0.113.10")]);
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii("ok.test.").unwrap(), RecordType::A));
        let server = "8.8.8.8:53".parse().unwrap();
        guest.send(4000, server, &message.to_vec().unwrap()).unwrap();
        let answer = guest.answer().await;
        assert_eq!((answer.source, answer.destination), (server, ([198, 18, 0, 2], 4000).into()));
        assert_eq!(Message::from_vec(&answer.bytes).unwrap().answers.len(), 1);
        assert_eq!(guest.datagrams.count(), 0);
    });
}

#[test]
fn flows_are_bounded_and_end() {
    within("datagrams::flows_are_bounded_and_end", async {
        let mut guest = Guest::new(&[], &[]);
        let (_socket, address) = server("203.0.113.10:7000").await;
        for port in 1..=70 {
            guest.send(port, address, b"x").unwrap();
        }
        assert_eq!(guest.datagrams.count(), 64);
        let mut outcomes = Vec::new();
        while outcomes.len() < 76 {
            outcomes.push(guest.event().await.outcome);
        }
        let is_reclaimed =
            |outcome: &&FlowOutcome| matches!(outcome, FlowOutcome::Ended { end: End::Reclaimed, .. });
        assert_eq!(outcomes.iter().filter(is_reclaimed).count(), 6);
        // Silence ends the others.
        tokio::time::pause();
        for _ in 0..64 {
            let outcome = guest.event().await.outcome;
            assert!(matches!(outcome, FlowOutcome::Ended { end: End::Idle, sent: 1, .. }), "{outcome:?}");
        }
        assert_eq!(guest.datagrams.count(), 0);
    });
}

#[test]
fn a_closed_port_ends_a_flow() {
    within("datagrams::a_closed_port_ends_a_flow", async {
        let mut guest = Guest::new(&[], &[]);
        guest.send(4000, "203.0.113.10:9".parse().unwrap(), b"x").unwrap();
        assert_eq!(guest.event().await.outcome, FlowOutcome::Opened);
        let outcome = guest.event().await.outcome;
        assert!(matches!(outcome, FlowOutcome::Ended { end: End::Reset, .. }), "{outcome:?}");
    });
}
