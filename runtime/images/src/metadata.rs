//! The store's records: `metadata.db`, SQLite in WAL mode.
//!
//! ```text
//! images        one row a tag: digest, size, time, origin
//! configs       one row an image digest: its configuration
//! image_layers  its layers by ordinal, lowest first; the file is blobs/<digest with ':' as '_'>.<fs_type>, and the layer
//!               has the diff id where that is another
//! blobs         one row a layer file: its size, whether the layer hides all layers below it, its gaps, and the time since
//!               when it waits for the rest of its image
//! ```
//!
//! A blob's row is written after its file is complete and synced; an image's rows in one transaction after its blobs'.
//! Not here: the files.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};
use serde::{Deserialize, Serialize};
use waiting::CancellationToken;

use crate::layer::{Converted, Gaps};
use crate::reference::normalized;
use crate::reserve::with_reserve;
use crate::{Digest, Error, ImageConfig, ImageSummary, Result};

/// Version of the tables.
const SCHEMA: u32 = 4;

/// Raised when layers are converted differently, so that older files are made anew.
const CONVERSION: u32 = 2;

/// The bits of [`Gaps`] in a row.
const DIRECTORIES: u32 = 1;
const LINKS: u32 = 2;

/// How long to wait for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

const TABLES: &str = "
    CREATE TABLE images (
        scope TEXT NOT NULL, tag TEXT NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
        created_at INTEGER NOT NULL, source TEXT NOT NULL, PRIMARY KEY (scope, tag));
    CREATE TABLE configs (digest TEXT NOT NULL PRIMARY KEY, config TEXT NOT NULL);
    CREATE INDEX images_name ON images (name);
    CREATE TABLE image_layers (
        scope TEXT NOT NULL, tag TEXT NOT NULL, ordinal INTEGER NOT NULL, digest TEXT NOT NULL,
        fs_type TEXT NOT NULL DEFAULT 'erofs', size INTEGER NOT NULL, diff_id TEXT, PRIMARY KEY (scope, tag, ordinal),
        FOREIGN KEY (scope, tag) REFERENCES images (scope, tag) ON DELETE CASCADE);
    CREATE INDEX image_layers_digest ON image_layers (digest);
    CREATE TABLE blobs (
        digest TEXT NOT NULL PRIMARY KEY, size INTEGER NOT NULL, opaque_root INTEGER NOT NULL,
        conversion INTEGER NOT NULL, pending_since INTEGER, gaps INTEGER NOT NULL DEFAULT 0);";

/// The step from version 1, in which every tag had a configuration of its own.
const FROM_1: &str = "
    CREATE TABLE configs (digest TEXT NOT NULL PRIMARY KEY, config TEXT NOT NULL);
    INSERT OR REPLACE INTO configs (digest, config) SELECT digest, config FROM images;
    ALTER TABLE images DROP COLUMN config;";

/// The step from version 2, in which no layer outlived a failed pull.
const FROM_2: &str = "ALTER TABLE blobs ADD COLUMN pending_since INTEGER;";

/// The step from version 3, in which a layer had one file.
const FROM_3: &str = "
    ALTER TABLE blobs ADD COLUMN gaps INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE image_layers ADD COLUMN diff_id TEXT;";

/// A layer file that no image has, itself or in its completed form, and that has not waited for one since `?1` or
/// later.
const ORPHANED: &str = "digest NOT IN (SELECT digest FROM image_layers UNION SELECT diff_id FROM image_layers WHERE diff_id IS NOT NULL) AND (pending_since IS NULL OR pending_since < ?1)";

/// The open records.
pub(crate) struct Metadata {
    path: PathBuf,
    connection: Mutex<Connection>,
}

/// An image as recorded.
pub(crate) struct Record {
    pub(crate) summary: ImageSummary,
    pub(crate) config: ImageConfig,
    /// Lowest first.
    pub(crate) layers: Vec<StoredLayer>,
}

