//! What is remembered of every sandbox: one row each in SQLite, in WAL mode so that readers never wait for a writer.
//!
//! A row says what its owner last wrote. Whether that owner still lives is not the row's to say but the lock's in the
//! sandbox's directory, see [`crate::reconcile`]. No secret and no environment value is ever in a row. Not here: the
//! directory's files.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::home::Home;
use crate::lifecycle::Phase;
use crate::{Error, Id, Result};

/// Schema version, in SQLite's `user_version`.
const SCHEMA: i64 = 1;

/// How long one command waits for another's write.
const BUSY: Duration = Duration::from_secs(60);

/// What a user is told about a sandbox's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Its owner lives.
    Running,
    /// It was ended.
    Stopped,
    /// Its owner died without ending it.
    Crashed,
}

impl Status {
    /// The word in records and listings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Crashed => "crashed",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Running, Self::Stopped, Self::Crashed].into_iter().find(|status| status.name() == name)
    }
}

/// What is remembered of a sandbox.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its id.
    pub id: Id,
    /// Its owner's process id; 0 once it has ended.
    pub pid: u32,
    /// Its state.
    pub status: Status,
    /// Its image, as asked for.
    pub image: String,
    /// `YYYY-MM-DD HH:MM:SS`, UTC; filled in by the database.
    pub created_at: String,
    /// CPUs.
    pub cpus: f64,
    /// Guest RAM.
    pub memory_mb: u32,
    /// Writable disk.
    pub disk_size_mb: u64,
}

/// The database.
#[derive(Debug)]
pub struct Records {
    db: Connection,
}

impl Records {
    /// Opens it, and makes it if there is none.
    pub fn open(home: &Home) -> Result<Self> {
        home.make()?;
        let path = home.database();
        // SQLite would create the file by the umask.
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(Error::io(&path))?;
        let db = Connection::open(&path)?;
        db.busy_timeout(BUSY)?;
        if schema(&db)? == 0 {
            // SQLite does not wait for others while it changes the journal mode, so whoever is first holds this.
            let lock_path = path.with_extension("lock");
            let lock = File::create(&lock_path).map_err(Error::io(&lock_path))?;
            lock.lock().map_err(Error::io(&lock_path))?;
            if schema(&db)? == 0 {
                create(&db)?;
            }
        }
        match schema(&db)? {
            SCHEMA => {}
            newer => return Err(Error::Schema(newer)),
        }
        // The lock files are the truth, so that a row lost in a power cut loses nothing that still exists.
        db.pragma_update(None, "synchronous", "NORMAL")?;
        Ok(Self { db })
    }

    /// Every record, newest first.
    pub fn list(&self) -> Result<Vec<Record>> {
        let mut statement = self.db.prepare(&format!("{SELECT} ORDER BY created_at DESC, rowid DESC"))?;
        let rows = statement.query_map([], from_row)?;
        rows.map(|row| Ok(row??)).collect()
    }

    /// One record.
    pub fn get(&self, id: &Id) -> Result<Option<Record>> {
        let row =
            self.db.query_row(&format!("{SELECT} WHERE id = ?1"), [id.as_str()], from_row).optional()?;
        row.transpose().map_err(Error::from)
    }

    pub(crate) fn insert(&self, record: &Record) -> Result<()> {
        self.db.execute(
            "INSERT INTO vms (id, pid, status, phase, image, cpus, memory_mb, disk_size_mb, created_at, updated_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, datetime('now'), datetime('now'))",
            params![
                record.id.as_str(),
                record.pid,
                record.status.name(),
                Phase::Creating.name(),
                record.image,
                record.cpus,
                record.memory_mb,
                i64::try_from(record.disk_size_mb).unwrap_or(i64::MAX),
            ],
        )?;
        Ok(())
    }

    pub(crate) fn set_phase(&self, id: &Id, phase: Phase) -> Result<()> {
        self.db.execute(
            "UPDATE vms SET phase = ?2, updated_at = datetime('now') WHERE id = ?1",
            [id.as_str(), phase.name()],
        )?;
        Ok(())
    }

    /// Records the end of an owner.
    pub(crate) fn set_ended(&self, id: &Id, status: Status) -> Result<()> {
        self.db.execute(
            "UPDATE vms SET status = ?2, pid = 0, updated_at = datetime('now') WHERE id = ?1",
            [id.as_str(), status.name()],
        )?;
        Ok(())
    }

    pub(crate) fn delete(&self, id: &Id) -> Result<()> {
        self.db.execute("DELETE FROM vms WHERE id = ?1", [id.as_str()])?;
        Ok(())
    }
}

const SELECT: &str = "SELECT id, pid, status, image, created_at, cpus, memory_mb, disk_size_mb FROM vms";

