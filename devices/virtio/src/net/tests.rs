//! The network device with a driver in front and a socket behind, whose datagrams are packets.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::net::UnixDatagram;
use std::sync::atomic::AtomicU8;

use super::*;
use crate::harness::Buffer::{In, Out};
use crate::harness::{Descriptor, END, Rig, WRITE, signals, wait};

const MAC: [u8; 6] = [0x02, 1, 2, 3, 4, 5];

struct Network {
    socket: UnixDatagram,
    taken: Arc<AtomicU8>,
    lost: Arc<Lost>,
}

impl Network {
    fn received(&self) -> Option<Vec<u8>> {
        let mut packet = vec![0; MAX_PACKET + 1];
        let len = self.socket.recv(&mut packet).ok()?;
        packet.truncate(len);
        Some(packet)
    }

    fn lost(&self) -> [u64; 3] {
        let Lost { malformed, refused, too_long } = &*self.lost;
        [malformed, refused, too_long].map(|counter| counter.load(Ordering::Relaxed))
    }
}

fn rig(offloads: Offloads) -> (Rig<Net>, Network) {
    let (socket, network) = UnixDatagram::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    network.set_nonblocking(true).unwrap();
    let taken = Arc::default();
    let frames = Datagrams { socket, offloads, taken: Arc::clone(&taken) };
    let settings = Settings::new(StationAddress::new(MAC).unwrap(), 1500).unwrap();
    let net = Net::new(Box::new(frames), settings).unwrap();
    let lost = net.lost();
    (Rig::new(net, true), Network { socket: network, taken, lost })
}

/// A packet whose header asks for nothing, with a frame of bytes that differ.
fn packet(len: usize) -> Vec<u8> {
    let frame = (0..len - HEADER).map(|byte| u8::try_from(byte % 251).unwrap());
    [0; HEADER].into_iter().chain(frame).collect()
}

/// The packet as the guest gets it in `count` buffers.
fn numbered(mut packet: Vec<u8>, count: u16) -> Vec<u8> {
    packet[10..12].copy_from_slice(&count.to_le_bytes());
    packet
}

#[test]
fn the_configuration_space_has_address_and_mtu() {
    let (rig, _) = rig(Offloads::empty());
    let mut config = [0xff; 16];
    rig.device.read_config(0, &mut config);
    assert_eq!(config, [2, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0xdc, 5, 0, 0, 0, 0]);
    assert_eq!(StationAddress::new([3, 0, 0, 0, 0, 1]), Err(SettingsError::Address([3, 0, 0, 0, 0, 1])));
    assert_eq!(StationAddress::new([0; 6]), Err(SettingsError::Address([0; 6])));
    let address = StationAddress::new(MAC).unwrap();
    assert_eq!(Settings::new(address, 67), Err(SettingsError::Mtu(67)));
    assert!(Settings::new(address, 68).is_ok() && Settings::new(address, u16::MAX).is_ok());
}

#[test]
fn offloads_are_those_of_the_port_that_the_driver_takes() {
    let always = 1 << 3 | 1 << 5 | 1 << 15;
    assert_eq!(rig(Offloads::empty()).0.device.identity().features, always);
    let (mut rig, network) = rig(Offloads::all());
    let all = always | 0b11 | 0b11 << 7 | 0b11 << 11 | 0b111 << 54;
    assert_eq!(rig.device.identity().features, all);
    let taken = || Offloads::from_bits_retain(network.taken.load(Ordering::SeqCst));
    assert_eq!(taken(), Offloads::all());
    for (declined, left) in [
        (1 << 7, Offloads::all() - Offloads::TCP4),
        (1 << 8, Offloads::all() - Offloads::TCP6),
        (1 << 54, Offloads::all() - Offloads::UDP),
        // Without checksums there is nothing else either.
        (1 << 1, Offloads::empty()),
        // A driver that leaves nothing to the device may take all the same.
        (1 | 0b11 << 11 | 1 << 56, Offloads::all()),
    ] {
        rig.declined = declined;
        rig.activate(true);
        assert_eq!(taken(), left, "without {declined:#x}");
    }
    rig.device.reset();
    assert_eq!(taken(), Offloads::empty());
}

#[test]
fn packets_go_out_whole_and_with_a_checked_header() {
    let (mut rig, network) = rig(Offloads::CHECKSUM);
    let mut first = packet(1526);
    rig.send(TX, &[Out(&first[..HEADER]), Out(&first[HEADER..500]), Out(&first[500..])]);
    // The header needs no buffer of its own, and its number of buffers says nothing here.
    let second = packet(26);
    rig.send(TX, &[Out(&numbered(second.clone(), 9))]);
    first[..HEADER].copy_from_slice(&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]);
    rig.send(TX, &[Out(&first[..5]), Out(&first[5..])]);
    rig.process(TX);
    assert_eq!([rig.used(TX), rig.used(TX), rig.used(TX)], [Some(0); 3]);
    assert_eq!(network.received(), Some(packet(1526)));
    assert_eq!(network.received(), Some(second));
    assert_eq!(network.received(), Some(first));
    assert_eq!((rig.interrupt.queue(), network.lost()), (1, [0; 3]));
}

