//! Packets for the guest, from any address: datagrams, and messages that one of its own is prohibited.
//!
//! They go out through raw sockets, with headers of our own: a UDP socket has one address, the addresses that a guest
//! asks cannot be known beforehand, and to make a socket for each takes a power that nobody keeps. A taken-over process
//! reaches its own guest through these sockets and nobody else.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto};

use super::addresses::{GATEWAY4, GATEWAY6};
use super::links::MTU;

/// Most bytes of a datagram for the guest: 34 less than the longest one over IPv4, which no interface carries whole.
pub const MAX_ANSWER: usize = MTU as usize - 48;

/// Numbers of protocols.
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

/// Bytes of UDP's header.
const UDP_HEADER: usize = 8;

/// Type and code of "prohibited by an administrator" (RFC 1812 §5.2.7.1, RFC 4443 §3.1).
const PROHIBITED4: [u8; 2] = [3, 13];
const PROHIBITED6: [u8; 2] = [1, 1];

/// The way back for datagrams.
#[derive(Debug)]
pub struct Answers {
    pub(crate) v4: OwnedFd,
    pub(crate) v6: OwnedFd,
}

impl Answers {
    pub(crate) fn open() -> io::Result<Self> {
        let raw = |family| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            rustix::net::socket_with(family, SocketType::RAW, flags, Some(ipproto::RAW))
        };
        Ok(Self { v4: raw(AddressFamily::INET)?, v6: raw(AddressFamily::INET6)? })
    }

    /// Sends `data` from `from`, which may be any address, to the guest's `to`. Both are of the same version of IP, and
    /// `data` is no longer than [`MAX_ANSWER`] (`InvalidInput` otherwise). The call does not wait: a datagram for which
    /// there is no room is lost (`WouldBlock`).
    pub fn send(&self, from: SocketAddr, to: SocketAddr, data: &[u8]) -> io::Result<()> {
        self.send_packet(to.ip(), datagram(from, to, data))
    }

    /// Tells the guest that what it sent from `from` to `wanted` is prohibited. The rest is as for [`Self::send`].
    pub fn prohibit(&self, from: SocketAddr, wanted: SocketAddr) -> io::Result<()> {
        self.send_packet(from.ip(), prohibition(from, wanted))
    }

    fn send_packet(&self, to: IpAddr, packet: Option<Vec<u8>>) -> io::Result<()> {
        let packet = packet.ok_or(io::ErrorKind::InvalidInput)?;
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        // A raw socket knows no ports.
        rustix::net::sendto(socket, &packet, SendFlags::DONTWAIT, &SocketAddr::new(to, 0))?;
        Ok(())
    }
}

/// The packet of a datagram, unless it is too long or its addresses are of two kinds.
fn datagram(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Option<Vec<u8>> {
    if data.len() > MAX_ANSWER {
        return None;
    }
    let len = u16::try_from(UDP_HEADER + data.len()).ok()?;
    let mut body = Vec::with_capacity(usize::from(len));
    for number in [from.port(), to.port(), len, 0] {
        body.extend(number.to_be_bytes());
    }
    body.extend(data);
    let pseudo = pseudo_header(from.ip(), to.ip(), UDP, len)?;
    // RFC 768: "If the computed checksum is zero, it is transmitted as all ones".
    let checksum = match checksum(&[&pseudo, &body]) {
        0 => u16::MAX,
        checksum => checksum,
    };
    body[6..8].copy_from_slice(&checksum.to_be_bytes());
    packet(from.ip(), to.ip(), UDP, &body)
}

/// The packet that says that a datagram from `from` to `wanted` is prohibited. It begins as that datagram did, by which
/// the sender knows it, except for lengths and checksums, which nobody looks at.
fn prohibition(from: SocketAddr, wanted: SocketAddr) -> Option<Vec<u8>> {
    let ports = [from.port().to_be_bytes(), wanted.port().to_be_bytes(), [0, 8], [0, 0]].concat();
    let original = packet(from.ip(), wanted.ip(), UDP, &ports)?;
    let (gateway, protocol, kind) = match from.ip() {
        IpAddr::V4(_) => (IpAddr::V4(GATEWAY4), ICMP, PROHIBITED4),
        IpAddr::V6(_) => (IpAddr::V6(GATEWAY6), ICMPV6, PROHIBITED6),
    };
    let mut body = [&kind[..], &[0; 6], &original].concat();
    let len = u16::try_from(body.len()).ok()?;
    // The checksum of the older one has no addresses in it.
    let pseudo =
        if protocol == ICMP { Vec::new() } else { pseudo_header(gateway, from.ip(), protocol, len)? };
    let checksum = checksum(&[&pseudo, &body]);
    body[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet(gateway, from.ip(), protocol, &body)
}

/// A packet of IP. Over IPv4, the kernel fills in the checksum of the header, which is nobody's here.
fn packet(from: IpAddr, to: IpAddr, protocol: u8, body: &[u8]) -> Option<Vec<u8>> {
    let len = u16::try_from(body.len()).ok()?;
    Some(match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [&header4(from, to, protocol, len)?, body].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [&header6(from, to, protocol, len)[..], body].concat(),
        _ => return None,
    })
}

/// A header of IPv4 before `len` bytes, which may not be cut on their way.
fn header4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, len: u16) -> Option<Vec<u8>> {
    let [high, low] = len.checked_add(20)?.to_be_bytes();
    let head = [0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    Some([&head[..], &from.octets(), &to.octets()].concat())
}

/// A header of IPv6 before `len` bytes.
fn header6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, len: u16) -> Vec<u8> {
    let [high, low] = len.to_be_bytes();
    [&[0x60, 0, 0, 0, high, low, protocol, 64][..], &from.octets(), &to.octets()].concat()
}

