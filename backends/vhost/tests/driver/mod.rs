//! A driver and the front end that stands for it, over a real connection: rings that start, stop, and are filled.

use std::os::unix::net::UnixStream;

use guest_memory::{Backing, GuestRam, SharedFile, allocate};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;
pub(crate) const QUEUE_SIZE: u16 = 128;
/// Where every buffer is: 16 bytes.
pub(crate) const BUFFER: u64 = 0x8_0000;

/// Two rings.
pub(crate) struct Rings {
    pub(crate) front_end: Frontend,
    pub(crate) ram: GuestRam,
    pub(crate) kicks: [EventFd; 2],
    pub(crate) calls: [EventFd; 2],
}

/// Where a queue's parts are.
pub(crate) const fn descriptors(queue: usize) -> u64 {
    0x1_0000 * (queue as u64 + 1)
}
pub(crate) const fn available(queue: usize) -> u64 {
    descriptors(queue) + 0x4000
}
pub(crate) const fn used(queue: usize) -> u64 {
    descriptors(queue) + 0x8000
}

impl Rings {
    /// Up to the point where the rings may start. `features` are what the device has.
    pub(crate) fn connect(stream: UnixStream, features: u64) -> Self {
        let ram =
            allocate(&[(GuestAddress(0), 1 << 20)], Backing::Shared(SharedFile::new().unwrap())).unwrap();
        let mut front_end = Frontend::from_stream(stream, 2);
        front_end.set_owner().unwrap();
        let offered = front_end.get_features().unwrap();
        assert_eq!(offered, features | VERSION_1 | 1 << 29 | PROTOCOL_FEATURES);
        let wanted = VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK;
        let protocol = front_end.get_protocol_features().unwrap();
        assert!(protocol.contains(wanted));
        front_end.set_protocol_features(wanted).unwrap();
        front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(front_end.get_queue_num().unwrap(), 2);
        front_end.set_features(VERSION_1 | PROTOCOL_FEATURES).unwrap();
        let regions = [VhostUserMemoryRegionInfo::from_guest_region(ram.iter().next().unwrap()).unwrap()];
        front_end.set_mem_table(&regions).unwrap();
        let events = || [EventFd::new(EFD_NONBLOCK).unwrap(), EventFd::new(EFD_NONBLOCK).unwrap()];
        Self { front_end, ram, kicks: events(), calls: events() }
    }

    /// Starts both rings as QEMU does: first everything about each, then all at once.
    pub(crate) fn start(&mut self, bases: [u16; 2], with_calls: bool) {
        for (queue, base) in bases.into_iter().enumerate() {
            let address = |at| self.ram.get_host_address(GuestAddress(at)).unwrap() as u64;
            self.front_end.set_vring_num(queue, QUEUE_SIZE).unwrap();
            self.front_end.set_vring_base(queue, base).unwrap();
            let rings = VringConfigData {
                queue_max_size: QUEUE_SIZE,
                queue_size: QUEUE_SIZE,
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
        for queue in 0..2 {
            self.front_end.set_vring_enable(queue, true).unwrap();
        }
    }

    pub(crate) fn stop(&mut self) -> [u16; 2] {
        [0, 1].map(|queue| u16::try_from(self.front_end.get_vring_base(queue).unwrap()).unwrap())
    }

    /// Makes `count` more chains available.
    pub(crate) fn offer(&self, queue: usize, count: u16) {
        let index: u16 = self.ram.read_obj(GuestAddress(available(queue) + 2)).unwrap();
        for position in (0..count).map(|more| index.wrapping_add(more) % QUEUE_SIZE) {
            let descriptor = descriptors(queue) + 16 * u64::from(position);
            self.ram.write_obj(BUFFER, GuestAddress(descriptor)).unwrap();
            self.ram.write_obj([16u32, 2], GuestAddress(descriptor + 8)).unwrap();
            let entry = available(queue) + 4 + 2 * u64::from(position);
            self.ram.write_obj(position, GuestAddress(entry)).unwrap();
        }
        self.ram.write_obj(index.wrapping_add(count), GuestAddress(available(queue) + 2)).unwrap();
    }

    pub(crate) fn used(&self, queue: usize) -> u16 {
        self.ram.read_obj(GuestAddress(used(queue) + 2)).unwrap()
    }

    pub(crate) fn interrupted(&self, queue: usize) -> bool {
        self.calls[queue].read().is_ok()
    }
}
