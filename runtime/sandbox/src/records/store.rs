//! The records of sandboxes: one row each in SQLite, in WAL mode so that readers never wait for a writer.
//!
//! A row holds its owner's last words. Only the lock in the sandbox's directory tells whether that owner still lives,
//! see [`reconcile`](mod@crate::records::reconcile). No secret and no environment value is ever in a row, see
//! [`crate::records::config`]. Not here: the tables ([`crate::records::schema`]), the directory's files.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use crate::Id;
use crate::records::config::{Config, MountConfig};
use crate::records::error::{Error, Result};
use crate::records::history::Change;
use crate::records::home::Home;
use crate::records::lifecycle::Phase;
use crate::records::schema;

/// A sandbox's state, as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The sandbox's owner lives.
    Running,
    /// The sandbox was ended.
    Stopped,
    /// The owner died without ending the sandbox.
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

/// The record of a sandbox.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The sandbox's id.
    pub id: Id,
    /// The owner's process id; 0 once it has ended.
    pub pid: u32,
    /// The sandbox's state.
    pub status: Status,
    /// The latest phase of the sandbox's lifecycle.
    pub phase: Phase,
    /// The kind of the sandbox's machine; empty in records of the first release.
    pub backend: String,
    /// The sandbox's image, as the user named it.
    pub image: String,
    /// `YYYY-MM-DD HH:MM:SS`, UTC; filled in by the database.
    pub created_at: String,
    /// The specification.
    pub config: Config,
}

/// The state database.
#[derive(Debug)]
pub struct Records {
    db: Connection,
}

impl Records {
    /// Opens the database, and makes it if there is none.
    pub fn open(home: &Home) -> Result<Self> {
        Ok(Self { db: schema::open(home)? })
    }

    pub(crate) fn db(&self) -> &Connection {
        &self.db
    }

    /// Makes one transaction of the calls in `act`, also inside another transaction.
    pub(crate) fn together<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        if !self.db.is_autocommit() {
            return act();
        }
        // IMMEDIATE: a transaction that begins by reading cannot become a writer after another writer.
        let transaction = Transaction::new_unchecked(&self.db, TransactionBehavior::Immediate)?;
        let result = act()?;
        transaction.commit()?;
        Ok(result)
    }

    /// Every record, newest first.
    pub fn list(&self) -> Result<Vec<Record>> {
        let mut statement = self.db.prepare(&format!("{SELECT} ORDER BY created_at DESC, rowid DESC"))?;
        let rows = statement.query_map([], from_row)?;
        rows.map(|row| Ok(row??)).collect()
    }

    /// The record of one sandbox.
    pub fn get(&self, id: &Id) -> Result<Option<Record>> {
        let row = self.db.query_row(&format!("{SELECT} WHERE id = ?1"), [id.as_str()], from_row);
        row.optional()?.transpose().map_err(Error::from)
    }

    /// Adds a sandbox, and begins its history with its phase.
    pub(crate) fn insert(&self, record: &Record) -> Result<()> {
        let config = serde_json::to_string(&record.config).map_err(|_| BadRow::new(record.id.as_str()))?;
        self.together(|| {
            self.db.execute(
                "INSERT INTO vms (id, pid, status, phase, backend, image, config, created_at, updated_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, datetime('now'), datetime('now'))",
                params![
                    record.id.as_str(),
                    record.pid,
                    record.status.name(),
                    record.phase.name(),
                    record.backend,
                    record.image,
                    config,
                ],
            )?;
            self.advance(&record.id, &Change::to(record.phase))
        })
    }

    /// Records the end of an owner.
    pub(crate) fn set_ended(&self, id: &Id, status: Status) -> Result<()> {
        self.db.execute(
            "UPDATE vms SET status = ?2, pid = 0, updated_at = datetime('now') WHERE id = ?1",
            [id.as_str(), status.name()],
        )?;
        Ok(())
    }

    /// Records the mounts that a sandbox has now.
    pub(crate) fn set_mounts(&self, id: &Id, mounts: &[MountConfig]) -> Result<()> {
        self.together(|| {
            let Some(record) = self.get(id)? else { return Ok(()) };
            let config = Config { mounts: mounts.to_vec(), ..record.config };
            let config = serde_json::to_string(&config).map_err(|_| BadRow::new(id.as_str()))?;
            let sql = "UPDATE vms SET config = ?2, updated_at = datetime('now') WHERE id = ?1";
            self.db.execute(sql, [id.as_str(), &config])?;
            Ok(())
        })
    }

    /// Forgets a sandbox and its history. Resources that it still has stay recorded until they are taken back.
    pub(crate) fn delete(&self, id: &Id) -> Result<()> {
        self.together(|| {
            for sql in [
                "DELETE FROM vms WHERE id = ?1",
                "DELETE FROM lifecycle WHERE vm_id = ?1",
                "DELETE FROM cleanup WHERE vm_id = ?1",
            ] {
                self.db.execute(sql, [id.as_str()])?;
            }
            Ok(())
        })
    }
}

