//! Fuzz bodies: each takes any bytes as the script of a hostile guest, and panics only on a defect.
//!
//! A body is a plain function, so that it can be called from anywhere: `cargo test` runs it a fixed number of times
//! with fixed seeds (`run`, which shrinks what fails), and a cargo-fuzz target outside the workspace is one line,
//! `fuzz_target!(|data: &[u8]| virtio::fuzz::blk(data))` with the feature `fuzzing`. Not here: a corpus.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Arc;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use virtio_queue::QueueT;
use vm_memory::VolatileSlice;

use crate::balloon::{Balloon, Reclaim};
use crate::blk::{BlockDevice, Blocks};
use crate::console::Console;
use crate::harness::{self, Descriptor, DriverQueue, END, Held, NEXT, Place, Rig, SEAM, WRITE};
use crate::mmio::MmioTransport;
use crate::net::{Datagrams, HEADER, MAX_PACKET, Net, Offloads, Settings, StationAddress};
use crate::rng::Entropy;
use crate::vsock::{GUEST_CID, PortMessage, Vsock, channel};
use crate::{Attached, Buffers, Chain, Device, Event, QueueHolder, SharedQueue};

/// Most steps of one script, so that a run stays short.
const MAX_STEPS: usize = 64;

/// A script, read from the front; past its end everything is 0.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let (now, later) = self.0.split_at(self.0.len().min(N));
        bytes[..now.len()].copy_from_slice(now);
        self.0 = later;
        bytes
    }

    fn u8(&mut self) -> u8 {
        let [byte] = self.bytes();
        byte
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    /// One of `choices`, which is not empty.
    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.u8()) % choices.len()]
    }

    /// An address at which an access may go wrong, or a valid one.
    fn address(&mut self) -> u64 {
        let base = self.pick(&[harness::DATA, harness::DATA, 0, 0x1000, SEAM, END, 1 << 32, u64::MAX]);
        base.wrapping_add(u64::from(self.u16())).wrapping_sub(self.pick(&[0, 0, 1, 512, 4096]))
    }

    fn descriptor(&mut self) -> Descriptor {
        let len = self.pick(&[0, 1, 15, 16, 17, 20, 512, 513, 4096, 65_536, 1 << 20, 1 << 31, u32::MAX]);
        let flags = self.pick(&[0, NEXT, NEXT, WRITE, NEXT | WRITE, NEXT | WRITE, 4, 4 | NEXT, u16::MAX]);
        Descriptor { addr: self.address(), len, flags, next: u16::from(self.u8() % 132) }
    }
}

/// A chain as a block driver makes it, with at most one fault; to other devices it is an arbitrary chain. Its header is
/// a request's, or page numbers.
fn almost_right<D: Device>(script: &mut Script<'_>, rig: &mut Rig<D>, queue: usize) {
    let (header, data, status) = (harness::DATA, SEAM - 512, END - 1);
    let kind = script.pick(&[0, 0, 1, 1, 4, 8, 11, 11, 13, 13, 14]);
    let range = [script.u32() % 36, 0, u32::from(script.u8() % 36), script.u32() % 4];
    let request = [kind, 0, script.u32() % 36, script.pick(&[0, 0, 0, u32::MAX])];
    for (address, words) in [(header, request), (data, range)] {
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        harness::write(&rig.memory, address, &bytes);
    }
    let readable = matches!(kind, 1 | 11 | 13);
    let len = match kind {
        8 => 20,
        11 | 13 => 16,
        _ => script.pick(&[512, 1024, 4096, 512 * 32]),
    };
    let flags = if readable { 0 } else { WRITE };
    let mut descriptors = [
        Descriptor { addr: header, len: 16, flags: 0, next: 0 },
        Descriptor { addr: data, len, flags, next: 0 },
        Descriptor { addr: status, len: 1, flags: WRITE, next: 0 },
    ];
    if script.u8().is_multiple_of(2) {
        descriptors[usize::from(script.u8() % 3)] = script.descriptor();
    }
    rig.drivers[queue].chain(&rig.memory, &descriptors);
}

