//! Connections to servers that requests are sent on, and those that wait for more requests.
//!
//! A connection is made to the very address that a guest chose, and verified under the very name; it is used again for no
//! other. Not here: whether it may be made.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

use super::MAX_HEAD_OF_RESPONSE;
use super::body::Upload;
use super::head::Form;
use super::site::{Site, Speaks};
use super::tasks::{Owned, Tasks};
use crate::audit::Fault;
use crate::dial::Dialer;
use crate::tls::Interception;

/// Most connections that wait for another request, altogether and to one server.
const MAX_IDLE: usize = 64;
const MAX_IDLE_TO_ONE: usize = 8;

/// How long a connection waits for another request.
const IDLE: Duration = Duration::from_secs(90);

/// How long a server may take for a handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(30);

/// How long a connection may take until it is ready once more, after its response.
const READY_LIMIT: Duration = Duration::from_secs(1);

/// Most connections by HTTP/2, each of which may have a window's worth of bytes that a guest does not take.
const MAX_HTTP2: usize = 16;
const STREAM_WINDOW: u32 = 512 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Most bytes of a stream's body that are kept for the server.
const SEND_BUFFER: usize = 32 << 10;

/// A server: its address, and in TLS the name under which it is verified.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) name: Option<String>,
}

/// The servers of one sandbox.
#[derive(Debug)]
pub(crate) struct Upstream {
    dialer: Arc<Dialer>,
    tls: Option<Arc<Interception>>,
    waiting: Mutex<Waiting>,
    http2: Arc<Semaphore>,
    tasks: Owned,
}

#[derive(Debug, Default)]
struct Waiting {
    http1: BTreeMap<Server, Vec<(Instant, http1::SendRequest<Upload>)>>,
    http2: BTreeMap<Server, (Instant, http2::SendRequest<Upload>)>,
    is_swept: bool,
}

/// A connection for one request.
pub(crate) struct Line {
    upstream: Arc<Upstream>,
    server: Server,
    sender: Sender,
    /// Whether it had requests before, so that the server may be ending it.
    pub(crate) is_used: bool,
    /// Its place among those of one guest's connection.
    place: Option<OwnedSemaphorePermit>,
}

enum Sender {
    Http1(http1::SendRequest<Upload>),
    Http2(http2::SendRequest<Upload>),
}

/// The reason for which there is no connection.
#[derive(Debug)]
pub(crate) enum Unreached {
    Fault(Fault),
    Tls(String),
    Http(hyper::Error),
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(Fault::Refused) => f.write_str("the server refuses connections"),
            Self::Fault(Fault::Silent) => f.write_str("the server does not answer"),
            Self::Fault(Fault::NoWay) => f.write_str("there is no way to the server's address"),
            Self::Fault(Fault::TooMany) => f.write_str("too many connections are being opened"),
            Self::Tls(error) => f.write_str(error),
            Self::Http(error) => error.fmt(f),
        }
    }
}

impl Upstream {
    pub(crate) fn new(dialer: Arc<Dialer>, tls: Option<Arc<Interception>>) -> Arc<Self> {
        let (waiting, tasks) = (Mutex::default(), Owned::default());
        Arc::new(Self { dialer, tls, waiting, http2: Arc::new(Semaphore::new(MAX_HTTP2)), tasks })
    }

    /// A connection for a request; a `fresh` one had none before.
    pub(crate) async fn line(
        self: &Arc<Self>,
        site: &Site,
        server: &Server,
        http2: bool,
        fresh: bool,
    ) -> Result<Line, Unreached> {
        if http2 && server.name.is_some() {
            // The requests of one guest's connection do not each open their own.
            let mut speaks = site.speaks.lock().await;
            if *speaks != Speaks::Http1 {
                if let Some(sender) = self.waiting().http2(server).filter(|_| !fresh) {
                    return Ok(self.line_of(server, Sender::Http2(sender), true, None));
                }
                let sender = self.open(server, true).await?;
                *speaks = if matches!(sender, Sender::Http2(_)) { Speaks::Http2 } else { Speaks::Http1 };
                if let Sender::Http2(sender) = &sender {
                    self.keep_http2(server, sender.clone());
                }
                return Ok(self.line_of(server, sender, false, None));
            }
        }
        // The semaphore lives as long as the site and is never closed.
        let place = site.lines.clone().acquire_owned().await.ok();
        if let Some(sender) = self.waiting().http1(server).filter(|_| !fresh) {
            return Ok(self.line_of(server, Sender::Http1(sender), true, place));
        }
        let sender = self.open(server, false).await?;
        Ok(self.line_of(server, sender, false, place))
    }

    fn line_of(
        self: &Arc<Self>,
        server: &Server,
        sender: Sender,
        is_used: bool,
        place: Option<OwnedSemaphorePermit>,
    ) -> Line {
        Line { upstream: self.clone(), server: server.clone(), sender, is_used, place }
    }

