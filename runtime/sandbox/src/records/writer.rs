//! Writes of the state database, on a thread of its own so that no start waits for it.
//!
//! Writes that are submitted while another is under way become one transaction. A write that finds no room on the
//! disk is repeated with the next one, and at the end: the sandbox itself may have filled the disk, and its files are
//! removed before that. Not here: the writes themselves.

use std::sync::mpsc;
use std::thread;

use tokio::sync::oneshot;

use crate::records::error::Result;
use crate::records::home::Home;
use crate::records::store::Records;

type Act = Box<dyn Fn(&Records) -> Result<()> + Send>;

type Once = Box<dyn FnOnce(&Records) -> Result<()> + Send>;

enum Job {
    /// Part of a transaction; the sender fires once it is committed.
    Write(Act, Option<oneshot::Sender<()>>),
    /// Waits for other processes, so it must not hold the database meanwhile.
    Alone(Once),
    /// Dropped when its turn comes.
    Pass(mpsc::Sender<()>),
}

/// The thread that writes, and its queue.
#[derive(Debug)]
pub(crate) struct RecordsWriter {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl RecordsWriter {
    /// Opens the database on the new thread; [`RecordsWriter::finish`] returns the errors.
    pub(crate) fn start(home: Home) -> Self {
        let (jobs, queue) = mpsc::channel();
        let thread = thread::spawn(move || work(&Records::open(&home)?, &queue));
        Self { jobs: Some(jobs), thread: Some(thread) }
    }

    /// Queues a write. If the database is unusable, the write is lost and [`RecordsWriter::finish`] says so.
    pub(crate) fn write(&self, act: impl Fn(&Records) -> Result<()> + Send + 'static) {
        self.submit(Job::Write(Box::new(act), None));
    }

    /// Queues a write; the receiver gets a value once the write is committed, and never if that fails.
    pub(crate) fn write_and_tell(
        &self,
        act: impl Fn(&Records) -> Result<()> + Send + 'static,
    ) -> oneshot::Receiver<()> {
        let (committed, answer) = oneshot::channel();
        self.submit(Job::Write(Box::new(act), Some(committed)));
        answer
    }

    /// Queues an act that runs outside of any transaction.
    pub(crate) fn alone(&self, act: impl FnOnce(&Records) -> Result<()> + Send + 'static) {
        self.submit(Job::Alone(Box::new(act)));
    }

    /// Waits until every write so far has been tried.
    pub(crate) fn flush(&self) {
        let (passed, wait) = mpsc::channel();
        self.submit(Job::Pass(passed));
        let _ = wait.recv();
    }

    fn submit(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job);
        }
    }

    /// Waits until everything is written.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.jobs = None;
        match self.thread.take().map(thread::JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

fn work(records: &Records, queue: &mpsc::Receiver<Job>) -> Result<()> {
    let mut acts = Vec::new();
    let mut next = None;
    while let Some(job) = next.take().or_else(|| queue.recv().ok()) {
        let (act, committed) = match job {
            Job::Alone(act) => {
                act(records)?;
                continue;
            }
            Job::Pass(passed) => {
                drop(passed);
                continue;
            }
            Job::Write(act, committed) => (act, committed),
        };
        acts.push(act);
        let mut answers = Vec::from_iter(committed);
        while next.is_none() {
            match queue.try_recv() {
                Ok(Job::Write(act, committed)) => {
                    acts.push(act);
                    answers.extend(committed);
                }
                Ok(job) => next = Some(job),
                Err(_) => break,
            }
        }
        match commit(records, &acts) {
            Ok(()) => acts.clear(),
            Err(error) if error.is_want_of_room() && answers.is_empty() => {
                tracing::warn!("{error}; to be written later");
            }
            Err(error) => return Err(error),
        }
        for answer in answers {
            let _ = answer.send(());
        }
    }
    commit(records, &acts)
}

fn commit(records: &Records, acts: &[Act]) -> Result<()> {
    match acts {
        [] => Ok(()),
        acts => records.together(|| acts.iter().try_for_each(|act| act(records))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use images::small_disk::{fill, small_disk};

    use super::*;
    use crate::records::error::Error;
    use crate::records::history::Change;
    use crate::records::lifecycle::Phase;
    use crate::records::store::tests::record;

    #[test]
    fn order_is_kept_and_errors_come_out() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let mut writer = RecordsWriter::start(home.clone());
        let inserted = record("vm-00000001");
        let committed = writer.write_and_tell(move |records| records.insert(&inserted));
        let id = record("vm-00000001").id;
        let changed = id.clone();
        writer.write(move |records| records.advance(&changed, &Change::to(Phase::Running)));
        committed.blocking_recv().unwrap();
        writer.finish().unwrap();
        assert_eq!(Records::open(&home).unwrap().history(&id).unwrap().len(), 2);

        let mut again = RecordsWriter::start(home);
        let refused = again.write_and_tell(|records| records.insert(&record("vm-00000001")));
        assert!(refused.blocking_recv().is_err());
        assert!(matches!(again.finish(), Err(Error::Database(_))));
    }

    /// Writes that wait while the thread is busy become one transaction; an act that runs alone is in none.
    #[test]
    fn what_waits_is_written_together() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let mut writer = RecordsWriter::start(home.clone());
        let (go, wait) = mpsc::channel::<()>();
        writer.alone(move |_| {
            let _ = wait.recv();
            Ok(())
        });
        let (sender, seen) = mpsc::channel();
        for number in 1..=3 {
            let (other, sender) = (Records::open(&home).unwrap(), sender.clone());
            writer.write(move |records| {
                records.insert(&record(&format!("vm-0000000{number}")))?;
                let _ = sender.send(other.list()?.len());
                Ok(())
            });
        }
        let other = Records::open(&home).unwrap();
        writer.alone(move |records| {
            assert_eq!(other.list()?.len(), 3);
            records.together(|| Ok(()))
        });
        go.send(()).unwrap();
        writer.finish().unwrap();
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), [0, 0, 0], "nobody else saw a part of it");
    }

    #[test]
    fn what_had_no_room_is_written_once_there_is_some() {
        let test = "records::writer::tests::what_had_no_room_is_written_once_there_is_some";
        let Some(disk) = small_disk(test, 2) else { return };
        let home = Home::at(&disk);
        let mut writer = RecordsWriter::start(home.clone());
        writer.write_and_tell(|records| records.insert(&record("vm-00000001"))).blocking_recv().unwrap();
        let filler = disk.join("filler");
        let id = record("vm-00000001").id;
        let advance = |phase| {
            let id = id.clone();
            // Longer than the rest of the log's last page.
            let change = Change::to(phase).because(Some("x".repeat(4096)));
            writer.write(move |records| records.advance(&id, &change));
            writer.flush();
        };
        fill(&filler, 512);
        let phases = [Phase::Created, Phase::Starting, Phase::Running, Phase::Stopping];
        phases.into_iter().for_each(advance);
        fs::remove_file(&filler).unwrap();
        writer.finish().unwrap();
        let history = Records::open(&home).unwrap().history(&id).unwrap();
        let written: Vec<_> = history.iter().skip(1).map(|version| version.phase).collect();
        assert_eq!(written, phases);
    }
}