/// Plays the script to a device alone.
fn device<D: Device>(device: D, data: &[u8]) {
    let mut script = Script(data);
    let mut rig = Rig::new(device, script.u8() & 1 != 0);
    for _ in 0..MAX_STEPS {
        if script.0.is_empty() {
            break;
        }
        let queue = usize::from(script.u8()) % rig.drivers.len();
        match script.u8() % 10 {
            0 | 1 => rig.drivers[queue].put(&rig.memory, u16::from(script.u8() % 128), script.descriptor()),
            2 => {
                let descriptors = [script.descriptor(), script.descriptor(), script.descriptor()];
                let count = usize::from(script.u8()) % 3 + 1;
                rig.drivers[queue].chain(&rig.memory, &descriptors[..count]);
            }
            3 => rig.drivers[queue].offer(&rig.memory, script.u16()),
            4 => rig.drivers[queue].set_avail_idx(&rig.memory, script.u16()),
            5 => almost_right(&mut script, &mut rig, queue),
            6 => {
                let mut config = [0; 8];
                rig.device.write_config(script.address(), &script.bytes::<4>());
                rig.device.read_config(script.address(), &mut config);
            }
            7 => rig.process_host(),
            8 if script.u8() == 0 => rig.activate(script.u8() & 1 != 0),
            _ => rig.process(queue),
        }
    }
    (0..rig.drivers.len()).for_each(|queue| rig.process(queue));
}

/// The entropy device.
pub fn rng(data: &[u8]) {
    device(Entropy::new(), data);
}

/// The console.
pub fn console(data: &[u8]) {
    let console = UnixStream::pair().and_then(|(near, mut far)| {
        near.set_nonblocking(true)?;
        far.write_all(data)?;
        Console::new(Box::new(io::sink()), Some(near.into()))
    });
    if let Ok(console) = console {
        device(console, data);
    }
}

/// The balloon.
pub fn balloon(data: &[u8]) {
    if let Ok((balloon, handle)) = Balloon::new(Box::new(InRam)) {
        handle.set_target(u64::from(Script(data).u32()));
        device(balloon, data);
    }
}

/// The block device.
pub fn blk(data: &[u8]) {
    let readonly = data.len().is_multiple_of(5);
    device(BlockDevice::new(Box::new(Bounded { readonly }), "fuzz"), data);
}

/// The host ports of the script's streams.
const HOST_PORTS: [u32; 5] = [1024, 1024, 1024, 1 << 31, 7];
const GUEST_PORTS: [u32; 3] = [7000, 7001, 9];

/// The socket device, between a guest and the host ends of its streams.
pub fn vsock(data: &[u8]) {
    let pair =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let Ok((channel, end)) = pair else { return };
    let Ok(vsock) = Vsock::new(end, vec![1024], GUEST_CID) else { return };
    let mut script = Script(data);
    let mut rig = Rig::new(vsock, script.u8() & 1 != 0);
    let mut hosts = Vec::new();
    for _ in 0..4 * MAX_STEPS {
        if script.0.is_empty() {
            break;
        }
        match script.u8() % 12 {
            0..=2 => packet(&mut script, &mut rig),
            3 => {
                let descriptor = Descriptor { addr: SEAM + 0x8000, len: 4096, flags: WRITE, next: 0 };
                for _ in 0..script.u8() % 32 {
                    rig.drivers[0].chain(&rig.memory, &[descriptor]);
                }
            }
            4 => {
                let descriptors = [script.descriptor(), script.descriptor()];
                let count = usize::from(script.u8()) % 2 + 1;
                let queue = usize::from(script.u8() % 3);
                rig.drivers[queue].chain(&rig.memory, &descriptors[..count]);
            }
            5 => rig.drivers[usize::from(script.u8() % 3)].set_avail_idx(&rig.memory, script.u16()),
            6 if script.u8() % 8 == 0 => rig.activate(script.u8() & 1 != 0),
            7 | 8 => host(&mut script, &channel, &mut hosts),
            9 => rig.process_host(),
            _ => rig.process(usize::from(script.u8() % 3)),
        }
        assert!(rig.device.is_within_limits());
    }
    // Once the hosts are gone, streams that belong to them must go as well.
    drop((channel, hosts));
    rig.process(1);
    rig.process_host();
    assert!(rig.device.is_within_limits());
}

