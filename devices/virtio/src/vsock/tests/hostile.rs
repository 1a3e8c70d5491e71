//! Guests that break rules: the device's answers to them, and other streams, which do not notice.

use super::super::credit::WINDOW;
use super::super::packet::{HEADER, Header, MAX_PAYLOAD, Operation, Ports};
use super::super::switch::MAX_RESETS;
use super::guest::{SIZE as RX_BUFFERS, header};
use super::*;

const KEY: (u32, u32) = (HOST_PORT, 5000);

/// A guest with one good stream, to show that the stream goes on.
fn busy() -> (Guest, OwnedFd, UnixStream) {
    let (mut guest, channel) = machine();
    let (host, key) = stream_to_host(&mut guest, &channel, KEY.1);
    assert_eq!(key, KEY);
    (guest, channel, host)
}

fn goes_on(guest: &mut Guest, host: &mut UnixStream) {
    guest.settle();
    assert_eq!(guest.send(KEY, b"fine"), 4);
    assert_eq!(read_now(host), (b"fine".to_vec(), false));
    write_now(host, b"too");
    guest.settle();
    assert_eq!(guest.read(KEY, 100), b"too");
}

/// The packets that answer none of the guest's sockets: ports, type and operation.
fn strays(guest: &mut Guest) -> Vec<((u32, u32), u16, u16)> {
    guest.settle();
    guest
        .strays
        .drain(..)
        .map(|(header, _)| ((header.src_port, header.dst_port), header.kind, header.op))
        .collect()
}

const RESET: u16 = Operation::Reset as u16;

#[test]
fn packets_for_no_stream_are_reset_but_resets_are_not() {
    let (mut guest, _channel, mut host) = busy();
    let ports = Ports { host: HOST_PORT, guest: 6000 };
    for op in [0, 2, 3, 4, 5, 6, 7, 8, u16::MAX] {
        let header = Header { op, ..header(ports, Operation::Reset) };
        guest.post(&header, &[], &[]);
        let expected = if op == RESET { vec![] } else { vec![((HOST_PORT, 6000), 1, RESET)] };
        assert_eq!(strays(&mut guest), expected, "operation {op}");
    }
    goes_on(&mut guest, &mut host);
}

#[test]
fn unknown_types_are_reset_in_kind() {
    let (mut guest, _channel, mut host) = busy();
    for kind in [0, 2, 3, u16::MAX] {
        // The same holds for the ports of an existing stream: a packet of another type belongs to another stream.
        let request = Header { kind, ..header(Ports { host: KEY.0, guest: KEY.1 }, Operation::Request) };
        guest.post(&request, &[], &[]);
        assert_eq!(strays(&mut guest), [(KEY, kind, RESET)]);
        guest.post(&Header { op: RESET, ..request }, &[], &[]);
        assert_eq!(strays(&mut guest), []);
    }
    goes_on(&mut guest, &mut host);
}

#[test]
fn packets_from_or_for_somebody_else_are_dropped() {
    let (mut guest, channel, mut host) = busy();
    let request = header(Ports { host: HOST_PORT, guest: 6000 }, Operation::Request);
    for (src_cid, dst_cid) in
        [(2, 2), (GUEST_CID, GUEST_CID), (GUEST_CID, 1), (GUEST_CID + (1 << 32), 2), (0, 0)]
    {
        guest.post(&Header { src_cid, dst_cid, ..request }, &[], &[]);
        assert_eq!(strays(&mut guest), []);
    }
    assert!(channel::receive(channel.as_fd()).is_err());
    goes_on(&mut guest, &mut host);
}

