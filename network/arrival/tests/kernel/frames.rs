//! Frames that no kernel sends, written to the TAP as a network device does it for a hostile guest.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use arrival::addresses::{GATEWAY_STATION, GATEWAY4, GATEWAY6, GUEST_STATION, GUEST4, GUEST6};
use arrival::{Arrival, Sockets};
use tap::Tap;
use virtio::net::{Frames, HEADER, MAX_PACKET};
use vm_memory::VolatileSlice;

use super::guest::{PATIENCE, possible, readable};
use super::receive;

const IPV4: [u8; 2] = [8, 0];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ARP: [u8; 2] = [8, 6];
const UDP: u8 = 17;

/// The guest's end, which sends what it wants.
struct Hostile {
    tap: Tap,
    sockets: Sockets,
    /// The port of the next honest datagram.
    port: u16,
}

impl Hostile {
    fn new() -> Option<Self> {
        let Arrival { tap, sockets } =
            possible().then(|| std::thread::spawn(Arrival::enter).join().unwrap().unwrap())?;
        Some(Self { tap, sockets, port: 1000 })
    }

    fn send(&mut self, kind: [u8; 2], payload: &[u8]) {
        let mut packet = [&[0; HEADER][..], &GATEWAY_STATION, &GUEST_STATION, &kind, payload].concat();
        // The kernel may refuse a frame; then it has not arrived, either.
        let _ = self.tap.send(&[VolatileSlice::from(&mut packet[..])]);
    }

    /// The next frame for the guest of this kind, without its Ethernet header, and whose it is.
    fn next(&mut self, kind: [u8; 2]) -> ([u8; 6], Vec<u8>) {
        let mut packet = vec![0; MAX_PACKET];
        loop {
            assert!(readable(self.tap.event(), PATIENCE), "no frame comes");
            let len = self.tap.receive(&[VolatileSlice::from(&mut packet[..])]).unwrap();
            let frame = &packet[HEADER..len];
            if frame[12..14] == kind {
                return (frame[..6].try_into().unwrap(), frame[14..].to_vec());
            }
        }
    }

    /// Sends an honest datagram, before which nothing has arrived, and gets its answer to the guest.
    fn still_works(&mut self, after: &str) {
        self.port += 1;
        for version in [0, 1] {
            let wanted: SocketAddr = match version {
                0 => (Ipv4Addr::new(203, 0, 113, 7), self.port).into(),
                _ => ("2001:db8::5".parse::<Ipv6Addr>().unwrap(), self.port).into(),
            };
            match wanted.ip() {
                std::net::IpAddr::V4(to) => self.send(IPV4, &ip4(0x45, GUEST4, to, UDP, &udp(self.port, 0))),
                std::net::IpAddr::V6(to) => self.send(IPV6, &ip6(GUEST6, to, UDP, &udp6(to, self.port))),
            }
            let (datagram, bytes) = receive(&self.sockets.datagrams[version]);
            assert_eq!((datagram.wanted, bytes), (wanted, b"frame".to_vec()), "after {after}");
            self.sockets.answers.send(wanted, datagram.from, b"answer").unwrap();
            let kind = [IPV4, IPV6][version];
            loop {
                let (station, packet) = self.next(kind);
                if packet.ends_with(b"answer") {
                    assert_eq!(station, GUEST_STATION, "after {after}");
                    break;
                }
            }
        }
    }
}

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let once = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((once & 0xffff) + (once >> 16)).unwrap()
}

/// A datagram from port 7, with a checksum or none.
fn udp(port: u16, checksum: u16) -> Vec<u8> {
    [&[0, 7][..], &port.to_be_bytes(), &[0, 13], &checksum.to_be_bytes(), b"frame"].concat()
}

fn udp6(to: Ipv6Addr, port: u16) -> Vec<u8> {
    let pseudo = [&GUEST6.octets()[..], &to.octets(), &[0, 0, 0, 13, 0, 0, 0, UDP], &udp(port, 0)].concat();
    udp(port, sum(&pseudo))
}

/// A packet of IPv4 whose first byte is `first`.
fn ip4(first: u8, from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let head = [first, 0, len[0], len[1], 0, 1, 0, 0, 64, protocol, 0, 0];
    checked([&head[..], &from.octets(), &to.octets(), payload].concat())
}

/// The packet of IPv4 with its header's checksum.
fn checked(mut packet: Vec<u8>) -> Vec<u8> {
    packet[10..12].fill(0);
    let sum = sum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn ip6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0x60, 0, 0, 0, len[0], len[1], next, 64][..], &from.octets(), &to.octets(), payload].concat()
}