/// Posts a packet of the guest's, with the faults that the script picks.
fn packet(script: &mut Script<'_>, rig: &mut Rig<Vsock>) {
    let mut header = Vec::new();
    for cid in [script.pick(&[GUEST_CID, GUEST_CID, GUEST_CID, 2]), script.pick(&[2, 2, 2, GUEST_CID])] {
        header.extend(cid.to_le_bytes());
    }
    let len = script.pick(&[0, 0, 1, 100, 4096, 65_536, 65_537, u32::MAX]);
    header.extend(script.pick(&GUEST_PORTS).to_le_bytes());
    header.extend(script.pick(&HOST_PORTS).to_le_bytes());
    header.extend(len.to_le_bytes());
    header.extend(script.pick(&[1u16, 1, 1, 1, 2]).to_le_bytes());
    header.extend(u16::from(script.u8() % 9).to_le_bytes());
    header.extend(u32::from(script.u8() % 4).to_le_bytes());
    header.extend(script.pick(&[0, 1, 4096, 262_144, u32::MAX]).to_le_bytes());
    header.extend(script.pick(&[0, 1, 100, 4096, 1 << 31, u32::MAX]).to_le_bytes());
    harness::write(&rig.memory, harness::DATA, &header);
    let first = script.pick(&[44, 44, 44, 20, 43, 45]);
    let rest = (44 + u64::from(len.min(65_537))).saturating_sub(u64::from(first));
    let rest = u32::try_from(rest).unwrap_or_default().saturating_sub(script.pick(&[0, 0, 0, 1]));
    let at = harness::DATA;
    let descriptors = [
        Descriptor { addr: at, len: first, flags: 0, next: 0 },
        Descriptor { addr: at + u64::from(first), len: rest, flags: 0, next: 0 },
    ];
    rig.drivers[1].chain(&rig.memory, &descriptors[..if rest == 0 { 1 } else { 2 }]);
    rig.process(1);
}

/// Takes a step of the host's.
fn host(script: &mut Script<'_>, channel: &OwnedFd, hosts: &mut Vec<UnixStream>) {
    let index = usize::from(script.u8()) % hosts.len().max(1);
    match (script.u8() % 8, hosts.get_mut(index)) {
        (0, _) => {
            let port = script.pick(&GUEST_PORTS);
            if let Ok((ours, theirs)) = UnixStream::pair()
                && ours.set_nonblocking(true).is_ok()
                && channel::send(channel.as_fd(), PortMessage::Connect { port }, theirs.as_fd()).is_ok()
            {
                hosts.push(ours);
            }
        }
        (1 | 2, _) => {
            if let Ok(Some((message, stream))) = channel::receive(channel.as_fd()) {
                assert_eq!(message, PortMessage::Accept { port: 1024 }, "nobody listens there");
                let stream = UnixStream::from(stream);
                if stream.set_nonblocking(true).is_ok() {
                    hosts.push(stream);
                }
            }
        }
        (3, Some(host)) => drop(host.write(&[9; 5000][..usize::from(script.u16() % 5000)])),
        (4 | 5, Some(host)) => drop(host.read(&mut [0; 5000])),
        (6, Some(host)) => drop(host.shutdown(script.pick(&[Shutdown::Read, Shutdown::Write]))),
        (7, Some(_)) => drop(hosts.swap_remove(index)),
        // The owner of the channel may also send a malformed message.
        (3, None) => drop(rustix::net::send(channel, &script.bytes::<9>(), SendFlags::DONTWAIT)),
        _ => {}
    }
}

