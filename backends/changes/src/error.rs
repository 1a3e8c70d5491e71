//! Errors of changes.

use std::io;

use crate::{Conflict, Place};

/// The reason why changes are not told, or not taken over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{place}: {source}")]
    File {
        /// The file.
        place: String,
        /// The host's reason.
        source: io::Error,
    },
    /// The list is not what a sandbox writes.
    #[error("the list of changes is damaged: {0}")]
    List(&'static str),
    /// The list is longer than lists are.
    #[error("there are more changes than can be kept")]
    TooLong,
    /// The directory has changed meanwhile.
    #[error("{place}: {conflict}; nothing was taken over ({count} such)", count = .others + 1)]
    Conflict {
        /// The first path.
        place: Place,
        /// The fault there.
        conflict: Conflict,
        /// How many more there are.
        others: usize,
    },
    /// Something went wrong on the way, and what was done was not undone.
    #[error("{why}; undoing it failed, too ({undoing}): what was taken away is in {kept}")]
    Stuck {
        /// The first error.
        why: Box<Error>,
        /// The error on the way back.
        undoing: Box<Error>,
        /// A directory in the one that was to be changed.
        kept: Place,
    },
}

/// The outcome of an act on changes.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The error of an act on a file.
    pub(crate) fn at<E: Into<io::Error>, P: ToString + ?Sized>(
        place: &P,
    ) -> impl FnOnce(E) -> Self + use<E, P> {
        let place = place.to_string();
        move |source| Self::File { place, source: source.into() }
    }
}
