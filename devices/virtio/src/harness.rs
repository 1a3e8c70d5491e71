//! A driver for tests: memory, queues in it, and a device that serves them.
//!
//! The harness plays the guest: a well-behaved one by [`Rig::send`], a hostile one by writing descriptors and rings
//! itself. Not here: a transport (the tests of `mmio` make their own accesses).

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guest_memory::GuestRam;
use rustix::event::{PollFd, PollFlags, poll};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::{Activation, Device, Event, Interrupt, Io, QueueHolder};

/// VIRTIO 1.3 §2.7.5: "This marks a buffer as continuing via the next field."
pub const NEXT: u16 = 1;
/// VIRTIO 1.3 §2.7.5: "This marks a buffer as device write-only (otherwise device read-only)."
pub const WRITE: u16 = 2;
/// The address at which the two adjoining regions of memory meet.
pub const SEAM: u64 = 0x10_0000;
/// The end of memory.
pub const END: u64 = 0x20_0000;
/// The address from which the harness places buffers.
pub const DATA: u64 = 0x4_0000;

/// One entry of a descriptor table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address.
    pub addr: u64,
    /// Length of the buffer in bytes.
    pub len: u32,
    /// A set of the flags `NEXT` and `WRITE`.
    pub flags: u16,
    /// Index of the next descriptor.
    pub next: u16,
}

/// Guest memory of two adjoining regions, so that buffers can cross from one mapping to another.
pub fn memory() -> GuestRam {
    let len = usize::try_from(SEAM).unwrap_or_default();
    GuestRam::from_ranges(&[(GuestAddress(0), len), (GuestAddress(SEAM), len)]).unwrap_or_default()
}

/// The place of a queue.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Number of descriptors.
    pub size: u16,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
}

impl Place {
    /// The place at which the harness puts queue `index`: four kilobytes for up to 128 descriptors, eight for up to
    /// 256.
    pub fn new(index: usize, size: u16) -> Self {
        let index = index as u64;
        if size <= 128 {
            let desc = 0x1000 * (index + 1);
            Self { size, desc, avail: desc + 0x800, used: desc + 0xa00 }
        } else {
            let desc = 0x2000 * (index + 1);
            Self { size, desc, avail: desc + 0x1000, used: desc + 0x1400 }
        }
    }

    /// Fills the queue's bytes with zeroes.
    fn clear(&self, memory: &GuestRam) {
        write(memory, self.desc, &[0; 0x2000][..if self.size <= 128 { 0x1000 } else { 0x2000 }]);
    }
}

/// The driver's side of a queue.
#[derive(Debug)]
pub struct DriverQueue {
    /// The place of the queue.
    pub at: Place,
    next_desc: u16,
    avail_idx: u16,
    used_idx: u16,
}

impl DriverQueue {
    /// A queue into which nothing has been put.
    pub fn new(at: Place) -> Self {
        Self { at, next_desc: 0, avail_idx: 0, used_idx: 0 }
    }

    /// Writes descriptor `index`.
    pub fn put(&self, memory: &GuestRam, index: u16, descriptor: Descriptor) {
        let Descriptor { addr, len, flags, next } = descriptor;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        write(memory, self.at.desc + 16 * u64::from(index), &bytes);
    }

    /// Makes the chain that begins at descriptor `head` available.
    pub fn offer(&mut self, memory: &GuestRam, head: u16) {
        write(memory, self.at.avail + 4 + 2 * u64::from(self.avail_idx % self.at.size), &head.to_le_bytes());
        self.set_avail_idx(memory, self.avail_idx.wrapping_add(1));
    }

    /// Sets the available index to any value.
    pub fn set_avail_idx(&mut self, memory: &GuestRam, idx: u16) {
        self.avail_idx = idx;
        write(memory, self.at.avail + 2, &idx.to_le_bytes());
    }

    /// Chains descriptors in table order and makes them available; returns the head.
    pub fn chain(&mut self, memory: &GuestRam, descriptors: &[Descriptor]) -> u16 {
        let head = self.next_desc;
        for (left, &descriptor) in (0..descriptors.len()).rev().zip(descriptors) {
            let index = self.next_desc;
            self.next_desc = (index + 1) % self.at.size;
            let (next, more) = if left > 0 { (self.next_desc, NEXT) } else { (0, 0) };
            self.put(memory, index, Descriptor { next, flags: descriptor.flags | more, ..descriptor });
        }
        self.offer(memory, head);
        head
    }

