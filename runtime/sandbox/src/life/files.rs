//! Operations on the files of a sandbox's mounts: told by the process that serves them, taken by whoever wants to know.
//!
//! Nobody who works on files waits for a reader: the process keeps some operations, and counts those that it cannot
//! keep. Its messages are read with distrust, as its guest may have taken it over. Not here: the rules about the operations.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use machine::shares::{Files, Marker, Rule, Shares, Watch};
use policy::files::{Op, WantedRule};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::agent::detached::Log;
use crate::life::error::Result;

/// Most messages of the process that wait to be taken; each has at most 128 KiB.
const WAITING: usize = 4;

/// How long a mark may take to come back, which it does behind all that is told before it.
const MARK_LIMIT: Duration = Duration::from_secs(2);

/// Longest path that is believed.
const MAX_PATH_LEN: usize = 4096;

/// Rules for the files of a sandbox's mounts, and whether operations are told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileWatch {
    /// The rules, in order.
    pub rules: Vec<WantedRule>,
    /// Whether operations are told.
    pub events: bool,
}

/// An operation on a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEvent {
    /// The operation.
    pub op: Op,
    /// The file's path in the guest.
    pub path: Vec<u8>,
    /// Bytes that were moved.
    pub size: u64,
    /// `st_mode` of a file after it was written; the permissions that were asked for where some are; else 0.
    pub mode: u32,
    /// Owner of a file after it was written; else the user who asked.
    pub uid: u32,
    /// Group of a file after it was written; else of the user who asked.
    pub gid: u32,
}

/// Operations in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileEvents {
    /// The operations.
    pub events: Vec<FileEvent>,
    /// Operations after these that nobody read in time.
    pub lost: u64,
}

impl FileWatch {
    pub(super) fn spec(&self) -> Watch {
        let rule = |rule: &WantedRule| Rule {
            phase: rule.phase.clone(),
            ops: rule.ops.clone(),
            path: rule.path.clone(),
            action: rule.action.clone(),
        };
        Watch { rules: self.rules.iter().map(rule).collect(), events: self.events }
    }
}

/// The way of one sandbox's operations, from its process to its reader.
#[derive(Debug)]
pub(super) struct Told {
    /// The end that is written to, while the sandbox lives.
    sender: Mutex<Option<mpsc::Sender<Files>>>,
    /// The end that is read, until somebody takes it.
    receiver: Mutex<Option<mpsc::Receiver<Files>>>,
    marker: Mutex<Option<Marker>>,
    /// The last mark that came back.
    seen: Arc<watch::Sender<u64>>,
    marks: tokio::sync::Mutex<Marks>,
}

/// Marks that were asked for. At most one is under way, so that asking never waits for the process.
#[derive(Debug, Default)]
struct Marks {
    last: u64,
    /// The last one took too long.
    is_late: bool,
}

impl Default for Told {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        Self {
            sender: Mutex::new(Some(sender)),
            receiver: Mutex::new(Some(receiver)),
            marker: Mutex::default(),
            seen: Arc::new(watch::Sender::new(0)),
            marks: tokio::sync::Mutex::default(),
        }
    }
}

impl Told {
    /// Listens to the process.
    pub(super) fn listen(&self, shares: &mut Shares, log: Log) -> Result<()> {
        let Some(sender) = lock(&self.sender).clone() else { return Ok(()) };
        let take = move |files: Files| {
            if files.lost > 0 {
                let lost = files.lost;
                log.add(
                    format!("matchlock: {lost} file events are lost: nobody read them in time\n").as_bytes(),
                );
            }
            // Where nobody reads, nothing is kept.
            let _ = sender.blocking_send(files);
        };
        *lock(&self.marker) = Some(shares.listen(take)?);
        Ok(())
    }

    /// Listens to the process of a mount that was added as well. Nobody waits for what it tells.
    pub(super) fn listen_too(&self, shares: &mut Shares) -> Result<()> {
        let Some(sender) = lock(&self.sender).clone() else { return Ok(()) };
        shares.listen(move |files| {
            // Marks are the first process'. Where nobody reads, nothing is kept.
            let _ = sender.blocking_send(Files { mark: None, ..files });
        })?;
        Ok(())
    }

    /// The sandbox is gone: its reader comes to an end.
    pub(super) fn end(&self) {
        lock(&self.sender).take();
        lock(&self.marker).take();
    }

