//! Devices that have many requests in flight: each queue has a thread of its own, and chains that any thread completes.
//!
//! A ring that stops waits until every chain taken from it is back, for at most [`PATIENCE`]: the front end takes the reply
//! to mean that nobody uses the ring any more. Chains that are later than that go nowhere.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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

/// How long a ring that stops waits for its chains: longer than a disk that works takes for one request.
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
    exit: (EventConsumer, EventNotifier),
}

impl Parallel {
    pub(crate) fn new(device: Box<dyn ParallelDevice>) -> io::Result<Self> {
        let queues = device.identity().queue_sizes.iter().map(|_| Mutex::default()).collect();
        let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?;
        Ok(Self { device, queues, memory: Mutex::default(), exit })
    }

    /// A ring's queue; the first look makes it.
    fn queue(&self, index: usize, ring: &Ring) -> Option<SharedQueue> {
        let mut queue = lock(self.queues.get(index)?);
        Some(queue.get_or_insert_with(|| SharedQueue::new(Box::new(ring.clone()))).clone())
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
        let queue = usize::try_from(index).ok().and_then(|index| lock(self.queues.get(index)?).take());
        if let Some(queue) = queue {
            queue.finish(PATIENCE);
            queue.close();
        }
        Ok(())
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