/// The network device, between a guest and its network.
pub fn net(data: &[u8]) {
    let mut script = Script(data);
    let Ok((socket, network)) = UnixDatagram::pair() else { return };
    if socket.set_nonblocking(true).and(network.set_nonblocking(true)).is_err() {
        return;
    }
    let offloads = Offloads::from_bits_truncate(script.u8());
    let frames = Datagrams { socket, offloads, taken: Arc::default() };
    let settings = StationAddress::new([2, 0, 0, 0, 0, 1]).and_then(|address| Settings::new(address, 1500));
    let Ok(net) =
        settings.map_err(io::Error::other).and_then(|settings| Net::new(Box::new(frames), settings))
    else {
        return;
    };
    let mut rig = Rig::new(net, script.u8() & 1 != 0);
    let mut packet = [0; MAX_PACKET];
    for _ in 0..4 * MAX_STEPS {
        if script.0.is_empty() {
            break;
        }
        match script.u8() % 12 {
            0 | 1 => outgoing(&mut script, &mut rig),
            2 | 3 => {
                let len = script.pick(&[0, 1, 12, 25, 26, 1526, 1526, 9000, 65_562, 65_565, 65_566]);
                drop(network.send(&vec![0xab; len]));
            }
            4 | 5 => {
                let len = script.pick(&[1, 11, 12, 100, 1536, 1536, 4096, 1 << 16]);
                let descriptor = Descriptor { addr: SEAM - 0x800, len, flags: WRITE, next: 0 };
                for _ in 0..script.u8() % 64 {
                    rig.drivers[0].chain(&rig.memory, &[descriptor]);
                }
            }
            6 => {
                let descriptors = [script.descriptor(), script.descriptor()];
                let count = usize::from(script.u8()) % 2 + 1;
                let queue = usize::from(script.u8() % 2);
                rig.drivers[queue].chain(&rig.memory, &descriptors[..count]);
            }
            7 => rig.drivers[usize::from(script.u8() % 2)].set_avail_idx(&rig.memory, script.u16()),
            8 if script.u8() % 8 == 0 => {
                rig.declined = u64::from(script.u32());
                rig.activate(script.u8() & 1 != 0);
            }
            9 => rig.process_host(),
            _ => rig.process(usize::from(script.u8() % 2)),
        }
        while let Ok(len) = network.recv(&mut packet) {
            assert!(packet[0] <= 1 && (packet[1] == 0 || packet[0] == 1), "{:?}", &packet[..HEADER]);
            let end = [packet[6], packet[8]].map(usize::from);
            let end = end[0] + end[1] + 256 * (usize::from(packet[7]) + usize::from(packet[9])) + 2;
            assert!(packet[0] == 0 || HEADER + end <= len, "{:?} before {len}", &packet[..HEADER]);
        }
    }
}

/// Posts a packet of the guest's, with the faults that the script picks.
fn outgoing(script: &mut Script<'_>, rig: &mut Rig<Net>) {
    let len: u32 = script.pick(&[0, 13, 14, 60, 1514, 1514, 9000, 65_553, 65_554]);
    let mut header = vec![script.pick(&[0, 1, 1, 2, 0xff]), script.pick(&[0, 0, 1, 3, 4, 5, 0x81])];
    for number in [script.pick(&[0, 54, 1514, u16::MAX]), script.pick(&[0, 1448, u16::MAX])] {
        header.extend(number.to_le_bytes());
    }
    for number in [script.pick(&[0, 13, 14, 34, 1512, u16::MAX]), script.pick(&[0, 6, 16, u16::MAX]), 7] {
        header.extend(number.to_le_bytes());
    }
    harness::write(&rig.memory, harness::DATA, &header);
    let first = script.pick(&[12, 12, 11, 13]);
    let mut descriptors = [
        Descriptor { addr: harness::DATA, len: first, flags: 0, next: 0 },
        Descriptor {
            addr: harness::DATA + u64::from(first),
            len: (12 + len).saturating_sub(first),
            flags: 0,
            next: 0,
        },
    ];
    if script.u8().is_multiple_of(4) {
        descriptors[1] = script.descriptor();
    }
    rig.drivers[1].chain(&rig.memory, &descriptors);
    rig.process(1);
}

