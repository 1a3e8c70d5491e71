//! A process that is short of descriptors for a while carries on afterwards. By itself, as the limit is the process'.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use arrival::Sockets;
use egress::{Datagram, Datagrams, Dns, DnsSettings, Flows, Shared, audit};
use egress_policy::{Policy, WantedPolicy};
use rustix::net::{AddressFamily, SocketType, connect, socket};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::mpsc;

/// Sockets of the kind, at the loopback interface.
fn sockets() -> (Sockets, std::net::SocketAddr) {
    let tcp = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let udp = || OwnedFd::from(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let listener = tcp();
    let address = listener.local_addr().unwrap();
    let all: [OwnedFd; 6] = [listener.into(), tcp().into(), udp(), udp(), udp(), udp()];
    for socket in &all {
        rustix::io::ioctl_fionbio(socket, true).unwrap();
    }
    (all.into(), address)
}

#[tokio::test]
async fn a_lack_of_descriptors_is_no_end() {
    let (queue, _events) = audit::queue(100);
    let shared = Shared::new(Policy::new(&WantedPolicy::default()).unwrap(), Vec::new(), queue);
    let dns = Arc::new(Dns::new(shared.clone(), DnsSettings { servers: Vec::new(), ipv6: true }));
    let flows = Arc::new(Flows::new(shared.clone(), dns.clone()));
    let (sender, answers) = mpsc::channel(1);
    let datagrams = Arc::new(Datagrams::new(shared, dns, sender.clone()));
    let (sockets, address) = sockets();
    let mut carrying = tokio::spawn(sockets.carry(flows, datagrams, answers));

    let client = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    // The first number that is free.
    let free = rustix::io::dup(&client).unwrap().as_raw_fd();
    let limit = getrlimit(Resource::Nofile);
    let fewer = Some(u64::try_from(free).unwrap());
    setrlimit(Resource::Nofile, Rlimit { current: fewer, ..limit }).unwrap();
    assert!(rustix::io::dup(&client).is_err());
    connect(&client, &address).unwrap();
    // All of these are taken after the listener was tried.
    let to = "192.0.2.1:1".parse().unwrap();
    for _ in 0..100 {
        let answer = Datagram { source: to, destination: to, bytes: Vec::new() };
        tokio::select! {
            sent = sender.send(answer) => sent.unwrap(),
            ended = &mut carrying => panic!("{ended:?}"),
        }
    }
    assert!(!carrying.is_finished());
    setrlimit(Resource::Nofile, limit).unwrap();
    // The connection is taken now, and refused: its address is closed.
    let mut client = TcpStream::from(client);
    let read = tokio::task::spawn_blocking(move || client.read(&mut [0]).map_err(|error| error.kind()));
    assert_eq!(read.await.unwrap(), Err(ErrorKind::ConnectionReset));
}
