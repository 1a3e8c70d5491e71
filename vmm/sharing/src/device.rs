//! A virtio-fs device (VIRTIO 1.3 §5.11): queues of FUSE requests.
//!
//! The thread of a queue takes what the driver has made available, serves it itself, and tells the driver once it has
//! taken all, or has something that should not wait. A thread for each request would take several times as long for
//! those that are short, which are nearly all. Requests that take long are others' (`followers`).
//!
//! Not here: a queue for notifications, which no kernel has; and how long a queue waits for one slow request that does
//! not look like one: as long as that takes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use fuse::{Scratch, Session};
use guest_memory::GuestRam;
use machine::devices::FILE_SYSTEM_QUEUE;
use shares::Router;
use vhost_backend::ParallelDevice;
use virtio::{Chain, DeviceKind, Identity, SharedQueue};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

use crate::followers::{Followers, Job, serve};

/// Most bytes of a tag (VIRTIO 1.3 §5.11.4).
const TAG_LEN: usize = 36;
/// Bytes of the configuration space: the tag, and the number of request queues.
const CONFIG_LEN: usize = TAG_LEN + size_of::<u32>();

/// Most request queues: Linux uses as many as there are CPUs, and more threads are no quicker.
const MAX_REQUEST_QUEUES: u16 = 8;

/// The driver is told after so many requests, or after so long, even if there are more.
const MAX_UNTOLD: usize = 16;
const MAX_UNTOLD_TIME: Duration = Duration::from_micros(200);

/// See the module.
pub(crate) struct FileSystemDevice {
    config: [u8; CONFIG_LEN],
    /// Of each queue: its size, and its thread's own memory.
    queue_sizes: Vec<u16>,
    scratches: Vec<Mutex<Scratch>>,
    session: Arc<Session<Router>>,
    followers: Arc<Followers>,
}

impl FileSystemDevice {
    /// The device that the guest mounts by `tag`.
    pub(crate) fn new(
        tag: &str,
        request_queues: u16,
        session: Session<Router>,
        followers: Arc<Followers>,
    ) -> anyhow::Result<Self> {
        ensure!((1..=MAX_REQUEST_QUEUES).contains(&request_queues), "{request_queues} request queues");
        ensure!((1..=TAG_LEN).contains(&tag.len()), "tag of {} bytes", tag.len());
        let mut config = [0; CONFIG_LEN];
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        config[TAG_LEN..].copy_from_slice(&u32::from(request_queues).to_le_bytes());
        // One more, for what must not wait.
        let queue_sizes = vec![FILE_SYSTEM_QUEUE; usize::from(request_queues) + 1];
        let scratches = queue_sizes.iter().map(|_| Mutex::default()).collect();
        Ok(Self { config, queue_sizes, scratches, session: Arc::new(session), followers })
    }

    /// Serves a request, unless it takes long; returns how many bytes its reply has.
    fn serve_short(&self, scratch: &mut Scratch, chain: &Chain) -> Option<u32> {
        let buffers = chain.buffers();
        let takes_long = fuse::takes_long(buffers.readable.as_slice(), buffers.writable.as_slice());
        (!takes_long).then(|| serve(&self.session, scratch, &buffers))
    }

    /// Gives a request to another thread; returns the request if there is no room for it.
    fn hand_over(&self, chain: Chain) -> Option<Chain> {
        let buffers = chain.buffers();
        let len = buffers.readable.len().max(buffers.writable.len());
        drop(buffers);
        let job = Job { session: Arc::clone(&self.session), chain, len };
        self.followers.hand_over(job).map(|job| job.chain)
    }
}

impl ParallelDevice for FileSystemDevice {
    fn identity(&self) -> Identity<'_> {
        Identity {
            kind: DeviceKind::FileSystem,
            // A request of 1 MiB has 260 descriptors, of which each queue has 1,024.
            features: 1 << VIRTIO_RING_F_INDIRECT_DESC,
            queue_sizes: &self.queue_sizes,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let from =
            usize::try_from(offset).ok().and_then(|offset| self.config.get(offset..)).unwrap_or_default();
        let count = from.len().min(data.len());
        data[..count].copy_from_slice(&from[..count]);
        data[count..].fill(0);
    }

    fn serve(&self, index: usize, queue: &SharedQueue, memory: &Arc<GuestRam>) {
        let Some(scratch) = self.scratches.get(index) else { return };
        // Only the queue's own thread ever takes it.
        let mut scratch = scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = queue.batch();
        let (mut untold, mut since) = (0, Instant::now());
        while let Some(chain) = batch.pop(memory) {
            let (chain, len) = match self.serve_short(&mut scratch, &chain) {
                Some(len) => (chain, len),
                None => match self.hand_over(chain) {
                    None => continue,
                    Some(chain) => {
                        let len = serve(&self.session, &mut scratch, &chain.buffers());
                        (chain, len)
                    }
                },
            };
            batch.complete(chain, len);
            untold += 1;
            if untold == MAX_UNTOLD || since.elapsed() >= MAX_UNTOLD_TIME {
                batch.tell();
                (untold, since) = (0, Instant::now());
            }
        }
    }
}