#[test]
fn malformed_packets_are_dropped_and_given_back() {
    let (mut rig, network) = rig(Offloads::empty());
    rig.send(TX, &[Out(&[0; HEADER - 1])]);
    rig.send(TX, &[Out(&packet(25))]);
    rig.send(TX, &[Out(&packet(MAX_PACKET + 1))]);
    rig.send(TX, &[In(100)]);
    // A request that was not agreed on: cut this, and make its checksum.
    let mut cut = packet(100);
    cut[..10].copy_from_slice(&[1, 1, 54, 0, 200, 0, 34, 0, 16, 0]);
    rig.send(TX, &[Out(&cut)]);
    // A packet whose end lies outside of memory.
    let far = Descriptor { addr: END - 50, len: 100, flags: 0, next: 0 };
    rig.drivers[TX].chain(&rig.memory, &[far]);
    rig.process(TX);
    assert_eq!((0..).map_while(|_| rig.used(TX)).collect::<Vec<_>>(), [0; 6]);
    assert_eq!((network.received(), network.lost()), (None, [6, 0, 0]));
    rig.send(TX, &[Out(&packet(MAX_PACKET))]);
    rig.process(TX);
    assert_eq!(network.received(), Some(packet(MAX_PACKET)));
}

#[test]
fn a_port_that_takes_nothing_loses_packets_and_keeps_nobody_waiting() {
    let (mut rig, network) = rig(Offloads::empty());
    let count = 64;
    for _ in 0..count {
        rig.send(TX, &[Out(&packet(8012))]);
        rig.process(TX);
        rig.process(TX);
        assert_eq!(rig.used(TX), Some(0));
    }
    let there = (0..).map_while(|_| network.received()).count() as u64;
    assert!(there > 0 && there < count);
    assert_eq!(network.lost(), [0, count - there, 0]);
    drop(network.socket);
    rig.send(TX, &[Out(&packet(100))]);
    rig.process(TX);
    rig.process_host();
    assert_eq!(rig.used(TX), Some(0));
}

#[test]
fn one_queue_does_not_keep_the_others_waiting() {
    let (mut rig, network) = rig(Offloads::empty());
    let there = |network: &Network| (0..).map_while(|_| network.received()).count();
    for _ in 0..Io::TURN + 3 {
        rig.send(TX, &[Out(&packet(26))]);
        rig.send(RX, &[In(1536)]);
    }
    signals(&rig.kicks[TX]);
    // A socket holds fewer datagrams than a turn has: the rest is counted.
    rig.process(TX);
    assert_eq!(signals(&rig.kicks[TX]), 1);
    assert_eq!(there(&network) as u64 + network.lost()[1], Io::TURN as u64);
    rig.process(TX);
    assert_eq!(signals(&rig.kicks[TX]), 0);
    assert_eq!((0..).map_while(|_| rig.used(TX)).count(), Io::TURN + 3);
}

#[test]
fn packets_come_in_and_no_signal_is_lost() {
    let (mut rig, network) = rig(Offloads::empty());
    rig.process(RX);
    network.socket.send(&packet(100)).unwrap();
    assert!(wait(rig.device.host_event().unwrap(), std::time::Duration::from_secs(10)));
    // There is no buffer: the signal is taken, and the packet waits.
    rig.process_host();
    assert!(!wait(rig.device.host_event().unwrap(), std::time::Duration::ZERO));
    let places = rig.send(RX, &[In(12), In(1524)]);
    rig.process(RX);
    assert_eq!(rig.used(RX), Some(100));
    assert_eq!(rig.read(places[0], 100), numbered(packet(100), 1));
    assert_eq!(rig.interrupt.queue(), 1);
    // The driver's buffer waits for a packet.
    let places = rig.send(RX, &[In(1536)]);
    rig.process(RX);
    assert_eq!(rig.used(RX), None);
    network.socket.send(&packet(1526)).unwrap();
    rig.process_host();
    assert_eq!((rig.used(RX), rig.used(RX)), (Some(1526), None));
    assert_eq!(rig.read(places[0], 1526), numbered(packet(1526), 1));
}

