//! All output to the client, line after line, from one thread.
//!
//! A client may be slow to read. Notifications then wait, and with them the programs that they come from; answers do
//! not wait, as they are in memory already. The reader of the client's requests is therefore never held up. Not here:
//! the content of a line.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::budget::Held;

/// Bytes of notifications that may wait to be written.
const NOTIFICATIONS: usize = 4 << 20;

/// Bytes of waiting answers, not counting those that hold part of the budget, beyond which no more requests are
/// taken. Such answers are small; that many belong to a client that only ever sends.
const CROWDED: usize = 16 << 20;

/// The sender of lines to the client.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    queue: mpsc::UnboundedSender<Item>,
    room: Arc<Semaphore>,
    answers: Arc<Answers>,
    broken: watch::Receiver<bool>,
}

/// Answers that wait to be written.
#[derive(Debug, Default)]
struct Answers {
    bytes: AtomicUsize,
    fewer: Notify,
}

#[derive(Debug)]
enum Item {
    /// A notification, whose room becomes free once it is written.
    Notification { line: Vec<u8>, _room: OwnedSemaphorePermit },
    /// An answer, whose part of the budget becomes free once it is written.
    Answer { line: Vec<u8>, counted: usize, _held: Option<Held> },
    /// The end, after every other line.
    End(oneshot::Sender<()>),
}

impl Outbox {
    /// Starts the thread.
    pub(crate) fn start(output: impl Write + Send + 'static) -> Self {
        let (queue, items) = mpsc::unbounded_channel();
        let (failed, broken) = watch::channel(false);
        let answers = Arc::new(Answers::default());
        let theirs = Arc::clone(&answers);
        std::thread::spawn(move || write(output, items, &theirs, &failed));
        Self { queue, room: Arc::new(Semaphore::new(NOTIFICATIONS)), answers, broken }
    }

    /// Sends an answer.
    pub(crate) fn answer(&self, line: Vec<u8>, held: Option<Held>) {
        // Answers within the budget must not keep a client from sending that reads only later.
        let counted = if held.is_some() { 0 } else { line.len() };
        self.answers.bytes.fetch_add(counted, Ordering::Relaxed);
        let _ = self.queue.send(Item::Answer { line, counted, _held: held });
    }

    /// Sends a notification once there is room.
    pub(crate) async fn notify(&self, line: Vec<u8>) {
        let permits = u32::try_from(line.len().min(NOTIFICATIONS)).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        if let Ok(room) = Arc::clone(&self.room).acquire_many_owned(permits).await {
            let _ = self.queue.send(Item::Notification { line, _room: room });
        }
    }

    /// Waits while answers pile up.
    pub(crate) async fn uncrowded(&self) {
        loop {
            let fewer = self.answers.fewer.notified();
            if self.answers.bytes.load(Ordering::Relaxed) < CROWDED {
                return;
            }
            fewer.await;
        }
    }

    /// Returns when the client has stopped reading for good.
    pub(crate) async fn broken(&mut self) {
        if self.broken.wait_for(|broken| *broken).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until every earlier line is written, for at most `limit`.
    pub(crate) async fn end(self, limit: Duration) {
        let (written, wait) = oneshot::channel();
        if self.queue.send(Item::End(written)).is_ok() {
            let _ = timeout(limit, wait).await;
        }
    }
}

fn write(
    mut output: impl Write,
    mut items: mpsc::UnboundedReceiver<Item>,
    answers: &Answers,
    failed: &watch::Sender<bool>,
) {
    while let Some(item) = items.blocking_recv() {
        let line = match &item {
            Item::Notification { line, .. } | Item::Answer { line, .. } => line,
            Item::End(_) => &Vec::new(),
        };
        // After a failure the queue is only emptied, so that nobody waits for room.
        if !*failed.borrow()
            && let Err(error) = output.write_all(line).and_then(|()| output.flush())
        {
            tracing::debug!("output: {error}");
            failed.send_replace(true);
        }
        match item {
            Item::Notification { .. } => {}
            Item::Answer { counted, .. } => {
                answers.bytes.fetch_sub(counted, Ordering::Relaxed);
                answers.fewer.notify_one();
            }
            Item::End(written) => drop(written.send(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, pipe};

    use super::*;
    use crate::budget::Budget;

    async fn soon<T>(future: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(30), future).await.expect("in time")
    }

    #[tokio::test]
    async fn lines_keep_their_order() {
        let (mut reader, writer) = pipe().unwrap();
        let outbox = Outbox::start(writer);
        for number in 0..100 {
            outbox.notify(format!("n{number}\n").into_bytes()).await;
            outbox.answer(format!("a{number}\n").into_bytes(), None);
        }
        soon(outbox.end(Duration::from_secs(30))).await;
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let expected: String = (0..100).map(|number| format!("n{number}\na{number}\n")).collect();
        assert_eq!(text, expected);
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_stops_programs_but_no_answer() {
        let (mut reader, writer) = pipe().unwrap();
        let outbox = Outbox::start(writer);
        let chunk = vec![b'x'; 1 << 20];
        let mut sent = 0;
        while timeout(Duration::from_millis(200), outbox.notify(chunk.clone())).await.is_ok() {
            sent += 1;
            assert!(sent < 10, "nothing holds notifications back");
        }
        outbox.answer(b"answer\n".to_vec(), None);
        soon(outbox.uncrowded()).await;
        let large = vec![b'x'; 2 * CROWDED];
        outbox.answer(large.clone(), Some(Budget::new(0).hold()));
        soon(outbox.uncrowded()).await;
        for _ in 0..17 {
            outbox.answer(chunk.clone(), None);
        }
        assert!(timeout(Duration::from_millis(200), outbox.uncrowded()).await.is_err());
        let reading = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()).unwrap());
        soon(outbox.uncrowded()).await;
        soon(outbox.notify(chunk.clone())).await;
        soon(outbox.end(Duration::from_secs(30))).await;
        let expected = (sent + 1 + 17) * chunk.len() + large.len() + b"answer\n".len();
        assert_eq!(reading.join().unwrap(), expected as u64);
    }

    #[tokio::test]
    async fn a_client_that_is_gone_is_noticed_and_holds_nobody_up() {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let mut outbox = Outbox::start(writer);
        outbox.answer(b"x\n".to_vec(), None);
        soon(outbox.broken()).await;
        for _ in 0..20 {
            soon(outbox.notify(vec![b'x'; 1 << 20])).await;
        }
        soon(outbox.end(Duration::from_secs(30))).await;
    }

    #[tokio::test]
    async fn the_end_does_not_wait_for_ever() {
        let (_reader, writer) = pipe().unwrap();
        let outbox = Outbox::start(writer);
        outbox.answer(vec![b'x'; 1 << 20], None);
        soon(outbox.end(Duration::from_millis(50))).await;
    }
}