    /// The end that is read, for the first who asks.
    pub(super) fn reader(&self) -> Option<FileNews> {
        let batches = lock(&self.receiver).take()?;
        Some(FileNews { batches, seen: Arc::clone(&self.seen), mark: None })
    }

    /// Returns once the reader has had all that was done before now, or after a while.
    pub(super) async fn settled(&self) {
        let Some(marker) = lock(&self.marker).clone() else { return };
        let mut marks = self.marks.lock().await;
        let mut seen = self.seen.subscribe();
        if *seen.borrow() < marks.last {
            // It was asked for by somebody who has gone, or who lost patience.
            if marks.is_late {
                return;
            }
            let last = marks.last;
            marks.is_late = timeout(MARK_LIMIT, seen.wait_for(|seen| *seen >= last)).await.is_err();
            if marks.is_late {
                return;
            }
        }
        let next = marks.last + 1;
        if !marker.mark(next) {
            return;
        }
        (marks.last, marks.is_late) = (next, false);
        marks.is_late = timeout(MARK_LIMIT, seen.wait_for(|seen| *seen >= next)).await.is_err();
    }
}

/// Reads what is told.
#[derive(Debug)]
pub struct FileNews {
    batches: mpsc::Receiver<Files>,
    seen: Arc<watch::Sender<u64>>,
    /// A mark behind those that were returned last.
    mark: Option<u64>,
}

impl FileNews {
    /// The next operations; none when the sandbox is gone. Those returned before count as told from now on.
    pub async fn next(&mut self) -> Option<FileEvents> {
        loop {
            if let Some(mark) = self.mark.take() {
                self.seen.send_if_modified(|seen| {
                    // A process that makes marks up only has its own operations told later than they might be.
                    let more = mark > *seen;
                    *seen = mark.max(*seen);
                    more
                });
            }
            let Files { events, lost, mark } = self.batches.recv().await?;
            self.mark = mark;
            let events: Vec<_> = events.into_iter().filter_map(believed).collect();
            if !events.is_empty() || lost > 0 {
                return Some(FileEvents { events, lost });
            }
        }
    }
}

/// An operation that can have been done.
fn believed(event: machine::shares::FileEvent) -> Option<FileEvent> {
    let machine::shares::FileEvent { op, path, size, mode, uid, gid } = event;
    let op = Op::of_code(op)?;
    let fits = path.starts_with(b"/") && path.len() <= MAX_PATH_LEN && !path.contains(&0);
    fits.then_some(FileEvent { op, path, size, mode, uid, gid })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(op: u8, path: &[u8]) -> machine::shares::FileEvent {
        machine::shares::FileEvent { op, path: path.to_vec(), size: 1, mode: 0, uid: 0, gid: 0 }
    }

    #[tokio::test]
    async fn only_what_can_be_is_believed() {
        let told = Told::default();
        let mut reader = told.reader().unwrap();
        assert!(told.reader().is_none());
        let sender = lock(&told.sender).clone().unwrap();
        let write = Op::Write.code().unwrap();
        let long = [b"/".to_vec(), vec![b'x'; MAX_PATH_LEN]].concat();
        let events = vec![
            event(write, b"/w/a"),
            event(200, b"/w/b"),
            event(write, b"w/c"),
            event(write, b""),
            event(write, b"/w\0"),
            event(write, &long),
        ];
        sender.send(Files { events, lost: 3, mark: None }).await.unwrap();
        let taken = reader.next().await.unwrap();
        assert_eq!((taken.events.len(), taken.events[0].path.as_slice(), taken.lost), (1, &b"/w/a"[..], 3));
        // Nothing believed is nothing told.
        sender.send(Files { events: vec![event(200, b"/a")], ..Files::default() }).await.unwrap();
        drop(sender);
        told.end();
        assert_eq!(reader.next().await, None);
    }

    #[tokio::test]
    async fn a_mark_counts_when_what_came_with_it_is_told() {
        let told = Told::default();
        let mut reader = told.reader().unwrap();
        let sender = lock(&told.sender).clone().unwrap();
        let write = Op::Write.code().unwrap();
        sender.send(Files { events: vec![event(write, b"/a")], lost: 0, mark: Some(7) }).await.unwrap();
        assert_eq!(reader.next().await.unwrap().events.len(), 1);
        assert_eq!(*told.seen.borrow(), 0);
        drop(sender);
        told.end();
        assert_eq!(reader.next().await, None);
        assert_eq!(*told.seen.borrow(), 7);
        // Without a process there is nothing to wait for.
        told.settled().await;
    }
}
