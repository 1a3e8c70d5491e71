//! A queue of what was done to files, for those who want to know; nobody waits for it.
//!
//! A guest does more in a second than anybody reads. When the queue is full, events are lost, and counted.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use policy::files::Op;

/// Most events that wait to be read.
const MAX_WAITING: usize = 4096;

/// Most bytes of their paths.
const MAX_WAITING_LEN: usize = 1 << 20;

/// Something that was done to a file, or tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What.
    pub op: Op,
    /// The file's path in the guest.
    pub path: Vec<u8>,
    /// Bytes that were moved.
    pub size: u64,
    /// `st_mode` of a file after it was written; the permissions that were asked for where some are; else 0.
    pub mode: u32,
    /// Owner of a file after it was written; else the user who asked.
    pub uid: u32,
    /// Group of the same.
    pub gid: u32,
}

/// Events in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The events.
    pub events: Vec<Event>,
    /// Events that were lost after these.
    pub lost: u64,
    /// The last mark, if any was set before now and all events before it have been read.
    pub mark: Option<u64>,
}

/// The queue.
#[derive(Debug, Default)]
pub struct Events {
    waiting: Mutex<Waiting>,
    came: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    /// Bytes of their paths.
    len: usize,
    lost: u64,
    /// A mark, and how many events are before it.
    mark: Option<(u64, usize)>,
}

impl Events {
    /// Adds an event, or loses it.
    pub fn push(&self, event: Event) {
        let mut waiting = self.lock();
        // None comes behind lost ones, so that a reader knows where they were.
        let full = waiting.events.len() >= MAX_WAITING || waiting.len + event.path.len() > MAX_WAITING_LEN;
        if full || waiting.lost > 0 {
            waiting.lost = waiting.lost.saturating_add(1);
        } else {
            waiting.len += event.path.len();
            waiting.events.push_back(event);
        }
        drop(waiting);
        self.came.notify_one();
    }

    /// Sets a mark behind all events so far. An earlier one that was not read counts no more.
    pub fn mark(&self, mark: u64) {
        let mut waiting = self.lock();
        waiting.mark = Some((mark, waiting.events.len()));
        drop(waiting);
        self.came.notify_one();
    }

    /// Waits for events or a mark, and takes some: events whose paths have at most `len` bytes, or one event.
    pub fn take(&self, count: usize, len: usize) -> Batch {
        let mut waiting = self.lock();
        while waiting.events.is_empty() && waiting.lost == 0 && waiting.mark.is_none() {
            waiting = self.came.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        let mut batch = Batch::default();
        let mut left = len;
        while batch.events.len() < count.max(1)
            && let Some(first) = waiting.events.front()
            && (batch.events.is_empty() || first.path.len() <= left)
        {
            left = left.saturating_sub(first.path.len());
            waiting.len -= first.path.len();
            batch.events.extend(waiting.events.pop_front());
        }
        if waiting.events.is_empty() {
            batch.lost = std::mem::take(&mut waiting.lost);
        }
        match waiting.mark {
            Some((mark, before)) if before <= batch.events.len() => {
                batch.mark = Some(mark);
                waiting.mark = None;
            }
            Some((mark, before)) => waiting.mark = Some((mark, before - batch.events.len())),
            None => {}
        }
        batch
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn event(path: &str) -> Event {
        Event { op: Op::Write, path: path.into(), size: 1, mode: 2, uid: 3, gid: 4 }
    }

    fn paths(batch: &Batch) -> Vec<&str> {
        batch.events.iter().map(|event| std::str::from_utf8(&event.path).unwrap()).collect()
    }

    #[test]
    fn events_come_in_their_order_and_in_pieces() {
        let events = Events::default();
        for path in ["/a", "/long one", "/b", "/c"] {
            events.push(event(path));
        }
        assert_eq!(paths(&events.take(10, 4)), ["/a"]);
        // One that is longer than all that is wanted comes alone.
        assert_eq!(paths(&events.take(10, 4)), ["/long one"]);
        assert_eq!(paths(&events.take(1, 100)), ["/b"]);
        assert_eq!(events.take(10, 100), Batch { events: vec![event("/c")], lost: 0, mark: None });
    }

    #[test]
    fn what_is_too_much_is_lost_and_counted() {
        let events = Events::default();
        for number in 0..MAX_WAITING + 7 {
            events.push(event(&number.to_string()));
        }
        let first = events.take(10, 1000);
        assert_eq!((first.events.len(), first.lost), (10, 0));
        // There is room again, but what comes now would seem to come before those that were lost.
        events.push(event("after"));
        let mut rest = events.take(usize::MAX, usize::MAX);
        assert_eq!((rest.events.len(), rest.lost), (MAX_WAITING - 10, 8));
        assert_eq!(rest.events.pop().unwrap().path, (MAX_WAITING - 1).to_string().into_bytes());
        events.push(event("again"));
        assert_eq!(paths(&events.take(10, 1000)), ["again"]);

        let long = "x".repeat(MAX_WAITING_LEN / 2);
        for _ in 0..3 {
            events.push(event(&long));
        }
        let batch = events.take(10, usize::MAX);
        assert_eq!((batch.events.len(), batch.lost), (2, 1));
    }

    #[test]
    fn a_mark_comes_with_the_last_event_before_it() {
        let events = Arc::new(Events::default());
        events.push(event("a"));
        events.push(event("b"));
        events.mark(7);
        events.push(event("c"));
        assert_eq!(events.take(1, 100).mark, None);
        assert_eq!(events.take(1, 100), Batch { events: vec![event("b")], lost: 0, mark: Some(7) });
        assert_eq!(events.take(1, 100).mark, None);
        // A mark alone is worth waiting for.
        let reader = std::thread::spawn({
            let events = events.clone();
            move || events.take(10, 100)
        });
        events.mark(8);
        assert_eq!(reader.join().unwrap(), Batch { events: Vec::new(), lost: 0, mark: Some(8) });
        events.push(event("d"));
        events.mark(9);
        events.mark(10);
        assert_eq!(events.take(10, 100), Batch { events: vec![event("d")], lost: 0, mark: Some(10) });
    }
}
