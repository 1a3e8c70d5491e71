//! Streams between well-behaved guests and hosts: connections, bytes, ends, and flow control.

use std::net::Shutdown;
use std::time::Instant;

use super::super::credit::WINDOW;
use super::super::packet::Operation;
use super::super::switch::MAX_STREAMS;
use super::*;

const MIB: usize = 1 << 20;

#[test]
fn the_host_connects_and_both_sides_talk() {
    for turns in [true, false] {
        let (mut guest, channel) = machine_with(turns);
        // The host may write at once: the bytes wait until the guest accepts.
        let mut host = connect(&channel, GUEST_PORT);
        assert_eq!(write_now(&mut host, b"early"), 5);
        guest.settle();
        let key = *guest.sockets.keys().next().unwrap();
        assert_eq!(key.1, GUEST_PORT);
        assert_eq!(guest.read(key, 100), b"early");
        assert_eq!(guest.send(key, b"answer"), 6);
        assert_eq!(read_now(&mut host), (b"answer".to_vec(), false));
    }
}

#[test]
fn the_guest_connects_and_both_sides_talk() {
    let (mut guest, channel) = machine();
    let (mut host, key) = stream_to_host(&mut guest, &channel, 5000);
    assert_eq!(guest.send(key, b"hello"), 5);
    assert_eq!(read_now(&mut host), (b"hello".to_vec(), false));
    write_now(&mut host, b"world");
    guest.settle();
    assert_eq!(guest.read(key, 100), b"world");
    assert!(guest.strays.is_empty());
}

#[test]
fn one_packet_each_way_needs_one_interrupt_each_way() {
    let (mut guest, channel) = machine();
    let (mut host, key) = stream_to_host(&mut guest, &channel, 5000);
    let count = |guest: &Guest| {
        guest.interrupts.0.each_ref().map(|count| count.load(std::sync::atomic::Ordering::Relaxed))
    };
    guest.tx_in_flight();
    let before = count(&guest);
    guest.send(key, b"ping");
    guest.tx_in_flight();
    write_now(&mut host, b"pong");
    guest.settle();
    let after = count(&guest);
    assert_eq!([after[0] - before[0], after[1] - before[1], after[2]], [1, 1, 0]);
}

#[test]
fn refusals_are_a_reset_and_an_end_of_stream() {
    let (mut guest, channel) = machine();
    let key = guest.connect(HOST_PORT + 1, 5000, 4096);
    assert!(guest.sockets[&key].reset);
    assert!(channel::receive(channel.as_fd()).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock));

    let mut host = connect(&channel, GUEST_PORT + 1);
    // Bytes that nobody will read must not turn the end into an error.
    write_now(&mut host, &pattern(0, 100_000));
    guest.settle();
    assert_eq!(read_now(&mut host), (Vec::new(), true));
    assert!(guest.strays.is_empty());
}

#[test]
fn messages_before_the_driver_wait() {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap();
    let mut host = connect(&ours, GUEST_PORT);
    let device = Vsock::new(theirs, vec![HOST_PORT], GUEST_CID).unwrap();
    write_now(&mut host, b"early");
    let mut guest = Guest::new(device, true);
    guest.listening.push(GUEST_PORT);
    guest.settle();
    let key = *guest.sockets.keys().next().unwrap();
    assert_eq!(guest.read(key, 100), b"early");
}

