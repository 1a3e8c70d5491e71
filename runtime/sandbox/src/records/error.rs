//! Errors of the home directory, the state database, and the leftovers of dead owners.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::records::{BadRow, Id};

/// Result of this room's calls.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of records.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no `$HOME` to keep state in.
    #[error("HOME is not set to an absolute path")]
    NoHome,
    /// Root was asked to act for a user that this host does not know.
    #[error("SUDO_USER names no user with a home directory: {0:?}")]
    SudoUser(String),
    /// This process is root's on behalf of a user, and could not become that user's.
    #[error(transparent)]
    User(#[from] broker::Error),
    /// An operation on a file or directory failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The system refused something that has no path.
    #[error("{what}: {source}")]
    System {
        /// Its subject, for the message.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The system gives no random bytes for an id.
    #[error("the system gives no random bytes")]
    Entropy,
    /// SQLite failed.
    #[error("state database: {0}")]
    Database(#[from] rusqlite::Error),
    /// A row of the state database is not understood.
    #[error(transparent)]
    BadRow(#[from] BadRow),
    /// An external resource cannot be taken back.
    #[error("{resource}: {source}")]
    External {
        /// The resource's kind and name.
        resource: String,
        /// The system's error.
        source: io::Error,
    },
    /// The state database is of a newer release.
    #[error("state database has schema {0}, which is newer than this program")]
    Schema(i64),
    /// There is no such sandbox.
    #[error("VM {0} not found")]
    UnknownVm(String),
    /// The sandbox has not ended.
    #[error("VM is running {0}")]
    StillRunning(Id),
    /// The sandbox's owner is still there after it was killed.
    #[error("VM {id} was killed, but its process is still there after {} s", after.as_secs())]
    NotKilled {
        /// The sandbox.
        id: Id,
        /// How long was waited.
        after: Duration,
    },
}

impl Error {
    /// Adds the path to an error of the system, for `map_err`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// Says what an error of the system is about, for `map_err`.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }

    /// Whether the state database found no room on its disk. SQLite reports a full disk under its log's index as an I/O error.
    pub(crate) fn is_want_of_room(&self) -> bool {
        use rusqlite::ErrorCode::{DiskFull, SystemIoFailure};
        matches!(self, Self::Database(error)
            if matches!(error.sqlite_error_code(), Some(DiskFull | SystemIoFailure)))
    }
}