fn from_row(row: &Row<'_>) -> rusqlite::Result<Result<Record, BadRow>> {
    let (id, status): (String, String) = (row.get(0)?, row.get(2)?);
    let (Ok(parsed), Some(status)) = (id.parse(), Status::from_name(&status)) else {
        return Ok(Err(BadRow(id)));
    };
    Ok(Ok(Record {
        id: parsed,
        pid: row.get(1)?,
        status,
        image: row.get(3)?,
        created_at: row.get(4)?,
        cpus: row.get(5)?,
        memory_mb: row.get(6)?,
        disk_size_mb: u64::try_from(row.get::<_, i64>(7)?).unwrap_or(0),
    }))
}

/// A row nobody of this version wrote.
#[derive(Debug, thiserror::Error)]
#[error("row {0:?} of the state database is not understood")]
pub struct BadRow(String);

fn schema(db: &Connection) -> Result<i64> {
    Ok(db.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

fn create(db: &Connection) -> Result<()> {
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.execute_batch(&format!(
        "BEGIN IMMEDIATE;
         CREATE TABLE IF NOT EXISTS vms (
             id TEXT PRIMARY KEY,
             pid INTEGER NOT NULL,
             status TEXT NOT NULL,
             phase TEXT NOT NULL,
             image TEXT NOT NULL,
             cpus REAL NOT NULL,
             memory_mb INTEGER NOT NULL,
             disk_size_mb INTEGER NOT NULL,
             created_at TEXT NOT NULL,
             updated_at TEXT NOT NULL
         );
         PRAGMA user_version = {SCHEMA};
         COMMIT;"
    ))?;
    Ok(())
}

type Job = Box<dyn FnOnce(&Records) -> Result<()> + Send>;

/// The database on a thread of its own, so that no start waits for it.
#[derive(Debug)]
pub(crate) struct Writer {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl Writer {
    /// Opens the database on the new thread; an error comes out at [`Writer::finish`].
    pub(crate) fn start(home: Home) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = thread::spawn(move || {
            let records = Records::open(&home)?;
            queue.into_iter().try_for_each(|job| job(&records))
        });
        Self { jobs: Some(jobs), thread: Some(thread) }
    }

    /// Does this after all that came before. Lost if the database is unusable, which `finish` then says.
    pub(crate) fn submit(&self, job: impl FnOnce(&Records) -> Result<()> + Send + 'static) {
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(Box::new(job));
        }
    }

    /// Waits until everything is done.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.jobs = None;
        match self.thread.take().map(thread::JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn record(id: &str, status: Status) -> Record {
        Record {
            id: id.parse().unwrap(),
            pid: 7,
            status,
            image: "busybox".into(),
            created_at: String::new(),
            cpus: 1.5,
            memory_mb: 512,
            disk_size_mb: 5120,
        }
    }

    #[test]
    fn rows_come_back_newest_first() {
        let home = tempfile::tempdir().unwrap();
        let home = Home::at(home.path());
        let records = Records::open(&home).unwrap();
        records.insert(&record("vm-00000001", Status::Running)).unwrap();
        records.insert(&record("vm-00000002", Status::Running)).unwrap();
        records.set_ended(&"vm-00000001".parse().unwrap(), Status::Stopped).unwrap();
        let reopened = Records::open(&home).unwrap();
        let rows = reopened.list().unwrap();
        let summary: Vec<_> = rows.iter().map(|row| (row.id.as_str(), row.pid, row.status)).collect();
        assert_eq!(summary, [("vm-00000002", 7, Status::Running), ("vm-00000001", 0, Status::Stopped)]);
        assert_eq!(rows[0].created_at.len(), "YYYY-MM-DD HH:MM:SS".len());
        let expected =
            Record { created_at: rows[0].created_at.clone(), ..record("vm-00000002", Status::Running) };
        assert_eq!(rows[0], expected);
        records.delete(&expected.id).unwrap();
        assert_eq!(reopened.get(&expected.id).unwrap(), None);
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let home = Home::at(home.path());
        Records::open(&home).unwrap().db.pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(Records::open(&home), Err(Error::Schema(99))));
    }

    #[test]
    fn first_commands_at_once_agree() {
        let directory = tempfile::tempdir().unwrap();
        thread::scope(|scope| {
            for number in 0..8 {
                let home = Home::at(directory.path());
                scope.spawn(move || {
                    let records = Records::open(&home).unwrap();
                    records.insert(&record(&format!("vm-0000000{number}"), Status::Running)).unwrap();
                });
            }
        });
        assert_eq!(Records::open(&Home::at(directory.path())).unwrap().list().unwrap().len(), 8);
    }

    #[test]
    fn the_writer_keeps_order_and_reports() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let mut writer = Writer::start(home.clone());
        writer.submit(|records| records.insert(&record("vm-00000001", Status::Running)));
        writer.submit(|records| records.set_phase(&"vm-00000001".parse()?, Phase::Running));
        writer.finish().unwrap();
        assert_eq!(Records::open(&home).unwrap().list().unwrap().len(), 1);

        let mut again = Writer::start(home);
        again.submit(|records| records.insert(&record("vm-00000001", Status::Running)));
        assert!(matches!(again.finish(), Err(Error::Records(_))));
    }
}