#[test]
fn a_packet_out_of_place_resets_its_stream() {
    let reset_by = |packet: fn(&mut Guest, Header)| {
        let (mut guest, _channel, mut host) = busy();
        guest.send(KEY, b"before");
        let header = guest.header(KEY, Operation::Payload);
        packet(&mut guest, header);
        guest.settle();
        assert!(guest.sockets[&KEY].reset);
        // Bytes that came before the fault are delivered, the faulty ones are not.
        assert_eq!(read_now(&mut host), (b"before".to_vec(), true));
        assert_eq!(guest.device.streams(), 0);
    };
    // A second request, an answer without a request, operations that do not exist.
    for op in [0u16, 1, 2, 8] {
        let (mut guest, _channel, mut host) = busy();
        let header = Header { op, ..guest.header(KEY, Operation::Payload) };
        guest.post(&header, &[], &[]);
        guest.settle();
        assert!(guest.sockets[&KEY].reset, "operation {op}");
        assert_eq!(read_now(&mut host), (Vec::new(), true));
    }
    // Payload shorter than announced, longer than the limit, absurd.
    reset_by(|guest, header| assert!(guest.post(&Header { len: 5, ..header }, b"four", &[])));
    reset_by(|guest, header| {
        let len = MAX_PAYLOAD + 1;
        assert!(guest.post(&Header { len, ..header }, &vec![0; len as usize], &[]));
    });
    reset_by(|guest, header| assert!(guest.post(&Header { len: u32::MAX, ..header }, &[0; 100], &[])));
    // Payload after the sender's end.
    reset_by(|guest, header| {
        guest.control(KEY, Operation::Shutdown, 2);
        assert!(guest.post(&Header { len: 4, ..header }, b"more", &[]));
    });
}

#[test]
fn payload_beyond_the_credit_resets_the_stream_and_is_not_stored() {
    let (mut guest, _channel, mut host) = busy();
    let packet = Header { len: MAX_PAYLOAD, ..guest.header(KEY, Operation::Payload) };
    let mut most = 0;
    for _ in 0..40 {
        guest.post(&packet, &[1; MAX_PAYLOAD as usize], &[]);
        most = most.max(guest.device.waiting());
    }
    assert!(most > 0 && most <= WINDOW as usize);
    guest.settle();
    assert!(guest.sockets[&KEY].reset);
    assert!(guest.strays.iter().all(|(header, _)| header.op == RESET));
    // Even the good bytes of a hostile guest reach the host.
    let mut received = 0;
    loop {
        let (bytes, ended) = read_now(&mut host);
        received += bytes.len();
        if ended {
            break;
        }
        guest.run();
    }
    assert_eq!(received % MAX_PAYLOAD as usize, 0);
    assert_eq!(guest.device.streams(), 0);
}

#[test]
fn credit_that_makes_no_sense_is_no_credit_until_the_guest_is_asked() {
    let (mut guest, _channel, mut host) = busy();
    // No byte was sent, so none can have been taken; 2^32 - 1 bytes and more in flight leave no room for any size.
    for (round, (buf_alloc, fwd_cnt)) in
        [(0, 0), (100, 1), (u32::MAX, 1), (100, 1 << 31)].into_iter().enumerate()
    {
        let fwd_cnt = fwd_cnt + round as u32;
        let lie = Header { buf_alloc, fwd_cnt, ..guest.header(KEY, Operation::CreditUpdate) };
        guest.post(&lie, &[], &[]);
        write_now(&mut host, b"x");
        guest.run();
        assert!(guest.sockets[&KEY].inbox.is_empty());
        guest.settle();
        assert_eq!(guest.sockets[&KEY].credit_requests, round as u32 + 1);
        assert_eq!(guest.read(KEY, 100), b"x");
    }
    goes_on(&mut guest, &mut host);
}

#[test]
fn packets_may_lie_in_any_pieces() {
    let (mut guest, _channel, mut host) = busy();
    let payload = pattern(0, 40_000);
    for pieces in
        [&[][..], &[44], &[10, 30, 10], &[1, 1, 1, 1, 1, 1], &[44, 32768], &[0, 43, 0, 2], &[50_000]]
    {
        let header = Header { len: payload.len() as u32, ..guest.header(KEY, Operation::Payload) };
        assert!(guest.post(&header, &payload, pieces));
        let mut received = Vec::new();
        while received.len() < payload.len() {
            received.extend(read_now(&mut host).0);
            guest.settle();
        }
        assert!(received == payload, "{pieces:?}");
    }
    // The chain has more room than the length says: "only the first len bytes will be used for the actual data."
    let header = Header { len: 3, ..guest.header(KEY, Operation::Payload) };
    guest.post(&header, b"yes, not this", &[HEADER, 2]);
    guest.settle();
    assert_eq!(read_now(&mut host), (b"yes".to_vec(), false));
}

#[test]
fn chains_without_a_header_are_given_back() {
    let (mut guest, _channel, mut host) = busy();
    for len in [0, 1, HEADER - 1] {
        assert!(guest.post_raw(&[0xFF; HEADER][..len], &[]));
        assert_eq!(strays(&mut guest), []);
        assert_eq!(guest.tx_in_flight(), 0);
    }
    goes_on(&mut guest, &mut host);
}

