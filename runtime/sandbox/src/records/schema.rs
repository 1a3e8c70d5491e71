//! The state database's tables, and the steps that bring the tables of earlier releases up to date.
//!
//! Not here: the rows' meaning ([`crate::records::store`], [`crate::records::history`]).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use crate::records::error::{Error, Result};
use crate::records::home::Home;

/// Schema version, in SQLite's `user_version`.
const SCHEMA: u32 = 3;

/// How long one command waits for another's write.
const BUSY: Duration = Duration::from_secs(60);

/// The step from each version to the next.
///
/// Columns that an owner of an earlier release writes (`pid`, `status`, `phase`, `updated_at`) stay, as such an owner
/// may still run.
const STEPS: [&str; SCHEMA as usize] = [
    "CREATE TABLE vms (
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
     );",
    "ALTER TABLE vms ADD COLUMN backend TEXT NOT NULL DEFAULT '';
     ALTER TABLE vms ADD COLUMN config TEXT NOT NULL DEFAULT '{}';
     UPDATE vms SET config = json_object(
         'image', image, 'cpus', cpus, 'memory_mb', memory_mb, 'disk_size_mb', disk_size_mb);
     ALTER TABLE vms DROP COLUMN cpus;
     ALTER TABLE vms DROP COLUMN memory_mb;
     ALTER TABLE vms DROP COLUMN disk_size_mb;
     CREATE TABLE lifecycle (
         vm_id TEXT NOT NULL,
         version INTEGER NOT NULL,
         phase TEXT NOT NULL,
         at_ms INTEGER NOT NULL,
         last_error TEXT,
         PRIMARY KEY (vm_id, version)
     ) WITHOUT ROWID;
     CREATE TRIGGER lifecycle_is_append_only BEFORE UPDATE ON lifecycle
         BEGIN SELECT RAISE(ABORT, 'the history of a lifecycle never changes'); END;
     CREATE TABLE cleanup (
         vm_id TEXT NOT NULL,
         version INTEGER NOT NULL,
         step TEXT NOT NULL,
         error TEXT,
         at_ms INTEGER NOT NULL,
         PRIMARY KEY (vm_id, version, step)
     ) WITHOUT ROWID;
     CREATE TRIGGER cleanup_is_append_only BEFORE UPDATE ON cleanup
         BEGIN SELECT RAISE(ABORT, 'the history of a lifecycle never changes'); END;
     INSERT INTO lifecycle (vm_id, version, phase, at_ms)
         SELECT id, 1, phase, CAST(strftime('%s', updated_at) AS INTEGER) * 1000 FROM vms;",
    "CREATE TABLE resources (
         vm_id TEXT NOT NULL,
         kind TEXT NOT NULL,
         name TEXT NOT NULL,
         PRIMARY KEY (vm_id, kind, name)
     ) WITHOUT ROWID;",
];

/// Opens the database of a home, making or migrating it if need be.
pub(crate) fn open(home: &Home) -> Result<Connection> {
    home.make()?;
    let path = home.database();
    images::with_reserve(path.parent().unwrap_or(&path), || open_once(&path))
}

fn open_once(path: &Path) -> Result<Connection> {
    if !path.exists() {
        begin(path)?;
    }
    let db = Connection::open(path)?;
    db.busy_timeout(BUSY)?;
    if version(&db)? < SCHEMA {
        // SQLite does not wait for other processes while it changes the journal mode; this lock does.
        let _lock = lock(path)?;
        migrate(&db)?;
    }
    match version(&db)? {
        SCHEMA => {}
        newer => return Err(Error::Schema(newer.into())),
    }
    // The lock files are the truth, so that a row lost in a power cut loses nothing that still exists.
    db.pragma_update(None, "synchronous", "NORMAL")?;
    Ok(db)
}

/// Makes the file private, as SQLite would not. If the database was removed while a sandbox ran, that sandbox's owner
/// still uses the old log; without its name the old log cannot be taken for the new database's.
fn begin(path: &Path) -> Result<()> {
    let _lock = lock(path)?;
    if path.exists() {
        return Ok(());
    }
    for log in ["db-wal", "db-shm"].map(|extension| path.with_extension(extension)) {
        match fs::remove_file(&log) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io(&log)(error)),
            _ => {}
        }
    }
    create(path).map(drop)
}

/// Takes the lock that is held while the database is made.
fn lock(path: &Path) -> Result<File> {
    let path = path.with_extension("lock");
    let lock = create(&path)?;
    lock.lock().map_err(Error::io(&path))?;
    Ok(lock)
}

/// Opens a file that only its user can read, and makes it if there is none.
fn create(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600).open(path).map_err(Error::io(path))
}