    /// The next entry of the used ring, if there is a new one: head and length.
    pub fn used(&mut self, memory: &GuestRam) -> Option<(u32, u32)> {
        let mut idx = [0; 2];
        read(memory, self.at.used + 2, &mut idx);
        if u16::from_le_bytes(idx) == self.used_idx {
            return None;
        }
        let mut entry = [0; 8];
        read(memory, self.at.used + 4 + 8 * u64::from(self.used_idx % self.at.size), &mut entry);
        self.used_idx = self.used_idx.wrapping_add(1);
        let [h0, h1, h2, h3, len @ ..] = entry;
        Some((u32::from_le_bytes([h0, h1, h2, h3]), u32::from_le_bytes(len)))
    }

    /// The queue as a transport hands it to a device.
    pub fn to_queue(&self, event_idx: bool) -> Queue {
        let mut queue = Queue::new(self.at.size).unwrap_or_default();
        let low = |address: u64| u32::try_from(address).ok();
        queue.set_desc_table_address(low(self.at.desc), None);
        queue.set_avail_ring_address(low(self.at.avail), None);
        queue.set_used_ring_address(low(self.at.used), None);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue
    }
}

/// Writes guest memory; bytes outside guest memory are dropped.
pub fn write(memory: &GuestRam, address: u64, bytes: &[u8]) {
    let _ = memory.write(bytes, GuestAddress(address));
}

/// Reads guest memory; bytes outside guest memory are left alone.
pub fn read(memory: &GuestRam, address: u64, bytes: &mut [u8]) {
    let _ = memory.read(bytes, GuestAddress(address));
}

/// How often an event was signalled since the last look.
pub fn signals(event: &Event) -> u64 {
    AsRef::<EventFd>::as_ref(event).read().unwrap_or(0)
}

/// Counts notifications.
#[derive(Debug, Default)]
pub struct Recorder {
    queue: AtomicU32,
    config: AtomicU32,
}

impl Recorder {
    /// The number of used-buffer notifications since the last look.
    pub fn queue(&self) -> u32 {
        self.queue.swap(0, Ordering::SeqCst)
    }

    /// The number of configuration change notifications since the last look.
    pub fn config(&self) -> u32 {
        self.config.swap(0, Ordering::SeqCst)
    }
}

impl Interrupt for Recorder {
    fn queue(&self, _index: usize) {
        self.queue.fetch_add(1, Ordering::SeqCst);
    }

    fn config(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }
}

/// Holds a queue for a [`SharedQueue`](crate::SharedQueue), and counts its driver's notifications.
#[derive(Debug)]
pub struct Held {
    queue: Mutex<Queue>,
    told: Event,
}

impl Held {
    /// Holds `queue`.
    pub fn new(queue: Queue) -> Self {
        #[allow(clippy::unwrap_used, reason = "a host without a descriptor left tests nothing")]
        Self { queue: Mutex::new(queue), told: Event::new().unwrap() }
    }

    /// Replaces the queue by another, as after a reset.
    pub fn replace(&self, queue: Queue) {
        *self.lock() = queue;
    }

    /// How often the driver was notified since the last look.
    pub fn signals(&self) -> u64 {
        signals(&self.told)
    }

