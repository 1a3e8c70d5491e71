//! Port forwards: listeners on the host whose connections go to ports of the guest's loopback address.
//!
//! The end of one direction is passed on, and the other direction goes on until its own end. A connection that is cut
//! short, by a refused port, a reset in the guest or the end of sandbox or forward, is reset for its client. Not
//! here: the connection into the guest ([`Guest::connect`]), and the permission to listen.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::sockopt;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::agent::descriptors;
use crate::guest::Guest;
use crate::guest::error::{Error, Result};

/// Most connections of all listeners together; each listener accepts one more, and the rest wait in its queue. A
/// connection takes two descriptors here and a stream of the guest's.
pub const MAX_CONNECTIONS: usize = 128;

/// Buffer for one direction of a connection.
const BUFFER: usize = 64 << 10;

/// Probes a client from which nothing comes any more. A client that closed its socket looks like one that has merely
/// nothing more to send; after a minute (tcp(7): tcp_fin_timeout) its kernel answers probes for the latter only.
const KEEP_ALIVE: KeepAlive =
    KeepAlive { idle: Duration::from_secs(30), interval: Duration::from_secs(10), probes: 3 };

/// Pause after a failed accept: without free descriptors the next one would fail at once.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// A forward: a port of the host that leads to a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Forward {
    /// The only address to listen on; `None` = every address given to [`Forwards::bind`].
    pub address: Option<IpAddr>,
    /// Port on the host; 0 = any that is free.
    pub local_port: u16,
    /// Port in the guest.
    pub remote_port: u16,
}

/// A listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The listener's address.
    pub address: IpAddr,
    /// The listener's port.
    pub local_port: u16,
    /// The port in the guest.
    pub remote_port: u16,
}

/// tcp(7): `TCP_KEEPIDLE`, `TCP_KEEPINTVL`, `TCP_KEEPCNT`.
#[derive(Debug, Clone, Copy)]
struct KeepAlive {
    idle: Duration,
    interval: Duration,
    probes: u32,
}

/// Listeners and their connections. Dropping it closes all of them soon; [`Forwards::close`] waits until they are
/// closed.
#[derive(Debug)]
pub struct Forwards {
    listeners: JoinSet<()>,
}

impl Forwards {
    /// Listens for each forward on its own address, or else on each of `addresses`: all of them or none. Needs a
    /// tokio runtime around it.
    pub fn bind(guest: &Guest, forwards: &[Forward], addresses: &[IpAddr]) -> Result<(Self, Vec<Binding>)> {
        Self::bind_at_most(guest, forwards, addresses, MAX_CONNECTIONS)
    }

    fn bind_at_most(
        guest: &Guest,
        forwards: &[Forward],
        addresses: &[IpAddr],
        connections: usize,
    ) -> Result<(Self, Vec<Binding>)> {
        let mut bound = Vec::new();
        let mut taken = HashSet::new();
        for forward in forwards {
            for address in forward.address.as_ref().map_or(addresses, std::slice::from_ref) {
                let address = SocketAddr::new(*address, forward.local_port);
                if forward.local_port != 0 && !taken.insert(address) {
                    return Err(Error::Listener { address, source: io::Error::other("given twice") });
                }
                let listener = listen(address).map_err(|source| Error::Listener { address, source })?;
                bound.push((listener, forward.remote_port));
            }
        }
        let slots = Arc::new(Semaphore::new(connections));
        let mut listeners = JoinSet::new();
        let mut bindings = Vec::new();
        for ((listener, address), remote_port) in bound {
            bindings.push(Binding { address: address.ip(), local_port: address.port(), remote_port });
            listeners.spawn(accept(listener, guest.clone(), remote_port, Arc::clone(&slots)));
        }
        Ok((Self { listeners }, bindings))
    }

    /// Closes the connections and the listeners; their ports are free when this returns.
    pub async fn close(mut self) {
        self.listeners.shutdown().await;
    }
}

fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = broker::listen(address)?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