/// A layer in its place in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredLayer {
    /// The name of its file.
    pub(crate) file: Digest,
    /// The layer's diff id.
    pub(crate) diff_id: Digest,
    /// Length of the file.
    pub(crate) len: u64,
}

impl StoredLayer {
    /// A layer whose file is the same in every image.
    pub(crate) fn plain(diff_id: Digest, len: u64) -> Self {
        Self { file: diff_id.clone(), diff_id, len }
    }
}

/// Seconds as SQLite stores them.
fn seconds(since: u64) -> i64 {
    i64::try_from(since).unwrap_or(i64::MAX)
}

/// The kind of rows that an image's source belongs to.
fn scope(source: &str) -> &'static str {
    if source == "registry" { "registry" } else { "local" }
}

/// An `ImageConfig` as it is stored.
#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct StoredConfig {
    user: String,
    working_dir: String,
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    env: Vec<String>,
    volumes: Vec<String>,
}

impl Metadata {
    /// Opens the records at `path`, and makes them if there are none.
    pub(crate) fn open(path: &Path, given_up: &CancellationToken) -> Result<Self> {
        with_reserve(path.parent().unwrap_or(path), || Self::open_once(path, given_up))
    }

    fn open_once(path: &Path, given_up: &CancellationToken) -> Result<Self> {
        let error = |source| Error::Metadata { path: path.to_owned(), source };
        let mut connection = Connection::open(path).map_err(error)?;
        // Configurations may hold secrets. The files that SQLite puts beside this one get its mode.
        make_private(path)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(error)?;
        if version(&connection).map_err(error)? < SCHEMA {
            // SQLite does not wait for other processes while it changes the journal mode; this lock does.
            let lock_path = path.with_extension("lock");
            let lock = File::create(&lock_path).and_then(|lock| waiting::lock(lock, given_up));
            let _lock = lock.map_err(Error::io(&lock_path))?;
            upgrade(&mut connection).map_err(error)?;
        }
        if version(&connection).map_err(error)? != SCHEMA {
            return Err(Error::Version { path: path.to_owned() });
        }
        connection.pragma_update(None, "foreign_keys", true).map_err(error)?;
        Ok(Self { path: path.to_owned(), connection: Mutex::new(connection) })
    }

    /// Finds an image by the exact text of a reference, else by its meaning; local images come first.
    pub(crate) fn image(&self, reference: &str) -> Result<Option<Record>> {
        let connection = self.connection();
        let query = "SELECT tag, source, size, created_at, digest, config, scope FROM images JOIN configs USING (digest)
            WHERE tag = ?1 OR name = ?2 ORDER BY tag = ?1 DESC, scope, created_at DESC LIMIT 1";
        let row = connection.query_row(query, params![reference, normalized(reference)], |row| {
            Ok((summary(row)?, row.get::<_, String>(5)?, row.get::<_, String>(6)?))
        });
        let Some((summary, config, scope)) = row.optional().map_err(|error| self.error(error))? else {
            return Ok(None);
        };
        let query = "SELECT digest, coalesce(diff_id, digest), size FROM image_layers
            WHERE scope = ?1 AND tag = ?2 ORDER BY ordinal";
        let mut statement = connection.prepare(query).map_err(|error| self.error(error))?;
        let layers = statement.query_map([&scope, &summary.tag], |row| {
            Ok(StoredLayer { file: digest(row, 0)?, diff_id: digest(row, 1)?, len: row.get(2)? })
        });
        let layers = layers.and_then(Iterator::collect).map_err(|error| self.error(error))?;
        let stored: StoredConfig = serde_json::from_str(&config).unwrap_or_default();
        let StoredConfig { user, working_dir, entrypoint, cmd, env, volumes } = stored;
        let config = ImageConfig { user, working_dir, entrypoint, cmd, env, volumes };
        Ok(Some(Record { summary, config, layers }))
    }