/// Moves `len` bytes from guest to host; the host reads at most `gulp` bytes in each round.
fn guest_to_host(guest: &mut Guest, key: (u32, u32), host: &mut UnixStream, len: usize, gulp: usize) {
    let (mut sent, mut received) = (0, 0);
    let mut chunk = pattern(0, MIB);
    let mut buffer = vec![0; gulp];
    while received < len {
        let at = sent % MIB;
        if at == 0 {
            chunk = pattern(sent, MIB);
        }
        let before = (sent, received);
        sent += guest.send(key, &chunk[at..MIB.min(at + len - sent)]);
        guest.settle();
        assert!(guest.device.waiting() <= WINDOW as usize);
        match host.read(&mut buffer) {
            Ok(0) => panic!("ended after {received} bytes"),
            Ok(count) => {
                assert!(buffer[..count] == pattern(received, count));
                received += count;
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        assert_ne!((sent, received), before, "stuck");
    }
}

/// Moves `len` bytes from host to guest; the guest reads at most `gulp` bytes in each round.
fn host_to_guest(guest: &mut Guest, key: (u32, u32), host: &mut UnixStream, len: usize, gulp: usize) {
    let (mut sent, mut received) = (0, 0);
    let mut chunk = pattern(0, MIB);
    while received < len {
        let at = sent % MIB;
        if at == 0 {
            chunk = pattern(sent, MIB);
        }
        let before = (sent, received);
        sent += write_now(host, &chunk[at..MIB.min(at + len - sent)]);
        guest.settle();
        let bytes = guest.read(key, gulp);
        assert!(bytes == pattern(received, bytes.len()));
        received += bytes.len();
        assert_ne!((sent, received), before, "stuck");
    }
}

#[test]
fn a_long_stream_from_the_guest_then_the_hosts_reply() {
    let (mut guest, channel) = machine();
    let (mut host, key) = stream_to_host(&mut guest, &channel, 5000);
    guest_to_host(&mut guest, key, &mut host, 64 * MIB, 256 << 10);
    guest.control(key, Operation::Shutdown, 2);
    assert_eq!(read_now(&mut host), (Vec::new(), true));
    let reply = pattern(7, 300_000);
    let mut sent = 0;
    let mut received = Vec::new();
    while received.len() < reply.len() {
        sent += write_now(&mut host, &reply[sent..]);
        guest.settle();
        received.extend(guest.read(key, usize::MAX));
    }
    assert!(received == reply);
    drop(host);
    guest.settle();
    // All bytes were read, so the guest answered the full shutdown: no trace of the stream is left.
    assert_eq!(guest.sockets[&key].peer_done, 3);
    assert_eq!(guest.device.streams(), 0);
    assert!(guest.strays.is_empty());
}

#[test]
fn a_long_stream_from_the_host_then_the_guests_reply() {
    let (mut guest, channel) = machine();
    let (mut host, key) = stream_to_guest(&mut guest, &channel);
    host_to_guest(&mut guest, key, &mut host, 64 * MIB, usize::MAX);
    host.shutdown(Shutdown::Write).unwrap();
    guest.settle();
    assert_eq!(guest.sockets[&key].peer_done, 2);
    let reply = pattern(7, 300_000);
    let (mut sent, mut received) = (0, Vec::new());
    while received.len() < reply.len() {
        sent += guest.send(key, &reply[sent..]);
        guest.settle();
        let (bytes, ended) = read_now(&mut host);
        received.extend(bytes);
        assert!(!ended);
    }
    assert!(received == reply);
    guest.close(key);
    guest.settle();
    assert_eq!(read_now(&mut host), (Vec::new(), true));
    assert!(guest.sockets[&key].reset);
    assert_eq!(guest.device.streams(), 0);
}

#[test]
fn a_reply_sent_with_the_end_arrives_before_it() {
    // The host writes its reply and closes before the guest has taken anything.
    let (mut guest, channel) = machine();
    let (mut host, key) = stream_to_guest(&mut guest, &channel);
    guest.send(key, b"request");
    guest.control(key, Operation::Shutdown, 2);
    assert_eq!(read_now(&mut host), (b"request".to_vec(), true));
    let reply = pattern(0, 100_000);
    assert_eq!(write_now(&mut host, &reply), reply.len());
    drop(host);
    let mut received = Vec::new();
    while received.len() < reply.len() {
        guest.settle();
        // This guest refuses payload after the end.
        let bytes = guest.read(key, 3000);
        assert!(!bytes.is_empty(), "{} bytes are lost", reply.len() - received.len());
        received.extend(bytes);
    }
    guest.settle();
    assert!(received == reply);
    assert_eq!(guest.sockets[&key].peer_done, 3);
}

#[test]
fn half_close_passes_from_the_guest_while_the_host_goes_on() {
    let (mut guest, channel) = machine();
    let (mut host, key) = stream_to_guest(&mut guest, &channel);
    guest.send(key, b"last words");
    guest.control(key, Operation::Shutdown, 2);
    assert_eq!(read_now(&mut host), (b"last words".to_vec(), true));
    for round in 0..10 {
        write_now(&mut host, &[round; 1000]);
        guest.settle();
        assert_eq!(guest.read(key, usize::MAX), [round; 1000]);
    }
    // The end of the other direction ends the stream.
    guest.control(key, Operation::Shutdown, 1);
    guest.settle();
    assert!(guest.sockets[&key].reset);
    assert_eq!(guest.device.streams(), 0);
    assert_eq!(host.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_guest_that_stops_receiving_goes_on_sending() {
    let (mut guest, channel) = machine();
    let (mut host, key) = stream_to_guest(&mut guest, &channel);
    guest.control(key, Operation::Shutdown, 1);
    assert_eq!(host.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    guest.send(key, b"still here");
    assert_eq!(read_now(&mut host), (b"still here".to_vec(), false));
    drop(host);
    guest.settle();
    assert_eq!(guest.sockets[&key].peer_done, 3);
}

#[test]
fn half_close_passes_from_the_host_while_the_guest_goes_on() {
    let (mut guest, channel) = machine();
    let (mut host, key) = stream_to_guest(&mut guest, &channel);
    host.shutdown(Shutdown::Write).unwrap();
    guest.settle();
    assert_eq!(guest.sockets[&key].peer_done, 2);
    guest_to_host(&mut guest, key, &mut host, 2 * MIB, 10_000);
    host.shutdown(Shutdown::Read).unwrap();
    guest.settle();
    assert_eq!(guest.sockets[&key].peer_done, 3);
    assert_eq!(guest.device.streams(), 0);
}

#[test]
fn a_host_that_hangs_up_stops_a_sending_guest() {
    let (mut guest, channel) = machine();
    let (host, key) = stream_to_guest(&mut guest, &channel);
    // The guest sends so much that some of it waits in the device.
    while guest.send(key, &[1; 100_000]) > 0 {}
    assert!(guest.device.waiting() > 0);
    drop(host);
    guest.settle();
    assert_eq!(guest.sockets[&key].peer_done, 3);
    assert_eq!((guest.device.waiting(), guest.device.streams()), (0, 0));
}

#[test]
fn what_the_guest_sent_before_its_end_arrives_before_it() {
    for end in [Operation::Shutdown, Operation::Reset] {
        let (mut guest, channel) = machine();
        let (mut host, key) = stream_to_guest(&mut guest, &channel);
        let mut sent = 0;
        loop {
            let count = guest.send(key, &pattern(sent, 50_000));
            sent += count;
            if count == 0 {
                break;
            }
        }
        assert!(guest.device.waiting() > 0);
        guest.control(key, end, if end == Operation::Shutdown { 3 } else { 0 });
        guest.settle();
        // The guest is done with the socket at once, and its ports may be used again.
        assert_eq!(guest.sockets[&key].reset, end == Operation::Shutdown);
        assert_eq!(guest.device.streams(), 1);
        let mut received = Vec::new();
        loop {
            let (bytes, ended) = read_now(&mut host);
            received.extend(bytes);
            if ended {
                break;
            }
            assert!(guest.run(), "stuck after {} of {sent} bytes", received.len());
        }
        assert!(received == pattern(0, sent));
        assert_eq!((guest.device.waiting(), guest.device.streams()), (0, 0));
        assert!(guest.strays.is_empty());
    }
}

#[test]
fn a_slow_host_bounds_what_the_guest_may_send() {
    let (mut guest, channel) = machine();
    let (mut host, key) = stream_to_guest(&mut guest, &channel);
    let mut sent = 0;
    loop {
        let count = guest.send(key, &[7; 10_000]);
        sent += count;
        guest.settle();
        if count == 0 {
            guest.control(key, Operation::CreditRequest, 0);
            guest.settle();
            if guest.sockets[&key].free() == 0 {
                break;
            }
        }
    }
    // The window is full to the last byte, and no further; the rest is in the host's socket.
    assert_eq!(guest.device.waiting(), WINDOW as usize);
    assert_eq!(guest.sockets[&key].free(), 0);
    assert!(sent < 2 * MIB);
    let mut received = 0;
    while received < sent {
        received += read_now(&mut host).0.len();
        guest.settle();
    }
    assert_eq!(received, sent);
    assert!(guest.sockets[&key].free() >= WINDOW / 2, "the guest was not told");
    guest_to_host(&mut guest, key, &mut host, 3 * MIB, 777);
}

#[test]
fn a_guest_that_asks_is_told_its_credit() {
    let (mut guest, channel) = machine();
    let (mut host, key) = stream_to_guest(&mut guest, &channel);
    guest.send(key, &[1; 1000]);
    read_now(&mut host);
    assert_eq!(guest.sockets[&key].free(), WINDOW - 1000);
    guest.control(key, Operation::CreditRequest, 0);
    guest.settle();
    assert_eq!(guest.sockets[&key].free(), WINDOW);
    assert_eq!(guest.sockets[&key].credit_updates, 1);
}

#[test]
fn a_slow_guest_is_asked_once_and_gets_no_more_than_it_has_room_for() {
    let (mut guest, channel) = machine();
    let (mut host, key) = stream_to_guest(&mut guest, &channel);
    let sent = write_now(&mut host, &pattern(0, MIB));
    guest.settle();
    guest.settle();
    let room = guest.sockets[&key].buf_alloc as usize;
    assert_eq!(guest.sockets[&key].inbox.len(), room);
    assert_eq!(guest.sockets[&key].credit_requests, 1);
    let mut received = guest.read(key, 1);
    assert_eq!(received.len(), 1);
    while received.len() < sent {
        guest.settle();
        let bytes = guest.read(key, 10_000);
        assert!(!bytes.is_empty(), "stuck");
        received.extend(bytes);
    }
    assert!(received == pattern(0, sent));
}

#[test]
fn no_byte_is_taken_from_the_host_without_a_buffer_of_the_guest() {
    let (mut guest, channel) = machine();
    let (mut host, key) = stream_to_guest(&mut guest, &channel);
    guest.refill = false;
    let sent = write_now(&mut host, &pattern(0, 30_000));
    guest.settle();
    assert_eq!(guest.read(key, usize::MAX).len(), sent);
    // The guest has only a few buffers left.
    let mut before = 0;
    loop {
        write_now(&mut host, &[0; 1]);
        guest.settle();
        let len = guest.sockets[&key].inbox.len();
        if len == before {
            break;
        }
        before = len;
    }
    write_now(&mut host, b"waits");
    guest.settle();
    assert_eq!(guest.sockets[&key].inbox.len(), before);
    // One buffer is enough for all packets, and the device is told of it.
    guest.post_rx(1);
    guest.settle();
    let inbox: Vec<u8> = guest.sockets[&key].inbox.iter().copied().collect();
    assert!(inbox.ends_with(b"waits"));
}

#[test]
fn streams_take_turns() {
    let (mut guest, channel) = machine();
    let mut streams: Vec<_> = (0..8).map(|_| stream_to_guest(&mut guest, &channel)).collect();
    for (host, _) in &mut streams {
        write_now(host, &[0; 60_000]);
    }
    // After a few packets no stream is far behind.
    guest.refill = false;
    guest.run();
    guest.take_packets();
    let lens: Vec<usize> = streams.iter().map(|(_, key)| guest.sockets[key].inbox.len()).collect();
    let (least, most) = (lens.iter().min().unwrap(), lens.iter().max().unwrap());
    assert!(*least > 0 && most - least <= 4096, "{lens:?}");
    guest.refill = true;
    guest.post_rx(usize::MAX);
    guest.settle();
    assert!(streams.iter().all(|(_, key)| guest.sockets[key].inbox.len() == 60_000));
}

#[test]
fn as_many_streams_as_the_limit_says_and_no_more() {
    let (mut guest, channel) = machine();
    let mut streams = Vec::new();
    for port in 0..MAX_STREAMS as u32 {
        streams.push(if port % 2 == 0 {
            stream_to_host(&mut guest, &channel, 10_000 + port)
        } else {
            stream_to_guest(&mut guest, &channel)
        });
    }
    assert_eq!(guest.device.streams(), MAX_STREAMS);
    let refused = guest.connect(HOST_PORT, 9_999, 4096);
    assert!(guest.sockets[&refused].reset);
    let mut host = connect(&channel, GUEST_PORT);
    guest.settle();
    assert_eq!(read_now(&mut host), (Vec::new(), true));

    for (index, (host, key)) in streams.iter_mut().enumerate() {
        let bytes = (index as u32).to_le_bytes();
        assert_eq!(write_now(host, &bytes), 4);
        assert_eq!(guest.send(*key, &bytes), 4);
    }
    guest.settle();
    for (index, (host, key)) in streams.iter_mut().enumerate() {
        let bytes = (index as u32).to_le_bytes();
        assert_eq!(read_now(host), (bytes.to_vec(), false));
        assert_eq!(guest.read(*key, 100), bytes);
    }
    drop(streams);
    guest.settle();
    assert_eq!(guest.device.streams(), 0);
    stream_to_guest(&mut guest, &channel);
}

#[test]
fn connections_beyond_the_channels_length_wait_for_the_supervisor() {
    let (mut guest, channel) = machine();
    let keys: Vec<_> = (0..500).map(|port| guest.connect(HOST_PORT, 20_000 + port, 4096)).collect();
    let connected = |guest: &Guest| keys.iter().filter(|key| guest.sockets[key].connected).count();
    assert!(connected(&guest) < keys.len(), "the channel took everything: this tests nothing");
    let mut hosts = Vec::new();
    for _ in 0..keys.len() {
        hosts.push(accept(&channel));
        guest.settle();
    }
    assert_eq!(connected(&guest), keys.len());
    guest.send(keys[499], b"last");
    assert_eq!(read_now(hosts.last_mut().unwrap()), (b"last".to_vec(), false));
}

#[test]
fn guests_that_give_up_leave_no_offer() {
    let (mut guest, channel) = machine();
    for _ in 0..3 {
        let keys: Vec<_> = (0..500).map(|port| guest.connect(HOST_PORT, 20_000 + port, 4096)).collect();
        for key in keys {
            guest.control(key, Operation::Reset, 0);
        }
        guest.settle();
        guest.sockets.clear();
    }
    assert_eq!(guest.device.streams(), 0);
    // The streams that were handed over have ended; no others come.
    while let Ok(Some((_, stream))) = channel::receive(channel.as_fd()) {
        let mut host = UnixStream::from(stream);
        host.set_nonblocking(true).unwrap();
        assert_eq!(read_now(&mut host), (Vec::new(), true));
        guest.settle();
    }
    stream_to_host(&mut guest, &channel, 5000);
}

#[test]
fn a_reset_of_the_device_ends_every_stream() {
    let (mut guest, channel) = machine();
    let (mut to_guest, key) = stream_to_guest(&mut guest, &channel);
    let (mut to_host, _) = stream_to_host(&mut guest, &channel, 5000);
    guest.send(key, b"delivered");
    write_now(&mut to_guest, b"lost");
    guest.activate();
    assert_eq!(read_now(&mut to_guest), (b"delivered".to_vec(), true));
    assert_eq!(read_now(&mut to_host), (Vec::new(), true));
    assert_eq!(guest.device.streams(), 0);
    guest.settle();
    let (mut host, key) = stream_to_guest(&mut guest, &channel);
    guest.send(key, b"again");
    assert_eq!(read_now(&mut host), (b"again".to_vec(), false));
}

#[test]
fn streams_outlive_the_channel() {
    let (mut guest, channel) = machine();
    let (mut host, key) = stream_to_host(&mut guest, &channel, 5000);
    drop(channel);
    guest.settle();
    guest.send(key, b"still");
    assert_eq!(read_now(&mut host), (b"still".to_vec(), false));
    let refused = guest.connect(HOST_PORT, 5001, 4096);
    assert!(guest.sockets[&refused].reset);
    assert_eq!(guest.device.streams(), 1);
}

/// `cargo test --release -p virtio vsock -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, not a test"]
#[allow(clippy::print_stderr, reason = "a measurement")]
fn measure() {
    let (mut guest, channel) = machine_with(false);
    let (mut host, key) = stream_to_guest(&mut guest, &channel);
    let rounds = 100_000;
    let start = Instant::now();
    let mut byte = [0; 4];
    for _ in 0..rounds {
        write_now(&mut host, b"ping");
        assert!(guest.run() && guest.take_packets());
        guest.read(key, 4);
        guest.send(key, b"pong");
        assert_eq!(host.read(&mut byte).unwrap(), 4);
    }
    eprintln!("ping-pong: {:?} a round", start.elapsed() / rounds);

    let total = 1024 * MIB;
    let start = Instant::now();
    let (mut sent, mut received) = (0, 0);
    let bytes = vec![0; 256 << 10];
    let mut buffer = vec![0; MIB];
    while received < total {
        sent += guest.send(key, &bytes);
        guest.take_packets();
        received += host.read(&mut buffer).unwrap_or(0);
        guest.run();
    }
    let _ = sent;
    eprintln!("guest to host: {:.2} GiB/s", 1.0 / start.elapsed().as_secs_f64());

    let start = Instant::now();
    let mut received = 0;
    guest.sockets.get_mut(&key).unwrap().buf_alloc = 256 << 10;
    while received < total {
        let _ = host.write(&bytes);
        while guest.run() | guest.take_packets() {}
        received += guest.read(key, usize::MAX).len();
    }
    eprintln!("host to guest: {:.2} GiB/s", 1.0 / start.elapsed().as_secs_f64());
}