#[test]
fn malformed_packets_do_not_arrive_and_stop_nothing() {
    let Some(mut guest) = Hostile::new() else { return };
    guest.still_works("nothing");
    let to = Ipv4Addr::new(203, 0, 113, 7);
    let good = ip4(0x45, GUEST4, to, UDP, &udp(9, 0));
    let changed = |at: usize, byte: u8| {
        let mut packet = good.clone();
        packet[at] = byte;
        checked(packet)
    };
    let mut bad_sum = good.clone();
    bad_sum[10] ^= 1;
    for (what, packet) in [
        ("a header of four words", ip4(0x44, GUEST4, to, UDP, &udp(9, 0))),
        ("a header longer than the packet", ip4(0x4f, GUEST4, to, UDP, &udp(9, 0))),
        ("a packet of no version", ip4(0x05, GUEST4, to, UDP, &udp(9, 0))),
        ("a packet longer than its frame", changed(2, 0xff)),
        ("a packet shorter than its header", changed(3, 19)),
        ("a false checksum", bad_sum),
        ("a datagram longer than its packet", changed(25, 200)),
        ("loopback as its target", ip4(0x45, GUEST4, Ipv4Addr::LOCALHOST, UDP, &udp(9999, 0))),
        ("no address as its target", ip4(0x45, GUEST4, Ipv4Addr::UNSPECIFIED, UDP, &udp(9999, 0))),
        ("a group as its target", ip4(0x45, GUEST4, Ipv4Addr::new(224, 0, 0, 251), UDP, &udp(5353, 0))),
        ("one byte", vec![0x45]),
        ("nothing", Vec::new()),
    ] {
        guest.send(IPV4, &packet);
        guest.still_works(what);
    }
    let to = "2001:db8::5".parse().unwrap();
    let datagram = udp6(to, 9);
    // A source route (RFC 5095), and one that is at its end but of no known type.
    let routed = [&[UDP, 2, 0, 1, 0, 0, 0, 0][..], &GATEWAY6.octets(), &datagram].concat();
    let mut short = ip6(GUEST6, to, UDP, &datagram);
    short[5] = 200;
    for (what, packet) in [
        ("a source route", ip6(GUEST6, to, 43, &routed)),
        ("a packet longer than its frame", short),
        ("loopback as its target", ip6(GUEST6, Ipv6Addr::LOCALHOST, UDP, &udp6(Ipv6Addr::LOCALHOST, 9999))),
        ("no checksum", ip6(GUEST6, to, UDP, &udp(9, 0))),
        ("one byte", vec![0x60]),
    ] {
        guest.send(IPV6, &packet);
        guest.still_works(what);
    }
    // A tag of a VLAN before the type.
    guest.send([0x81, 0], &[&[0, 5][..], &IPV4, &good].concat());
    guest.still_works("a VLAN's tag");
}

#[test]
fn the_guest_cannot_say_who_has_an_address() {
    let Some(mut guest) = Hostile::new() else { return };
    let other = [2, 0, 0, 0, 0, 9];
    for (operation, address) in [(1u8, GUEST4), (2, GUEST4), (1, GATEWAY4), (2, GATEWAY4)] {
        let head = [0, 1, 8, 0, 6, 4, 0, operation];
        let arp = [&head[..], &other, &address.octets(), &GATEWAY_STATION, &address.octets()].concat();
        guest.send(ARP, &arp);
        guest.still_works("ARP");
    }
    for address in [GUEST6, GATEWAY6] {
        // An advertisement that overrides, with another's Ethernet address.
        let mut body = [&[136, 0, 0, 0, 0x60, 0, 0, 0][..], &address.octets(), &[2, 1], &other].concat();
        let pseudo = [&GUEST6.octets()[..], &GATEWAY6.octets(), &[0, 0, 0, 32, 0, 0, 0, 58], &body].concat();
        let checksum = sum(&pseudo).to_be_bytes();
        body[2..4].copy_from_slice(&checksum);
        let mut packet = ip6(GUEST6, GATEWAY6, 58, &body);
        packet[7] = 255;
        guest.send(IPV6, &packet);
        guest.still_works("an advertisement");
    }
}

#[test]
fn fragments_that_never_end_stop_nothing() {
    let Some(mut guest) = Hostile::new() else { return };
    let to = Ipv4Addr::new(203, 0, 113, 7);
    let fragment = |id: u16, offset: u16, more: bool, payload: &[u8]| {
        let mut packet = ip4(0x45, GUEST4, to, UDP, payload);
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        packet[6..8].copy_from_slice(&((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
        checked(packet)
    };
    for id in 0..10_000 {
        guest.send(IPV4, &fragment(id, 0, true, &udp(9, 0)[..8]));
    }
    guest.still_works("fragments");
    // One datagram in fragments that overlap.
    let whole = [udp(9, 0), vec![0; 3]].concat();
    guest.send(IPV4, &fragment(20_000, 0, true, &whole));
    guest.send(IPV4, &fragment(20_000, 8, false, b"other"));
    guest.still_works("fragments that overlap");
}

#[test]
fn other_protocols_are_prohibited() {
    let Some(mut guest) = Hostile::new() else { return };
    // ICMP's other questions, IGMP, GRE, ESP, and numbers that are nobody's.
    for (protocol, payload) in [(1u8, 13u8), (2, 0x16), (47, 0), (50, 0), (0, 0), (255, 0)] {
        let mut body = vec![0; 20];
        body[0] = payload;
        let sum = sum(&body);
        body[2..4].copy_from_slice(&sum.to_be_bytes());
        guest.send(IPV4, &ip4(0x45, GUEST4, GATEWAY4, protocol, &body));
        let (_, packet) = guest.next(IPV4);
        assert_eq!((packet[9], &packet[20..22]), (1, &[3, 13][..]), "protocol {protocol}");
    }
    guest.still_works("other protocols");
}
