//! A socket of UDP that hears one other side alone.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::Interest;
use tokio::net::UdpSocket;

/// A socket on a port that the system chooses at random.
pub(crate) async fn connected(other: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr =
        if other.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(other).await?;
    Ok(socket)
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
