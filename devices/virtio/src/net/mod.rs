//! Network device (VIRTIO 1.3 §5.1): one pair of queues, mergeable receive buffers, offloads that the port has.
//!
//! The port [`Frames`] carries packets whole, each with the header of §5.1.6 in front: a TAP, or a network stack in this
//! process. A packet for the guest goes straight into its buffers. Not here: addresses of IP, what may leave, several
//! pairs of queues, and the control queue.

mod header;
mod room;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bitflags::bitflags;
use guest_memory::GuestRam;
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::VolatileSlice;

use crate::chain::Buffers;
use crate::sys::{EventSet, Trigger};
use crate::{ActivateError, Activation, Device, DeviceKind, Done, Event, Identity, Io};

pub use header::HEADER;
use room::{Filled, Room};

/// The queue of packets to the guest.
const RX: usize = 0;
/// The queue of packets from the guest.
const TX: usize = 1;
/// As many packets as Linux sends before it waits for the device; the longest one for it takes 43 buffers.
const QUEUE_SIZES: [u16; 2] = [256, 256];

/// Most bytes of a packet, header included: the largest packet of IP behind an Ethernet header with a VLAN's tag.
pub const MAX_PACKET: usize = HEADER + MAX_LINK_HEADER + 65_535;
const MAX_LINK_HEADER: usize = 18;
/// Fewest bytes of a frame: an Ethernet header without a VLAN's tag.
const MIN_FRAME: usize = 14;
/// Most buffers of one packet: what one system call takes, less one for the header of a packet from the guest, or for the end of
/// a packet to the guest.
const MAX_BUFFERS: usize = 1023;

/// `VIRTIO_NET_F_MTU`, `_MAC`, `_MRG_RXBUF`.
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_MERGEABLE: u64 = 1 << 15;

bitflags! {
    /// Work that one side leaves to the other: a receiver of packets says what it can do without.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Offloads: u8 {
        /// Checksums of TCP and UDP are not made yet. All others need this one.
        const CHECKSUM = 1;
        /// TCP over IPv4 comes in packets that exceed the MTU.
        const TCP4 = 1 << 1;
        /// TCP over IPv6 comes in packets that exceed the MTU.
        const TCP6 = 1 << 2;
        /// Datagrams of UDP come several in one packet, over either version of IP.
        const UDP = 1 << 3;
    }
}

impl Offloads {
    /// Each offload, the feature bits by which the device offers to take such packets from the driver, and those by
    /// which the driver offers to take them from the device.
    const FEATURES: [(Self, u64, u64); 4] = [
        (Self::CHECKSUM, 1 << 0, 1 << 1),
        (Self::TCP4, 1 << 11, 1 << 7),
        (Self::TCP6, 1 << 12, 1 << 8),
        (Self::UDP, 1 << 56, 1 << 54 | 1 << 55),
    ];

    /// Feature bits of both directions.
    fn features(self) -> u64 {
        let has = |(offload, ..): &&(Self, u64, u64)| self.contains(*offload);
        Self::FEATURES
            .iter()
            .filter(has)
            .fold(0, |all, (_, to_device, to_driver)| all | to_device | to_driver)
    }

    /// The work that the driver may leave to the device, and the device to the driver.
    fn negotiated(features: u64) -> (Self, Self) {
        let agreed = |bits: fn(&(Self, u64, u64)) -> u64| {
            let all = Self::FEATURES.iter().filter(|row| features & bits(row) == bits(row));
            let all = all.map(|(offload, ..)| *offload).collect::<Self>();
            // VIRTIO 1.3 §5.1.3.1: every other offload requires that of checksums.
            if all.contains(Self::CHECKSUM) { all } else { Self::empty() }
        };
        (agreed(|row| row.1), agreed(|row| row.2))
    }
}

/// Carries packets between a network device and its network. Each begins with a header of [`HEADER`] bytes. No call
/// waits.
pub trait Frames: Send {
    /// A descriptor that signals when a packet arrives ([`Self::receive`]).
    fn event(&self) -> BorrowedFd<'_>;
    /// The offloads that the port can have in either direction. They never change.
    fn offloads(&self) -> Offloads;
    /// Says what the guest takes of [`Self::offloads`] from now on; it starts with none.
    fn set_offloads(&mut self, taken: Offloads) -> io::Result<()>;
    /// Sends a packet of the guest's. Its header has been checked; the rest are bytes of the guest's, and may change. A
    /// packet for which there is no room is lost (`WouldBlock`).
    fn send(&mut self, packet: &[VolatileSlice<'_>]) -> io::Result<()>;
    /// Receives a packet into `room`, which has [`MAX_PACKET`] bytes or more. Returns its length, or 0 if there never
    /// is another; `WouldBlock` if there is none now.
    fn receive(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize>;
}

/// An Ethernet address of one station.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StationAddress([u8; 6]);

impl StationAddress {
    /// The address, unless it is a group's or all zeroes.
    pub fn new(bytes: [u8; 6]) -> Result<Self, SettingsError> {
        let is_group = bytes[0] & 1 != 0;
        if is_group || bytes == [0; 6] { Err(SettingsError::Address(bytes)) } else { Ok(Self(bytes)) }
    }
}

/// Fewest bytes that a link for IP carries (RFC 791).
const MIN_MTU: u16 = 68;

/// The facts that a network device tells its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    address: StationAddress,
    mtu: u16,
}

impl Settings {
    /// The guest's address, and most bytes of a packet of IP that it sends without offloads.
    pub fn new(address: StationAddress, mtu: u16) -> Result<Self, SettingsError> {
        if mtu < MIN_MTU { Err(SettingsError::Mtu(mtu)) } else { Ok(Self { address, mtu }) }
    }

    /// The configuration space (VIRTIO 1.3 §5.1.4); the fields between address and MTU need features not offered.
    fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.address.0);
        config[10..].copy_from_slice(&self.mtu.to_le_bytes());
        config
    }
}

