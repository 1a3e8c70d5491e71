//! A network device before a TAP of the kernel's, in a network namespace of the test's own: a driver of the test's sends
//! and receives what the kernel's UDP and TCP do.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use tap::{Error, Tap};
use virtio::Device;
use virtio::harness::Buffer::Out;
use virtio::harness::{Descriptor, Rig, SEAM, WRITE, wait};
use virtio::net::{Frames, HEADER, Net, Offloads, Settings, StationAddress};

const RX: usize = 0;
const TX: usize = 1;
const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 2];
const HOST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `test` on a thread in a network namespace of its own.
fn apart(test: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        return skip::skip("root", "network namespaces of a thread take root");
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        return skip::skip("/dev/net/tun", Error::NoDevice);
    }
    let thread =
        std::thread::Builder::new().name(std::thread::current().name().unwrap_or_default().to_owned());
    let thread = thread.spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        test();
    });
    thread.unwrap().join().unwrap();
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A network device and its driver, which keeps all buffers for packets with the device.
struct Guest {
    rig: Rig<Net>,
    next: u16,
}

/// Buffers for packets, and the size of each.
const BUFFERS: u16 = 256;
const BUFFER: u32 = 1536;

impl Guest {
    /// The guest on interface `net0` with address 192.0.2.1 has 192.0.2.2.
    fn new(declined: u64) -> Self {
        let tap = Tap::create("net0").unwrap();
        ip("link set net0 address 02:00:00:00:00:01");
        ip("addr add 192.0.2.1/24 dev net0");
        // No packets but those that the test asks for.
        std::fs::write("/proc/sys/net/ipv6/conf/net0/disable_ipv6", "1").unwrap();
        ip("link set net0 up");
        ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev net0");
        let settings = Settings::new(StationAddress::new(GUEST).unwrap(), 1500).unwrap();
        let mut rig = Rig::new(Net::new(Box::new(tap), settings).unwrap(), true);
        rig.declined = declined;
        rig.activate(true);
        let mut guest = Self { rig, next: 0 };
        (0..BUFFERS).for_each(|_| guest.give());
        guest
    }

    /// Gives the next buffer to the device. Buffers come back in order, and each has a descriptor of its own.
    fn give(&mut self) {
        let addr = SEAM + u64::from(self.next) * u64::from(BUFFER);
        let descriptor = Descriptor { addr, len: BUFFER, flags: WRITE, next: 0 };
        assert_eq!(self.rig.drivers[RX].chain(&self.rig.memory, &[descriptor]), self.next);
        self.next = (self.next + 1) % BUFFERS;
    }

    /// The bytes of the next buffer that comes back.
    fn buffer(&mut self) -> Option<Vec<u8>> {
        let (head, len) = self.rig.drivers[RX].used(&self.rig.memory)?;
        let bytes = self.rig.read(SEAM + u64::from(head) * u64::from(BUFFER), len as usize);
        self.give();
        Some(bytes)
    }

    /// The next packet of IPv4 from the kernel: its header, and its frame.
    fn receive(&mut self) -> (Vec<u8>, Vec<u8>) {
        loop {
            self.rig.process(RX);
            let Some(mut packet) = self.buffer() else {
                assert!(wait(self.rig.device.host_event().unwrap(), PATIENCE), "no packet comes");
                self.rig.process_host();
                continue;
            };
            for _ in 1..u16::from_le_bytes([packet[10], packet[11]]) {
                packet.extend(self.buffer().unwrap());
            }
            let frame = packet.split_off(HEADER);
            if frame[12..14] == [8, 0] {
                return (packet, frame);
            }
        }
    }

    fn send(&mut self, header: &[u8], frame: &[u8]) {
        self.rig.send(TX, &[Out(header), Out(frame)]);
        self.rig.process(TX);
        assert_eq!(self.rig.used(TX), Some(0));
    }
}

/// A frame of IPv4 from the guest.
fn frame(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1];
    let len = u16::try_from(ip.len() + payload.len()).unwrap();
    ip[2..4].copy_from_slice(&len.to_be_bytes());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&HOST, &GUEST, &[8, 0][..], &ip, payload].concat()
}

/// The checksum of the Internet (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    !fold(bytes)
}

fn fold(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let once = (sum & 0xffff) + (sum >> 16);
    u16::try_from((once & 0xffff) + (once >> 16)).unwrap()
}

/// A datagram from port 7000 to `port`, whose checksum is that of its pseudo-header: the rest is left to the device.
fn datagram(port: u16, data: &[u8], len: usize) -> Vec<u8> {
    let length = u16::try_from(8 + len).unwrap().to_be_bytes();
    let pseudo = fold(&[&[192, 0, 2, 2, 192, 0, 2, 1, 0, 17], &length[..]].concat());
    [&7000u16.to_be_bytes(), &port.to_be_bytes(), &length, &pseudo.to_be_bytes(), data].concat()
}

/// The header of a packet whose checksum is to be made, of protocol UDP or TCP.
fn unfinished(kind: u8, headers: u16, segment: u16, sum_at: u16) -> [u8; HEADER] {
    let mut header = [1, kind, 0, 0, 0, 0, 34, 0, 0, 0, 0, 0];
    header[2..4].copy_from_slice(&headers.to_le_bytes());
    header[4..6].copy_from_slice(&segment.to_le_bytes());
    header[8..10].copy_from_slice(&sum_at.to_le_bytes());
    header
}