async fn accept(listener: TcpListener, guest: Guest, port: u16, slots: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                // Taken only now: a listener without clients must not keep a slot from the others.
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
                let guest = guest.clone();
                connections.spawn(async move {
                    if let Err(error) = relay(stream, &guest, port).await {
                        tracing::debug!("connection to port {port}: {error}");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::debug!("listener for port {port}: {error}");
                sleep(SHORTAGE_PAUSE).await;
            }
        }
    }
}

async fn relay(mut stream: TcpStream, guest: &Guest, port: u16) -> Result<()> {
    // Until both ends have come, closing the socket resets the connection.
    linger(&stream, Some(Duration::ZERO))?;
    let mut inside = Inside { stream: guest.connect(port).await?, ended: false };
    // Small pieces stay small on the other side.
    let _ = stream.set_nodelay(true);
    let client = KEEP_ALIVE.watch(&stream).map_err(Error::Connection)?;
    tokio::select! {
        copied = copy_bidirectional_with_sizes(&mut stream, &mut inside, BUFFER, BUFFER) => copied.map(drop),
        gone = client.ready(Interest::ERROR) => gone.map(drop),
    }
    .map_err(Error::Connection)?;
    linger(&stream, None)
}

/// socket(7): `SO_LINGER`; closing a socket with a zero limit resets the connection.
fn linger(stream: &TcpStream, limit: Option<Duration>) -> Result<()> {
    sockopt::set_socket_linger(stream, limit).map_err(|errno| Error::Connection(errno.into()))
}

/// A connection into the guest. Its close is an error unless the guest's end of data came first.
#[derive(Debug)]
struct Inside {
    stream: UnixStream,
    /// Whether this side has ended its direction. Afterwards the guest's end of data and its hang-up look the same.
    ended: bool,
}

impl Inside {
    fn is_cut_short(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let _ = rustix::event::poll(&mut fds, Some(&now));
        // unix(7), poll(2): HUP is set once both directions have ended.
        !self.ended && fds[0].revents().contains(PollFlags::HUP)
    }
}