    /// Waits until the driver is notified, and takes the notification; returns whether it was in time.
    pub fn wait(&self, patience: Duration) -> bool {
        wait(self.told.as_fd(), patience) && self.told.take()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueHolder for Arc<Held> {
    fn lend(&self, borrow: &mut dyn FnMut(&mut Queue)) {
        borrow(&mut self.lock());
    }

    fn signal(&self) {
        self.told.signal();
    }
}

/// Waits until a descriptor is readable; returns whether it was in time.
pub fn wait(descriptor: BorrowedFd<'_>, patience: Duration) -> bool {
    let mut waited = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    poll(&mut waited, patience.try_into().ok().as_ref()).is_ok_and(|ready| ready > 0)
}

/// A buffer that a well-behaved driver puts in a chain.
#[derive(Debug, Clone, Copy)]
pub enum Buffer<'a> {
    /// A buffer that the device reads.
    Out(&'a [u8]),
    /// A buffer into which the device may write this many bytes.
    In(u32),
}

/// A device and its driver.
pub struct Rig<D> {
    /// The device.
    pub device: D,
    /// Guest memory.
    pub memory: GuestRam,
    /// The driver's side of each queue.
    pub drivers: Vec<DriverQueue>,
    /// The device's notifications to the driver.
    pub interrupt: Recorder,
    /// One event for each queue.
    pub kicks: Vec<Event>,
    /// Bits of the device's features that the driver does not take.
    pub declined: u64,
    queues: Vec<Queue>,
    next_data: u64,
}

impl<D: Device> Rig<D> {
    /// A device whose driver is ready. `event_idx` tells whether the driver negotiated event indexes.
    pub fn new(device: D, event_idx: bool) -> Self {
        let memory = memory();
        let drivers: Vec<_> = device
            .identity()
            .queue_sizes
            .iter()
            .zip(0..)
            .map(|(&size, i)| DriverQueue::new(Place::new(i, size)))
            .collect();
        let kicks = drivers.iter().filter_map(|_| Event::new().ok()).collect();
        let mut rig = Self {
            device,
            memory,
            drivers,
            interrupt: Recorder::default(),
            kicks,
            declined: 0,
            queues: Vec::new(),
            next_data: DATA,
        };
        rig.activate(event_idx);
        rig
    }

    /// Resets the device and makes it ready again, with its rings empty.
    pub fn activate(&mut self, event_idx: bool) {
        self.device.reset();
        for driver in &mut self.drivers {
            *driver = DriverQueue::new(driver.at);
            driver.at.clear(&self.memory);
        }
        self.queues = self.drivers.iter().map(|driver| driver.to_queue(event_idx)).collect();
        let features = self.device.identity().features & !self.declined
            | u64::from(event_idx) << VIRTIO_RING_F_EVENT_IDX;
        let activation =
            Activation { features, memory: &self.memory, queues: &self.queues, kicks: &self.kicks };
        let _ = self.device.activate(&activation);
    }

    /// Makes a chain of `buffers` available, each at a fresh address; returns their addresses.
    pub fn send(&mut self, queue: usize, buffers: &[Buffer<'_>]) -> Vec<u64> {
        let mut descriptors = Vec::new();
        for &buffer in buffers {
            let (len, flags) = match buffer {
                Buffer::Out(bytes) => {
                    write(&self.memory, self.next_data, bytes);
                    (u32::try_from(bytes.len()).unwrap_or(0), 0)
                }
                Buffer::In(len) => (len, WRITE),
            };
            descriptors.push(Descriptor { addr: self.next_data, len, flags, next: 0 });
            self.next_data += u64::from(len);
        }
        self.drivers[queue].chain(&self.memory, &descriptors);
        descriptors.iter().map(|descriptor| descriptor.addr).collect()
    }

    /// Lets the device serve a queue.
    pub fn process(&mut self, queue: usize) {
        self.lend(|device, io| device.process(queue, io));
    }

    /// Lets the device serve its host side.
    pub fn process_host(&mut self) {
        self.lend(Device::process_host);
    }

    fn lend(&mut self, call: impl FnOnce(&mut D, &mut Io<'_>)) {
        let mut queues: Vec<&mut Queue> = self.queues.iter_mut().collect();
        let mut io = Io { memory: &self.memory, queues: &mut queues, interrupt: &self.interrupt };
        call(&mut self.device, &mut io);
        for queue in &self.queues {
            let (taken, given) = (queue.next_avail(), queue.next_used());
            // No more chains are given back than were taken; a chain whose head is beyond the table cannot be given
            // back.
            assert!(taken.wrapping_sub(given) < 0x8000, "gave back {given} chains, took {taken}");
        }
    }

    /// Takes the next used chain of a queue, and returns its length.
    pub fn used(&mut self, queue: usize) -> Option<u32> {
        self.drivers[queue].used(&self.memory).map(|(_, len)| len)
    }

    /// Copies guest memory.
    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        read(&self.memory, address, &mut bytes);
        bytes
    }
}
