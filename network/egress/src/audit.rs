//! Events for an audit, in a bounded queue: putting one in never waits, and each that finds no room is counted.
//!
//! Not here: decisions and their words, which are the policy's.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use egress_policy::Reason;
use tokio::sync::mpsc;

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A guest asked for a name.
    Dns(Dns),
}

/// A question of a guest's about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// The name as it was judged; one that is none of a host's is shown with what is unusual in it escaped.
    pub name: String,
    /// The type of the records.
    pub record: u16,
    /// The outcome.
    pub outcome: DnsOutcome,
    /// The policy's reason.
    pub reason: Reason,
    /// Addresses that the guest was given.
    pub addresses: Vec<IpAddr>,
    /// Addresses that servers gave and the policy kept from the guest, each with the reason.
    pub dropped: Vec<(IpAddr, Reason)>,
}

/// The outcome of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsOutcome {
    /// Records, or the news that there are none.
    Answered,
    /// The policy's denial; nobody else was asked.
    Denied,
    /// The policy's denial, since it kept every address from the guest.
    Filtered,
    /// An error: no server answered, or too much was asked.
    Failed,
}

/// The end of the queue that takes events.
#[derive(Debug, Clone)]
pub struct Queue {
    events: mpsc::Sender<Event>,
    lost: Arc<AtomicU64>,
}

/// The end of the queue that gives events.
#[derive(Debug)]
pub struct Events {
    events: mpsc::Receiver<Event>,
    lost: Arc<AtomicU64>,
}

/// Makes a queue for a number of events.
///
/// # Panics
///
/// If the number is zero.
#[must_use]
pub fn queue(room: usize) -> (Queue, Events) {
    let (sender, receiver) = mpsc::channel(room);
    let lost = Arc::new(AtomicU64::new(0));
    (Queue { events: sender, lost: lost.clone() }, Events { events: receiver, lost })
}

impl Queue {
    /// Puts an event in, or counts it as lost.
    pub fn put(&self, event: Event) {
        if self.events.try_send(event).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Events {
    /// The next event; `None` once every other end is gone.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The number of events that were lost since this was asked last.
    pub fn lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_finds_no_room_is_counted_once() {
        let (queue, mut events) = queue(2);
        let event = |record| {
            let (outcome, reason) = (DnsOutcome::Denied, Reason::NotListed);
            let (addresses, dropped) = (Vec::new(), Vec::new());
            Event::Dns(Dns { name: "a.test".into(), record, outcome, reason, addresses, dropped })
        };
        for record in 0..5 {
            queue.put(event(record));
        }
        assert_eq!((events.lost(), events.lost()), (3, 0));
        assert_eq!((events.next().await, events.next().await), (Some(event(0)), Some(event(1))));
        queue.put(event(5));
        drop(queue);
        assert_eq!((events.next().await, events.next().await), (Some(event(5)), None));
    }
}