impl AsyncRead for Inside {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        match buffer.filled().len() == before && self.is_cut_short() {
            true => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            false => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Inside {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ended = true;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl KeepAlive {
    /// Another descriptor of the socket, to wait for its error: the client is then gone in both directions.
    fn watch(self, stream: &TcpStream) -> io::Result<AsyncFd<OwnedFd>> {
        sockopt::set_tcp_keepidle(stream, self.idle)?;
        sockopt::set_tcp_keepintvl(stream, self.interval)?;
        sockopt::set_tcp_keepcnt(stream, self.probes)?;
        sockopt::set_socket_keepalive(stream, true)?;
        descriptors::watched(stream.as_fd().try_clone_to_owned()?, Interest::ERROR)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use guest_protocol::{ConnectReply, Request};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::mpsc;

    use super::*;
    use crate::fake::{guest_with, request, run, say};

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const ANY: Forward = Forward { address: None, local_port: 0, remote_port: 80 };

    /// Accepts a connection to port 80; `None` if it was refused or nothing was asked.
    async fn connected(mut stream: UnixStream) -> Option<UnixStream> {
        match request(&mut stream).await? {
            Request::Connect { port: 80 } => {
                say(&mut stream, &ConnectReply::Ok(())).await;
                Some(stream)
            }
            Request::Connect { .. } => {
                let why = "connect: Connection refused".to_owned();
                say(&mut stream, &ConnectReply::Err(why)).await;
                None
            }
            other => panic!("{other:?}"),
        }
    }

    /// A guest whose server reads the whole request before it answers with it.
    fn patient_server() -> Guest {
        guest_with(|stream| async {
            let Some(mut stream) = connected(stream).await else { return };
            let mut asked = Vec::new();
            stream.read_to_end(&mut asked).await.unwrap();
            stream.write_all(&[b"asked: ", &asked[..]].concat()).await.unwrap();
        })
    }

    fn bind(guest: &Guest) -> (Forwards, SocketAddr) {
        let (forwards, bindings) = Forwards::bind(guest, &[ANY], &[HERE]).unwrap();
        (forwards, at(&bindings[0]))
    }

    fn at(binding: &Binding) -> SocketAddr {
        SocketAddr::new(binding.address, binding.local_port)
    }

    async fn ask(address: SocketAddr, question: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(question).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    }

    #[test]
    fn the_end_of_the_question_is_passed_on_before_the_answer() {
        run(async {
            let guest = patient_server();
            let (_forwards, address) = bind(&guest);
            assert_eq!(ask(address, b"hello").await, b"asked: hello");
            let long = vec![7; 3 << 20];
            assert_eq!(ask(address, &long).await.len(), long.len() + 7);
        });
    }

    #[test]
    fn a_server_may_end_first_and_still_listen() {
        run(async {
            let (sender, mut heard) = mpsc::unbounded_channel();
            let guest = guest_with(move |stream| {
                let sender = sender.clone();
                async move {
                    let Some(mut stream) = connected(stream).await else { return };
                    stream.write_all(b"bye").await.unwrap();
                    stream.shutdown().await.unwrap();
                    let mut rest = Vec::new();
                    stream.read_to_end(&mut rest).await.unwrap();
                    sender.send(rest).unwrap();
                }
            });
            let (_forwards, address) = bind(&guest);
            let mut stream = TcpStream::connect(address).await.unwrap();
            let mut said = Vec::new();
            stream.read_to_end(&mut said).await.unwrap();
            assert_eq!(said, b"bye");
            stream.write_all(b"and more").await.unwrap();
            drop(stream);
            assert_eq!(heard.recv().await.unwrap(), b"and more");
        });
    }

    #[test]
    fn bytes_behind_the_answer_are_the_connections() {
        run(async {
            let guest = guest_with(|mut stream: UnixStream| async move {
                if request(&mut stream).await.is_some() {
                    let connected = guest_protocol::frame::encode_reply(&ConnectReply::Ok(())).unwrap();
                    stream.write_all(&[&connected[..], b"220 ready"].concat()).await.unwrap();
                }
            });
            let mut greeting = String::new();
            guest.connect(25).await.unwrap().read_to_string(&mut greeting).await.unwrap();
            assert_eq!(greeting, "220 ready");
        });
    }

    #[test]
    fn refused_connections_are_reset() {
        run(async {
            let guest = patient_server();
            let refused = Forward { remote_port: 81, ..ANY };
            let (_forwards, bindings) = Forwards::bind(&guest, &[refused], &[HERE]).unwrap();
            let mut stream = TcpStream::connect(at(&bindings[0])).await.unwrap();
            let error = stream.read(&mut [0]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            assert_eq!(guest.connect(81).await.unwrap_err().to_string(), "connect: Connection refused");
        });
    }

    #[test]
    fn an_answer_that_is_cut_short_does_not_look_whole() {
        run(async {
            let guest = guest_with(|stream| async {
                let Some(mut stream) = connected(stream).await else { return };
                stream.write_all(b"half an ans").await.unwrap();
            });
            let (_forwards, address) = bind(&guest);
            let mut stream = TcpStream::connect(address).await.unwrap();
            let mut answer = Vec::new();
            let error = stream.read_to_end(&mut answer).await.unwrap_err();
            assert_eq!((&answer[..], error.kind()), (&b"half an ans"[..], io::ErrorKind::ConnectionReset));
        });
    }

    #[test]
    fn bindings_tell_where_they_are_and_are_all_or_none() {
        run(async {
            let guest = patient_server();
            let (forwards, bindings) = Forwards::bind(&guest, &[ANY, ANY], &[HERE]).unwrap();
            assert!(bindings.iter().all(|binding| binding.local_port != 0 && binding.remote_port == 80));
            assert_ne!(bindings[0].local_port, bindings[1].local_port);

            let taken = Forward { local_port: bindings[0].local_port, ..ANY };
            let error = Forwards::bind(&guest, &[ANY, taken], &[HERE]).unwrap_err();
            let text =
                format!("bind local port-forward listener {}: Address already in use", at(&bindings[0]));
            assert!(error.to_string().starts_with(&text), "{error}");

            forwards.close().await;
            let error = Forwards::bind(&guest, &[taken, taken], &[HERE]).unwrap_err();
            assert!(error.to_string().ends_with(": given twice"), "{error}");
            // The port is free at once, after the failure too.
            let (_forwards, again) = Forwards::bind(&guest, &[taken], &[HERE]).unwrap();
            assert_eq!(again, bindings[..1]);
        });
    }

    #[test]
    fn closing_ends_connections() {
        run(async {
            let (sender, mut ended) = mpsc::unbounded_channel();
            let guest = guest_with(move |stream| {
                let sender = sender.clone();
                async move {
                    if let Some(mut stream) = connected(stream).await {
                        stream.write_all(b"x").await.unwrap();
                        sender.send(stream.read(&mut [0]).await.unwrap_or(0)).unwrap();
                    }
                }
            });
            for closed in [true, false] {
                let (forwards, address) = bind(&guest);
                let mut stream = TcpStream::connect(address).await.unwrap();
                assert_eq!(stream.read(&mut [0]).await.unwrap(), 1);
                match closed {
                    true => forwards.close().await,
                    false => drop(forwards),
                }
                assert_eq!(ended.recv().await.unwrap(), 0, "the guest's side");
                assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0, "the client's side");
            }
        });
    }

    /// A guest that accepts connections, sends nothing, and does not react to their end.
    fn silent_server() -> Guest {
        guest_with(|stream| async {
            let stream = connected(stream).await;
            std::future::pending::<()>().await;
            drop(stream);
        })
    }

    /// The two ends of a connection.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((HERE, 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[test]
    fn a_client_that_is_gone_is_not_kept_by_a_silent_guest() {
        run(async {
            let guest = silent_server();
            let (mut client, stream) = pair().await;
            client.shutdown().await.unwrap();
            let relayed = tokio::spawn(async move { relay(stream, &guest, 80).await });
            // The kernel of a client that closed its socket waits for the other side's end for a minute (tcp(7):
            // tcp_fin_timeout), and then answers with a reset.
            sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
            drop(client);
            relayed.await.unwrap().unwrap();
        });
    }

    #[test]
    fn a_client_that_only_listens_is_kept() {
        run(async {
            let second = Duration::from_secs(1);
            let keep_alive = KeepAlive { idle: second, interval: second, probes: 1 };
            let (mut client, stream) = pair().await;
            client.shutdown().await.unwrap();
            let gone = keep_alive.watch(&stream).unwrap();
            let gone = tokio::time::timeout(3 * second, gone.ready(Interest::ERROR)).await;
            assert!(gone.is_err(), "its kernel has answered");
        });
    }

    #[test]
    fn idle_listeners_take_nothing_from_the_others() {
        run(async {
            let guest = patient_server();
            let (_forwards, bindings) = Forwards::bind_at_most(&guest, &[ANY; 3], &[HERE], 1).unwrap();
            for binding in bindings.iter().chain(&bindings) {
                let asked = tokio::time::timeout(Duration::from_secs(10), ask(at(binding), b"x")).await;
                assert_eq!(asked.unwrap(), b"asked: x");
            }
        });
    }

    #[test]
    fn surplus_connections_wait_for_their_turn() {
        run(async {
            let guest = patient_server();
            let (_forwards, bindings) = Forwards::bind_at_most(&guest, &[ANY], &[HERE], 1).unwrap();
            let address = at(&bindings[0]);
            let mut first = TcpStream::connect(address).await.unwrap();
            first.write_all(b"first").await.unwrap();
            let mut second = tokio::spawn(ask(address, b"second"));
            let waits = tokio::time::timeout(Duration::from_millis(100), &mut second).await;
            assert!(waits.is_err(), "there was one slot");
            drop(first);
            assert_eq!(second.await.unwrap(), b"asked: second");
        });
    }
}
