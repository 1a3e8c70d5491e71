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
    /// Something went wrong on the way, and not all that was done was undone.
    #[error("{why}; not all could be undone: {}", told(.left))]
    Stuck {
        /// The first error.
        why: Box<Error>,
        /// The steps that are left, the last one first.
        left: Vec<NotUndone>,
    },
}

/// A step that cannot be undone, and the reason.
#[derive(Debug, thiserror::Error)]
pub enum NotUndone {
    /// A file is not at its path.
    #[error("{place} is in {at} ({why})")]
    Moved {
        /// Its path.
        place: Place,
        /// The path at which it is now.
        at: Place,
        /// The reason.
        why: Box<Error>,
    },
    /// A file that was made is still there.
    #[error("{place} is left over ({why})")]
    Left {
        /// Its path.
        place: Place,
        /// The reason.
        why: Box<Error>,
    },
    /// A directory that was removed is not there again.
    #[error("the directory {place} is gone ({why})")]
    Gone {
        /// Its path.
        place: Place,
        /// The reason.
        why: Box<Error>,
    },
    /// A file has other permissions than before.
    #[error("{place} has other permissions ({why})")]
    Mode {
        /// Its path.
        place: Place,
        /// The reason.
        why: Box<Error>,
    },
}

/// Most steps that an error tells of.
const MAX_TOLD: usize = 32;

fn told(left: &[NotUndone]) -> String {
    let mut told: Vec<String> = left.iter().take(MAX_TOLD).map(ToString::to_string).collect();
    if left.len() > MAX_TOLD {
        told.push(format!("and {} more", left.len() - MAX_TOLD));
    }
    told.join("; ")
}

/// The outcome of an act on changes.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether a file is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// The error of an act on a file.
    pub(crate) fn at<E: Into<io::Error>, P: ToString + ?Sized>(
        place: &P,
    ) -> impl FnOnce(E) -> Self + use<E, P> {
        let place = place.to_string();
        move |source| Self::File { place, source: source.into() }
    }
}