    /// Every image, local ones first.
    pub(crate) fn images(&self) -> Result<Vec<ImageSummary>> {
        let connection = self.connection();
        let query = "SELECT tag, source, size, created_at, digest FROM images ORDER BY scope, tag";
        let mut statement = connection.prepare(query).map_err(|error| self.error(error))?;
        let rows = statement.query_map([], summary).and_then(Iterator::collect);
        rows.map_err(|error| self.error(error))
    }

    /// Records an image under each of `tags`, replacing their former images.
    pub(crate) fn save(&self, tags: &[String], record: &Record) -> Result<()> {
        let config = StoredConfig {
            user: record.config.user.clone(),
            working_dir: record.config.working_dir.clone(),
            entrypoint: record.config.entrypoint.clone(),
            cmd: record.config.cmd.clone(),
            env: record.config.env.clone(),
            volumes: record.config.volumes.clone(),
        };
        // Text and lists of text always serialize.
        let config = serde_json::to_string(&config).unwrap_or_default();
        let scope = scope(&record.summary.source);
        let mut connection = self.connection();
        let save = |connection: &mut Connection| {
            let change = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let row = "INSERT OR REPLACE INTO configs (digest, config) VALUES (?1, ?2)";
            change.execute(row, [record.summary.digest.as_str(), &config])?;
            for tag in tags {
                change.execute("DELETE FROM images WHERE scope = ?1 AND tag = ?2", [scope, tag])?;
                let row = "INSERT INTO images (scope, tag, name, digest, size, created_at, source)
                    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
                let of = &record.summary;
                let values =
                    params![scope, tag, normalized(tag), of.digest.as_str(), of.size, of.created, of.source];
                change.execute(row, values)?;
                let row = "INSERT INTO image_layers (scope, tag, ordinal, digest, size, diff_id)
                    VALUES (?1, ?2, ?3, ?4, ?5, nullif(?6, ?4))";
                for (ordinal, StoredLayer { file, diff_id, len }) in record.layers.iter().enumerate() {
                    let (file, diff_id) = (file.as_str(), diff_id.as_str());
                    change.execute(row, params![scope, tag, ordinal, file, len, diff_id])?;
                    let row = "UPDATE blobs SET pending_since = NULL WHERE digest IN (?1, ?2)";
                    change.execute(row, [file, diff_id])?;
                }
            }
            change.commit()
        };
        save(&mut connection).map_err(|error| self.error(error))
    }

    /// Removes a tag. Returns whether there was one.
    pub(crate) fn remove(&self, tag: &str) -> Result<bool> {
        // A local image hides a registry's of the same tag, so it is removed first.
        let row = "DELETE FROM images WHERE rowid IN
            (SELECT rowid FROM images WHERE tag = ?1 OR name = ?2 ORDER BY tag = ?1 DESC, scope LIMIT 1)";
        let removed = self.connection().execute(row, [tag, &normalized(tag)]);
        removed.map(|count| count > 0).map_err(|error| self.error(error))
    }

    /// The recorded conversion of a layer's file.
    pub(crate) fn blob(&self, layer: &Digest) -> Result<Option<Converted>> {
        let query = "SELECT size, opaque_root, gaps FROM blobs WHERE digest = ?1 AND conversion = ?2";
        let row = self.connection().query_row(query, params![layer.as_str(), CONVERSION], |row| {
            let gaps: u32 = row.get(2)?;
            let gaps = Gaps { directories: gaps & DIRECTORIES != 0, links: gaps & LINKS != 0 };
            Ok(Converted { len: row.get(0)?, opaque_root: row.get(1)?, gaps })
        });
        row.optional().map_err(|error| self.error(error))
    }

