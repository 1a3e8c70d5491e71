//! A sandbox's network of the kernel's, with another network namespace in place of its guest: the kernel there connects
//! to any address, and everything arrives.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod carry;
mod frames;
mod guest;
mod program;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use arrival::addresses::{GATEWAY4, GATEWAY6, GUEST4, GUEST6};
use arrival::{Arrival, Datagram, Datagrams, MAX_ANSWER, MAX_DATAGRAM, Sockets, wanted};
use guest::{PATIENCE, apart, readable};
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::nftables::{GenAttribute, GenMessage, NfTablesMessage};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use nix::sched::{CloneFlags, unshare};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto};

/// Addresses of all kinds: somebody's, the gateway, networks of sites, a metadata service, a listener's own.
const TARGETS: [&str; 11] = [
    "203.0.113.7:80",
    "8.8.8.8:1",
    "10.1.2.3:65535",
    "169.254.169.254:80",
    "198.18.0.1:22",
    "198.18.0.1:9999",
    "[2001:db8::5]:443",
    "[2606:4700::1111]:853",
    "[fd00:ec2::254]:80",
    "[fd6d:6c6b::1]:53",
    "[fd6d:6c6b::1]:9999",
];

fn version(address: &SocketAddr) -> usize {
    usize::from(address.is_ipv6())
}

fn guest_address(of: &SocketAddr) -> IpAddr {
    if of.is_ipv4() { GUEST4.into() } else { GUEST6.into() }
}

/// The next connection that arrives.
fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    assert!(readable(listener.as_fd(), PATIENCE), "no connection arrives");
    let (stream, peer) = listener.accept().unwrap();
    stream.set_nonblocking(false).unwrap();
    (stream, peer)
}

/// The next datagram that arrives.
fn receive(datagrams: &Datagrams) -> (Datagram, Vec<u8>) {
    assert!(readable(datagrams.as_fd(), PATIENCE), "no datagram arrives");
    let mut bytes = vec![0; MAX_DATAGRAM];
    let datagram = datagrams.receive(&mut bytes).unwrap();
    bytes.truncate(datagram.len);
    (datagram, bytes)
}

#[test]
fn connections_to_any_address_arrive_and_are_answered_from_it() {
    apart(|Sockets { connections, .. }| {
        for target in TARGETS.map(|target| target.parse::<SocketAddr>().unwrap()) {
            let mut guest = TcpStream::connect_timeout(&target, PATIENCE).unwrap();
            let (mut host, peer) = accept(&connections[version(&target)]);
            assert_eq!(wanted(&host).unwrap(), target);
            assert_eq!(peer, guest.local_addr().unwrap());
            assert_eq!(peer.ip(), guest_address(&target));
            guest.write_all(b"ping").unwrap();
            let mut bytes = [0; 4];
            host.read_exact(&mut bytes).unwrap();
            host.write_all(b"pong").unwrap();
            guest.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"pong");
        }
    });
}

#[test]
fn connections_carry_much_in_both_directions() {
    apart(|Sockets { connections, .. }| {
        for target in ["203.0.113.7:80", "[2001:db8::5]:80"].map(|target| target.parse().unwrap()) {
            let data: Vec<u8> = (0..8u32 << 20).map(|byte| u8::try_from(byte % 251).unwrap()).collect();
            let guest = TcpStream::connect_timeout(&target, PATIENCE).unwrap();
            let (host, _) = accept(&connections[version(&target)]);
            for (from, to) in [(&guest, &host), (&host, &guest)] {
                let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let sent = data.clone();
                let writer = std::thread::spawn(move || {
                    from.write_all(&sent).unwrap();
                    from.shutdown(std::net::Shutdown::Write).unwrap();
                });
                let mut received = Vec::new();
                to.read_to_end(&mut received).unwrap();
                writer.join().unwrap();
                assert!(received == data);
            }
        }
    });
}

#[test]
fn datagrams_to_any_address_arrive_and_are_answered_from_it() {
    apart(|Sockets { datagrams, answers, .. }| {
        for target in TARGETS.map(|target| target.parse::<SocketAddr>().unwrap()) {
            let from = SocketAddr::new(guest_address(&target), 0);
            let guest = UdpSocket::bind(from).unwrap();
            guest.set_read_timeout(Some(PATIENCE)).unwrap();
            // Such a socket takes answers from there and from nowhere else.
            guest.connect(target).unwrap();
            for len in [0, 1, 1452, 9000, MAX_DATAGRAM] {
                let data = vec![0x5a; len];
                guest.send(&data).unwrap();
                let (datagram, bytes) = receive(&datagrams[version(&target)]);
                let expected = Datagram { len, from: guest.local_addr().unwrap(), wanted: target };
                assert_eq!((datagram, bytes == data), (expected, true));
                // Answers are not held to the limit of the guest's own packets.
                let answer = &data[..len.min(MAX_ANSWER)];
                answers.send(datagram.wanted, datagram.from, answer).unwrap();
                let mut bytes = vec![0; MAX_DATAGRAM + 1];
                let len = guest.recv(&mut bytes).unwrap();
                assert!(bytes[..len] == *answer);
            }
        }
    });
}

