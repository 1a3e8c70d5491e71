//! Debian packages: fetched through the host's apt with lists of our own or, without it, from a mirror; verified,
//! unpacked.
//!
//! Trust is a signed `InRelease`, `Packages`, SHA-256: apt's, with the digest checked once more here, or the same chain
//! of our own with Debian's keys built in. Nothing of the host's package state is read or changed; no root is needed.
//! Not here: what a package is for (kernel store, built-in image).

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod apt;
mod archive;
mod deb;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod http;
mod keys;
mod mirror;
mod record;
mod release;
mod version;

pub use archive::{Archive, Package};
pub use deb::{Entry, EntryKind, unpack};
pub use keys::{KeyError, Keys};
pub use mirror::{Mirror, Suite};
pub use release::ReleaseError;

use std::io;
use std::path::PathBuf;

use waiting::GivenUp;

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
    #[error("apt-get not found")]
    NoApt,
    /// Not a mirror's address.
    #[error("{0:?} is no URL of a Debian mirror, such as https://deb.debian.org/debian")]
    Url(String),
    /// A mirror did not give what it was asked for.
    #[error("Debian mirror {host}: {why}")]
    Mirror {
        /// Which one.
        host: String,
        /// The innermost cause.
        why: String,
    },
    /// What a mirror has is not believed.
    #[error("Debian mirror {host}: its signed release: {source}")]
    Release {
        /// Which one.
        host: String,
        /// Why not.
        source: ReleaseError,
    },
    /// A key is none.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A name that no Debian package has.
    #[error("{0:?} is not a package name")]
    Name(String),
    /// apt does not know the package.
    #[error("package {0} is not in the host's package sources")]
    Unknown(String),
    /// Nor does a mirror.
    #[error("package {name} is not on the Debian mirror {host}")]
    UnknownOn {
        /// Package name.
        name: String,
        /// Which mirror.
        host: String,
    },
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
    #[error("{name} has digest sha256:{actual}, its signed record says sha256:{expected}")]
    Digest {
        /// Package name.
        name: String,
        /// What the record says.
        expected: String,
        /// What the file has.
        actual: String,
    },
    /// The downloaded file is shorter or longer than the one that was signed for.
    #[error("{name} has {actual} bytes, its signed record says {expected}")]
    Size {
        /// Package name.
        name: String,
        /// What the record says.
        expected: u64,
        /// What came.
        actual: u64,
    },
    /// The file is no package, or breaks a limit.
    #[error("package file: {0}")]
    Format(&'static str),
    /// Whoever wanted it does not any more.
    #[error("the package was given up")]
    GivenUp,
    /// The system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl From<GivenUp> for Error {
    fn from(_: GivenUp) -> Self {
        Self::GivenUp
    }
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match waiting::is_given_up(&source) {
            true => Self::GivenUp,
            false => Self::Io { path, source },
        }
    }
}
