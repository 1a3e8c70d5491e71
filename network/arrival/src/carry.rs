//! All that arrives goes to `egress`, and what comes back to the guest.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use egress::{Datagram, Datagrams, Flow, Flows};
use tokio::io::Interest;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::sockets::receive;
use super::{Answers, MAX_DATAGRAM, Sockets};

/// Most datagrams that are taken in a row.
const TURN: usize = 32;

impl Sockets {
    /// Carries all that arrives until a socket is none any more, or nobody sends `answers`. Called within a runtime with
    /// timers, on which connections are carried.
    pub async fn carry(
        self,
        flows: Arc<Flows>,
        datagrams: Arc<Datagrams>,
        mut answers: mpsc::Receiver<Datagram>,
    ) -> io::Result<()> {
        let Self { connections: [tcp4, tcp6], datagrams: [udp4, udp6], answers: back } = self;
        let [tcp4, tcp6] = [TcpListener::from_std(tcp4)?, TcpListener::from_std(tcp6)?];
        let [udp4, udp6] = [UdpSocket::from_std(udp4.into())?, UdpSocket::from_std(udp6.into())?];
        tokio::select! {
            ended = connections(&tcp4, &flows) => ended,
            ended = connections(&tcp6, &flows) => ended,
            ended = messages(&udp4, &datagrams, &back) => ended,
            ended = messages(&udp6, &datagrams, &back) => ended,
            () = async {
                while let Some(Datagram { source, destination, bytes }) = answers.recv().await {
                    // A datagram that is too long for the guest, or for which there is no room, is lost.
                    let _ = back.send(source, destination, &bytes);
                }
            } => Ok(()),
        }
    }
}

/// The meaning of an error for the socket that it comes from.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    /// It is about one connection or datagram, which is gone.
    One,
    /// The host is short of something, for a while.
    Short,
    /// The socket is none that takes anything.
    End,
}

fn meaning(error: &io::Error) -> Meaning {
    match error.raw_os_error() {
        // accept(2): "Linux accept() passes already-pending network errors on the new socket as an error code".
        Some(
            libc::ECONNABORTED
            | libc::EINTR
            | libc::ENETDOWN
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EHOSTUNREACH
            | libc::EOPNOTSUPP
            | libc::ENETUNREACH,
        ) => Meaning::One,
        Some(libc::EBADF | libc::EFAULT | libc::EINVAL | libc::ENOTSOCK) => Meaning::End,
        _ => Meaning::Short,
    }
}

/// How long nothing is taken when the host is short of descriptors or memory: ends of connections give some back.
const PAUSE: Duration = Duration::from_millis(50);

/// Takes a socket's error, unless the error is its end.
async fn outlast(error: io::Error) -> io::Result<()> {
    match meaning(&error) {
        Meaning::One => {}
        Meaning::Short => sleep(PAUSE).await,
        Meaning::End => return Err(error),
    }
    Ok(())
}

/// Has the guest's connections carried, each on a task of its own, until the listener is none any more.
async fn connections(listener: &TcpListener, flows: &Arc<Flows>) -> io::Result<()> {
    loop {
        let (stream, source) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                outlast(error).await?;
                continue;
            }
        };
        // A connection that is gone has no address any more.
        let Ok(destination) = stream.local_addr() else { continue };
        let flows = Arc::clone(flows);
        tokio::spawn(async move { flows.carry(Flow { stream, source, destination }).await });
    }
}

/// Has the guest's datagrams carried until the socket is none any more.
async fn messages(socket: &UdpSocket, datagrams: &Arc<Datagrams>, back: &Answers) -> io::Result<()> {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        socket.readable().await?;
        if let Err(error) = take(socket, &mut buffer, datagrams, back) {
            outlast(error).await?;
        }
        // A guest that sends much does not keep the others from their turn.
        yield_now().await;
    }
}

/// Takes some of the datagrams that are there.
fn take(socket: &UdpSocket, buffer: &mut [u8], datagrams: &Arc<Datagrams>, back: &Answers) -> io::Result<()> {
    for _ in 0..TURN {
        let received = socket.try_io(Interest::READABLE, || receive(socket, buffer));
        let super::Datagram { len, from, wanted } = match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            received => received?,
        };
        let datagram = Datagram { source: from, destination: wanted, bytes: buffer[..len].to_vec() };
        if datagrams.take(datagram).is_err() {
            // Where there is no room for the message, the guest waits in vain, as on any network.
            let _ = back.prohibit(from, wanted);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_that_is_none_is_an_end() {
        let of = |number| meaning(&io::Error::from_raw_os_error(number));
        assert_eq!([libc::ECONNABORTED, libc::EHOSTUNREACH].map(of), [Meaning::One, Meaning::One]);
        for number in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EPERM] {
            assert_eq!(of(number), Meaning::Short);
        }
        assert_eq!([libc::EBADF, libc::ENOTSOCK].map(of), [Meaning::End, Meaning::End]);
    }
}
