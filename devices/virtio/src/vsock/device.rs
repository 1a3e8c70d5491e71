//! The socket device: its queues, and the turns that it takes on them. The meaning of packets is [`super::switch`]'s.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use virtio_queue::QueueT;

#[cfg(any(test, feature = "fuzzing"))]
use super::credit::WINDOW;
use super::packet::{Packet, Room};
use super::switch::Switch;
#[cfg(any(test, feature = "fuzzing"))]
use super::switch::{MAX_RESETS, MAX_STREAMS};
use crate::{ActivateError, Activation, Device, DeviceKind, Event, Identity, Io};

/// The queue of packets to the guest.
const RX: usize = 0;
/// The queue of packets from the guest.
const TX: usize = 1;
/// Sizes of the queues. The third carries events, none of which ever happens here.
const QUEUES: [u16; 3] = [128, 128, 8];

/// `VIRTIO_VSOCK_F_STREAM` and `VIRTIO_VSOCK_F_NO_IMPLIED_STREAM`.
const FEATURES: u64 = 1 << 0 | 1 << 2;

/// A socket device.
#[derive(Debug)]
pub struct Vsock {
    switch: Switch,
    active: bool,
    /// Whether packets were left in the tx queue because there is no place for their answers.
    stalled: bool,
    /// The queues' kicks, by which the device asks for another turn.
    kicks: [Option<Event>; 2],
}

impl Vsock {
    /// A device with the guest's context id `cid`, over the device end of a port channel. The guest may connect to the
    /// host ports `listening`, and to no others.
    pub fn new(channel: OwnedFd, listening: Vec<u32>, cid: u64) -> io::Result<Self> {
        let switch = Switch::new(channel, listening, cid)?;
        Ok(Self { switch, active: false, stalled: false, kicks: [None, None] })
    }

    /// Takes packets from the guest.
    fn take_packets(&mut self, io: &mut Io<'_>) {
        let turn = self.turn(TX);
        let mut taken = 0;
        loop {
            if taken == turn {
                self.again(TX);
                break;
            }
            // VIRTIO 1.3 §5.10.6.1: "Eventually even the additional resources will be exhausted and further processing
            // is not possible until the other side processes the virtqueue that it has neglected."
            self.stalled = !self.switch.can_accept();
            if self.stalled {
                break;
            }
            let Some(chain) = io.pop(TX) else { break };
            let head = chain.head_index();
            // A chain without a header has no sender to answer.
            if let Some(packet) = Packet::new(io.memory, chain) {
                self.switch.accept(packet);
            }
            io.complete(TX, head, 0);
            taken += 1;
        }
        if taken > 0 {
            io.notify(TX);
        }
    }

    /// Gives packets to the guest, as many as there is room for. Only a guest without room is asked to notify of more
    /// room.
    fn give_packets(&mut self, io: &mut Io<'_>) {
        let turn = self.turn(RX);
        let mut given = 0;
        while self.switch.wants_room() {
            if given == turn {
                self.again(RX);
                break;
            }
            let Some(chain) = io.pop(RX) else { break };
            let head = chain.head_index();
            let len = match Room::new(io.memory, chain) {
                Some(room) => self.switch.emit(&room),
                // No packet fits into the chain: the driver gets it back empty.
                None => Some(0),
            };
            match len {
                Some(len) => {
                    io.complete(RX, head, len);
                    given += 1;
                }
                // There was no packet after all.
                None => io.unpop(RX),
            }
            if self.stalled && self.switch.can_resume() {
                self.take_packets(io);
            }
        }
        if given > 0 {
            io.notify(RX);
        }
    }

    /// Whether the device holds no more streams, bytes from the guest, and resets than it may.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn is_within_limits(&self) -> bool {
        let streams = self.streams();
        streams <= MAX_STREAMS
            && self.waiting() <= streams * WINDOW as usize
            && self.resets() <= MAX_RESETS + MAX_STREAMS
    }

    /// Bytes from the guest that wait for the host.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn waiting(&self) -> usize {
        self.switch.waiting()
    }

    /// Number of streams.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn streams(&self) -> usize {
        self.switch.streams()
    }

    /// Number of streams that wait for their turn to give the guest something.
    #[cfg(test)]
    pub(super) fn ready(&self) -> usize {
        self.switch.ready()
    }

    /// Number of resets that wait for room.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn resets(&self) -> usize {
        self.switch.resets()
    }

    /// Most packets of one turn on a queue.
    fn turn(&self, queue: usize) -> usize {
        if self.kicks[queue].is_some() { Io::TURN } else { usize::MAX }
    }

    /// Asks for another turn on a queue.
    fn again(&self, queue: usize) {
        if let Some(kick) = &self.kicks[queue] {
            kick.signal();
        }
    }
}

impl Device for Vsock {
    fn identity(&self) -> Identity<'_> {
        // VIRTIO 1.3 §5.10.3: "The device SHOULD offer the VIRTIO_VSOCK_F_NO_IMPLIED_STREAM feature."
        Identity { kind: DeviceKind::Vsock, features: FEATURES, queue_sizes: &QUEUES }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::device::copy_config(&self.switch.cid().to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: &Activation<'_>) -> Result<(), ActivateError> {
        for queue in [RX, TX] {
            if !activation.queues.get(queue).is_some_and(QueueT::ready) {
                return Err(ActivateError::Queue(queue));
            }
        }
        self.switch.start().map_err(|error| ActivateError::Host(error.to_string()))?;
        self.kicks = [RX, TX].map(|queue| activation.own_kick(queue));
        self.stalled = false;
        self.active = true;
        Ok(())
    }

    fn process(&mut self, index: usize, io: &mut Io<'_>) {
        if !self.active {
            return;
        }
        if index == TX {
            self.take_packets(io);
        }
        self.give_packets(io);
    }

    fn host_event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.switch.event())
    }

    fn process_host(&mut self, io: &mut Io<'_>) {
        if !self.active {
            return;
        }
        self.switch.host_arrivals();
        self.give_packets(io);
    }

    fn reset(&mut self) {
        self.switch.stop();
        self.kicks = [None, None];
        self.stalled = false;
        self.active = false;
    }
}
