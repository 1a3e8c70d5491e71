//! Datagrams for the guest, from any address.
//!
//! They go out through raw sockets, with headers of our own: a UDP socket has one address, the addresses that a guest
//! asks cannot be known beforehand, and to make a socket for each takes a power that nobody keeps. A taken-over
//! process reaches its own guest through these sockets and nobody else.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto};

use super::links::MTU;

/// Most bytes of a datagram for the guest: 34 less than the longest one over IPv4, which no interface carries whole.
pub const MAX_ANSWER: usize = MTU as usize - 48;
/// UDP.
const PROTOCOL: u8 = 17;
/// Bytes of UDP's header.
const HEADER: usize = 8;

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
        let packet = packet(from, to, data).ok_or(io::ErrorKind::InvalidInput)?;
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        // A raw socket knows no ports.
        let target = SocketAddr::new(to.ip(), 0);
        rustix::net::sendto(socket, &packet, SendFlags::DONTWAIT, &target)?;
        Ok(())
    }
}

/// The packet of a datagram, unless it is too long or its addresses are of two kinds.
fn packet(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Option<Vec<u8>> {
    if data.len() > MAX_ANSWER {
        return None;
    }
    let len = u16::try_from(HEADER + data.len()).ok()?;
    let (mut packet, pseudo) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            (header4(from, to, len)?, [from.octets(), to.octets()].concat())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => (header6(from, to, len), [from.octets(), to.octets()].concat()),
        _ => return None,
    };
    let mut header = [0; HEADER];
    for (place, number) in header.chunks_mut(2).zip([from.port(), to.port(), len]) {
        place.copy_from_slice(&number.to_be_bytes());
    }
    let sum = [&pseudo[..], &[0, PROTOCOL], &len.to_be_bytes(), &header, data].into_iter().map(sum).sum();
    // RFC 768: "If the computed checksum is zero, it is transmitted as all ones".
    let checksum = match !fold(sum) {
        0 => u16::MAX,
        checksum => checksum,
    };
    header[6..].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(header);
    packet.extend(data);
    Some(packet)
}

/// A header of IPv4 before `len` bytes. The kernel fills in its checksum and its length.
fn header4(from: Ipv4Addr, to: Ipv4Addr, len: u16) -> Option<Vec<u8>> {
    let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, PROTOCOL, 0, 0];
    header[2..4].copy_from_slice(&len.checked_add(20)?.to_be_bytes());
    header.extend(from.octets());
    header.extend(to.octets());
    Some(header)
}

/// A header of IPv6 before `len` bytes.
fn header6(from: Ipv6Addr, to: Ipv6Addr, len: u16) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0, 0, 0, PROTOCOL, 64];
    header[4..6].copy_from_slice(&len.to_be_bytes());
    header.extend(from.octets());
    header.extend(to.octets());
    header
}

/// The sum of 16-bit words (RFC 1071); only the last piece that is summed up may have an odd number of bytes.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)));
    words.sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > u64::from(u16::MAX) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_packet_has_its_addresses_and_a_checksum_that_adds_up() {
        for (from, to, header, addresses) in
            [("8.8.8.8:53", "198.18.0.2:40000", 20, 12), ("[2001:db8::1]:53", "[fd00::2]:40000", 40, 8)]
        {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            for data in [&b""[..], b"a", b"answer", &[0xff; 999]] {
                let packet = packet(from, to, data).unwrap();
                assert_eq!(packet.len(), header + HEADER + data.len());
                assert_eq!(packet[header..header + 4], [0, 53, 0x9c, 0x40]);
                assert_eq!(&packet[header + HEADER..], data);
                let len = u16::try_from(HEADER + data.len()).unwrap().to_be_bytes();
                let parts = [&packet[addresses..header], &[0, PROTOCOL], &len, &packet[header..]];
                assert_eq!(fold(parts.into_iter().map(sum).sum()), u16::MAX);
            }
        }
    }

    #[test]
    fn what_makes_no_packet_is_refused() {
        let (v4, v6) = ("1.2.3.4:5".parse().unwrap(), "[::1]:5".parse().unwrap());
        assert_eq!(packet(v4, v6, b""), None);
        assert_eq!(packet(v6, v4, b""), None);
        assert!(packet(v4, v4, &[0; MAX_ANSWER]).is_some());
        assert_eq!(packet(v4, v4, &[0; MAX_ANSWER + 1]), None);
    }
}