/// Settings that no network device can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The address is that of no station.
    #[error("{0:02x?} is not the Ethernet address of one station")]
    Address([u8; 6]),
    /// The MTU is too small.
    #[error("an MTU of {0} is less than {MIN_MTU}")]
    Mtu(u16),
}

/// Packets that did not arrive; the counters go on counting.
#[derive(Debug, Default)]
pub struct Lost {
    /// Packets of the guest's that are malformed.
    pub malformed: AtomicU64,
    /// Packets of the guest's that the port did not take.
    pub refused: AtomicU64,
    /// Packets for the guest that do not fit into its buffers.
    pub too_long: AtomicU64,
}

impl Lost {
    fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A network device.
pub struct Net {
    frames: Box<dyn Frames>,
    settings: Settings,
    features: u64,
    lost: Arc<Lost>,
    /// Watches the port, edge-triggered, so that packets for which nobody has room do not keep the event loop busy.
    arrivals: EventSet,
    /// Whether the port may have more; if false, an edge tells of a new packet.
    pending: bool,
    /// Where the end of a packet goes for which the buffers taken so far are too small.
    spare: Box<[u8]>,
    /// The length of the packet in `spare` that waits for buffers.
    held: Option<usize>,
    /// The length of the last packet: a guess at that of the next one.
    expected: usize,
    /// The offloads that the driver may leave to the port.
    outgoing: Offloads,
    mergeable: bool,
    kicks: [Option<Event>; 2],
}

impl Net {
    /// A device before the port `frames`.
    pub fn new(frames: Box<dyn Frames>, settings: Settings) -> io::Result<Self> {
        let arrivals = EventSet::new()?;
        arrivals.add(frames.event(), Trigger::Edge)?;
        Ok(Self {
            features: F_MTU | F_MAC | F_MERGEABLE | frames.offloads().features(),
            frames,
            settings,
            lost: Arc::default(),
            arrivals,
            pending: true,
            spare: vec![0; MAX_PACKET].into_boxed_slice(),
            held: None,
            expected: 0,
            outgoing: Offloads::empty(),
            mergeable: false,
            kicks: [None, None],
        })
    }

    /// The counters of lost packets.
    #[must_use]
    pub fn lost(&self) -> Arc<Lost> {
        Arc::clone(&self.lost)
    }

    fn transmit(&mut self, io: &mut Io<'_>) {
        let Self { frames, lost, outgoing, kicks, .. } = self;
        io.serve(TX, kicks[TX].as_ref(), |memory, chain| {
            let moved = send(frames.as_mut(), *outgoing, lost, memory, chain);
            Done { len: 0, moved }
        });
    }

    fn receive(&mut self, io: &mut Io<'_>) {
        let (turn, bytes) =
            if self.kicks[RX].is_some() { (Io::TURN, Io::TURN_BYTES) } else { (usize::MAX, usize::MAX) };
        let (mut given, mut moved) = (0, 0usize);
        while self.pending || self.held.is_some() {
            if given == turn || moved >= bytes {
                self.kicks[RX].iter().for_each(Event::signal);
                break;
            }
            let Some(mut room) = Room::take(io, RX, if self.mergeable { self.expected } else { 0 }) else {
                break;
            };
            let Some(len) = self.next_packet(&room) else {
                room.put_back(io);
                break;
            };
            match room.fill(io, len, &mut self.spare, self.mergeable) {
                Filled::Given => (given, moved) = (given + 1, moved + len),
                Filled::Lost => {
                    Lost::count(&self.lost.too_long);
                    given += 1;
                }
                Filled::Short => {
                    self.held = Some(len);
                    break;
                }
            }
        }
        if given > 0 {
            io.notify(RX);
        }
    }