#[test]
fn a_long_packet_takes_as_many_buffers_as_it_needs() {
    let (mut rig, network) = rig(Offloads::empty());
    // The first is longer than the device expects, the second is not, and the third is shorter.
    for (len, count) in [(10_000, 7), (10_000, 7), (200, 1), (1536, 1), (1537, 2)] {
        network.socket.send(&packet(len)).unwrap();
        let places: Vec<u64> = (0..10).flat_map(|_| rig.send(RX, &[In(1536)])).collect();
        rig.process_host();
        let lens: Vec<u32> = (0..).map_while(|_| rig.used(RX)).collect();
        assert_eq!(lens.iter().sum::<u32>() as usize, len);
        assert_eq!((lens.len(), lens[0]), (usize::from(count), u32::try_from(len.min(1536)).unwrap()));
        assert_eq!(rig.read(places[0], len), numbered(packet(len), count));
        // The other buffers stay with the device; a driver that starts anew has them back.
        rig.activate(true);
    }
    assert_eq!(network.lost(), [0; 3]);
}

#[test]
fn a_packet_waits_whole_for_the_buffers_it_lacks() {
    let (mut rig, network) = rig(Offloads::empty());
    network.socket.send(&packet(10_000)).unwrap();
    network.socket.send(&packet(50)).unwrap();
    let places: Vec<u64> = (0..6).flat_map(|_| rig.send(RX, &[In(1536)])).collect();
    rig.process_host();
    assert_eq!((rig.used(RX), rig.interrupt.queue()), (None, 0));
    // The guest may write over a buffer that it has given away, to no effect.
    crate::harness::write(&rig.memory, places[0], &[9; 3000]);
    rig.send(RX, &[In(1536)]);
    rig.send(RX, &[In(1536)]);
    rig.process(RX);
    let lens: Vec<u32> = (0..).map_while(|_| rig.used(RX)).collect();
    assert_eq!(lens, [1536, 1536, 1536, 1536, 1536, 1536, 784, 50]);
    assert_eq!(rig.read(places[0], 10_000), numbered(packet(10_000), 7));
    assert_eq!(network.lost(), [0; 3]);
}

#[test]
fn a_driver_without_merged_buffers_loses_what_does_not_fit() {
    let (mut rig, network) = rig(Offloads::empty());
    rig.declined = F_MERGEABLE;
    rig.activate(true);
    for len in [1537, 1536] {
        network.socket.send(&packet(len)).unwrap();
    }
    rig.send(RX, &[In(1536)]);
    let places = rig.send(RX, &[In(1536)]);
    rig.process_host();
    assert_eq!([rig.used(RX), rig.used(RX)], [Some(0), Some(1536)]);
    assert_eq!(rig.read(places[0], 1536), numbered(packet(1536), 1));
    assert_eq!(network.lost(), [0, 0, 1]);
}

#[test]
fn buffers_without_room_are_given_back() {
    let (mut rig, network) = rig(Offloads::empty());
    network.socket.send(&packet(100)).unwrap();
    rig.send(RX, &[Out(&[1; 100])]);
    let far = Descriptor { addr: END, len: 1536, flags: WRITE, next: 0 };
    rig.drivers[RX].chain(&rig.memory, &[far]);
    rig.process_host();
    assert_eq!(rig.used(RX), None);
    let places = rig.send(RX, &[In(1536)]);
    rig.process(RX);
    assert_eq!([rig.used(RX), rig.used(RX), rig.used(RX)], [Some(0), Some(0), Some(100)]);
    assert_eq!(rig.read(places[0], 10), [0; 10]);
    assert_eq!(network.lost(), [0; 3]);
    // A packet that all buffers of the queue do not hold is lost, and does not stop those behind it.
    network.socket.send(&packet(300)).unwrap();
    network.socket.send(&packet(100)).unwrap();
    for _ in 0..256 {
        rig.send(RX, &[In(1)]);
    }
    rig.process_host();
    assert_eq!((0..).map_while(|_| rig.used(RX)).collect::<Vec<_>>(), [0; 256]);
    rig.send(RX, &[In(1536)]);
    rig.process(RX);
    assert_eq!((rig.used(RX), network.lost()), (Some(100), [0, 0, 1]));
}

#[test]
fn a_driver_that_starts_anew_gets_no_packet_of_the_one_before() {
    let (mut rig, network) = rig(Offloads::empty());
    network.socket.send(&packet(10_000)).unwrap();
    rig.send(RX, &[In(1536)]);
    rig.process_host();
    rig.activate(true);
    network.socket.send(&packet(60)).unwrap();
    let places = rig.send(RX, &[In(1536)]);
    rig.process_host();
    assert_eq!((rig.used(RX), rig.used(RX)), (Some(60), None));
    assert_eq!(rig.read(places[0], 60), numbered(packet(60), 1));
}

#[test]
fn a_driver_that_leaves_a_queue_out_cannot_start() {
    let (mut rig, _network) = rig(Offloads::empty());
    let queues = [rig.drivers[0].to_queue(true), virtio_queue::Queue::default()];
    let activation = Activation { features: 0, memory: &rig.memory, queues: &queues, kicks: &[] };
    assert!(matches!(rig.device.activate(&activation), Err(ActivateError::Queue(1))));
}
