//! The device between a guest ([`guest`]) and the host ends of its streams.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod flow;
mod guest;
mod hostile;
mod random;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Resource;

use super::{GUEST_CID, PortMessage, Vsock, channel};
use guest::Guest;

const HOST_PORT: u32 = 1024;
const GUEST_PORT: u32 = 7000;

/// A guest whose device listens on [`HOST_PORT`], and the supervisor's end of the channel.
fn machine() -> (Guest, OwnedFd) {
    machine_with(true)
}

fn machine_with(turns: bool) -> (Guest, OwnedFd) {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(Resource::Nofile, limit).unwrap();
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap();
    let mut guest = Guest::new(Vsock::new(theirs, vec![HOST_PORT], GUEST_CID).unwrap(), turns);
    guest.listening.push(GUEST_PORT);
    (guest, ours)
}

/// Asks for a stream to a guest port.
fn connect(channel: &OwnedFd, port: u32) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    channel::send(channel.as_fd(), PortMessage::Connect { port }, theirs.as_fd()).unwrap();
    ours.set_nonblocking(true).unwrap();
    ours
}

/// Takes a stream that the guest asked for.
fn accept(channel: &OwnedFd) -> UnixStream {
    let (message, stream) = channel::receive(channel.as_fd()).unwrap().unwrap();
    assert_eq!(message, PortMessage::Accept { port: HOST_PORT });
    let stream = UnixStream::from(stream);
    stream.set_nonblocking(true).unwrap();
    stream
}

/// A stream from host to guest: the host's end and the guest's.
fn stream_to_guest(guest: &mut Guest, channel: &OwnedFd) -> (UnixStream, (u32, u32)) {
    let host = connect(channel, GUEST_PORT);
    let known: Vec<_> = guest.sockets.keys().copied().collect();
    guest.settle();
    let key = *guest.sockets.keys().find(|key| !known.contains(key)).unwrap();
    assert!(guest.sockets[&key].connected);
    (host, key)
}

/// A stream from guest to host.
fn stream_to_host(guest: &mut Guest, channel: &OwnedFd, port: u32) -> (UnixStream, (u32, u32)) {
    let key = guest.connect(HOST_PORT, port, 256 << 10);
    assert!(guest.sockets[&key].connected);
    (accept(channel), key)
}

/// The bytes that are there now, and whether the stream has ended.
fn read_now(host: &mut UnixStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    match host.read_to_end(&mut bytes) {
        Ok(_) => (bytes, true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => (bytes, false),
        Err(error) => panic!("{error}"),
    }
}

/// Writes as much as the socket takes now.
fn write_now(host: &mut UnixStream, bytes: &[u8]) -> usize {
    let mut done = 0;
    while done < bytes.len() {
        match host.write(&bytes[done..]) {
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    done
}

/// Bytes that differ by their position.
fn pattern(start: usize, len: usize) -> Vec<u8> {
    (start..start + len).map(|place| (place.wrapping_mul(0x9E37_79B9) >> 13) as u8).collect()
}