#[test]
fn resets_that_find_no_room_hold_the_guest_up_and_nothing_else() {
    let (mut guest, _channel, mut host) = busy();
    guest.refill = false;
    let nonsense = header(Ports { host: 1, guest: 1 }, Operation::CreditUpdate);
    let mut posted = 0;
    while guest.post(&nonsense, &[], &[]) {
        posted += 1;
        assert!(posted < 10_000, "answers are stored without bound");
        guest.run();
    }
    // The rx queue is full, the list is full, too, and the tx queue is not served.
    assert!(guest.tx_in_flight() > 0 && posted > MAX_RESETS);
    // Now the guest looks at its packets.
    guest.refill = true;
    guest.take_packets();
    guest.post_rx(usize::MAX);
    guest.settle();
    assert_eq!(guest.tx_in_flight(), 0);
    assert_eq!(guest.strays.len(), posted);
    guest.strays.clear();
    goes_on(&mut guest, &mut host);
}

/// A guest takes no packets, and opens and resets streams all the while: the device remembers none of these streams.
#[test]
fn streams_that_come_and_go_leave_nothing_behind() {
    let (mut guest, channel, mut host) = busy();
    guest.refill = false;
    // The answers to these requests fill the rx queue.
    for port in 0..u32::from(RX_BUFFERS) {
        guest.post(&header(Ports { host: 1, guest: port }, Operation::CreditUpdate), &[], &[]);
        guest.run();
    }
    for round in 0..20_000 {
        let ports = Ports { host: HOST_PORT, guest: 6000 + round % 16 };
        assert!(guest.post(&header(ports, Operation::Request), &[], &[]));
        assert_eq!((guest.device.streams(), guest.device.ready()), (2, 1), "round {round}");
        drop(channel::receive(channel.as_fd()).unwrap());
        assert!(guest.post(&header(ports, Operation::Reset), &[], &[]));
        while guest.run() {}
        assert_eq!((guest.device.streams(), guest.device.ready()), (1, 0), "round {round}");
    }
    guest.refill = true;
    guest.take_packets();
    guest.post_rx(usize::MAX);
    guest.settle();
    guest.strays.clear();
    goes_on(&mut guest, &mut host);
}

#[test]
fn a_broken_ring_is_left_alone() {
    let (mut guest, _channel, mut host) = busy();
    guest.break_tx();
    write_now(&mut host, b"still");
    guest.settle();
    assert_eq!(guest.sockets[&KEY].inbox, *b"still");
}

#[test]
fn messages_that_are_none_are_dropped() {
    let (mut guest, channel) = machine();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let send = |bytes: &[u8]| rustix::net::send(&channel, bytes, rustix::net::SendFlags::empty()).unwrap();
    // Messages that are too short, too long, without a descriptor, or not for the device.
    send(b"x");
    send(&[0; 100]);
    send(&PortMessage::Connect { port: GUEST_PORT }.encode());
    channel::send(channel.as_fd(), PortMessage::Accept { port: GUEST_PORT }, theirs.as_fd()).unwrap();
    drop(theirs);
    guest.settle();
    assert_eq!(guest.device.streams(), 0);
    ours.set_nonblocking(true).unwrap();
    assert_eq!(read_now(&mut { ours }), (Vec::new(), true));
    stream_to_guest(&mut guest, &channel);
}

#[test]
fn an_answer_to_a_request_that_was_not_sent_yet_is_none() {
    let (mut guest, channel, mut host) = busy();
    guest.refill = false;
    // The answers to these requests leave no room for the request below.
    for port in 0..u32::from(RX_BUFFERS) {
        guest.post(&header(Ports { host: 1, guest: port }, Operation::CreditUpdate), &[], &[]);
        guest.run();
    }
    let mut asked = connect(&channel, GUEST_PORT);
    guest.run();
    // The first port that the device takes for its own streams.
    let ports = Ports { host: 1 << 31, guest: GUEST_PORT };
    guest.post(&header(ports, Operation::Response), &[], &[]);
    guest.refill = true;
    guest.take_packets();
    guest.post_rx(usize::MAX);
    let last = strays(&mut guest).pop();
    assert_eq!(last, Some(((1 << 31, GUEST_PORT), 1, RESET)));
    assert_eq!((guest.device.streams(), read_now(&mut asked)), (1, (vec![], true)));
    goes_on(&mut guest, &mut host);
}
