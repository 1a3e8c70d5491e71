//! All the way: from a guest through its TAP to servers in a third network namespace, whose addresses count as public.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use arrival::Sockets;
use egress::{Dns, DnsSettings, Flows, Shared, audit};
use egress_policy::{Policy, WantedPolicy};
use nix::sched::{CloneFlags, unshare};

use super::guest::{PATIENCE, apart};

/// The servers' addresses, one in each version of IP, and a private one.
const SERVERS: [&str; 2] = ["203.0.113.7:7000", "[2001:db8::5]:7000"];
const PRIVATE: [&str; 2] = ["10.0.0.1:7000", "[fd00::5]:7000"];

/// The world outside, in a network namespace of its own: servers that say everything back, and egress, which says when
/// it is ready, and ends with the process.
fn outside(sockets: Sockets, ready: &Sender<()>) {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    for command in [
        "link set lo up",
        "addr add 203.0.113.7/32 dev lo",
        "addr add 10.0.0.1/32 dev lo",
        "addr add 2001:db8::5/128 dev lo nodad",
        "addr add fd00::5/128 dev lo nodad",
    ] {
        assert!(Command::new("ip").args(command.split(' ')).status().unwrap().success(), "ip {command}");
    }
    for address in SERVERS.into_iter().chain(PRIVATE) {
        let (tcp, udp) = (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
        std::thread::spawn(move || {
            for stream in tcp.incoming().map(Result::unwrap) {
                let mut reader = stream.try_clone().unwrap();
                std::thread::spawn(move || std::io::copy(&mut reader, &mut &stream));
            }
        });
        std::thread::spawn(move || {
            let mut bytes = [0; 65_536];
            loop {
                let (len, from) = udp.recv_from(&mut bytes).unwrap();
                udp.send_to(&bytes[..len], from).unwrap();
            }
        });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (queue, _events) = audit::queue(1000);
        let hosts = vec![("db.test".parse().unwrap(), "203.0.113.7".parse().unwrap())];
        let shared = Shared::new(Policy::new(&WantedPolicy::default()).unwrap(), hosts, queue);
        let dns = Arc::new(Dns::new(shared.clone(), DnsSettings { servers: Vec::new(), ipv6: true }));
        let flows = Arc::new(Flows::new(shared.clone(), dns.clone()));
        let (sender, answers) = tokio::sync::mpsc::channel(64);
        let datagrams = Arc::new(egress::Datagrams::new(shared, dns, sender));
        ready.send(()).unwrap();
        sockets.carry(flows, datagrams, answers).await.unwrap();
    });
}

/// Runs `test` as a guest of a sandbox with a way out.
fn with_a_way_out(test: fn()) {
    apart(move |sockets| {
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || outside(sockets, &ready));
        is_ready.recv().unwrap();
        test();
    });
}

fn udp(address: &str) -> UdpSocket {
    let address: SocketAddr = address.parse().unwrap();
    let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    socket.connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

#[test]
fn what_is_allowed_reaches_its_server_and_comes_back() {
    with_a_way_out(|| {
        for address in SERVERS {
            let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), PATIENCE).unwrap();
            let sent: Vec<u8> = (0..4u32 << 20).map(|byte| u8::try_from(byte % 251).unwrap()).collect();
            let (mut writer, data) = (stream.try_clone().unwrap(), sent.clone());
            let writer = std::thread::spawn(move || {
                writer.write_all(&data).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            writer.join().unwrap();
            assert!(received == sent);
            let socket = udp(address);
            for len in [1, 1400, 20_000] {
                let sent = vec![7; len];
                socket.send(&sent).unwrap();
                let mut bytes = vec![0; 65_536];
                assert_eq!(socket.recv(&mut bytes).unwrap(), len);
                assert!(bytes[..len] == sent);
            }
        }
    });
}

#[test]
fn what_is_denied_is_reset_or_prohibited() {
    with_a_way_out(|| {
        for address in PRIVATE {
            // The reset may be quick enough to be an error of the connection's.
            let end = TcpStream::connect_timeout(&address.parse().unwrap(), PATIENCE)
                .and_then(|mut stream| stream.read(&mut [0; 1]));
            assert_eq!(end.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
            let socket = udp(address);
            socket.send(b"hello").unwrap();
            let error = socket.recv(&mut [0; 10]).unwrap_err();
            // The kernel's words for "prohibited by an administrator".
            let expected =
                if socket.local_addr().unwrap().is_ipv4() { libc::EHOSTUNREACH } else { libc::EACCES };
            assert_eq!(error.raw_os_error(), Some(expected), "{error}");
        }
    });
}

#[test]
fn every_server_of_names_is_the_sandbox_s_own() {
    with_a_way_out(|| {
        // A question for the address of `db.test`.
        let question =
            [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x02db\x04test\0", &[0, 1, 0, 1]].concat();
        for address in ["8.8.8.8:53", "198.18.0.1:53", "[2001:4860:4860::8888]:53", "[fd6d:6c6b::1]:53"] {
            let socket = udp(address);
            socket.send(&question).unwrap();
            let mut bytes = [0; 512];
            let len = socket.recv(&mut bytes).unwrap();
            assert!(bytes[..len].starts_with(&[0x12, 0x34]), "{address}");
            assert!(bytes[..len].windows(4).any(|bytes| bytes == [203, 0, 113, 7]), "{address}");
            let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), PATIENCE).unwrap();
            let len = u16::try_from(question.len()).unwrap().to_be_bytes();
            stream.write_all(&[&len[..], &question].concat()).unwrap();
            let mut len = [0; 2];
            stream.read_exact(&mut len).unwrap();
            let mut reply = vec![0; usize::from(u16::from_be_bytes(len))];
            stream.read_exact(&mut reply).unwrap();
            assert!(reply.windows(4).any(|bytes| bytes == [203, 0, 113, 7]), "{address}");
        }
    });
}
