//! The device seam.

use std::os::fd::BorrowedFd;

use guest_memory::GuestRam;
use virtio_queue::Queue;

use crate::Event;

/// Device identities of VIRTIO 1.3 §5 that exist here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum DeviceKind {
    /// §5.1
    Net = 1,
    /// §5.2
    Block = 2,
    /// §5.3
    Console = 3,
    /// §5.4
    Entropy = 4,
    /// §5.5
    Balloon = 5,
    /// §5.10
    Vsock = 19,
    /// §5.11
    FileSystem = 26,
}

/// A virtio device.
///
/// Called by one thread at a time. Guest-made bytes never make it panic or allocate without bound: a malformed chain
/// is completed with an error status where the device has one, with length 0 where it has none.
pub trait Device: Send {
    /// Which device this is.
    fn kind(&self) -> DeviceKind;
    /// Device-specific feature bits offered. The transport adds `VIRTIO_F_VERSION_1` and `VIRTIO_RING_F_EVENT_IDX`.
    fn features(&self) -> u64;
    /// The largest size of each queue; its length is the number of queues.
    fn queue_sizes(&self) -> &[u16];
    /// Reads the configuration space; bytes past its end read as 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes the configuration space; writes past its end, or to read-only fields, are dropped.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }
    /// The driver set `DRIVER_OK`. After this, `process` may be called.
    fn activate(&mut self, activation: &Activation<'_>) -> Result<(), ActivateError>;
    /// The driver made buffers available in queue `index`. Takes all it can; must not wait.
    fn process(&mut self, index: usize, io: &mut Io<'_>);
    /// A descriptor that turns readable when the host side wants [`Device::process_host`] (it may be an epoll set).
    fn host_event(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// The host side has something. Takes all it can; must not wait.
    fn process_host(&mut self, io: &mut Io<'_>) {
        let _ = io;
    }
    /// Back to the state before `activate`.
    fn reset(&mut self);
    /// Whether the device serves its queues elsewhere, kicks included (a vhost-user front end): then nobody calls
    /// `process`, and `process_host` only forwards interrupts.
    fn serves_own_queues(&self) -> bool {
        false
    }
}

/// What a device learns when its driver is ready.
pub struct Activation<'a> {
    /// Feature bits both sides agreed on, transport bits included.
    pub features: u64,
    /// The guest's memory.
    pub memory: &'a GuestRam,
    /// The queues as the driver set them up; index = queue index. A queue the driver left out is not ready.
    pub queues: &'a [Queue],
    /// One event a queue, signalled by the driver's notification.
    pub kicks: &'a [Event],
}

/// Why a device refused to start. The transport sets `DEVICE_NEEDS_RESET`.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver's setup cannot work.
    #[error("driver left queue {0} unusable")]
    Queue(usize),
    /// The host side is gone or refused.
    #[error("host side: {0}")]
    Host(String),
}

/// What a device is lent for one call.
pub struct Io<'a> {
    /// The guest's memory.
    pub memory: &'a GuestRam,
    /// Every queue of the device; index = queue index.
    pub queues: &'a mut [&'a mut Queue],
    /// How to tell the driver.
    pub interrupt: &'a dyn Interrupt,
}

impl Io<'_> {
    /// Tells the driver that queue `index` has used buffers, unless the driver asked not to be told.
    pub fn notify(&mut self, index: usize) {
        // A queue whose rings the guest put outside its memory is told about: a spurious interrupt harms nobody.
        if virtio_queue::QueueT::needs_notification(self.queues[index], self.memory).unwrap_or(true) {
            self.interrupt.queue(index);
        }
    }
}

/// How a device tells the driver that something changed.
pub trait Interrupt: Send + Sync {
    /// Queue `index` has used buffers.
    fn queue(&self, index: usize);
    /// The configuration space changed.
    fn config(&self);
}