    /// Puts the next packet into `room`, and what does not fit there into `spare`. Returns its length, if there is one.
    fn next_packet(&mut self, room: &Room<'_>) -> Option<usize> {
        if let Some(len) = self.held.take() {
            let there = room.write(&self.spare[..len]);
            self.spare.copy_within(there..len, 0);
            return Some(len);
        }
        loop {
            let places = [room.slices(), &[VolatileSlice::from(&mut self.spare[..])]].concat();
            match self.frames.receive(&places) {
                Ok(0) => self.pending = false,
                // A packet without a frame, or one that was cut: neither comes from a port that keeps its promises.
                Ok(len) if !(HEADER + MIN_FRAME..=MAX_PACKET).contains(&len) => {
                    Lost::count(&self.lost.too_long);
                    continue;
                }
                Ok(len) => {
                    self.expected = len;
                    return Some(len);
                }
                // There is none now, or (an error) none ever again; an edge tells of a new one.
                Err(_) => self.pending = false,
            }
            return None;
        }
    }
}

/// Sends the packet of a chain; returns its length.
fn send(
    frames: &mut dyn Frames,
    outgoing: Offloads,
    lost: &Lost,
    memory: &GuestRam,
    chain: DescriptorChain<&GuestRam>,
) -> usize {
    let Buffers { mut readable, malformed, .. } = Buffers::new(memory, chain);
    let header = readable.take(HEADER).map(|header| {
        let mut bytes = [0; HEADER];
        header.read(&mut bytes);
        bytes
    });
    let len = readable.len();
    // The header that the port sees is a copy: the guest cannot change it any more.
    let checked = header
        .filter(|_| !malformed && (MIN_FRAME..=MAX_PACKET - HEADER).contains(&len))
        .filter(|_| readable.as_slice().len() <= MAX_BUFFERS)
        .and_then(|header| header::checked(header, len, outgoing));
    let Some(mut header) = checked else {
        Lost::count(&lost.malformed);
        return 0;
    };
    let packet = [&[VolatileSlice::from(&mut header[..])], readable.as_slice()].concat();
    if frames.send(&packet).is_err() {
        Lost::count(&lost.refused);
    }
    len
}

impl Device for Net {
    fn identity(&self) -> Identity<'_> {
        Identity { kind: DeviceKind::Net, features: self.features, queue_sizes: &QUEUE_SIZES }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::device::copy_config(&self.settings.config(), offset, data);
    }

    fn activate(&mut self, activation: &Activation<'_>) -> Result<(), ActivateError> {
        for queue in [RX, TX] {
            if !activation.queues.get(queue).is_some_and(QueueT::ready) {
                return Err(ActivateError::Queue(queue));
            }
        }
        let (outgoing, incoming) = Offloads::negotiated(activation.features);
        self.frames.set_offloads(incoming).map_err(|error| ActivateError::Host(error.to_string()))?;
        self.outgoing = outgoing;
        self.mergeable = activation.features & F_MERGEABLE != 0;
        self.kicks = [RX, TX].map(|queue| activation.own_kick(queue));
        Ok(())
    }

    fn process(&mut self, index: usize, io: &mut Io<'_>) {
        match index {
            RX => self.receive(io),
            TX => self.transmit(io),
            _ => {}
        }
    }

    fn host_event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.arrivals.as_fd())
    }

    fn process_host(&mut self, io: &mut Io<'_>) {
        self.arrivals.acknowledge();
        self.pending = true;
        self.receive(io);
    }

    fn reset(&mut self) {
        // Packets with offloads that the next driver may not take are dropped where they are longer than its buffers;
        // a port that refuses to have none is gone.
        let _ = self.frames.set_offloads(Offloads::empty());
        (self.held, self.expected) = (None, 0);
        (self.outgoing, self.mergeable) = (Offloads::empty(), false);
        self.kicks = [None, None];
    }
}

/// A port for tests: a socket whose datagrams are packets.
#[cfg(any(test, feature = "fuzzing"))]
#[derive(Debug)]
pub(crate) struct Datagrams {
    pub(crate) socket: std::os::unix::net::UnixDatagram,
    pub(crate) offloads: Offloads,
    /// The offloads that the guest takes.
    pub(crate) taken: Arc<std::sync::atomic::AtomicU8>,
}

#[cfg(any(test, feature = "fuzzing"))]
impl Frames for Datagrams {
    fn event(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&mut self, taken: Offloads) -> io::Result<()> {
        assert!(self.offloads.contains(taken));
        self.taken.store(taken.bits(), Ordering::SeqCst);
        Ok(())
    }

    fn send(&mut self, packet: &[VolatileSlice<'_>]) -> io::Result<()> {
        let len: usize = packet.iter().map(VolatileSlice::len).sum();
        assert!((HEADER + MIN_FRAME..=MAX_PACKET).contains(&len));
        guest_memory::write_packet(self.socket.as_fd(), packet).map(|_| ())
    }

    fn receive(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        assert!(room.iter().map(VolatileSlice::len).sum::<usize>() >= MAX_PACKET);
        guest_memory::read_packet(self.socket.as_fd(), room)
    }
}

#[cfg(test)]
mod tests;