fn version(db: &Connection) -> Result<u32> {
    Ok(db.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

/// Brings the database to this release's schema, whole or not at all.
fn migrate(db: &Connection) -> Result<()> {
    db.pragma_update(None, "journal_mode", "WAL")?;
    let missing = STEPS.get(version(db)? as usize..).unwrap_or_default().concat();
    if !missing.is_empty() {
        db.execute_batch(&format!("BEGIN IMMEDIATE; {missing} PRAGMA user_version = {SCHEMA}; COMMIT;"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::records::history::Change;
    use crate::records::lifecycle::Phase;
    use crate::records::store::tests::record;
    use crate::records::store::{Records, Status};

    /// Rows of release 0.1.0 stay, with a history that begins at their phase.
    #[test]
    fn rows_of_version_1_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        home.make().unwrap();
        let old = Connection::open(home.database()).unwrap();
        old.pragma_update(None, "journal_mode", "WAL").unwrap();
        old.execute_batch(STEPS[0]).unwrap();
        old.execute_batch(
            "INSERT INTO vms VALUES
                 ('vm-00000001', 7, 'running', 'starting', 'busybox', 1.5, 512, 5120,
                  '2026-01-02 03:04:05', '2026-01-02 03:04:06'),
                 ('vm-00000002', 0, 'stopped', 'cleaning', 'alpine', 1, 256, 100,
                  '2026-01-02 03:04:05', '2026-01-02 03:04:07');
             PRAGMA user_version = 1;",
        )
        .unwrap();

        let records = Records::open(&home).unwrap();
        let id = "vm-00000001".parse().unwrap();
        let record = records.get(&id).unwrap().unwrap();
        assert_eq!((record.pid, record.status, record.image.as_str()), (7, Status::Running, "busybox"));
        assert_eq!((record.phase, record.created_at.as_str()), (Phase::Starting, "2026-01-02 03:04:05"));
        let config = &record.config;
        assert_eq!((config.cpus, config.memory_mb, config.disk_size_mb), (1.5, 512, 5120));
        let history = records.history(&id).unwrap();
        assert_eq!(history.len(), 1);
        assert_eq!((history[0].version, history[0].at_ms), (1, 1_767_323_046_000));

        // The row's owner still runs, and writes as its release did.
        old.execute(
            "UPDATE vms SET phase = 'running', updated_at = datetime('now') WHERE id = ?1",
            [id.as_str()],
        )
        .unwrap();
        assert_eq!(records.get(&id).unwrap().unwrap().phase, Phase::Running);
        records.advance(&id, &Change::to(Phase::Stopping)).unwrap();
        assert_eq!(records.history(&id).unwrap().len(), 2);
        assert_eq!(records.list().unwrap().len(), 2);
    }

    #[test]
    fn its_files_are_its_users_only() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        open(&home).unwrap();
        for path in [home.database(), home.database().with_extension("lock")] {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
        }
    }

    #[test]
    fn one_that_was_removed_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let owner = Records::open(&home).unwrap();
        owner.insert(&record("vm-00000001")).unwrap();
        fs::remove_file(home.database()).unwrap();

        let records = Records::open(&home).unwrap();
        assert_eq!(records.list().unwrap(), []);
        records.insert(&record("vm-00000002")).unwrap();
        owner.advance(&record("vm-00000001").id, &Change::to(Phase::Cleaned)).unwrap();
        drop(owner);
        let again = Records::open(&home).unwrap();
        records.insert(&record("vm-00000003")).unwrap();
        assert_eq!(again.list().unwrap().len(), 2, "the owner's end did nothing to it");
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        open(&home).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(open(&home), Err(Error::Schema(99))));
    }

    #[test]
    fn a_failed_migration_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        home.make().unwrap();
        let old = Connection::open(home.database()).unwrap();
        // A table in the way of the second step's last table.
        old.execute_batch(&format!("{} CREATE TABLE cleanup (x); PRAGMA user_version = 1;", STEPS[0]))
            .unwrap();
        assert!(matches!(open(&home), Err(Error::Database(_))));
        assert_eq!(version(&old).unwrap(), 1);
        let columns = old.prepare("SELECT cpus, memory_mb FROM vms").unwrap().column_count();
        assert_eq!(columns, 2);
    }

    #[test]
    fn the_history_never_changes() {
        let directory = tempfile::tempdir().unwrap();
        let db = open(&Home::at(directory.path())).unwrap();
        db.execute("INSERT INTO lifecycle VALUES ('vm-00000001', 1, 'creating', 0, NULL)", []).unwrap();
        db.execute("INSERT INTO cleanup VALUES ('vm-00000001', 1, 'files', NULL, 0)", []).unwrap();
        for table in ["lifecycle", "cleanup"] {
            let error = db.execute(&format!("UPDATE {table} SET at_ms = 1"), []).unwrap_err();
            assert!(error.to_string().contains("never changes"), "{error}");
        }
    }
}
