//! Devices that have many requests in flight: each queue has a thread of its own, and chains that any thread completes.
//!
//! A ring that stops waits until every chain taken from it is back: the front end takes the reply to mean that no
//! thread uses the ring or the buffers of its chains any more. If that takes longer than the device's patience, there
//! is no reply and the connection ends: a late answer of the host's disk would otherwise be written into memory that
//! the guest has given to another use.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use guest_memory::GuestRam;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VringT};
use virtio::{Identity, QueueHolder, SharedQueue};
use virtio_queue::Queue;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::adapter::{self, MAX_CONFIG};
use crate::ring::{Memory, Ring};

/// How long the rings of a device that stops wait for their chains, unless the device sets another patience: longer
/// than a working disk takes for one request.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A device each of whose queues is served by a thread of its own.
///
/// The device is not told of resets: the first request of a new driver shows that it begins anew.
pub trait ParallelDevice: Send + Sync {
    /// The part of the device that its driver sees from the start, which never changes.
    fn identity(&self) -> Identity<'_>;
    /// Reads the configuration space; bytes past its end read as 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Serves queue `index`, which may have chains, until it is empty. The queue's own thread makes this call, which
    /// may take long.
    fn serve(&self, index: usize, queue: &SharedQueue, memory: &Arc<GuestRam>);
    /// How long all rings of the device together may take to stop.
    fn patience(&self) -> Duration {
        PATIENCE
    }
}

impl QueueHolder for Ring {
    fn lend(&self, borrow: &mut dyn FnMut(&mut Queue)) {
        borrow(self.get_mut().get_queue_mut());
    }

    fn signal(&self) {
        // A full counter means that the interrupt is already raised.
        let _ = self.signal_used_queue();
    }
}

/// A parallel device in the form that `vhost-user-backend` serves.
pub(crate) struct Parallel {
    device: Box<dyn ParallelDevice>,
    /// The queue of each ring that was kicked since the ring last stopped.
    queues: Vec<Mutex<Option<SharedQueue>>>,
    memory: Mutex<Option<Memory>>,
    /// The moment at which the patience with rings that stop one after the other ends; `None` since a ring has started.
    stopped_by: Mutex<Option<Instant>>,
    exit: (EventConsumer, EventNotifier),
}

impl Parallel {
    pub(crate) fn new(device: Box<dyn ParallelDevice>) -> io::Result<Self> {
        let queues = device.identity().queue_sizes.iter().map(|_| Mutex::default()).collect();
        let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?;
        Ok(Self { device, queues, memory: Mutex::default(), stopped_by: Mutex::default(), exit })
    }

    /// A ring's queue, which the first call makes.
    fn queue(&self, index: usize, ring: &Ring) -> Option<SharedQueue> {
        let mut queue = lock(self.queues.get(index)?);
        let make = || {
            *lock(&self.stopped_by) = None;
            SharedQueue::new(Box::new(ring.clone()))
        };
        Some(queue.get_or_insert_with(make).clone())
    }

    /// Waits for the chains of a ring. All rings that stop share one patience, since the front end waits for one after
    /// the other.
    fn stop(&self, index: usize) -> io::Result<()> {
        let Some(queue) = self.queues.get(index).and_then(|queue| lock(queue).take()) else { return Ok(()) };
        let by = *lock(&self.stopped_by).get_or_insert_with(|| Instant::now() + self.device.patience());
        let out = queue.finish(by.saturating_duration_since(Instant::now()));
        queue.close();
        if out == 0 {
            return Ok(());
        }
        // The connection ends here, so the front end stops no other ring.
        self.queues.iter().filter_map(|queue| lock(queue).take()).for_each(|queue| queue.close());
        let message = format!("{out} requests of queue {index} are not done, so it cannot stop");
        Err(io::Error::new(io::ErrorKind::TimedOut, message))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VhostUserBackend for Parallel {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        self.queues.len()
    }

    fn max_queue_size(&self) -> usize {
        adapter::max_queue_size(self.device.identity())
    }

    fn features(&self) -> u64 {
        adapter::offered(self.device.identity())
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        adapter::protocol_features(self.device.identity().kind)
    }

    fn set_event_idx(&self, _enabled: bool) {
        // No work here: the loop has told the queues, which use event indexes.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut config = vec![0; size.min(MAX_CONFIG) as usize];
        self.device.read_config(offset.into(), &mut config);
        config
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        *lock(&self.memory) = Some(memory);
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.queues.len()).map(|index| 1 << index).collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        // No thread consumes the event, so one signal ends all threads.
        self.exit.0.try_clone().ok().zip(self.exit.1.try_clone().ok())
    }

    fn stop_vring(&self, index: u32) -> io::Result<()> {
        usize::try_from(index).map_or(Ok(()), |index| self.stop(index))
    }

    fn reset_device(&self) {
        // The protocol has no answer for a queue that cannot stop: late chains do not reach the ring, but their data
        // may still be written to the guest's memory.
        (0..self.queues.len()).for_each(|index| drop(self.stop(index)));
    }

    fn handle_event(&self, _event: u16, _: EventSet, rings: &[Ring], thread: usize) -> io::Result<()> {
        // A thread has exactly the one ring of its number, and no other event.
        let Some(queue) = rings.first().and_then(|ring| self.queue(thread, ring)) else { return Ok(()) };
        let memory = lock(&self.memory).as_ref().map(|memory| memory.memory().into_inner());
        if let Some(memory) = memory {
            self.device.serve(thread, &queue, &memory);
        }
        Ok(())
    }
}
