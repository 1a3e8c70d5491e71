//! Connections to the guest's loopback, as the host sees them.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]
#![allow(unsafe_code, reason = "each test enters a mount namespace")]

#[allow(unreachable_pub, dead_code, reason = "shared by tests that use parts of it")]
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use guest_agent::service::Agent;
use guest_protocol::frame;
use guest_protocol::{ConnectReply, Request};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::sockopt;
use support::{Client, guest};

fn ask(agent: &Arc<Agent>, port: u16) -> Client {
    let mut client = Client::connect(agent);
    client.send(&Request::Connect { port });
    client
}

/// A connection's raw stream.
fn connect(agent: &Arc<Agent>, port: u16) -> UnixStream {
    let mut client = ask(agent, port);
    // One byte at a time, as the bytes after the message are the connection's.
    let expected = frame::encode_reply(&ConnectReply::Ok(())).unwrap();
    let mut got = vec![0; expected.len()];
    client.stream.read_exact(&mut got).unwrap();
    assert_eq!(got, expected);
    client.stream
}

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A connection's two ends.
fn pair(agent: &Arc<Agent>) -> (UnixStream, TcpStream) {
    let (listener, port) = listen();
    let host = connect(agent, port);
    let (guest, _) = listener.accept().unwrap();
    guest.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    (host, guest)
}

