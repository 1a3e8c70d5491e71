//! Debian packages: fetched through the host's apt with lists of our own or, without it, from a mirror; verified,
//! unpacked.
//!
//! Trust comes from a signed `InRelease`, `Packages`, SHA-256: verified by apt, and the digest once more here, or by
//! a chain of our own with Debian's keys built in. The host's package state is neither read nor changed; no root is
//! needed. Not here: the packages' use (kernel store, built-in image).

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

/// Largest package, in bytes. A Debian kernel is 26 MB for clouds and 70 MB in full.
pub const MAX_PACKAGE_BYTES: u64 = 512 << 20;

/// Largest single file of a package.
pub const MAX_FILE_BYTES: u64 = 512 << 20;

/// Result of a package operation.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of packages.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host has no apt.
    #[error("apt-get not found")]
    NoApt,
    /// The text is no address of a mirror.
    #[error("{0:?} is no URL of a Debian mirror, such as https://deb.debian.org/debian")]
    Url(String),
    /// The mirror failed.
    #[error("Debian mirror {host}: {why}")]
    Mirror {
        /// The mirror's host.
        host: String,
        /// The innermost cause.
        why: String,
    },
    /// The mirror's release is not trusted.
    #[error("Debian mirror {host}: its signed release: {source}")]
    Release {
        /// The mirror's host.
        host: String,
        /// The reason.
        source: ReleaseError,
    },
    /// The text is no key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No Debian package can have this name.
    #[error("{0:?} is not a package name")]
    Name(String),
    /// apt does not know the package.
    #[error("package {0} is not in the host's package sources")]
    Unknown(String),
    /// The mirror does not know the package either.
    #[error("package {name} is not on the Debian mirror {host}")]
    UnknownOn {
        /// The package's name.
        name: String,
        /// The mirror's host.
        host: String,
    },
    /// apt does not know the package, but it could not read all sources.
    #[error("package {name} is not in the host's package sources, as far as they can be read: {complaint}")]
    UnknownIn {
        /// The package's name.
        name: String,
        /// apt's own first warning.
        complaint: String,
    },
    /// apt failed.
    #[error("apt-get {action}: {message}")]
    Apt {
        /// The action.
        action: &'static str,
        /// The last error line of apt.
        message: String,
    },
    /// The downloaded file has another digest than the signed one.
    #[error("{name} has digest sha256:{actual}, its signed record says sha256:{expected}")]
    Digest {
        /// The package's name.
        name: String,
        /// The digest in the record.
        expected: String,
        /// The file's digest.
        actual: String,
    },
    /// The downloaded file has another length than the signed one.
    #[error("{name} has {actual} bytes, its signed record says {expected}")]
    Size {
        /// The package's name.
        name: String,
        /// The length in the record.
        expected: u64,
        /// The file's length.
        actual: u64,
    },
    /// The file is no package, or exceeds a limit.
    #[error("package file: {0}")]
    Format(&'static str),
    /// The work was given up.
    #[error("the package was given up")]
    GivenUp,
    /// The system refused an operation on a file.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
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
