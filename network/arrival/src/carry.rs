//! All that arrives goes to `egress`, and what comes back to the guest.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use egress::{Datagram, Datagrams, Flow, Flows};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;

use super::sockets::receive;
use super::{Answers, MAX_DATAGRAM, Sockets};

/// Most datagrams that are taken in a row.
const TURN: usize = 32;

impl Sockets {
    /// Carries all that arrives until something goes wrong for good, or nobody sends `answers` any more. Called within a
    /// runtime, on which connections are carried.
    pub async fn carry(
        self,
        flows: Arc<Flows>,
        datagrams: Arc<Datagrams>,
        mut answers: mpsc::Receiver<Datagram>,
    ) -> io::Result<()> {
        let Self { connections: [tcp4, tcp6], datagrams: [udp4, udp6], answers: back } = self;
        let [tcp4, tcp6] = [TcpListener::from_std(tcp4)?, TcpListener::from_std(tcp6)?];
        let [udp4, udp6] = [UdpSocket::from_std(udp4.into())?, UdpSocket::from_std(udp6.into())?];
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            tokio::select! {
                accepted = tcp4.accept() => connection(accepted, &flows)?,
                accepted = tcp6.accept() => connection(accepted, &flows)?,
                readable = udp4.readable() => readable.and_then(|()| take(&udp4, &mut buffer, &datagrams, &back))?,
                readable = udp6.readable() => readable.and_then(|()| take(&udp6, &mut buffer, &datagrams, &back))?,
                answer = answers.recv() => match answer {
                    // A datagram that is too long for the guest, or for which there is no room, is lost.
                    Some(Datagram { source, destination, bytes }) => {
                        let _ = back.send(source, destination, &bytes);
                    }
                    None => return Ok(()),
                },
            }
        }
    }
}

/// Has a connection carried. One that the guest has reset before it was taken is no error.
fn connection(accepted: io::Result<(TcpStream, SocketAddr)>, flows: &Arc<Flows>) -> io::Result<()> {
    let (stream, source) = match accepted {
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return Ok(()),
        accepted => accepted?,
    };
    // A connection that is gone has no address any more.
    let Ok(destination) = stream.local_addr() else { return Ok(()) };
    let flows = Arc::clone(flows);
    tokio::spawn(async move { flows.carry(Flow { stream, source, destination }).await });
    Ok(())
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
