//! A guest: connections that are accepted in place of servers, and what an audit says about them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use egress::audit::{self, Event, Events, FlowOutcome};
use egress::{Dns, DnsSettings, Flow, Flows, Interception, Shared};
use egress_policy::{Policy, WantedPolicy};
use tokio::net::{TcpListener, TcpStream};

/// Lists of a policy.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Policies<'a> {
    pub(crate) allow: &'a [&'a str],
    pub(crate) passthrough: &'a [&'a str],
    /// Whether HTTP and TLS are looked into though nothing else needs it.
    pub(crate) intercept: bool,
    /// Entries of the guest's table of hosts.
    pub(crate) hosts: &'a [(&'a str, &'a str)],
}

/// A guest with its way out.
pub(crate) struct Guest {
    flows: Arc<Flows>,
    shared: Arc<Shared>,
    listener: TcpListener,
    events: Events,
}

impl Policies<'_> {
    pub(crate) fn policy(&self) -> Policy {
        let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        let (allow, passthrough) = (texts(self.allow), texts(self.passthrough));
        let wanted =
            WantedPolicy { allow, passthrough, intercept: self.intercept, ..WantedPolicy::default() };
        Policy::new(&wanted).unwrap()
    }
}

pub(crate) fn policy(allow: &[&str], passthrough: &[&str]) -> Policy {
    Policies { allow, passthrough, ..Policies::default() }.policy()
}

impl Guest {
    pub(crate) async fn new(policies: &Policies<'_>) -> Self {
        Self::intercepted(policies, None).await
    }

    /// A guest whose TLS is looked into.
    pub(crate) async fn intercepted(policies: &Policies<'_>, tls: Option<Arc<Interception>>) -> Self {
        let (queue, events) = audit::queue(10_000);
        let entry = |(name, address): &(&str, &str)| (name.parse().unwrap(), address.parse().unwrap());
        let hosts = policies.hosts.iter().map(entry).collect();
        let shared = Shared::new(policies.policy(), hosts, queue);
        let dns = Arc::new(Dns::new(shared.clone(), DnsSettings { servers: Vec::new(), ipv6: true }));
        let flows = Arc::new(Flows::intercepting(shared.clone(), dns, tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { flows, shared, listener, events }
    }

    /// The guest's end of a connection to an address.
    pub(crate) async fn connect(&self, destination: SocketAddr) -> TcpStream {
        let inside = TcpStream::connect(self.listener.local_addr().unwrap()).await.unwrap();
        let (stream, source) = self.listener.accept().await.unwrap();
        let flows = self.flows.clone();
        tokio::spawn(async move { flows.carry(Flow { stream, source, destination }).await });
        inside
    }

    /// The guest's ends of connections to an address, which are all judged before one of them is opened.
    pub(crate) async fn connect_at_once(&self, destination: SocketAddr, count: usize) -> Vec<TcpStream> {
        let (mut inside, mut flows) = (Vec::new(), Vec::new());
        for _ in 0..count {
            inside.push(TcpStream::connect(self.listener.local_addr().unwrap()).await.unwrap());
            let (stream, source) = self.listener.accept().await.unwrap();
            flows.push(Flow { stream, source, destination });
        }
        for flow in flows {
            let all = self.flows.clone();
            tokio::spawn(async move { all.carry(flow).await });
        }
        inside
    }

    /// A port of loopback whose connections are the guest's to an address.
    pub(crate) async fn port(&self, destination: SocketAddr) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let flows = self.flows.clone();
        tokio::spawn(async move {
            while let Ok((stream, source)) = listener.accept().await {
                let flows = flows.clone();
                tokio::spawn(async move { flows.carry(Flow { stream, source, destination }).await });
            }
        });
        port
    }

    async fn event(&mut self) -> Event {
        let event = tokio::time::timeout(Duration::from_secs(60), self.events.next()).await;
        event.expect("an event in time").expect("an event").event
    }

    pub(crate) async fn flow_event(&mut self) -> audit::Flow {
        match self.event().await {
            Event::Flow(event) => event,
            event => panic!("no event of a flow: {event:?}"),
        }
    }

    /// The next event of a request; those of flows are left out.
    pub(crate) async fn request_event(&mut self) -> audit::Request {
        loop {
            match self.event().await {
                Event::Flow(_) => {}
                Event::Request(event) => return event,
                event => panic!("no event of a request: {event:?}"),
            }
        }
    }

    /// The end of the next flow that has one; events of requests are left out.
    pub(crate) async fn end_event(&mut self) -> audit::End {
        loop {
            if let Event::Flow(audit::Flow { outcome: FlowOutcome::Ended { end, .. }, .. }) =
                self.event().await
            {
                return end;
            }
        }
    }

    /// The allow list is another one from now on.
    pub(crate) fn allow(&self, allow: &[&str]) {
        self.shared.set_policy(policy(allow, &[]));
    }

    /// Does the same as [`Self::allow`], and waits until it has its effect.
    pub(crate) async fn change(&self, allow: &[&str]) {
        self.shared.change_policy(policy(allow, &[])).await;
    }

    /// The number of connections.
    pub(crate) fn count(&self) -> usize {
        self.flows.count()
    }

    /// Waits until no connection is left.
    pub(crate) async fn empty(&self) {
        for _ in 0..10_000 {
            if self.flows.count() == 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{} connections are left", self.flows.count());
    }
}

/// A server at an address of the namespace.
pub(crate) async fn server(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Bytes of which no two pieces are alike.
pub(crate) fn pieces(len: usize) -> Vec<u8> {
    (0_u32..).flat_map(u32::to_le_bytes).take(len).collect()
}

/// The `ClientHello` of a real client.
pub(crate) fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut client =
        rustls::ClientConnection::new(config.into(), name.to_owned().try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}
