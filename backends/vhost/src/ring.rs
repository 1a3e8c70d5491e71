//! A vring that loses no interrupt and does not end its loop over a spurious kick.
//!
//! All other behaviour is that of `VringMutex`; these methods only pass the call on.

use std::fs::File;
use std::io;
use std::sync::MutexGuard;

use guest_memory::GuestRam;
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error;
use vm_memory::GuestMemoryAtomic;

/// The memory that a front end shares, and may exchange.
pub(crate) type Memory = GuestMemoryAtomic<GuestRam>;

/// A vring with the two corrections that this module's documentation names.
#[derive(Clone)]
pub(crate) struct Ring(VringMutex<Memory>);

impl<'a> VringStateGuard<'a, Memory> for Ring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Ring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl VringT<Memory> for Ring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, Error> {
        VringMutex::new(memory, max_queue_size).map(Self)
    }

    fn set_call(&self, file: Option<File>) {
        self.0.set_call(file);
        // A front end that resumes starts the ring before it names the event for interrupts; an interrupt raised in
        // between is lost. Raising one now may be for nothing, which VIRTIO 1.3 §2.7.7.2 allows ("spurious").
        let _ = self.0.signal_used_queue();
    }

    fn read_kick(&self) -> io::Result<bool> {
        match self.0.read_kick() {
            // Another thread has already read the kick, and the ring is no less ready for that.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(self.0.get_ref().is_enabled()),
            other => other,
        }
    }

    fn get_ref(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.0.get_ref()
    }

    fn get_mut(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.0.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), Error> {
        self.0.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.0.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, Error> {
        self.0.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), Error> {
        self.0.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, Error> {
        self.0.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.0.set_enabled(enabled);
    }

    fn set_queue_info(&self, desc_table: u64, avail_ring: u64, used_ring: u64) -> Result<(), Error> {
        self.0.set_queue_info(desc_table, avail_ring, used_ring)
    }

    fn queue_next_avail(&self) -> u16 {
        self.0.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.0.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, index: u16) {
        self.0.set_queue_next_used(index);
    }

    fn queue_used_idx(&self) -> Result<u16, Error> {
        self.0.queue_used_idx()
    }

    fn set_queue_size(&self, size: u16) {
        self.0.set_queue_size(size);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.0.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.0.set_queue_ready(ready);
    }

    fn set_kick(&self, file: Option<File>) {
        self.0.set_kick(file);
    }

    fn set_err(&self, file: Option<File>) {
        self.0.set_err(file);
    }
}
