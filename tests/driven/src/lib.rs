//! A driver and the front end that stands for it, over a real vhost-user connection: rings in memory that the device maps,
//! which start, stop, and are filled.
//!
//! Everything panics where the device does not keep to the protocol. Not here: buffers, and what is in them.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests and measurements: whoever calls wants to end")]

use std::os::unix::net::UnixStream;

use guest_memory::{Backing, GuestRam, SharedFile, allocate};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Feature bits of rings and of the transport (VIRTIO 1.3 §6, vhost-user).
pub mod feature {
    /// Descriptors in tables.
    pub const INDIRECT: u64 = 1 << 28;
    /// Both sides say when they want to be told.
    pub const EVENT_INDEX: u64 = 1 << 29;
    /// vhost-user's own features follow.
    pub const PROTOCOL: u64 = 1 << 30;
    /// No legacy driver.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Flags of a descriptor (VIRTIO 1.3 §2.7.5).
pub mod flag {
    /// Another one follows.
    pub const NEXT: u16 = 1;
    /// The device writes.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const TABLE: u16 = 4;
}

/// Where everything but rings may be.
pub const BUFFERS: u64 = 0x10_0000;

/// Most queues, and the largest of them: what fits below [`BUFFERS`].
pub const MOST: (usize, u16) = (14, 1024);

/// Where a queue's table of descriptors is.
pub const fn descriptors(queue: usize) -> u64 {
    0x1_0000 * (queue as u64 + 1)
}

/// Where a queue's ring of available chains is.
pub const fn available(queue: usize) -> u64 {
    descriptors(queue) + 0x4000
}

/// Where a queue's ring of used chains is.
pub const fn used(queue: usize) -> u64 {
    descriptors(queue) + 0x8000
}

/// The wishes of a driver.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Queues it uses.
    pub queues: usize,
    /// Size of each.
    pub queue_size: u16,
    /// Features it wants, where the device has them. [`feature::VERSION_1`] and [`feature::PROTOCOL`] come on top.
    pub features: u64,
    /// Bytes of its memory.
    pub memory: usize,
}

/// The offer of a device.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    /// Feature bits.
    pub features: u64,
    /// vhost-user's own.
    pub protocol: VhostUserProtocolFeatures,
    /// Queues.
    pub queues: u64,
}

/// The rings, and the connection to the device.
pub struct Rings {
    /// The connection.
    pub front_end: Frontend,
    /// The device's offer, before the driver chose.
    pub offer: Offer,
    /// Features of both.
    pub features: u64,
    /// The driver's memory.
    pub ram: GuestRam,
    /// Of each queue: what the driver tells the device with.
    pub kicks: Vec<EventFd>,
    /// Of each queue: what the device tells the driver with.
    pub calls: Vec<EventFd>,
    queue_size: u16,
}

impl Rings {
    /// Up to the point where the rings may start.
    pub fn connect(stream: UnixStream, setup: Setup) -> Self {
        let Setup { queues, queue_size, features, memory } = setup;
        assert!(queues <= MOST.0 && queue_size <= MOST.1, "{setup:?}");
        let ram =
            allocate(&[(GuestAddress(0), memory)], Backing::Shared(SharedFile::new().unwrap())).unwrap();
        let mut front_end = Frontend::from_stream(stream, queues as u64);
        front_end.set_owner().unwrap();
        let offered = front_end.get_features().unwrap();
        let protocol = front_end.get_protocol_features().unwrap();
        let wanted = VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK;
        front_end.set_protocol_features(protocol & wanted).unwrap();
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let offer = Offer { features: offered, protocol, queues: front_end.get_queue_num().unwrap() };
        assert!(offer.queues >= queues as u64, "{offer:?}");
        let features = offered & features | feature::VERSION_1 | feature::PROTOCOL;
        front_end.set_features(features).unwrap();
        let regions = [VhostUserMemoryRegionInfo::from_guest_region(ram.iter().next().unwrap()).unwrap()];
        front_end.set_mem_table(&regions).unwrap();
        let events = || (0..queues).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        let (kicks, calls) = (events(), events());
        Self { front_end, offer, features, ram, kicks, calls, queue_size }
    }

    /// Starts all rings as QEMU does: first everything about each, then all at once.
    pub fn start(&mut self, bases: &[u16], with_calls: bool) {
        assert_eq!(bases.len(), self.kicks.len());
        for (queue, base) in bases.iter().enumerate() {
            let address = |at| self.ram.get_host_address(GuestAddress(at)).unwrap() as u64;
            self.front_end.set_vring_num(queue, self.queue_size).unwrap();
            self.front_end.set_vring_base(queue, *base).unwrap();
            let rings = VringConfigData {
                queue_max_size: self.queue_size,
                queue_size: self.queue_size,
                flags: 0,
                desc_table_addr: address(descriptors(queue)),
                used_ring_addr: address(used(queue)),
                avail_ring_addr: address(available(queue)),
                log_addr: None,
            };
            self.front_end.set_vring_addr(queue, &rings).unwrap();
            if with_calls {
                self.front_end.set_vring_call(queue, &self.calls[queue]).unwrap();
            }
            self.front_end.set_vring_kick(queue, &self.kicks[queue]).unwrap();
        }
        for queue in 0..bases.len() {
            self.front_end.set_vring_enable(queue, true).unwrap();
        }
    }

    /// Stops all rings; returns where each goes on.
    pub fn stop(&mut self) -> Vec<u16> {
        let stop = |queue| u16::try_from(self.front_end.get_vring_base(queue).unwrap()).unwrap();
        (0..self.kicks.len()).map(stop).collect()
    }

    /// Makes chains available, by their first descriptors, without a word of it.
    pub fn offer(&self, queue: usize, heads: impl IntoIterator<Item = u16>) {
        let mut index: u16 = self.ram.read_obj(GuestAddress(available(queue) + 2)).unwrap();
        for head in heads {
            let entry = available(queue) + 4 + 2 * u64::from(index % self.queue_size);
            self.ram.write_obj(head, GuestAddress(entry)).unwrap();
            index = index.wrapping_add(1);
        }
        self.ram.write_obj(index, GuestAddress(available(queue) + 2)).unwrap();
    }

    /// How many chains have come back.
    pub fn used(&self, queue: usize) -> u16 {
        self.ram.read_obj(GuestAddress(used(queue) + 2)).unwrap()
    }

    /// The chain that came back after so many others: its first descriptor, and how many bytes it got.
    pub fn used_at(&self, queue: usize, position: u16) -> (u32, u32) {
        let entry = used(queue) + 4 + 8 * u64::from(position % self.queue_size);
        let word = |at| self.ram.read_obj(GuestAddress(at)).unwrap();
        (word(entry), word(entry + 4))
    }

    /// Whether the device has told the driver since this was last asked.
    pub fn interrupted(&self, queue: usize) -> bool {
        self.calls[queue].read().is_ok()
    }
}