/// A packet of the guest's own, from `source` to `target`, with options of IPv4 if there are any.
fn crafted(source: IpAddr, target: SocketAddr, options: &[u8]) -> Vec<u8> {
    let mut udp = [&7u16.to_be_bytes()[..], &target.port().to_be_bytes(), &[0, 12, 0, 0], b"fake"].concat();
    match (source, target.ip()) {
        (IpAddr::V4(source), IpAddr::V4(to)) => {
            let words = u8::try_from(5 + options.len() / 4).unwrap();
            let head = [0x40 | words, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
            [&head[..], &source.octets(), &to.octets(), options, &udp].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(to)) => {
            // Over IPv6 a checksum is needed: the complement of the sum of all words and of those of the addresses.
            let summed = [&source.octets()[..], &to.octets(), &[0, 17, 0, 12], &udp].concat();
            let sum: u32 = summed.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
            let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
            udp[6..8].copy_from_slice(&sum.to_be_bytes());
            [&[0x60, 0, 0, 0, 0, 12, 17, 64][..], &source.octets(), &to.octets(), &udp].concat()
        }
        _ => unreachable!("both are of one version"),
    }
}

fn send_raw(packet: &[u8], to: IpAddr) {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket(family, SocketType::RAW, Some(ipproto::RAW)).unwrap();
    rustix::net::sendto(&socket, packet, SendFlags::empty(), &SocketAddr::new(to, 0)).unwrap();
}

#[test]
fn packets_with_a_false_source_or_with_options_do_not_arrive() {
    apart(|Sockets { datagrams, .. }| {
        let target4: SocketAddr = "203.0.113.7:53".parse().unwrap();
        for source in ["198.18.0.1", "198.18.0.3", "203.0.113.7", "127.0.0.1", "10.0.0.1"] {
            send_raw(&crafted(source.parse().unwrap(), target4, &[]), target4.ip());
        }
        // Loose and strict source routes, a record of the route, timestamps, and padding.
        for kind in [131, 137, 7, 68] {
            send_raw(&crafted(GUEST4.into(), target4, &[kind, 7, 4, 1, 2, 3, 4, 0]), target4.ip());
        }
        send_raw(&crafted(GUEST4.into(), target4, &[1, 1, 1, 1]), target4.ip());
        let target6: SocketAddr = "[2001:db8::5]:53".parse().unwrap();
        for source in ["fd6d:6c6b::1", "fd6d:6c6b::3", "2001:db8::5", "fe80::2", "::1"] {
            send_raw(&crafted(source.parse().unwrap(), target6, &[]), target6.ip());
        }
        // The last ones are like the others but for that, and arrive, before which nothing came.
        for (target, source) in [(target4, IpAddr::from(GUEST4)), (target6, IpAddr::from(GUEST6))] {
            send_raw(&crafted(source, target, &[]), target.ip());
            let expected = Datagram { len: 4, from: SocketAddr::new(source, 7), wanted: target };
            assert_eq!(receive(&datagrams[version(&target)]), (expected, b"fake".to_vec()));
        }
        let mut bytes = [0; 8];
        for datagrams in datagrams {
            assert_eq!(datagrams.receive(&mut bytes).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        }
    });
}

/// The next message of ICMP for the guest that is not of discovery: its type and code.
fn message(socket: impl AsFd, is_v4: bool) -> [u8; 2] {
    let mut bytes = [0; 2000];
    loop {
        assert!(readable(socket.as_fd(), PATIENCE), "no message comes");
        let (len, _) = rustix::net::recv(&socket, &mut bytes[..], RecvFlags::empty()).unwrap();
        let header = if is_v4 { usize::from(bytes[0] & 15) * 4 } else { 0 };
        let found = [bytes[header], bytes[header + 1]];
        // The guest hears its own questions to itself, and those of discovery.
        let is_noise = if is_v4 { found[0] == 8 } else { found[0] >= 128 && found[0] != 129 };
        if len > header && !is_noise {
            return found;
        }
    }
}

#[test]
fn only_the_gateway_answers_a_ping_and_all_other_protocols_are_prohibited() {
    apart(|_sockets| {
        let ping = |kind: u8| {
            // A question of one word, whose checksum is its complement.
            let sum = !(u16::from(kind) << 8);
            [&[kind, 0][..], &sum.to_be_bytes(), &[0; 4]].concat()
        };
        let v4 = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).unwrap();
        let v6 = rustix::net::socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6)).unwrap();
        let to = |address: &str| SocketAddr::new(address.parse().unwrap(), 0);
        let ask = |address: &str| {
            let address = to(address);
            let (socket, kind) = if address.is_ipv4() { (&v4, 8) } else { (&v6, 128) };
            rustix::net::sendto(socket, &ping(kind), SendFlags::empty(), &address).unwrap();
            message(socket, address.is_ipv4())
        };
        assert_eq!(ask(&GATEWAY4.to_string()), [0, 0]);
        assert_eq!(ask(&GATEWAY6.to_string()), [129, 0]);
        assert_eq!(ask("8.8.8.8"), [3, 13]);
        assert_eq!(ask("2001:db8::5"), [1, 1]);
        // SCTP, to anybody and to the gateway.
        let sctp = |family| rustix::net::socket(family, SocketType::RAW, Some(ipproto::SCTP)).unwrap();
        for address in ["203.0.113.7", "198.18.0.1"] {
            rustix::net::sendto(sctp(AddressFamily::INET), &[0; 12], SendFlags::empty(), &to(address))
                .unwrap();
            assert_eq!(message(&v4, true), [3, 13]);
        }
        for address in ["2001:db8::5", "fd6d:6c6b::1"] {
            rustix::net::sendto(sctp(AddressFamily::INET6), &[0; 12], SendFlags::empty(), &to(address))
                .unwrap();
            assert_eq!(message(&v6, false), [1, 1]);
        }
    });
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The number of the host's set of nftables rules, which every change increases.
fn generation() -> u32 {
    let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_NETFILTER).unwrap();
    socket.bind_auto().unwrap();
    let question = NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() });
    let question = NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0), question);
    let mut question = NetlinkMessage::from(question);
    question.header.flags = NLM_F_REQUEST;
    question.finalize();
    let mut bytes = vec![0; question.buffer_len()];
    question.serialize(&mut bytes);
    socket.send_to(&bytes, &netlink_sys::SocketAddr::new(0, 0), 0).unwrap();
    let (answer, _) = socket.recv_from_full().unwrap();
    let answer = NetlinkMessage::<NetfilterMessage>::deserialize(&answer).unwrap();
    let NetlinkPayload::InnerMessage(answer) = answer.payload else { panic!("{answer:?}") };
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewGen(GenMessage { attributes })) = answer.inner
    else {
        panic!("{answer:?}")
    };
    let of_set = |attribute: &GenAttribute| match attribute {
        GenAttribute::Id(id) => Some(*id),
        _ => None,
    };
    attributes.iter().find_map(of_set).unwrap()
}

