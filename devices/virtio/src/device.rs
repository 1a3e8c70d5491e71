//! The seam between a virtio device and its transport.

use std::os::fd::BorrowedFd;

use guest_memory::GuestRam;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

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

/// The part of a device that its driver sees before it has started the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    /// The kind of the device.
    pub kind: DeviceKind,
    /// Device-specific feature bits that the device offers. The transport adds `VIRTIO_F_VERSION_1` and
    /// `VIRTIO_RING_F_EVENT_IDX`.
    pub features: u64,
    /// The largest size of each queue; the slice's length is the number of queues.
    pub queue_sizes: &'a [u16],
}

/// A virtio device.
///
/// One thread at a time calls a device. Bytes from the guest never make it panic or allocate without bound: a malformed
/// chain is completed with an error status if the device has one, and with length 0 otherwise.
pub trait Device: Send {
    /// The part of the device that its driver sees from the start, which never changes.
    fn identity(&self) -> Identity<'_>;
    /// Reads the configuration space; bytes past its end read as 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes the configuration space; writes past its end, or to read-only fields, are dropped.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }
    /// Starts the device, after its driver has set `DRIVER_OK`. Only after this call may `process` be called.
    fn activate(&mut self, activation: &Activation<'_>) -> Result<(), ActivateError>;
    /// Serves queue `index`, in which the driver has made buffers available. The device takes all it can, and must not
    /// wait.
    fn process(&mut self, index: usize, io: &mut Io<'_>);
    /// A descriptor that becomes readable when the host side needs [`Device::process_host`] (it may be an epoll set).
    fn host_event(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Serves the host side, which has something to do. The device takes all it can, and must not wait.
    fn process_host(&mut self, io: &mut Io<'_>) {
        let _ = io;
    }
    /// Takes the device back to its state before `activate`.
    fn reset(&mut self);
}

/// The things that a device learns when its driver is ready.
pub struct Activation<'a> {
    /// Feature bits that both sides agreed on, transport bits included.
    pub features: u64,
    /// The guest's memory.
    pub memory: &'a GuestRam,
    /// The queues as the driver set them up; index = queue index. A queue that the driver left out is not ready.
    pub queues: &'a [Queue],
    /// One event for each queue, signalled by the driver's notification. A device may signal an event itself to be
    /// called again soon, so that one queue does not keep all others waiting. The slice is empty if the caller has no
    /// other queues to serve.
    pub kicks: &'a [Event],
}

impl Activation<'_> {
    /// The kick of queue `index`, if the driver set the queue up, for a device that asks for another turn
    /// ([`Io::serve`]).
    #[must_use]
    pub fn own_kick(&self, index: usize) -> Option<Event> {
        self.queues.get(index).filter(|queue| queue.ready())?;
        self.kicks.get(index)?.try_clone().ok()
    }
}

/// Why a device refused to start. The transport sets `DEVICE_NEEDS_RESET`.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver's setup cannot work.
    #[error("driver left queue {0} unusable")]
    Queue(usize),
    /// The host side is gone, or it refused.
    #[error("host side: {0}")]
    Host(String),
}

/// The result of one request of [`Io::serve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Bytes written to the chain.
    pub len: u32,
    /// The request's share of the turn, in bytes moved; [`Io::TURN_BYTES`] if it may take long, whatever its size.
    pub moved: usize,
}

impl From<u32> for Done {
    fn from(len: u32) -> Self {
        Self { len, moved: 0 }
    }
}

/// The things that a device is lent for one call.
pub struct Io<'a> {
    /// The guest's memory.
    pub memory: &'a GuestRam,
    /// Every queue of the device; index = queue index.
    pub queues: &'a mut [&'a mut Queue],
    /// The way to notify the driver.
    pub interrupt: &'a dyn Interrupt,
}

impl<'a> Io<'a> {
    /// Takes the next chain that the driver made available in queue `index`. If there is none (or if the driver broke
    /// the queue), asks the driver to notify of the next one.
    pub fn pop(&mut self, index: usize) -> Option<DescriptorChain<&'a GuestRam>> {
        pop(self.queues[index], self.memory)
    }

    /// Puts the chain that was taken last from queue `index` back: it will be the next one again.
    pub fn unpop(&mut self, index: usize) {
        self.queues[index].go_to_previous_position();
    }

    /// Gives chain `head` of queue `index` back with `len` bytes written to it.
    pub fn complete(&mut self, index: usize, head: u16, len: u32) {
        // The one error is a head beyond the descriptor table: such a chain cannot be given back.
        let _ = self.queues[index].add_used(self.memory, head, len);
    }

    /// Serves queue `index` until it is empty: `request` handles a chain and returns its result, or just the number of
    /// bytes it wrote.
    ///
    /// With `again`, the queue's kick, the turn ends after [`Self::TURN`] chains or [`Self::TURN_BYTES`], and the kick
    /// is signalled if there may be more chains, so that other queues have their turn.
    pub fn serve<R: Into<Done>>(
        &mut self,
        index: usize,
        again: Option<&Event>,
        mut request: impl FnMut(&'a GuestRam, DescriptorChain<&'a GuestRam>) -> R,
    ) {
        let (mut served, mut moved) = (0, 0usize);
        loop {
            if let Some(again) = again.filter(|_| served == Self::TURN || moved >= Self::TURN_BYTES) {
                again.signal();
                break;
            }
            let Some(chain) = self.pop(index) else { break };
            let head = chain.head_index();
            let done = request(self.memory, chain).into();
            self.complete(index, head, done.len);
            served += 1;
            moved = moved.saturating_add(done.moved);
        }
        if served > 0 {
            self.notify(index);
        }
    }

    /// Most chains of one turn of [`Self::serve`].
    pub const TURN: usize = 32;
    /// A turn of [`Self::serve`] takes no further chain once it has moved so many bytes: a few milliseconds' worth.
    pub const TURN_BYTES: usize = 8 << 20;

    /// Notifies the driver that queue `index` has used buffers, unless the driver asked not to be notified.
    pub fn notify(&mut self, index: usize) {
        // If the guest put the rings outside its memory, the driver is notified anyway: a spurious interrupt does no
        // harm.
        if self.queues[index].needs_notification(self.memory).unwrap_or(true) {
            self.interrupt.queue(index);
        }
    }
}

/// Takes the next chain of a queue; if there is none, asks the driver to notify of the next one.
pub(crate) fn pop<'a>(queue: &mut Queue, memory: &'a GuestRam) -> Option<DescriptorChain<&'a GuestRam>> {
    // The driver may not notify of a chain that came between the first look and the request for notification: look once
    // more.
    queue.pop_descriptor_chain(memory).or_else(|| {
        let more = queue.enable_notification(memory).unwrap_or(false);
        more.then(|| queue.pop_descriptor_chain(memory)).flatten()
    })
}

/// A device's way to tell the driver that something changed.
pub trait Interrupt: Send + Sync {
    /// Tells the driver that queue `index` has used buffers.
    fn queue(&self, index: usize);
    /// Tells the driver that the configuration space changed.
    fn config(&self);
}

/// Does the work of [`Device::read_config`] for the configuration space `config`.
pub(crate) fn copy_config(config: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or_default();
    let count = from.len().min(data.len());
    data[..count].copy_from_slice(&from[..count]);
    data[count..].fill(0);
}
