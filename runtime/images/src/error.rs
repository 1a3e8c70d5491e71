//! Why an image could not be had.

use std::io;
use std::path::PathBuf;

/// Result of an image operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Neither the store nor the built-in images have it, and there is nothing to pull with.
    #[error(
        "image {0} is not in the store and registry pulls are not built in; import it: docker save {0} | matchlock image import {0}"
    )]
    NotFound(String),
    /// Not a digest of a kind that is understood.
    #[error("{0:?} is not a sha256 digest")]
    Digest(String),
    /// The system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