/// All that a thread's network has.
fn of_this_network() -> (u32, [String; 5]) {
    let lists = [
        output("ip", &["-br", "addr"]),
        output("ip", &["rule"]),
        output("ip", &["-6", "rule"]),
        output("ip", &["route", "show", "table", "all"]),
        output("ip", &["netns"]),
    ];
    (generation(), lists)
}

#[test]
fn the_network_of_the_host_stays_as_it_was() {
    if !guest::possible() {
        return;
    }
    // A network of the test's own takes the host's place: in that one others come and go.
    let host = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let before = of_this_network();
        let arrival = std::thread::spawn(Arrival::enter).join().unwrap().unwrap();
        assert_eq!(of_this_network(), before);
        drop(arrival);
        assert_eq!(of_this_network(), before);
    });
    host.join().unwrap();
}

#[test]
fn many_sandboxes_have_the_same_addresses_and_do_not_meet() {
    if !guest::possible() {
        return;
    }
    let mut arrivals: Vec<_> =
        (0..20).map(|_| std::thread::spawn(Arrival::enter).join().unwrap().unwrap()).collect();
    for arrival in &arrivals {
        assert!(!readable(arrival.sockets.connections[0].as_fd(), Duration::ZERO));
    }
    guest::behind(arrivals.remove(0), move |sockets| {
        let _guest = TcpStream::connect_timeout(&"203.0.113.7:80".parse().unwrap(), PATIENCE).unwrap();
        accept(&sockets.connections[0]);
        for other in &arrivals {
            assert!(!readable(other.sockets.connections[0].as_fd(), Duration::ZERO));
        }
    });
}
