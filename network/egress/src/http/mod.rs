//! A guest's requests, judged one by one and sent on to the address that the guest chose: HTTP/1.1 as it is and in TLS,
//! HTTP/2 in TLS.
//!
//! Heads are read and written by `hyper`, so no byte of one arrives as it was sent: what a server gets is what was judged.
//! Bodies are carried in pieces and not kept. Not here: which connections are looked into, and certificates.

mod account;
mod body;
mod exchange;
mod guest;
pub(crate) mod head;
mod site;
mod tasks;
mod tunnel;
mod upstream;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::Shared;
use crate::audit::End;
use crate::dial::Dialer;
use crate::tls::Interception;
pub(crate) use guest::{Guest, Watch};
pub(crate) use site::{Site, Way};
use tasks::{Owned, Tasks};
use upstream::Upstream;

/// Longest head of a request, and of a response.
const MAX_HEAD: usize = 32 << 10;
const MAX_HEAD_OF_RESPONSE: usize = 64 << 10;

/// How long a guest may take for a handshake and for the head of a request, and how long it may have none under way.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
const HEAD_LIMIT: Duration = Duration::from_secs(30);

/// How long a connection that is being ended may take for it.
const END_LIMIT: Duration = Duration::from_secs(10);

/// How long a guest may take to read the last response, and how much it may still send meanwhile.
const LINGER_LIMIT: Duration = Duration::from_secs(2);
const MAX_LINGERED: usize = 16 << 20;

/// Most requests that are under way.
const MAX_REQUESTS: usize = 256;

/// Most connections that stay for more than one request, and most of them by HTTP/2.
const MAX_KEPT: usize = 256;
const MAX_HTTP2: usize = 32;

/// Most requests that are under way on one connection by HTTP/2.
const MAX_STREAMS: u32 = 128;

/// Most bytes of bodies that a guest may send by HTTP/2 before they are taken.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;

/// Most bytes of a stream's response that are kept for the guest.
const SEND_BUFFER: usize = 32 << 10;

/// Most streams that a guest has reset and that are not done yet: more is an attack (CVE-2023-44487).
const MAX_RESET_STREAMS: usize = 20;

/// The proxy of one sandbox.
pub(crate) struct Proxy {
    pub(crate) shared: Arc<Shared>,
    tls: Option<Arc<Interception>>,
    upstream: Arc<Upstream>,
    requests: Arc<Semaphore>,
    kept: Semaphore,
    http2: Semaphore,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").finish_non_exhaustive()
    }
}

impl Proxy {
    pub(crate) fn new(shared: Arc<Shared>, dialer: Arc<Dialer>, tls: Option<Arc<Interception>>) -> Arc<Self> {
        Arc::new(Self {
            shared,
            upstream: Upstream::new(dialer, tls.clone()),
            tls,
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            kept: Semaphore::new(MAX_KEPT),
            http2: Semaphore::new(MAX_HTTP2),
        })
    }

    /// Whether TLS can be looked into.
    pub(crate) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }
}

/// Serves a guest's connection until it ends.
pub(crate) async fn serve(site: &Arc<Site>, guest: Guest) -> End {
    let (proxy, watch) = (site.proxy.clone(), guest.watch());
    let kept = proxy.kept.try_acquire();
    let end = match (&site.way, &proxy.tls) {
        (Way::Plain, _) => serve_http1(site, guest, &watch, kept.is_ok()).await,
        (Way::Tls(name), Some(tls)) => {
            let place = proxy.http2.try_acquire().ok().filter(|_| kept.is_ok());
            let address = site.destination.ip().to_canonical();
            let Ok(accept) = tls.accept(name.as_ref(), address, guest, place.is_some()) else {
                return End::Handshake;
            };
            match timeout(HANDSHAKE_LIMIT, accept).await {
                Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                    serve_http2(site, stream).await
                }
                Ok(Ok(stream)) => {
                    drop(place);
                    serve_http1(site, stream, &watch, kept.is_ok()).await
                }
                Ok(Err(error)) => failed(&error),
                Err(_) => End::Handshake,
            }
        }
        (Way::Tls(_), None) => End::Handshake,
    };
    match site.tunnel() {
        Some(tunnel) => tunnel.run().await,
        None => end,
    }
}

/// The end of a connection whose handshake failed.
fn failed(error: &std::io::Error) -> End {
    let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    match error {
        Some(rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate,
        )) => End::Distrusted,
        _ => End::Handshake,
    }
}

async fn serve_http1<S>(site: &Arc<Site>, stream: S, watch: &Watch, keep: bool) -> End
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).keep_alive(keep);
    builder
        .max_buf_size(MAX_HEAD)
        .max_header_size(MAX_HEAD)
        .preserve_header_case(true)
        .auto_date_header(false);
    let own = site.clone();
    let service = service_fn(move |request| {
        let site = own.clone();
        async move { Ok::<_, Infallible>(exchange::answer(site, request).await) }
    });
    let mut connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    let end = ended((&mut connection).await);
    match connection.into_parts() {
        // A response that is cut short must not look whole.
        _ if end == End::Reset => watch.reset(),
        Some(parts) if end == End::Malformed || site.is_unread.load(Ordering::Relaxed) => {
            drop(timeout(LINGER_LIMIT, linger(parts.io.into_inner())).await);
        }
        // It has ended, or was upgraded.
        _ => {}
    }
    end
}

/// Takes what the guest still sends: if it were left unread, the guest would see a reset instead of a response.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> std::io::Result<()> {
    stream.shutdown().await?;
    let (mut buffer, mut taken) = (vec![0; 4096], 0);
    while taken < MAX_LINGERED {
        match stream.read(&mut buffer).await? {
            0 => break,
            len => taken += len,
        }
    }
    Ok(())
}

async fn serve_http2<S>(site: &Arc<Site>, stream: S) -> End
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let tasks = Owned::default();
    let mut builder = http2::Builder::<Tasks>::new(tasks.0.clone());
    builder.timer(TokioTimer::new()).auto_date_header(false);
    builder.max_concurrent_streams(MAX_STREAMS).max_pending_accept_reset_streams(MAX_RESET_STREAMS);
    builder.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    builder.max_send_buf_size(SEND_BUFFER).max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX));
    let own = site.clone();
    let service = service_fn(move |request| {
        let site = own.clone();
        async move { Ok::<_, Infallible>(exchange::answer(site, request).await) }
    });
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        result = connection.as_mut() => return ended(result),
        () = site.idle(HEAD_LIMIT) => connection.as_mut().graceful_shutdown(),
    }
    timeout(END_LIMIT, connection).await.map_or(End::Idle, ended)
}

fn ended(result: hyper::Result<()>) -> End {
    match result {
        Ok(()) => End::Closed,
        Err(error) if error.is_timeout() => End::Idle,
        Err(error) if error.is_parse() => End::Malformed,
        Err(_) => End::Reset,
    }
}
