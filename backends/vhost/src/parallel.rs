//! Devices that have many requests in flight: each queue has a thread of its own, and chains that any thread completes.
//!
//! A ring that stops waits until every chain taken from it is back: the front end takes the reply to mean that nobody uses
//! the ring any more, nor the buffers of its chains. Where that takes longer than the device's patience there is no reply,
//! and the connection ends: a request that the host's disk does not answer would write into memory that the guest has
//! given to something else.

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

/// How long the rings of a device that stops wait for their chains, unless the device says otherwise: longer than a disk
/// that works takes for one request.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A device whose queues are served by a thread each.
///
/// It is not told of resets: what its driver says first shows that it begins anew.
pub trait ParallelDevice: Send + Sync {
    /// What a driver sees of it from the start. It never changes.
    fn identity(&self) -> Identity<'_>;
    /// Reads the configuration space; bytes past its end read as 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Queue `index` may have chains. Takes all there are. The queue's own thread calls this, and may be kept.
    fn serve(&self, index: usize, queue: &SharedQueue, memory: &Arc<GuestRam>);
    /// How long all of its rings together may take to stop.
    fn patience(&self) -> Duration {
        PATIENCE
    }
}

impl QueueHolder for Ring {
    fn lend(&self, borrow: &mut dyn FnMut(&mut Queue)) {
        borrow(self.get_mut().get_queue_mut());
    }

    fn signal(&self) {
        // A full counter is an interrupt already raised.
        let _ = self.signal_used_queue();
    }
}

/// The device as `vhost-user-backend` wants to see it.
pub(crate) struct Parallel {
    device: Box<dyn ParallelDevice>,
    /// The queue of each ring that was kicked since it last stopped.
    queues: Vec<Mutex<Option<SharedQueue>>>,
    memory: Mutex<Option<Memory>>,
    /// When the patience with rings that stop one after the other ends; none of them does since a ring has begun.
    stopped_by: Mutex<Option<Instant>>,
    exit: (EventConsumer, EventNotifier),
}

impl Parallel {
    pub(crate) fn new(device: Box<dyn ParallelDevice>) -> io::Result<Self> {
        let queues = device.identity().queue_sizes.iter().map(|_| Mutex::default()).collect();
        let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?;
        Ok(Self { device, queues, memory: Mutex::default(), stopped_by: Mutex::default(), exit })
    }

    /// A ring's queue; the first look makes it.
    fn queue(&self, index: usize, ring: &Ring) -> Option<SharedQueue> {
        let mut queue = lock(self.queues.get(index)?);
        let make = || {
            *lock(&self.stopped_by) = None;
            SharedQueue::new(Box::new(ring.clone()))
        };
        Some(queue.get_or_insert_with(make).clone())
    }

    /// Waits for the chains of a ring. Those of all rings that stop have one patience together, since the front end waits for
    /// one after the other.
    fn stop(&self, index: usize) -> io::Result<()> {
        let Some(queue) = self.queues.get(index).and_then(|queue| lock(queue).take()) else { return Ok(()) };
        let by = *lock(&self.stopped_by).get_or_insert_with(|| Instant::now() + self.device.patience());
        let out = queue.finish(by.saturating_duration_since(Instant::now()));
        queue.close();
        if out == 0 {
            return Ok(());
        }
        // The connection ends here, so nobody asks the other rings to stop.
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
        // The loop has told the queues, which is where it matters.
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
        // Nobody consumes it, so one ends all threads.
        self.exit.0.try_clone().ok().zip(self.exit.1.try_clone().ok())
    }

    fn stop_vring(&self, index: u32) -> io::Result<()> {
        usize::try_from(index).map_or(Ok(()), |index| self.stop(index))
    }

    fn reset_device(&self) {
        // The protocol has no answer for a queue that cannot stop: its late chains go nowhere, but their data may still be
        // written to the guest's memory.
        (0..self.queues.len()).for_each(|index| drop(self.stop(index)));
    }

    fn handle_event(&self, _event: u16, _: EventSet, rings: &[Ring], thread: usize) -> io::Result<()> {
        // A thread has the one ring of its number, and no other event.
        let Some(queue) = rings.first().and_then(|ring| self.queue(thread, ring)) else { return Ok(()) };
        let memory = lock(&self.memory).as_ref().map(|memory| memory.memory().into_inner());
        if let Some(memory) = memory {
            self.device.serve(thread, &queue, &memory);
        }
        Ok(())
    }
}