/// The bytes of the header of IP that a checksum covers (RFC 768, RFC 8200 §8.1; the sums of both forms are equal).
fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, len: u16) -> Option<Vec<u8>> {
    let addresses = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
        _ => return None,
    };
    Some([&addresses[..], &[0, protocol], &len.to_be_bytes()].concat())
}

/// The checksum of parts (RFC 1071), of which only the last may have an odd number of bytes.
fn checksum(parts: &[&[u8]]) -> u16 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u64 = parts.iter().flat_map(|part| part.chunks(2)).map(word).sum();
    while sum > u64::from(u16::MAX) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// Pairs of addresses, the length of IP's header, and where its addresses begin.
    fn pairs() -> [(SocketAddr, SocketAddr, usize, usize); 2] {
        let of = |from: &str, to: &str, header, addresses| {
            (from.parse().unwrap(), to.parse().unwrap(), header, addresses)
        };
        [of("8.8.8.8:53", "198.18.0.2:40000", 20, 12), of("[2001:db8::1]:53", "[fd00::2]:40000", 40, 8)]
    }

    #[test]
    fn a_packet_has_its_addresses_and_a_checksum_that_adds_up() {
        for (from, to, header, addresses) in pairs() {
            for data in [&b""[..], b"a", b"answer", &[0xff; 999]] {
                let packet = datagram(from, to, data).unwrap();
                assert_eq!(packet.len(), header + UDP_HEADER + data.len());
                assert_eq!(packet[header..header + 4], [0, 53, 0x9c, 0x40]);
                assert_eq!(&packet[header + UDP_HEADER..], data);
                let len = u16::try_from(UDP_HEADER + data.len()).unwrap().to_be_bytes();
                let parts = [&packet[addresses..header], &[0, UDP], &len, &packet[header..]];
                assert_eq!(checksum(&parts), 0);
            }
        }
    }

    #[test]
    fn a_prohibition_shows_the_datagram_it_is_about() {
        for (wanted, from, header, addresses) in pairs() {
            let packet = prohibition(from, wanted).unwrap();
            let message = &packet[header..];
            let original = datagram(from, wanted, b"").unwrap();
            let ports = header..header + 4;
            assert_eq!(message[8..][ports.clone()], original[ports]);
            assert_eq!(message[8..][addresses..header], original[addresses..header]);
            let pseudo = pseudo_header(GATEWAY6.into(), from.ip(), ICMPV6, 56).unwrap_or_default();
            assert_eq!(checksum(&[&pseudo, message]), 0);
        }
    }

    #[test]
    fn what_makes_no_packet_is_refused() {
        let (v4, v6) = ("1.2.3.4:5".parse().unwrap(), "[::1]:5".parse().unwrap());
        assert_eq!(datagram(v4, v6, b""), None);
        assert_eq!(datagram(v6, v4, b""), None);
        assert_eq!(prohibition(v4, v6), None);
        assert!(datagram(v4, v4, &[0; MAX_ANSWER]).is_some());
        assert_eq!(datagram(v4, v4, &[0; MAX_ANSWER + 1]), None);
    }
}