/// The transport, with one of the devices behind it.
pub fn mmio(data: &[u8]) {
    let mut script = Script(data);
    let device: Box<dyn Device> = match script.u8() % 3 {
        0 => Box::new(Entropy::new()),
        1 => Box::new(BlockDevice::new(Box::new(Bounded { readonly: false }), "fuzz")),
        _ => match Balloon::new(Box::new(InRam)) {
            Ok((balloon, _)) => Box::new(balloon),
            Err(_) => return,
        },
    };
    let memory = harness::memory();
    let Some(transport) =
        Event::new().and_then(|irq| MmioTransport::new(Attached::Device(device), memory.clone(), irq)).ok()
    else {
        return;
    };
    let word = |offset: u64| {
        let mut data = [0; 4];
        transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    };
    let set = |offset: u64, value: u32| transport.write(offset, &value.to_le_bytes());
    for _ in 0..4 * MAX_STEPS {
        if script.0.is_empty() {
            break;
        }
        match script.u8() % 8 {
            // The script takes the steps of a driver that starts, so that its later steps meet a device at work.
            0 => {
                for (offset, value) in
                    [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0), (0x20, 0)]
                {
                    set(offset, value);
                }
                set(0x70, 11);
                let queue = Place::new(0, u16::from(script.pick(&[8u8, 64, 128])));
                let low = |address: u64| u32::try_from(address).unwrap_or(0);
                let registers =
                    [(0x38, u32::from(queue.size)), (0x80, low(queue.desc)), (0x90, low(queue.avail))];
                for (offset, value) in
                    registers.into_iter().chain([(0xa0, low(queue.used)), (0x44, 1), (0x70, 15)])
                {
                    set(offset, value);
                }
            }
            1 => {
                let offset = u64::from(script.u8()) * 4;
                set(offset, script.u32());
            }
            2 => {
                let offset =
                    script.pick(&[0x70, 0x30, 0x38, 0x44, 0x50, 0x64, 0x80, 0x84, 0x90, 0xa0, 0x20, 0x24]);
                set(
                    offset,
                    script.pick(&[0, 1, 2, 3, 4, 7, 8, 11, 15, 64, 128, 0x1000, 0x1800, 0x1a00, u32::MAX]),
                );
            }
            3 => {
                let mut bytes = [0xaa; 8];
                let len = usize::from(script.u8()) % 9;
                transport.read(u64::from(script.u16() % 0x240), &mut bytes[..len]);
                transport.write(u64::from(script.u16() % 0x240), &bytes[..len]);
            }
            4 => harness::write(&memory, 0x1000 + u64::from(script.u16() % 0x1000), &script.bytes::<8>()),
            5 => transport.process_host(),
            _ => transport.process_queue(usize::from(script.u8() % 8)),
        }
        let status = word(0x70);
        assert_eq!(transport.activated(), status & 4 != 0 && status & 0xc0 == 0, "status {status:#x}");
        assert_eq!(status & 8 != 0, status & 8 != 0 && status & 3 == 3, "status {status:#x}");
        assert!(status & 4 == 0 || status & 8 != 0, "status {status:#x}");
    }
}

/// Most bytes of a hostile chain that the body reads and writes.
const TOUCHED: usize = 4096;