#[test]
fn datagrams_go_both_ways_and_the_kernel_makes_their_checksums() {
    apart(|| {
        let mut guest = Guest::new(0);
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let sent = frame(17, &datagram(port, b"hello", 5));
        guest.send(&unfinished(0, 0, 0, 6), &sent);
        let mut bytes = [0; 100];
        assert_eq!(socket.recv_from(&mut bytes).unwrap(), (5, "192.0.2.2:7000".parse().unwrap()));
        assert_eq!(&bytes[..5], b"hello");
        socket.send_to(b"welcome", "192.0.2.2:7000").unwrap();
        let (header, frame) = guest.receive();
        assert_eq!(&frame[42..], b"welcome");
        // The driver takes packets without checksums, so the kernel does not make them.
        assert_eq!(header, [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 1, 0]);
    });
}

#[test]
fn many_datagrams_come_in_one_packet_where_the_kernel_cuts_them() {
    apart(|| {
        let mut guest = Guest::new(0);
        if guest.rig.device.identity().features & 1 << 56 == 0 {
            return skip::skip("uso", "the kernel does not cut datagrams of a TAP");
        }
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let data: Vec<u8> = (0..2500u16).map(|byte| u8::try_from(byte % 251).unwrap()).collect();
        let sent = frame(17, &datagram(port, &data, data.len()));
        guest.send(&unfinished(5, 42, 1000, 6), &sent);
        let mut bytes = [0; 3000];
        for part in data.chunks(1000) {
            assert_eq!(socket.recv(&mut bytes).unwrap(), part.len());
            assert_eq!(&bytes[..part.len()], part);
        }
    });
}

/// A driver that speaks just enough TCP to take bytes of one connection, and to acknowledge them.
struct Receiver {
    port: u16,
    next: u32,
    ours: u32,
}

impl Receiver {
    fn answer(&self, guest: &mut Guest, flags: u8, options: &[u8]) {
        let mut segment = [80u16.to_be_bytes(), self.port.to_be_bytes()].concat();
        segment.extend(self.ours.to_be_bytes());
        segment.extend(self.next.to_be_bytes());
        let words = u8::try_from(5 + options.len() / 4).unwrap();
        segment.extend([words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(options);
        let len = u16::try_from(segment.len()).unwrap().to_be_bytes();
        let sum = fold(&[&[192, 0, 2, 2, 192, 0, 2, 1, 0, 6], &len[..]].concat());
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        guest.send(&unfinished(0, 0, 0, 16), &frame(6, &segment));
    }
}

#[test]
fn tcp_comes_in_packets_beyond_the_mtu_if_the_driver_takes_them() {
    for declined in [0, 1 << 7] {
        apart(move || {
            let mut guest = Guest::new(declined);
            let data: Vec<u8> = (0..60_000u32).map(|byte| u8::try_from(byte % 251).unwrap()).collect();
            let expected = data.clone();
            let writer = std::thread::spawn(move || {
                let mut stream = TcpStream::connect("192.0.2.2:80").unwrap();
                stream.write_all(&data).unwrap();
                stream
            });
            let mut receiver = Receiver { port: 0, next: 0, ours: 1000 };
            let (mut received, mut longest) = (Vec::<u8>::new(), 0);
            while received.len() < expected.len() {
                let (header, frame) = guest.receive();
                let tcp = &frame[34..];
                let number = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
                if tcp[13] & 2 != 0 {
                    receiver.port = u16::from_be_bytes(tcp[..2].try_into().unwrap());
                    receiver.next = number.wrapping_add(1);
                    // SYN and ACK; segments of 1460 bytes, a window of 65535 * 16.
                    receiver.answer(&mut guest, 0x12, &[2, 4, 5, 0xb4, 1, 3, 3, 4]);
                    receiver.ours += 1;
                    continue;
                }
                let data = &tcp[usize::from(tcp[12] >> 4) * 4..];
                let len = usize::from(u16::from_be_bytes(frame[16..18].try_into().unwrap())) + 14;
                assert_eq!(frame.len().max(60), len.max(60));
                longest = longest.max(frame.len());
                assert_eq!(header[1] == 1, frame.len() > 1514, "cut by the reader: {header:?}");
                if number == receiver.next && !data.is_empty() {
                    received.extend(data);
                    receiver.next = receiver.next.wrapping_add(u32::try_from(data.len()).unwrap());
                }
                receiver.answer(&mut guest, 0x10, &[]);
            }
            assert!(received == expected);
            assert_eq!(longest > 1514, declined == 0, "{longest}");
            drop(writer.join().unwrap());
        });
    }
}

#[test]
fn a_tap_is_handed_on_and_ends_with_its_last_descriptor() {
    apart(|| {
        let listed = || {
            let output = Command::new("ip").args(["-o", "link"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().contains("net0")
        };
        let fd = OwnedFd::from(Tap::create("net0").unwrap());
        let tap = Tap::new(fd.try_clone().unwrap()).unwrap();
        assert!(tap.offloads().contains(Offloads::all() - Offloads::UDP));
        // Of a thread in another namespace, too, the interface stays where it was made.
        drop(fd);
        let tap = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tap
        });
        let tap = tap.join().unwrap();
        assert!(listed());
        drop(tap);
        assert!(!listed());
    });
}

#[test]
fn what_is_no_tap_is_refused() {
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(Tap::new(file.into()), Err(Error::NoTap)));
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(matches!(Tap::new(stream.into()), Err(Error::NoTap)));
    for name in ["", "sixteen-letters-", "a/b", "net%d", "a b"] {
        assert!(matches!(Tap::create(name), Err(Error::Name(refused)) if refused == name));
    }
}
