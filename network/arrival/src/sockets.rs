//! The sockets at which everything arrives. Each takes what is for any address (`IP_TRANSPARENT`).

use std::io::{self, IoSliceMut};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream, UdpSocket,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::{Answers, Error, Sockets};

/// The port at which all of them listen, on the loopback addresses of the namespace.
pub(crate) const PORT: u16 = 9999;
/// Most connections that wait to be taken.
const BACKLOG: i32 = 1024;
/// Most bytes of a datagram.
pub const MAX_DATAGRAM: usize = 65_507;

/// Opens the sockets of an arrival.
pub(crate) fn open() -> Result<Sockets, Error> {
    let opened = || -> io::Result<_> {
        let [tcp4, tcp6] = [listener(Ipv4Addr::LOCALHOST.into())?, listener(Ipv6Addr::LOCALHOST.into())?];
        let [udp4, udp6] = [datagrams(Ipv4Addr::LOCALHOST.into())?, datagrams(Ipv6Addr::LOCALHOST.into())?];
        Ok(([tcp4, tcp6], [udp4, udp6], Answers::open()?))
    };
    let (connections, datagrams, answers) =
        opened().map_err(Error::of("open the sockets of a sandbox's network"))?;
    Ok(Sockets { connections, datagrams, answers })
}

/// The descriptors of sockets, for another process.
impl From<Sockets> for [OwnedFd; Sockets::COUNT] {
    fn from(sockets: Sockets) -> Self {
        let Sockets { connections: [tcp4, tcp6], datagrams: [udp4, udp6], answers } = sockets;
        [tcp4.into(), tcp6.into(), udp4.0.into(), udp6.0.into(), answers.v4, answers.v6]
    }
}

/// The sockets that another process opened, from its descriptors.
impl From<[OwnedFd; Sockets::COUNT]> for Sockets {
    fn from([tcp4, tcp6, udp4, udp6, v4, v6]: [OwnedFd; Self::COUNT]) -> Self {
        Self {
            connections: [tcp4.into(), tcp6.into()],
            datagrams: [Datagrams(udp4.into()), Datagrams(udp6.into())],
            answers: Answers { v4, v6 },
        }
    }
}

impl Sockets {
    /// Number of descriptors.
    pub const COUNT: usize = 6;
}

/// A socket that takes what is for any address, bound to one of the loopback's.
fn transparent(kind: SocketType, address: IpAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    // The option of IPv4 is that of both: Linux keeps one flag for a socket.
    setsockopt(&socket, sockopt::IpTransparent, &true)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    rustix::net::bind(&socket, &SocketAddr::new(address, PORT))?;
    Ok(socket)
}

fn listener(address: IpAddr) -> io::Result<TcpListener> {
    let socket = transparent(SocketType::STREAM, address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn datagrams(address: IpAddr) -> io::Result<Datagrams> {
    let socket = transparent(SocketType::DGRAM, address)?;
    if address.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv6OrigDstAddr, &true)?;
    }
    Ok(Datagrams(socket.into()))
}

/// The address and port that the guest wanted to connect to.
pub fn wanted(connection: &TcpStream) -> io::Result<SocketAddr> {
    connection.local_addr()
}

/// The guest's datagrams over one version of IP. Receiving does not wait.
#[derive(Debug)]
pub struct Datagrams(UdpSocket);

/// Where a datagram came from, and where it is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Datagram {
    /// Number of bytes.
    pub len: usize,
    /// The guest's address and port.
    pub from: SocketAddr,
    /// The address and port that the guest sent it to.
    pub wanted: SocketAddr,
}

impl Datagrams {
    /// Receives a datagram. `WouldBlock` if there is none.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Datagram> {
        receive(&self.0, buffer)
    }
}

/// Receives a datagram at one of the sockets of [`Datagrams`].
pub(crate) fn receive(socket: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<Datagram> {
    let mut control = nix::cmsg_space!(libc::sockaddr_in6);
    loop {
        let mut places = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut places, Some(&mut control), flags)?;
        let wanted = message.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Ipv4OrigDstAddr(address) => Some(v4(address)),
            ControlMessageOwned::Ipv6OrigDstAddr(address) => Some(v6(address)),
            _ => None,
        });
        let (len, from) = (message.bytes, message.address.as_ref().and_then(sender));
        // The kernel says both of every datagram.
        if let (Some(from), Some(wanted)) = (from, wanted) {
            return Ok(Datagram { len, from, wanted });
        }
    }
}

fn sender(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into())))
}

fn v4(address: libc::sockaddr_in) -> SocketAddr {
    let ip = Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes());
    SocketAddrV4::new(ip, u16::from_be(address.sin_port)).into()
}

fn v6(address: libc::sockaddr_in6) -> SocketAddr {
    let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
    SocketAddrV6::new(ip, u16::from_be(address.sin6_port), 0, 0).into()
}

impl AsFd for Datagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Datagrams> for UdpSocket {
    fn from(datagrams: Datagrams) -> Self {
        datagrams.0
    }
}
