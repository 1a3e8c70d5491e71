//! A guest's connection whose requests are judged one by one: its way, its names, and the requests that are under way.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use egress_policy::{Connection, Head, Name, Phase, Policy, Reason, Request, Transport, Verdict};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::Proxy;
use super::head::Heard;
use super::tunnel::Tunnel;
use super::upstream::Server;
use crate::shared::may_dial;

/// Most connections by HTTP/1.1 for the requests of one guest's connection.
const MAX_LINES: usize = 32;

/// The way in which a guest's requests come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    /// As they are.
    Plain,
    /// In TLS, with the server's name if it was stated.
    Tls(Option<Name>),
}

/// The versions that a server is known to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Speaks {
    #[default]
    Unknown,
    Http1,
    Http2,
}

/// A guest's connection.
pub(crate) struct Site {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) flow: u64,
    pub(crate) destination: SocketAddr,
    /// The names for which the guest was given the address.
    pub(crate) names: Vec<Name>,
    pub(crate) way: Way,
    pub(crate) speaks: tokio::sync::Mutex<Speaks>,
    pub(crate) lines: Arc<Semaphore>,
    /// Whether the body of the last request was not read to its end.
    pub(crate) is_unread: Arc<AtomicBool>,
    under_way: Mutex<BTreeMap<u64, Arc<Judged>>>,
    count: watch::Sender<usize>,
    tunnel: Mutex<Option<Tunnel>>,
}

/// A request as it was judged.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) heard: Heard,
    pub(crate) method: String,
    pub(crate) http2: bool,
}

/// A request that is under way, until this is dropped.
pub(crate) struct UnderWay {
    site: Arc<Site>,
    number: u64,
}

impl Site {
    pub(crate) fn new(
        proxy: Arc<Proxy>,
        flow: u64,
        destination: SocketAddr,
        names: Vec<Name>,
        way: Way,
    ) -> Arc<Self> {
        Arc::new(Self {
            proxy,
            flow,
            destination,
            names,
            way,
            speaks: tokio::sync::Mutex::default(),
            lines: Arc::new(Semaphore::new(MAX_LINES)),
            is_unread: Arc::default(),
            under_way: Mutex::default(),
            count: watch::Sender::new(0),
            tunnel: Mutex::default(),
        })
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.way != Way::Plain
    }

    /// The name under which the server is verified, in TLS.
    pub(crate) fn server_name(&self) -> Option<String> {
        match &self.way {
            Way::Plain => None,
            Way::Tls(Some(name)) => Some(name.to_string()),
            Way::Tls(None) => Some(self.destination.ip().to_canonical().to_string()),
        }
    }

    /// The server of this connection's requests.
    pub(crate) fn server(&self) -> Server {
        Server { address: self.destination, name: self.server_name() }
    }

    /// Judges a request, or its response.
    pub(crate) fn judge(&self, policy: &Policy, judged: &Judged, phase: Phase) -> Verdict<Request> {
        let Judged { heard, method, http2 } = judged;
        let transport = match &self.way {
            Way::Plain => Transport::Plain,
            Way::Tls(name) => Transport::Tls(name.as_ref()),
        };
        let head = Head {
            host: &heard.host,
            method,
            path: &heard.path,
            upgrade: heard.upgrade,
            http2: *http2,
            phase,
            from: 0,
        };
        policy.request(self.connection(), transport, head)
    }

    fn connection(&self) -> Connection<'_> {
        Connection { address: self.destination.ip(), port: self.destination.port(), names: &self.names }
    }

    /// The denial of this connection, or of a request that is under way, by a policy that has changed.
    pub(crate) fn denial(&self, policy: &Policy) -> Option<Reason> {
        let stated = match &self.way {
            Way::Tls(Some(name)) if self.names.contains(name) => Some(name),
            _ => None,
        };
        if let Err(reason) = may_dial(policy, self.destination, &self.names, stated) {
            return Some(reason);
        }
        self.map().values().find_map(|judged| {
            let verdict = self.judge(policy, judged, Phase::Before);
            matches!(verdict.decision, Request::Deny(_)).then_some(verdict.reason)
        })
    }

    /// A request is under way from now on.
    pub(crate) fn begin(self: &Arc<Self>, judged: Arc<Judged>) -> UnderWay {
        let mut map = self.map();
        let number = map.last_key_value().map_or(0, |(last, _)| last + 1);
        map.insert(number, judged);
        self.count.send_replace(map.len());
        UnderWay { site: self.clone(), number }
    }

    /// Ends once no request was under way for a time.
    pub(crate) async fn idle(&self, time: Duration) {
        let mut count = self.count.subscribe();
        // The sender is this value's own.
        while count.wait_for(|count| *count == 0).await.is_ok() {
            if timeout(time, count.changed()).await.is_err() {
                return;
            }
        }
    }

    /// The connection becomes another one.
    pub(crate) fn become_tunnel(&self, tunnel: Tunnel) {
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
    }

    /// The other connection that it has become.
    pub(crate) fn tunnel(&self) -> Option<Tunnel> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn map(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Judged>>> {
        // Nothing panics while the map is locked.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut map = self.site.map();
        map.remove(&self.number);
        self.site.count.send_replace(map.len());
    }
}