/// Keeps chains out while the driver goes on; they come back in any order, late, or never.
pub fn chains(data: &[u8]) {
    let mut script = Script(data);
    let memory = Arc::new(harness::memory());
    let place = Place::new(0, 64);
    let mut driver = DriverQueue::new(place);
    let held = Arc::new(Held::new(driver.to_queue(script.u8() & 1 != 0)));
    let mut queue = SharedQueue::new(Box::new(Arc::clone(&held)));
    // Chains that are out of this queue, chains that are out of the queues before it, and the number of chains that
    // came back to this one.
    let (mut out, mut late, mut back) = (Vec::<Chain>::new(), Vec::<Chain>::new(), 0u16);
    for _ in 0..4 * MAX_STEPS {
        if script.0.is_empty() {
            break;
        }
        let index = usize::from(script.u8());
        match script.u8() % 12 {
            0 => driver.put(&memory, u16::from(script.u8() % 64), script.descriptor()),
            1 => {
                let descriptors = [script.descriptor(), script.descriptor(), script.descriptor()];
                driver.chain(&memory, &descriptors[..index % 3 + 1]);
            }
            2 => driver.offer(&memory, script.u16() % 80),
            3 => driver.set_avail_idx(&memory, script.u16()),
            4..=6 => out.extend(queue.pop(&memory)),
            7 => {
                let chains = out.split_off(out.len().saturating_sub(index % 8));
                let mut batch = queue.batch();
                for chain in chains {
                    back = back.wrapping_add(u16::from(chain.head() < place.size));
                    batch.complete(chain, script.u32());
                }
            }
            8 if !out.is_empty() => {
                let chain = out.swap_remove(index % out.len());
                back = back.wrapping_add(u16::from(chain.head() < place.size));
                if script.u8() & 1 == 0 { chain.complete(script.u32()) } else { drop(chain) }
            }
            9 => late.clear(),
            10 if script.u8() % 4 == 0 => {
                queue.close();
                assert!(queue.pop(&memory).is_none());
                late.append(&mut out);
                driver = DriverQueue::new(place);
                harness::write(&memory, place.desc, &[0; 0x1000]);
                held.replace(driver.to_queue(script.u8() & 1 != 0));
                queue = SharedQueue::new(Box::new(Arc::clone(&held)));
                back = 0;
            }
            _ => out.iter().chain(&late).for_each(touch),
        }
        held.lend(&mut |queue| assert_eq!(queue.next_used(), back));
        assert_eq!(queue.out(), out.len());
        assert!(out.len() <= usize::from(place.size));
    }
}

/// Uses a chain's buffers, whose bytes lie in guest memory.
fn touch(chain: &Chain) {
    let Buffers { readable, mut writable, .. } = chain.buffers();
    let mut bytes = [0; TOUCHED];
    assert_eq!(readable.read(&mut bytes), readable.len().min(TOUCHED));
    // The body writes nothing: the rings are in the same memory.
    writable.take(writable.len() / 2);
    assert!(writable.as_slice().iter().all(|slice| !slice.is_empty()));
}

/// Checks a balloon's promises to its port.
struct InRam;

impl Reclaim for InRam {
    fn reclaim(&mut self, address: u64, len: u64) {
        assert!(address.is_multiple_of(4096) && len.is_multiple_of(4096) && len > 0);
        assert!(address + len <= END);
    }
}

/// Checks a block device's promises to its port.
struct Bounded {
    readonly: bool,
}

impl Bounded {
    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        assert!(offset.is_multiple_of(512) && len.is_multiple_of(512));
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len()));
        // One in four requests fails.
        if offset / 512 % 4 == 3 { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    }
}

impl Blocks for Bounded {
    fn len(&self) -> u64 {
        32 * 512
    }

    fn readonly(&self) -> bool {
        self.readonly
    }

    fn read(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.check(offset, buffers.iter().map(|buffer| buffer.len() as u64).sum())?;
        buffers.iter().for_each(|buffer| buffer.copy_from(&[0x55u8; 512]));
        Ok(())
    }

    fn write(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        assert!(!self.readonly);
        self.check(offset, buffers.iter().map(|buffer| buffer.len() as u64).sum())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn gives_back(&self) -> bool {
        true
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        assert!(!self.readonly);
        self.check(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::any;
    use proptest::test_runner::{Config, RngSeed, TestRunner};

    /// Calls `body` with `cases` scripts, the same ones in every run; a failing script is shrunk and printed.
    #[allow(clippy::unwrap_used, reason = "tests")]
    fn run(cases: u32, body: fn(&[u8])) {
        let config =
            Config { cases, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Config::default() };
        TestRunner::new(config)
            .run(&vec(any::<u8>(), 0..1024), |data| {
                body(&data);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn rng() {
        run(2000, super::rng);
    }

    #[test]
    fn console() {
        run(2000, super::console);
    }

    #[test]
    fn balloon() {
        run(2000, super::balloon);
    }

    #[test]
    fn blk() {
        run(2000, super::blk);
    }

    #[test]
    fn chains() {
        run(2000, super::chains);
    }

    #[test]
    fn vsock() {
        run(1000, super::vsock);
    }

    #[test]
    fn net() {
        run(1000, super::net);
    }

    #[test]
    fn mmio() {
        run(2000, super::mmio);
    }
}