const SELECT: &str = "SELECT id, pid, status, phase, backend, image, created_at, config FROM vms";

fn from_row(row: &Row<'_>) -> rusqlite::Result<Result<Record, BadRow>> {
    let (id, status, phase): (String, String, String) = (row.get(0)?, row.get(2)?, row.get(3)?);
    let config: String = row.get(7)?;
    let (Ok(parsed), Some(status), Some(phase), Ok(config)) =
        (id.parse(), Status::from_name(&status), Phase::from_name(&phase), serde_json::from_str(&config))
    else {
        return Ok(Err(BadRow(id)));
    };
    Ok(Ok(Record {
        id: parsed,
        pid: row.get(1)?,
        status,
        phase,
        backend: row.get(4)?,
        image: row.get(5)?,
        created_at: row.get(6)?,
        config,
    }))
}

/// A row that no release up to this one wrote.
#[derive(Debug, thiserror::Error)]
#[error("row {0:?} of the state database is not understood")]
pub struct BadRow(String);

impl BadRow {
    pub(crate) fn new(id: &str) -> Self {
        Self(id.to_owned())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(id: &str) -> Record {
        Record {
            id: id.parse().unwrap(),
            pid: 7,
            status: Status::Running,
            phase: Phase::Creating,
            backend: "software".into(),
            image: "busybox".into(),
            created_at: String::new(),
            config: Config { image: "busybox".into(), cpus: 1.5, ..Config::default() },
        }
    }

    #[test]
    fn rows_come_back_newest_first() {
        let home = tempfile::tempdir().unwrap();
        let home = Home::at(home.path());
        let records = Records::open(&home).unwrap();
        records.insert(&record("vm-00000001")).unwrap();
        records.insert(&record("vm-00000002")).unwrap();
        records.set_ended(&"vm-00000001".parse().unwrap(), Status::Stopped).unwrap();
        let reopened = Records::open(&home).unwrap();
        let rows = reopened.list().unwrap();
        let summary: Vec<_> = rows.iter().map(|row| (row.id.as_str(), row.pid, row.status)).collect();
        assert_eq!(summary, [("vm-00000002", 7, Status::Running), ("vm-00000001", 0, Status::Stopped)]);
        assert_eq!(rows[0].created_at.len(), "YYYY-MM-DD HH:MM:SS".len());
        let expected = Record { created_at: rows[0].created_at.clone(), ..record("vm-00000002") };
        assert_eq!(rows[0], expected);
        records.delete(&expected.id).unwrap();
        assert_eq!(reopened.get(&expected.id).unwrap(), None);
    }

    #[test]
    fn first_commands_at_once_agree() {
        let directory = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let home = Home::at(directory.path());
                scope.spawn(move || {
                    let records = Records::open(&home).unwrap();
                    records.insert(&record(&format!("vm-0000000{number}"))).unwrap();
                });
            }
        });
        assert_eq!(Records::open(&Home::at(directory.path())).unwrap().list().unwrap().len(), 8);
    }

    #[test]
    fn what_fails_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(&Home::at(directory.path())).unwrap();
        let failed = records.together(|| {
            records.insert(&record("vm-00000001"))?;
            records.insert(&record("vm-00000001"))
        });
        assert!(matches!(failed, Err(Error::Database(_))));
        assert_eq!(records.list().unwrap(), []);
        records.insert(&record("vm-00000001")).unwrap();
    }
}
