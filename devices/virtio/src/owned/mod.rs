//! Chains that own what they need: any thread completes them, in any order.
//!
//! ```text
//!  pop ─▶ Chain ──▶ complete(len), from any thread ──▶ used ring, interrupt
//!           │   └─▶ Batch: many of them, one interrupt
//!           └─▶ drop: complete(0)
//!
//!  SharedQueue:  open ── finish ─▶ no chain is taken any more ── all are back, or close ─▶ closed: late ones go nowhere
//! ```
//!
//! A queue that starts again is a new [`SharedQueue`], so chains that are still out of the old one cannot reach the new
//! ring. Not here: threads, and which thread gets which chain.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guest_memory::GuestRam;
use virtio_queue::{DescriptorChain, Queue, QueueT};

use crate::chain::{Buffers, Pieces};
use crate::device;

/// The place of a queue, and the way to notify its driver. The holder may be a transport or a vhost-user loop.
pub trait QueueHolder: Send + Sync {
    /// Lends the queue for one call, to one caller at a time.
    fn lend(&self, borrow: &mut dyn FnMut(&mut Queue));
    /// Notifies the driver that there are used buffers.
    fn signal(&self);
}

/// A queue from which many threads take chains. Clones of the value stand for the same queue.
#[derive(Clone)]
pub struct SharedQueue(Arc<Shared>);

struct Shared {
    holder: Box<dyn QueueHolder>,
    /// Held while the queue is borrowed: once the queue is closed, no thread is at work on the rings any more.
    state: Mutex<State>,
    all_back: Condvar,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Chains that were taken and not given back.
    out: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// No further chain is taken.
    Finishing,
    /// The rings no longer belong to this value.
    Closed,
}

impl SharedQueue {
    /// The shared queue over `holder`'s queue, with no chain out.
    #[must_use]
    pub fn new(holder: Box<dyn QueueHolder>) -> Self {
        let state = Mutex::new(State { phase: Phase::Open, out: 0 });
        Self(Arc::new(Shared { holder, state, all_back: Condvar::new() }))
    }

    /// Takes the next chain that the driver made available. If there is none, asks the driver to notify of the next
    /// one.
    #[must_use]
    pub fn pop(&self, memory: &Arc<GuestRam>) -> Option<Chain> {
        self.take(memory, None, device::pop)
    }

    /// Gives a chain back, if there is one to be given back, and takes the chain that `pop` gives.
    fn take<'m>(
        &self,
        memory: &'m Arc<GuestRam>,
        mut done: Option<Done>,
        pop: impl FnOnce(&mut Queue, &'m GuestRam) -> Option<DescriptorChain<&'m GuestRam>>,
    ) -> Option<Chain> {
        let mut state = self.0.lock();
        if state.phase != Phase::Open {
            drop(state);
            done.into_iter().for_each(Done::give_back);
            return None;
        }
        let chain = self.0.lend(|queue| {
            if let Some(Done { chain, len }) = &mut done {
                chain.is_out = false;
                put(queue, &chain.memory, chain.head, *len);
                state.out -= 1;
            }
            if !queue.ready() {
                return None;
            }
            // A driver has no more chains out than descriptors. A driver that offers some of them again has to wait, so
            // that the number of chains held for it is bounded.
            if state.out >= usize::from(queue.size()) {
                let _ = queue.enable_notification(memory.as_ref());
                return None;
            }
            pop(queue, memory)
        })??;
        state.out += 1;
        drop(state);
        let head = chain.head_index();
        let pieces = Pieces::new(memory, chain);
        Some(Chain { queue: Arc::clone(&self.0), memory: Arc::clone(memory), head, pieces, is_out: true })
    }