    /// Records a layer's file. With `pending_since` it is kept for the rest of its image from then on, else only with
    /// an image.
    pub(crate) fn save_blob(
        &self,
        layer: &Digest,
        converted: Converted,
        pending_since: Option<u64>,
    ) -> Result<()> {
        let Converted { len, opaque_root, gaps } = converted;
        let gaps = (DIRECTORIES * u32::from(gaps.directories)) | (LINKS * u32::from(gaps.links));
        let mut connection = self.connection();
        let save = |connection: &mut Connection| {
            let change = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let row =
                "INSERT OR REPLACE INTO blobs (digest, size, opaque_root, conversion, pending_since, gaps)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            change
                .execute(row, params![layer.as_str(), len, opaque_root, CONVERSION, pending_since, gaps])?;
            // A file that was made anew may have another length.
            let row = "UPDATE image_layers SET size = ?2 WHERE digest = ?1";
            change.execute(row, params![layer.as_str(), len])?;
            change.commit()
        };
        save(&mut connection).map_err(|error| self.error(error))
    }

    /// Whether some layer file belongs to no image and waits for none. While layers are written, that is normal.
    pub(crate) fn has_orphans(&self, kept_since: u64) -> Result<bool> {
        let query = format!("SELECT EXISTS (SELECT 1 FROM blobs WHERE {ORPHANED})");
        let orphans = self.connection().query_row(&query, [seconds(kept_since)], |row| row.get(0));
        orphans.map_err(|error| self.error(error))
    }

    /// Deletes the rows of configurations and layer files that no image has, and returns the layers that are left,
    /// which include those that have waited for their image since `kept_since` or later.
    pub(crate) fn collect(&self, kept_since: u64) -> Result<Vec<Digest>> {
        let connection = self.connection();
        let collect = || -> rusqlite::Result<Vec<Digest>> {
            connection.execute(&format!("DELETE FROM blobs WHERE {ORPHANED}"), [seconds(kept_since)])?;
            connection.execute("DELETE FROM configs WHERE digest NOT IN (SELECT digest FROM images)", [])?;
            let query = "SELECT digest FROM image_layers UNION SELECT digest FROM blobs";
            let mut statement = connection.prepare(query)?;
            statement.query_map([], |row| digest(row, 0))?.collect()
        };
        collect().map_err(|error| self.error(error))
    }

    fn error(&self, source: rusqlite::Error) -> Error {
        Error::Metadata { path: self.path.clone(), source }
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic elsewhere leaves a connection whose transaction was rolled back.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Brings the tables to this version, unless another process was first.
fn upgrade(connection: &mut Connection) -> rusqlite::Result<()> {
    let changes: &[&str] = match version(connection)? {
        0 => &[TABLES],
        1 => &[FROM_1, FROM_2, FROM_3],
        2 => &[FROM_2, FROM_3],
        3 => &[FROM_3],
        _ => return Ok(()),
    };
    connection.pragma_update(None, "journal_mode", "WAL")?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for change in changes {
        transaction.execute_batch(change)?;
    }
    transaction.pragma_update(None, "user_version", SCHEMA)?;
    transaction.commit()
}

/// Takes all permissions from group and others, by the file's name: opening and closing the database would end the
/// locks that SQLite holds on it (fcntl(2), "advisory record locking").
pub(crate) fn make_private(path: &Path) -> Result<()> {
    let mode = fs::metadata(path).map_err(Error::io(path))?.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(mode & 0o700)).map_err(Error::io(path))
}

fn summary(row: &Row<'_>) -> rusqlite::Result<ImageSummary> {
    Ok(ImageSummary {
        tag: row.get(0)?,
        source: row.get(1)?,
        size: row.get(2)?,
        created: row.get(3)?,
        digest: digest(row, 4)?,
    })
}

fn digest(row: &Row<'_>, index: usize) -> rusqlite::Result<Digest> {
    let text: String = row.get(index)?;
    let kind = rusqlite::types::Type::Text;
    Digest::parse(&text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(index, kind, Box::new(error)))
}
