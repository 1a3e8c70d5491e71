//! A socket of UDP that hears one other side alone.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// A socket on a port that the system chooses at random. It is bound by being connected: a process that carries datagrams
/// need not be allowed to bind(2).
pub(crate) fn connected(other: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(other), Type::DGRAM, None)?;
    socket.connect(&other.into())?;
    let socket = std::net::UdpSocket::from(socket);
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Waits for a datagram, or for the news (ICMP) that nobody is there: a socket that is only waited on to be readable does not
/// wake for the latter.
///
/// # Errors
///
/// If nobody is there.
pub(crate) async fn heard(socket: &UdpSocket) -> io::Result<()> {
    loop {
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
        if ready.is_error() {
            if let Some(error) = socket.take_error()?.filter(|error| !is_about_one(error)) {
                return Err(error);
            }
            // The news is old; the next is waited for.
            let none = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            let _ = socket.try_io(Interest::ERROR, none);
        }
        if ready.is_readable() {
            return Ok(());
        }
    }
}

/// Whether an error is about one datagram, such as one that was too large.
fn is_about_one(error: &io::Error) -> bool {
    error.kind() != io::ErrorKind::ConnectionRefused
}

/// Sends a datagram; one that is lost is no error.
///
/// # Errors
///
/// If nobody is there.
pub(crate) async fn send(socket: &UdpSocket, bytes: &[u8]) -> io::Result<usize> {
    match socket.send(bytes).await {
        Err(error) if is_about_one(&error) => Ok(0),
        sent => sent,
    }
}
