//! Threads for requests that take long, so that a queue goes on with the short ones behind them.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use fuse::{Scratch, Session};
use shares::Router;
use virtio::{Buffers, Chain};

/// Fewest and most threads. While one waits for a slow disk, others serve.
const THREADS: (usize, usize) = (2, 8);

/// Most bytes that requests may hold at once, whether they wait or are served.
const MAX_BYTES: usize = 64 << 20;

/// Each request counts for at least so many bytes.
const LEAST_BYTES: usize = 64 << 10;

/// A request that takes long.
pub(crate) struct Job {
    pub(crate) session: Arc<Session<Router>>,
    pub(crate) chain: Chain,
    /// Bytes of its data.
    pub(crate) len: usize,
}

impl Job {
    fn weight(&self) -> usize {
        self.len.max(LEAST_BYTES)
    }
}

/// The threads. They end after this value is dropped, each after its current request.
pub(crate) struct Followers(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// Bytes of all requests that wait or are served.
    bytes: usize,
    ended: bool,
}

impl Followers {
    /// The number of threads for this host. Reads files.
    pub(crate) fn count() -> usize {
        thread::available_parallelism().map_or(THREADS.0, usize::from).clamp(THREADS.0, THREADS.1)
    }

    /// Starts the threads.
    pub(crate) fn start(count: usize) -> io::Result<Self> {
        let followers = Self(Arc::default());
        for number in 0..count {
            let shared = Arc::clone(&followers.0);
            thread::Builder::new().name(format!("follower-{number}")).spawn(move || shared.follow())?;
        }
        Ok(followers)
    }

    /// Hands a request to a thread; returns the request if there is no room for it.
    pub(crate) fn hand_over(&self, job: Job) -> Option<Job> {
        let mut state = self.0.lock();
        if state.bytes + job.weight() > MAX_BYTES {
            return Some(job);
        }
        state.bytes += job.weight();
        state.waiting.push_back(job);
        drop(state);
        self.0.changed.notify_one();
        None
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves requests until no more will come.
    fn follow(&self) {
        let mut scratch = Scratch::default();
        while let Some(job) = self.next() {
            let weight = job.weight();
            let Job { session, chain, .. } = job;
            let len = serve(&session, &mut scratch, &chain.buffers());
            chain.complete(len);
            self.lock().bytes -= weight;
        }
    }

    fn next(&self) -> Option<Job> {
        let idle = |state: &mut State| state.waiting.is_empty() && !state.ended;
        let state = self.changed.wait_while(self.lock(), idle);
        state.unwrap_or_else(PoisonError::into_inner).waiting.pop_front()
    }
}

/// Serves the request that is in `buffers`; returns how many bytes its reply has there.
pub(crate) fn serve(session: &Session<Router>, scratch: &mut Scratch, buffers: &Buffers<'_>) -> u32 {
    // If a driver breaks the rules of descriptors, none of the chain's requests is whole.
    if buffers.malformed {
        return 0;
    }
    let len = session.serve(scratch, buffers.readable.as_slice(), buffers.writable.as_slice());
    u32::try_from(len).unwrap_or(u32::MAX)
}
