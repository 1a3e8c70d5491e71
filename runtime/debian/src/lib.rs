//! Debian packages: fetched through the host's apt with lists of our own, verified, unpacked.
//!
//! Trust is apt's: signed `InRelease`, `Packages`, SHA-256. The digest is checked once more here, against the record
//! that apt verified, so that what is unpacked is what was signed. Nothing of the host's package state is read or
//! changed; no root is needed. Not here: what a package is for (kernel store, built-in image), and hosts without apt.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod apt;
mod deb;

pub use apt::{Archive, Package};
pub use deb::{Entry, EntryKind, unpack};

use std::io;
use std::path::PathBuf;

/// Largest package taken, in bytes. A Debian kernel is 26 MB for clouds and 70 MB in full.
pub const MAX_PACKAGE_BYTES: u64 = 512 << 20;

/// Largest single file taken out of a package.
pub const MAX_FILE_BYTES: u64 = 512 << 20;

/// Result of a package operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a package could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This host has no apt.
    #[error("apt-get not found: packages can be fetched on Debian hosts only")]
    NoApt,
    /// A name that no Debian package has.
    #[error("{0:?} is not a package name")]
    Name(String),
    /// apt does not know the package.
    #[error("package {0} is not in the host's package sources")]
    Unknown(String),
    /// apt does not know the package, but it could not read all there is.
    #[error("package {name} is not in the host's package sources, as far as they can be read: {complaint}")]
    UnknownIn {
        /// Package name.
        name: String,
        /// apt's own first warning.
        complaint: String,
    },
    /// apt said no.
    #[error("apt-get {action}: {message}")]
    Apt {
        /// What it was asked.
        action: &'static str,
        /// Its own last error line.
        message: String,
    },
    /// The downloaded file is not the one that was signed for.
    #[error("package {name} has digest sha256:{actual}, its signed record says sha256:{expected}")]
    Digest {
        /// Package name.
        name: String,
        /// What the record says.
        expected: String,
        /// What the file has.
        actual: String,
    },
    /// The file is no package, or breaks a limit.
    #[error("package file: {0}")]
    Format(&'static str),
    /// The system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
