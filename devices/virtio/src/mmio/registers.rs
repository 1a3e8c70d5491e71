//! The register layout (VIRTIO 1.3 §4.2.2), and the registers of one queue until they become a queue.

use guest_memory::GuestRam;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

/// "virt", little-endian.
pub(super) const MAGIC: u32 = 0x7472_6976;
/// The version of modern devices: the only one after the legacy one.
pub(super) const VERSION: u32 = 2;
/// "MLCK": §4.2.2 leaves the vendor id to the device.
pub(super) const VENDOR: u32 = u32::from_le_bytes(*b"MLCK");

pub(super) const MAGIC_VALUE: u64 = 0x000;
pub(super) const DEVICE_VERSION: u64 = 0x004;
pub(super) const DEVICE_ID: u64 = 0x008;
pub(super) const VENDOR_ID: u64 = 0x00c;
pub(super) const DEVICE_FEATURES: u64 = 0x010;
pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
pub(super) const DRIVER_FEATURES: u64 = 0x020;
pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
pub(super) const QUEUE_SEL: u64 = 0x030;
pub(super) const QUEUE_SIZE_MAX: u64 = 0x034;
pub(super) const QUEUE_SIZE: u64 = 0x038;
pub(super) const QUEUE_READY: u64 = 0x044;
pub(super) const QUEUE_NOTIFY: u64 = 0x050;
pub(super) const INTERRUPT_STATUS: u64 = 0x060;
pub(super) const INTERRUPT_ACK: u64 = 0x064;
pub(super) const STATUS: u64 = 0x070;
pub(super) const QUEUE_DESC_LOW: u64 = 0x080;
pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
pub(super) const SHM_LEN_LOW: u64 = 0x0b0;
pub(super) const SHM_BASE_HIGH: u64 = 0x0bc;
pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
pub(super) const CONFIG: u64 = 0x100;

/// The registers of one queue as the driver wrote them, with any values until [`QueueRegisters::to_queue`] has checked
/// them.
#[derive(Debug, Clone)]
pub(super) struct QueueRegisters {
    pub(super) max_size: u16,
    pub(super) ready: bool,
    size: u32,
    desc: u64,
    driver: u64,
    device: u64,
}

impl QueueRegisters {
    pub(super) fn new(max_size: u16) -> Self {
        Self { max_size, ready: false, size: u32::from(max_size), desc: 0, driver: 0, device: 0 }
    }

    /// Writes one register. The registers of a ready queue do not change.
    pub(super) fn write(&mut self, register: u64, value: u32) {
        if register == QUEUE_READY {
            self.ready = value & 1 != 0;
            return;
        }
        // VIRTIO 1.3 §4.2.2.2: "When QueueReady is not zero, the driver MUST NOT access QueueSize, QueueDescLow, […]".
        if self.ready {
            return;
        }
        match register {
            QUEUE_SIZE => self.size = value,
            QUEUE_DESC_LOW => self.desc = with_low(self.desc, value),
            QUEUE_DESC_HIGH => self.desc = with_high(self.desc, value),
            QUEUE_DRIVER_LOW => self.driver = with_low(self.driver, value),
            QUEUE_DRIVER_HIGH => self.driver = with_high(self.driver, value),
            QUEUE_DEVICE_LOW => self.device = with_low(self.device, value),
            QUEUE_DEVICE_HIGH => self.device = with_high(self.device, value),
            _ => {}
        }
    }

    /// The queue that these registers describe, or `None` if they describe none. A queue that is not ready is also a
    /// queue.
    pub(super) fn to_queue(&self, event_idx: bool, memory: &GuestRam) -> Option<Queue> {
        let mut queue = Queue::new(self.max_size).ok()?;
        if !self.ready {
            return Some(queue);
        }
        queue.try_set_size(u16::try_from(self.size).ok()?).ok()?;
        queue.try_set_desc_table_address(GuestAddress(self.desc)).ok()?;
        queue.try_set_avail_ring_address(GuestAddress(self.driver)).ok()?;
        queue.try_set_used_ring_address(GuestAddress(self.device)).ok()?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        // Address 0 means that the driver has not written the register, but virtio-queue accepts it as an address.
        (self.driver != 0 && queue.is_valid(memory)).then_some(queue)
    }
}

fn with_low(register: u64, value: u32) -> u64 {
    register & !u64::from(u32::MAX) | u64::from(value)
}

fn with_high(register: u64, value: u32) -> u64 {
    register & u64::from(u32::MAX) | u64::from(value) << 32
}