    async fn open(&self, server: &Server, http2: bool) -> Result<Sender, Unreached> {
        let stream = self.dialer.connect(server.address).await.map_err(Unreached::Fault)?;
        let (Some(name), Some(tls)) = (&server.name, &self.tls) else { return self.http1(stream).await };
        let place = self.http2.clone().try_acquire_owned().ok().filter(|_| http2);
        let connect = tls.connect(name, stream, place.is_some());
        let stream = match timeout(HANDSHAKE_LIMIT, connect).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Unreached::Tls(error.to_string())),
            Err(_) => return Err(Unreached::Fault(Fault::Silent)),
        };
        match place {
            Some(place) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                self.http2(stream, place).await
            }
            _ => self.http1(stream).await,
        }
    }

    async fn http1<S>(&self, stream: S) -> Result<Sender, Unreached>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = http1::Builder::new();
        builder.preserve_header_case(true);
        builder.max_buf_size(MAX_HEAD_OF_RESPONSE).max_header_size(MAX_HEAD_OF_RESPONSE);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(Unreached::Http)?;
        // The request or the response fails where the connection does.
        self.tasks.0.spawn(async move { drop(connection.with_upgrades().await) });
        Ok(Sender::Http1(sender))
    }

    async fn http2<S>(&self, stream: S, place: OwnedSemaphorePermit) -> Result<Sender, Unreached>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = http2::Builder::<Tasks>::new(self.tasks.0.clone());
        builder.timer(TokioTimer::new());
        builder.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
        builder.max_send_buf_size(SEND_BUFFER);
        builder.max_header_list_size(u32::try_from(MAX_HEAD_OF_RESPONSE).unwrap_or(u32::MAX));
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(Unreached::Http)?;
        self.tasks.0.spawn(async move {
            drop(connection.await);
            drop(place);
        });
        Ok(Sender::Http2(sender))
    }

    fn keep_http1(self: &Arc<Self>, server: Server, sender: http1::SendRequest<Upload>) {
        let mut waiting = self.waiting();
        let count: usize = waiting.http1.values().map(Vec::len).sum();
        let own = waiting.http1.entry(server).or_default();
        if count < MAX_IDLE && own.len() < MAX_IDLE_TO_ONE {
            own.push((Instant::now() + IDLE, sender));
        }
        self.sweep(waiting);
    }

    fn keep_http2(self: &Arc<Self>, server: &Server, sender: http2::SendRequest<Upload>) {
        let mut waiting = self.waiting();
        waiting.http2.insert(server.clone(), (Instant::now() + IDLE, sender));
        self.sweep(waiting);
    }

    /// Sees to it that connections end that have waited for long enough.
    fn sweep(self: &Arc<Self>, mut waiting: MutexGuard<'_, Waiting>) {
        if std::mem::replace(&mut waiting.is_swept, true) {
            return;
        }
        drop(waiting);
        let upstream = Arc::downgrade(self);
        self.tasks.0.spawn(async move {
            let mut next = Instant::now() + IDLE;
            loop {
                sleep_until(next).await;
                let Some(upstream) = upstream.upgrade() else { return };
                match upstream.waiting().expire(Instant::now()) {
                    Some(end) => next = end,
                    None => return,
                }
            }
        });
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while the lists are locked.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn http1(&mut self, server: &Server) -> Option<http1::SendRequest<Upload>> {
        let own = self.http1.get_mut(server)?;
        while let Some((_, sender)) = own.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        self.http1.remove(server);
        None
    }

    fn http2(&mut self, server: &Server) -> Option<http2::SendRequest<Upload>> {
        let (end, sender) = self.http2.get_mut(server)?;
        if sender.is_ready() {
            *end = Instant::now() + IDLE;
            return Some(sender.clone());
        }
        self.http2.remove(server);
        None
    }

    /// Drops what has waited for long enough; the time at which there is more to drop.
    fn expire(&mut self, now: Instant) -> Option<Instant> {
        self.http1.retain(|_, own| {
            own.retain(|(end, sender)| *end > now && !sender.is_closed());
            !own.is_empty()
        });
        self.http2.retain(|_, (end, sender)| *end > now && !sender.is_closed());
        let ends = self.http1.values().flatten().map(|(end, _)| *end);
        let next = ends.chain(self.http2.values().map(|(end, _)| *end)).min();
        self.is_swept = next.is_some();
        next
    }
}

impl Line {
    /// The form of requests on this connection.
    pub(crate) fn form(&self, chunked: bool) -> Form {
        match self.sender {
            Sender::Http1(_) => Form::Http1 { chunked },
            Sender::Http2(_) => Form::Http2,
        }
    }

    /// Sends a request. One that did not go out is in the error.
    pub(crate) async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Upload>>> {
        match &mut self.sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(sender) => sender.try_send_request(request).await,
        }
    }

    /// The response is there: the connection takes another request.
    pub(crate) fn give_back(self) {
        let Self { upstream, server, sender, place, .. } = self;
        let Sender::Http1(mut sender) = sender else { return };
        if sender.is_ready() {
            return upstream.keep_http1(server, sender);
        }
        let tasks = upstream.tasks.0.clone();
        tasks.spawn(async move {
            if let Ok(Ok(())) = timeout(READY_LIMIT, sender.ready()).await {
                upstream.keep_http1(server, sender);
            }
            drop(place);
        });
    }
}
