//! The note beside the changes of an overlay: what the overlay is of, for those who take the changes over.
//!
//! The process that serves the overlay does not get at it. Not here: changes themselves.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;
use std::{fs, io};

use policy::files::WantedMasks;
use serde::{Deserialize, Serialize};

use crate::records::error::{Error, Result};

/// The directory that an overlay is of, and its masks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// Its place in the guest.
    pub(crate) guest_path: String,
    /// The host's directory.
    pub(crate) directory: OsString,
    /// The directory itself, whatever path it has.
    pub(crate) identity: Identity,
    /// The name of the file in it, if the overlay is of a single one.
    pub(crate) file: Option<OsString>,
    /// Patterns of names that are not there for the guest.
    pub(crate) hidden: Vec<String>,
    /// Patterns of names that the guest cannot change.
    pub(crate) readonly: Vec<String>,
    /// Names that programs of the host run or obey are among the latter.
    pub(crate) protect: bool,
}

/// A directory as another one than those that had or will have its path.
///
/// The number of its file system is not in it: it may be another one after each start of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    ino: u64,
    /// The time when it was made, where the file system tells.
    made: Option<SystemTime>,
}

impl Identity {
    pub(crate) fn of(directory: &File) -> io::Result<Self> {
        let found = directory.metadata()?;
        Ok(Self { ino: found.ino(), made: found.created().ok() })
    }
}

impl Note {
    /// Reads the note of this path, if there is one.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>> {
        match fs::read(path) {
            Ok(note) => {
                serde_json::from_slice(&note).map(Some).map_err(|error| Error::io(path)(error.into()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(path)(error)),
        }
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let note = serde_json::to_vec(self).map_err(io::Error::from);
        note.and_then(|note| fs::write(path, note)).map_err(Error::io(path))
    }

    /// The masks of the overlay's share.
    pub(crate) fn masks(&self) -> WantedMasks {
        let Self { hidden, readonly, protect, .. } = self.clone();
        WantedMasks { hidden, readonly, protect }
    }
}