fn all(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn half_close_passes_from_the_host() {
    let Some(agent) = guest() else { return };
    let (mut host, mut guest) = pair(&agent);
    host.write_all(b"question").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(all(&guest), b"question");
    guest.write_all(b"an answer after the end of the question").unwrap();
    drop(guest);
    assert_eq!(all(&host), b"an answer after the end of the question");
}

#[test]
fn half_close_passes_from_the_guest() {
    let Some(agent) = guest() else { return };
    let (mut host, mut guest) = pair(&agent);
    guest.write_all(b"greeting").unwrap();
    guest.shutdown(Shutdown::Write).unwrap();
    assert_eq!(all(&host), b"greeting");
    host.write_all(b"still heard").unwrap();
    drop(host);
    assert_eq!(all(&guest), b"still heard");
}

/// Whether the agent has closed the stream, and not only ended its direction.
fn is_closed(host: &UnixStream) -> bool {
    let mut fds = [PollFd::new(host, PollFlags::empty())];
    rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
    fds[0].revents().contains(PollFlags::HUP)
}

fn reset(guest: TcpStream) {
    sockopt::set_socket_linger(&guest, Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_reset_is_no_end() {
    let Some(agent) = guest() else { return };
    let (host, mut guest) = pair(&agent);
    guest.write_all(b"half an ans").unwrap();
    reset(guest);
    assert_eq!(all(&host), b"half an ans");
    assert!(is_closed(&host));
    // A reset that is noticed when sending counts too.
    let (mut host, guest) = pair(&agent);
    reset(guest);
    while host.write(&[0]).is_ok() {}
    assert_eq!(all(&host), b"");
    assert!(is_closed(&host));

    let (host, mut guest) = pair(&agent);
    guest.write_all(b"all of it").unwrap();
    drop(guest);
    assert_eq!(all(&host), b"all of it");
    assert!(!is_closed(&host), "the host may still ask");
}

#[test]
fn much_in_both_directions_at_once() {
    let Some(agent) = guest() else { return };
    let (host, guest) = pair(&agent);
    let data: Arc<Vec<u8>> =
        Arc::new((0..20u32 << 20).map(|index| index.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect());
    let (host, guest) = (Arc::new(host), Arc::new(guest));
    let writers = [
        thread::spawn({
            let (stream, data) = (Arc::clone(&host), Arc::clone(&data));
            move || {
                (&*stream).write_all(&data).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
            }
        }),
        thread::spawn({
            let (stream, data) = (Arc::clone(&guest), Arc::clone(&data));
            move || {
                (&*stream).write_all(&data).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
            }
        }),
    ];
    let reader = thread::spawn(move || all(&*guest));
    assert!(all(&*host) == *data);
    assert!(reader.join().unwrap() == *data);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
}

#[test]
fn a_slow_receiver_slows_the_sender() {
    let Some(agent) = guest() else { return };
    let (host, guest) = pair(&agent);
    host.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut sent = 0;
    loop {
        match (&host).write(&[5; 65536]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("{error}"),
        }
        assert!(sent < 64 << 20, "buffers are bounded");
    }
    // Bytes that the host sent before it left still arrive.
    drop(host);
    assert_eq!(all(&guest).len(), sent);
}

#[test]
fn the_host_goes_while_the_guest_is_silent() {
    let Some(agent) = guest() else { return };
    let (host, guest) = pair(&agent);
    drop(host);
    assert_eq!(all(&guest), b"");
    // After the end of one direction the other end is noticed as well, even while the guest's program sends nothing.
    let (host, guest) = pair(&agent);
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(all(&guest), b"");
    drop(host);
    let gone = Instant::now();
    while (&guest).write(b"x").is_ok() {
        assert!(gone.elapsed() < Duration::from_secs(5), "the connection is closed");
    }
}

#[test]
fn a_connection_that_breaks() {
    let Some(agent) = guest() else { return };
    let (mut host, mut guest) = pair(&agent);
    host.write_all(b"unread").unwrap();
    guest.write_all(b"last words").unwrap();
    // Closing with bytes unread resets.
    let mut seen = [0; 1];
    guest.read_exact(&mut seen).unwrap();
    drop(guest);
    assert_eq!(all(&host), b"last words");
    // Nothing reads the host's bytes now.
    host.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut result = Ok(());
    for _ in 0..1000 {
        result = host.write_all(&[0; 4096]);
        if result.is_err() {
            break;
        }
    }
    let kind = result.unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{kind:?}");
}

#[test]
fn ports_without_a_listener() {
    let Some(agent) = guest() else { return };
    let (listener, port) = listen();
    drop(listener);
    for port in [port, 0] {
        let mut client = ask(&agent, port);
        let Some(ConnectReply::Err(reason)) = client.answer() else { panic!() };
        assert!(reason.starts_with(&format!("connect to 127.0.0.1:{port}: ")), "{reason}");
        assert_eq!(client.next(), None);
    }
}

#[test]
fn a_listener_on_the_other_loopback() {
    let Some(agent) = guest() else { return };
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        skip::skip("ipv6", "this host has no IPv6");
        return;
    };
    let port = listener.local_addr().unwrap().port();
    let mut host = connect(&agent, port);
    let (mut guest, _) = listener.accept().unwrap();
    host.write_all(b"6").unwrap();
    let mut byte = [0];
    guest.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"6");
}

#[test]
fn bytes_before_the_answer_are_refused() {
    let Some(agent) = guest() else { return };
    let (listener, port) = listen();
    let mut client = Client::connect(&agent);
    let request = frame::encode(&Request::Connect { port }).unwrap();
    client.stream.write_all(&[request, b"GET /".to_vec()].concat()).unwrap();
    let answer: Option<ConnectReply> = client.answer();
    assert!(matches!(&answer, Some(ConnectReply::Err(_))), "{answer:?}");
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn hanging_up_ends_an_attempt() {
    let Some(agent) = guest() else { return };
    // The queue is full, so that further attempts get no answer.
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &"127.0.0.1:0".parse::<std::net::SocketAddrV4>().unwrap()).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let fill = || TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
    let _filling: Vec<_> = std::iter::from_fn(fill).collect();
    let client = ask(&agent, address.port());
    client.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    // signal(7): with a time limit, a read that a signal interrupts is not restarted.
    let waits = loop {
        match (&client.stream).read(&mut [0]).unwrap_err().kind() {
            ErrorKind::Interrupted => {}
            kind => break kind,
        }
    };
    assert_eq!(waits, ErrorKind::WouldBlock, "it waits for room in the queue");
    client.stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!((&client.stream).read_to_end(&mut Vec::new()).unwrap(), 0);
}

#[test]
fn a_hundred_at_once() {
    let Some(agent) = guest() else { return };
    let (listener, port) = listen();
    let echo = thread::spawn(move || {
        let serving: Vec<_> = (0..100)
            .map(|_| {
                let (mut stream, _) = listener.accept().unwrap();
                thread::spawn(move || {
                    let bytes = all(&stream);
                    stream.write_all(&bytes).unwrap();
                })
            })
            .collect();
        serving.into_iter().for_each(|one| one.join().unwrap());
    });
    let mut hosts: Vec<_> = (0..100).map(|_| connect(&agent, port)).collect();
    for (index, host) in hosts.iter_mut().enumerate() {
        host.write_all(&[u8::try_from(index).unwrap(); 10_000]).unwrap();
        host.shutdown(Shutdown::Write).unwrap();
    }
    for (index, host) in hosts.iter().enumerate() {
        assert!(all(host) == [u8::try_from(index).unwrap(); 10_000]);
    }
    echo.join().unwrap();
}
