//! The device seam.

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

/// What a driver sees of a device before it has started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    /// Which device this is.
    pub kind: DeviceKind,
    /// Device-specific feature bits offered. The transport adds `VIRTIO_F_VERSION_1` and `VIRTIO_RING_F_EVENT_IDX`.
    pub features: u64,
    /// The largest size of each queue; its length is the number of queues.
    pub queue_sizes: &'a [u16],
}

/// A virtio device.
///
/// Called by one thread at a time. Guest-made bytes never make it panic or allocate without bound: a malformed chain
/// is completed with an error status where the device has one, with length 0 where it has none.
pub trait Device: Send {
    /// What a driver sees of it from the start. It never changes.
    fn identity(&self) -> Identity<'_>;
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
}

/// What a device learns when its driver is ready.
pub struct Activation<'a> {
    /// Feature bits both sides agreed on, transport bits included.
    pub features: u64,
    /// The guest's memory.
    pub memory: &'a GuestRam,
    /// The queues as the driver set them up; index = queue index. A queue the driver left out is not ready.
    pub queues: &'a [Queue],
    /// One event a queue, signalled by the driver's notification. A device may signal one itself to be called again
    /// soon, so that one queue does not keep all others waiting. Empty where the caller has no other queues to serve.
    pub kicks: &'a [Event],
}

impl Activation<'_> {
    /// The kick of queue `index`, if the driver set that up, for a device that calls itself again ([`Io::serve`]).
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
    /// The host side is gone or refused.
    #[error("host side: {0}")]
    Host(String),
}

/// What a request of [`Io::serve`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Bytes written to the chain.
    pub len: u32,
    /// How much of the turn it took, in bytes moved; [`Io::TURN_BYTES`] for what may take long, whatever its size.
    pub moved: usize,
}

impl From<u32> for Done {
    fn from(len: u32) -> Self {
        Self { len, moved: 0 }
    }
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

impl<'a> Io<'a> {
    /// Takes the next chain the driver made available in queue `index`. If there is none (or the driver broke the
    /// queue), asks the driver to notify of the next one.
    pub fn pop(&mut self, index: usize) -> Option<DescriptorChain<&'a GuestRam>> {
        pop(self.queues[index], self.memory)
    }

    /// Puts the chain taken last from queue `index` back: it will be the next one again.
    pub fn unpop(&mut self, index: usize) {
        self.queues[index].go_to_previous_position();
    }

    /// Gives chain `head` of queue `index` back with `len` bytes written to it.
    pub fn complete(&mut self, index: usize, head: u16, len: u32) {
        // The one error is a head that is no descriptor: such a chain cannot be given back.
        let _ = self.queues[index].add_used(self.memory, head, len);
    }

    /// Serves queue `index` until it is empty: `request` handles a chain and says what it did, or just the number of
    /// bytes it wrote.
    ///
    /// With `again`, the queue's kick, the turn ends after [`Self::TURN`] chains or [`Self::TURN_BYTES`], and the kick
    /// is signalled if there may be more, so that other queues have their turn.
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

    /// Tells the driver that queue `index` has used buffers, unless the driver asked not to be told.
    pub fn notify(&mut self, index: usize) {
        // A queue whose rings the guest put outside its memory is told about: a spurious interrupt harms nobody.
        if self.queues[index].needs_notification(self.memory).unwrap_or(true) {
            self.interrupt.queue(index);
        }
    }
}

/// Takes the next chain of a queue; if there is none, asks the driver to notify of the next one.
pub(crate) fn pop<'a>(queue: &mut Queue, memory: &'a GuestRam) -> Option<DescriptorChain<&'a GuestRam>> {
    // One that came between the look and the request for notification may not be notified of: look once more.
    queue.pop_descriptor_chain(memory).or_else(|| {
        let more = queue.enable_notification(memory).unwrap_or(false);
        more.then(|| queue.pop_descriptor_chain(memory)).flatten()
    })
}

/// How a device tells the driver that something changed.
pub trait Interrupt: Send + Sync {
    /// Queue `index` has used buffers.
    fn queue(&self, index: usize);
    /// The configuration space changed.
    fn config(&self);
}

/// [`Device::read_config`] of a configuration space that is `config`.
pub(crate) fn copy_config(config: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or_default();
    let count = from.len().min(data.len());
    data[..count].copy_from_slice(&from[..count]);
    data[count..].fill(0);
}