    /// A batch of chains, about whose completion the driver is notified once.
    #[must_use]
    pub fn batch(&self) -> Batch<'_> {
        Batch { queue: self, done: None, untold: None }
    }

    /// Takes no further chain, and waits until all chains that are out are back, but no longer than `patience`. Returns
    /// how many are still out; they may come back later, until [`Self::close`].
    pub fn finish(&self, patience: Duration) -> usize {
        let mut state = self.0.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Finishing;
        }
        let waited = self.0.all_back.wait_timeout_while(state, patience, |state| state.out > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.out
    }

    /// How many chains are out.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn out(&self) -> usize {
        self.0.lock().out
    }

    /// Leaves the rings alone from now on: chains that come back later are dropped. Their buffers are another matter:
    /// the holder of such a chain may still write into them, so an owner that promises its driver more ends the
    /// process.
    pub fn close(&self) {
        self.0.lock().phase = Phase::Closed;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lend<R>(&self, borrow: impl FnOnce(&mut Queue) -> R) -> Option<R> {
        let (mut borrow, mut result) = (Some(borrow), None);
        self.holder.lend(&mut |queue| result = borrow.take().map(|borrow| borrow(queue)));
        result
    }

    fn give_back(&self, memory: &GuestRam, head: u16, len: u32) {
        let mut state = self.lock();
        if state.phase != Phase::Closed {
            self.lend(|queue| put(queue, memory, head, len));
        }
        state.out -= 1;
        // Only a thread in `finish` waits for chains; waking nobody would cost a system call for each chain.
        if state.out == 0 && state.phase != Phase::Open {
            self.all_back.notify_all();
        }
    }

    /// Notifies the driver of used buffers, unless the driver asked not to be notified.
    fn tell(&self, memory: &GuestRam) {
        let state = self.lock();
        // If the guest put the rings outside its memory, the driver is notified anyway: a spurious interrupt does no
        // harm.
        if state.phase != Phase::Closed
            && self.lend(|queue| queue.needs_notification(memory).unwrap_or(true)) == Some(true)
        {
            self.holder.signal();
        }
    }
}

/// Puts a chain on the used ring.
fn put(queue: &mut Queue, memory: &GuestRam, head: u16, len: u32) {
    // The one error is a head beyond the descriptor table: such a chain cannot be given back.
    let _ = queue.add_used(memory, head, len);
}

impl fmt::Debug for SharedQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedQueue").field(&*self.0.lock()).finish()
    }
}

/// A chain that the driver made available, until it is given back. A dropped chain goes back with length 0.
pub struct Chain {
    queue: Arc<Shared>,
    memory: Arc<GuestRam>,
    head: u16,
    pieces: Pieces,
    is_out: bool,
}

impl Chain {
    /// The chain's buffers. They lie in guest memory, which the guest may change at any moment.
    #[must_use]
    pub fn buffers(&self) -> Buffers<'_> {
        self.pieces.within(&self.memory)
    }

    /// Gives the chain back with `len` bytes written, and notifies the driver.
    pub fn complete(mut self, len: u32) {
        self.give_back(len);
        self.queue.tell(&self.memory);
    }

    fn give_back(&mut self, len: u32) {
        self.is_out = false;
        self.queue.give_back(&self.memory, self.head, len);
    }

    /// The index of the chain's first descriptor.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn head(&self) -> u16 {
        self.head
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        if self.is_out {
            self.give_back(0);
            self.queue.tell(&self.memory);
        }
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain")
            .field("head", &self.head)
            .field("pieces", &self.pieces)
            .finish_non_exhaustive()
    }
}

/// A chain that is to be given back.
#[derive(Debug)]
struct Done {
    chain: Chain,
    len: u32,
}

impl Done {
    fn give_back(mut self) {
        self.chain.give_back(self.len);
    }
}

/// Chains of one queue that are given back without notifying the driver. The driver is notified when the batch is
/// dropped.
#[derive(Debug)]
pub struct Batch<'a> {
    queue: &'a SharedQueue,
    /// The last chain that was completed, which goes back when the next one is taken: both under one lock.
    done: Option<Done>,
    /// The memory of the last chain of which the driver has not been notified.
    untold: Option<Arc<GuestRam>>,
}

impl Batch<'_> {
    /// Takes the next chain of the queue. If there is none, notifies the driver about the batch before asking the driver to
    /// notify of the next chain: a driver that answers at once need not notify.
    #[must_use]
    pub fn pop(&mut self, memory: &Arc<GuestRam>) -> Option<Chain> {
        if self.untold.is_some() {
            let done = self.done.take();
            let next = self.queue.take(memory, done, |queue, memory| queue.pop_descriptor_chain(memory));
            if next.is_some() {
                return next;
            }
            self.tell();
        }
        self.queue.pop(memory)
    }

    /// Gives a chain back with `len` bytes written, before the next one is taken. The driver of another queue's chain is
    /// notified at once.
    pub fn complete(&mut self, chain: Chain, len: u32) {
        if !Arc::ptr_eq(&chain.queue, &self.queue.0) {
            return chain.complete(len);
        }
        if !self.untold.as_ref().is_some_and(|memory| Arc::ptr_eq(memory, &chain.memory)) {
            self.untold = Some(Arc::clone(&chain.memory));
        }
        self.done.replace(Done { chain, len }).into_iter().for_each(Done::give_back);
    }

    /// Notifies the driver of the chains completed so far.
    pub fn tell(&mut self) {
        self.done.take().into_iter().for_each(Done::give_back);
        if let Some(memory) = self.untold.take() {
            self.queue.0.tell(&memory);
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.tell();
    }
}
